"""Models and tokenizers there and back between this program and Hugging Face's transformers.

    python3 test/test_transformers.py [MERGES]        from the repository's root, after `make test/test_files`

MERGES is GPT-2's vocab.bpe (or $GPT2_MERGES); without it the byte-pair tokenizer is skipped. It needs
transformers, torch and safetensors, and no network.
"""

import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
results = {"passed": 0, "failed": 0, "skipped": 0}


def check(ok, what):
    results["passed" if ok else "failed"] += 1
    if not ok:
        print("FAILED:", what)


def read_logits(path):
    """The file of `test_files --export` and `--logits`: n, V, the tokens, the logits (n,V)."""
    data = open(path, "rb").read()
    n, V = np.frombuffer(data, np.int32, 2)
    logits = np.frombuffer(data, np.float32, n * V, 8 + 4 * n)
    return np.frombuffer(data, np.int32, n, 8), logits.reshape(n, V)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(np.array(ids, dtype=np.int64))[None]).logits[0].float().numpy()


def difference(a, b):
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


def ours_to_theirs(folder, kind):
    """What we export loads, reads and writes text, and computes the same."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = open(folder + "/text.txt", encoding="utf-8", newline="").read()
    ids, logits = read_logits(folder + "/logits.bin")
    theirs = tokenizer(text)["input_ids"]
    check(list(ids) == theirs, f"{kind}: the text becomes other tokens")
    check(tokenizer.decode(theirs) == text, f"{kind}: the tokens become another text")
    check(len(tokenizer) == model.config.vocab_size == logits.shape[1], f"{kind}: the vocabularies differ")
    off = difference(logits_of(model, ids), logits)
    check(off < 1e-4, f"{kind}: the logits differ by {off}")
    prompt = tokenizer(text[:20], return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    written = tokenizer.decode(out[0])
    check(out.shape[1] == prompt["input_ids"].shape[1] + 8, f"{kind}: no eight tokens more")
    check(written.startswith(text[:20]), f"{kind}: the text does not go on")
    if kind == "gpt2":
        check(tokenizer.eos_token_id == 50256, "the end of text")
        check(tokenizer.encode("<|endoftext|>") == [50256], "the end of text is not one token")
    print(f"{kind}: {len(theirs)} tokens, logits differ by {off:.1e}")


def theirs_to_ours(folder, name, model, **options):
    """What save_pretrained writes loads here and computes the same."""
    path = f"{folder}/{name}"
    model.save_pretrained(path, **options)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 20).astype(np.int32)
    ids.tofile(path + "/ids.bin")
    command = ["./test/test_files", "--logits", path, path + "/ids.bin", path + "/logits.bin"]
    run = subprocess.run(command, capture_output=True, text=True)
    check(run.returncode == 0, f"{name}: {run.stderr.strip()}")
    if run.returncode:
        return
    reference = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).eval()
    off = difference(logits_of(reference, ids), read_logits(path + "/logits.bin")[1])
    check(off < 1e-4, f"{name}: the logits differ by {off}")
    files = [f for f in os.listdir(path) if f.endswith(".safetensors")]
    print(f"{name}: {len(files)} file(s), logits differ by {off:.1e}")


merges = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("GPT2_MERGES")
with tempfile.TemporaryDirectory() as folder:
    subprocess.run(["./test/test_files", "--export", folder] + ([merges] if merges else []), check=True)
    for kind in ["bytes", "chars"] + (["gpt2"] if merges else []):
        ours_to_theirs(f"{folder}/{kind}", kind)
    if not merges:
        print("skipped: GPT-2's merges are needed for one test; give vocab.bpe or set GPT2_MERGES")
        results["skipped"] += 1
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        n_embd=48, n_head=3, n_layer=3, n_positions=32, vocab_size=301, bos_token_id=0, eos_token_id=0)
    for dtype in torch.float32, torch.float16, torch.bfloat16:
        model = transformers.GPT2LMHeadModel(config).to(dtype)
        name = str(dtype).split(".")[-1]
        theirs_to_ours(folder, name, model)
        theirs_to_ours(folder, name + " in parts", model, max_shard_size="60KB")
    theirs_to_ours(folder, "without a head", transformers.GPT2Model(config))
print(", ".join(f"{n} {what}" for what, n in results.items() if n or what != "skipped"))
sys.exit(results["failed"] > 0)

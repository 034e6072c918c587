"""The peer of `bench decode`: GPT-2 of 124M parameters (random) in transformers, greedy, one sequence, its cache of keys
and values. Prints the best tokens/s of three times 64 tokens.
    python3 peer_transformers.py f32|bf16"""
import sys
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

kinds = {"f32": torch.float32, "bf16": torch.bfloat16}
if sys.argv[1] not in kinds:
    sys.exit(1)
model = GPT2LMHeadModel(GPT2Config()).to(kinds[sys.argv[1]]).eval()
ids = torch.tensor([[11, 22, 33, 44, 55, 66, 77, 88]])


def seconds(n):
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=n, max_new_tokens=n, do_sample=False,
                   pad_token_id=0)
    return time.perf_counter() - start


seconds(4)
print(f"{64 / min(seconds(65) - seconds(1) for _ in range(3)):.1f}")  # without the prompt's time

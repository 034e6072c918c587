"""The peer: the same training step in PyTorch, for `make bench`. nanoGPT's architecture, written here; fused AdamW,
clipping at 1; float32, on a GPU bfloat16. Prints `tokens/s  peak MB` of the median step, eager or compiled.
    python3 peer_torch.py 124M|medium|small|124M-gpu eager|compiled [SECONDS [BATCH]]"""
import math
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {  # layers, heads, channels, context, vocabulary, B, T
    "124M": (12, 12, 768, 1024, 50257, 4, 64),
    "medium": (6, 6, 384, 256, 65, 16, 256),
    "small": (4, 4, 128, 64, 65, 12, 64),
    "124M-gpu": (12, 12, 768, 1024, 50304, 32, 1024),  # nanoGPT's vocabulary: rounded up, which is faster
}


class Block(nn.Module):
    def __init__(self, C, NH):
        super().__init__()
        self.NH = NH
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.NH, C // self.NH).transpose(1, 2) for t in self.attn(self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.proj(y)
        return x + self.fcproj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, L, NH, C, context, V):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(context, C)
        self.blocks = nn.ModuleList(Block(C, NH) for _ in range(L))
        self.ln_f = nn.LayerNorm(C)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * L) if "proj" in name else 0.02)

    def forward(self, x, y):
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = self.ln_f(h) @ self.wte.weight.T
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


def main():
    L, NH, C, context, V, B, T = SHAPES[sys.argv[1]]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 5
    B = int(sys.argv[4]) if len(sys.argv) > 4 else B
    device = "cuda" if sys.argv[1].endswith("-gpu") else "cpu"
    synchronize = lambda: None
    if device == "cuda":
        synchronize = torch.cuda.synchronize
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    model = GPT2(L, NH, C, context, V).to(device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    step_model = torch.compile(model) if sys.argv[2] == "compiled" else model
    times, end = [], math.inf
    while len(times) < 3 or time.perf_counter() < end:
        x, y = (torch.randint(0, V, (B, T), device=device) for _ in range(2))
        synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = step_model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        synchronize()
        times.append(time.perf_counter() - start)
        if end == math.inf and len(times) == 2:  # warmed up, and compiled
            times, end = [], time.perf_counter() + seconds
    times.sort()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(f"{B * T / times[len(times) // 2]:.1f} {peak / 1e6:.0f}")


main()

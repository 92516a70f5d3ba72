"""Times in PyTorch the training step that the `decoder_step` example of commons-ops times.

Usage: decoder_step.py [small | smollm2] [batch] [seq] [steps]
"""

import os
import resource
import sys
import time

import torch
import torch.nn.functional as F

SMALL = dict(vocab=2048, hidden=256, layers=6, heads=8, kv_heads=8, ffn=688, batch=8, seq=128, steps=20)
SMOLLM2 = dict(vocab=49152, hidden=576, layers=30, heads=9, kv_heads=3, ffn=1536, batch=1, seq=256, steps=5)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        h, d = c["hidden"], c["hidden"] // c["heads"]
        linear = lambda i, o: torch.nn.Linear(i, o, bias=False)
        self.heads, self.kv_heads, self.d = c["heads"], c["kv_heads"], d
        self.norm1, self.norm2 = torch.nn.RMSNorm(h, 1e-5), torch.nn.RMSNorm(h, 1e-5)
        self.q, self.o = linear(h, h), linear(h, h)
        self.k, self.v = linear(h, self.kv_heads * d), linear(h, self.kv_heads * d)
        self.gate, self.up, self.down = linear(h, c["ffn"]), linear(h, c["ffn"]), linear(c["ffn"], h)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        n = self.norm1(x)
        split = lambda y, count: y.view(b, t, count, self.d).transpose(1, 2)
        q = rotate(split(self.q(n), self.heads), cos, sin)
        k = rotate(split(self.k(n), self.kv_heads), cos, sin)
        v = split(self.v(n), self.kv_heads)
        gqa = self.heads != self.kv_heads
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, -1))
        n = self.norm2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Model(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.table = torch.nn.Embedding(c["vocab"], c["hidden"])
        self.layers = torch.nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = torch.nn.RMSNorm(c["hidden"], 1e-5)
        for p in self.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.02)
        d = c["hidden"] // c["heads"]
        angle = torch.outer(torch.arange(c["seq"]), 10_000.0 ** (-torch.arange(0, d, 2) / d))
        self.cos, self.sin = angle.cos(), angle.sin()

    def loss(self, ids, targets):
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    c = dict(SMOLLM2 if sys.argv[1:2] == ["smollm2"] else SMALL)
    for i, name in enumerate(("batch", "seq", "steps"), start=2):
        if len(sys.argv) > i:
            c[name] = int(sys.argv[i])
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model = Model(c)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids, targets = (torch.randint(c["vocab"], (c["batch"], c["seq"])) for _ in range(2))
    times = []
    for i in range(c["steps"]):
        if i == 1:
            after_first = time.process_time()
        start = time.perf_counter()
        loss = model.loss(ids, targets)
        forward = time.perf_counter()
        loss.backward()
        back = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        end = time.perf_counter()
        times.append((end - start, forward - start, back - forward, end - back))
    processor = 1e3 * (time.process_time() - after_first) / (c["steps"] - 1)
    times = sorted([1e3 * t for t in row] for row in times)
    best, median = times[0], times[len(times) // 2][0]
    count = sum(p.numel() for p in model.parameters()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"torch {torch.__version__}: {count:.2f} M parameters, {c['batch']} x {c['seq']}: "
        f"min {best[0]:.1f} ms, median {median:.1f} ms, processor {processor:.1f} ms, {c['batch'] * c['seq'] / best[0] * 1e3:.0f} tokens/s "
        f"(forward {best[1]:.1f}, backward {best[2]:.1f}, optimiser {best[3]:.1f}), "
        f"peak {peak:.0f} MiB of which {before:.0f} before the model, loss {loss.item():.4f}"
    )


if __name__ == "__main__":
    main()

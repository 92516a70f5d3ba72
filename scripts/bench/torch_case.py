"""The PyTorch side of benches/src/cases.rs: same shapes, same steps, one line of JSON."""
import argparse
import json
import resource
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads, ffn):
        super().__init__()
        self.heads, self.kv_heads, self.d = heads, kv_heads, width // heads
        self.n1, self.n2 = RMSNorm(width), RMSNorm(width)
        self.q = nn.Linear(width, heads * self.d, bias=False)
        self.k = nn.Linear(width, kv_heads * self.d, bias=False)
        self.v = nn.Linear(width, kv_heads * self.d, bias=False)
        self.o = nn.Linear(heads * self.d, width, bias=False)
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x, cos, sin, cache=None, start=0):
        b, t, _ = x.shape
        h = self.n1(x)
        split = lambda y, n: y.view(b, t, n, self.d).transpose(1, 2)
        q, k, v = split(self.q(h), self.heads), split(self.k(h), self.kv_heads), split(self.v(h), self.kv_heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            cache[0][:, :, start : start + t], cache[1][:, :, start : start + t] = k, v
            k, v = (half[:, :, : start + t] for half in cache)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=self.heads != self.kv_heads)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        h = self.n2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self, vocab, width, layers, heads, kv_heads, ffn):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, ffn) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.d = width // heads
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids):
        x, y = ids[:, :-1], ids[:, 1:]
        t = x.shape[1]
        inverse = 10000.0 ** (-torch.arange(0, self.d, 2).float() / self.d)
        angle = torch.outer(torch.arange(t).float(), inverse)
        cos, sin = angle.cos(), angle.sin()
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, cos, sin)
        logits = F.linear(self.norm(h), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


@torch.no_grad()
def decode(args, batch, prompt=128):
    shape = (49152, 576, 30, 9, 3, 1536)
    model = Decoder(*shape)
    room = [[torch.zeros(batch, 3, prompt + 1024, 64) for _ in "kv"] for _ in model.blocks]
    inverse = 10000.0 ** (-torch.arange(0, model.d, 2).float() / model.d)
    length = 0

    @torch.no_grad()
    def forward(ids):
        nonlocal length
        t = ids.shape[1]
        angle = torch.outer(torch.arange(length, length + t).float(), inverse)
        cos, sin = angle.cos(), angle.sin()
        h = model.embed(ids)
        for block, cache in zip(model.blocks, room):
            h = block(h, cos, sin, cache, length)
        length += t
        return F.linear(model.norm(h[:, -1:]), model.embed.weight)

    forward(torch.randint(0, shape[0], (batch, prompt)))
    ids = torch.randint(0, shape[0], (batch, 1))
    return lambda: forward(ids), 10, batch, "tokens"


def decoder(args, shape, batch, seq):
    model = Decoder(*shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, foreach=args.foreach,
                                  fused=args.fused)
    ids = torch.randint(0, shape[0], (batch, seq + 1))
    loss_of = torch.compile(model) if args.compile else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(ids).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, 1, batch * seq, "tokens"


def mlp(args):
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=args.fused)
    x, y = torch.randn(64, 784), torch.randint(0, 10, (64,))
    forward = torch.compile(model) if args.compile else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()

    return step, 50, 64, "samples"


class ResBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.b1, self.b2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x):
        y = F.relu(self.b1(self.c1(x)))
        return F.relu(self.b2(self.c2(y)) + x)


def resnet_block(args):
    model = ResBlock(32)
    x = torch.randn(64, 32, 32, 32, requires_grad=True)
    forward = torch.compile(model) if args.compile else model

    def step():
        model.zero_grad(set_to_none=True)
        x.grad = None
        forward(x).sum().backward()

    return step, 1, 64, "samples"


def noise(args):
    out = torch.empty(100_000_000)
    return lambda: out.normal_(), 1, 4e8, "bytes"


def load(args):
    import pathlib

    import transformers

    path = pathlib.Path(args.file)

    def step():
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    return step, 1, path.stat().st_size, "bytes"


CASES = {
    "decoder-5m": lambda a: decoder(a, (4096, 256, 6, 8, 8, 688), 8, 128),
    "decoder-135m": lambda a: decoder(a, (49152, 576, 30, 9, 3, 1536), 1, 256),
    "decode-1": lambda a: decode(a, 1),
    "decode-4": lambda a: decode(a, 4),
    "mlp": mlp,
    "resnet-block": resnet_block,
    "noise": noise,
    "load": load,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--file")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    # PyTorch's fastest optimiser on the CPU is the fused one; give it that.
    args.fused, args.foreach = True, None
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    step, inner, units, unit = CASES[args.case](args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for _ in range(2):
        step()
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        for _ in range(inner):
            step()
        times.append((time.perf_counter() - began) * 1e3 / inner)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"case": args.case, "ms": times, "units": units, "unit": unit, "before_mib": before,
                      "peak_mib": peak}))


if __name__ == "__main__":
    main()

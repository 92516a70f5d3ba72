"""The residual block of crates/commons-ops/examples/conv_block.rs in PyTorch eager mode.

Usage: python conv_block.py [batch] [channels] [size] [steps] [threads]
"""
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def main():
    given = [int(a) for a in sys.argv[1:]]
    batch, channels, size, steps, threads = (given + [64, 64, 32, 20, 2][len(given):])[:5]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    bn1, bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    head = nn.Linear(channels, 10, bias=False)
    parameters = [x] + [p for m in (conv1, conv2, bn1, bn2, head) for p in m.parameters()]
    targets = torch.arange(batch) % 10

    forward, total = [], []
    for _ in range(steps):
        start = time.perf_counter()
        h = F.relu(bn1(conv1(x)))
        y = F.relu(bn2(conv2(h)) + x)
        loss = F.cross_entropy(head(y.mean((2, 3))), targets)
        forward.append((time.perf_counter() - start) * 1e3)
        loss.backward()
        total.append((time.perf_counter() - start) * 1e3)
        for p in parameters:
            p.grad = None
    forward.sort()
    total.sort()
    median = total[len(total) // 2]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"conv_block {batch}x{channels}x{size}x{size}: forward min {forward[0]:.2f} median "
        f"{forward[len(forward) // 2]:.2f} ms, step min {total[0]:.2f} median {median:.2f} ms, "
        f"{1e3 / median:.2f} steps/s, peak {peak} MiB, loss {loss.item():.5f}"
    )


if __name__ == "__main__":
    main()

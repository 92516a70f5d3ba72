"""The training step of crates/commons-ops/examples/mlp_step.rs in PyTorch eager mode.

Usage: python mlp_step.py [steps] [threads] [fused AdamW: 0 or 1]
"""
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def main():
    given = [int(a) for a in sys.argv[1:]]
    steps, threads, fused = (given + [2000, 2, 0][len(given):])[:3]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(64, 784)
    targets = torch.arange(64) % 10
    first, second = nn.Linear(784, 256), nn.Linear(256, 10)
    parameters = [*first.parameters(), *second.parameters()]
    rule = torch.optim.AdamW(parameters, lr=1e-3, fused=bool(fused))

    times = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = F.cross_entropy(second(F.relu(first(x))), targets)
        rule.zero_grad(set_to_none=True)
        loss.backward()
        rule.step()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    median = times[len(times) // 2]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"mlp_step: min {times[0]:.4f} median {median:.4f} ms, {1e3 / median:.0f} steps/s "
        f"(best {1e3 / times[0]:.0f}), peak {peak} MiB, loss {loss.item():.5f}"
    )


if __name__ == "__main__":
    main()

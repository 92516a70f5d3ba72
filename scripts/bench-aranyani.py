#!/usr/bin/env python3
"""Times the fair forest against a straightforward PyTorch version of the same forest and update.

    scripts/bench-aranyani.py [--rounds 3]

Makes its own virtual environment under target/bench-venv (set BENCH_PYTHON to use an interpreter
that already has torch). Ratios are our steps per second over PyTorch's, round by round.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent


def interpreter():
    chosen = os.environ.get("BENCH_PYTHON")
    if chosen:
        return chosen
    folder = ROOT / "target/bench-venv"
    binary = folder / "bin/python"
    if not (folder / "ready").exists():
        print("installing PyTorch into target/bench-venv (once)", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([binary, "-m", "pip", "install", "-q", "torch", "numpy"], check=True)
        (folder / "ready").touch()
    return str(binary)


def torch_steps_per_second(torch, steps, width, lam, trees=3, depth=4, classes=2, delta=0.01):
    """The method as one would write it: mask form, running means per node and group, autograd for
    the task loss, Adam."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    nodes, leaves = 2**depth - 1, 2**depth
    mask = torch.zeros(nodes, leaves)
    for leaf in range(leaves):
        at = nodes + leaf
        while at > 0:
            parent = (at - 1) // 2
            mask[parent, leaf] = 1.0 if at == 2 * parent + 1 else -1.0
            at = parent
    w = torch.nn.Parameter(torch.randn(trees, nodes, width))
    b = torch.nn.Parameter(torch.randn(trees, nodes))
    theta = torch.nn.Parameter(torch.rand(trees, leaves, classes))
    adam = torch.optim.Adam([w, b, theta], lr=2e-3)
    count = [0, 0]
    s = torch.zeros(2, trees, nodes)
    gw, gb = torch.zeros(2, trees, nodes, width), torch.zeros(2, trees, nodes)
    xs = torch.randn(1000, width)
    ys = (xs[:, 0] > 0).long().tolist()
    relu = torch.relu
    fixed = (1 - mask.abs()).unsqueeze(0)
    negative = relu(-mask).unsqueeze(0)

    def step(i):
        x, y, a = xs[i % 1000], ys[i % 1000], i % 2
        n = torch.sigmoid(w @ x + b)
        nm = n.unsqueeze(-1) * mask
        p = (relu(nm) + (negative - relu(-nm)) + fixed).prod(1)
        f = (p.unsqueeze(-1) * torch.softmax(theta, -1)).sum(1).mean(0)
        adam.zero_grad()
        (-torch.log(f[y] + 1e-8)).backward()
        with torch.no_grad():
            count[a] += 1
            s[a] += n
            slope = n * (1 - n)
            gw[a] += (slope.unsqueeze(-1) * x - gw[a]) / count[a]
            gb[a] += (slope - gb[a]) / count[a]
            if min(count) > 0:
                gap = s[1] / count[1] - s[0] / count[0]
                h = torch.where(gap.abs() < delta, gap, gap.sign())
                w.grad += lam * h.unsqueeze(-1) * (gw[1] - gw[0])
                b.grad += lam * h * (gb[1] - gb[0])
        adam.step()

    for i in range(50):
        step(i)
    began = time.perf_counter()
    for i in range(steps):
        step(i)
    return steps / (time.perf_counter() - began)


def main():
    try:
        import torch
    except ImportError:
        if os.environ.get("BENCH_CHILD"):
            raise
        os.environ["BENCH_CHILD"] = "1"
        python = interpreter()
        os.execv(python, [python, __file__, *sys.argv[1:]])
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=14)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cargo = ["cargo", "build", "--release", "-q", "--workspace", "--example", "forest_speed"]
    subprocess.run(cargo, check=True, cwd=ROOT)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binary = target / "release/examples/forest_speed"
    ratios = []
    for _ in range(options.rounds):
        theirs = torch_steps_per_second(torch, options.steps, options.width, 0.5)
        line = [str(binary), str(50 * options.steps), str(options.width), "0.5"]
        out = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        ours = out["steps"] / out["seconds"]
        ratios.append(ours / theirs)
        print(f"ours {ours:,.0f} steps/s, PyTorch {theirs:,.0f}: {ratios[-1]:.0f} times")
    print(f"median {statistics.median(ratios):.0f} times")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compares the decomposition with Python `dit` (PID_BROJA): terms, and time per decomposition.

    scripts/check-dit.py [--limit 60] [--random 4]

The golden joints, and random ones of several sizes. dit may take minutes for a joint: it is stopped
after --limit seconds, and its time then counts as that limit, so that the ratio is a lower bound.
dit stops at a tolerance of its own (terms differ by up to about 1e-4), ours at a certified 1e-9.
Times are of single decompositions, ours before and after each of dit's; a ratio is dit's time over
the mean of those two.

Makes its own virtual environment under target/check-venv (set CHECK_PYTHON to use an interpreter
that already has dit).
"""
import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import time
import venv

# How far dit's value may lie below the minimum.
SLACK = 2e-5
ROOT = pathlib.Path(__file__).resolve().parent.parent


def interpreter():
    chosen = os.environ.get("CHECK_PYTHON")
    if chosen:
        return chosen
    folder = ROOT / "target/check-venv"
    binary = folder / "bin/python"
    if not (folder / "dit").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([binary, "-m", "pip", "install", "-q", "dit", "numpy"], check=True)
        (folder / "dit").touch()
    return str(binary)


def theirs(case, answer):
    """Unique term by dit, and its seconds. In a process of its own, so that it can be stopped."""
    import dit
    from dit.pid import PID_BROJA

    nz, ny, ns, p = case
    cells = [(z, y, s) for z in range(nz) for y in range(ny) for s in range(ns)]
    kept = [(c, q) for c, q in zip(cells, p) if q > 0]
    joint = dit.Distribution(["".join(map(str, c)) for c, _ in kept], [q for _, q in kept])
    began = time.perf_counter()
    pid = PID_BROJA(joint, [[1], [2]], [0])
    unique = float(pid.get_pi(((1,),)) if hasattr(pid, "get_pi") else pid.get_partial(((1,),)))
    answer.send((unique, time.perf_counter() - began))


def within(limit, case):
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=theirs, args=(case, send))
    child.start()
    send.close()
    try:
        found = receive.recv() if receive.poll(limit) else None
    except EOFError:
        sys.exit(f"dit failed for {case}")
    child.kill()
    child.join()
    return found


def joints(random, np):
    golden = json.loads((ROOT / "crates/commons-society/src/pid_fairness/golden.json").read_text())
    cases = []
    for p, _ in golden:  # z, s, y -> z, y, s
        cases.append((2, 2, 2, np.array(p, float).reshape(2, 2, 2).transpose(0, 2, 1).ravel()))
    rng = np.random.default_rng(1)
    for nz, ny, ns in [(2, 2, 2), (2, 2, 3), (3, 2, 3)]:
        cases += [(nz, ny, ns, rng.dirichlet(np.ones(nz * ny * ns))) for _ in range(random)]
    return cases


class Ours:
    """The example `broja`, one joint per line."""

    def __init__(self):
        cargo = ["cargo", "build", "--release", "-q", "--workspace", "--example", "broja"]
        subprocess.run(cargo, check=True, cwd=ROOT)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(
            [target / "release/examples/broja"], stdin=pipe, stdout=pipe, text=True)

    def __call__(self, case):
        nz, ny, ns, p = case
        line = {"nz": nz, "ny": ny, "ns": ns, "p": list(map(float, p))}
        self.child.stdin.write(json.dumps(line) + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())


def main():
    try:
        import dit.pid  # noqa: F401: before the clock runs
        import numpy as np
    except ImportError:
        if os.environ.get("CHECK_CHILD"):
            raise
        os.environ["CHECK_CHILD"] = "1"
        python = interpreter()
        os.execv(python, [python, __file__, *sys.argv[1:]])
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=60, help="seconds for dit per joint")
    parser.add_argument("--random", type=int, default=4, help="random joints of each size")
    options = parser.parse_args()
    ours = Ours()
    worst, ratios, lower, stopped = 0.0, [], 0, 0
    cases = joints(options.random, np)
    for case in cases:
        before = ours(case)
        found = within(options.limit, case)
        after = ours(case)
        unique, seconds = before["pid"]["unique"], (before["seconds"] + after["seconds"]) / 2
        head = f"{case[0]}x{case[1]}x{case[2]}: unique {unique:.9f}"
        if found is None:
            stopped += 1
            ratios.append(options.limit / seconds)
            verdict, time_of_dit = "dit stopped", f"more than {options.limit:.0f} s"
        else:
            difference = found[0] - unique
            worst = max(worst, abs(difference))
            # The unique term is a minimum: of two feasible values the lower is the better. dit's
            # distributions keep their margins to about 1e-5 only, so it may fall a little below.
            lower += difference > -SLACK
            ratios.append(found[1] / seconds)
            verdict, time_of_dit = f"dit {found[0]:.9f} ({difference:+.1e})", f"{1e3 * found[1]:.0f} ms"
        print(f"{head}, {verdict}; {1e6 * seconds:.0f} us, dit {time_of_dit}, {ratios[-1]:.0f} times",
              flush=True)
    finished = len(cases) - stopped
    print(f"{len(cases)} joints, dit stopped after {options.limit:.0f} s in {stopped}; largest "
          f"difference {worst:.2e}; ours no higher (but for {SLACK:.0e}) in {lower} of {finished}; "
          f"median {statistics.median(ratios):.0f} times faster, least {min(ratios):.0f}")
    return 0 if lower == finished and min(ratios) >= 50 else 1


if __name__ == "__main__":
    sys.exit(main())

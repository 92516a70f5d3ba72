#!/usr/bin/env python3
"""Compares the decomposition with Python `dit` (PID_BROJA): terms, and time per decomposition.

    scripts/check-dit.py                 # the golden joints and random ones of several sizes
    CHECK_PYTHON=... scripts/check-dit.py

Makes its own virtual environment under target/check-venv (set CHECK_PYTHON to use an interpreter
that already has dit). dit stops at a tolerance of about 2e-5, ours at a certified 1e-9.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import venv

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


def main():
    try:
        import dit
        import numpy as np
        from dit.pid import PID_BROJA
    except ImportError:
        if os.environ.get("CHECK_CHILD"):
            raise
        os.environ["CHECK_CHILD"] = "1"
        python = interpreter()
        os.execv(python, [python, __file__, *sys.argv[1:]])
    import time

    golden = json.loads((ROOT / "crates/commons-society/src/pid_fairness/golden.json").read_text())
    cases = []
    for p, _ in golden:  # z, s, y -> z, y, s
        cases.append((2, 2, 2, np.array(p, float).reshape(2, 2, 2).transpose(0, 2, 1).ravel()))
    rng = np.random.default_rng(1)
    for nz, ny, ns, count in [(2, 2, 2, 6), (2, 2, 3, 4), (3, 2, 3, 3)]:
        cases += [(nz, ny, ns, rng.dirichlet(np.ones(nz * ny * ns))) for _ in range(count)]
    lines = "\n".join(
        json.dumps({"nz": nz, "ny": ny, "ns": ns, "p": list(map(float, p))}) for nz, ny, ns, p in cases
    )
    command = ["cargo", "run", "--release", "-q", "-p", "commons-society", "--example", "broja"]
    out = subprocess.run(command, input=lines, text=True, capture_output=True, check=True, cwd=ROOT)
    ours = [json.loads(line) for line in out.stdout.splitlines()]
    worst, ratios, lower = 0.0, [], 0
    for (nz, ny, ns, p), mine in zip(cases, ours):
        cells = [(z, y, s) for z in range(nz) for y in range(ny) for s in range(ns)]
        kept = [(c, q) for c, q in zip(cells, p) if q > 0]
        d = dit.Distribution(["".join(map(str, c)) for c, _ in kept], [q for _, q in kept])
        began = time.perf_counter()
        pid = PID_BROJA(d, [[1], [2]], [0])
        unique = float(pid.get_pi(((1,),)) if hasattr(pid, "get_pi") else pid.get_partial(((1,),)))
        seconds = time.perf_counter() - began
        difference = unique - mine["pid"]["unique"]
        worst = max(worst, abs(difference))
        # The unique term is a minimum: of two feasible values the lower is the better.
        lower += difference > -1e-9
        ratios.append(seconds / mine["seconds"])
        print(f"{nz}x{ny}x{ns}: unique {mine['pid']['unique']:.9f}, dit {unique:.9f} "
              f"({difference:+.1e}); {1e6 * mine['seconds']:.0f} us, dit {1e3 * seconds:.0f} ms, "
              f"{ratios[-1]:.0f} times")
    print(f"largest difference {worst:.2e}; ours no higher in {lower} of {len(cases)}; "
          f"median {statistics.median(ratios):.0f} times faster, least {min(ratios):.0f}")


if __name__ == "__main__":
    main()

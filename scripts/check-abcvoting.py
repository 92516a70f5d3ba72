#!/usr/bin/env python3
"""Compares `commons shortlist` with abcvoting on approval profiles: committees, and time.

    python3 scripts/check-abcvoting.py FOLDER_OR_FILES... [--commons target/release/commons]
                                       [--runs 3] [--limit 60]

FOLDER holds .abc.yaml files, such as the test instances of abcvoting. The first call makes a virtual
environment under target/ and installs abcvoting from PyPI with pip as it is set up here; set
CHECK_PYTHON to use an interpreter that already has it.

Committees are those of the binary. Times are those of the searches alone, without starting a process
or reading a file, both warm: abcvoting's in this process after a first run, ours in the example
`shortlist_speed`. The two alternate, run by run; a ratio is the median over runs of abcvoting's time
over ours.
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
HOME = ROOT / "target" / "check-abcvoting"
PYTHON = HOME / "bin" / "python"

# Rule of abcvoting, score and solver of ours, whether all tied committees are asked for.
RULES = [
    ("av", "av", "exact", True),
    ("cc", "approval-cc", "exact", True),
    ("pav", "pav", "exact", True),
    ("slav", "approval-owa:" + ",".join(f"1/{2 * j + 1}" for j in range(20)), "exact", True),
    ("geom2", "approval-owa:" + ",".join(f"1/{2 ** j}" for j in range(20)), "exact", True),
    ("seqcc", "approval-cc", "greedy", False),
    ("seqpav", "pav", "greedy", False),
]


def in_environment():
    try:
        import abcvoting  # noqa: F401
        return
    except ImportError:
        if os.environ.get("CHECK_CHILD"):
            raise
    chosen = os.environ.get("CHECK_PYTHON")
    if not chosen and not PYTHON.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "abcvoting"], check=True)
    os.environ["CHECK_CHILD"] = "1"
    python = chosen or str(PYTHON)
    os.execv(python, [python, *sys.argv])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    parser.add_argument("--commons", type=pathlib.Path, default=ROOT / "target/release/commons")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=60, help="profiles, evenly chosen")
    return parser.parse_args()


def profiles(paths, limit):
    files = []
    for path in paths:
        files += sorted(path.glob("*.abc.yaml")) if path.is_dir() else [path]
    stride = max(1, -(-len(files) // limit))
    return files[::stride]


def ours(commons, path, score, solver):
    command = [commons, "--json", "--offline", "--threads", "1", "shortlist", "--rankings", path,
               "--score", score, "--solver", solver]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Searches:
    """The example `shortlist_speed`, one search per line."""

    def __init__(self):
        cargo = ["cargo", "build", "--release", "-q", "--workspace", "--example", "shortlist_speed"]
        subprocess.run(cargo, check=True, cwd=ROOT)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(
            [target / "release/examples/shortlist_speed"], stdin=pipe, stdout=pipe, text=True)

    def __call__(self, path, score, solver):
        job = {"path": str(path), "score": score, "solver": solver}
        self.child.stdin.write(json.dumps(job) + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())["seconds"]


def main():
    in_environment()
    from abcvoting import abcrules, fileio

    options = arguments()
    files = profiles(options.paths, options.limit)
    print(f"{len(files)} profiles, {options.runs} runs each")
    bad, seconds = 0, Searches()
    for rule, score, solver, every in RULES:
        ratios, same, skipped, totals = [], 0, 0, [0.0, 0.0]
        for path in files:
            profile, size, _, _ = fileio.read_abcvoting_yaml_file(str(path))
            pairs, theirs = [], abcrules.compute(rule, profile, size, resolute=not every)
            for _ in range(options.runs):
                began = time.perf_counter()
                abcrules.compute(rule, profile, size, resolute=not every)
                pairs.append((time.perf_counter() - began, seconds(path, score, solver)))
            found = ours(options.commons, path, score, solver)
            wanted = sorted(sorted(c) for c in theirs)
            if every:
                got = sorted(sorted(map(int, c)) for c in found["ties"]["committees"])
                if not found["ties"]["complete"]:
                    # More best committees than are listed: all of ours must be among theirs.
                    skipped += 1
                    got = wanted if all(c in wanted for c in got) else got
            else:
                got = [sorted(map(int, found["subset"]))]
            if got == wanted:
                same += 1
            else:
                bad += 1
                print(f"  {rule} {path.name}: abcvoting {wanted[:3]}, commons {got[:3]}")
            ratios.append(statistics.median(a / b for a, b in pairs))
            totals = [t + statistics.median(p[i] for p in pairs) for i, t in enumerate(totals)]
        print(f"{rule:7} {solver:6} same {same}/{len(files)} (listed in part: {skipped}), "
              f"abcvoting {totals[0]:8.3f} s, commons {totals[1]:8.4f} s, ratio median "
              f"{statistics.median(ratios):7.1f}, least {min(ratios):6.1f}, "
              f"of the sums {totals[0] / totals[1]:7.1f}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

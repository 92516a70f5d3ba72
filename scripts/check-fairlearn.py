#!/usr/bin/env python3
"""Compares the metrics of `commons audit fairness` with fairlearn's on generated predictions.

    scripts/check-fairlearn.py --binary target/release/commons [--rows 5000]

Makes its own virtual environment under target/check-venv (set CHECK_PYTHON to use an interpreter
that already has fairlearn).
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent


def interpreter():
    chosen = os.environ.get("CHECK_PYTHON")
    if chosen:
        return chosen
    folder = ROOT / "target/check-venv"
    binary = folder / "bin/python"
    if not (folder / "fairlearn").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([binary, "-m", "pip", "install", "-q", "fairlearn"], check=True)
        (folder / "fairlearn").touch()
    return str(binary)


def main():
    try:
        import fairlearn.metrics as fm
        from sklearn.metrics import accuracy_score, precision_score
    except ImportError:
        if os.environ.get("CHECK_CHILD"):
            raise
        os.environ["CHECK_CHILD"] = "1"
        python = interpreter()
        os.execv(python, [python, __file__, *sys.argv[1:]])
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target/release/commons"))
    parser.add_argument("--rows", type=int, default=5000)
    options = parser.parse_args()
    rng = random.Random(3)
    rows = []
    for _ in range(options.rows):
        sex, race, site = rng.choice("fm"), rng.choice("uvw"), rng.choice("ab")
        y = int(rng.random() < (0.5 if sex == "m" else 0.3))
        p = y if rng.random() < (0.8 if race == "u" else 0.7) else 1 - y
        rows.append((sex, race, site, y, p))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "preds.csv"
        path.write_text("sex,race,site,y,yhat\n" + "".join(",".join(map(str, r)) + "\n" for r in rows))
        began = time.perf_counter()
        out = subprocess.run(
            [options.binary, "audit", "fairness", str(path), "--sensitive", "sex,race", "--client",
             "site", "--label", "y", "--pred", "yhat", "--json"],
            check=True, capture_output=True, text=True)
        print(f"audit of {options.rows} rows: {time.perf_counter() - began:.2f} s")
    report = json.loads(out.stdout)
    y, p = [r[3] for r in rows], [r[4] for r in rows]
    rates = {
        "selection_rate": fm.selection_rate,
        "accuracy": accuracy_score,
        "true_positive_rate": fm.true_positive_rate,
        "false_positive_rate": fm.false_positive_rate,
        "true_negative_rate": fm.true_negative_rate,
        "false_negative_rate": fm.false_negative_rate,
        "precision": precision_score,
    }
    worst, compared = 0.0, 0

    def same(ours, theirs):
        nonlocal worst, compared
        worst, compared = max(worst, abs(ours - float(theirs))), compared + 1

    for grouping, key in zip(report["groupings"], [lambda r: r[0], lambda r: r[1], lambda r: f"{r[0]} / {r[1]}"]):
        groups = [key(r) for r in rows]
        frame = fm.MetricFrame(metrics=rates, y_true=y, y_pred=p, sensitive_features=groups)
        for group in grouping["groups"]:
            for name in rates:
                same(group["metrics"][name]["value"], frame.by_group.loc[group["name"], name])
        d = grouping["disparities"]
        for name in ["demographic_parity_difference", "demographic_parity_ratio",
                     "equalized_odds_difference", "equalized_odds_ratio",
                     "equal_opportunity_difference", "equal_opportunity_ratio"]:
            if hasattr(fm, name):
                same(d[name]["value"], getattr(fm, name)(y, p, sensitive_features=groups))
        same(d["accuracy_difference"]["value"], frame.difference()["accuracy"])
        same(d["accuracy_ratio"]["value"], frame.ratio()["accuracy"])
    print(f"{compared} numbers, largest difference {worst:.1e}")
    sys.exit(0 if worst <= 1e-12 else 1)


if __name__ == "__main__":
    main()

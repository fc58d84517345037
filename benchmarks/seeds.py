"""Train and score one data set with several seeds through the command line.

    python benchmarks/seeds.py DATA_FOLDER --labeled labeled_10.parquet --seeds 0 1 2 --out DIR

DATA_FOLDER holds the labelled file, unlabeled.parquet and test.parquet. Seeds that are done are not
run again. Writes DIR/results.json, with settings and hardware, and prints a Markdown table. Test
labels are read once, at the end of each run; nothing is chosen by them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def run(*arguments: str) -> str:
    """Run a nanonet command and return what it printed."""
    command = [sys.executable, "-m", "nanonet", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def one_seed(data: Path, labeled: str, seed: int, out: Path, settings: list[str]) -> dict[str, Any]:
    """Return the figures of one seed."""
    path = out / f"seed-{seed}"
    start = time.perf_counter()
    extra = [part for setting in settings for part in ("--set", setting)]
    files = ["--labeled", str(data / labeled), "--unlabeled", str(data / "unlabeled.parquet")]
    run("train", *files, "--seed", str(seed), *extra, "--out", str(path), "--resume")
    wall = time.perf_counter() - start
    summary = json.loads((path / "summary.json").read_text())
    scores = json.loads(run("evaluate", str(path), "--data", str(data / "test.parquet"), "--json"))
    environment = json.loads((path / "environment.json").read_text())
    return {
        "seed": seed,
        "selected": summary["selected"],
        "labels_used_to_choose": summary["selection"]["labels_used"],
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
        "learners": scores["learners"],
        "training_seconds": summary["seconds"],
        "wall_seconds_of_train": round(wall, 1),
        "trainable_parameters": summary["trainable_parameters"],
        "total_parameters": summary["total_parameters"],
        "hardware": environment["hardware"],
        "processor": environment["processor"],
        "versions": environment["versions"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    learners = list(rows[0]["learners"])
    lines = [
        "| seed | shipped | " + " | ".join(learners) + " | training s | whole command s |",
        "|---" * (len(learners) + 4) + "|",
    ]
    for row in rows:
        scores = " | ".join(f"{row['learners'][n]:.4f}" for n in learners)
        lines.append(
            f"| {row['seed']} | {row['accuracy']:.4f} ({row['selected']}) | {scores}"
            f" | {row['training_seconds']:.0f} | {row['wall_seconds_of_train']:.0f} |"
        )
    shipped = [row["accuracy"] for row in rows]
    means = " | ".join(f"{statistics.mean(r['learners'][n] for r in rows):.4f}" for n in learners)
    spread = statistics.stdev(shipped) if len(shipped) > 1 else 0.0
    lines.append(f"| mean | {statistics.mean(shipped):.4f} ± {spread:.4f} | {means} | | |")
    return "\n".join(lines)


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--labeled", default="labeled_10.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        rows.append(one_seed(options.data, options.labeled, seed, options.out, options.settings))
        results = {
            "data": options.data.name,
            "labeled": options.labeled,
            "settings": options.settings,
            "date": datetime.now(UTC).date().isoformat(),
            "rows": rows,
        }
        (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

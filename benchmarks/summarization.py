"""Train and score summarizers on several label draws through the command line.

    python benchmarks/summarization.py DATA_FOLDER --budget sentences=3 --labeled 10 100 --out DIR

DATA_FOLDER holds train.parquet and test.parquet. A draw is a permutation of the training documents:
its first N are labelled (the draws of different N are nested), all that follow the largest N are
unlabelled. Each draw is learnt with the unlabelled documents and without them. Cells that are done
are not run again. Writes DIR/results.json and prints a Markdown table. Labels of the test documents
are read once a cell.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

METHODS = ("nanonet", "supervised")  # with the unlabelled documents, without
BASELINES = ("lead", "longest", "random", "centroid", "oracle")


@dataclass(frozen=True)
class Cell:
    """One training."""

    labeled: int
    draw: int
    method: str

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"{self.method}-{self.labeled}-{self.draw}"


def run(log: Path, *arguments: str) -> str:
    """Run a nanonet command, its messages to a log, and return what it printed."""
    command = [sys.executable, "-m", "nanonet", *arguments]
    with log.open("a") as messages:
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=messages, text=True
        ).stdout


def write_data(options: argparse.Namespace) -> None:
    """Write the draws and the test documents."""
    train = pq.read_table(options.data / "train.parquet")
    free = train.drop_columns([c for c in ("labels", "summary") if c in train.column_names])
    for draw in range(options.draws):
        folder = options.out / "data" / str(draw)
        folder.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(draw).permutation(len(train))
        for count in options.labeled:
            pq.write_table(train.take(pa.array(order[:count])), folder / f"{count}.parquet")
        rest = order[max(options.labeled) :]
        pq.write_table(free.take(pa.array(rest)), folder / "unlabeled.parquet")
    test = pq.read_table(options.data / f"{options.test}.parquet")
    rows = np.random.default_rng(0).permutation(len(test))[: options.documents or None]
    pq.write_table(test.take(pa.array(np.sort(rows))), options.out / "data" / "test.parquet")


def run_cell(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a cell; from its file where they are there."""
    path = options.out / "cells" / cell.name
    done = path.with_suffix(".json")
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    data = options.out / "data" / str(cell.draw)
    files = ["--labeled", str(data / f"{cell.labeled}.parquet")]
    if cell.method == "nanonet":
        files += ["--unlabeled", str(data / "unlabeled.parquet")]
    settings = [f"summarization.budget={options.budget}", *options.settings]
    extra = [part for setting in settings for part in ("--set", setting)]
    log = path.with_suffix(".log")
    train = ["train", "--task", "summarization", *files, *extra, "--out", str(path), "--resume"]
    run(log, *train)
    test = str(options.out / "data" / "test.parquet")
    scores = json.loads(run(log, "evaluate", str(path), "--data", test, "--json"))
    summary = json.loads((path / "summary.json").read_text())
    environment = json.loads((path / "environment.json").read_text())
    row = {
        "labeled": cell.labeled,
        "draw": cell.draw,
        "method": cell.method,
        "selected": summary["selected"],
        "start": summary["start"],
        "training_seconds": summary["seconds"],
        "scores": scores,
        "hardware": environment["hardware"],
        "processor": environment["processor"],
        "versions": environment["versions"],
    }
    done.write_text(json.dumps(row) + "\n")
    print(f"{cell.name}: {[scores[m] for m in ('rouge1', 'rouge2', 'rougeL')]}", flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return means and standard deviations over draws of ROUGE-1 and ROUGE-2, as Markdown."""
    lines = [
        "| | ROUGE-1 | ROUGE-2 | ROUGE-2 of the teacher | encoder used | training s |",
        "|---|---|---|---|---|---|",
    ]
    for name in BASELINES:
        scores = rows[0]["scores"][name]
        lines.append(f"| {name} | {scores['rouge1']:.4f} | {scores['rouge2']:.4f} | | | |")
    for key in sorted({(row["labeled"], row["method"]) for row in rows}):
        own = [row for row in rows if (row["labeled"], row["method"]) == key]
        cells = [_spread([row["scores"][metric] for row in own]) for metric in ("rouge1", "rouge2")]
        cells.append(_spread([row["scores"]["learners"]["teacher"]["rouge2"] for row in own]))
        used = sum(bool(row["start"].get("encoder", True)) for row in own)
        seconds = statistics.mean(row["training_seconds"] for row in own)
        cells += [f"{used} of {len(own)}", f"{seconds:.0f}"]
        lines.append(f"| {key[1]}, {key[0]} labelled | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparisons(rows: list[dict[str, Any]]) -> str:
    """Return paired differences over draws with 90% intervals (Student's t), in points.

    Of the shipped student from its teacher, from the better of lead and longest sentences, and from
    the same learnt without unlabelled documents.
    """
    lines = [
        "| labelled | metric | less | draws | difference, points | 90% |",
        "|---|---|---|---|---|---|",
    ]
    for count in sorted({row["labeled"] for row in rows}):
        own = {m: _by_draw(rows, count, m) for m in METHODS}
        for metric in ("rouge1", "rouge2"):
            for name, other in (
                ("teacher", lambda row, m: row["scores"]["learners"]["teacher"][m]),
                ("lead or longest", lambda row, m: max(row["scores"][b][m] for b in BASELINES[:2])),
                ("centroid", lambda row, m: row["scores"]["centroid"][m]),
            ):
                values = [r["scores"][metric] - other(r, metric) for r in own["nanonet"].values()]
                lines.append(_comparison(count, metric, name, values))
            both = own["nanonet"].keys() & own["supervised"].keys()
            pairs = [[own[m][draw]["scores"][metric] for m in METHODS] for draw in sorted(both)]
            lines.append(_comparison(count, metric, "supervised", [a - b for a, b in pairs]))
    return "\n".join(line for line in lines if line)


def _by_draw(rows: list[dict[str, Any]], count: int, method: str) -> dict[int, dict[str, Any]]:
    return {r["draw"]: r for r in rows if (r["labeled"], r["method"]) == (count, method)}


def _comparison(count: int, metric: str, name: str, values: list[float]) -> str:
    if not values:
        return ""
    mean, n, interval = statistics.mean(values), len(values), ""
    if n > 1:
        half = stats.t.ppf(0.95, n - 1) * statistics.stdev(values) / n**0.5
        interval = f"{100 * (mean - half):+.2f} to {100 * (mean + half):+.2f}"
    return f"| {count} | {metric} | {name} | {n} | {100 * mean:+.2f} | {interval} |"


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def main() -> None:
    """Run all cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--budget", default="sentences=3")
    parser.add_argument("--labeled", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--test", default="test", help="part that is scored")
    parser.add_argument("--documents", type=int, default=0, help="of it at most; 0: all")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, a thread each")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    (options.out / "cells").mkdir(parents=True, exist_ok=True)
    write_data(options)
    if options.jobs > 1:
        options.settings.append("training.threads=1")
    draws, counts = range(options.draws), options.labeled
    cells = [Cell(n, draw, m) for draw in draws for n in counts for m in options.methods]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda cell: run_cell(cell, options), cells))
    results = {
        "data": options.data.name,
        "test": options.test,
        "test_documents": rows[0]["scores"]["examples"],
        "budget": options.budget,
        "settings": options.settings,
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(rows), comparisons(rows), sep="\n\n")


if __name__ == "__main__":
    main()

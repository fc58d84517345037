"""How many unlabelled texts get the right label, by each way of labelling them.

    python benchmarks/labels.py DATA_FOLDER --draws 2 --labeled-per-class 10 --out F.json

DATA_FOLDER holds train.parquet with the labels of all texts, and validation.parquet and
test.parquet, whose texts are left out. The recipe's teacher learns from a draw of labelled texts;
then the run stops, and the labels that it has given the others are compared with the truth, which
no part of it has seen. Writes all figures with settings and hardware, and prints a Markdown table.
"""

import argparse
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nanonet.core.config import make_config
from nanonet.core.errors import InterruptedRunError
from nanonet.core.files import write_json
from nanonet.core.strict import merge, parse_set
from nanonet.data.readers import Columns, TextTable, read_table, table_from_lists
from nanonet.data.splits import split_table
from nanonet.training.checkpoint import list_checkpoints, load_soft_labels
from nanonet.training.display import SilentDisplay
from nanonet.training.inputs import TrainingTables
from nanonet.training.plan import with_enough_steps
from nanonet.training.prepare import aside_count, divide
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train

KINDS = ("neighbours", "combined", "co-trained")


class _UntilLabelled(SilentDisplay):
    """Ends a run, as Ctrl-C would, after the first step that there are soft labels for."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, step: int) -> None:
        """See `Display`."""
        if step > self._step:
            signal.raise_signal(signal.SIGINT)


def draw(folder: Path, labeled_per_class: int, seed: int) -> tuple[TextTable, TextTable, list[Any]]:
    """Return labelled texts, texts without labels, and the labels of these."""
    train_file, *others = (
        read_table(folder / f"{name}.parquet", Columns(), labels="required")
        for name in ("train", "validation", "test")
    )
    kept_out = table_from_lists([text for table in others for text in table.texts])
    split = split_table(
        train_file, labeled_per_class=labeled_per_class, seed=seed, exclude=kept_out
    )
    labels = train_file.labels or []
    unlabeled = table_from_lists([train_file.texts[i] for i in split.unlabeled])
    return _rows(train_file, split.labeled), unlabeled, [labels[i] for i in split.unlabeled]


def _rows(table: TextTable, places: list[int]) -> TextTable:
    """Return some rows of a table."""
    parts = ("texts", "labels", "names", "rows")
    columns = {part: getattr(table, part) for part in parts}
    return replace(table, **{part: c and [c[i] for i in places] for part, c in columns.items()})


def measure(
    tables: tuple[TextTable, TextTable, list[Any]], kind: str, settings: list[str], seed: int
) -> dict[str, Any]:
    """Return the share of unlabelled texts with the right label, of all and of the surer half."""
    labeled, unlabeled, truth = tables
    own = {
        "seed": seed,
        "propagation": {"labels": kind},
        "warmup": {"steps": 0},  # of students, who have no say here
        "training": {"threads": 1},
    }
    config = make_config("nanonet", merge(own, parse_set(settings)))
    config = with_enough_steps(config, len(labeled.texts), len(set(labeled.labels or [])))
    step = round(config.propagation.at * config.training.steps)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        start = time.perf_counter()
        with suppress(InterruptedRunError):
            train(
                config,
                lambda: TrainingTables(labeled, unlabeled, None),
                run.path,
                display=_UntilLabelled(step),
            )
        seconds = time.perf_counter() - start
        found = load_soft_labels(list_checkpoints(run.checkpoints)[-1])
        values = np.array(run.read_labels().values)
        settled, _ = run.read_config()
        environment = run.read_json("environment.json")
    aside = aside_count(len(truth))
    rows, _ = divide(range(len(truth)), aside, settled.training, seed)  # the rows that got labels
    right = values[found.probabilities.argmax(1)] == np.array([truth[i] for i in rows])
    return {
        "labels": kind,
        "seed": seed,
        "texts": len(rows),
        "right": float(right.mean()),
        "right_of_the_surer_half": float(right[found.confidence >= 0.5].mean()),
        "seconds": round(seconds, 1),
        "hardware": environment["hardware"] | {"processor": environment["processor"]},
        "versions": environment["versions"],
    }


def options_of(description: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark on draws of its own."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--labeled-per-class", type=int, default=10)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> None:
    """Measure every way of labelling on every draw."""
    parser = options_of(__doc__)
    parser.add_argument("--labels", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    rows = []
    print("| labels | draw | right | of the surer half | s |\n|---|---|---|---|---|")
    for seed in range(given.draws):
        tables = draw(given.data, given.labeled_per_class, seed)
        for kind in given.labels:
            row = measure(tables, kind, given.set, seed)
            rows.append(row)
            print(
                f"| {kind} | {seed} | {row['right']:.3f} | {row['right_of_the_surer_half']:.3f}"
                f" | {row['seconds']:.0f} |",
                flush=True,
            )
    settings = {
        "data": given.data.name,
        "labeled_per_class": given.labeled_per_class,
        "set": given.set,
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_json(given.out, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()

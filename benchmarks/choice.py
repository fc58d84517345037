"""What it costs to stop and to choose without labels, against the best in hindsight.

    python benchmarks/choice.py DATA_FOLDER --draws 2 --labeled-per-class 10 --out F.json

DATA_FOLDER holds train.parquet, validation.parquet and test.parquet. A run of the default recipe on
a draw of labelled texts is scored on validation rows ten times while students learn. These scores
influence nothing: the run ends at its last step and chooses a student without labels, as ever.
They tell what an oracle would have had that knew the best student, or the best student and the
best time. The finished run is scored once more: heads are fitted after the last step. An oracle
that picks the highest of many noisy scores is flattered by their noise.
Writes all figures with settings and hardware, and prints a Markdown table.
"""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labels import draw, options_of

from nanonet.core.config import make_config
from nanonet.core.files import write_json
from nanonet.core.strict import merge, parse_set
from nanonet.data.readers import Columns, TextTable, read_table, table_from_lists
from nanonet.scoring import evaluate_run
from nanonet.training.inputs import TrainingTables
from nanonet.training.plan import with_enough_steps
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train

LOOKS = 10


def measure(
    labeled: TextTable, unlabeled: TextTable, scored: TextTable, settings: list[str], seed: int
) -> dict[str, Any]:
    """Return the accuracy of every learner at each look, and which student was chosen."""
    own = {"seed": seed, "training": {"threads": 1}}
    config = make_config("nanonet", merge(own, parse_set(settings)))
    config = with_enough_steps(config, len(labeled.texts), len(set(labeled.labels or [])))
    every = {"training": {"checkpoint_every": max(1, config.training.steps // LOOKS)}}
    config = make_config("nanonet", merge(merge(own, parse_set(settings)), every))
    tables = TrainingTables(labeled, unlabeled, None)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        summary = train(config, lambda: tables, run.path, monitor=scored)
        lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        environment = run.read_json("environment.json")
        finished = evaluate_run(run.path, scored, as_trained=True).learners
    rows = [row for row in map(json.loads, lines) if row["kind"] == "evaluation"]
    looks = {row["step"]: row["accuracy"] for row in rows}
    students = summary["students"]
    at_times = [scores[name] for scores in looks.values() for name in students]
    at_end = [finished[name] for name in students]
    return {
        "seed": seed,
        "selected": summary["selected"],
        "criterion": summary["selection"]["criterion"],
        "shipped": finished[summary["selected"]],
        "best_student": max(at_end),
        "best_in_hindsight": max(at_end + at_times),
        "finished": finished,
        "looks": looks,
        "guard": summary["guard"],
        "seconds": summary["seconds"],
        "hardware": environment["hardware"] | {"processor": environment["processor"]},
        "versions": environment["versions"],
    }


def main() -> None:
    """Measure every draw."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", type=int, default=600, help="validation rows to score on")
    options = parser.parse_args()
    table = read_table(options.data / "validation.parquet", Columns(), labels="required")
    labels = (table.labels or [])[: options.rows]
    scored = table_from_lists(table.texts[: options.rows], labels, source="validation rows")
    cells = []
    for seed in range(options.draws):
        labeled, unlabeled, _ = draw(options.data, options.labeled_per_class, seed)
        cells.append(measure(labeled, unlabeled, scored, options.set, seed))
        write_json(
            options.out,
            {
                "date": datetime.now(UTC).date().isoformat(),
                "data": options.data.name,
                "rows": len(labels),
                "labeled_per_class": options.labeled_per_class,
                "settings": options.set,
                "cells": cells,
            },
        )
    print("| draw | shipped | best student | best student, best of ten times |")
    print("|---|---|---|---|")
    for cell in cells:
        best = (cell[key] for key in ("shipped", "best_student", "best_in_hindsight"))
        print("|", cell["seed"], "|", " | ".join(f"{value:.3f}" for value in best), "|")


if __name__ == "__main__":
    main()

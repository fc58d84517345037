"""`nanonet suggest`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanonet.cli.common import (
    data_config,
    data_set_option,
    existing_run_or_bundle,
    need,
    read,
    task_of,
)
from nanonet.core.archive import opened_bundle
from nanonet.core.bundle import is_bundle
from nanonet.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nanonet.scoring import Suggestions


@click.command()
@click.argument("run_or_bundle", metavar="RUN|BUNDLE")
@click.option("--data", required=True, metavar="FILE", help="Texts; labels are not looked at.")
@click.option(
    *("-n", "count"), type=click.IntRange(1), required=True, metavar="N", help="How many texts."
)
@click.option(
    "--output",
    metavar="FILE",
    help="Write them with an empty column label to fill in, in the format of its name.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@data_set_option
def suggest(
    run_or_bundle: str,
    data: str,
    count: int,
    output: str | None,
    seed: int,
    settings: tuple[str, ...],
) -> None:
    """Name the N texts of a file that should be labelled next.

    They are those that the model is in doubt about, each unlike the others; labelled training texts
    and copies are left out. A run asks all its learners, and knows which texts are alike; a bundle
    needs no torch, and tells doubts apart by their classes.

    Shown are, line by line: row in FILE, best guess, its probability, text. Fill in the column
    label of --output, add the rows to the labelled file, and train again.
    """
    from nanonet import scoring

    if output is not None:
        _check_output(output, data)
    path = existing_run_or_bundle(run_or_bundle)
    with opened_bundle(path) as folder:
        if (task := task_of(folder)) in ("summarization", "multilabel"):
            what = "a summarizer" if task == "summarization" else f"for the task {task}"
            raise ConfigError(f"{path} is {what}: texts are suggested for classifiers only")
    table = read(data, settings, labels="ignored")
    if path.is_file() or is_bundle(path):
        found = scoring.suggest_by_bundle(path, table, count, seed)
    elif not (path / "config.toml").is_file():
        raise DataError(f"{path} is neither a run folder nor a bundle")
    else:
        need("nanonet.training.train", "asking a run")
        found = scoring.suggest_by_run(path, table, count, seed)
    if len(found.rows) < count:
        left_out = f"{found.labeled} labelled already, {found.copies} copies"
        click.echo(
            f"warning: {data} has no more than {len(found.rows)} texts to label ({left_out})",
            err=True,
        )
    if output is None:
        _show(found)
        return
    _write(found, output, settings)
    click.echo(f"{output}: {len(found.rows)} texts to label", err=True)


def _check_output(output: str, data: str) -> None:
    from nanonet.data.writers import checked_format

    target = Path(output)
    checked_format(target)
    if target.exists() and Path(data).exists() and target.samefile(data):
        raise ConfigError(f"--output {output} is the file of --data: choose another file")
    if target.exists():
        raise ConfigError(f"--output {output} is there already, perhaps with labels: move it away")
    if not target.parent.is_dir():
        raise DataError(f"cannot write {output}: folder {target.parent} does not exist")


def _show(found: "Suggestions") -> None:
    for s in found.rows:
        text = " ".join(s.text.split())
        click.echo(f"{s.row}\t{found.labels.names[s.guess]}\t{s.probability:.3f}\t{text}")


def _write(found: "Suggestions", output: str, settings: tuple[str, ...]) -> None:
    from nanonet.data.writers import write_table

    data, rows = data_config(settings), found.rows
    write_table(
        output,
        {
            data.text_column: [s.text for s in rows],
            data.label_column: [""] * len(rows),
            "row": [s.row for s in rows],
            "guess": [str(found.labels.values[s.guess]) for s in rows],
            "guess_name": [found.labels.names[s.guess] for s in rows],
            "probability": [round(s.probability, 6) for s in rows],
        },
        {
            data.text_column: str,
            data.label_column: str,
            "row": int,
            "guess": str,
            "guess_name": str,
            "probability": float,
        },
    )

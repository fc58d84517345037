"""What `nanonet evaluate` does where a text may have several labels."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanonet.cli.common import data_config, need, task_of
from nanonet.core.bundle import is_bundle
from nanonet.core.errors import ConfigError

if TYPE_CHECKING:
    from nanonet.data.readers import LabelUse

TASK = "multilabel"
SHOWN = 20  # labels
threshold_option = click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Where a text may have several labels: from which probability on it gets one.  [default:"
    " as trained]",
)


def is_multilabel(path: Path) -> bool:
    """Return whether a folder holds a bundle or run of this task; whole or not."""
    return task_of(path) == TASK


def refuse_threshold(threshold: float | None) -> None:
    """Refuse an option that only this task has.

    Raises:
        ConfigError: it is given.
    """
    if threshold is not None:
        raise ConfigError("--threshold is for the task multilabel: leave it out")


def read_labels(data: str, settings: tuple[str, ...], labels: "LabelUse") -> Any:
    """Read texts that may have several labels (see `read_multilabel`)."""
    from nanonet.data.multilabel import read_multilabel

    return read_multilabel(data, data_config(settings), labels=labels)


def evaluate_labels(
    path: Path, data: str, settings: tuple[str, ...], threshold: float | None, as_json: bool
) -> None:
    """Score a run or a bundle and print what was found."""
    from nanonet.scoring import multilabel as scoring

    table = read_labels(data, settings, "required")
    if is_bundle(path):
        scores = scoring.evaluate_bundle(path, table, threshold=threshold)
    else:
        need("nanonet.training.train", "scoring a run")
        scores = scoring.evaluate_run(path, table, threshold=threshold)
    for warning in scores.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(scores.to_json()))
        return
    click.echo(f"all labels right  {scores.accuracy:.4f}")
    click.echo(f"micro F1          {scores.micro_f1:.4f}")
    click.echo(f"macro F1          {scores.macro_f1:.4f}")
    click.echo(f"examples          {scores.examples}  in {scores.seconds:.1f} s")
    if scores.learners:
        others = "" if threshold is not None else ", at a threshold of 0.5 where not shipped"
        click.echo(f"learners, micro F1{others}:")
    for name, value in scores.learners_micro_f1.items():
        click.echo(f"  {name:14s}  {value:.4f}")
    for name, value in list(scores.by_label.items())[:SHOWN]:
        click.echo(f"  label {name}: F1 {value:.4f}")
    if len(scores.by_label) > SHOWN:
        click.echo(f"  ... and {len(scores.by_label) - SHOWN} more labels: --json shows all")

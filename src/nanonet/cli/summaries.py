"""Options of summarizers, and what `nanonet evaluate` does with one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanonet.cli.common import data_config, need, task_of
from nanonet.core.bundle import is_bundle
from nanonet.core.errors import ConfigError

if TYPE_CHECKING:
    from nanonet.data.readers import LabelUse

TASK = "summarization"
budget_option = click.option(
    "--budget",
    metavar="SIZE",
    help="Length of summaries: sentences=3, words=100 or ratio=0.3 of the document's words."
    "  [default: as trained]",
)
block_option = click.option(
    "--block-trigrams/--allow-trigrams",
    default=None,
    help="No two sentences of a summary with three words in a row in common."
    "  [default: as trained]",
)


def is_summarizer(path: Path) -> bool:
    """Return whether a folder holds a summarizer's bundle or run; whole or not."""
    return task_of(path) == TASK


def refuse_summary_options(budget: str | None, block_trigrams: bool | None) -> None:
    """Refuse options that only a summarizer has.

    Raises:
        ConfigError: one is given.
    """
    if budget is not None or block_trigrams is not None:
        name = "--budget" if budget is not None else "--block-trigrams"
        raise ConfigError(f"{name} is for summarizers, and this is none: leave it out")


def evaluate_summaries(
    path: Path,
    data: str,
    settings: tuple[str, ...],
    budget: str | None,
    block_trigrams: bool | None,
    as_json: bool,
) -> None:
    """Score a summarizer and print what was found."""
    from nanonet.scoring import summarization as scoring

    if is_bundle(path):
        table = read_for(path, data, settings, "required")
        scores = scoring.evaluate_bundle(path, table, budget, block_trigrams)
    else:
        need("nanonet.training.train", "scoring a run")
        table = read_for(path, data, settings, "required")
        scores = scoring.evaluate_run(path, table, budget, block_trigrams)
    for warning in scores.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(scores.to_json()))
        return
    click.echo(f"{scores.examples} documents, budget {scores.budget}, {scores.seconds:.1f} s")
    click.echo(f"{'':12s}{''.join(f'{name:>9s}' for name in scores.rouge)}")
    rows = {"model": scores.rouge, **scores.baselines}
    rows |= {f"  {name}": own for name, own in scores.learners.items()}
    for name, own in rows.items():
        click.echo(f"{name:12s}{''.join(f'{value:9.4f}' for value in own.values())}")
    for metric, margin in scores.margins.items():
        low, high = margin.interval
        click.echo(
            f"{metric}: {margin.difference:+.4f} against {margin.over} (95%: {low:+.4f} to"
            f" {high:+.4f})"
        )


def read_for(path: Path, data: str, settings: tuple[str, ...], labels: "LabelUse") -> Any:
    """Read documents for the summarizer of a bundle or run (see `read_documents`)."""
    from nanonet.data.documents import read_documents

    return read_documents(data, data_config(settings), _language(path), labels=labels)


def _language(path: Path) -> str:
    """Return the language that a bundle or run was trained for."""
    from nanonet.core.bundle import read_manifest

    if is_bundle(path):
        return str(read_manifest(path).settings.get("language", "en"))
    from nanonet.training.run_folder import RunFolder

    config, _ = RunFolder(path).read_config()
    return config.summarization.language

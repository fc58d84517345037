"""`nanonet evaluate`."""

import json

import click

from nanonet.cli.common import data_set_option, existing_run_or_bundle, need, read
from nanonet.cli.multilabel import (
    evaluate_labels,
    is_multilabel,
    refuse_threshold,
    threshold_option,
)
from nanonet.cli.summaries import (
    block_option,
    budget_option,
    evaluate_summaries,
    is_summarizer,
    refuse_summary_options,
)
from nanonet.core.archive import opened_bundle
from nanonet.core.errors import ConfigError, DataError


@click.command()
@click.argument("run_or_bundle", metavar="RUN|BUNDLE")
@click.option("--data", required=True, metavar="FILE", help="Texts with labels.")
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    help="Count texts as not covered whose most probable class has less.  [default: as the bundle"
    " says]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line, one JSON object.")
@threshold_option
@budget_option
@block_option
@data_set_option
def evaluate(
    run_or_bundle: str,
    data: str,
    min_confidence: float | None,
    as_json: bool,
    threshold: float | None,
    budget: str | None,
    block_trigrams: bool | None,
    settings: tuple[str, ...],
) -> None:
    """Score a run (all its learners) or a bundle (without torch) on labelled texts.

    A summarizer is scored by ROUGE beside simple baselines, on documents with labels or summaries;
    where a text may have several labels, by F1 and by how often all of them are right.
    """
    from nanonet import scoring
    from nanonet.core.bundle import is_bundle

    path = existing_run_or_bundle(run_or_bundle)
    with opened_bundle(path) as folder:
        of_labels = is_multilabel(folder)
        if (of_labels or is_summarizer(folder)) and min_confidence is not None:
            raise ConfigError("--min-confidence is for classifiers: leave it out")
        if is_summarizer(folder):
            refuse_threshold(threshold)
            evaluate_summaries(folder, data, settings, budget, block_trigrams, as_json)
            return
        refuse_summary_options(budget, block_trigrams)
        if of_labels:
            evaluate_labels(folder, data, settings, threshold, as_json)
            return
    refuse_threshold(threshold)
    table = read(data, settings, labels="required")
    if path.is_file() or is_bundle(path):
        scores = scoring.evaluate_bundle(path, table, min_confidence=min_confidence)
    elif not (path / "config.toml").is_file():
        raise DataError(f"{path} is neither a run folder nor a bundle")
    else:
        need("nanonet.training.train", "scoring a run")
        scores = scoring.evaluate_run(path, table, min_confidence=min_confidence or 0.0)
    for warning in scores.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(scores.to_json()))
        return
    click.echo(f"accuracy  {scores.accuracy:.4f}")
    click.echo(f"macro F1  {scores.macro_f1:.4f}")
    click.echo(f"ECE       {scores.ece:.4f}  ({scores.ece_uncalibrated:.4f} before calibration)")
    if scores.min_confidence > 0.0:
        covered = scores.accuracy_covered
        click.echo(
            f"covered   {scores.coverage:.4f}  at probability {scores.min_confidence:.4f} or more,"
            f" accuracy there {'-' if covered is None else f'{covered:.4f}'}"
        )
    click.echo(f"examples  {scores.examples}  in {scores.seconds:.1f} s")
    for name, value in scores.learners.items():
        click.echo(f"  {name:10s} accuracy {value:.4f}")

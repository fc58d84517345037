"""`nanonet predict`."""

import json
from pathlib import Path
from typing import Any

import click

from nanonet.cli.common import data_set_option, read
from nanonet.cli.summaries import (
    block_option,
    budget_option,
    is_summarizer,
    refuse_summary_options,
    summarize,
)
from nanonet.core.errors import ConfigError, DataError


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--input", "source", metavar="FILE", help="Texts to classify.")
@click.option("--output", metavar="FILE", help="Where to write; by its suffix CSV, JSONL, Parquet.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: all]")
@budget_option
@block_option
@data_set_option
def predict(
    bundle: str,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    threads: int,
    budget: str | None,
    block_trigrams: bool | None,
    settings: tuple[str, ...],
) -> None:
    """Classify or summarize texts with a bundle, without torch.

    TEXTs are answered on the screen, one per line: label, probability, text. With --input, every
    row of the file is answered in its order, with the columns text, label, label_name and
    probability. A summarizer answers with the columns text, summary and sentences: number,
    characters from start to end, score and text of each sentence chosen.
    """
    from nanonet.data.writers import SUFFIXES, write_table
    from nanonet.runtime.predictor import Predictor

    if bool(texts) == bool(source):
        raise ConfigError("give either TEXTs or --input FILE")
    if output is not None and Path(output).suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--output {output}: unknown file type (there are: {', '.join(SUFFIXES)})"
        )
    if output is not None and source is None:
        raise ConfigError("--output goes with --input")
    if output is not None and Path(output).exists() and Path(output).samefile(str(source)):
        raise ConfigError(f"--output {output} is the input: choose another file")
    if settings and source is None:
        raise ConfigError("--set names columns: it goes with --input")
    if output is not None and not Path(output).parent.is_dir():
        raise DataError(f"cannot write {output}: folder {Path(output).parent} does not exist")
    if is_summarizer(Path(bundle)):
        how = (texts, source, output, threads, settings, budget, block_trigrams)
        summarize(Path(bundle), *how)
        return
    refuse_summary_options(budget, block_trigrams)
    predictor = Predictor.load(bundle, threads=threads)
    if source is not None:
        rows = read(source, settings, labels="ignored", keep_empty=True).texts
    else:
        rows = list(texts)
    probabilities = predictor.predict_proba(rows)
    best = probabilities.argmax(-1)
    columns: dict[str, list[Any]] = {
        "text": rows,
        "label": [predictor.labels.values[i] for i in best],
        "label_name": [predictor.labels.names[i] for i in best],
        "probability": [round(float(p[i]), 6) for p, i in zip(probabilities, best, strict=True)],
    }
    if output is not None:
        write_table(output, columns)
        click.echo(f"{output}: {len(rows)} texts", err=True)
    elif source is not None:
        for values in zip(*columns.values(), strict=True):
            click.echo(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False))
    else:
        for text, _, name, probability in zip(*columns.values(), strict=True):
            click.echo(f"{name}\t{probability:.3f}\t{text}")

"""`nanonet predict`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanonet.cli.common import data_config, data_set_option, existing_folder
from nanonet.cli.progress import RowProgress
from nanonet.cli.summaries import (
    block_option,
    budget_option,
    is_summarizer,
    refuse_summary_options,
    summarize,
)
from nanonet.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nanonet.runtime.batch import Files
    from nanonet.runtime.predictor import Predictor
    from nanonet.tasks.labels import LabelSet

PIPE = "-"
_PAUSE = 0.02  # seconds without a line after which the lines so far are answered


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--input", "source", metavar="FILE", help="Texts to classify; -: JSON lines of a pipe."
)
@click.option(
    "--output",
    metavar="FILE",
    help="Where to write, in the format of its name; -, or without it: JSON lines to a pipe.",
)
@click.option(
    "--overwrite", is_flag=True, help="Drop what another job has left unfinished at --output."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: all Parquet files of the folder --input, on a Ray cluster, to the folder --output.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes of --engine ray.  [default: as many as the cluster's CPUs allow]",
)
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="CPU threads (of each worker).  [default: all; with ray 1]",
)
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    help="Give no label where the most probable class has less.  [default: as the bundle says; 0:"
    " every text gets one]",
)
@budget_option
@block_option
@data_set_option
def predict(
    bundle: str,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    overwrite: bool,
    engine: str,
    workers: int | None,
    threads: int,
    min_confidence: float | None,
    budget: str | None,
    block_trigrams: bool | None,
    settings: tuple[str, ...],
) -> None:
    """Classify or summarize texts with a bundle, without torch.

    TEXTs are answered on the screen, one per line: label, probability, text. With --input, every
    row of the file is answered in its order, with the columns text, label, label_name, probability
    and abstained. FILE may be larger than the memory; the same command goes on where a killed one
    stopped.

    A summarizer answers with the columns text, summary and sentences: number, characters from start
    to end, score and text of each sentence chosen.
    """
    if bool(texts) == bool(source):
        raise ConfigError("give either TEXTs or --input FILE")
    if source is None:
        if output is not None:
            raise ConfigError("--output goes with --input")
        if settings:
            raise ConfigError("--set names columns: it goes with --input")
    if is_summarizer(Path(bundle)):
        if engine == "ray" or PIPE in (source, output) or min_confidence is not None:
            raise ConfigError(
                "a summarizer reads files: leave --engine ray, - and --min-confidence out"
            )
        how = (texts, source, output, threads, settings, budget, block_trigrams)
        summarize(Path(bundle), *how)
        return
    refuse_summary_options(budget, block_trigrams)
    loading = (threads, min_confidence)
    if source is None:
        _predict_texts(_load(bundle, *loading), list(texts))
        return
    column = data_config(settings).text_column
    if engine == "ray":
        _predict_folder(bundle, source, output, column, workers, *loading, overwrite)
        return
    if workers is not None:
        raise ConfigError("--workers goes with --engine ray")
    if output in (None, PIPE):
        _predict_to_pipe(_load(bundle, *loading), source, column)
    else:
        _predict_file(bundle, source, str(output), column, *loading, overwrite)


def _predict_texts(predictor: "Predictor", texts: list[str]) -> None:
    """Answer texts of the command line."""
    from nanonet.runtime.batch import answer

    for text, _, name, probability, abstained in zip(
        *answer(predictor, texts).values(), strict=True
    ):
        click.echo(f"{'(abstained)' if abstained else name}\t{probability:.3f}\t{text}")


def _predict_to_pipe(predictor: "Predictor", source: str, column: str) -> None:
    """Answer a file or standard input on standard output."""
    from nanonet.data.readers import stream_texts
    from nanonet.runtime.batch import predict_stream

    name = "stdin" if source == PIPE else source
    with RowProgress(name, quiet=sys.stdout.isatty()) as progress:
        # Every block is flushed: what reads the pipe waits for it.
        blocks = stream_texts(source, column, pause=_PAUSE)
        predict_stream(predictor, blocks, partial(click.echo, nl=False), progress)


def _predict_file(
    bundle: str,
    source: str,
    output: str,
    column: str,
    threads: int,
    min_confidence: float | None,
    overwrite: bool,
) -> None:
    """Answer a file or standard input in a file."""
    from nanonet.data.formats import SUPPORTED, file_format
    from nanonet.data.writers import checked_format
    from nanonet.runtime.batch import predict_file

    target = Path(output)
    if file_format(target) is None:
        raise ConfigError(f"--output {output}: unknown file type; supported are {SUPPORTED}")
    checked_format(target)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise ConfigError(f"--output {output} is the input: choose another file")
    if target.is_dir():
        raise ConfigError(f"--output {output} is a folder: name a file")
    if not target.parent.is_dir():
        raise DataError(f"cannot write {output}: folder {target.parent} does not exist")
    predictor = _load(bundle, threads, min_confidence)
    files = files_of(source, output, column, predictor.labels)
    with RowProgress(output) as progress:
        done = predict_file(predictor, Path(bundle), target, files, progress, overwrite=overwrite)
    if done.outdated:
        click.echo(
            f"warning: {source} has changed since the work on {output} began: {done.outdated} "
            "finished blocks did not fit it and were answered again",
            err=True,
        )
    click.echo(f"{output}: {progress.summary()}", err=True)


def _predict_folder(
    bundle: str,
    source: str,
    output: str | None,
    column: str,
    workers: int | None,
    threads: int,
    min_confidence: float | None,
    overwrite: bool,
) -> None:
    """Answer a folder of Parquet files on a Ray cluster."""
    from nanonet.data.writers import checked_format
    from nanonet.runtime.cluster import predict_folder

    if output in (None, PIPE) or source == PIPE:
        raise ConfigError("--engine ray needs the folders --input and --output")
    checked_format(Path("answers.parquet"))
    with RowProgress(str(output)) as progress:
        predict_folder(
            Path(bundle),
            existing_folder(source),
            Path(str(output)),
            files_of,
            column,
            progress,
            workers=workers,
            threads=threads or 1,
            overwrite=overwrite,
            min_confidence=min_confidence,
        )
    click.echo(f"{output}: {progress.summary()}", err=True)


def files_of(source: str, output: str, column: str, labels: "LabelSet") -> "Files":
    """Return how the rows of ``source`` are read and their answers written."""
    from nanonet.data.formats import file_format
    from nanonet.data.readers import stream_texts
    from nanonet.data.writers import join_tables, write_table
    from nanonet.runtime.batch import Files, answer_types

    known = file_format(output)
    assert known is not None, "checked before"
    return Files(
        blocks=stream_texts(source, column, allow_nul=not known.is_csv),
        suffix=known.suffix,
        write=partial(write_table, types=answer_types(labels)),
        join=join_tables,
    )


def _load(bundle: str, threads: int, min_confidence: float | None) -> "Predictor":
    from nanonet.runtime.predictor import Predictor

    return Predictor.load(bundle, threads=threads, min_confidence=min_confidence)

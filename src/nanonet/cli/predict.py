"""`nanonet predict`."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanonet.cli.common import data_config, data_set_option, existing_folder
from nanonet.cli.multilabel import is_multilabel, refuse_threshold, threshold_option
from nanonet.cli.progress import RowProgress
from nanonet.cli.summaries import (
    block_option,
    budget_option,
    is_summarizer,
    refuse_summary_options,
)
from nanonet.core.archive import opened_bundle
from nanonet.core.config import DataConfig
from nanonet.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nanonet.runtime.batch import Answerer, Answers, Blocks, Files

PIPE = "-"
_PAUSE = 0.02  # seconds without a line after which the lines so far are answered


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--input", "source", metavar="FILE", help="Texts to answer; -: JSON lines of a pipe.")
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
@threshold_option
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
    threshold: float | None,
    budget: str | None,
    block_trigrams: bool | None,
    settings: tuple[str, ...],
) -> None:
    """Classify, label or summarize texts with a bundle, without torch.

    TEXTs are answered on the screen, one per line: label, probability, text. With --input, every
    row of the file is answered in its order, with the columns text, label, label_name, probability
    and abstained. FILE may be larger than the memory; the same command goes on where a killed one
    stopped.

    Where a text may have several labels, the columns are text, labels, label_names and
    probabilities: lists, the surest label first.

    A summarizer reads the column text, or sentences: lists of them. It answers with the columns
    text, summary and sentences: number, characters from start to end, score and text of each
    sentence chosen.
    """
    if bool(texts) == bool(source):
        raise ConfigError("give either TEXTs or --input FILE")
    if source is None:
        if output is not None:
            raise ConfigError("--output goes with --input")
        if settings:
            raise ConfigError("--set names columns: it goes with --input")
    if workers is not None and engine != "ray":
        raise ConfigError("--workers goes with --engine ray")
    if engine == "ray" and Path(bundle).is_file():
        raise ConfigError("--engine ray needs the bundle's folder: unzip it where all nodes see it")
    with opened_bundle(Path(bundle)) as folder:
        data = data_config(settings)
        work = _work(folder, data, budget, block_trigrams, min_confidence, threshold)
        if source is None:
            answers = work.load(str(folder), threads).answer(texts)
            for line in work.show(answers).split("\n"):  # a reader may leave after any of them
                click.echo(line)
        elif engine == "ray":
            _predict_folder(work, folder, source, output, workers, threads, overwrite)
        elif output in (None, PIPE):
            _predict_to_pipe(work, work.load(str(folder), threads), source)
        else:
            _predict_file(work, folder, source, str(output), threads, overwrite)


@dataclass(frozen=True)
class _Work:
    """What is done with the bundles of a task.

    Attributes:
        unit: what a row is called.
        load: makes what answers rows, of a folder and a number of threads.
        read: yields the rows of a source.
        asked: what decides the answers beside bundle and rows; the columns too.
        show: answers as the screen shows them.
    """

    unit: str
    load: "Callable[[str, int], Answerer]"
    read: "Callable[..., Blocks]"
    asked: dict[str, str]
    show: "Callable[[Answers], str]"


def _work(
    folder: Path,
    data: DataConfig,
    budget: str | None,
    block: bool | None,
    min_confidence: float | None,
    threshold: float | None,
) -> _Work:
    """Return how to do what is asked of a bundle."""
    of_labels = is_multilabel(folder)
    if not of_labels:
        refuse_threshold(threshold)
    if (of_labels or is_summarizer(folder)) and min_confidence is not None:
        raise ConfigError("--min-confidence is for classifiers: leave it out")
    if is_summarizer(folder):
        from nanonet.data.documents import stream_documents

        columns = {"sentences column": data.sentences_column, "text column": data.text_column}
        length = {"budget": str(budget), "trigram blocking": str(block)}
        load = partial(_load_summarizer, budget=budget, block_trigrams=block)
        documents = partial(stream_documents, columns=data)
        return _Work("documents", load, documents, columns | length, _show_summaries)
    from nanonet.data.readers import stream_texts

    refuse_summary_options(budget, block)
    texts = partial(stream_texts, column=data.text_column)
    if of_labels:
        asked = {"text column": data.text_column, "threshold": str(threshold)}
        load = partial(_load_multilabel, threshold=threshold)
        return _Work("texts", load, texts, asked, _show_labels)
    asked = {"text column": data.text_column, "least confidence": str(min_confidence)}
    load = partial(_load_classifier, min_confidence=min_confidence)
    return _Work("texts", load, texts, asked, _show_classes)


def _load_classifier(folder: str, threads: int, min_confidence: float | None) -> "Answerer":
    from nanonet.runtime.batch import Classify
    from nanonet.runtime.predictor import Predictor

    return Classify(Predictor.load(folder, threads=threads, min_confidence=min_confidence))


def _load_multilabel(folder: str, threads: int, threshold: float | None) -> "Answerer":
    from nanonet.runtime.batch import GiveLabels
    from nanonet.runtime.predictor import MultilabelPredictor

    return GiveLabels(MultilabelPredictor.load(folder, threads=threads, threshold=threshold))


def _load_summarizer(
    folder: str, threads: int, budget: str | None, block_trigrams: bool | None
) -> "Answerer":
    from nanonet.runtime.batch import Summarize
    from nanonet.runtime.summarizer import Summarizer

    summarizer = Summarizer.load(folder, threads=threads)
    return Summarize(summarizer, summarizer.selection(budget, block_trigrams))


def _show_classes(answers: "Answers") -> str:
    rows = zip(*answers.values(), strict=True)
    return "\n".join(
        f"{'(abstained)' if abstained else name}\t{probability:.3f}\t{text}"
        for text, _, name, probability, abstained in rows
    )


def _show_labels(answers: "Answers") -> str:
    lines = []
    for text, _, names, probabilities in zip(*answers.values(), strict=True):
        pairs = zip(names, probabilities, strict=True)
        given = ", ".join(f"{name} {probability:.3f}" for name, probability in pairs)
        lines.append(f"{given or '(no label)'}\t{text}")
    return "\n".join(lines)


def _show_summaries(answers: "Answers") -> str:
    return "\n\n".join(answers["summary"])


def _predict_to_pipe(work: _Work, answerer: "Answerer", source: str) -> None:
    """Answer a file or standard input on standard output."""
    from nanonet.runtime.batch import predict_stream

    name = "stdin" if source == PIPE else source
    with RowProgress(name, work.unit, quiet=sys.stdout.isatty()) as progress:
        # Every block is flushed: what reads the pipe waits for it.
        blocks = work.read(source, pause=_PAUSE)
        predict_stream(answerer, blocks, partial(click.echo, nl=False), progress)


def _predict_file(
    work: _Work, folder: Path, source: str, output: str, threads: int, overwrite: bool
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
    answerer = work.load(str(folder), threads)
    files = files_of(source, output, answerer.types, work.read)
    with RowProgress(output, work.unit) as progress:
        done = predict_file(answerer, folder, target, files, progress, overwrite=overwrite)
    if done.outdated:
        click.echo(
            f"warning: {source} has changed since the work on {output} began: {done.outdated} "
            "finished blocks did not fit it and were answered again",
            err=True,
        )
    click.echo(f"{output}: {progress.summary()}", err=True)


def _predict_folder(
    work: _Work,
    folder: Path,
    source: str,
    output: str | None,
    workers: int | None,
    threads: int,
    overwrite: bool,
) -> None:
    """Answer a folder of Parquet files on a Ray cluster."""
    from nanonet.data.writers import checked_format
    from nanonet.runtime.cluster import predict_folder

    if output in (None, PIPE) or source == PIPE:
        raise ConfigError("--engine ray needs the folders --input and --output")
    checked_format(Path("answers.parquet"))
    with RowProgress(str(output), work.unit) as progress:
        predict_folder(
            folder,
            existing_folder(source),
            Path(str(output)),
            work.load,
            partial(files_of, read=work.read),
            work.asked,
            progress,
            workers=workers,
            threads=threads or 1,
            overwrite=overwrite,
        )
    click.echo(f"{output}: {progress.summary()}", err=True)


def files_of(
    source: str, output: str, types: "Mapping[str, Any]", read: "Callable[..., Blocks]"
) -> "Files":
    """Return how the rows of ``source`` are read and their answers, of these types, written."""
    from nanonet.data.formats import file_format
    from nanonet.data.writers import join_tables, write_table
    from nanonet.runtime.batch import Files

    known = file_format(output)
    assert known is not None, "checked before"
    return Files(
        blocks=read(source, allow_nul=not known.is_csv),
        suffix=known.suffix,
        write=partial(write_table, types=types),
        join=join_tables,
    )

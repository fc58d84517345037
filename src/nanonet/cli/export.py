"""`nanonet export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanonet.cli.common import data_set_option, existing_folder, need, read
from nanonet.cli.fastest import keep_fastest
from nanonet.cli.multilabel import is_multilabel, read_labels
from nanonet.cli.summaries import is_summarizer, read_for
from nanonet.core.bundle import AGREEMENT
from nanonet.core.errors import ConfigError

if TYPE_CHECKING:
    from nanonet.core.bundle import Manifest
    from nanonet.data.readers import LabelUse


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="FOLDER", help="The folder to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["bundle", "hf"]),
    default="bundle",
    show_default=True,
    help="bundle: runs without torch. hf: for transformers and sentence-transformers.",
)
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8", "int8-static", "mixed", "int4"]),
    help="Bits of the weights. int8: a quarter of the size; int8-static: with fixed scales, so that"
    " a text's answer does not depend on its batch; mixed: embeddings in 4 bits; int4: all in 4."
    "  [default: none]",
)
@click.option(
    "--trim-vocabulary",
    "vocabulary",
    is_flag=False,
    flag_value="auto",
    default=None,
    metavar="[=N]",
    help="Keep the N most frequent tokens of the training texts, and all characters; without N, as"
    " few as answer texts as before.",
)
@click.option(
    "--data",
    metavar="FILE",
    help="Texts to measure on, with or without labels.  [default: the run's unlabelled texts]",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    help="Write nothing if less than this share is answered as before: of the texts, or of the"
    " sentences that a summarizer chooses.  [default: a warning below 0.99, of several labels"
    " 0.97, of sentences 0.95]",
)
@click.option(
    "--target-precision",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Give a label only where so large a share of labels is right: a threshold is chosen on the"
    " labelled texts of --data.  [with --validation: on those]",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Measure what runs fastest on this machine and record it in the bundle; without"
    " --quantize, whether int8 does.",
)
@data_set_option
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if it exists.")
def export(
    run: str,
    out: str,
    kind: str,
    quantize: str | None,
    vocabulary: str | None,
    data: str | None,
    min_agreement: float | None,
    target_precision: float | None,
    tune: bool,
    settings: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write a finished run's chosen student as a bundle: the folder to ship.

    The model is checked against torch before anything is written. With --quantize and
    --trim-vocabulary it gets smaller in steps; what each costs is shown. With --format hf the
    folder holds the weights, a tokenizer and a model card in Hugging Face's format instead.
    """
    if kind == "hf":
        if any((quantize, vocabulary, data, tune, target_precision)) or min_agreement is not None:
            raise ConfigError(
                "--quantize, --trim-vocabulary, --data, --min-agreement, --target-precision and"
                " --tune go with --format bundle: hf keeps the whole model"
            )
        _export_hub(run, out, overwrite)
        return
    exporter = need("nanonet.export", "nanonet export")
    compression = exporter.Compression(quantize or "none", _tokens(vocabulary), min_agreement)
    unused = min_agreement is not None or (data is not None and target_precision is None)
    if unused and compression.is_none and not tune:
        raise ConfigError(
            "--data and --min-agreement go with --quantize, --trim-vocabulary or --tune (--data"
            " also with --target-precision): nothing else is measured"
        )
    folder, target = existing_folder(run), Path(out)
    if target_precision is not None and (is_summarizer(folder) or is_multilabel(folder)):
        raise ConfigError("--target-precision is for classifiers: leave it out")
    table = None
    if data is not None:
        table = _read(folder, data, settings, "required" if target_precision else "optional")
    manifest = exporter.export(
        *(folder, target),
        compression=compression,
        data=table,
        target_precision=target_precision,
        overwrite=overwrite,
    )
    if tune:
        manifest = keep_fastest(exporter, folder, target, manifest, compression, table, quantize)
    _show(manifest, target)


def _read(folder: Path, data: str, settings: tuple[str, ...], labels: "LabelUse") -> Any:
    """Return a table of the run's task to measure on."""
    if is_summarizer(folder):
        return read_for(folder, data, settings, labels)
    if is_multilabel(folder):
        return read_labels(data, settings, labels)
    return read(data, settings, labels=labels)


def _show(manifest: "Manifest", out: Path) -> None:
    """Show what has been written."""
    size = sum(f.stat().st_size for f in out.iterdir())
    difference = manifest.metrics["largest_difference_from_torch"]
    names = {"classification": "classes", "multilabel": "labels"}.get(manifest.task)
    kind = f"{len(manifest.labels['names'])} {names}" if names else "a summarizer"
    click.echo(
        f"{out}: {manifest.learner['name']}, {kind},"
        f" {size / 1e6:.1f} MB, quantization {manifest.quantization};"
        f" ONNX differs from torch by at most {difference:.1e}"
    )
    if (chosen := manifest.abstention) is not None:
        click.echo(
            f"labels from probability {chosen.min_confidence:.4f} on: {chosen.coverage:.1%} of the"
            f" {chosen.rows} rows of {chosen.source}, of which {chosen.precision:.1%} are right"
            f" (at least {chosen.precision_bound:.1%} with 95% confidence)"
        )
    if "steps" in manifest.metrics:
        _show_steps(manifest.metrics, AGREEMENT[manifest.task])


def _tokens(vocabulary: str | None) -> int | str | None:
    """Return the number of tokens asked for; ``auto`` stays, and None is all."""
    if vocabulary is None or vocabulary == "auto":
        return vocabulary
    if not vocabulary.isdecimal() or int(vocabulary) < 1:
        raise ConfigError(
            f"--trim-vocabulary={vocabulary}: give a number of tokens from 1, or none at all"
        )
    return int(vocabulary)


def _show_steps(metrics: dict[str, Any], limit: float) -> None:
    """Show what each step towards a smaller model cost, and warn where it cost much."""
    steps, measured_on = metrics["steps"], metrics["measured_on"]
    scores = [_scores(step) for step in steps]
    click.echo(f"{'':24s}      MB  agreement{''.join(f'{name:>10s}' for name in scores[-1])}")
    for step, own in zip(steps, scores, strict=True):
        agreement = "" if step["agreement"] is None else f"{step['agreement']:.4f}"
        shown = "".join(f"{value:10.4f}" for value in own.values())
        click.echo(f"{step['name']:24s}  {step['bytes'] / 1e6:6.1f}  {agreement:>9s}{shown}")
    if measured_on is None:
        click.echo(
            "warning: agreement was not measured, as the run's texts are gone or have changed:"
            " give --data FILE",
            err=True,
        )
        return
    click.echo(f"measured on {measured_on}")
    if steps[-1]["agreement"] < limit:
        click.echo(
            f"warning: {1 - steps[-1]['agreement']:.1%} of the answers are other ones than before:"
            " keep more tokens or bits, or check what they are worth with nanonet evaluate",
            err=True,
        )


def _scores(step: dict[str, Any]) -> dict[str, float]:
    accuracy = {} if step["accuracy"] is None else {"accuracy": step["accuracy"]}
    return accuracy | (step.get("rouge") or {})


def _export_hub(run: str, out: str, overwrite: bool) -> None:
    hub = need("nanonet.export.hub", "nanonet export")
    facts = hub.export_hub(existing_folder(run), Path(out), overwrite=overwrite)
    size = sum(f.stat().st_size for f in Path(out).rglob("*") if f.is_file())
    click.echo(
        f"{out}: {facts['learner']['name']}, {len(facts['labels']['names'])} classes,"
        f" {size / 1e6:.1f} MB, Hugging Face format; differs from the run by at most"
        f" {facts['largest_difference_from_the_run']:.1e}. README.md is the model card: add a"
        " license"
    )

"""`nanonet export`."""

from pathlib import Path

import click

from nanonet.cli.common import existing_folder, need
from nanonet.core.errors import ConfigError


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
    type=click.Choice(["none", "int8"]),
    default="none",
    show_default=True,
    help="int8: a quarter of the size, slightly different outputs.",
)
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if it exists.")
def export(run: str, out: str, kind: str, quantize: str, overwrite: bool) -> None:
    """Write a finished run's chosen student as a bundle: the folder to ship.

    The model is checked against torch before anything is written. With --format hf the folder
    holds the weights, a tokenizer and a model card in Hugging Face's format instead.
    """
    if kind == "hf":
        if quantize != "none":
            raise ConfigError("--quantize goes with --format bundle: hf keeps 32 bits")
        _export_hub(run, out, overwrite)
        return
    exporter = need("nanonet.export", "nanonet export")
    manifest = exporter.export(
        existing_folder(run), Path(out), quantize=quantize, overwrite=overwrite
    )
    size = sum(f.stat().st_size for f in Path(out).iterdir())
    difference = manifest.metrics["largest_difference_from_torch"]
    click.echo(
        f"{out}: {manifest.learner['name']}, {len(manifest.labels['names'])} classes,"
        f" {size / 1e6:.1f} MB, quantization {manifest.quantization};"
        f" ONNX differs from torch by at most {difference:.1e}"
    )


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

"""`nanonet export`."""

from pathlib import Path

import click

from nanonet.cli.common import existing_folder, need


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="BUNDLE", help="The folder to write.")
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    default="none",
    show_default=True,
    help="int8: a quarter of the size, slightly different outputs.",
)
@click.option("--overwrite", is_flag=True, help="Replace BUNDLE if it exists.")
def export(run: str, out: str, quantize: str, overwrite: bool) -> None:
    """Write a finished run's chosen student as a bundle: the folder to ship.

    The model is checked against torch before anything is written.
    """
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

"""`nanonet export`."""

import tempfile
from pathlib import Path
from typing import Any

import click

from nanonet.cli.common import existing_folder, need
from nanonet.core.errors import ConfigError


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="BUNDLE", help="The folder to write.")
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    default=None,
    help="int8: a quarter of the size, slightly different outputs.  [default: none]",
)
@click.option("--overwrite", is_flag=True, help="Replace BUNDLE if it exists.")
@click.option(
    "--tune",
    is_flag=True,
    help="Measure what runs fastest on this machine; without --quantize, whether int8 does.",
)
@click.option("--tune-data", metavar="FILE", help="Texts to measure on.  [default: the run's]")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="With --tune: share of texts whose class a faster variant may not change.",
)
def export(
    run: str,
    out: str,
    quantize: str | None,
    overwrite: bool,
    tune: bool,
    tune_data: str | None,
    min_agreement: float,
) -> None:
    """Write a finished run's chosen student as a bundle: the folder to ship.

    The model is checked against torch before anything is written.
    """
    exporter = need("nanonet.export", "nanonet export")
    if tune_data is not None and not tune:
        raise ConfigError("--tune-data goes with --tune")
    texts = _texts(Path(run), tune_data) if tune else []
    manifest = exporter.export(
        existing_folder(run), Path(out), quantize=quantize or "none", overwrite=overwrite
    )
    if tune:
        with tempfile.TemporaryDirectory() as temporary:
            variants = {manifest.quantization: Path(out)}
            if quantize is None:
                variants["int8"] = Path(temporary) / "int8"
                exporter.export(Path(run), variants["int8"], quantize="int8")
            manifest = _keep_fastest(variants, Path(out), texts, min_agreement)
    size = sum(f.stat().st_size for f in Path(out).iterdir())
    difference = manifest.metrics["largest_difference_from_torch"]
    click.echo(
        f"{out}: {manifest.learner['name']}, {len(manifest.labels['names'])} classes,"
        f" {size / 1e6:.1f} MB, quantization {manifest.quantization};"
        f" ONNX differs from torch by at most {difference:.1e}"
    )


def _texts(run: Path, file: str | None) -> list[str]:
    """Return texts to measure on: a file's, or those that the run has read."""
    readers = need("nanonet.data.readers", "nanonet export")
    inputs_module = need("nanonet.training.inputs", "nanonet export")
    folder = need("nanonet.training.run_folder", "nanonet export").RunFolder(run)
    config, inputs = folder.read_config()
    source = file or (inputs.get("unlabeled") or inputs["labeled"])["source"]
    columns = inputs_module.columns_of(config.data)
    found: list[str] = readers.read_table(source, columns, labels="ignored").texts
    return found


def _keep_fastest(
    variants: dict[str, Path], out: Path, texts: list[str], min_agreement: float
) -> Any:
    """Leave the fastest variant that agrees with the first at ``out``, and say what was measured.

    Returns:
        Its manifest.
    """
    from nanonet.core.bundle import read_manifest
    from nanonet.core.files import new_folder
    from nanonet.runtime import choices, tuning

    agreements = tuning.agreements(variants, texts)
    measured = tuning.compare(variants, texts=texts, min_agreement=min_agreement)
    click.echo("variant  engine           threads  batch 1 ms  batched texts/s  agreement")
    for name, found in measured.items():
        for c in found.choices:
            click.echo(
                f"{name:<8} {c.engine:<16} {c.threads:>7}  {c.single_ms:>10.2f}"
                f"  {1e3 / c.batched_ms:>15.0f}  {agreements[name]:>9.4f}"
            )
    agreeing = [name for name in variants if agreements[name] >= min_agreement]
    best = min(agreeing, key=lambda name: tuning.cost(measured[name].choices[0], "both"))
    if variants[best] != out:
        with new_folder(out) as folder:
            for file in variants[best].iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
    choices.record(out, measured[best])
    return read_manifest(out)

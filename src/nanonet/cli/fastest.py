"""`nanonet export --tune`: measured on this machine, the fastest form of a bundle is kept."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanonet.core.bundle import AGREEMENT

if TYPE_CHECKING:
    from nanonet.core.bundle import Manifest
    from nanonet.data.readers import TextTable
    from nanonet.runtime.choices import Tuning


def keep_fastest(
    exporter: Any,
    run: Path,
    out: Path,
    manifest: "Manifest",
    compression: Any,
    table: "TextTable | None",
    quantize: str | None,
) -> "Manifest":
    """Measure a bundle, and its int8 form where no bits were asked for; leave the fastest.

    Args:
        exporter: the module `nanonet.export`.
        run: what the bundle was exported from.
        out: the bundle; replaced where its other form is faster.
        manifest: its manifest.
        compression: that it was made with.
        table: texts to measure on; None: those of the run.
        quantize: the bits that were asked for.

    Returns:
        The manifest of what stands at ``out`` then.
    """
    from nanonet.data.documents import DocumentTable
    from nanonet.runtime import choices, tuning

    with tempfile.TemporaryDirectory() as temporary:
        variants = {manifest.quantization: out}
        agreement = {manifest.quantization: 1.0}
        manifests = {manifest.quantization: manifest}
        if quantize is None:
            variants["int8"] = Path(temporary) / "int8"
            vocabulary = manifest.metrics.get("vocabulary", {}).get("frequent")
            small = replace(compression, quantize="int8", vocabulary=vocabulary, min_agreement=None)
            chosen = manifest.abstention
            made = exporter.export(
                *(run, variants["int8"]),
                compression=small,
                data=table,
                target_precision=None if chosen is None else chosen.target_precision,
            )
            manifests["int8"] = made
            agreement["int8"] = made.metrics["steps"][-1]["agreement"] or 0.0
        texts: Sequence[str | Sequence[str]] = [] if table is None else table.texts
        if isinstance(table, DocumentTable):
            texts = [document.sentences for document in table.documents]
        measured = tuning.compare(variants, texts=texts)
        _show(measured, agreement, "windows" if manifest.task == "summarization" else "texts")
        wanted = (
            AGREEMENT[manifest.task]
            if compression.min_agreement is None
            else compression.min_agreement
        )
        agreeing = [name for name in variants if agreement[name] >= wanted]
        best = min(agreeing, key=lambda name: tuning.cost(measured[name].choices[0], "both"))
        if variants[best] != out:
            _copy(variants[best], out)
        choices.record(out, measured[best])
        return manifests[best]


def _copy(bundle: Path, out: Path) -> None:
    """Put the files of a bundle in the place of another's."""
    from nanonet.core.files import new_folder

    with new_folder(out) as folder:
        for file in bundle.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


def _show(measured: "Mapping[str, Tuning]", agreement: Mapping[str, float], unit: str) -> None:
    """Show what was measured, the best of each number of threads; a row of the model is a unit."""
    per_second = f"{unit}/s"
    click.echo(f"bits         engine         threads  batch 1 ms  {per_second:>9s}  agreement")
    for name, found in measured.items():
        for choice in found.choices:
            rate = 1e3 / choice.batched_ms
            click.echo(
                f"{name:<11s}  {choice.engine:<13s}  {choice.threads:>7d}"
                f"  {choice.single_ms:>10.2f}  {rate:>9.0f}  {agreement[name]:>9.4f}"
            )

"""The bundle: the folder that a user ships. Standard library only.

::

    manifest.json    what it is, what it was made from, checksums
    model.onnx       input_ids, attention_mask (rows, tokens) int64 -> logits (rows, classes);
                     for summarization also token_type_ids (rows, tokens) int64, pooling (rows,
                     sentences, tokens) and features (rows, sentences, 10) float -> logits (rows,
                     sentences)
    seen.bin         hashes of the labelled training texts, to find them among test texts
    tokenizer.json   for the ``tokenizers`` library, truncation included
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanonet.core.config import build
from nanonet.core.errors import BundleError, ConfigError
from nanonet.core.files import sha256_file, write_json

FORMAT = 1
MANIFEST, MODEL, TOKENIZER = "manifest.json", "model.onnx", "tokenizer.json"
SEEN = "seen.bin"


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        format: version of the bundle's layout.
        task: for instance ``classification``.
        labels: class ``values`` and ``names``, in the order of the logits.
        max_length: tokens of one text at most.
        quantization: ``none`` or ``int8``.
        files: SHA-256 of every other file, by name.
        learner: which learner it is and its layers.
        parameters: trainable and total counts.
        versions: of the packages that made it.
        data: sources, rows and fingerprints of what the learner saw.
        metrics: how it was chosen, how it scored, and how well the model matches the original.
        settings: of the task, where it has some: for ``summarization`` those of that section of
            the configuration.
    """

    format: int = field(metadata={"minimum": 1})
    task: str
    labels: dict[str, Any]
    max_length: int = field(metadata={"minimum": 4})
    quantization: str
    files: dict[str, str]
    learner: dict[str, Any]
    parameters: dict[str, int]
    versions: dict[str, str]
    data: dict[str, Any]
    metrics: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        write_json(folder / MANIFEST, asdict(self))


def is_bundle(folder: Path) -> bool:
    """Return whether a folder holds a bundle's manifest, whole or not."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"format", "task", "labels", "files"} <= values.keys()


def read_manifest(folder: Path) -> Manifest:
    """Return a bundle's manifest after checking every file against its checksum.

    Raises:
        BundleError: no bundle, a newer format, a missing, truncated or altered file.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"bundle {folder} does not exist")
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("format") if isinstance(values, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise BundleError(
                f"bundle {folder} has format {found}, but this NanoNet reads up to {FORMAT}:"
                " upgrade nanonet"
            )
        manifest = build(Manifest, values)
    except (OSError, ValueError, RecursionError, ConfigError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {error}") from None
    for name, expected in manifest.files.items():
        if name in ("", "..") or Path(name).name != name:
            raise BundleError(f"{path} names a file outside the bundle: {name!r}")
        if not (folder / name).is_file():
            raise BundleError(f"bundle {folder} lacks {name}: copy the whole folder again")
        if sha256_file(folder / name) != expected:
            raise BundleError(
                f"{folder / name} is not what was exported (checksum differs): copy it again"
            )
    for name in (MODEL, TOKENIZER):
        if name not in manifest.files:
            raise BundleError(f"{path} is damaged: it gives no checksum of {name}")
    return manifest

"""The bundle: the folder that a user ships. Standard library only.

::

    manifest.json          what it is, what it was made from, checksums
    model.onnx             input_ids, attention_mask (rows, tokens) int64 -> logits (rows, classes)
                           (for summarization also token_type_ids (rows, tokens) int64, pooling
                           (rows, sentences, tokens) and features (rows, sentences, 10) float ->
                           logits (rows, sentences))
    seen.bin               hashes of the labelled training texts, to find them among test texts
    tokenizer.json         for the ``tokenizers`` library, truncation included
    config.json            labels, and
    tokenizer_config.json  special tokens, for Hugging Face's optimum; NanoNet reads neither
"""

import json
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import Any

from nanonet.core.errors import BundleError, ConfigError
from nanonet.core.files import sha256_file, write_json
from nanonet.core.strict import build

FORMAT = 1
MANIFEST, MODEL, TOKENIZER = "manifest.json", "model.onnx", "tokenizer.json"
SEEN = "seen.bin"
MANIFEST_LIMIT = 16 * 2**20  # bytes: room for a hundred thousand labels
# Of the answers of a smaller model with the original's, that it should have, by task. Sentences at
# the end of a budget are nearly as good as those after it: more of them change, for no less ROUGE.
# An answer of many labels is another one if any of them is.
AGREEMENT = {"classification": 0.99, "multilabel": 0.97, "summarization": 0.95}
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Calibration:
    """What makes a learner's probabilities its chances of being right.

    Attributes:
        temperature: its logits have been divided by this.
        method: what it was fitted on, in words.
        labels_used: labels beyond the training labels that were looked at.
    """

    temperature: float = field(metadata={"minimum": 0.01, "maximum": 100})
    method: str
    labels_used: int


@dataclass(frozen=True)
class Priors:
    """How common the classes are among the texts to come, and were to the model.

    Attributes:
        shares: of each class among the texts to come, each above 0; they sum to 1.
        learnt: the same among the labelled texts.
        method: where the shares are from, in words.
    """

    shares: list[float]
    learnt: list[float]
    method: str

    def __post_init__(self) -> None:
        if (
            len(self.shares) != len(self.learnt)
            or min([*self.shares, *self.learnt], default=0) <= 0
        ):
            raise ValueError("priors: each class needs a share above 0 on both sides")

    @property
    def offsets(self) -> list[float]:
        """What has been added to the logit of each class, after the temperature."""
        return [log(w / s) for w, s in zip(self.shares, self.learnt, strict=True)]


@dataclass(frozen=True)
class Abstention:
    """When a bundle gives no label, and how that was chosen (see `nanonet.export.abstention`).

    Attributes:
        min_confidence: a text whose most probable class has less gets no label.
        target_precision: share of labels that was to be right.
        precision: share that was right on the rows looked at.
        precision_bound: what the precision is at least, with 95% confidence.
        coverage: share of those rows that got a label.
        rows: labelled rows looked at.
        source: where they are from.
    """

    min_confidence: float = field(metadata={"minimum": 0, "maximum": 1})
    target_precision: float
    precision: float
    precision_bound: float
    coverage: float
    rows: int
    source: str


@dataclass(frozen=True)
class Thresholds:
    """From which probability on a text gets a label, where it may have several.

    Attributes:
        values: of each label.
        method: how they were chosen, in words.
        labels_used: labelled texts, beyond the training texts, that were looked at.
    """

    values: list[float]
    method: str
    labels_used: int

    def __post_init__(self) -> None:
        if not all(0.0 <= value <= 1.0 for value in self.values):
            raise ValueError("thresholds: each is a probability")


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
        calibration: of the model's logits; None in bundles of older versions and other tasks.
        abstention: when no label is given; None: every text gets one.
        priors: that the logits have been fitted to; None: they are as learnt.
        thresholds: for ``multilabel``, from which probability on a text gets a label; None: 0.5.
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
    calibration: Calibration | None = None
    abstention: Abstention | None = None
    priors: Priors | None = None
    thresholds: Thresholds | None = None

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        write_json(folder / MANIFEST, asdict(self))


def is_bundle(folder: Path) -> bool:
    """Return whether a folder holds a bundle's manifest, whole or not."""
    try:
        values = json.loads(_read_text(folder / MANIFEST))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"format", "task", "labels", "files"} <= values.keys()


def parse_manifest(path: Path) -> Manifest:
    """Return what a ``manifest.json`` says; the files that it lists are not looked at.

    Raises:
        BundleError: a newer format, damaged, or a list of files that cannot be a bundle's.
    """
    try:
        values = json.loads(_read_text(path))
        found = values.get("format") if isinstance(values, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise BundleError(
                f"bundle {path.parent} has format {found}, but this NanoNet reads up to {FORMAT}:"
                " upgrade nanonet"
            )
        manifest = build(Manifest, values)
    except (OSError, ValueError, RecursionError, ConfigError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {_short(error)}") from None
    for name in manifest.files:
        if name in ("", "..", MANIFEST) or Path(name).name != name or "\\" in name:
            raise BundleError(f"{path} names a file outside the bundle: {_short(repr(name))}")
    for name in (MODEL, TOKENIZER):
        if name not in manifest.files:
            raise BundleError(f"{path} is damaged: it gives no checksum of {name}")
    return manifest


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
    manifest = parse_manifest(path)
    for name, expected in manifest.files.items():
        try:
            if not (folder / name).is_file():
                raise BundleError(
                    f"bundle {folder} lacks {_short(name)}: copy the whole folder again"
                )
            if sha256_file(folder / name) != expected:
                raise BundleError(
                    f"{folder / name} is not what was exported (checksum differs): copy it again"
                )
        except OSError as error:
            raise BundleError(f"bundle {folder} cannot be read: {_short(error)}") from None
    return manifest


def _read_text(path: Path) -> str:
    """Return a manifest's text; ValueError where there is more than any bundle needs."""
    with path.open("rb") as file:
        data = file.read(MANIFEST_LIMIT + 1)
    if len(data) > MANIFEST_LIMIT:
        raise ValueError(f"more than {MANIFEST_LIMIT} bytes")
    return data.decode("utf-8")


def _short(message: object) -> str:
    """Return a message as one line of bounded length: parts of it come from the file."""
    text = " ".join(str(message).split())
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"

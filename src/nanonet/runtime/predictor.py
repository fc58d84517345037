"""`Predictor` and `MultilabelPredictor`: run a bundle with an engine, tokenizers and numpy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nanonet.core.archive import opened_bundle
from nanonet.core.bundle import SEEN, TOKENIZER, Manifest, read_manifest
from nanonet.core.errors import BundleError, ConfigError, DataError
from nanonet.runtime.choices import open_best
from nanonet.runtime.engines import Engine, run_rows
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import softmax
from nanonet.tasks.multilabel import DEFAULT_THRESHOLD, sigmoid
from nanonet.tasks.tokenization import EncodedTexts, TextTokenizer

TEXTS_AT_ONCE = 4096  # sorted by length together: bounds memory, and is enough to pad little


LOADERS = {
    "classification": "Predictor",
    "multilabel": "MultilabelPredictor",
    "summarization": "Summarizer",
}


@dataclass(frozen=True)
class Loaded:
    """What a bundle's folder holds."""

    manifest: Manifest
    labels: LabelSet
    tokenizer: TextTokenizer
    engine: Engine
    seen: NDArray[np.uint64]
    tokens_per_chunk: int


class TextModel:
    """What reads texts, loaded from a bundle.

    Attributes:
        manifest: what the bundle says of itself.
        labels: in the order of the logits' columns.
        seen: sorted hashes of the labelled training texts.
    """

    task: ClassVar[str]

    def __init__(self, loaded: Loaded) -> None:
        self.manifest = loaded.manifest
        self.labels = loaded.labels
        self.seen = loaded.seen
        self._tokenizer = loaded.tokenizer
        self._engine = loaded.engine
        self._tokens_per_chunk = loaded.tokens_per_chunk

    @classmethod
    def _open(cls, folder: Path, threads: int, tune: bool) -> Loaded:
        """Return what the folder of a bundle of this task holds."""
        manifest = read_manifest(folder)
        if manifest.task != cls.task:
            raise BundleError(_other_task(folder, manifest.task))
        try:
            labels = LabelSet.from_json(manifest.labels)
            json = (folder / TOKENIZER).read_text(encoding="utf-8")
            tokenizer = TextTokenizer(json, manifest.max_length)
            tokenizer.ids(["a"])  # some damage shows only here
        except Exception as error:  # tokenizers raises kinds of its own
            reason = " ".join(str(error).split())
            raise BundleError(f"bundle {folder} cannot be loaded: {reason}") from None
        engine, tokens_per_chunk = open_best(folder, manifest, threads, tune)
        if problem := _misfit(engine, len(labels), tokenizer.size):
            raise BundleError(f"bundle {folder} is damaged: {problem}")
        has_seen = SEEN in manifest.files
        seen = np.fromfile(folder / SEEN, "<u8") if has_seen else np.empty(0, "<u8")
        return Loaded(manifest, labels, tokenizer, engine, seen, tokens_per_chunk)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the token ids of texts, and what the tokenizer lost of them."""
        return self._tokenizer.encode(texts)

    def predict_logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return logits (n, classes) of n texts, in their order.

        Texts are sorted by length within blocks, so that little is padded.

        Raises:
            DataError: not a list of texts.
        """
        if isinstance(texts, str):
            raise DataError("texts must be a list of texts, not one text: put it in a list")
        if not isinstance(texts, Iterable) or isinstance(texts, bytes | bytearray | Mapping):
            raise DataError(f"texts must be a list of texts, not {type(texts).__name__}")
        texts = list(texts)
        logits = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            block = texts[start : start + TEXTS_AT_ONCE]
            for i, text in enumerate(block):
                _check_text(text, start + i)
            logits[start : start + len(block)] = run_rows(
                self._engine, self._tokenizer.ids(block), self._tokens_per_chunk
            )
        return logits


class Predictor(TextModel):
    """A classifier loaded from a bundle.

    Attributes:
        manifest: what the bundle says of itself.
        labels: its classes, in the order of the probabilities' columns.
        seen: sorted hashes of the labelled training texts.
        min_confidence: a text whose most probable class has less gets no label; 0: all get one.
    """

    task = "classification"

    def __init__(self, loaded: Loaded, min_confidence: float | None = None) -> None:
        super().__init__(loaded)
        abstention = self.manifest.abstention
        chosen = 0.0 if abstention is None else abstention.min_confidence
        self.min_confidence = chosen if min_confidence is None else min_confidence
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ConfigError(f"min_confidence is {min_confidence}, but must be from 0 to 1")

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        threads: int = 0,
        tune: bool = False,
        min_confidence: float | None = None,
    ) -> "Predictor":
        """Load a bundle.

        What `nanonet.runtime.choices` has recorded for this bundle on this machine is used.

        Args:
            bundle: its folder, or a zip file of it.
            threads: CPU threads of one run of the model; 0: as recorded, else one per core.
            tune: first measure what is fastest here (a few seconds), and record it.
            min_confidence: a text whose most probable class has less gets no label; None: as the
                bundle says.

        Raises:
            ConfigError: ``min_confidence`` is no probability.
            BundleError: missing, altered, damaged, of a newer format, or of another task.
        """
        with opened_bundle(Path(bundle)) as folder:
            return cls(cls._open(folder, threads, tune), min_confidence)

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """Return the name of the most probable class of each text, in order.

        None where that class has less than ``min_confidence``.
        """
        probabilities = self.predict_proba(texts)
        sure = probabilities.max(-1) >= self.min_confidence
        named = zip(probabilities.argmax(-1), sure, strict=True)
        return [self.labels.names[i] if known else None for i, known in named]

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return probabilities (n, classes), columns in the order of ``labels``."""
        return softmax(self.predict_logits(texts)).astype(np.float32)


class MultilabelPredictor(TextModel):
    """What gives each text any number of labels, loaded from a bundle.

    Attributes:
        manifest: what the bundle says of itself.
        labels: in the order of the probabilities' columns.
        seen: sorted hashes of the labelled training texts.
        thresholds: from which probability on a text gets each label, (L,).
    """

    task = "multilabel"

    def __init__(self, loaded: Loaded, threshold: float | None = None) -> None:
        super().__init__(loaded)
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold is {threshold}, but must be from 0 to 1")
        chosen = self.manifest.thresholds
        if threshold is not None or chosen is None:
            value = DEFAULT_THRESHOLD if threshold is None else threshold
            self.thresholds = np.full(len(self.labels), value, dtype=np.float32)
        else:
            self.thresholds = np.array(chosen.values, dtype=np.float32)
        if self.thresholds.shape != (len(self.labels),):
            raise BundleError(
                f"the bundle is damaged: {len(self.thresholds)} thresholds of {len(self.labels)}"
                " labels"
            )

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        threads: int = 0,
        tune: bool = False,
        threshold: float | None = None,
    ) -> "MultilabelPredictor":
        """Load a bundle; see `Predictor.load`.

        Args:
            bundle: its folder, or a zip file of it.
            threads: CPU threads of one run of the model; 0: as recorded, else one per core.
            tune: first measure what is fastest here (a few seconds), and record it.
            threshold: from which probability on a text gets a label; None: as the bundle says, for
                each label, or else a half.

        Raises:
            ConfigError: ``threshold`` is no probability.
            BundleError: missing, altered, damaged, of a newer format, or of another task.
        """
        with opened_bundle(Path(bundle)) as folder:
            return cls(cls._open(folder, threads, tune), threshold)

    def surest_first(
        self, probabilities: NDArray[np.float32], threshold: float | None = None
    ) -> list[int]:
        """Return which labels a text gets, the surest first.

        Args:
            probabilities: of each label, (L,).
            threshold: instead of ``thresholds``.
        """
        given = probabilities >= (self.thresholds if threshold is None else threshold)
        return [int(k) for k in np.argsort(-probabilities, kind="stable") if given[k]]

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the names of each text's labels, in order; there may be none."""
        given = self.predict_proba(texts) >= self.thresholds
        return [[self.labels.names[k] for k in np.flatnonzero(own)] for own in given]

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the probability of each label, (n, L), each on its own."""
        return sigmoid(self.predict_logits(texts)).astype(np.float32)


def _other_task(folder: Path, task: str) -> str:
    """Return what to do with a bundle of another task."""
    if task not in LOADERS:
        return (
            f"bundle {folder} is for the task '{task}', which this NanoNet does not know: upgrade"
            " nanonet"
        )
    what = "a summarizer" if task == "summarization" else f"for the task {task}"
    return f"bundle {folder} is {what}: load it with {LOADERS[task]}"


def _misfit(engine: Engine, labels: int, tokens: int) -> str | None:
    """Return what makes a model unfit for this many labels and this tokenizer, or None."""
    if engine.classes != labels:
        return f"the model has {engine.classes} outputs, but the manifest lists {labels} labels"
    # A tokenizer of another model has more tokens than this one has embeddings.
    ids = np.array([0, max(tokens - 1, 0)])
    try:
        found = run_rows(engine, [ids])
    except BundleError as error:
        return f"{error} (ids of its tokenizer go up to {tokens - 1})"
    return None if found.shape == (1, labels) else f"the model gives logits {found.shape} of a text"


def _check_text(text: object, position: int) -> None:
    """Refuse what the tokenizer cannot take."""
    if not isinstance(text, str):
        raise DataError(f"text {position} is not text but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"text {position} holds half of a surrogate pair, which is no character (bytes that"
            " are not UTF-8?): remove it"
        ) from None

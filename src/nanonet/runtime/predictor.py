"""`Predictor`: runs a bundle with onnxruntime, tokenizers and numpy."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.archive import opened_bundle
from nanonet.core.bundle import MODEL, SEEN, TOKENIZER, Manifest, read_manifest
from nanonet.core.errors import BundleError, DataError
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import softmax
from nanonet.tasks.tokenization import EncodedTexts, TextTokenizer, length_chunks, pad

TEXTS_AT_ONCE = 4096  # tokenized together: bounds memory, and is enough to sort by length
TOKENS_PER_CHUNK = 2048  # padded tokens of one run of the model
MAX_PADDING = 0.1


class Predictor:
    """A classifier loaded from a bundle.

    Attributes:
        manifest: what the bundle says of itself.
        labels: its classes, in the order of the probabilities' columns.
        seen: sorted hashes of the labelled training texts.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: LabelSet,
        tokenizer: TextTokenizer,
        session: Any,
        seen: NDArray[np.uint64],
    ) -> None:
        self.manifest = manifest
        self.labels = labels
        self.seen = seen
        self._tokenizer = tokenizer
        self._session = session

    @classmethod
    def load(cls, bundle: str | Path, *, threads: int = 0) -> "Predictor":
        """Load a bundle.

        Args:
            bundle: its folder, or a zip file of it.
            threads: CPU threads of one run of the model; 0: one per core.

        Raises:
            BundleError: missing, altered, damaged, or of a newer format.
        """
        with opened_bundle(Path(bundle)) as folder:
            return cls._load(folder, threads)

    @classmethod
    def _load(cls, folder: Path, threads: int) -> "Predictor":
        import onnxruntime

        manifest = read_manifest(folder)
        if manifest.task != "classification":
            raise BundleError(
                f"bundle {folder} is for the task '{manifest.task}', which this NanoNet does not"
                " know: upgrade nanonet"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised too, and told in one line
        try:
            labels = LabelSet.from_json(manifest.labels)
            json = (folder / TOKENIZER).read_text(encoding="utf-8")
            tokenizer = TextTokenizer(json, manifest.max_length)
            tokenizer.encode(["a"])  # some damage shows only here
            session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime and tokenizers raise kinds of their own
            reason = " ".join(str(error).split())
            raise BundleError(f"bundle {folder} cannot be loaded: {reason}") from None
        if problem := _misfit(session, len(labels), tokenizer.size):
            raise BundleError(f"bundle {folder} is damaged: {problem}")
        has_seen = SEEN in manifest.files
        seen = np.fromfile(folder / SEEN, "<u8") if has_seen else np.empty(0, "<u8")
        return cls(manifest, labels, tokenizer, session, seen)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return the name of the most probable class of each text, in order."""
        return [self.labels.names[i] for i in self.predict_logits(texts).argmax(-1)]

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return probabilities (n, classes), columns in the order of ``labels``."""
        return softmax(self.predict_logits(texts)).astype(np.float32)

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
            ids = self.encode(block).ids
            for rows in length_chunks([len(r) for r in ids], MAX_PADDING, TOKENS_PER_CHUNK):
                input_ids, mask = pad([ids[i] for i in rows])
                feed = {"input_ids": input_ids, "attention_mask": mask}
                logits[start + rows] = _run(self._session, feed)
        return logits


def _run(session: Any, feed: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return the model's logits (rows, classes).

    Raises:
        BundleError: it fails, as on more tokens than it has positions for.
    """
    try:
        return session.run(["logits"], feed)[0]  # type: ignore[no-any-return]
    except Exception as error:  # onnxruntime raises kinds of its own
        rows, tokens = feed["input_ids"].shape
        reason = " ".join(str(error).split())
        raise BundleError(
            f"the bundle's model fails on {rows} x {tokens} tokens (is max_length in its manifest"
            f" right?): {reason}"
        ) from None


def _misfit(session: Any, labels: int, tokens: int) -> str | None:
    """Return what makes a model unfit for this many labels and this tokenizer, or None."""
    inputs = sorted(i.name for i in session.get_inputs())
    outputs = {o.name: o.shape for o in session.get_outputs()}
    if inputs != ["attention_mask", "input_ids"] or "logits" not in outputs:
        return (
            f"the model maps {', '.join(inputs)} to {', '.join(outputs)}, not attention_mask,"
            " input_ids to logits"
        )
    classes = outputs["logits"][-1] if outputs["logits"] else 0
    if classes != labels:
        return f"the model has {classes} outputs, but the manifest lists {labels} labels"
    ids = np.array([[0, max(tokens - 1, 0)]])  # a tokenizer of another model has more tokens
    try:
        found = _run(session, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
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

"""`Predictor`: runs a bundle with onnxruntime, tokenizers and numpy."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
            bundle: its folder.
            threads: CPU threads of one run of the model; 0: one per core.

        Raises:
            BundleError: missing, altered, damaged, or of a newer format.
        """
        import onnxruntime

        folder = Path(bundle)
        manifest = read_manifest(folder)
        if manifest.task == "summarization":
            raise BundleError(f"bundle {folder} is a summarizer: load it with Summarizer")
        if manifest.task != "classification":
            raise BundleError(
                f"bundle {folder} is for the task '{manifest.task}', which this NanoNet does not"
                " know: upgrade nanonet"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            labels = LabelSet.from_json(manifest.labels)
            json = (folder / TOKENIZER).read_text(encoding="utf-8")
            tokenizer = TextTokenizer(json, manifest.max_length)
            session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime and tokenizers raise kinds of their own
            reason = " ".join(str(error).split())
            raise BundleError(f"bundle {folder} cannot be loaded: {reason}") from None
        classes = session.get_outputs()[0].shape[-1]
        if classes != len(labels):
            raise BundleError(
                f"bundle {folder} is damaged: the model has {classes} outputs, but the manifest"
                f" lists {len(labels)} labels"
            )
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
        if not isinstance(texts, Iterable):
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
                logits[start + rows] = self._session.run(["logits"], feed)[0]
        return logits


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

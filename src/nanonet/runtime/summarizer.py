"""`Summarizer`: runs the bundle of an extractive summarizer with an engine and numpy."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.archive import opened_bundle
from nanonet.core.bundle import SEEN, TOKENIZER, Manifest, read_manifest
from nanonet.core.config import SummarizationConfig
from nanonet.core.errors import BundleError, DataError
from nanonet.core.strict import build
from nanonet.runtime.choices import open_best
from nanonet.runtime.engines import TOKENS_PER_CHUNK, Engine, run_windows
from nanonet.tasks.budgets import Budget, choose
from nanonet.tasks.documents import Document, make_document
from nanonet.tasks.windows import DocumentEncoder, made_up_window

TASK = "summarization"
DOCUMENTS_AT_ONCE = 256  # tokenized together: bounds memory, and is enough to sort by length


@dataclass(frozen=True)
class ScoredSentence:
    """A sentence of a document.

    Attributes:
        index: its number in the document, from 0.
        start: where it begins in the document's text, in characters.
        end: where it ends; ``text[start:end]`` is the sentence.
        score: how much it belongs in the summary, 0 to 1.
        text: of the sentence.
    """

    index: int
    start: int
    end: int
    score: float
    text: str


SENTENCE = {field.name: field.type for field in fields(ScoredSentence)}


@dataclass(frozen=True)
class Summary:
    """A document's summary.

    Attributes:
        sentences: those chosen, in the document's order; none where the document has no words.
        scores: of all sentences of the document, (n,).
    """

    sentences: list[ScoredSentence]
    scores: NDArray[np.float64]

    @property
    def text(self) -> str:
        """The sentences, a line each."""
        return "\n".join(" ".join(sentence.text.split()) for sentence in self.sentences)

    def to_json(self) -> dict[str, Any]:
        """Return summary and sentences as plain tables."""
        rows = [asdict(s) | {"score": round(s.score, 6)} for s in self.sentences]
        return {"summary": self.text, "sentences": rows}


@dataclass(frozen=True)
class Selection:
    """Which sentences of a document make up its summary.

    Attributes:
        budget: how long it may be.
        block_trigrams: no two sentences with three words in a row in common.
    """

    budget: Budget
    block_trigrams: bool

    def summary(self, document: Document, logits: NDArray[np.float64]) -> Summary:
        """Return the summary that the logits (n,) of a document's sentences make."""
        sentences = document.sentences
        scores = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
        chosen = choose(logits, sentences, self.budget, self.block_trigrams)
        return Summary(
            [ScoredSentence(i, *document.spans[i], float(scores[i]), sentences[i]) for i in chosen],
            scores,
        )


class Summarizer:
    """A summarizer loaded from a bundle.

    Attributes:
        manifest: what the bundle says of itself.
        settings: of the task, as trained.
        seen: sorted hashes of the labelled training documents.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: SummarizationConfig,
        encoder: DocumentEncoder,
        engine: Engine,
        seen: NDArray[np.uint64],
        tokens_per_chunk: int = TOKENS_PER_CHUNK,
    ) -> None:
        self.manifest = manifest
        self.settings = settings
        self.seen = seen
        self._encoder = encoder
        self._engine = engine
        self._tokens_per_chunk = tokens_per_chunk

    @classmethod
    def load(cls, bundle: str | Path, *, threads: int = 0, tune: bool = False) -> "Summarizer":
        """Load a bundle.

        What `nanonet.runtime.choices` has recorded for this bundle on this machine is used.

        Args:
            bundle: its folder, or a zip file of it.
            threads: CPU threads of one run of the model; 0: as recorded, else one per core.
            tune: first measure what is fastest here (a few seconds), and record it.

        Raises:
            BundleError: missing, altered, damaged, of a newer format or of another task.
        """
        with opened_bundle(Path(bundle)) as folder:
            return cls._load(folder, threads, tune)

    @classmethod
    def _load(cls, folder: Path, threads: int, tune: bool) -> "Summarizer":
        manifest = read_manifest(folder)
        if manifest.task != TASK:
            raise BundleError(
                f"bundle {folder} is for the task '{manifest.task}', not for {TASK}: load it with"
                " Predictor"
            )
        try:
            settings = build(SummarizationConfig, manifest.settings, "settings")
            json = (folder / TOKENIZER).read_text(encoding="utf-8")
            encoder = DocumentEncoder(json, manifest.max_length, settings)
        except Exception as error:  # tokenizers raises kinds of its own
            reason = " ".join(str(error).split())
            raise BundleError(f"bundle {folder} cannot be loaded: {reason}") from None
        engine, tokens_per_chunk = open_best(folder, manifest, threads, tune)
        if problem := _misfit(engine, encoder.size):
            raise BundleError(f"bundle {folder} is damaged: {problem}")
        seen = np.fromfile(folder / SEEN, "<u8") if SEEN in manifest.files else np.empty(0, "<u8")
        return cls(manifest, settings, encoder, engine, seen, tokens_per_chunk)

    def __call__(self, documents: Sequence[str | Sequence[str]]) -> list[str]:
        """Return the summary of each document as text, a sentence a line, in order."""
        return [summary.text for summary in self.summarize(documents)]

    def summarize(
        self,
        documents: Sequence[str | Sequence[str]],
        budget: str | None = None,
        block_trigrams: bool | None = None,
    ) -> list[Summary]:
        """Return the summary of each document, in order.

        Args:
            documents: texts, or lists of sentences (offsets then are into the sentences joined by a
                blank).
            budget: ``sentences=3``, ``words=100`` or ``ratio=0.3``; None: as trained.
            block_trigrams: no two sentences with three words in a row in common; None: as trained.

        Raises:
            ConfigError: an unknown budget.
            DataError: not a list of texts or lists of texts.
        """
        selection = self.selection(budget, block_trigrams)
        made = make_documents(documents, self.settings.language)
        return [selection.summary(*pair) for pair in zip(made, self.score(made), strict=True)]

    def selection(self, budget: str | None, block_trigrams: bool | None) -> Selection:
        """Return how sentences are selected; None: as trained (see `summarize`)."""
        block = self.settings.block_trigrams if block_trigrams is None else block_trigrams
        return Selection(Budget.parse(self.settings.budget if budget is None else budget), block)

    def score(self, documents: Sequence[Document]) -> Iterator[NDArray[np.float64]]:
        """Yield the logits (n,) of the n sentences of each document, in order.

        Long documents are read in overlapping windows; windows are sorted by length within blocks
        of documents, so that little is padded.
        """
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            encoded = self._encoder.encode(documents[start : start + DOCUMENTS_AT_ONCE])
            logits = run_windows(self._engine, encoded.ids, self._tokens_per_chunk)
            yield from encoded.merge(logits)


def _misfit(engine: Engine, tokens: int) -> str | None:
    """Return what makes a model unfit for documents and this tokenizer, or None."""
    if "pooling" not in engine.inputs:
        return f"its model takes {', '.join(sorted(engine.inputs))}, which is no summarizer's"
    try:
        found = run_windows(engine, [made_up_window(np.array([0, max(tokens - 1, 0)]))])
    except BundleError as error:
        return f"{error} (ids of its tokenizer go up to {tokens - 1})"
    return None if found.shape == (1,) else f"the model gives logits {found.shape} of a sentence"


def make_documents(documents: Sequence[str | Sequence[str]], language: str) -> list[Document]:
    """Return texts, or lists of sentences, as documents.

    Raises:
        DataError: something else.
    """
    if isinstance(documents, str) or not isinstance(documents, Iterable):
        raise DataError("documents must be a list of texts or of lists of sentences: use a list")
    made = []
    for i, document in enumerate(documents):
        parts = [document] if isinstance(document, str) else document
        if not isinstance(parts, Iterable):
            raise DataError(f"document {i} is no text but {type(document).__name__}")
        checked = [_check(part, i) for part in parts]
        made.append(make_document(document if isinstance(document, str) else checked, language))
    return made


def _check(text: object, position: int) -> str:
    """Refuse what the tokenizer cannot take."""
    if not isinstance(text, str):
        raise DataError(f"document {position} is no text but holds {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"document {position} holds half of a surrogate pair, which is no character: remove it"
        ) from None
    return text

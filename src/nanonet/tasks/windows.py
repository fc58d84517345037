"""Documents to windows of tokens, and scores of windows back to scores of sentences. No torch.

A window holds whole sentences, as many as fit; only a sentence longer than a window is cut, into
pieces. Windows overlap, and a sentence's score is the mean over the windows it stands in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanonet.core.config import SummarizationConfig
from nanonet.tasks.base import FEATURES, Floats, Row, Window
from nanonet.tasks.documents import Document
from nanonet.tasks.tokenization import Ids, pad, special_ids, unknown_id

UNSCORED = -1e4  # logit of a sentence without tokens: never chosen, and finite


@dataclass(frozen=True)
class EncodedDocuments:
    """Windows of documents, in the documents' order.

    Attributes:
        ids: the windows of all documents.
        windows_of: how many windows each document has, (n,).
        sentences_of: how many sentences each document has, (n,).
        unknown_share: unknown tokens per token.
        truncated: always 0: no document is cut.
    """

    ids: list[Window]
    windows_of: Ids
    sentences_of: Ids
    unknown_share: float
    truncated: int = 0

    def merge(self, logits: NDArray[np.floating]) -> list[NDArray[np.float64]]:
        """Return the logit of every sentence of each document, from those of all units (U,).

        The mean over a sentence's units, by their tokens.
        """
        merged, unit = [], 0
        ends = np.cumsum(self.windows_of)
        for first, last, count in zip(ends - self.windows_of, ends, self.sentences_of, strict=True):
            total, weight = np.zeros(count), np.zeros(count)
            for window in self.ids[first:last]:
                own = logits[unit : unit + len(window.sizes)]
                np.add.at(total, window.sentences, window.sizes * own)
                np.add.at(weight, window.sentences, window.sizes)
                unit += len(window.sizes)
            merged.append(np.where(weight > 0, total / np.maximum(weight, 1), UNSCORED))
        return merged


class DocumentEncoder:
    """Cuts documents into windows.

    Args:
        tokenizer_json: the content of a ``tokenizer.json``.
        max_length: tokens of one window at most, special ones included.
        settings: what windows hold and have in common.

    Attributes:
        max_length: as given.
        language: of raw texts.
    """

    def __init__(self, tokenizer_json: str, max_length: int, settings: SummarizationConfig) -> None:
        self.max_length = max_length
        self.language = settings.language
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = unknown_id(self._tokenizer)
        self._before, self._after = special_ids(self._tokenizer)
        self._each = settings.pooling == "token"  # special tokens around every sentence
        self._wrap = len(self._before) + len(self._after)
        self._room = max_length - (0 if self._each else self._wrap)
        self._longest = max_length - self._wrap  # of one piece
        self._overlap = settings.overlap
        self._features = settings.features
        self._types = 2 if settings.segments else 1

    @property
    def size(self) -> int:
        """Number of tokens that it knows, special ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, documents: Sequence[Document]) -> EncodedDocuments:
        """Return the windows of documents."""
        texts = [document.text for document in documents]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        windows: list[Window] = []
        counts, tokens, unknown = [], 0, 0
        for document, encoding in zip(documents, encodings, strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int64)
            offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            own = self._windows(document, ids, offsets)
            windows += own
            counts.append(len(own))
            tokens += len(ids)
            unknown += int((ids == self._unknown).sum())
        return EncodedDocuments(
            windows,
            np.array(counts, dtype=np.int64),
            np.array([len(d.spans) for d in documents], dtype=np.int64),
            unknown / max(tokens, 1),
        )

    def _windows(self, document: Document, ids: Ids, offsets: Ids) -> list[Window]:
        owner = self._owners(document, offsets)
        pieces = self._pieces(owner)
        features = np.zeros((len(document.spans), FEATURES), dtype=np.float32)
        if self._features:
            features = sentence_features(document, ids, owner)
        costs = [end - start + (self._wrap if self._each else 0) for _, start, end in pieces]
        return [
            self._window([(s, ids[a:b]) for s, a, b in pieces[first:last]], features)
            for first, last in window_ranges(costs, self._room, self._overlap)
        ]

    def _owners(self, document: Document, offsets: Ids) -> Ids:
        """Return the sentence of each token, (T,), which grows."""
        numbers = [i for i, (start, end) in enumerate(document.spans) if end > start]
        if not numbers or not len(offsets):
            return np.empty(0, dtype=np.int64)
        starts = np.array([document.spans[i][0] for i in numbers], dtype=np.int64)
        # By the last character: byte-level tokens can begin with the blank before the sentence.
        last = np.maximum(offsets[:, 0], offsets[:, 1] - 1)
        places = np.maximum(np.searchsorted(starts, last, side="right") - 1, 0)
        return np.array(numbers, dtype=np.int64)[places]

    def _pieces(self, owner: Ids) -> list[tuple[int, int, int]]:
        """Return (sentence, first token, end) of every piece, in order."""
        pieces = []
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        ends = [*starts[1:], len(owner)] if len(starts) else []
        for first, end in zip(starts, ends, strict=True):
            for start in range(first, end, self._longest):
                pieces.append((int(owner[first]), start, min(start + self._longest, int(end))))
        return pieces

    def _window(self, pieces: list[tuple[int, Ids]], features: Floats) -> Window:
        ids: list[Ids] = []
        units: list[Ids] = []
        segments: list[Ids] = []

        def add(tokens: Ids, unit: int, sentence: int) -> None:
            ids.append(tokens)
            units.append(np.full(len(tokens), unit, dtype=np.int64))
            segments.append(np.full(len(tokens), sentence % self._types, dtype=np.int64))

        for unit, (sentence, tokens) in enumerate(pieces):
            if self._each:
                add(self._before[:-1], -1, sentence)
                add(self._before[-1:], unit, sentence)  # the sentence's token
                add(tokens, -1, sentence)
                add(self._after, -1, sentence)
                continue
            if unit == 0:
                add(self._before, -1, sentence)
            add(tokens, unit, sentence)
            if unit == len(pieces) - 1:
                add(self._after, -1, sentence)
        sentences = np.array([sentence for sentence, _ in pieces], dtype=np.int64)
        sizes = np.array([len(tokens) for _, tokens in pieces], dtype=np.int64)
        return Window(
            np.concatenate(ids),
            np.concatenate(units),
            np.concatenate(segments),
            features[sentences],
            sentences,
            sizes,
        )


def made_up_window(ids: Ids) -> Window:
    """Return a window of these token ids (T,), in sentences of 25, to try or to time a model."""
    units = np.arange(len(ids), dtype=np.int64) // 25
    numbers = np.unique(units)
    features = np.zeros((len(numbers), FEATURES), dtype=np.float32)
    return Window(ids, units, units % 2, features, numbers, np.bincount(units))


def window_ranges(costs: Sequence[int], room: int, overlap: float) -> list[tuple[int, int]]:
    """Return which pieces [first, last) each window holds.

    Args:
        costs: tokens of each piece, none above ``room``.
        room: tokens of a window at most.
        overlap: tokens that a window has in common with the one before, over ``room``, at most.
    """
    ranges: list[tuple[int, int]] = []
    first = 0
    while first < len(costs):
        last, used = first, 0
        while last < len(costs) and used + costs[last] <= room:
            used += costs[last]
            last += 1
        ranges.append((first, last))
        if last == len(costs):
            break
        # What is read again must leave room for the next piece, or the window would bring nothing.
        spare = min(overlap * room, room - costs[last])
        first, again = last, costs[last - 1]
        while first - 1 > ranges[-1][0] and again <= spare:
            first -= 1
            again += costs[first - 1]
    return ranges


def sentence_features(document: Document, ids: Ids, owner: Ids) -> Floats:
    """Return where sentences stand, how long and how central they are, (n, FEATURES).

    Each column is from 0 to 1, less its mean over the document: sentences compete within one.

    Args:
        document: of n sentences.
        ids: its tokens, (T,).
        owner: the sentence of each token, (T,).
    """
    words = np.array(document.word_counts(), dtype=np.float64)
    n = len(words)
    rank = np.arange(n, dtype=np.float64)
    columns = [
        rank == 0,
        np.exp(-rank / 2),
        np.exp(-rank / 8),
        rank / max(n - 1, 1),
        np.exp(-(n - 1 - rank) / 2),
        words / (words + 20),
        words / max(words.max(initial=0), 1),
        *_centrality(ids, owner, n),
    ]
    table = np.stack(columns, axis=1).reshape(n, FEATURES)
    return (table - table.mean(0) if n else table).astype(np.float32)


def _centrality(ids: Ids, owner: Ids, n: int) -> list[NDArray[np.float64]]:
    """Return how much each of n sentences shares with the whole document, (n,) each.

    The cosine of its TF-IDF vector over tokens with the mean one (Radev et al. 2004), the same over
    the document's largest, and the share of its tokens that other sentences hold too.
    """
    # Sparse: one entry per token that a sentence holds, so that 5,000 sentences fit.
    pairs, counts = np.unique(np.stack([owner, ids]), axis=1, return_counts=True)
    rows, tokens = pairs[0], np.unique(pairs[1], return_inverse=True)[1].reshape(-1)
    spread = np.bincount(tokens)[tokens]  # sentences that hold the token
    values = (1 + np.log(counts)) * (1 + np.log((1 + n) / (1 + spread)))
    norms = np.sqrt(np.bincount(rows, values**2, minlength=n))
    values = values / norms[rows]
    mean = np.bincount(tokens, values) / n
    length = max(float(np.linalg.norm(mean)), 1e-9)
    cosine = np.bincount(rows, values * mean[tokens], minlength=n) / length
    lengths = np.bincount(rows, counts, minlength=n)
    shared = np.bincount(rows, counts * (spread > 1), minlength=n) / np.maximum(lengths, 1)
    return [cosine, cosine / max(cosine.max(initial=0), 1e-9), shared]


def pad_windows(windows: Sequence[Window]) -> dict[str, NDArray[np.float32] | Ids]:
    """Return b windows as arrays, by the names of the exported model's inputs.

    ``token_type_ids`` (b, T); ``pooling`` (b, S, T): the share of each token in each unit's mean;
    ``features`` (b, S, F). Beyond a window's own units, ``pooling`` and ``features`` are 0.
    """
    tokens = max(len(window) for window in windows)
    units = max(len(window.sizes) for window in windows)
    types = np.zeros((len(windows), tokens), dtype=np.int64)
    pooling = np.zeros((len(windows), units, tokens), dtype=np.float32)
    features = np.zeros((len(windows), units, windows[0].features.shape[1]), dtype=np.float32)
    for i, window in enumerate(windows):
        count = len(window.sizes)
        types[i, : len(window)] = window.segments
        places = np.flatnonzero(window.units >= 0)
        owners = window.units[places]
        pooling[i, owners, places] = 1.0 / np.bincount(owners, minlength=count)[owners]
        features[i, :count] = window.features
    return {"token_type_ids": types, "pooling": pooling, "features": features}


def feed_of(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Return what an exported model takes of rows of one kind, by the names of its inputs."""
    windows = [row for row in rows if isinstance(row, Window)]
    ids, mask = pad([row.ids if isinstance(row, Window) else row for row in rows])
    feed: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
    return feed | pad_windows(windows) if windows else feed

"""Documents and their sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanonet.core.errors import ConfigError, MissingExtraError

EXTRA = "summarization"


@dataclass(frozen=True)
class Document:
    """A text and where its n sentences stand in it: characters [start, end), in order."""

    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def sentences(self) -> list[str]:
        """The sentences' texts."""
        return [self.text[start:end] for start, end in self.spans]

    def word_counts(self) -> list[int]:
        """Return the words of each sentence: what white space parts."""
        return [len(sentence.split()) for sentence in self.sentences]

    @property
    def has_words(self) -> bool:
        """Whether there is anything to choose."""
        return any(self.word_counts())


def join_sentences(sentences: Sequence[str]) -> Document:
    """Return the document of sentences, a blank between them; an empty one keeps its place."""
    spans, start = [], 0
    for sentence in sentences:
        spans.append((start, start + len(sentence)))
        start += len(sentence) + 1
    return Document(" ".join(sentences), tuple(spans))


def make_document(parts: str | Sequence[str], language: str) -> Document:
    """Return the document of a text (see `split_text`) or of sentences (see `join_sentences`)."""
    return split_text(parts, language) if isinstance(parts, str) else join_sentences(parts)


def split_text(text: str, language: str) -> Document:
    """Return the document of a text, cut into sentences by ``sentencex``.

    Args:
        text: any text; without a word in it, there are no sentences.
        language: as a code, such as ``en``.

    Raises:
        MissingExtraError: sentencex is not installed.
    """
    try:
        import sentencex
    except ImportError as error:
        raise MissingExtraError("cutting a text into sentences", EXTRA) from error
    spans = []
    for found in sentencex.get_sentence_boundaries(language, text):
        start, end = found["start_index"], found["end_index"]
        piece = text[start:end]
        stripped = piece.strip()
        if stripped:
            start += len(piece) - len(piece.lstrip())
            spans.append((start, start + len(stripped)))
    return Document(text, tuple(spans))


def check_language(language: str) -> None:
    """Refuse what is no language code.

    Raises:
        ConfigError: for instance ``english``.
    """
    if not (language.isascii() and language.replace("-", "").isalpha() and len(language) <= 12):
        raise ConfigError(
            f"summarization.language is {language!r}, but must be a language code such as 'en'"
        )

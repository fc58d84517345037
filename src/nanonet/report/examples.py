"""Evaluates a run here and now, for examples to judge by eye beside the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.data.documents import DocumentTable
from nanonet.data.readers import TextTable
from nanonet.tasks.labels import place
from nanonet.tasks.metrics import softmax

SHOWN = 10  # texts of each kind
LONGEST_TEXT = 600  # characters shown of a text
LONGEST_DOCUMENT = 80  # sentences shown of a document
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Answer:
    """What a learner says of a text, and how sure it is, in percent."""

    learner: str
    said: str
    sure: str
    right: bool


@dataclass(frozen=True)
class TextExample:
    """A text and what the learners say of it."""

    where: str
    text: str
    truth: str
    answers: list[Answer]


@dataclass(frozen=True)
class TextExamples:
    """Texts of a classifier's evaluation.

    Attributes:
        mistakes: of the shipped learner, the surest first.
        disputed: texts on which the learners' probabilities differ most.
        agreed: share of texts on which all learners say the same, 0 to 1; None: there is only one.
    """

    source: str
    mistakes: list[TextExample]
    disputed: list[TextExample]
    agreed: float | None


@dataclass(frozen=True)
class DocumentExample:
    """A document, which sentences the summary takes, and how close that is to the reference.

    Attributes:
        which: what makes it an example.
        sentences: and whether each is chosen; the first `LONGEST_DOCUMENT`.
        left_out: further sentences, and how many of them are chosen.
        rouge: by metric.
    """

    which: str
    sentences: list[tuple[str, bool]]
    left_out: tuple[int, int]
    reference: list[str]
    rouge: dict[str, float]


def classify(path: Path, table: TextTable, classes: list[str]) -> TextExamples:
    """Evaluate a classifier, note it in the run folder, and return texts to look at.

    See `scoring.classification.evaluate_run` for errors.
    """
    from nanonet.scoring import classification

    found = classification.predict_run(path, table)
    classification.note_scores(path, table, found)
    says = {name: softmax(z.astype(np.float64)) for name, z in found.logits.items()}
    own = says[found.selected]
    best, sure = own.argmax(-1), own.max(-1)
    wrong = np.flatnonzero(best != found.truth)
    mistakes = wrong[np.argsort(-sure[wrong], kind="stable")]
    answers = np.stack([p.argmax(-1) for p in says.values()])
    differs = np.flatnonzero((answers != answers[0]).any(0))
    disputed = differs[np.argsort(-divergence(list(says.values()))[differs], kind="stable")]

    def example(row: int) -> TextExample:
        text, truth = table.texts[row], int(found.truth[row])
        given = [
            Answer(
                n, classes[p[row].argmax()], f"{100 * p[row].max():.0f}", p[row].argmax() == truth
            )
            for n, p in says.items()
        ]
        where = place(table.source, table.rows[row])
        return TextExample(where, shortened(text), classes[truth], given)

    return TextExamples(
        source=table.source,
        mistakes=[example(int(row)) for row in mistakes[:SHOWN]],
        disputed=[example(int(row)) for row in disputed[:SHOWN]],
        agreed=1 - len(differs) / len(table.texts) if len(says) > 1 else None,
    )


def divergence(probabilities: Sequence[Floats]) -> Floats:
    """Return the Jensen-Shannon divergence of several predictions (n, C) of n texts, (n,)."""

    def entropy(p: Floats) -> Floats:
        negative: Floats = (p * np.log(p + 1e-12)).sum(-1)
        return -negative

    together = np.stack(probabilities)
    between: Floats = entropy(together.mean(0)) - entropy(together).mean(0)
    return between


def shortened(text: str) -> str:
    """Return a text, cut where it is long."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def summarize(path: Path, table: DocumentTable) -> list[DocumentExample]:
    """Evaluate a summarizer, note it in the run folder, and return documents to look at.

    See `scoring.summarization.evaluate_run` for errors.
    """
    from nanonet.scoring import summarization
    from nanonet.tasks.budgets import Budget, choose
    from nanonet.tasks.rouge import METRICS, Rouge, rouge_of

    Rouge()  # where it is missing, nothing else is worth computing
    found = summarization.predict_run(path, table)
    summarization.note_scores(path, table, found)
    own, references = found.logits[found.selected], table.summaries or []
    budget, block = Budget.parse(found.settings.budget), found.settings.block_trigrams
    texts = [document.sentences for document in table.documents]
    rouge = rouge_of(own, texts, references, budget, block)
    order = np.argsort(rouge[:, 0], kind="stable")
    names = {
        int(order[0]): "furthest from its reference",
        int(order[len(order) // 2]): "in the middle",
        int(order[-1]): "closest to its reference",
    }
    examples = []
    for i, which in reversed(names.items()):
        chosen = choose(own[i], texts[i], budget, block)
        marked = [(text, k in chosen) for k, text in enumerate(texts[i])]
        rest = marked[LONGEST_DOCUMENT:]
        examples.append(
            DocumentExample(
                which=f"{place(table.source, table.rows[i])}: {which}",
                sentences=marked[:LONGEST_DOCUMENT],
                left_out=(len(rest), sum(taken for _, taken in rest)),
                reference=references[i],
                rouge=dict(zip(METRICS, rouge[i].tolist(), strict=True)),
            )
        )
    return examples

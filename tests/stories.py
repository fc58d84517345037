"""Made-up documents whose summaries are the sentences about fruit."""

import json
from pathlib import Path

import numpy as np

from tiny import CLASS_WORDS, FILLER

FAST = {
    "data.max_length": 40,
    "cohort.student_layers": 2,
    "training.steps": 12,
    "training.labeled_batch": 4,
    "training.unlabeled_batch": 4,
    "training.checkpoint_every": 6,
    "training.precision": "fp32",
    "training.threads": 1,
    "summarization.start": False,  # so that a tiny encoder trains
}


def flags(**more: object) -> list[str]:
    """Return ``--set`` options of `FAST` and more, with ``__`` for the dot of a key."""
    settings = FAST | {key.replace("__", "."): value for key, value in more.items()}
    words = {k: str(v).lower() if isinstance(v, bool) else v for k, v in settings.items()}
    return [part for key, value in words.items() for part in ("--set", f"{key}={value}")]


def make_story(rng: np.random.Generator, sentences: int) -> tuple[list[str], list[int]]:
    """Return the sentences of a document and which of them are its summary: the first at least."""
    labels = (rng.random(sentences) < 0.3).astype(int)
    labels[0], labels[-1] = 1, 0
    texts = []
    for label in labels:
        topic = rng.choice(CLASS_WORDS[0] if label else CLASS_WORDS[1], size=2, replace=False)
        words = rng.permutation([*topic, *rng.choice(FILLER, size=rng.integers(2, 7))])
        texts.append(" ".join(words).capitalize())
    return texts, labels.tolist()


def make_stories(count: int, seed: int = 0, longest: int = 14) -> list[tuple[list[str], list[int]]]:
    rng = np.random.default_rng(seed)
    return [make_story(rng, int(rng.integers(3, longest + 1))) for _ in range(count)]


def chosen(texts: list[str], labels: list[int]) -> list[str]:
    return [text for text, label in zip(texts, labels, strict=True) if label]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_stories(folder: Path) -> Path:
    """Write labeled.jsonl (labels), summarized.jsonl (summaries), unlabeled.jsonl, test.jsonl."""
    labeled, free, test = (make_stories(n, seed) for n, seed in ((10, 0), (12, 1), (8, 2)))
    write_lines(folder / "labeled.jsonl", [{"sentences": t, "labels": y} for t, y in labeled])
    rows = [{"sentences": t, "summary": chosen(t, y)} for t, y in labeled]
    write_lines(folder / "summarized.jsonl", rows)
    write_lines(folder / "unlabeled.jsonl", [{"sentences": t} for t, _ in free])
    rows = [{"sentences": t, "summary": chosen(t, y)} for t, y in test]
    write_lines(folder / "test.jsonl", rows)
    return folder

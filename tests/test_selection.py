"""Which student ships where no label is left to tell."""

import numpy as np
import pytest

from nanonet.training.selection import select_by_agreement


def logits(*classes: int):
    return np.eye(2, dtype=np.float32)[list(classes)] * 4


STUDENTS = {
    "student1": logits(0, 0, 0, 1),
    "student2": logits(1, 1, 0, 1),
    "student3": logits(1, 1, 0, 1),
}


def test_the_teacher_judges_and_not_the_majority():
    found = select_by_agreement({"teacher": logits(0, 0, 0, 0)} | STUDENTS, "4 texts")
    assert found.selected == "student1"
    assert found.criterion == "agreement with the teacher on 4 texts"
    assert found.labels_used == 0
    assert set(found.scores) == set(STUDENTS)


def test_without_a_teacher_the_mean_of_all_does():
    found = select_by_agreement(STUDENTS, "4 texts")
    assert found.selected == "student2"
    assert found.criterion == "agreement with the cohort on 4 texts"


def test_the_score_is_the_mean_log_likelihood_of_what_the_teacher_says():
    generator = np.random.default_rng(0)
    made = {n: generator.normal(size=(7, 3)).astype(np.float32) for n in ("teacher", "student1")}
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in made.values())
    expected = (p * np.log(q)).sum(1).mean()
    assert select_by_agreement(made, "rows").scores["student1"] == pytest.approx(expected, abs=1e-6)

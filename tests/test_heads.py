"""Students' heads, fitted in the end to the teacher's answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nanonet.core.config import make_config
from nanonet.export import load_cohort
from nanonet.models.heads import LinearHead
from nanonet.models.learner import Learner
from nanonet.tasks.base import OUTPUTS
from nanonet.tasks.metrics import softmax
from nanonet.training import heads as heads_module
from nanonet.training import outcome as outcome_module
from nanonet.training import prepare as prepare_module
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed, predict_logits
from nanonet.training.heads import INVERSE_PENALTY, FittedHead, _fit
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_resume import clockless, interrupted
from test_training import Notes
from tiny import make_settings, make_tables

FP32 = Hardware("cpu", "fp32", "eager", 1)
SURE = 30.0  # a logit that leaves no doubt


def make_student(classes, task="classification", normalize=True):
    """Return a learner with a random head and no encoder."""
    head = LinearHead(8, classes, normalize, 10.0)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return Learner(torch.nn.Module(), head, "mean", (0,), outputs=OUTPUTS[task])


def make_vectors(n, classes, seed=0, length=1.0):
    """Return vectors of one length around a direction per class, and these classes."""
    rng = np.random.default_rng(seed)
    places = np.arange(n) % classes
    vectors = np.eye(8)[places] + 0.6 * rng.normal(size=(n, 8))
    vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), places


@pytest.mark.parametrize(("normalize", "length"), [(True, 1.0), (False, 3.0)])
def test_a_head_fitted_to_sure_answers_is_a_logistic_regression(normalize, length):
    student = make_student(3, normalize=normalize)
    vectors, places = make_vectors(400, 3, length=length)
    fitted = _fit(student, vectors, (SURE * np.eye(3)[places]).astype(np.float32), 300)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000, tol=1e-8)
    model.fit(vectors[:300] / length, places[:300])
    expected = model.predict_proba(vectors / length)
    with torch.no_grad():
        logits = student.head(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(softmax(logits), expected, atol=5e-4)
    assert fitted.texts == 300
    assert fitted.after == np.mean(expected[300:].argmax(1) == places[300:])
    assert fitted.kept
    assert fitted.before < 0.5 < fitted.after
    assert all(p.grad is None for p in student.head.parameters())


def test_doubts_are_learnt_too():
    """Answers that are a linear map of the vectors are met, sure or not."""
    student = make_student(3)
    vectors, _ = make_vectors(600, 3)
    weights = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    _fit(student, vectors, vectors @ weights, 500)
    with torch.no_grad():
        found = softmax(student.head(torch.from_numpy(vectors)).numpy())
    assert np.abs(found - softmax(vectors @ weights)).max() < 0.1


def test_each_label_of_many_is_a_regression_of_its_own():
    student = make_student(3, "multilabel")
    vectors, places = make_vectors(400, 3)
    has = np.eye(3)[places]
    has[:, 2] = np.random.default_rng(2).permutation(has[:, 2])
    answers = np.stack([np.zeros(1200), SURE * (2 * has.reshape(-1) - 1)], axis=1)
    fitted = _fit(student, vectors, answers.astype(np.float32), 300)
    with torch.no_grad():
        logits = student.head(torch.from_numpy(vectors)).numpy()
    agreed = []
    for label in range(3):
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000, tol=1e-8)
        model.fit(vectors[:300], has[:300, label])
        expected = model.predict_proba(vectors)[:, 1]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, label])), expected, atol=5e-4)
        agreed.append((expected[300:] > 0.5) == (has[300:, label] == 1))
    assert fitted.after == pytest.approx(np.mean(agreed))


def test_a_head_that_is_no_nearer_stays_as_it_was():
    student = make_student(3)
    own = {name: tensor.clone() for name, tensor in student.head.state_dict().items()}
    vectors, places = make_vectors(400, 3)
    answers = SURE * np.eye(3)[(places + 1) % 3]  # of the texts to fit to
    with torch.no_grad():
        answers[300:] = student.head(torch.from_numpy(vectors[300:])).numpy()
    fitted = _fit(student, vectors, answers.astype(np.float32), 300)
    assert fitted.before == 1.0
    assert fitted.after < 0.5
    assert not fitted.kept
    for name, tensor in student.head.state_dict().items():
        assert torch.equal(tensor, own[name])


@pytest.fixture
def few_aside(monkeypatch):
    monkeypatch.setattr(prepare_module, "FEWEST_ASIDE", 1)


def settle(folder, *settings):
    return make_settings(folder, "training.head_texts=40", *settings)


def test_a_run_fits_its_students_heads_and_nothing_else(tmp_path, tiny_bert_folder, few_aside):
    tables, notes = make_tables(unlabeled=30), Notes()
    config = settle(tiny_bert_folder)
    summary = train(config, lambda: tables, tmp_path / "run", display=notes)
    run = RunFolder(tmp_path / "run")
    heads = {name: FittedHead(**head) for name, head in summary["heads"].items()}
    assert set(heads) == {"student1", "student2"}
    assert all(head.texts == 40 for head in heads.values())
    last = read_tensors(list_checkpoints(run.checkpoints)[-1] / "trained.safetensors")
    shipped = load_cohort(run).own_tensors()
    changed = {name for name in last if not torch.equal(last[name], shipped[name])}
    kept = [name for name, head in heads.items() if head.kept]
    assert kept
    assert changed == {f"{n}.head.linear.{part}" for n in kept for part in ("weight", "bias")}
    said = notes.said[
        notes.said.index("fitting students' heads to the teacher's answers to 40 texts") :
    ]
    for line, (name, head) in zip(said[1:3], heads.items(), strict=True):
        end = "" if head.kept else ": its head stays as it was"
        assert line == (
            f"{name} answers {head.after:.1%} of other texts like the teacher, {head.before:.1%}"
            f" before{end}"
        )

    interrupted(config, tmp_path / "again", 4, tables=lambda: tables)
    resumed = train(config, lambda: tables, tmp_path / "again", mode="resume")
    assert clockless(resumed) == clockless(summary)


def test_what_a_summary_says_of_heads_is_so(tmp_path, tiny_bert_folder, few_aside, monkeypatch):
    seen = []
    original = heads_module.fit_heads

    def spy(prepared, *rest):
        found = original(prepared, *rest)
        seen.append((prepared, found))
        return found

    monkeypatch.setattr(outcome_module, "fit_heads", spy)
    train(settle(tiny_bert_folder), lambda: make_tables(unlabeled=30), tmp_path / "run")
    ((prepared, found),) = seen
    rows, hardware = prepared.aside, prepared.hardware
    teacher = predict_logits(prepared.cohort["teacher"], rows, hardware).argmax(-1)
    for name, head in found.items():
        own = predict_logits(prepared.cohort[name], rows, hardware).argmax(-1)
        assert (head.after if head.kept else head.before) == np.mean(own == teacher)


@pytest.mark.parametrize(
    "settings",
    [
        ["training.head_texts=0"],
        ["cohort.students=0"],
        ["cohort.student_width=16", "cohort.student_peft=full"],
    ],
)
def test_heads_that_are_not_fitted(tmp_path, tiny_bert_folder, few_aside, settings):
    config = settle(tiny_bert_folder, *settings)
    assert train(config, lambda: make_tables(unlabeled=30), tmp_path / "run")["heads"] == {}


def test_heads_are_not_fitted_where_nothing_could_judge(tmp_path, tiny_bert_folder):
    tables = make_tables(unlabeled=15)  # too few for some to be kept aside
    assert train(settle(tiny_bert_folder), lambda: tables, tmp_path / "run")["heads"] == {}


def test_validation_texts_judge_where_there_are_some(tmp_path, tiny_bert_folder):
    tables = make_tables(unlabeled=15, validation=5)
    summary = train(settle(tiny_bert_folder), lambda: tables, tmp_path / "run")
    assert set(summary["heads"]) == {"student1", "student2"}
    other = replace(tables.validation, labels=tables.validation.labels[::-1])
    again = train(
        settle(tiny_bert_folder), lambda: replace(tables, validation=other), tmp_path / "other"
    )
    assert again["heads"] == summary["heads"]  # their labels have no part in it


@pytest.mark.parametrize(
    ("astray", "fitted"),
    [([], 2), (["student2"], 1), (["teacher"], 0), (["teacher", "student1"], 0)],
)
def test_who_is_astray_is_no_example(
    tmp_path, tiny_bert_folder, few_aside, monkeypatch, astray, fitted
):
    monkeypatch.setattr(outcome_module, "find_astray", lambda _: tuple(astray))
    summary = train(settle(tiny_bert_folder), lambda: make_tables(unlabeled=30), tmp_path / "run")
    assert len(summary["heads"]) == fitted
    assert not set(astray) & set(summary["heads"])


def test_only_the_recipe_nanonet_fits_heads():
    assert make_config("nanonet", {}).training.head_texts > 0
    for recipe in ("supervised", "distill", "psnet", "disco", "self-training", "summarization"):
        assert make_config(recipe, {}).training.head_texts == 0


def test_vectors_as_a_learner_gives_them(tmp_path, tiny_bert_folder):
    train(settle(tiny_bert_folder), lambda: make_tables(unlabeled=15), tmp_path / "run")
    learner = load_cohort(RunFolder(tmp_path / "run"))["student1"]
    rows = [np.array([2, 7, 9, 3]), np.array([2, 11, 3])]
    vectors = embed(learner, rows, FP32, normalize=False)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (np.abs(lengths - 1.0) > 0.1).all()
    np.testing.assert_allclose(embed(learner, rows, FP32), vectors / lengths, atol=1e-6)
    with torch.no_grad():
        logits = learner.head(torch.from_numpy(vectors))
    np.testing.assert_allclose(logits.numpy(), predict_logits(learner, rows, FP32), atol=1e-5)

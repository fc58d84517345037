"""Students' heads, fitted in the end to the teacher's answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nanonet.core.config import make_config
from nanonet.data.multilabel import multilabel_from_lists
from nanonet.export import load_cohort
from nanonet.models.heads import LinearHead
from nanonet.tasks.metrics import softmax
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training import heads as heads_module
from nanonet.training import outcome as outcome_module
from nanonet.training import prepare as prepare_module
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed, predict_logits
from nanonet.training.heads import INVERSE_PENALTY, FittedHead, fit_head
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_reach import lose
from test_resume import clockless, interrupted
from test_training import Notes
from tiny import make_settings, make_tables

FP32 = Hardware("cpu", "fp32", "eager", 1)
SURE = 30.0  # a logit that leaves no doubt


def make_head(normalize=True):
    """Return a random head of three classes."""
    head = LinearHead(8, 3, normalize, 10.0)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return head


def logits_of(head, vectors):
    with torch.no_grad():
        return head(torch.from_numpy(vectors)).numpy()


def confidence(logits):
    return softmax(logits.astype(np.float64)).max(-1).mean()


def make_vectors(n, classes, seed=0, length=1.0):
    """Return vectors of one length around a direction per class, and these classes."""
    rng = np.random.default_rng(seed)
    places = np.arange(n) % classes
    vectors = np.eye(8)[places] + 0.6 * rng.normal(size=(n, 8))
    vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), places


@pytest.mark.parametrize(("normalize", "length"), [(True, 1.0), (False, 3.0)])
def test_a_head_fitted_to_sure_answers_is_a_logistic_regression(normalize, length):
    head = make_head(normalize)
    vectors, places = make_vectors(400, 3, length=length)
    sure = confidence(logits_of(head, vectors[300:]))
    fitted = fit_head(head, vectors, SURE * np.eye(3)[places[:300]], places[300:])
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000, tol=1e-8)
    model.fit(vectors[:300] / length, places[:300])
    expected = model.decision_function(vectors / length)
    logits = logits_of(head, vectors)
    centred = logits - logits.mean(1, keepdims=True)
    scale = (centred * expected).sum() / (expected * expected).sum()
    np.testing.assert_allclose(centred, scale * expected, atol=5e-3)
    assert confidence(logits[300:]) == pytest.approx(sure, abs=1e-4)  # no surer than before
    right = (expected[300:].argmax(1) == places[300:]).mean()
    assert fitted == FittedHead(300, 100, fitted.before, right, True)
    assert fitted.before < 0.5 < right
    assert all(p.grad is None and p.dtype == torch.float32 for p in head.parameters())


def test_doubts_are_learnt_too():
    """Answers that are a linear map of the vectors are met up to a factor, sure or not."""
    head = make_head()
    vectors, _ = make_vectors(600, 3)
    wanted = vectors @ np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    fit_head(head, vectors, wanted[:500], wanted[500:].argmax(1))
    logits, wanted = (z - z.mean(1, keepdims=True) for z in (logits_of(head, vectors), wanted))
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.99
    hard = make_head()
    fit_head(hard, vectors, SURE * np.eye(3)[wanted[:500].argmax(1)], wanted[500:].argmax(1))
    logits = logits_of(hard, vectors)
    logits = logits - logits.mean(1, keepdims=True)
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] < 0.99


@pytest.mark.parametrize("case", ["worse", "no better"])
def test_a_head_that_is_not_better_stays_as_it_was(case):
    head = make_head()
    own = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    vectors, places = make_vectors(400, 3)
    right = logits_of(head, vectors[300:]).argmax(1)
    answers = np.eye(3)[(places[:300] + 1) % 3]
    if case == "no better":  # all others are right already
        answers = np.eye(3)[logits_of(head, vectors[:300]).argmax(1)]
    fitted = fit_head(head, vectors, SURE * answers, right)
    assert fitted.before == 1.0
    assert fitted.after <= 1.0
    assert not fitted.kept
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, own[name])


def test_a_head_that_would_not_be_finite_stays_as_it_was():
    head = make_head()
    own = head.linear.weight.clone()
    vectors, places = make_vectors(400, 3)
    fitted = fit_head(head, vectors, np.full((300, 3), np.nan), places[300:])
    assert not fitted.kept
    assert torch.equal(head.linear.weight, own)


@pytest.fixture
def few_aside(monkeypatch):
    monkeypatch.setattr(prepare_module, "FEWEST_ASIDE", 1)
    monkeypatch.setattr(heads_module, "FEWEST_JUDGES", 1)
    monkeypatch.setattr(heads_module, "FEWEST_TEXTS", 1)


def settle(folder, *settings):
    return make_settings(folder, "training.head_texts=40", *settings)


HEADS = "training.head_texts=2000"  # all


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
        does, end = (
            ("now answers", "") if head.kept else ("would answer", ": its head stays as it was")
        )
        assert line == (
            f"{name} {does} {head.after:.1%} of 11 other texts as the teacher does"
            f" ({head.before:.1%} before){end}"
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


@pytest.mark.parametrize(("texts", "judges"), [(80, 1), (1, 12)])
def test_too_few_texts_are_not_fitted_to(
    tmp_path, tiny_bert_folder, few_aside, monkeypatch, texts, judges
):
    monkeypatch.setattr(heads_module, "FEWEST_TEXTS", texts)  # of 79
    monkeypatch.setattr(heads_module, "FEWEST_JUDGES", judges)  # of 11
    config, tables, notes = settle(tiny_bert_folder, HEADS), make_tables(unlabeled=30), Notes()
    assert train(config, lambda: tables, tmp_path / "run", display=notes)["heads"] == {}
    line = "students' heads stay as they were trained: too few texts to fit them to, or to judge"
    assert line in notes.said


def test_nothing_is_said_of_heads_without_unlabelled_texts(tmp_path, tiny_bert_folder):
    tables, notes = make_tables(unlabeled=0), Notes()
    summary = train(settle(tiny_bert_folder), lambda: tables, tmp_path / "run", display=notes)
    assert summary["heads"] == {}
    assert not [line for line in notes.said if "heads" in line]


def test_labels_judge_where_there_are_validation_rows(tmp_path, tiny_bert_folder, few_aside):
    tables, notes = make_tables(unlabeled=15, validation=5), Notes()
    run = tmp_path / "run"
    summary = train(settle(tiny_bert_folder), lambda: tables, run, display=notes)
    heads = {name: FittedHead(**head) for name, head in summary["heads"].items()}
    cohort = load_cohort(RunFolder(run))
    tokenizer = TextTokenizer((run / "tokenizer.json").read_text(), 16)
    rows = tokenizer.encode(tables.validation.texts).ids
    for name, head in heads.items():
        assert (head.texts, head.judges) == (40, 15)
        said = predict_logits(cohort[name], rows, FP32).argmax(-1)
        right = np.mean(said == np.array(tables.validation.labels))
        assert (head.after if head.kept else head.before) == right
    assert [line for line in notes.said if "of 15 other texts as they are labelled" in line]


def test_what_is_out_of_reach_neither_teaches_nor_judges(
    tmp_path, tiny_bert_folder, few_aside, monkeypatch
):
    lose(monkeypatch)
    tables = make_tables(unlabeled=30)
    summary = train(settle(tiny_bert_folder, HEADS), lambda: tables, tmp_path / "run")
    used, lost = summary["unlabeled_used"], summary["unlabeled_out_of_reach"]
    assert lost > 0
    total = used + summary["unlabeled_aside"]
    judges = len([i for i in range(used, total) if i % 3])
    for head in summary["heads"].values():
        assert (head["texts"], head["judges"]) == (used - lost, judges)


def test_texts_of_many_labels_leave_heads_alone(tmp_path, tiny_bert_folder, few_aside):
    tables = make_tables(unlabeled=30)
    texts, labels = tables.labeled.texts, tables.labeled.labels
    tables = replace(tables, labeled=multilabel_from_lists(texts, [[k] for k in labels], "given"))
    config = replace(settle(tiny_bert_folder), task="multilabel")
    assert train(config, lambda: tables, tmp_path / "run")["heads"] == {}


def test_without_a_teacher_there_is_nothing_to_fit_to(tmp_path, tiny_bert_folder, few_aside):
    settings = ("training.head_texts=40", "cohort.teacher=false")
    config = make_settings(tiny_bert_folder, *settings, recipe="disco")
    assert train(config, lambda: make_tables(unlabeled=30), tmp_path / "run")["heads"] == {}


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

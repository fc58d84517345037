"""Labels that spread along nearest neighbours: the graph, the labels, and their way into a run."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nanonet.core.config import PhaseConfig, PropagationConfig
from nanonet.core.errors import ConfigError, RunError
from nanonet.objectives.propagation import Propagation
from nanonet.tasks.base import EncodedTable
from nanonet.tasks.tokenization import EncodedTexts
from nanonet.training import prepare as prepare_module
from nanonet.training import propagation as propagation_module
from nanonet.training import train as train_module
from nanonet.training.checkpoint import (
    SOFT_LABELS,
    Position,
    list_checkpoints,
    load_soft_labels,
    read_tensors,
    save_checkpoint,
)
from nanonet.training.evaluation import embed
from nanonet.training.plan import Phase, make_plan
from nanonet.training.propagation import (
    SoftLabels,
    combine,
    neighbour_graph,
    propagate,
    soft_labels,
)
from nanonet.training.spreading import spread_labels
from nanonet.training.stopping import StopRequest
from nanonet.training.train import train
from test_engine import FP32, Record, dropout, make_engine, phase_step, run, same, tensors
from test_objectives import ROWS, FixedStep, close, log_softmax
from test_resume import clockless, interrupted
from test_training import Notes, contents, losses, unread
from tiny import AT_ONCE, make_settings, make_tables


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def crowd(seed: int, n: int, width: int = 8, clusters: int = 3, spread: float = 0.6):
    """Return vectors of n rows around some centres, and the centres' numbers."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, width))
    kinds = np.arange(n) % clusters
    return unit(centres[kinds] + spread * rng.normal(size=(n, width))), kinds


def dense_graph(vectors, neighbours: int) -> np.ndarray:
    """The normalised adjacency, from its definition, in 64 bits."""
    v = vectors.astype(np.float64)
    n = len(v)
    adjacency = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -(v[i] @ v[j]))
        for j in others[:neighbours]:
            weight = max(v[i] @ v[j], 0.0) ** 4
            adjacency[i, j] = adjacency[j, i] = weight
    degree = adjacency.sum(1)
    inverse = np.array([d**-0.5 if d > 0 else 0.0 for d in degree])
    return inverse[:, None] * adjacency * inverse[None]


def dense_labels(labeled, labels, unlabeled, classes, config) -> np.ndarray:
    """Class probabilities of the unlabelled rows, by matrix powers instead of iteration."""
    graph = dense_graph(np.concatenate([labeled, unlabeled]), config.neighbours)
    start = np.zeros((len(graph), classes))
    for i, label in enumerate(labels):
        start[i, label] = 1.0 / (np.asarray(labels) == label).sum()
    step, t = config.alpha * graph, config.iterations
    total = np.linalg.matrix_power(step, t) @ start
    for power in range(t):
        total += (1 - config.alpha) * np.linalg.matrix_power(step, power) @ start
    found = (total / total.sum(0))[len(labels) :]
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_the_graph_is_symmetric_and_normalised(monkeypatch, neighbours):
    vectors, _ = crowd(0, 40)
    graph = neighbour_graph(vectors, neighbours)
    dense = graph.toarray()
    assert graph.dtype == np.float32
    np.testing.assert_allclose(dense, dense.T, rtol=1e-6)
    assert (dense.diagonal() == 0).all()
    assert (dense >= 0).all()
    np.testing.assert_allclose(dense, dense_graph(vectors, neighbours), atol=1e-5)
    assert np.linalg.eigvalsh(dense.astype(np.float64)).max() == pytest.approx(1.0, abs=1e-5)
    if neighbours < 39:  # the nearest ones have a positive cosine
        assert ((dense > 0).sum(1) >= neighbours).all()
    monkeypatch.setattr(
        propagation_module, "SIMILARITIES_AT_ONCE", 7 * len(vectors)
    )  # in blocks: the same
    np.testing.assert_allclose(neighbour_graph(vectors, neighbours).toarray(), dense, atol=1e-6)


def test_two_clear_clusters_with_one_label_each():
    vectors, kinds = crowd(1, 60, clusters=2, spread=0.15)
    found = propagate(
        vectors[:2], kinds[:2], vectors[2:], 2, PropagationConfig(neighbours=5, iterations=30)
    )
    assert (found.probabilities.argmax(1) == kinds[2:]).all()
    assert found.probabilities.shape == (58, 2)
    assert found.probabilities.dtype == found.confidence.dtype == np.float32
    np.testing.assert_allclose(found.probabilities.sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 7, 30])
@pytest.mark.parametrize(
    ("neighbours", "alpha", "unlabeled"),
    [(5, 0.95, 50), (20, 0.5, 50), (3, 0.999, 30), (9, 0.9, 3)],
)
def test_labels_equal_an_independent_computation(neighbours, alpha, unlabeled, iterations):
    vectors, _ = crowd(2, 7 + unlabeled)
    labels = np.array([0, 0, 0, 2, 1, 2, 1])
    config = PropagationConfig(neighbours=neighbours, alpha=alpha, iterations=iterations)
    found = propagate(vectors[:7], labels, vectors[7:], 3, config)
    with np.errstate(invalid="ignore"):
        expected = dense_labels(vectors[:7], labels, vectors[7:], 3, config)
    reached = ~np.isnan(expected[:, 0])
    assert reached.any()
    np.testing.assert_allclose(found.probabilities[reached], expected[reached], atol=1e-5)
    np.testing.assert_allclose(found.probabilities[~reached], 1 / 3, atol=1e-6)
    entropy = -(expected[reached] * np.log(np.maximum(expected[reached], 1e-12))).sum(1)
    clear_first = np.argsort(-found.confidence[reached])
    assert (np.diff(entropy[clear_first]) > -1e-4).all()


@pytest.fixture
def crossed():
    """Vectors of two classes that stand in two crowds, but not one crowd for each.

    Neighbours tell the crowds apart, a straight line the classes.
    """
    rng = np.random.default_rng(0)
    kinds = np.arange(400) % 2
    crowds = np.where(rng.random(400) < 0.85, kinds, 1 - kinds)
    vectors = np.zeros((400, 6))
    vectors[:, 0], vectors[:, 1] = crowds == 0, crowds == 1
    vectors[:, 2] = np.where(kinds == 0, 0.6, -0.6) + 0.5 * rng.normal(size=400)
    return unit(vectors + 0.2 * rng.normal(size=(400, 6))), kinds


def test_a_classifier_beside_the_neighbours(crossed):
    vectors, kinds = crossed
    data = vectors[:40], kinds[:40], vectors[40:]
    alone = propagate(*data, 2, PropagationConfig(neighbours=10))
    both = combine(alone, *data)
    model = LogisticRegression(C=10, class_weight="balanced").fit(vectors[:40], kinds[:40])
    own = model.predict_proba(vectors[40:])

    def right(probabilities):
        return (probabilities.argmax(1) == kinds[40:]).mean()

    assert right(both.probabilities) > right(alone.probabilities)
    np.testing.assert_allclose(both.probabilities.sum(1), 1.0, atol=1e-6)
    # Where they agree, both say the same.
    agreed = own.argmax(1) == alone.probabilities.argmax(1)
    assert 0.5 < agreed.mean() < 1.0
    assert both.agreement == agreed.mean()
    assert (both.probabilities.argmax(1) == own.argmax(1))[agreed].all()
    # And what they agree on is trusted more.
    confidence = soft_labels(both.probabilities).confidence
    np.testing.assert_allclose(np.sort(confidence), np.linspace(0, 1, 360), atol=1e-6)
    assert confidence[agreed].mean() > confidence[~agreed].mean() + 0.2


def test_a_classifier_decides_where_no_label_comes():
    vectors = unit([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0.1], [0, 1, 0, 0.1]])
    data = vectors[:2], np.array([0, 1]), vectors[2:]
    found = combine(propagate(*data, 2, PropagationConfig(neighbours=1)), *data)
    assert found.probabilities[1:].argmax(1).tolist() == [0, 1]
    np.testing.assert_allclose(found.probabilities[0], 0.5, atol=1e-3)
    assert soft_labels(found.probabilities).confidence[0] == 0.0


def test_classes_are_scaled_to_equal_mass():
    # One neighbourhood of all: only the number of labels per class could tip the balance.
    vectors = unit(np.ones((11, 2)))
    config = PropagationConfig(neighbours=10)
    labels = np.array([0, 0, 0, 0, 0, 1])
    found = propagate(vectors[:6], labels, vectors[6:], 2, config)
    np.testing.assert_allclose(found.probabilities, 0.5, atol=1e-5)


def test_repeating_a_label_does_not_make_its_class_win():
    vectors, kinds = crowd(4, 90, clusters=2, spread=0.5)
    first = [int(np.flatnonzero(kinds == kind)[0]) for kind in (0, 1)]
    many = [*np.flatnonzero(kinds == 0)[:20], first[1]]
    rest = np.setdiff1d(np.arange(90), [*first, *many])
    config = PropagationConfig(neighbours=10)
    found = propagate(vectors[many], kinds[many], vectors[rest], 2, config)
    assert (found.probabilities.argmax(1) == kinds[rest]).mean() > 0.95


def test_confidence_is_a_rank():
    vectors, kinds = crowd(5, 40)
    found = propagate(vectors[:6], kinds[:6], vectors[6:], 3, PropagationConfig(neighbours=8))
    np.testing.assert_allclose(np.sort(found.confidence), np.linspace(0, 1, 34), atol=1e-6)
    p = found.probabilities.astype(np.float64)
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(1)
    assert (np.diff(entropy[np.argsort(found.confidence)]) < 1e-6).all()


@pytest.mark.parametrize("unlabeled", [1, 2, 3])
def test_fewer_texts_than_neighbours(unlabeled):
    vectors, kinds = crowd(6, 3 + unlabeled, spread=0.1)
    found = propagate(vectors[:3], kinds[:3], vectors[3:], 3, PropagationConfig(neighbours=20))
    assert (found.probabilities.argmax(1) == kinds[3:]).all()
    assert np.isfinite(found.confidence).all()
    assert found.confidence.min() == 0.0
    assert found.confidence.max() == (1.0 if unlabeled > 1 else 0.0)


def test_rows_that_no_label_reaches_are_undecided_and_trusted_not_at_all():
    vectors = np.zeros((9, 6), dtype=np.float32)
    vectors[[0, 2], 0] = 1.0  # class 0 and a row beside it
    vectors[[1, 3], 1] = 1.0  # class 1 and a row beside it
    vectors[4, 2] = 1.0  # orthogonal to all
    vectors[[5, 6], 3] = 1.0  # two that only know each other
    vectors[7, 0] = -1.0  # opposite to one, orthogonal to the others
    # Row 8 stays a vector of zeros.
    found = propagate(vectors[:2], np.array([0, 1]), vectors[2:], 2, PropagationConfig())
    assert np.isfinite(found.probabilities).all()
    np.testing.assert_allclose(found.probabilities[:2], np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(found.probabilities[2:], np.full((5, 2), 0.5, np.float32))
    assert (found.confidence[:2] > 0.8).all()
    assert (found.confidence[2:] == 0.0).all()
    alone = propagate(vectors[:2], np.array([0, 1]), vectors[4:5], 2, PropagationConfig())
    np.testing.assert_array_equal(alone.probabilities, [[0.5, 0.5]])


def test_a_class_without_labels_gets_nothing():
    vectors, _ = crowd(7, 20)
    found = propagate(vectors[:2], np.array([0, 2]), vectors[2:], 4, PropagationConfig())
    assert (found.probabilities[:, [1, 3]] == 0.0).all()
    np.testing.assert_allclose(found.probabilities.sum(1), 1.0, atol=1e-6)


def test_the_objective_is_weighed_cross_entropy_with_the_likeliest_class():
    step = FixedStep(2)
    targets = step.soft_labels
    z = log_softmax(step.outputs["student1"].logits)
    hard = targets.probabilities.argmax(-1)
    expected = -sum(targets.confidence[i] * z[i, hard[i]] for i in range(ROWS)) / ROWS
    loss = Propagation().loss("student1", step)
    close(loss, expected)
    assert step.asked == {("own", "unlabeled")}
    (grad,) = torch.autograd.grad(loss, step.outputs["student1"].logits)
    onehot = torch.nn.functional.one_hot(hard, grad.shape[1])
    by_hand = targets.confidence[:, None] * (z.exp() - onehot) / ROWS
    torch.testing.assert_close(grad.double(), by_hand.double(), rtol=0, atol=1e-6)


def test_vectors_are_those_of_each_text_alone(monkeypatch):
    monkeypatch.setattr("nanonet.training.evaluation.TOKENS_PER_CHUNK", 32)
    engine = make_engine()
    learner = engine.cohort["teacher"].train()
    found = embed(learner, engine.rows.unlabeled, FP32)
    assert learner.training  # as it was found
    learner.eval()
    assert embed(learner, [], FP32).shape == (0, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    for row, own in zip(engine.rows.unlabeled, found, strict=True):
        (alone,) = embed(learner, [row], FP32)
        np.testing.assert_allclose(own, alone, atol=1e-5)


def soft_labels_of(engine, source="teacher") -> SoftLabels:
    """What the unlabelled texts' labels are in a learner's space as it now is."""
    return spread_labels(engine.cohort[source], engine.rows, engine.config, FP32)


def test_labels_spread_once_in_the_space_of_the_teacher_at_that_step(monkeypatch):
    engine, calls, expected = make_engine(recipe="nanonet"), [], []
    original = engine._propagate

    def spy():
        calls.append(tensors(engine))
        expected.append(soft_labels_of(engine))
        return original()

    monkeypatch.setattr(engine, "_propagate", spy)
    start, seen = tensors(engine), []

    def on_step(step):
        seen.append((step, engine.soft_labels is not None, len(engine._draw(step - 1).unlabeled)))

    record = run(engine, Record(on_step))
    assert seen == [(1, False, 0), (2, False, 0), *((i, True, 8) for i in (3, 4, 5, 6))]
    assert len(calls) == 1
    assert not same(start, calls[0], "teacher")  # the preparation is over
    assert same(start, calls[0], "student")  # and the students have not begun
    np.testing.assert_array_equal(engine.soft_labels.probabilities, expected[0].probabilities)
    np.testing.assert_array_equal(engine.soft_labels.confidence, expected[0].confidence)
    assert not np.array_equal(
        engine.soft_labels.probabilities, soft_labels_of(engine).probabilities
    )  # the teacher has moved on since

    counts = record.positions[0].counts
    assert counts == {"teacher.supervised": 2}
    first, second = (row.losses for row in record.rows)
    assert "teacher.propagation" in first
    assert "teacher.propagation" in second
    assert "student1.mutual" in first


def test_rows_get_their_own_soft_labels():
    engine = make_engine(recipe="nanonet")
    run(engine)
    for step in (2, 5):
        batch = engine._draw(step)
        rows = engine._batches.draw(step)[1]
        for i, row in enumerate(rows):
            assert batch.unlabeled[i] is engine.rows.unlabeled[row]
        found = batch.soft_labels
        np.testing.assert_array_equal(found.probabilities, engine.soft_labels.probabilities[rows])
        np.testing.assert_array_equal(found.confidence, engine.soft_labels.confidence[rows])
        _, view = phase_step(engine, "teacher", step, batch=batch)
        assert view.soft_labels is found


def test_log_rows_are_means_over_the_steps_of_each_loss():
    every = run(make_engine("training.log_every=1", recipe="nanonet"))
    record = run(make_engine("training.log_every=6", recipe="nanonet"))
    (row,) = record.rows
    for name, value in row.losses.items():
        seen = [r.losses[name] for r in every.rows if name in r.losses]
        assert len(seen) == (6 if name == "teacher.supervised" else 4)
        assert value == pytest.approx(np.mean(seen), rel=1e-6)
    names = [set(r.learning_rates) for r in every.rows]
    assert names[:2] == [{"teacher.encoder", "teacher.head"}] * 2
    heads = [r.learning_rates["teacher.head"] for r in every.rows]
    assert heads == pytest.approx([1e-2 * f for f in (1, 0.5, 1, 0.75, 0.5, 0.25)])


def test_the_loop_stopped_at_any_step_ends_where_the_whole_one_does():
    settings = (*dropout(0.2), "training.log_every=4")
    whole = make_engine(*settings, recipe="nanonet")
    expected = run(whole)
    for at in (1, 2, 3):  # labels spread before the third step
        part, stop = make_engine(*settings, recipe="nanonet"), StopRequest()

        def halt(step, at=at, stop=stop):
            stop.reason = "interrupted" if step == at else ""

        first = run(part, Record(halt), stop)
        assert (part.soft_labels is None) == (at < 3)
        second = run(part, start=first.positions[-1])
        assert same(tensors(whole), tensors(part))
        assert [r.losses for r in second.rows] == [r.losses for r in expected.rows]
        rates = [[r.learning_rates for r in record.rows] for record in (second, expected)]
        assert rates[0] == rates[1]


def test_without_a_teacher_labels_spread_in_the_first_students_space():
    engine = make_engine(
        "cohort.teacher=false",
        "phases.students.objectives.prediction_distillation.weight=0",
        "phases.students.objectives.representation_distillation.weight=0",
        "phases.students.objectives.propagation.weight=1",
        recipe="nanonet",
    )
    expected = soft_labels_of(engine, "student1")
    record = run(engine)
    np.testing.assert_array_equal(engine.soft_labels.probabilities, expected.probabilities)
    assert "student2.propagation" in record.rows[-1].losses


def test_nothing_spreads_where_nobody_reads_it(monkeypatch):
    monkeypatch.setattr(
        "nanonet.training.engine.spread_labels", lambda *_: pytest.fail("propagated")
    )
    nobody = "phases.teacher.objectives.propagation.weight=0"
    engine = make_engine(nobody, recipe="nanonet")
    run(engine)
    assert engine.propagation_step is None
    assert engine.soft_labels is None


def test_nothing_spreads_without_unlabelled_text(tmp_path, tiny_bert_folder, monkeypatch):
    monkeypatch.setattr(
        "nanonet.training.engine.spread_labels", lambda *_: pytest.fail("propagated")
    )
    notes = Notes()
    config = make_settings(tiny_bert_folder)
    train(config, lambda: make_tables(unlabeled=0), tmp_path / "run", display=notes)
    assert "no unlabelled text: propagation left out of teacher" in notes.warned
    assert not list((tmp_path / "run").rglob(SOFT_LABELS))
    assert {name for row in losses(tmp_path / "run") for name in row["losses"]} == {
        "teacher.supervised",
        "student1.supervised",
        "student2.supervised",
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["propagation.at=0.3"], r"phases\.teacher .* starts at 0\.25, .* propagation\.at is 0\.3"),
        (["propagation.at=0"], r"phases\.teacher reads propagated labels .* propagation\.at is 0"),
        (["phases.teacher.start=0.2"], r"phases\.teacher .* starts at 0\.2, .*at is 0\.25"),
        (
            ["phases.preparation.objectives.propagation.weight=1"],
            r"phases\.preparation reads propagated labels and starts at 0\.0",
        ),
    ],
)
def test_a_phase_that_starts_before_labels_spread_is_refused(
    tmp_path, tiny_bert_folder, settings, expected
):
    with pytest.raises(ConfigError, match=expected) as error:
        train(make_settings(tiny_bert_folder, *settings), unread, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("at", [0.01, 0.1, 0.25, 0.35, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 6, 7, 200])
def test_every_phase_that_is_not_refused_finds_its_labels(at, steps):
    phase = Phase("p", ("teacher",), {}, PhaseConfig("teacher", start=at))
    assert all(step >= round(at * steps) for step in phase.window(steps))


def test_soft_labels_go_through_a_checkpoint(tmp_path):
    engine = make_engine(recipe="nanonet")
    position = Position(3, 1.5, {"a": 0.1 + 0.2, "b": 1.0}, {"a": 3, "b": 1})
    labels = SoftLabels(
        np.random.default_rng(0).random((30, 3), dtype=np.float32),
        np.linspace(0, 1, 30, dtype=np.float32),
    )
    path = save_checkpoint(tmp_path, position, engine.cohort, engine.optimizers, labels)
    found = load_soft_labels(path)
    for name in ("probabilities", "confidence"):
        a, b = getattr(found, name), getattr(labels, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert train_module.load_checkpoint(path, engine.cohort, engine.optimizers) == position

    earlier = save_checkpoint(tmp_path, Position(2, 1.0, {}, {}), engine.cohort, {})
    assert not (earlier / SOFT_LABELS).exists()
    with pytest.raises(RunError, match=r"step-000002 cannot be used.*delete it"):
        load_soft_labels(earlier)
    parts = read_tensors(path / SOFT_LABELS)
    del parts["confidence"]
    train_module.write_tensors(path / SOFT_LABELS, parts)
    with pytest.raises(RunError, match=r"step-000003 cannot be used"):
        load_soft_labels(path)


@pytest.fixture(scope="module")
def whole_run(tiny_modernbert_folder, tmp_path_factory):
    """A configuration, the folder of its uninterrupted run, and the summary."""
    settings = (*dropout(0.1), "training.log_every=1")
    config = make_settings(tiny_modernbert_folder, *settings)
    out = tmp_path_factory.mktemp("propagation") / "whole"
    return config, out, train(config, make_tables, out)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_run_resumed_around_the_propagation_is_bit_identical(tmp_path, whole_run, step):
    config, whole, expected = whole_run
    parts = tmp_path / "parts"
    interrupted(config, parts, step)
    saved = {p.name: (p / SOFT_LABELS).is_file() for p in list_checkpoints(parts / "checkpoints")}
    assert saved[f"step-{step:06d}"] == (step > 2)
    summary = train(config, make_tables, parts, mode="resume")
    assert clockless(summary) == clockless(expected)
    name = "learners.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert losses(parts) == losses(whole)
    (ours, theirs) = (contents(list_checkpoints(p / "checkpoints")[-1]) for p in (parts, whole))
    for file in (SOFT_LABELS, "trained.safetensors", "optimizers.safetensors"):
        assert ours[file] == theirs[file]


def test_a_resumed_run_does_not_spread_labels_again(tmp_path, tiny_bert_folder, monkeypatch):
    config, out = make_settings(tiny_bert_folder), tmp_path / "run"
    interrupted(config, out, 3)
    monkeypatch.setattr(
        "nanonet.training.engine.spread_labels", lambda *_: pytest.fail("propagated")
    )
    assert train(config, make_tables, out, mode="resume")["finished"]


def table_of(n: int) -> EncodedTable:
    ids = [np.array([2, i, 3]) for i in range(n)]
    return EncodedTable("pool", EncodedTexts(ids, 0, 0, 1), np.full(n, -1, dtype=np.int64))


def test_unlabelled_texts_beyond_reach_are_left_out(monkeypatch):
    monkeypatch.setattr(prepare_module, "PROPAGATION_TEXTS", 40)

    def rows_of(n: int, config):
        rows = table_of(n).encoded.ids
        return prepare_module.divide(rows, 0, config.training, config.seed)[0]

    def reached(n: int, *settings: str) -> list[int]:
        config = make_settings("x", "training.steps=3", *settings)  # 8 rows a step
        return [int(ids[1]) for ids in rows_of(n, config)]

    for n in (1, 24, 39, 40):
        assert reached(n) == list(range(n))
    few = reached(1000)
    assert len(few) == 40
    assert few == sorted(set(few))  # in their order, none twice
    assert few == reached(1000)
    assert few != reached(1000, "seed=1")
    assert max(few) > 500
    assert len(reached(1000, "training.steps=100")) == 800
    assert reached(1000, "training.steps=125") == list(range(1000))


@pytest.mark.parametrize("unlabeled", [30, 600])
def test_rows_that_nobody_learns_from(monkeypatch, unlabeled):
    monkeypatch.setattr(prepare_module, "PROPAGATION_TEXTS", 40)
    training, ids = make_settings("x", "training.steps=3").training, table_of(unlabeled).encoded.ids
    divided = [prepare_module.divide(ids, 7, training, seed) for seed in (0, 0, 1)]
    learnt, aside = ({int(row[1]) for row in rows} for rows in divided[0])
    assert len(aside) == 7
    assert not learnt & aside
    assert len(learnt) == min(unlabeled - 7, 40)
    first, again, other = ([[int(row[1]) for row in rows] for rows in two] for two in divided)
    assert first == again != other


def test_how_many_rows_nobody_learns_from():
    counts = {511: 0, 512: 64, 2000: 250, 4096: 512, 10**7: 512}
    assert {n: prepare_module.aside_count(n) for n in counts} == counts


def test_a_run_on_part_of_the_unlabelled_texts(tmp_path, tiny_bert_folder, monkeypatch):
    monkeypatch.setattr(prepare_module, "PROPAGATION_TEXTS", 20)
    config = make_settings(tiny_bert_folder, "training.unlabeled_batch=2")
    summary = train(config, make_tables, tmp_path / "run")
    assert summary["rows"]["unlabeled"] == 30  # all were given
    checkpoint = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert load_soft_labels(checkpoint).probabilities.shape == (20, 3)
    interrupted(config, tmp_path / "parts", 3)
    resumed = train(config, make_tables, tmp_path / "parts", mode="resume")
    assert clockless(resumed) == clockless(summary)


def test_the_recipe_at_once_reads_no_soft_labels():
    config = make_settings("in memory", recipe=AT_ONCE)
    plan = make_plan(config, has_unlabeled=True)
    assert [p.name for p in plan.phases] == ["teacher", "students"]
    assert not plan.needs_soft_labels
    assert all(p.progress(0, 6) == 0.0 for p in plan.phases)

"""Unlabelled texts that are unlike all labelled ones: found, and not learnt from."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from nanonet.core.config import PropagationConfig
from nanonet.training import prepare as prepare_module
from nanonet.training import spreading
from nanonet.training.device import Hardware
from nanonet.training.engine import Engine
from nanonet.training.outcome import sample_rows
from nanonet.training.propagation import PROBES, SoftLabels, within_reach
from nanonet.training.train import train
from test_engine import make_engine, run
from test_resume import clockless, interrupted
from test_training import Notes
from tiny import make_settings, make_tables

CONFIG = PropagationConfig(neighbours=10)
FP32 = Hardware("cpu", "fp32", "eager", 1)


def make_vectors(labeled, own, foreign, seed=0, classes=3):
    """Return vectors around a centre per class, and unlabelled ones around two centres afar."""
    rng = np.random.default_rng(seed)
    centres = np.eye(12)[: classes + 2]
    kinds = np.arange(labeled) % classes, rng.integers(0, classes, own)
    places = np.concatenate([*kinds, classes + rng.integers(0, 2, foreign)])
    vectors = centres[places] + 0.15 * rng.normal(size=(len(places), 12))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[:labeled], kinds[0], vectors[labeled:]


@pytest.mark.parametrize("labeled", [9, 30, 3 * PROBES])
def test_texts_of_another_kind_are_out_of_reach(labeled):
    given, labels, pool = make_vectors(labeled, 600, 400)
    reached = within_reach(given, labels, pool, CONFIG, 0)
    assert reached[:600].mean() > 0.97
    assert reached[600:].mean() < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_hardly_any_text_is_where_all_are_of_the_same_kind(seed):
    given, labels, pool = make_vectors(30, 600, 0, seed)
    assert within_reach(given, labels, pool, CONFIG, 0).mean() > 0.97


def test_what_a_labelled_text_has_itself_does_not_count():
    """Labelled texts that nothing joins do not tell what is out of reach: nothing is."""
    given = np.eye(4, dtype=np.float32)[:2]
    pool = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    config = PropagationConfig(neighbours=2)
    assert within_reach(given, np.array([0, 1]), pool, config, 0).all()


def test_labels_spread_among_those_within_reach_only(monkeypatch):
    engine = make_engine(recipe="nanonet")
    rows = engine.rows
    aside = rows.unlabeled[:5]
    lost = np.arange(len(rows.unlabeled) + 5) % 3 == 0
    monkeypatch.setattr(spreading, "within_reach", lambda *_: ~lost)
    monkeypatch.setattr(spreading, "FEWEST_REACHED", 2)
    seen = []
    original = spreading.label_texts

    def spy(vectors, labels, texts, settings, seed, names):
        seen.append((vectors, texts))
        return original(vectors, labels, texts, settings, seed, names)

    monkeypatch.setattr(spreading, "label_texts", spy)
    learner = engine.cohort["teacher"]
    given = (learner, replace(rows, aside=aside), engine.config, FP32)
    found = spreading.spread_labels(*given)
    (vectors, texts) = seen[0]
    kept = np.flatnonzero(~lost[: len(rows.unlabeled)])
    assert len(vectors) == len(texts) == len(rows.labeled) + len(kept)
    assert all(
        a is rows.unlabeled[i] for a, i in zip(texts[len(rows.labeled) :], kept, strict=True)
    )
    assert found.probabilities.shape == (len(rows.unlabeled), 3)
    gone = lost[: len(rows.unlabeled)]
    np.testing.assert_allclose(found.probabilities[gone], 1 / 3)
    assert (found.confidence[gone] == 0).all()
    assert found.confidence.max() == 1.0
    assert (found.reached == ~lost).all()

    # With hardly any left, all count.
    monkeypatch.setattr(spreading, "FEWEST_REACHED", 1000)
    found = spreading.spread_labels(*given)
    assert found.reached.all()


def lose(monkeypatch, share=3):
    """Let every so manieth unlabelled text be out of reach."""
    monkeypatch.setattr(
        spreading, "within_reach", lambda *given: np.arange(len(given[2])) % share != 0
    )
    monkeypatch.setattr(spreading, "FEWEST_REACHED", 2)


def drawn(engine: Engine, step: int) -> list[int]:
    ids = [id(row) for row in engine.rows.unlabeled]
    return [ids.index(id(row)) for row in engine._draw(step).unlabeled]


def test_what_is_out_of_reach_is_not_drawn(monkeypatch):
    lose(monkeypatch)
    engine = make_engine("training.steps=24", recipe="nanonet")
    run(engine)
    learnt, aside = engine.within_reach()
    assert learnt.tolist() == [i for i in range(len(engine.rows.unlabeled)) if i % 3]
    assert len(aside) == 0
    seen = {i for step in range(6, 24) for i in drawn(engine, step)}
    assert seen == set(learnt.tolist())
    batch = engine._draw(9)
    places = drawn(engine, 9)
    np.testing.assert_array_equal(
        batch.soft_labels.probabilities, engine.soft_labels.probabilities[places]
    )


def test_all_rows_are_there_before_labels_spread():
    engine = make_engine(recipe="nanonet")
    assert engine.soft_labels is None
    assert engine.within_reach()[0].tolist() == list(range(len(engine.rows.unlabeled)))
    engine.soft_labels = SoftLabels(np.zeros((1, 3)), np.zeros(1))  # as of tasks on sentences
    assert engine.within_reach()[0].tolist() == list(range(len(engine.rows.unlabeled)))


def test_a_run_says_what_it_has_left_out_and_resumes(tmp_path, tiny_bert_folder, monkeypatch):
    lose(monkeypatch)
    monkeypatch.setattr(prepare_module, "FEWEST_ASIDE", 1)
    config, notes = make_settings(tiny_bert_folder), Notes()
    tables = make_tables(unlabeled=30)
    summary = train(config, lambda: tables, tmp_path / "run", display=notes)
    total, aside = summary["unlabeled_used"], summary["unlabeled_aside"]
    assert (total + aside, aside) == (90, 11)
    lost = len(range(0, total, 3))
    assert summary["unlabeled_out_of_reach"] == lost
    warned = [line for line in notes.warned if "unlike all labelled ones" in line]
    assert warned == [
        f"{lost} of {total} unlabelled texts are unlike all labelled ones: once labels had"
        " spread, nothing was learnt from them; label some of them if they matter"
    ]
    kept = aside - len([i for i in range(total, total + aside) if i % 3 == 0])
    assert f"on {kept} unlabelled texts kept aside" in summary["selection"]["criterion"]
    for step in (2, 4):  # before and after labels have spread
        interrupted(config, tmp_path / f"at-{step}", step, tables=lambda: tables)
        resumed = train(config, lambda: tables, tmp_path / f"at-{step}", mode="resume")
        assert clockless(resumed) == clockless(summary)
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["unlabeled_out_of_reach"] == lost


def test_texts_kept_aside_that_are_out_of_reach_are_not_asked(monkeypatch):
    engine = make_engine(recipe="nanonet")
    rows = engine.rows
    engine.rows = replace(rows, aside=rows.unlabeled[:4])
    reached = np.ones(len(rows.unlabeled) + 4, dtype=bool)
    engine.soft_labels = SoftLabels(np.zeros((1, 3)), np.zeros(1), reached)

    def asked():
        table = SimpleNamespace(encoded=SimpleNamespace(ids=rows.unlabeled))
        outputs = SimpleNamespace(outputs=SimpleNamespace(level="document"))
        prepared = SimpleNamespace(
            tables={"unlabeled": table, "labeled": table},
            aside=engine.rows.aside,
            engine=engine,
            task=outputs,
        )
        sample, what = sample_rows(prepared, 0)
        return {id(row) for row in sample}, what

    ids = [id(row) for row in rows.unlabeled[:4]]
    assert asked() == (set(ids), "4 unlabelled texts kept aside")
    reached[-4:-2] = False
    assert asked() == (set(ids[2:]), "2 unlabelled texts kept aside")
    reached[-4:] = False
    assert asked()[0] == set(ids)  # none left: all of them

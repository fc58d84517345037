"""The guard: learners that unlabelled text leads astray are put back, and it is said."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nanonet.core.errors import RunError
from nanonet.data.readers import table_from_lists
from nanonet.export import export
from nanonet.runtime.predictor import Predictor
from nanonet.scoring import suggest_by_run
from nanonet.training.checkpoint import list_checkpoints
from nanonet.training.evaluation import embed
from nanonet.training.guard import MOST_ALARMS, SLOWER, Alarm, Guard, Health, make_guard
from nanonet.training.outcome import Answers, find_astray, select
from nanonet.training.train import train
from test_engine import FP32, make_engine, run, tensors
from test_resume import clockless, interrupted
from test_training import Notes, losses
from tiny import make_settings, make_tables, make_texts

EVERY = "guard.every=0.1"  # each of the few steps of these runs
WELL = Health(3.0, 1.0, 1.0, 1.0)
COLLAPSED = Health(1.0, 1.0, 1.0, 1.0)


def watched(*settings, **kind):
    """Return a cohort with a guard that has its reference."""
    engine = make_engine(EVERY, *settings, **kind)
    rows = engine.rows
    engine.guard = make_guard(rows.labeled, rows.labels, rows.unlabeled, engine.config, FP32)
    return engine


def always(monkeypatch, *health, of="student1"):
    """Let a learner's health be these at each look in turn, the last one ever after; others do
    well."""
    left = list(health)

    def examine(self, cohort):
        now = left.pop(0) if len(left) > 1 else left[0]
        return {name: now if name == of else WELL for name in cohort}

    monkeypatch.setattr(Guard, "_examine", examine)


@pytest.fixture
def three_classes(monkeypatch):
    """A reference that gives three classes."""
    answers = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    monkeypatch.setattr(Guard, "refer", lambda self, *_: setattr(self, "_reference", answers))


@pytest.mark.parametrize(
    ("health", "best", "said"),
    [
        (WELL, WELL, None),
        (COLLAPSED, WELL, "gives texts about 1.0 classes, where the labels alone give 3.0"),
        (replace(WELL, classes=1.9, remembered=0.7), WELL, "gives texts about 1.9 classes"),
        (replace(WELL, classes=2.1, remembered=0.76), WELL, None),
        (replace(WELL, classes=1.12), WELL, None),  # rare classes may be what is right
        (replace(WELL, classes=1.08), WELL, "gives texts about 1.1 classes"),
        (replace(WELL, remembered=0.7), WELL, "is right on 70% of labelled texts after 100%"),
        (replace(WELL, remembered=0.8), WELL, None),
        (replace(WELL, remembered=0.5), replace(WELL, remembered=0.6), None),
        (replace(WELL, kept=0.6), WELL, "answers 60% of clear texts as the labels alone do after"),
        (replace(WELL, kept=0.8), WELL, None),
        (replace(WELL, kept=0.3), replace(WELL, kept=0.5), None),  # it never agreed much
        (replace(WELL, agreed=0.6), WELL, "agrees with others on 60% of texts after 100%"),
        (replace(WELL, agreed=0.8), WELL, None),
    ],
)
def test_what_is_an_alarm(three_classes, health, best, said):
    guard = Guard([], np.zeros(40, dtype=np.int64), [], 0.1, 0, FP32)
    guard.refer(None, None)
    reason = guard._what_is_wrong(health, best, most_alone=True)
    assert reason is None if said is None else reason.startswith(said)


@pytest.mark.parametrize(
    ("agreed", "alone"),
    [
        ({"teacher": 0.6, "student1": 0.6, "student2": 0.3}, ["student2"]),
        ({"teacher": 0.3, "student1": 0.3, "student2": 0.6}, []),  # either may be wrong
        ({"teacher": 0.3, "student1": 0.3}, []),
        ({"teacher": 1.0}, []),
    ],
)
def test_only_who_agrees_least_is_alone(monkeypatch, three_classes, agreed, alone):
    """Of two that no longer agree, one may be right."""
    guard = Guard([], np.zeros(40, dtype=np.int64), [], 0.1, 0, FP32)
    guard.refer(None, None)
    guard._best = dict.fromkeys(agreed, WELL)
    found = {name: replace(WELL, agreed=value) for name, value in agreed.items()}
    monkeypatch.setattr(Guard, "_examine", lambda *_: found)
    assert guard.astray(agreed) == alone


def test_few_labelled_texts_may_be_forgotten(three_classes):
    """One of three texts is a third, and no evidence."""
    guard = Guard([], np.zeros(3, dtype=np.int64), [], 0.1, 0, FP32)
    guard.refer(None, None)
    assert guard._what_is_wrong(replace(WELL, remembered=0.0), WELL, most_alone=False) is None


def test_a_sound_run_is_what_it_is_without_a_guard(monkeypatch):
    engine, plain = watched(), make_engine(EVERY)
    always(monkeypatch, WELL)
    assert run(engine).rows[-1].losses == run(plain).rows[-1].losses
    assert engine.guard.alarms == []
    found, expected = tensors(engine), tensors(plain)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(engine.guard.health) == set(engine.cohort)
    assert engine.guard.astray(engine.cohort) == []


def test_who_is_astray_takes_back_what_it_was(monkeypatch, three_classes):
    engine = watched()
    always(monkeypatch, WELL, WELL, WELL, COLLAPSED)
    at = {}
    seen = Guard.look

    def look(self, step, cohort):
        at[step] = tensors(engine)
        found = seen(self, step, cohort)
        for name, tensor in tensors(engine).items():
            back = 2 if name.startswith("student1.") and step > 2 else step
            assert torch.equal(tensor, at[back][name]), (step, name)
        return found

    monkeypatch.setattr(Guard, "look", look)
    run(engine)
    steps = engine.config.training.steps
    assert steps > 2 + MOST_ALARMS  # and then it rests
    alarms = engine.guard.alarms
    assert [(a.step, a.learner, a.back_to) for a in alarms] == [
        (step, "student1", 2) for step in range(3, 3 + MOST_ALARMS)
    ]
    assert alarms[0].describe() == (
        "step 3: student1 gives texts about 1.0 classes, where the labels alone give 3.0; back to"
        " step 2"
    )
    others = [n for n in at[1] if not n.startswith("student1.")]
    assert any(not torch.equal(at[2][n], at[3][n]) for n in others)  # they go on
    moved = [n for n in at[1] if n.startswith("student1.") and not torch.equal(at[2][n], at[3][n])]
    assert moved  # it had learnt, before it was put back


def test_each_alarm_makes_a_learner_slower(monkeypatch, three_classes):
    engine = watched("training.log_every=1")
    always(monkeypatch, WELL, WELL, COLLAPSED)
    record, plain = run(engine), run(make_engine("training.log_every=1"))
    for before, (row, expected) in enumerate(zip(record.rows, plain.rows, strict=True)):
        count = max(0, before - 1)  # alarms before this step
        factor = SLOWER**count if count < MOST_ALARMS else 0.0
        for part in ("encoder", "head"):
            rates = (r.learning_rates for r in (row, expected))
            ours, theirs = (each[f"student1.{part}"] for each in rates)
            assert ours == pytest.approx(factor * theirs, abs=1e-12)
        assert row.learning_rates["student2.head"] == expected.learning_rates["student2.head"]


def test_who_is_astray_learns_less_from_unlabelled_text():
    engine, plain = watched(), make_engine()
    engine.guard.alarms = [Alarm(1, "student1", "is astray", 0)]
    gradients = {}
    for each in (engine, plain):
        batch = each._draw(0)
        phase = next(p for p in each.plan.phases if p.name == "students")
        kept = {}
        each._update = lambda *_, each=each, kept=kept: kept.update(
            {
                f"{name}.{n}": p.grad.clone()
                for name in each.cohort.students
                for n, p in each.cohort[name].own_parameters().items()
            }
        )
        each._run_phase(replace(phase, objectives=only_unlabeled(phase)), batch, 0, {})
        gradients[each is engine] = kept
    for name, plainly in gradients[False].items():
        factor = SLOWER if name.startswith("student1.") else 1.0
        torch.testing.assert_close(gradients[True][name], factor * plainly)
    assert any(g.abs().max() > 0 for g in gradients[False].values())


def only_unlabeled(phase):
    return {n: o for n, o in phase.objectives.items() if "unlabeled" in o.streams}


def test_a_real_collapse_is_seen_and_undone():
    """All texts become one class, by a head that says so."""
    engine = watched()
    engine.guard.refer(engine.cohort["teacher"], np.arange(len(engine.rows.unlabeled)))
    for name in engine.cohort:  # learners that answer as the reference does
        fit_head(engine, name)
    assert engine.guard.look(1, engine.cohort) == []
    assert engine.guard.astray(engine.cohort) == []
    before = tensors(engine)
    with torch.no_grad():
        engine.cohort["student2"].head.linear.bias[1] += 100.0
    (alarm,) = engine.guard.look(2, engine.cohort)
    assert (alarm.learner, alarm.back_to) == ("student2", 1)
    assert "gives texts about 1.0 classes" in alarm.reason
    assert all(torch.equal(t, before[n]) for n, t in tensors(engine).items())


def fit_head(engine, name):
    """Give a learner's head what makes it answer as the reference does."""
    learner, guard = engine.cohort[name], engine.guard
    vectors = embed(learner, guard._rows, FP32)
    model = LogisticRegression(C=1e6, max_iter=10_000)
    model.fit(vectors, guard._reference.argmax(1))
    with torch.no_grad():
        learner.head.linear.weight.copy_(torch.from_numpy(model.coef_) / learner.head.scale)
        learner.head.linear.bias.copy_(torch.from_numpy(model.intercept_) / learner.head.scale)


def test_nobody_looks_before_there_is_a_reference():
    engine = watched()
    assert engine.guard.look(1, engine.cohort) == []
    assert engine.guard.health == {}


def test_nobody_looks_where_nothing_can_be_asked():
    engine = watched()
    engine.guard.refer(engine.cohort["teacher"], np.empty(0, dtype=np.int64))
    assert engine.guard.look(1, engine.cohort) == []


@pytest.mark.parametrize(
    ("every", "steps", "due"),
    [(0.1, 200, range(20, 201, 20)), (0.3, 10, [3, 6, 9, 10]), (0.01, 6, range(1, 7))],
)
def test_when_it_looks(every, steps, due):
    guard = Guard([], np.zeros(1, dtype=np.int64), [], every, 0, FP32)
    assert [s for s in range(1, steps + 1) if guard.is_due(s, steps)] == list(due)


LOGITS = {
    "teacher": np.array([[3.0, 0.0], [0.0, 3.0]]),
    "student1": np.array([[2.0, 0.0], [0.0, 2.0]]),
    "student2": np.array([[1.0, 0.0], [0.0, 0.5]]),
}


@pytest.mark.parametrize(
    ("astray", "selected", "how"),
    [
        ([], "student1", "agreement"),
        (["student1"], "student2", "the only sound student"),
        (["student1", "student2"], "teacher", "the only sound learner"),
        (["student1", "student2", "teacher"], "student1", "agreement"),  # nobody is any better
        (["teacher"], "student2", "agreement"),  # which the teacher would have outvoted
    ],
)
@pytest.mark.parametrize("tables", [{}, {"validation": SimpleNamespace(score=None)}])
def test_who_is_astray_does_not_ship(astray, selected, how, tables):
    prepared = SimpleNamespace(
        tables=tables,
        engine=SimpleNamespace(guard=SimpleNamespace(astray=lambda cohort: astray)),
        cohort=SimpleNamespace(students=["student1", "student2"], learners=LOGITS),
        start=SimpleNamespace(settled=False),
    )
    found = find_astray(prepared)
    if tables:  # labels know better
        assert found == ()
        return
    kept = {name: values for name, values in LOGITS.items() if name not in found}
    chosen = select(prepared, Answers(kept, None, "2 texts", 2))
    assert chosen.selected == selected
    assert chosen.criterion.startswith(how)


def test_who_is_astray_has_no_say_in_calibration(tmp_path, tiny_bert_folder, monkeypatch):
    """Two students that went astray: the teacher ships, and as it is."""
    monkeypatch.setattr(Guard, "astray", lambda self, cohort: cohort.students)
    notes = Notes()
    config = make_settings(tiny_bert_folder, EVERY)
    found = train(config, make_tables, tmp_path / "run", display=notes)
    assert found["selected"] == "teacher"
    assert found["guard"]["astray"] == ["student1", "student2"]
    assert found["calibration"]["temperature"] == 1.0
    assert any("student1 and student2 ended astray" in line for line in notes.warned)
    export(tmp_path / "run", tmp_path / "bundle")
    texts, _ = make_texts(3, seed=7)
    assert len(Predictor.load(tmp_path / "bundle")(texts)) == len(texts)
    assert suggest_by_run(tmp_path / "run", table_from_lists(texts), 2) is not None


def test_a_run_tells_of_alarms_and_continues_bit_identically(
    tmp_path, tiny_bert_folder, monkeypatch
):
    """Every learner is sound at the first look, and no more afterwards."""
    monkeypatch.setattr(
        Guard,
        "_what_is_wrong",
        lambda _, health, best, alone: None if best is health else "is tried",
    )
    config = make_settings(
        tiny_bert_folder, EVERY, "training.steps=12", "training.checkpoint_every=1"
    )
    notes = Notes()
    expected = train(config, make_tables, tmp_path / "whole", display=notes)
    alarms = expected["guard"]["alarms"]
    assert {alarm["learner"] for alarm in alarms} == {"teacher", "student1", "student2"}
    for alarm in alarms:
        assert any(Alarm(**alarm).describe() == line for line in notes.warned)
    steps = sorted({alarm["step"] for alarm in alarms})
    for number, step in enumerate((steps[0] - 1, steps[0], steps[0] + 1)):
        out = tmp_path / f"parts{number}"
        interrupted(config, out, step)
        summary = train(config, make_tables, out, mode="resume")
        assert clockless(summary) == clockless(expected)
        name = "learners.safetensors"
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert losses(out) == losses(tmp_path / "whole")


def test_a_checkpoint_without_the_guards_part_is_refused(tmp_path, tiny_bert_folder):
    config, out = make_settings(tiny_bert_folder, EVERY), tmp_path / "run"
    interrupted(config, out, 3)
    newest = list_checkpoints(out / "checkpoints")[-1]
    (newest / "guard.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"step-000003 cannot be used.*delete it"):
        train(config, make_tables, out, mode="resume")


@pytest.mark.parametrize(
    ("settings", "tables"),
    [(["guard.every=0"], {}), ([], {"unlabeled": 0})],
)
def test_without_a_guard_the_summary_says_so(tmp_path, tiny_bert_folder, settings, tables):
    config = make_settings(tiny_bert_folder, *settings)
    train(config, lambda: make_tables(**tables), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["guard"] is None

"""One step and the loop, on cohorts in memory."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from nanonet.core.config import PhaseConfig, TrainingConfig, ViewConfig
from nanonet.core.errors import ConfigError, RunError
from nanonet.models import encoders
from nanonet.models.attention import WATCHED, register_attention
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import build_cohort
from nanonet.models.encoders import wrap_model
from nanonet.models.peft import PEFT
from nanonet.objectives.mutual import Mutual
from nanonet.objectives.supervised import Supervised
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.checkpoint import Position
from nanonet.training.device import (
    Hardware,
    choose_hardware,
    release_memory,
    shrink_frozen,
)
from nanonet.training.display import (
    ConsoleDisplay,
    LoggingDisplay,
    SilentDisplay,
    _losses_table,
)
from nanonet.training.engine import Engine
from nanonet.training.evaluation import predict_logits
from nanonet.training.optim import make_optimizer, schedule_factor
from nanonet.training.plan import Phase, make_plan
from nanonet.training.rows import TrainingRows
from nanonet.training.step import Batch, PhaseStep, make_chunks
from nanonet.training.stopping import StopRequest, stop_on_interrupt
from tiny import (
    AT_ONCE,
    bert_config,
    make_model,
    make_settings,
    make_tables,
    make_tokenizer,
    modernbert_config,
)

FP32 = Hardware("cpu", "fp32", "eager", 1)
THREE = ["cohort.students=3", "cohort.layer_map=[[1, 2], [2, 3], [3, 4]]"]
FULL_HIDDEN = "phases.students.objectives.representation_distillation.level=hidden"


def dropout(share: float) -> list[str]:
    """Settings that give all learners dropout."""
    return [f"views.dropout={share}", f"views.learners.teacher.dropout={share}"]


class Record:
    """Keeps what the loop tells."""

    def __init__(self, on_step=None) -> None:
        self.rows, self.positions, self.steps = [], [], []
        self._on_step = on_step

    def on_step(self, step):
        self.steps.append(step)
        if self._on_step:
            self._on_step(step)

    def on_log(self, row):
        self.rows.append(row)

    def on_checkpoint(self, position):
        self.positions.append(position)


def make_engine(*settings: str, recipe=AT_ONCE, model=bert_config, unlabeled=10, heads=True):
    config = make_settings("in memory", *settings, recipe=recipe)
    plan = make_plan(config, has_unlabeled=bool(unlabeled))
    stock = make_model(model())
    if plan.watches_attention:
        register_attention()
        stock.set_attn_implementation(WATCHED)
    cohort = build_cohort(Backbone("tiny", wrap_model(stock), "", "mean", ""), config, 3)
    if heads:
        generator = torch.Generator().manual_seed(1)
        for name in cohort:
            for parameter in cohort[name].head.parameters():
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    tables = make_tables(unlabeled=unlabeled)
    tokenizer = TextTokenizer(make_tokenizer().backend_tokenizer.to_str(), config.data.max_length)
    pool = tokenizer.encode(tables.unlabeled.texts).ids if unlabeled else []
    rows = TrainingRows(
        tokenizer.encode(tables.labeled.texts).ids, np.array(tables.labeled.labels), pool
    )
    return Engine(cohort, plan, rows, config, FP32)


def run(engine, record=None, stop=None, start=None):
    record = record or Record()
    engine.run(start or Position(0, 0.0, {}, {}), record, stop or StopRequest())
    return record


def tensors(engine) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in engine.cohort.own_tensors().items()}


def same(a, b, prefix: str = "") -> bool:
    return all(torch.equal(a[n], b[n]) for n in a if n.startswith(prefix))


def phase_step(engine, name: str, step: int = 0, **changes):
    phase = next(p for p in engine.plan.phases if p.name == name)
    batch = changes.get("batch") or engine._draw(step)
    return phase, PhaseStep(
        engine.cohort,
        phase,
        batch,
        engine._views | changes.get("views", {}),
        changes.get("seed", 0),
        step,
        engine.config.training.steps,
        engine.plan.parts,
        changes.get("targets"),
    )


def gradients(engine, learners, phase_name: str, weights: bool = True):
    """Gradients of the summed losses of some learners of a phase, by full name."""
    phase, view = phase_step(engine, phase_name)
    total = sum(
        (objective.weight if weights else 1.0) * objective.loss(learner, view)
        for learner in learners
        for objective in phase.objectives.values()
    )
    total.backward()
    out = {}
    for name in engine.cohort:
        for key, parameter in engine.cohort[name].own_parameters().items():
            if parameter.grad is not None:
                out[f"{name}.{key}"] = parameter.grad.clone()
            parameter.grad = None
    return out


@pytest.mark.parametrize("settings", [[], [FULL_HIDDEN], THREE])
def test_one_backward_of_all_losses_equals_separate_ones(settings):
    engine = make_engine(*settings)
    students = engine.cohort.students
    together = gradients(engine, students, "students")
    apart = {}
    for student in students:
        own = gradients(engine, [student], "students")
        assert {name.split(".")[0] for name in own} == {student}  # nobody else gets a gradient
        apart |= own
    assert together.keys() == apart.keys()
    assert max(float((together[n] - apart[n]).abs().max()) for n in apart) == 0.0
    assert any(g.abs().max() > 0 for g in together.values())


CHECKPOINTING = "training.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (bert_config, []),
        (modernbert_config, []),
        (bert_config, ["cohort.student_peft=full", FULL_HIDDEN]),
        (bert_config, ["cohort.teacher_peft=head"]),
        (bert_config, dropout(0.3)),
        (bert_config, ["views.adversarial=2", "views.token_cutoff=0.2"]),
        (bert_config, ["phases.students.objectives.attention_distillation.weight=1.0"]),
    ],
)
def test_gradient_checkpointing_changes_no_loss_and_no_weight(model, settings):
    plain, saving = (make_engine(*settings, *more, model=model) for more in ([], [CHECKPOINTING]))
    expected, found = run(plain), run(saving)
    assert [row.losses for row in found.rows] == [row.losses for row in expected.rows]
    for name, tensor in tensors(plain).items():
        torch.testing.assert_close(tensors(saving)[name], tensor, rtol=0.0, atol=0.0)


def test_gradient_checkpointing_keeps_what_goes_into_a_layer_only():
    def kept(*settings: str) -> int:
        """Return how many numbers a student's forward pass keeps."""
        numbers = 0

        def pack(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        _, view = phase_step(make_engine(*settings), "students")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            view.own("student1", "unlabeled")
        return numbers

    assert kept(CHECKPOINTING) < 0.5 * kept()


def test_only_what_learns_is_checkpointed(monkeypatch):
    engine, calls = make_engine(CHECKPOINTING), []
    real = encoders.checkpoint
    monkeypatch.setattr(
        encoders,
        "checkpoint",
        lambda *a, **k: calls.append(torch.is_grad_enabled()) or real(*a, **k),
    )
    _, view = phase_step(engine, "students")
    view.teacher("unlabeled")
    predict_logits(engine.cohort["student1"], engine.rows.labeled, FP32)
    assert calls == []
    view.own("student1", "unlabeled")
    assert calls
    assert all(calls)


def test_feedback_reaches_only_the_teacher():
    engine = make_engine("phases.teacher.objectives.feedback.weight=0.2")
    found = gradients(engine, ["teacher"], "teacher")
    assert {name.split(".")[0] for name in found} == {"teacher"}


def test_own_outputs_of_both_streams_are_those_of_each_stream_alone():
    engine = make_engine("views.token_cutoff=0", FULL_HIDDEN)
    _, view = phase_step(engine, "students")
    batch = engine._draw(0)
    learner = engine.cohort["student1"]
    for stream, rows in (("labeled", batch.labeled), ("unlabeled", batch.unlabeled)):
        alone = learner.read(make_chunks(rows, 0.0, "cpu"), keep=frozenset({"hidden_states"}))
        ours = view.own("student1", stream)
        torch.testing.assert_close(ours.logits, alone.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.pooled, alone.pooled, rtol=0, atol=1e-5)
        assert len(ours.hidden_states) == 3
        for a, b in zip(ours.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
@pytest.mark.parametrize("level", ["pooled", "hidden"])
@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_padding_changes_no_loss(model, level, distance):
    name = "phases.students.objectives.representation_distillation"
    losses = []
    for padding in (0.0, 1.0):
        engine = make_engine(
            f"{name}.level={level}",
            f"{name}.distance={distance}",
            f"training.max_padding={padding}",
            "views.token_cutoff=0",
            model=model,
        )
        phase, view = phase_step(engine, "students")
        chunks = view._batch.chunks(phase.streams)
        losses.append([o.loss("student1", view).item() for o in phase.objectives.values()])
        losses[-1].append(sum(int((c.attention_mask == 0).sum()) for c in chunks))
    assert losses[0].pop() < losses[1].pop()  # the second one did pad more
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert min(losses[0]) > 1e-3


def test_targets_are_computed_once_without_gradient_and_view():
    engine = make_engine("views.token_cutoff=0.5")
    _, view = phase_step(engine, "students")
    target = view.teacher("unlabeled")
    assert view.teacher("unlabeled") is target
    assert not target.logits.requires_grad
    ids = engine._draw(0).unlabeled
    expected = predict_logits(engine.cohort["teacher"], ids, FP32)
    torch.testing.assert_close(target.logits, torch.from_numpy(expected), rtol=0, atol=1e-4)
    assert not view.peer("student2", "unlabeled").logits.requires_grad


def visible(engine, learner: str, step: int = 0, seed: int = 0, share: float = 0.4):
    """Chunks, the masks that a learner sees them under, and the number of labelled rows."""
    views = {name: ViewConfig(share) for name in engine.cohort.students}
    phase, view = phase_step(engine, "students", step, seed=seed, views=views)
    batch = engine._draw(0)  # the same rows whatever the step, to compare the masks
    chunks = batch.chunks(phase.streams)
    seen = view._views_of(learner, chunks, True)
    return chunks, seen and [v.mask for v in seen], len(batch.labeled)


def test_views_depend_on_seed_step_and_student_only_and_spare_labelled_rows():
    engine = make_engine()
    chunks, masks, labeled = visible(engine, "student1")
    again = visible(engine, "student1")[1]
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
    others = [
        visible(engine, "student2")[1],
        visible(engine, "student1", step=1)[1],
        visible(engine, "student1", seed=1)[1],
    ]
    for other in others:
        assert any(not torch.equal(a, b) for a, b in zip(masks, other, strict=True))
    hidden = 0
    for chunk, mask in zip(chunks, masks, strict=True):
        front = chunk.rows < labeled
        assert torch.equal(mask[front], chunk.attention_mask[front])
        assert (mask <= chunk.attention_mask).all()
        assert (mask[:, 0] == 1).all()
        hidden += int((chunk.attention_mask - mask).sum())
    assert hidden > 0
    assert visible(engine, "teacher")[1] is None
    assert visible(engine, "student1", share=0.0)[1] is None


def test_log_rows_are_means_and_checkpoints_come_in_time():
    every = run(make_engine("training.log_every=1"))
    record = run(make_engine())
    assert record.steps == [1, 2, 3, 4, 5, 6]
    assert [r.step for r in record.rows] == [3, 6]
    assert [p.step for p in record.positions] == [2, 4, 6]
    assert set(record.positions[0].counts.values()) == {2}
    assert record.positions[1].sums.keys() == record.positions[1].counts.keys()
    assert set(record.positions[1].counts.values()) == {1}
    assert (record.positions[2].sums, record.positions[2].counts) == ({}, {})
    for i, row in enumerate(record.rows):
        single = every.rows[3 * i : 3 * i + 3]
        assert row.losses.keys() == single[0].losses.keys()
        for name, value in row.losses.items():
            assert value == pytest.approx(np.mean([s.losses[name] for s in single]), rel=1e-6)
    assert set(record.rows[0].losses) == {
        "teacher.supervised",
        *(
            f"student{k}.{o}"
            for k in (1, 2)
            for o in (
                "supervised",
                "prediction_distillation",
                "representation_distillation",
                "mutual",
            )
        ),
    }


def test_positions_count_every_loss_by_itself():
    start = Position(0, 0.0, {}, {})
    first = start.after({"a": 1.0}, 0.5)
    second = first.after({"a": 2.0, "b": 5.0}, 0.7)
    assert second == Position(2, 0.7, {"a": 3.0, "b": 5.0}, {"a": 2, "b": 1})
    assert second.after({}, 0.9) == Position(3, 0.9, second.sums, second.counts)
    assert first == Position(1, 0.5, {"a": 1.0}, {"a": 1})  # earlier positions stay as they were
    assert start == Position(0, 0.0, {}, {})


def test_a_phase_that_rests_neither_learns_nor_logs():
    phases = ["phases.teacher.stop=0.5", "phases.students.start=0.5"]
    every = run(make_engine(*phases, "training.log_every=1"))
    for row in every.rows:
        active = {"teacher"} if row.step <= 3 else {"student1", "student2"}
        assert {name.split(".")[0] for name in row.losses} == active
        assert {name.split(".")[0] for name in row.learning_rates} == active
    record = run(make_engine(*phases, "training.log_every=4"))
    for name, value in record.rows[0].losses.items():
        seen = [r.losses[name] for r in every.rows[:4] if name in r.losses]
        assert len(seen) == (3 if name.startswith("teacher") else 1)
        assert value == pytest.approx(np.mean(seen), rel=1e-6)

    engine = make_engine(*phases)
    start, halfway = tensors(engine), {}

    def keep(step):
        if step == 3:
            halfway.update(tensors(engine))

    run(engine, Record(keep))
    end = tensors(engine)
    assert same(start, halfway, "student")
    assert not same(start, halfway, "teacher")
    assert same(halfway, end, "teacher")
    assert not same(halfway, end, "student1.")
    assert not same(halfway, end, "student2.")


def test_rates_warm_up_and_fall_within_the_window_of_the_phase():
    engine = make_engine(
        "training.steps=12",
        "training.log_every=1",
        "phases.teacher.stop=0.5",
        "phases.students.start=0.5",
        "phases.students.warmup=0.5",
    )
    rows = run(engine).rows
    teacher = [row.learning_rates.get("teacher.head") for row in rows]
    student = [row.learning_rates.get("student1.head") for row in rows]
    expected = [1e-2 * (6 - i) / 6 for i in range(6)]
    assert teacher == [*(pytest.approx(e) for e in expected), *[None] * 6]
    expected = [1e-2 * f for f in (0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)]
    assert student == [*[None] * 6, *(pytest.approx(e) for e in expected)]


def test_the_weight_ramps_up_within_the_window_of_the_phase(monkeypatch):
    asked = []
    monkeypatch.setattr(
        Mutual, "weight_at", lambda self, progress: asked.append(progress) or self.weight
    )
    run(make_engine("phases.students.start=0.5"))
    assert asked == pytest.approx([p for p in (0, 1 / 3, 2 / 3) for _ in range(2)])


def test_unlabelled_rows_are_drawn_only_for_phases_that_read_them():
    engine = make_engine("phases.students.start=0.5")
    assert [len(engine._draw(step).unlabeled) for step in range(6)] == [0, 0, 0, 8, 8, 8]
    # Which rows a step draws does not depend on who learns.
    assert all(
        np.array_equal(a, b)
        for step in (3, 5)
        for a, b in zip(
            engine._draw(step).unlabeled, make_engine()._draw(step).unlabeled, strict=True
        )
    )


def test_steps_at_which_everybody_rests():
    engine = make_engine("phases.all.start=0.5", "training.log_every=2", recipe="supervised")
    before, kept = tensors(engine), {}

    def keep(step):
        if step == 3:
            kept.update(tensors(engine))

    record = run(engine, Record(keep))
    assert same(before, kept)
    assert (record.rows[0].losses, record.rows[0].learning_rates) == ({}, {})
    for display in (ConsoleDisplay(quiet=True), LoggingDisplay(SilentDisplay(), Path("no"))):
        display.on_log(record.rows[0])  # there is nothing to show, which is no error
    assert _losses_table(record.rows[0]).row_count == 0
    assert record.rows[1].losses  # of step 4 alone
    assert not same(before, tensors(engine))


@pytest.mark.parametrize(
    ("start", "stop", "steps", "expected"),
    [
        (0.0, 1.0, 4, [0.0, 0.25, 0.5, 0.75]),
        (0.25, 1.0, 4, [None, 0.0, 1 / 3, 2 / 3]),
        (0.0, 0.25, 4, [0.0, None, None, None]),
        (0.5, 0.75, 8, [*[None] * 4, 0.0, 0.5, None, None]),
        (0.25, 1.0, 1, [0.0]),  # too few steps for a share of them
        (0.0, 0.25, 1, [None]),
        (0.3, 0.6, 10, [*[None] * 3, 0.0, 1 / 3, 2 / 3, *[None] * 4]),
    ],
)
def test_windows_of_phases(start, stop, steps, expected):
    phase = Phase("p", ("teacher",), {}, PhaseConfig("all", start=start, stop=stop))
    found = [phase.progress(step, steps) for step in range(steps)]
    assert found == [e if e is None else pytest.approx(e) for e in expected]
    assert list(phase.window(steps)) == [i for i, e in enumerate(expected) if e is not None]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 200])
def test_windows_that_meet_neither_overlap_nor_leave_a_gap(steps):
    for share in (0.1, 0.25, 1 / 3, 0.5, 0.9):
        before, after = (
            Phase("p", (), {}, PhaseConfig("all", **part))
            for part in ({"stop": share}, {"start": share})
        )
        for step in range(steps):
            found = [p.progress(step, steps) for p in (before, after)]
            assert found.count(None) == 1


def test_a_window_without_a_single_step_is_refused():
    with pytest.raises(ConfigError, match="'student1' nothing to learn"):
        make_engine("phases.students.start=0.99")


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_the_teacher_read_to_learn_is_its_target_later_in_the_step(share):
    engine = make_engine(
        *dropout(share),
        "phases.teacher.objectives.feedback.weight=0",
        "phases.teacher.objectives.prediction_distillation.weight=1",  # to read both streams
        FULL_HIDDEN,
    )
    teacher = engine.cohort["teacher"]
    ids = engine._draw(0).unlabeled
    engine.cohort.train(share > 0.0)
    targets: dict = {}
    before = predict_logits(teacher, ids, FP32)
    phase, view = phase_step(engine, "teacher", targets=targets)
    own = view.own("teacher", "unlabeled")
    with torch.no_grad():
        for parameter in teacher.own_parameters().values():
            parameter += 0.1  # its update
    after = predict_logits(teacher, ids, FP32)
    target = phase_step(engine, "students", targets=targets)[1].teacher("unlabeled")
    assert phase.streams == {"labeled", "unlabeled"}
    assert not np.allclose(before, after, atol=1e-2)
    expected = before if share == 0.0 else after
    np.testing.assert_allclose(target.logits.numpy(), expected, atol=1e-4)
    assert torch.equal(own.logits, target.logits) == (share == 0.0)
    assert len(target.hidden_states) == 5
    for tensor in (target.logits, target.pooled, *target.hidden_states):
        assert not tensor.requires_grad


def test_hidden_states_are_kept_only_where_they_are_read():
    for settings, count in (((), 0), ((FULL_HIDDEN,), 3)):
        engine = make_engine(*settings)
        assert engine.plan.parts == (frozenset({"hidden_states"}) if count else frozenset())
        _, view = phase_step(engine, "students")
        assert len(view.own("student1", "unlabeled").hidden_states) == count


def test_learning_lowers_the_supervised_loss():
    gentle = "phases.students.learning_rate=0.01"  # the encoder is random
    settings = ("training.steps=30", "training.log_every=10", gentle)
    rows = run(make_engine(*settings, heads=False)).rows
    for learner in ("teacher", "student1", "student2"):
        name = f"{learner}.supervised"
        assert rows[-1].losses[name] < 0.85 * rows[0].losses[name]


def test_dropout_is_used_in_training_and_depends_only_on_seed_and_step():
    plain = make_engine(recipe="supervised")
    run(plain)
    runs = []
    for noise in (0, 1):
        torch.manual_seed(noise)  # the global generator's state must not matter
        engine = make_engine(*dropout(0.3), recipe="supervised")
        run(engine)
        runs.append(tensors(engine))
        assert not engine.cohort.training
    assert same(*runs)
    assert not same(runs[0], tensors(plain))


def test_a_run_in_parts_is_the_run_in_one():
    whole = make_engine(*dropout(0.2), "training.log_every=4")
    expected = run(whole)
    part = make_engine(*dropout(0.2), "training.log_every=4")
    stop = StopRequest()

    def stop_at_three(step):
        stop.reason = "interrupted" if step == 3 else ""

    first = run(part, Record(stop_at_three), stop)
    assert [p.step for p in first.positions] == [2, 3]
    assert first.rows == []  # a stop completes no log row
    second = run(part, start=first.positions[-1])
    assert same(tensors(whole), tensors(part))
    assert [r.losses for r in second.rows] == [r.losses for r in expected.rows]
    assert [r.step for r in second.rows] == [4, 6]


def test_the_clock():
    stop = StopRequest()
    stop.check_clock(1e9, 0.0)
    assert stop.reason == ""
    stop.check_clock(59.0, 1.0)
    assert stop.reason == ""
    stop.check_clock(60.0, 1.0)
    assert stop.reason == "time limit"
    stop = StopRequest("interrupted")
    stop.check_clock(60.0, 1.0)
    assert stop.reason == "interrupted"
    record = run(make_engine("training.max_minutes=1e-9"))
    assert record.steps == [1]
    assert [p.step for p in record.positions] == [1]


def test_divergence_is_an_error_and_leaves_no_checkpoint(monkeypatch):
    monkeypatch.setattr(
        Supervised,
        "loss",
        lambda self, learner, step: step.own(learner, "labeled").logits.sum() / 0,
    )
    record = Record()
    with pytest.raises(RunError, match=r"diverged: the loss teacher\.supervised is .* at step 1"):
        run(make_engine(recipe="supervised"), record)
    assert record.positions == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_become_a_wish_and_the_second_one_interrupts(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopRequest()

    def interrupt_twice():
        with stop_on_interrupt(stop):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stop.reason == "interrupted"
            os.kill(os.getpid(), number)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_leave_signal_handlers_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with stop_on_interrupt(StopRequest()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, {0.0: 1.0, 0.25: 0.75, 0.99: 0.01}),
        ("linear", 0.2, {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5}),
        ("cosine", 0.0, {0.0: 1.0, 0.5: 0.5, 0.25: 0.8535534}),
        ("cosine", 0.5, {0.25: 0.5, 0.5: 1.0, 0.75: 0.5}),
        ("inverse_sqrt", 0.1, {0.05: 0.5, 0.1: 1.0, 0.4: 0.5}),
        ("inverse_sqrt", 0.0, {0.0: 1.0, 0.5: 1.0}),
        ("constant", 0.5, {0.25: 0.5, 0.9: 1.0}),
        ("linear", 1.0, {0.5: 0.5, 0.9: 0.9}),
    ],
)
def test_schedules(schedule, warmup, expected):
    config = PhaseConfig("all", schedule=schedule, warmup=warmup)
    for progress, factor in expected.items():
        assert schedule_factor(config, progress) == pytest.approx(factor)


@pytest.mark.parametrize("method", list(PEFT))
def test_a_rate_is_the_peft_method_s_unless_it_is_set(method):
    peaks = {}
    for rate in ("auto", "0.25"):
        settings = [f"cohort.{who}_peft={method}" for who in ("teacher", "student")]
        settings += [f"phases.{phase}.learning_rate={rate}" for phase in ("teacher", "students")]
        engine = make_engine(*settings, recipe="nanonet")
        optimizers = [make_optimizer(phase, engine.cohort) for phase in engine.plan.phases[1:]]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        peaks[rate] = {group["name"]: group["peak"] for group in groups}
    encoders = {f"{name}.encoder" for name in engine.cohort} if method != "head" else set()
    assert {name for name in peaks["auto"] if name.endswith(".encoder")} == encoders
    for name in encoders:
        own = PEFT.get(method)
        assert peaks["0.25"][name] == 0.25
        expected = own.teacher_rate if name.startswith("teacher") else own.student_rate
        assert peaks["auto"][name] == expected
    assert {peak for name, peak in peaks["auto"].items() if name.endswith("head")} == {1e-2}


def test_optimizer_groups():
    settings = ("phases.students.weight_decay=0.1", "cohort.student_peft=head")
    engine = make_engine(*settings, recipe="nanonet")
    assert list(engine.optimizers) == ["preparation", "teacher", "students"]
    first, teacher, students = (make_optimizer(p, engine.cohort) for p in engine.plan.phases)
    peaks = {g["name"]: g["lr"] for g in teacher.param_groups}
    assert {g["name"]: g["lr"] for g in first.param_groups} == peaks
    assert peaks == {"teacher.encoder": 5e-3, "teacher.head": 1e-2}
    assert [g["name"] for g in students.param_groups] == ["student1.head", "student2.head"]
    assert {g["weight_decay"] for g in students.param_groups} == {0.1}
    own = [p for name in engine.cohort for p in engine.cohort[name].own_parameters().values()]
    grouped = [p for o in (teacher, students) for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in own} == {id(p) for p in grouped}
    assert len(own) == len(grouped)


def test_chunks_are_padded_to_their_longest_row_only():
    ids = [np.arange(1, n + 1) for n in (3, 9, 4)]
    chunks = make_chunks(ids, 10.0, "cpu")
    assert [tuple(c.input_ids.shape) for c in chunks] == [(3, 9)]
    assert [tuple(c.input_ids.shape) for c in make_chunks(ids, 0.0, "cpu")] == [
        (1, 9),
        (1, 4),
        (1, 3),
    ]
    batch = Batch(ids, ids[:1], torch.zeros(3), 0.0, "cpu")
    assert batch.tokens == 19


def test_hardware_that_is_not_there():
    def refuse(expected, **settings):
        with pytest.raises(ConfigError, match=expected):
            choose_hardware(TrainingConfig(**settings))

    refuse("unknown device 'gpu'", device="gpu")
    refuse("'meta' is not available", device="meta")
    refuse("'cuda:99' is not available", device="cuda:99")
    if not torch.cuda.is_available():
        refuse("'cuda' is not available", device="cuda")


def test_hardware_choice(monkeypatch):
    monkeypatch.setattr("nanonet.training.device._has_bf16", lambda kind: False)
    with pytest.raises(ConfigError, match="'bf16', but cpu has no instructions"):
        choose_hardware(TrainingConfig(device="cpu", precision="bf16"))
    chosen = choose_hardware(TrainingConfig(device="cpu", threads=3))
    assert chosen == Hardware("cpu", "fp32", "eager", 3)
    assert chosen.describe() == "cpu, fp32, 3 threads"
    monkeypatch.setattr("nanonet.training.device._has_bf16", lambda kind: True)
    assert choose_hardware(TrainingConfig(device="cpu")).precision == "bf16"
    assert choose_hardware(TrainingConfig(device="cpu", precision="fp32")).precision == "fp32"


@pytest.mark.parametrize("method", ["bitfit", "layernorm", "full", "head"])
def test_shrinking_touches_frozen_matrices_only_and_keeps_them_shared(method):
    cohort = make_engine(f"cohort.student_peft={method}").cohort
    shrink_frozen(cohort)
    for parameter in cohort.parameters():
        shrunk = not parameter.requires_grad and parameter.ndim >= 2
        assert parameter.dtype == (torch.bfloat16 if shrunk else torch.float32)
    if method != "full":
        tables = {id(cohort[n].encoder.embeddings.word_embeddings.weight) for n in cohort}
        assert len(tables) == 1


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
def test_losses_in_bf16_are_close_to_those_in_32_bits(model):
    if choose_hardware(TrainingConfig(device="cpu")).precision != "bf16":
        pytest.skip("this processor has no bf16 instructions")
    settings = ("training.steps=1", "training.log_every=1", "views.token_cutoff=0")
    exact = run(make_engine(*settings, model=model)).rows[0].losses
    engine = make_engine(*settings, model=model)
    shrink_frozen(engine.cohort)
    engine.hardware = Hardware("cpu", "bf16", "eager", 1)
    rounded = run(engine).rows[0].losses
    assert rounded.keys() == exact.keys()
    for name, value in exact.items():
        assert rounded[name] == pytest.approx(value, rel=0.05, abs=0.02)
    assert {t.dtype for t in engine.cohort.own_tensors().values()} == {torch.float32}


def test_memory_is_given_back_where_the_library_can(monkeypatch):
    release_memory()  # here
    for error in (OSError, AttributeError, TypeError):  # elsewhere: no library, no such function
        monkeypatch.setattr(ctypes, "CDLL", mock.Mock(side_effect=error))
        release_memory()

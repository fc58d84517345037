"""Every recipe computes its method: held to `reference`, a plain statement of each in torch.

The engine and the reference get the same weights, rows and chance, and must agree on every loss of
every step and on what was trained.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from exact import make_exact
from nanonet.core.config import Config, PropagationConfig, make_config, recipe_names
from nanonet.data.batching import StepBatches
from nanonet.models.attention import WATCHED, register_attention
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import build_cohort
from nanonet.models.encoders import wrap_model
from nanonet.tasks.tokenization import TextTokenizer, length_chunks
from nanonet.training.checkpoint import Position
from nanonet.training.device import Hardware
from nanonet.training.display import SilentDisplay
from nanonet.training.engine import Engine
from nanonet.training.observers import LogRow
from nanonet.training.plan import make_plan
from nanonet.training.rows import TrainingRows
from nanonet.training.run_folder import RunFolder
from nanonet.training.step import make_chunks
from nanonet.training.stopping import StopRequest
from nanonet.training.views import make_views, view_generator
from nanonet.training.warmup import warm_up
from reference import BLOCKS, METHODS, Learner, Log, Rows, Task, adversary, warmup
from runs import succeed
from tiny import bert_config, make_model, make_settings, make_tables, make_tokenizer

FP32 = Hardware("cpu", "fp32", "eager", 1)
CLASSES = 3
TOLERANCE = {"rel": 1e-5, "abs": 1e-5}

Start = dict[str, dict[str, torch.Tensor]]  # by learner and the parameter's name in the reference


@dataclass(frozen=True)
class Pin:
    """One comparison: a recipe, further settings, and the same for the reference."""

    recipe: str
    settings: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> Config:
        """Return the recipe's configuration, small, without dropout and warm-up."""
        plain = ("views.dropout=0", "warmup.steps=0", "training.log_every=1")
        return make_settings("in memory", *plain, *self.settings, recipe=self.recipe, windows=False)


PSNET = ("training.steps=10", "views.learners.teacher.dropout=0")
TEACHER = "phases.teacher.objectives"
BETA = (f"{TEACHER}.supervised.weight=0.8", f"{TEACHER}.feedback.weight=0.2")
PINS = {
    "disco": Pin("disco", ("training.steps=10",)),
    "distill": Pin("distill", ("training.steps=12",)),
    # With 20 neighbours among 42 texts all labels reach a text alike: its rank would be chance.
    "nanonet": Pin(
        "nanonet", ("training.steps=18", "propagation.neighbours=5"), (("neighbours", 5),)
    ),
    **{
        f"nanonet, {labels}": Pin(
            "nanonet",
            ("training.steps=18", f"propagation.neighbours={n}", f"propagation.labels={labels}"),
            (("neighbours", n), ("labels", labels)),
        )
        for labels, n in (("neighbours", 5), ("combined", 4))
    },
    "nanonet, layers of students": Pin(
        "nanonet",
        ("training.steps=18", "propagation.neighbours=5", "cohort.student_peft=layers"),
        (("neighbours", 5), ("trained", "layers")),
    ),
    "psnet": Pin("psnet", PSNET),
    "psnet with feedback": Pin("psnet", (*PSNET, *BETA, "training.steps=6"), (("beta", 0.8),)),
    "self-training": Pin("self-training", ("training.steps=12",)),
    "self-training, unsure": Pin(
        "self-training",
        ("training.steps=12", "phases.students.objectives.pseudo_label.threshold=0.4"),
        (("threshold", 0.4),),
    ),
    "supervised": Pin("supervised", ("training.steps=6",)),
}


class Record(SilentDisplay):
    """Keeps the log rows, and the learners' tensors after each step."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.rows: list[LogRow] = []
        self.tensors: list[dict[str, torch.Tensor]] = []
        self._engine = engine

    def on_step(self, step: int) -> None:
        if self._engine is not None:
            own = self._engine.cohort.own_tensors()
            self.tensors.append({name: tensor.clone() for name, tensor in own.items()})

    def on_log(self, row: LogRow) -> None:
        self.rows.append(row)

    def on_checkpoint(self, position: Position) -> None:
        pass


def make_rows(config: Config) -> TrainingRows:
    tables = make_tables()
    tokenizer = TextTokenizer(make_tokenizer().backend_tokenizer.to_str(), config.data.max_length)
    labeled, unlabeled = (tokenizer.encode(t.texts).ids for t in (tables.labeled, tables.unlabeled))
    return TrainingRows(labeled, np.array(tables.labeled.labels), unlabeled)


def make_engine(config: Config, rows: TrainingRows) -> Engine:
    plan = make_plan(config, has_unlabeled=True)
    model = make_model(bert_config())
    if plan.watches_attention:
        register_attention()
        model.set_attn_implementation(WATCHED)
    backbone = Backbone("tiny", wrap_model(model), "", "mean", "")
    return Engine(build_cohort(backbone, config, CLASSES), plan, rows, config, FP32)


def disturb(engine: Engine) -> Start:
    """Add noise to all that is trained, and return it.

    A student that begins as a copy of the layers that it imitates has nothing to learn but rounding
    errors, and a head of zeros passes nothing on.
    """
    generator = torch.Generator().manual_seed(1)
    start: Start = {}
    for full_name, tensor in engine.cohort.own_tensors().items():
        learner, name = plain_name(full_name)
        size = 0.3 if name.startswith("head.") else 0.05
        noise = size * torch.randn(tensor.shape, generator=generator)
        tensor += noise
        start.setdefault(learner, {})[name] = noise
    return start


def plain_name(full_name: str) -> tuple[str, str]:
    """Return a trained tensor's learner, and its name in the reference."""
    learner, _, name = full_name.partition(".")
    return learner, name.removeprefix("encoder.").replace("head.linear.", "head.")


def make_task(config: Config, rows: TrainingRows, start: Start) -> Task:
    """Return the same run for the reference."""
    training = config.training
    labeled, unlabeled = (
        np.array([len(row) for row in part], dtype=np.int64)
        for part in (rows.labeled, rows.unlabeled)
    )
    batches = StepBatches(
        labeled,
        unlabeled,
        training.labeled_batch,
        training.unlabeled_batch,
        training.token_budget,
        config.seed,
    )
    model = make_model(bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    width = model.config.hidden_size
    return Task(
        model,
        CLASSES,
        start,
        [torch.from_numpy(row) for row in rows.labeled],
        torch.from_numpy(rows.labels),
        [torch.from_numpy(row) for row in rows.unlabeled],
        [batches.draw(step) for step in range(training.steps)],
        uniform=lambda *of: numbers(config, *of, torch.rand),
        normal=lambda *of: numbers(config, *of, torch.randn, width),
    )


def numbers(
    config: Config,
    step: int,
    student: int,
    read: Rows,
    draw: Callable[..., torch.Tensor],
    *width: int,
) -> Rows:
    """Return random numbers (tokens, *width) for each row, drawn as views do: chunk by chunk."""
    generator = view_generator(config.seed, step, student)
    by_row: dict[int, torch.Tensor] = {}
    for chunk in length_chunks([len(row) for row in read], config.training.max_padding):
        longest = len(read[chunk[0]])
        drawn = draw((len(chunk), longest, *width), generator=generator)
        by_row |= {int(i): drawn[j, : len(read[i])] for j, i in enumerate(chunk)}
    return [by_row[i] for i in range(len(read))]


def run_both(pin: Pin) -> tuple[Record, Log, list[Learner]]:
    config = pin.config
    rows = make_rows(config)
    engine = make_engine(config, rows)
    task = make_task(config, rows, disturb(engine))
    record = Record(engine)
    engine.run(Position(0, 0.0, {}, {}), record, StopRequest())
    return record, *METHODS[pin.recipe](task, **dict(pin.options))


def check_losses(rows: list[LogRow], expected: Log) -> None:
    assert [row.step for row in rows] == list(range(1, len(expected) + 1))
    for row, losses in zip(rows, expected, strict=True):
        assert row.losses == pytest.approx(losses, **TOLERANCE), f"step {row.step}"


def check_tensors(
    tensors: dict[str, torch.Tensor], learners: list[Learner], key_biases: bool
) -> None:
    found = {plain_name(full_name): tensor for full_name, tensor in tensors.items()}
    expected = {
        (learner.name, name): parameter.detach()
        for learner in learners
        for name, parameter in learner.named_parameters()
        if parameter.requires_grad
    }
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key_biases or not key[1].endswith("key.bias"):
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5, msg=str(key))


@pytest.fixture
def calm_adam(monkeypatch):
    """Let AdamW not make whole steps of rounding errors.

    The softmax takes a key's bias out again: but for the loss of the attention scores its gradient
    is a rounding error, which AdamW divides by its own size. Such noise would reach the scores.
    """
    calm = functools.partial(torch.optim.AdamW, eps=1e-5)
    monkeypatch.setattr(torch.optim, "AdamW", calm)


@pytest.mark.parametrize("name", PINS)
def test_every_loss_of_every_step_and_what_is_trained(name, request, monkeypatch):
    make_exact(monkeypatch.setattr)
    pin = PINS[name]
    reads_scores = pin.recipe == "psnet"
    if reads_scores:
        request.getfixturevalue("calm_adam")
    record, expected, learners = run_both(pin)
    check_losses(record.rows, expected)
    check_tensors(record.tensors[-1], learners, key_biases=reads_scores)


def test_every_recipe_is_pinned():
    # The reference classifies; sentences have tests of their own (test_summarization_runs.py).
    names = set(recipe_names()) - {"summarization"}
    assert {pin.recipe for pin in PINS.values()} == set(METHODS) == names


def test_the_offline_teacher_rests_while_it_is_imitated():
    pin = PINS["distill"]
    config = pin.config
    engine = make_engine(config, make_rows(config))
    disturb(engine)
    record = Record(engine)
    engine.run(Position(0, 0.0, {}, {}), record, StopRequest())
    half = config.training.steps // 2
    names = [name for name in record.tensors[0] if name.startswith("teacher.")]
    for tensors in record.tensors[half:]:
        assert all(torch.equal(tensors[n], record.tensors[half - 1][n]) for n in names)
    assert any(not torch.equal(record.tensors[0][n], record.tensors[1][n]) for n in names)


def test_propagation_is_that_of_the_recipe():
    assert make_settings("in memory", windows=False).propagation == PropagationConfig(
        0.1667, 20, 0.95, 30
    )


@pytest.mark.parametrize("name", ["nanonet", "nanonet, neighbours", "nanonet, combined"])
def test_propagation_in_the_pinned_runs_is_clear(name):
    config = PINS[name].config
    rows = make_rows(config)
    engine = make_engine(config, rows)
    task = make_task(config, rows, disturb(engine))
    engine.run(Position(0, 0.0, {}, {}), Record(), StopRequest())
    q = torch.from_numpy(engine.soft_labels.probabilities)
    assert q.shape == (len(task.unlabeled), CLASSES)
    # Far apart beside rounding errors, so that no machine sees other classes or ranks.
    entropy = -(q.double() * q.double().log()).sum(1)
    assert entropy.sort().values.diff().min() > 1e-5
    best = q.topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4
    assert set(q.argmax(1).tolist()) == set(range(CLASSES))


@pytest.mark.parametrize(("max_padding", "labeled"), [(1.0, 0), (0.0, 0), (1.0, 6)])
def test_adversarial_noise(max_padding, labeled):
    """It is made for each unlabelled row, however they are cut into chunks."""
    config = make_settings(
        "in memory", f"training.max_padding={max_padding}", "views.dropout=0", recipe="psnet"
    )
    rows = make_rows(config)
    engine = make_engine(config, rows)
    task = make_task(config, rows, disturb(engine))
    batch = [*rows.labeled[:labeled], *rows.unlabeled[:8]]
    learner, chance = engine.cohort["student1"], view_generator(config.seed, 9, 0)
    chunks = make_chunks(batch, max_padding, "cpu")
    views = make_views(config.views.of("student1"), learner, chunks, labeled, 0.9, chance)
    read = [torch.from_numpy(row) for row in batch]
    normal = task.normal(9, 0, read)[labeled:]
    expected = adversary(task.students(*BLOCKS, trained="all")[0], read[labeled:], normal, 4)
    for chunk, view in zip(chunks, views, strict=True):
        for row, noise in zip(chunk.rows.tolist(), view.noise, strict=True):
            if row < labeled:
                assert not noise.any()
                continue
            found = noise[: len(batch[row])]
            torch.testing.assert_close(found, expected[row - labeled], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("calm_adam")
@pytest.mark.parametrize(("recipe", "peft"), [("disco", "layers"), ("psnet", "full")])
def test_every_loss_of_the_warm_up(recipe, peft, tmp_path, tiny_bert_folder):
    settings = ("warmup.steps=8", "warmup.unlabeled_batch=8", "warmup.cache=false")
    settings = (*settings, f"warmup.peft={peft}", "training.log_every=1")
    config = make_settings(tiny_bert_folder, *settings, recipe=recipe)
    rows = TrainingRows([], np.empty(0, np.int64), make_rows(config).unlabeled)
    record = Record()
    found = warm_up(config, RunFolder(tmp_path), FP32, list(rows.unlabeled), "", record)

    training = replace(config.training, steps=8, unlabeled_batch=8)
    task = make_task(replace(config, training=training), rows, {})
    expected, learners = warmup(task, tables=peft == "full")
    check_losses(record.rows, expected)
    for learner in learners:
        del learner.head  # no objective of the warm-up reads it
    check_tensors(found.tensors, learners, key_biases=True)


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_runs_from_the_command_line(recipe, train_arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "cache"))
    warms_up = make_config(recipe, {}).warmup.steps > 0
    warmup_steps = ("--set", "warmup.steps=3") if warms_up else ()
    out = tmp_path / "run"
    succeed(*train_arguments, "--recipe", recipe, *warmup_steps, "--out", out)
    summary = RunFolder(out).read_json("summary.json")
    assert (summary["steps"], summary["finished"]) == (12, True)
    assert (out / "learners.safetensors").is_file()
    assert (out / "warmup.safetensors").is_file() == warms_up

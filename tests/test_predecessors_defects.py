"""The defects of PS-NET's and DisCo's published code, each as a test that it is not here."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch

from nanonet.cli import cli
from nanonet.core.config import Config, make_config, read_recipe
from nanonet.core.strict import parse_set
from nanonet.models.learner import Chunk
from nanonet.objectives.supervised import Supervised
from nanonet.tasks.metrics import accuracy, macro_f1
from nanonet.training import engine as engine_module
from nanonet.training import outcome
from nanonet.training.checkpoint import read_tensors, write_tensors
from nanonet.training.evaluation import predict_logits
from nanonet.training.selection import select_by_agreement
from nanonet.training.tasks import make_task
from nanonet.training.train import train
from runs import succeed
from test_engine import FP32, dropout, make_engine, phase_step, run, same, tensors
from tiny import make_settings, make_tables

STILL = [
    f"phases.{phase}.{rate}=0"
    for phase in ("teacher", "students")
    for rate in ("learning_rate", "head_learning_rate")
]


def test_the_logged_distillation_loss_does_not_include_the_mutual_loss():
    logged = {}
    for weight in (0, 7):
        mutual = f"phases.students.objectives.mutual.weight={weight}"
        engine = make_engine(*STILL, mutual, "phases.students.objectives.mutual.ramp_up=0")
        logged[weight] = run(engine).rows[-1].losses
    without, with_mutual = logged[0], logged[7]
    for student in ("student1", "student2"):
        name = f"{student}.prediction_distillation"
        assert with_mutual[name] == without[name] > 1e-3
        assert with_mutual[f"{student}.mutual"] > 1e-3
        assert f"{student}.mutual" not in without


@pytest.mark.parametrize("victim", ["student1", "teacher"])
def test_clipping_is_per_learner(monkeypatch, victim):
    """A huge gradient of one learner leaves the steps of the others as they were."""
    plain = make_engine(recipe="supervised")
    run(plain)
    loss = Supervised.loss

    def huge(self, learner, step):
        return loss(self, learner, step) * (1e6 if learner == victim else 1.0)

    monkeypatch.setattr(Supervised, "loss", huge)
    other = make_engine(recipe="supervised")
    run(other)
    for name in plain.cohort:
        assert same(tensors(plain), tensors(other), f"{name}.") == (name != victim)


def test_clipping_bounds_the_norm_of_each_learner(monkeypatch):
    norms = {}
    engine = make_engine("phases.students.clip_norm=1e-3")
    step = engine.optimizers["students"].step

    def measure():
        for name in engine.cohort.students:
            own = engine.cohort[name].own_parameters().values()
            norms[name] = float(torch.cat([p.grad.flatten() for p in own]).norm())
        step()

    monkeypatch.setattr(engine.optimizers["students"], "step", measure)
    run(engine)
    assert norms == {n: pytest.approx(1e-3, rel=1e-3) for n in ("student1", "student2")}


def test_no_stale_gradients_survive_a_step():
    engine = make_engine()
    run(engine)
    assert all(p.grad is None for p in engine.cohort.parameters())


def test_no_phase_finds_gradients_of_another(monkeypatch):
    """Four optimizers take turns on the same students: what clipping sees is the phase's alone."""
    settings = ("warmup.steps=0", "phases.teacher.objectives.feedback.weight=0.3", *dropout(0))
    engine = make_engine(*settings, "views.adversarial=0", recipe="psnet")
    seen = []

    class Watched(engine_module.PhaseStep):
        def __init__(self, cohort, phase, *rest):
            super().__init__(cohort, phase, *rest)
            seen.append(phase.name)
            assert all(p.grad is None for p in cohort.parameters())

    monkeypatch.setattr(engine_module, "PhaseStep", Watched)
    run(engine)
    assert seen == ["supervision", "teacher", "representation", "prediction"] * 6


def test_seed_0_is_a_seed():
    def weights(seed: int):
        torch.seed()  # whatever state the process is in
        engine = make_engine(f"seed={seed}", *dropout(0.1))
        run(engine)
        return tensors(engine)

    first = weights(0)
    assert same(first, weights(0))
    assert not same(first, weights(1))


def test_seed_0_on_the_command_line_overrides_a_recipe_s_seed(train_arguments, tmp_path):
    recipe = tmp_path / "seeded.toml"
    recipe.write_text(
        'seed = 5\n[phases.all]\nlearners = "all"\n[phases.all.objectives.supervised]\n'
    )
    more = ["--recipe", recipe, "--set", "training.steps=1", "--seed", 0]
    succeed(*train_arguments, *more, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seed"] == 0


OBJECTIVES = "phases.students.objectives"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("representation_distillation", {"level": "hidden", "distance": "mse"}),
        ("representation_distillation", {"level": "hidden", "distance": "cosine"}),
        ("representation_distillation", {"level": "pooled", "distance": "mse"}),
        ("attention_distillation", {"maps": "scores"}),
        ("attention_distillation", {"maps": "probabilities"}),
    ],
)
def test_losses_over_tokens_are_over_real_ones_only(name, settings):
    """Other ids under the padding, and more of it, change nothing."""
    keys = [f"{OBJECTIVES}.{name}.{key}={value}" for key, value in settings.items()]
    losses = []
    for extra in (0, 9):
        engine = make_engine(*keys, "views.token_cutoff=0")
        phase, view = phase_step(engine, "students")
        for streams in (phase.streams, frozenset({"unlabeled"})):
            made = view._batch._made
            made[streams] = [more_padding(c, extra) for c in view._batch.chunks(streams)]
        losses.append(phase.objectives[name].loss("student1", view).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 1e-3 * (1 if settings.get("maps") != "probabilities" else 1e-2)


def more_padding(chunk: Chunk, extra: int) -> Chunk:
    shape = (len(chunk.rows), extra)
    ids = torch.cat([chunk.input_ids, torch.full(shape, 9)], 1)
    mask = torch.cat([chunk.attention_mask, torch.zeros(shape, dtype=torch.int64)], 1)
    return Chunk(chunk.rows, ids, mask)


def test_teacher_targets_are_computed_without_dropout():
    engine = make_engine(*dropout(0.5))
    engine.cohort.train()
    targets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        _, view = phase_step(engine, "students")
        targets.append(view.teacher("unlabeled"))
        assert engine.cohort["teacher"].training  # put back: the teacher's own step uses dropout
    assert torch.equal(targets[0].logits, targets[1].logits)
    assert torch.equal(targets[0].pooled, targets[1].pooled)
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(phase_step(engine, "teacher")[1].own("teacher", "labeled").logits)
    assert not torch.equal(*outputs)


def test_nothing_is_padded_to_a_fixed_length():
    engine = make_engine("training.max_padding=0.15")
    shapes = set()
    for step in range(6):
        batch = engine._draw(step)
        chunks = batch.chunks(frozenset({"labeled", "unlabeled"}))
        for chunk in chunks:
            shapes.add(chunk.input_ids.shape[1])
            longest = chunk.attention_mask.sum(1).max()
            assert chunk.input_ids.shape[1] == longest
            assert chunk.input_ids.numel() <= 1.15 * chunk.attention_mask.sum() + 1e-6
    assert len(shapes) > 3


@pytest.mark.parametrize("count", [1, 2, 7, 33, 64])
@pytest.mark.parametrize("tokens", [16, 4096])
def test_every_row_is_scored_in_order(monkeypatch, count, tokens):
    monkeypatch.setattr("nanonet.training.evaluation.TOKENS_PER_CHUNK", tokens)
    learner = make_engine(unlabeled=30).cohort["student1"].train()
    rng = np.random.default_rng(count)
    ids = [rng.integers(5, 36, rng.integers(2, 40)) for _ in range(count)]
    logits = predict_logits(learner, ids, FP32)
    assert learner.training  # as it was found
    assert logits.shape == (count, 3)
    learner.eval()
    for row, own in zip(ids, logits, strict=True):
        one = torch.from_numpy(row)[None]
        with torch.no_grad():
            alone = learner(one, torch.ones_like(one))
        np.testing.assert_allclose(own, alone[0].numpy(), atol=1e-4)


def test_nothing_to_score():
    learner = make_engine().cohort["student1"]
    assert predict_logits(learner, [], FP32).shape == (0, 3)


def test_no_row_of_a_validation_file_is_dropped(tmp_path, tiny_bert_folder, monkeypatch):
    scored = []
    select = outcome.select_by_score

    def spy(logits, scores, metric, rows):
        scored.append({len(z) for z in logits.values()} | {rows})
        return select(logits, scores, metric, rows)

    monkeypatch.setattr(outcome, "select_by_score", spy)
    config = make_settings(tiny_bert_folder, "training.steps=1")
    train(config, lambda: make_tables(validation=7), tmp_path / "run")
    assert scored == [{21}]


def by_labels_of(logits, truth):
    """Choose as a run of the default task does that has validation rows."""
    students = [name for name in logits if name != "teacher"]
    prepared = SimpleNamespace(
        cohort=SimpleNamespace(students=students),
        tables={"validation": SimpleNamespace(truth=truth)},
        task=make_task(Config()),
    )
    return outcome.select(prepared, outcome.Answers(logits, truth, "rows", len(truth)))


def test_the_choice_is_by_one_figure_and_among_students_only():
    truth = np.array([0, 1, 1, 0])

    def logits(*classes):
        return np.eye(2, dtype=np.float32)[list(classes)] * 4

    outputs = {
        "teacher": logits(0, 1, 1, 0),
        "student1": logits(1, 0, 1, 0),
        "student2": logits(0, 1, 1, 1),
    }
    by_labels = by_labels_of(outputs, truth)
    assert (by_labels.selected, by_labels.labels_used) == ("student2", 4)
    assert by_labels.scores == {"student1": 0.5, "student2": 0.75}
    by_agreement = select_by_agreement(outputs, "4 texts")
    assert (by_agreement.selected, by_agreement.labels_used) == ("student2", 0)
    assert set(by_agreement.scores) == {"student1", "student2"}
    tied = outputs | {"student1": logits(0, 1, 1, 1), "student2": logits(1, 1, 1, 0)}
    tied["teacher"] = logits(1, 1, 1, 0)
    assert by_labels_of(tied, truth).selected == "student2"  # agrees more with the cohort


def test_the_sum_of_metrics_decides_nothing():
    truth = np.array([0] * 8 + [1] * 2)
    guesses = {"student1": [0] * 10, "student2": [0] * 5 + [1] * 5}
    scores = {
        name: (accuracy(truth, np.array(g)), macro_f1(truth, np.array(g)))
        for name, g in guesses.items()
    }
    assert scores["student1"][0] > scores["student2"][0]
    assert sum(scores["student1"]) < sum(scores["student2"])
    logits = {name: 4 * np.eye(2, dtype=np.float32)[g] for name, g in guesses.items()}
    assert by_labels_of(logits, truth).selected == "student1"


def test_the_last_step_is_what_is_kept_whatever_a_checkpoint_scored(tmp_path, tiny_bert_folder):
    tables, out = make_tables(validation=5), tmp_path / "run"
    train(make_settings(tiny_bert_folder), lambda: tables, out, monitor=tables.validation)
    last = read_tensors(out / "checkpoints" / "step-000006" / "trained.safetensors")
    kept = read_tensors(out / "learners.safetensors")
    assert same(last, kept)
    assert not same(read_tensors(out / "checkpoints/step-000004/trained.safetensors"), kept)


def test_the_baseline_distill_runs_from_end_to_end(train_arguments, corpus, tmp_path):
    out = tmp_path / "run"
    succeed(*train_arguments, "--recipe", "distill", "--out", out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    expected = {
        f"{student}.{objective}"
        for student in ("student1", "student2")
        for objective in ("supervised", "prediction_distillation", "representation_distillation")
    }
    assert expected | {"teacher.supervised"} == set().union(*(row["losses"] for row in rows))
    succeed("export", out, "--out", tmp_path / "bundle")
    scores = [
        json.loads(succeed("evaluate", folder, "--data", corpus / "test.csv", "--json").out)
        for folder in (out, tmp_path / "bundle")
    ]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    assert scores[0]["examples"] == 30


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.csv", None),
        ("empty.csv", ""),
        ("labels.csv", "text,label\na,\n"),
        ("a.csv", "x\n1\n"),
    ],
)
def test_data_that_cannot_be_used_is_a_failure_to_the_shell(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    command = [sys.executable, "-m", "nanonet", "split", str(tmp_path / name), "--out", "no"]
    done = subprocess.run(
        [*command, "--labeled-per-class", "1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "no").exists()


def test_every_flag_is_off_unless_given():
    flags = {
        f"{command.name} {option.opts[0]}": option.get_default(click.Context(command))
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option, click.Option) and option.is_flag
    }
    assert {"train --resume", "train --overwrite", "train --quiet"} <= flags.keys()
    assert not any(flags.values()), flags


def switches(table, prefix: str = "") -> list[tuple[str, bool]]:
    """Keys and defaults of all settings that are on or off."""
    found = []
    for field in fields(table):
        value = getattr(table, field.name)
        if is_dataclass(value):
            found += switches(value, f"{prefix}{field.name}.")
        elif isinstance(value, bool):
            found.append((f"{prefix}{field.name}", value))
    return found


@pytest.mark.parametrize(("key", "default"), switches(Config()))
def test_every_setting_that_is_on_can_be_switched_off(key, default):
    for text, expected in (("true", True), ("false", False)):
        config = make_config("supervised", parse_set([f"{key}={text}"]))
        assert dict(switches(config))[key] is expected
    own: Any = read_recipe("supervised")
    for part in key.split("."):
        own = own.get(part, {})
    expected = own if isinstance(own, bool) else default
    assert dict(switches(make_config("supervised", {})))[key] is expected


def test_resume_reads_the_checkpoint_and_ends_where_the_whole_run_does(train_arguments, tmp_path):
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    succeed(*train_arguments, "--out", whole)
    succeed(*train_arguments, "--out", parts, "--max-minutes", 1e-9)
    assert json.loads((parts / "summary.json").read_text())["steps"] == 1
    shutil.copytree(parts, other)
    succeed(*train_arguments, "--out", parts, "--resume")
    name = "learners.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    # Other weights in the checkpoint lead elsewhere: it is what training goes on from.
    path = other / "checkpoints" / "step-000001" / "trained.safetensors"
    write_tensors(path, {key: tensor + 0.1 for key, tensor in read_tensors(path).items()})
    succeed(*train_arguments, "--out", other, "--resume")
    assert (other / name).read_bytes() != (whole / name).read_bytes()

"""Warm-up distillation: before any label is used, students learn to stand in for the teacher."""

import json

import numpy as np
import pytest
import torch

from nanonet.core.errors import ConfigError, InterruptedRunError, RunError
from nanonet.data.readers import table_from_lists
from nanonet.export import export, load_cohort
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import TEACHER
from nanonet.runtime.predictor import Predictor
from nanonet.scoring import evaluate_run
from nanonet.training.checkpoint import read_tensors
from nanonet.training.evaluation import predict_logits
from nanonet.training.run_folder import RunFolder, weights_sha256
from nanonet.training.train import train
from test_engine import FP32
from test_training import contents, losses, unread
from tiny import make_settings, make_tables, make_texts
from warmups import (
    OBJECTIVES,
    REST,
    SHORT,
    UNCACHED,
    Watch,
    bert,
    cache,
    encode,
    interrupt,
    outcome,
    resume,
    trained,
    uncalibrated,
)

NARROW = [
    *("cohort.student_width=16", "warmup.steps=4", "warmup.learning_rate=3e-3"),
    "warmup.peft=full",
]


def pooled_of(learner, ids) -> torch.Tensor:
    from nanonet.training.step import make_chunks

    with torch.no_grad():
        return learner.read(make_chunks(ids, 0.0, "cpu")).pooled


def declared(method: str, name: str) -> bool:
    """Whether a warm-up by a method gives students a tensor of this name."""
    return {
        "full": True,
        "layers": "embed" not in name or "norm" in name.lower(),
        "bitfit": name.endswith(".bias"),
        "layernorm": "norm" in name.lower(),
        "lora": ".layers." in name and name.endswith(".weight") and "norm" not in name.lower(),
    }[method]


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("method", ["layers", "full", "bitfit", "layernorm", "lora"])
def test_students_change_and_the_teacher_does_not(tmp_path, request, trained, family, method):
    folder = request.getfixturevalue(f"tiny_{family}_folder")
    before = contents(folder)
    frozen = ["cohort.teacher_peft=head", "cohort.student_peft=head"]
    config = make_settings(folder, *SHORT, *frozen, f"warmup.peft={method}")
    summary = train(config, make_tables, tmp_path / "run")
    warmed = read_tensors(tmp_path / "run" / "warmup.safetensors")
    assert {name.split(".")[0] for name in warmed} == {"student1", "student2"}
    assert all(declared(method, name) for name in warmed)
    assert all(tensor.dtype == torch.float32 for tensor in warmed.values())

    encoder = load_backbone(str(folder)).encoder
    cohort = trained[0]
    for name in cohort:
        base = dict(encoder.subset(summary["layer_maps"][name]).named_parameters())
        changed = set()
        for key, value in cohort[name].encoder.named_parameters():
            full = f"{name}.encoder.{key}"
            expected = base.get(key, torch.zeros_like(value))  # a bias where there was none
            if not torch.equal(value, expected):
                changed.add(full)
                assert torch.equal(value, warmed[full])
        if name == TEACHER:
            assert changed == set()
        layers = {key.split(".")[3] for key in changed if ".layers." in key}
        assert layers == (set() if name == TEACHER else {"0", "1"})
    assert contents(folder) == before


def test_the_loss_falls_and_students_come_closer(tmp_path, bert):
    settings = ["training.steps=1", "training.log_every=1", "cohort.student_peft=head"]
    notes = Watch()
    config = make_settings(bert, "warmup.steps=40", "warmup.learning_rate=3e-3", *settings)
    train(config, make_tables, tmp_path / "run", display=notes)
    rows = notes.logged["warm-up"]
    assert [row.step for row in rows] == list(range(1, 41))
    for student in ("student1", "student2"):
        name = f"{student}.representation_distillation"
        assert set(rows[0].losses) == {f"student{k}.representation_distillation" for k in (1, 2)}
        values = [row.losses[name] for row in rows]
        assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5])

    train(make_settings(bert, *settings), make_tables, tmp_path / "plain")
    tables = make_tables()
    distances = {}
    for run in ("run", "plain"):
        cohort = load_cohort(RunFolder(tmp_path / run))
        ids = encode(tmp_path / run, tables.unlabeled.texts)
        pooled = {name: pooled_of(cohort[name], ids) for name in cohort}
        similar = torch.cosine_similarity(pooled["student1"], pooled["teacher"], dim=-1)
        distances[run] = 1 - float(similar.mean())
    assert distances["run"] < 0.6 * distances["plain"]


def test_schedule_and_rates_are_the_warm_up_s_own(tmp_path, bert):
    settings = ["warmup.steps=4", "warmup.warmup=0.5", "warmup.learning_rate=1e-3"]
    notes = Watch()
    config = make_settings(bert, *settings, "training.steps=1", "training.log_every=1")
    train(config, make_tables, tmp_path / "run", display=notes)
    rates = [row.learning_rates["student1.encoder"] for row in notes.logged["warm-up"]]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert notes.starts == [("warm-up", 0, 4), ("training", 0, 1)]
    # Its rows are no rows of the run, of which a step is drawn as if there had been no warm-up.
    assert [row["step"] for row in losses(tmp_path / "run")] == [1]


@pytest.mark.parametrize(
    "objective",
    [
        "representation_distillation.level=hidden",
        "representation_distillation.distance=mse",
        "attention_distillation.maps=scores",
    ],
)
def test_objectives_of_a_warm_up(tmp_path, bert, objective):
    notes = Watch()
    config = make_settings(bert, *SHORT, f"{OBJECTIVES}.{objective}", "training.log_every=1")
    summary = train(config, make_tables, tmp_path / "run", display=notes)
    name = objective.split(".")[0]
    assert all(row.losses[f"student1.{name}"] > 0 for row in notes.logged["warm-up"])
    train(make_settings(bert, *SHORT), make_tables, tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert summary["warmup"]["weights_sha256"] != plain["warmup"]["weights_sha256"]


@pytest.mark.parametrize(
    ("family", "warmup", "after"),
    [
        ("bert", "layers", "bitfit"),
        ("bert", "full", "bitfit"),
        ("bert", "full", "lora"),
        ("bert", "full", "full"),
        ("bert", "bitfit", "bitfit"),
        ("bert", "lora", "bitfit"),
        ("bert", "lora", "lora"),
        ("modernbert", "layers", "bitfit"),
        ("modernbert", "bitfit", "layernorm"),
        ("modernbert", "lora", "lora"),
    ],
)
def test_the_run_after_it(tmp_path, request, trained, family, warmup, after):
    """It trains what it would train without; a run folder gives back what was trained."""
    folder, out = request.getfixturevalue(f"tiny_{family}_folder"), tmp_path / "run"
    method = f"cohort.student_peft={after}"
    config = make_settings(folder, *SHORT, method, f"warmup.peft={warmup}")
    summary = train(config, make_tables, out)
    plain = train(make_settings(folder, SHORT[1], method), make_tables, tmp_path / "plain")
    assert plain["warmup"] is None
    assert not (tmp_path / "plain" / "warmup.safetensors").exists()

    warmed = read_tensors(out / "warmup.safetensors")
    assert summary["warmup"]["weights_sha256"] == weights_sha256(warmed)
    assert summary["warmup"]["cached"] is False
    assert 0 < summary["warmup"]["seconds"] <= summary["seconds"]
    assert not (out / "warmup").exists()

    cohort, own = trained[0], read_tensors(out / "learners.safetensors")
    without = read_tensors(tmp_path / "plain" / "learners.safetensors")
    if (family, warmup, after) == ("modernbert", "bitfit", "layernorm"):
        assert own.keys() > without.keys()  # the biases of norms that BitFit has created
    else:
        assert own.keys() == without.keys()
        assert summary["trainable_parameters"] == plain["trainable_parameters"]
    fixed = 0
    for name in cohort:
        mine = cohort[name].own_parameters()
        for key, value in cohort[name].named_parameters():
            plain_key = key.replace(".base_layer.", ".")
            if key not in mine and f"{name}.{plain_key}" in warmed:
                assert torch.equal(value, warmed[f"{name}.{plain_key}"]), key
                fixed += 1
            elif key in mine:
                assert torch.equal(value, own[f"{name}.{key}"])
    assert (fixed > 0) == ((warmup, after) not in {("full", "full"), ("bitfit", "bitfit")})

    loaded = load_cohort(RunFolder(out))
    ids = encode(out, make_tables().unlabeled.texts)
    for name in cohort:
        assert loaded[name].state_dict().keys() == cohort[name].state_dict().keys()
        for key, value in cohort[name].state_dict().items():
            assert torch.equal(loaded[name].state_dict()[key], value), key
        both = [predict_logits(c[name], ids, FP32) for c in (cohort, loaded)]
        np.testing.assert_allclose(*both, atol=1e-5)  # another attention kernel
        assert np.abs(both[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("family", "warmup", "after"),
    [("bert", "full", "bitfit"), ("modernbert", "bitfit", "layernorm"), ("bert", "lora", "lora")],
)
def test_evaluation_and_bundle_are_those_of_the_trained_cohort(
    tmp_path, request, trained, family, warmup, after
):
    folder, out = request.getfixturevalue(f"tiny_{family}_folder"), tmp_path / "run"
    settings = ["training.steps=6", f"warmup.peft={warmup}", f"cohort.student_peft={after}"]
    summary = train(make_settings(folder, "warmup.steps=4", *settings), make_tables, out)
    texts, labels = make_texts(10, seed=7)
    logits = {n: predict_logits(trained[0][n], encode(out, texts), FP32) for n in trained[0]}
    scores = evaluate_run(out, table_from_lists(texts, labels))
    for name, accuracy in scores.learners.items():
        assert accuracy == np.mean(logits[name].argmax(-1) == labels)
    export(out, tmp_path / "bundle")
    exported = Predictor.load(tmp_path / "bundle").predict_logits(texts)
    np.testing.assert_allclose(exported, logits[summary["selected"]], atol=1e-4)


def test_a_damaged_result_is_named(tmp_path, bert):
    out = tmp_path / "run"
    train(make_settings(bert, *SHORT), make_tables, out)
    path = out / "warmup.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"warmup\.safetensors cannot be used") as error:
        load_cohort(RunFolder(out))
    assert "\n" not in str(error.value)


def test_without_students_nobody_warms_up(tmp_path, bert):
    settings = ["cohort.students=0", "phases.students.objectives.mutual.weight=0"]
    found = train(make_settings(bert, *SHORT, *settings), make_tables, tmp_path / "run")
    assert found["warmup"] is None


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_narrow_students_that_were_warmed_up_train_biases_only(tmp_path, request, trained, family):
    folder, out = request.getfixturevalue(f"tiny_{family}_folder"), tmp_path / "run"
    settings = [*NARROW, "training.steps=4"]
    summary = train(make_settings(folder, *settings), make_tables, out)
    plain = train(make_settings(folder, "training.steps=4"), make_tables, tmp_path / "plain")
    assert summary["total_parameters"]["student1"] < plain["total_parameters"]["student1"]
    warmed = read_tensors(out / "warmup.safetensors")
    cohort = trained[0]
    for name in cohort.students:
        own = cohort[name].own_parameters()
        trains = {key.split(".")[0] for key in own if not key.endswith(".bias")}
        assert trains == {"head", "projection"}
        fixed = [k for k, _ in cohort[name].named_parameters() if k not in own]
        assert fixed
        for key in fixed:
            assert torch.equal(cohort[name].get_parameter(key), warmed[f"{name}.{key}"])
    texts, labels = make_texts(4, seed=7)
    assert evaluate_run(out, table_from_lists(texts, labels)).examples == 12
    if family == "modernbert":
        return  # the exporter takes seconds
    export(out, tmp_path / "bundle")
    exported = Predictor.load(tmp_path / "bundle").predict_logits(texts)
    logits = predict_logits(cohort[summary["selected"]], encode(out, texts), FP32)
    np.testing.assert_allclose(exported, logits, atol=1e-4)


def test_narrow_students_keep_what_their_warm_up_left_alone(tmp_path, bert):
    """Their random weights are those that the warm-up has worked with, whatever the run's seed."""
    part = ["cohort.student_peft=full", "warmup.peft=bitfit", *REST, "training.steps=1"]
    students = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        train(make_settings(bert, *NARROW, *part, f"seed={seed}"), make_tables, out)
        students.append(load_cohort(RunFolder(out))["student1"].state_dict())
    for key, value in students[0].items():
        assert torch.equal(value, students[1][key]), key


def test_a_narrow_warm_up_has_its_own_chance_and_continues(tmp_path, bert):
    config = make_settings(bert, *NARROW, UNCACHED, "training.steps=2")
    expected = train(config, make_tables, tmp_path / "whole")
    out = tmp_path / "parts"
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, display=interrupt("warm-up", 3))
    resume(config, out)
    assert outcome(out) == outcome(tmp_path / "whole")
    other = make_settings(bert, *NARROW, UNCACHED, "training.steps=2", "seed=1")
    again = train(other, make_tables, tmp_path / "seed")
    assert again["warmup"]["weights_sha256"] == expected["warmup"]["weights_sha256"]
    assert again["weights_sha256"] != expected["weights_sha256"]


def test_the_time_limit_cuts_a_warm_up_short(tmp_path, bert, cache):
    """It takes a third at most; what it has made of students serves this run alone."""
    config = make_settings(bert, "warmup.steps=50", "training.steps=4", "training.max_minutes=1e-9")
    out, notes = tmp_path / "run", Watch()
    summary = train(config, make_tables, out, display=notes)
    assert "warm-up stopped after step 1 of 50" in notes.warned[0]
    assert "time limit reached after step 1 of 4" in notes.warned[-1]
    assert (out / "warmup.safetensors").is_file()
    assert not cache.exists()
    assert summary["warmup"]["seconds"] > 0
    assert summary["warmup"]["steps"] == 1
    more = make_settings(bert, "warmup.steps=50", "training.steps=4")
    again = resume(more, out)
    assert [what for what, *_ in again.starts] == ["training"]  # no second warm-up
    assert RunFolder(out).read_summary()["finished"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["warmup.peft=head"], "nothing to learn: set warmup.steps=0"),
        (["warmup.peft=bitfi"], "did you mean 'bitfit'"),
        ([f"{OBJECTIVES}.supervised.weight=1"], "warmup.objectives.supervised cannot be learnt"),
        ([f"{OBJECTIVES}.mutual.weight=1"], "warmup.objectives.mutual cannot be learnt"),
        ([f"{OBJECTIVES}.consistency.weight=1"], "warmup.objectives.consistency cannot be"),
        ([f"{OBJECTIVES}.representation_distillation.weight=0"], "nothing to learn"),
        ([f"{OBJECTIVES}.representation_distilation.weight=1"], "'representation_distillation'"),
        ([f"{OBJECTIVES}.representation_distillation.lvl=1"], "did you mean 'level'"),
        (["warmup.steps=-1"], "warmup.steps' is -1, but must be at least 0"),
        (["warmup.schedule=linea"], "did you mean 'linear'"),
        (["cohort.student_width=16", "warmup.peft=bitfit"], "warmup.peft=full"),
        (["cohort.student_width=15", "warmup.peft=full"], "must be a multiple of 4"),
        (["warmup.peft=lora", 'lora.targets=["nope"]'], "lora.targets .*match no linear map"),
    ],
)
def test_bad_settings_are_refused_before_data_is_read(tmp_path, bert, settings, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        train(make_settings(bert, *SHORT, *settings), unread, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_settings_of_a_warm_up_that_is_off_are_not_looked_at(tmp_path, bert):
    off = ["warmup.steps=0", "warmup.peft=head", "training.steps=1"]
    assert train(make_settings(bert, *off), make_tables, tmp_path / "run")["warmup"] is None

"""Warm-up distillation: before any label is used, students learn to stand in for the teacher."""

import json
import os
import shutil
import signal
from pathlib import Path

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
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training import train as train_module
from nanonet.training import warmup as warmup_module
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.evaluation import predict_logits
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder, weights_sha256
from nanonet.training.train import train
from nanonet.training.warmup import cache_folder
from test_engine import FP32
from test_training import Notes, contents, losses, unread
from tiny import bert_config, make_model, make_settings, make_tables, make_texts, save_folder

STEPS = 4
SHORT = [f"warmup.steps={STEPS}", "training.steps=2"]
UNCACHED = "warmup.cache=false"
OBJECTIVES = "warmup.objectives"


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch):
    """Compare what was trained with what is loaded, without the temperature between them."""
    monkeypatch.setattr(RunFolder, "temperature", 1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NANONET_CACHE", str(folder))
    return folder


@pytest.fixture
def bert(tiny_bert_folder):
    return tiny_bert_folder


class Watch(Notes):
    """A display that tells warm-up and training apart."""

    def __init__(self, on_step=None) -> None:
        super().__init__(lambda step: on_step and on_step(self.what, step))
        self.logged = {"warm-up": [], "training": []}
        self.on_log = lambda row: self.logged[self.what].append(row)

    def start(self, step, steps, what="training"):
        self.what = what
        self.events.append((what, step, steps))

    @property
    def starts(self):
        return [event for event in self.events if isinstance(event, tuple)]


def interrupt(what: str, step: int) -> Watch:
    """A display that presses Ctrl-C."""

    def press(now_what, now):
        if (now_what, now) == (what, step):
            os.kill(os.getpid(), signal.SIGINT)

    return Watch(press)


def die(what: str, step: int) -> Watch:
    """A display that ends the process, as far as the run can tell."""

    def kill(now_what, now):
        if (now_what, now) == (what, step):
            raise MemoryError

    return Watch(kill)


def clockless(summary: dict) -> dict:
    kept = {k: v for k, v in summary.items() if k not in ("seconds", "stopped")}
    return kept | {"warmup": summary["warmup"] and summary["warmup"]["weights_sha256"]}


def outcome(folder: Path) -> tuple:
    """All that a run has computed."""
    files = [folder / f"{name}.safetensors" for name in ("warmup", "learners")]
    summary = json.loads((folder / "summary.json").read_text())
    return clockless(summary), losses(folder), [file.read_bytes() for file in files]


@pytest.fixture
def trained(monkeypatch) -> list:
    """The cohorts of the runs, as they are when training ends."""
    kept = []
    finish = train_module._finish

    def keep(run, config, prepared, *rest):
        kept.append(prepared.cohort)
        return finish(run, config, prepared, *rest)

    monkeypatch.setattr(train_module, "_finish", keep)
    return kept


# what it does


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


def encode(run: Path, texts):
    return TextTokenizer((run / "tokenizer.json").read_text(), 16).encode(texts).ids


def pooled_of(learner, ids) -> torch.Tensor:
    from nanonet.training.step import make_chunks

    with torch.no_grad():
        return learner.read(make_chunks(ids, 0.0, "cpu")).pooled


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


# the run after it


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize(
    ("warmup", "after"),
    [
        ("layers", "bitfit"),
        ("full", "bitfit"),
        ("full", "lora"),
        ("full", "full"),
        ("bitfit", "bitfit"),
        ("bitfit", "layernorm"),
        ("lora", "bitfit"),
        ("lora", "lora"),
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


# the cache


def warm(folder, out, *settings, recipe="nanonet", tables=make_tables):
    """Run; return what the summary says of the warm-up, and what was told."""
    notes = Watch()
    config = make_settings(folder, "training.steps=1", *settings, recipe=recipe)
    return train(config, tables, out, display=notes)["warmup"], notes


def fewer():
    tables = make_tables()
    return TrainingTables(tables.labeled, table_from_lists(tables.unlabeled.texts[:-1]))


def other_labels():
    return TrainingTables(make_tables(labeled=3).labeled, make_tables().unlabeled)


@pytest.fixture(scope="module")
def kept_by_another(tiny_bert_folder, tmp_path_factory) -> Path:
    """The cache of a run, its entry in it. Read only."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANONET_CACHE", str(folder / "cache"))
        _, notes = warm(tiny_bert_folder, folder / "run", "warmup.steps=3")
    assert notes.starts == [("warm-up", 0, 3), ("training", 0, 1)]
    return folder / "cache"


@pytest.fixture
def entry(kept_by_another, cache) -> Path:
    """What another run has left in the cache: a warm-up of three steps."""
    shutil.copytree(kept_by_another, cache)
    (path,) = (cache / "warmup").iterdir()
    return path


@pytest.mark.parametrize(
    ("settings", "tables"),
    [
        (["seed=3"], make_tables),
        (["training.steps=2", "training.labeled_batch=3", "head.scale=2"], make_tables),
        (["cohort.student_peft=full", "cohort.teacher_peft=full"], make_tables),
        (["views.token_cutoff=0.5", "views.dropout=0.2"], make_tables),
        ([], other_labels),
    ],
)
def test_another_run_reuses_it(tmp_path, bert, cache, entry, settings, tables):
    before = contents(cache)
    found, notes = warm(bert, tmp_path / "run", "warmup.steps=3", *settings, tables=tables)
    expected = {"steps": 3, "seconds": 0.0, "cached": True, "weights_sha256": sha256_of(entry)}
    assert found == expected
    assert [what for what, *_ in notes.starts] == ["training"]
    assert f"warm-up: taken from {entry}" in notes.said
    assert (tmp_path / "run" / "warmup.safetensors").read_bytes() == entry.read_bytes()
    assert contents(cache) == before


def sha256_of(path: Path) -> str:
    return weights_sha256(read_tensors(path))


def test_the_cache_keeps_what_was_used_last(tmp_path, bert, cache, entry, monkeypatch):
    monkeypatch.setattr(warmup_module, "MOST_KEPT", 2)
    old, kept = entry.with_name("old.safetensors"), entry.with_name("kept.txt")
    old.write_bytes(b"")
    kept.write_bytes(b"")  # nothing of ours
    os.utime(entry, (1, 1))
    os.utime(old, (2, 2))
    warm(bert, tmp_path / "again", "warmup.steps=3")  # used: the newest now
    warm(bert, tmp_path / "other", "warmup.steps=2")
    names = {path.name for path in entry.parent.iterdir()}
    assert entry.name in names
    assert old.name not in names
    assert kept.name in names
    assert len(names) == 3


def test_a_run_without_a_teacher_reuses_it(tmp_path, bert, entry):
    alone = ["warmup.steps=3", "cohort.teacher=false"]
    found, _ = warm(bert, tmp_path / "run", *alone, recipe="supervised")
    assert found == {"steps": 3, "seconds": 0.0, "cached": True, "weights_sha256": sha256_of(entry)}


def test_short_texts_take_more_steps_and_say_so(tmp_path, bert):
    more, given = tmp_path / "more", tmp_path / "given"
    found, notes = warm(bert, more, "warmup.steps=2", "warmup.more_steps=true")
    assert found["steps"] == 8  # four times as many at most
    assert "8 steps of warm-up instead of 2" in "\n".join(notes.said)
    again, _ = warm(bert, given, "warmup.steps=8")
    assert (again["steps"], again["cached"]) == (8, True)  # where the number is from is all one


@pytest.mark.parametrize(
    "setting",
    [
        "warmup.steps=4",
        "warmup.seed=1",
        "warmup.peft=bitfit",
        "warmup.learning_rate=1e-3",
        "warmup.unlabeled_batch=5",
        "warmup.schedule=cosine",
        "warmup.warmup=0.5",
        "warmup.clip_norm=0",
        f"{OBJECTIVES}.representation_distillation.level=hidden",
        "cohort.layer_map=stride",
        "cohort.students=1",
        "data.max_length=12",
        "training.token_budget=64",
        "backbone.pooling=cls",
    ],
)
def test_another_warm_up_does_not_reuse_it(tmp_path, bert, entry, setting):
    settings = ["warmup.steps=3", setting]
    if setting == "cohort.students=1":
        settings.append("phases.students.objectives.mutual.weight=0")
    found, notes = warm(bert, tmp_path / "run", *settings)
    assert found["cached"] is False
    assert notes.starts[0][0] == "warm-up"
    assert found["weights_sha256"] != sha256_of(entry)
    assert len(list(entry.parent.iterdir())) == 2


@pytest.mark.usefixtures("entry")
def test_other_texts_or_another_backbone_do_not_reuse_it(tmp_path, bert):
    assert not warm(bert, tmp_path / "texts", "warmup.steps=3", tables=fewer)[0]["cached"]
    folder = save_folder(bert_config(), tmp_path / "backbone")
    same, _ = warm(folder, tmp_path / "same", "warmup.steps=3")  # the same weights elsewhere
    assert same["cached"]
    make_model(bert_config(), seed=1).save_pretrained(folder)
    assert not warm(folder, tmp_path / "other", "warmup.steps=3")[0]["cached"]


def test_without_the_cache_it_is_neither_read_nor_written(tmp_path, bert, cache):
    alone, _ = warm(bert, tmp_path / "alone", "warmup.steps=3", UNCACHED)
    assert not cache.exists()
    kept, _ = warm(bert, tmp_path / "kept", "warmup.steps=3")
    assert not kept["cached"]
    before = contents(cache)
    again, notes = warm(bert, tmp_path / "again", "warmup.steps=3", UNCACHED, "seed=5")
    assert not again["cached"]
    assert notes.starts[0][0] == "warm-up"
    assert contents(cache) == before
    # Whatever the run's seed: it has a seed of its own.
    assert len({w["weights_sha256"] for w in (alone, kept, again)}) == 1


@pytest.mark.parametrize("damage", [lambda data: data[:-8], lambda data: b"junk", lambda data: b""])
def test_a_damaged_cache_is_told_and_mended(tmp_path, bert, entry, damage):
    whole, sha256 = entry.read_bytes(), sha256_of(entry)
    entry.write_bytes(damage(whole))
    found, notes = warm(bert, tmp_path / "run", "warmup.steps=3")
    assert notes.warned[0] == f"{entry} is damaged: warming up again"
    assert (found["weights_sha256"], found["cached"]) == (sha256, False)
    assert entry.read_bytes() == whole
    assert warm(bert, tmp_path / "next", "warmup.steps=3")[0]["cached"]


def test_a_cache_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path, bert, cache):
    cache.write_text("in the way")
    found, notes = warm(bert, tmp_path / "run", "warmup.steps=3")
    assert not found["cached"]
    assert "warm-up not kept for other runs" in notes.warned[0]
    assert "\n" not in notes.warned[0]
    assert RunFolder(tmp_path / "run").finished
    assert cache.read_text() == "in the way"


def test_where_the_cache_is(monkeypatch, tmp_path, cache):
    assert cache_folder() == cache
    monkeypatch.delenv("NANONET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "nanonet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "nanonet"


# stopping and continuing

WHOLE = [
    *("warmup.steps=5", "training.steps=5", "training.checkpoint_every=2", "training.log_every=1"),
    UNCACHED,
]


@pytest.fixture(scope="module")
def whole(tiny_bert_folder, tmp_path_factory) -> Path:
    """A run that was never stopped. Read only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(make_settings(tiny_bert_folder, *WHOLE), make_tables, out)
    return out


def resume(config, out: Path, **changes) -> Watch:
    notes = Watch()
    torch.manual_seed(99)
    train(config, make_tables, out, mode="resume", display=notes, **changes)
    return notes


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_warm_up_that_was_interrupted_continues_to_the_bit(tmp_path, bert, whole, step):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError, match=f"step {step} of 5; continue with --resume"):
        train(config, make_tables, out, display=interrupt("warm-up", step))
    assert not (out / "warmup.safetensors").exists()
    kept = [path.name for path in list_checkpoints(out / "warmup" / "checkpoints")]
    assert kept[-1] == f"step-{step:06d}"
    rows = losses(out / "warmup")
    assert [(row["kind"], row["step"]) for row in rows] == [("warmup", i + 1) for i in range(step)]
    notes = resume(config, out)
    assert notes.starts == [("warm-up", step, 5), ("training", 0, 5)]
    assert outcome(out) == outcome(whole)
    assert not (out / "warmup").exists()


def test_a_warm_up_that_was_killed_repeats_the_steps_since_its_checkpoint(tmp_path, bert, whole):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=die("warm-up", 4))  # before its checkpoint
    assert resume(config, out).starts[0] == ("warm-up", 2, 5)
    assert outcome(out) == outcome(whole)


def test_a_warm_up_that_was_killed_at_once_starts_over(tmp_path, bert, whole):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=die("warm-up", 1))
    assert resume(config, out).starts[0] == ("warm-up", 0, 5)
    assert outcome(out) == outcome(whole)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_interrupted_after_its_warm_up_does_not_repeat_it(tmp_path, bert, whole, step):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step} of 5"):
        train(config, make_tables, out, display=interrupt("training", step))
    assert resume(config, out).starts == [("training", step, 5)]
    assert outcome(out) == outcome(whole)


def test_a_run_killed_before_its_first_checkpoint_keeps_its_warm_up(tmp_path, bert, whole):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=die("training", 1))
    assert list_checkpoints(out / "checkpoints") == []
    assert resume(config, out).starts == [("training", 0, 5)]
    assert outcome(out) == outcome(whole)


def test_a_run_from_the_cache_continues_too(tmp_path, bert):
    config = make_settings(bert, *WHOLE[:-1])
    expected = train(config, make_tables, tmp_path / "first")
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, display=interrupt("training", 3))
    resume(config, out)
    summary = RunFolder(out).read_summary()
    assert summary["warmup"]["cached"]
    assert clockless(summary) == clockless(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("warmup.steps=6", "warmup.steps=5, not 6"),
        ("warmup.peft=lora", "warmup.peft='layers', not 'lora'"),
        (f"{OBJECTIVES}.representation_distillation.level=hidden", "'pooled', not 'hidden'"),
    ],
)
@pytest.mark.parametrize("what", ["warm-up", "training"])
def test_other_settings_are_refused_by_key(tmp_path, bert, what, setting, expected):
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(make_settings(bert, *WHOLE), make_tables, out, display=interrupt(what, 2))
    before = contents(tmp_path)
    with pytest.raises(RunError, match=expected):
        train(make_settings(bert, *WHOLE, setting), make_tables, out, mode="resume")
    assert contents(tmp_path) == before


def test_other_students_are_refused_where_a_warm_up_came_with_the_run(tmp_path, bert, earlier):
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(
            make_settings(bert, "training.steps=4"),
            make_tables,
            out,
            init=earlier,
            display=interrupt("training", 2),
        )
    before = contents(tmp_path)
    other = make_settings(bert, "training.steps=4", "cohort.layer_map=[[1], [2]]")
    with pytest.raises(RunError, match=r"cohort\.layer_map='spread', not") as error:
        train(other, make_tables, out, mode="resume", init=earlier)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_other_texts_are_refused_before_the_warm_up_goes_on(tmp_path, bert):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, display=interrupt("warm-up", 2))
    before = contents(tmp_path)
    with pytest.raises(RunError, match="unlabeled differs"):
        train(config, fewer, out, mode="resume")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["warm-up", "training"])
def test_overwrite_starts_over(tmp_path, bert, whole, what):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(make_settings(bert, *WHOLE, "seed=4"), make_tables, out, display=interrupt(what, 2))
    notes = Watch()
    train(config, make_tables, out, mode="overwrite", display=notes)
    assert notes.starts == [("warm-up", 0, 5), ("training", 0, 5)]
    assert outcome(out) == outcome(whole)


# without it, and after it


def test_without_unlabelled_text_there_is_none(tmp_path, bert, cache):
    notes = Watch()
    summary = train(
        make_settings(bert, *SHORT),
        lambda: make_tables(unlabeled=0),
        tmp_path / "run",
        display=notes,
    )
    assert notes.warned[0] == "no unlabelled text: no warm-up"
    assert notes.starts == [("training", 0, 2)]
    assert summary["warmup"] is None
    assert not (tmp_path / "run" / "warmup.safetensors").exists()
    assert not cache.exists()
    assert load_cohort(RunFolder(tmp_path / "run"))


REST = [
    f"phases.{phase}.{rate}=0"
    for phase in ("preparation", "teacher", "students")
    for rate in ("learning_rate", "head_learning_rate")
]


@pytest.fixture(scope="module")
def earlier(tiny_bert_folder, tmp_path_factory) -> Path:
    """A finished run with a warm-up. Read only."""
    out = tmp_path_factory.mktemp("earlier") / "run"
    settings = ["warmup.steps=4", "training.steps=4", UNCACHED]
    train(make_settings(tiny_bert_folder, *settings), make_tables, out)
    return out


@pytest.mark.parametrize("gone", [False, True])
def test_starting_from_a_run_that_was_warmed_up(tmp_path, bert, earlier, trained, gone):
    first, out = tmp_path / "first", tmp_path / "next"
    shutil.copytree(earlier, first)
    config = make_settings(bert, *REST, "training.steps=2")
    summary = train(config, make_tables, out, init=first)
    before = RunFolder(first).read_summary()
    assert summary["weights_sha256"] == before["weights_sha256"]
    assert summary["warmup"] is None  # this run made none
    expected = load_cohort(RunFolder(first))
    if gone:
        shutil.rmtree(first)  # a run folder needs no other
    for cohort in (trained[0], load_cohort(RunFolder(out))):
        for name in cohort:
            for key, value in expected[name].state_dict().items():
                assert torch.equal(cohort[name].state_dict()[key], value)
    texts, labels = make_texts(4, seed=7)
    assert evaluate_run(out, table_from_lists(texts, labels)).examples == 12
    if gone:
        export(out, tmp_path / "bundle")
        logits = predict_logits(expected[summary["selected"]], encode(out, texts), FP32)
        exported = Predictor.load(tmp_path / "bundle").predict_logits(texts)
        np.testing.assert_allclose(exported, logits, atol=1e-4)


def test_a_run_from_a_warmed_up_one_continues(tmp_path, bert, earlier):
    config = make_settings(bert, "training.steps=4")
    expected = train(config, make_tables, tmp_path / "whole", init=earlier)
    out = tmp_path / "parts"
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, init=earlier, display=interrupt("training", 3))
    resume(config, out, init=earlier)
    assert clockless(RunFolder(out).read_summary()) == clockless(expected)


def test_a_run_from_a_warmed_up_one_that_was_killed_at_once_starts_there_again(
    tmp_path, bert, earlier
):
    config = make_settings(bert, "training.steps=4")
    expected = train(config, make_tables, tmp_path / "whole", init=earlier)
    out = tmp_path / "parts"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, init=earlier, display=die("training", 1))
    resume(config, out, init=earlier)
    assert clockless(RunFolder(out).read_summary()) == clockless(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["cohort.layer_map=[[1], [2]]"], "other layer maps"),
        (["cohort.student_width=16", "cohort.student_peft=full"], "other student width"),
        (["cohort.layer_map=stride"], "other layer maps"),
        (["cohort.students=0"], "other layer maps"),
        ([], "other backbone"),
    ],
)
def test_a_warmed_up_run_that_does_not_fit(tmp_path, request, bert, earlier, settings, expected):
    folder = bert if settings else request.getfixturevalue("tiny_modernbert_folder")
    if "cohort.students=0" in settings:
        settings = [*settings, "phases.students.objectives.mutual.weight=0"]
    with pytest.raises(RunError, match=expected) as error:
        train(make_settings(folder, *settings), make_tables, tmp_path / "next", init=earlier)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("start", ["training", "interrupted"])
def test_students_of_an_earlier_run_are_not_warmed_up_again(tmp_path, bert, earlier, start):
    """Whether or not the recipe has a warm-up, and when such a run goes on, too."""
    config, out = make_settings(bert, "training.steps=4"), tmp_path / "next"
    expected = train(config, make_tables, tmp_path / "whole", init=earlier)
    config = make_settings(bert, "training.steps=4", "warmup.steps=3", UNCACHED)
    if start == "interrupted":
        with pytest.raises(InterruptedRunError):
            train(config, make_tables, out, init=earlier, display=interrupt("training", 3))
        notes = resume(config, out)
    else:
        notes = Watch()
        train(config, make_tables, out, init=earlier, display=notes)
    assert [what for what, *_ in notes.starts] == ["training"]
    assert clockless(RunFolder(out).read_summary()) == clockless(expected)


def test_without_students_nobody_warms_up(tmp_path, bert):
    settings = ["cohort.students=0", "phases.students.objectives.mutual.weight=0"]
    found = train(make_settings(bert, *SHORT, *settings), make_tables, tmp_path / "run")
    assert found["warmup"] is None


# narrow students

NARROW = [
    *("cohort.student_width=16", "warmup.steps=4", "warmup.learning_rate=3e-3"),
    "warmup.peft=full",
]


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


# the time limit


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


# what is refused


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

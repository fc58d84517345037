import json
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import torch

import nanonet
from nanonet import export as export_module
from nanonet.core.bundle import read_manifest
from nanonet.core.config import CohortConfig, Config
from nanonet.core.errors import BundleError
from nanonet.core.files import sha256_file
from nanonet.export import export, load_cohort
from nanonet.export import model as model_module
from nanonet.export.graph import check_parity, open_session, write_onnx
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import build_cohort
from nanonet.models.learner import Learner
from nanonet.models.peft import PEFT
from nanonet.training import outcome
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from runs import FAST, refuse, succeed, temporary_files
from test_peft import HEAD, counts
from test_training import Notes
from tiny import make_settings, make_tables

TRAINED = "trained.safetensors"
SHAPES = [(1, 1), (1, 2), (3, 17), (5, 64), (16, 5)]  # (rows, tokens)


def random_learner(folder, learner="student1") -> Learner:
    """Return a learner whose own parameters, the created biases too, are away from zero."""
    backbone = load_backbone(str(folder))
    cohort = build_cohort(backbone, Config(cohort=CohortConfig(student_layers=2)), classes=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in cohort[learner].own_parameters().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return cohort[learner].eval()


def feed_of(rows: int, tokens: int, vocabulary: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.arange(tokens)[None, :] < rng.integers(1, tokens + 1, size=(rows, 1))
    ids = rng.integers(0, vocabulary, size=(rows, tokens))
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def largest_difference(learner: Learner, path, shapes) -> float:
    session = open_session(path)
    worst = []
    for rows, tokens in shapes:
        feed = feed_of(rows, tokens, learner.encoder.config.vocab_size)
        with torch.inference_mode():
            expected = learner(*(torch.from_numpy(a) for a in feed.values())).numpy()
        worst.append(np.abs(session.run(None, feed)[0] - expected).max())
    return float(np.max(worst))


@pytest.fixture(scope="module", params=["tiny_bert_folder", "tiny_modernbert_folder"])
def exported(request, tmp_path_factory):
    """A learner of each family and its ONNX file."""
    learner = random_learner(request.getfixturevalue(request.param))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(learner, path)
    return learner, path


def test_onnx_equals_torch_at_every_shape(exported):
    learner, path = exported
    assert largest_difference(learner, path, SHAPES) < 1e-4
    assert check_parity(learner, path) < 1e-4


def test_the_model_tells_nothing_of_the_machine_that_made_it(exported):
    _, path = exported
    assert str(Path(nanonet.__file__).parent).encode() not in path.read_bytes()


def test_the_trained_biases_are_part_of_the_model(exported):
    """A bias that the exporter dropped would show here, and so would one that parity cannot see."""
    learner, path = exported
    biases = [n for n in learner.own_parameters() if n.startswith("encoder") and "bias" in n]
    assert len(biases) > 10
    kept = {name: learner.get_parameter(name).detach().clone() for name in biases}
    try:
        for name in biases:
            learner.get_parameter(name).data.zero_()
        with pytest.raises(BundleError, match="differs from torch's by"):
            check_parity(learner, path)
    finally:
        for name, value in kept.items():
            learner.get_parameter(name).data.copy_(value)


def test_a_learner_that_computes_nan_is_refused(exported):
    learner, path = exported
    bias = learner.head.linear.bias
    kept = bias.detach().clone()
    try:
        bias.data.fill_(float("nan"))
        with pytest.raises(BundleError, match="differs from torch's by nan"):
            check_parity(learner, path)
    finally:
        bias.data.copy_(kept)


def test_padding_changes_nothing(exported):
    learner, path = exported
    feed = feed_of(1, 9, learner.encoder.config.vocab_size)
    feed["attention_mask"][:] = 1
    padded = {name: np.pad(a, ((0, 2), (0, 20))) for name, a in feed.items()}
    padded["attention_mask"][1:, 0] = 1
    session = open_session(path)
    alone, among = session.run(None, feed)[0], session.run(None, padded)[0]
    np.testing.assert_allclose(among[:1], alone, atol=1e-5)


# from training to the bundle


@dataclass(frozen=True)
class Trained:
    """A run that was trained, its learners as they were then, and its bundle."""

    method: str
    run: Path
    learners: dict[str, Learner]
    bundle: Path


def train_and_export(folder, out: Path, *settings: str, method: str, **how) -> Trained:
    kept = {}
    select = outcome.select

    def keep(prepared, answers):
        kept.update({name: prepared.cohort[name] for name in prepared.cohort})
        return select(prepared, answers)

    peft = [f"cohort.teacher_peft={method}", f"cohort.student_peft={method}"]
    with mock.patch.object(outcome, "select", keep):
        train(make_settings(folder, *peft, *settings), make_tables, out / "run", **how)
    export(out / "run", out / "bundle")
    return Trained(method, out / "run", kept, out / "bundle")


METHODS = [("bert", method) for method in PEFT] + [("modernbert", m) for m in ("bitfit", "lora")]


@pytest.fixture(scope="module", params=METHODS, ids=["-".join(m) for m in METHODS])
def trained(request, tmp_path_factory) -> Trained:
    family, method = request.param
    folder = request.getfixturevalue(f"tiny_{family}_folder")
    return train_and_export(folder, tmp_path_factory.mktemp("trained"), method=method)


def logits_of(learner: Learner) -> torch.Tensor:
    feed = feed_of(7, 20, learner.encoder.config.vocab_size)
    with torch.inference_mode():
        return learner(*(torch.from_numpy(a) for a in feed.values()))


def test_a_trained_run_is_loaded_as_it_was_and_exported_as_it_computes(trained):
    cohort, manifest = load_cohort(RunFolder(trained.run)), read_manifest(trained.bundle)
    for name, learner in trained.learners.items():
        expected = logits_of(learner)
        assert expected.std() > 0.01
        if name == manifest.learner["name"]:  # the one that ships is calibrated
            expected = expected / manifest.calibration.temperature
        torch.testing.assert_close(logits_of(cohort[name]), expected, rtol=1e-5, atol=1e-6)
    selected = cohort[manifest.learner["name"]]
    assert largest_difference(selected, trained.bundle / "model.onnx", SHAPES) < 1e-5
    model = onnx.load(trained.bundle / "model.onnx", load_external_data=False)
    names = " ".join(tensor.name for tensor in model.graph.initializer)
    assert "encoder.layers.1" in names
    assert "lora" not in names


def test_counts_of_a_bundle_and_of_its_run(trained):
    summary, manifest = RunFolder(trained.run).read_summary(), read_manifest(trained.bundle)
    name = manifest.learner["name"]
    layers = manifest.learner["layers"]
    family = "bert" if len(summary["layer_maps"]["teacher"]) == 4 else "modernbert"
    trainable, total = counts(family, trained.method, len(layers), layers[0] == 1)
    assert summary["trainable_parameters"][name] == trainable
    assert summary["total_parameters"][name] == total
    assert manifest.parameters["trainable"] == trainable
    # LoRA's matrices become part of the pretrained ones.
    merged_away = trainable - HEAD if trained.method == "lora" else 0
    assert manifest.parameters["total"] == total - merged_away


def test_biases_that_were_created_go_all_the_way(tiny_modernbert_folder, tmp_path):
    """Training, checkpoint, stop, --resume, run folder, merging, ONNX."""
    killed = Notes(fail_at(5))
    with pytest.raises(MemoryError):
        train_and_export(tiny_modernbert_folder, tmp_path, method="bitfit", display=killed)
    pretrained = load_backbone(str(tiny_modernbert_folder)).encoder
    known = {name for name, _ in pretrained.named_parameters()}
    step = read_tensors(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / TRAINED)
    created = {n for n in step if ".encoder." in n and n.split(".encoder.")[1] not in known}
    assert {name.partition(".")[0] for name in created} == {"teacher", "student1", "student2"}
    assert all(step[name].abs().max() > 0 for name in created)

    done = train_and_export(tiny_modernbert_folder, tmp_path, method="bitfit", mode="resume")
    cohort, saved = (
        load_cohort(RunFolder(done.run)),
        read_tensors(done.run / "learners.safetensors"),
    )
    name = read_manifest(done.bundle).learner["name"]
    merged = cohort[name].merged()
    own = {n.removeprefix(f"{name}."): t for n, t in saved.items() if n.startswith(f"{name}.")}
    biases = [n.removeprefix(f"{name}.") for n in created if n.startswith(f"{name}.")]
    assert len(biases) > 10
    for bias in biases:
        assert torch.equal(merged.get_parameter(bias), own[bias])
        assert own[bias].abs().max() > 0
    path = done.bundle / "model.onnx"
    assert largest_difference(merged, path, SHAPES) < 1e-5
    for bias in biases:
        merged.get_parameter(bias).data.zero_()
    assert largest_difference(merged, path, SHAPES) > 1e-2  # they matter


def fail_at(at: int):
    def fail(step):
        if step == at:
            raise MemoryError

    return fail


def test_the_manifest_says_where_the_model_comes_from(run_folder, bundle):
    manifest = read_manifest(bundle)
    summary = json.loads((run_folder / "summary.json").read_text())
    assert manifest.labels == {"values": [0, 1, 2], "names": ["fruit", "metal", "water"]}
    assert manifest.max_length == 32
    assert manifest.learner["name"] == summary["selected"]
    assert manifest.learner["layers"] == summary["layer_maps"][summary["selected"]]
    assert manifest.learner["weights_sha256"] == summary["weights_sha256"]
    assert manifest.data["labeled"]["rows"] == 30
    assert manifest.metrics["largest_difference_from_torch"] < 1e-4
    assert manifest.files["model.onnx"] == sha256_file(bundle / "model.onnx")
    assert manifest.versions["nanonet"] == nanonet.__version__


def test_a_bundle_of_modernbert_from_the_command_line(
    corpus, tiny_modernbert_folder, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("modernbert")
    succeed(
        *("train", "--labeled", corpus / "labeled.csv", "--backbone", tiny_modernbert_folder),
        *(*FAST, "--set", "training.steps=3", "--out", folder / "run", "--quiet"),
    )
    succeed("export", folder / "run", "--out", folder / "bundle")
    scores = [
        json.loads(succeed("evaluate", folder / f, "--data", corpus / "test.csv", "--json").out)
        for f in ("run", "bundle")
    ]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]


# what is refused


@pytest.fixture
def no_onnx(monkeypatch, bundle):
    """Export without the seconds that torch's exporter takes: the model of `bundle`."""

    def copy(learner, path):
        path.write_bytes((bundle / "model.onnx").read_bytes())

    monkeypatch.setattr(model_module, "write_onnx", copy)


def corrupt(monkeypatch) -> None:
    """Let torch's learner differ from what was written."""

    def load(run: RunFolder):
        cohort = load_cohort(run)
        for name in cohort:
            cohort[name].head.linear.bias.data += 0.1 / cohort[name].head.scale
        return cohort

    monkeypatch.setattr(export_module, "load_cohort", load)


def test_export_is_exact_about_what_it_accepts(no_onnx, run_folder, tmp_path):
    export(run_folder, tmp_path / "b")
    assert read_manifest(tmp_path / "b").metrics["largest_difference_from_torch"] < 1e-4


def test_a_model_that_differs_is_refused_and_leaves_nothing(
    no_onnx, monkeypatch, run_folder, tmp_path
):
    corrupt(monkeypatch)
    parts = ["differs from torch's by 1.0e-01", "nothing was written"]
    refuse("export", run_folder, "--out", tmp_path / "deep" / "b", parts=parts)
    assert not (tmp_path / "deep" / "b").exists()
    assert temporary_files(tmp_path / "deep") == []


def test_a_failed_overwrite_keeps_the_old_bundle(no_onnx, monkeypatch, run_folder, tmp_path):
    export(run_folder, tmp_path / "b")
    before = {f.name: f.read_bytes() for f in (tmp_path / "b").iterdir()}
    corrupt(monkeypatch)
    with pytest.raises(BundleError):
        export(run_folder, tmp_path / "b", overwrite=True)
    assert {f.name: f.read_bytes() for f in (tmp_path / "b").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_an_interrupted_export_leaves_nothing(no_onnx, monkeypatch, run_folder, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_module, "check_parity", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(run_folder, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_overwrite(no_onnx, run_folder, tmp_path):
    out = tmp_path / "b"
    export(run_folder, out)
    refuse("export", run_folder, "--out", out, parts=[f"{out} exists", "--overwrite"])
    (out / "marker").write_text("x")
    succeed("export", run_folder, "--out", out, "--overwrite")
    assert not (out / "marker").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_overwrite_spares_what_is_no_bundle(no_onnx, run_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    refuse("export", run_folder, "--out", tmp_path, "--overwrite", parts=["is not a bundle"])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_may_become_a_bundle(no_onnx, run_folder, tmp_path):
    (tmp_path / "b").mkdir()
    succeed("export", run_folder, "--out", tmp_path / "b")
    read_manifest(tmp_path / "b")


def test_a_full_disk_is_one_line(no_onnx, monkeypatch, run_folder, tmp_path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_module, "write_onnx", fail)
    parts = [f"bundle {tmp_path / 'b'} cannot be written: No space left on device"]
    refuse("export", run_folder, "--out", tmp_path / "b", parts=parts)
    assert list(tmp_path.iterdir()) == []

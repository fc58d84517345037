"""Students narrower than the teacher: ``cohort.student_width``."""

import numpy as np
import onnx
import pytest
import torch

from nanonet.core.bundle import read_manifest
from nanonet.core.config import CohortConfig, Config
from nanonet.core.errors import ConfigError
from nanonet.export import export, load_cohort
from nanonet.models.backbones import Backbone, load_backbone
from nanonet.models.cohort import build_cohort
from nanonet.models.encoders import wrap_model
from nanonet.models.learner import Chunk
from nanonet.training.checkpoint import read_tensors
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_backbones import make_batch, roberta_config
from test_export import SHAPES, largest_difference, logits_of
from test_peft import HEAD, read, step
from test_training import unread
from tiny import bert_config, make_model, make_settings, make_tables, modernbert_config

WIDTH = 16  # half of the teacher's


CONFIGS = {"bert": bert_config, "modernbert": modernbert_config, "roberta": roberta_config}


def make_encoder(family: str):
    config = CONFIGS[family]()
    config.vocab_size = 90  # more words than positions, as everywhere but in tests
    return wrap_model(make_model(config))


def make_cohort(family: str, width: int = WIDTH, seed: int = 0, layer_map="spread"):
    encoder = make_encoder(family)
    settings = CohortConfig(
        student_layers=2, student_width=width, student_peft="full", layer_map=layer_map
    )
    backbone = Backbone(family, encoder, "", "mean", "")
    return encoder, build_cohort(backbone, Config(cohort=settings, seed=seed), classes=3)


def vocabulary(encoder) -> torch.Tensor:
    name = "tok_embeddings" if hasattr(encoder.embeddings, "tok_embeddings") else "word_embeddings"
    return getattr(encoder.embeddings, name).weight.detach()


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_shapes(family):
    encoder, cohort = make_cohort(family)
    for name in cohort.students:
        student = cohort[name].encoder
        assert (student.hidden_size, len(student.layers)) == (WIDTH, 2)
        assert student.max_length == encoder.max_length
        assert student.config.num_attention_heads == encoder.config.num_attention_heads
        assert student.config.intermediate_size == 24
        assert vocabulary(student).shape == (len(vocabulary(encoder)), WIDTH)
        assert cohort[name].head.linear.weight.shape == (3, WIDTH)
        assert tuple(cohort[name].projection.weight.shape) == (32, WIDTH)
        ids, mask = make_batch([9, 4])
        states = student.run_layers(student.embed(ids), mask)
        assert [tuple(s.shape) for s in states] == [(2, 9, WIDTH)] * 2
    teacher = cohort["teacher"]
    assert teacher.projection is None
    assert teacher.encoder.hidden_size == encoder.config.hidden_size == 32


def test_layers_of_modernbert_see_as_far_as_those_that_they_imitate():
    _, cohort = make_cohort("modernbert", layer_map=[[1, 3], [2, 4]])
    kinds = [[m.attention_type for m in cohort[n].encoder.layers] for n in cohort.students]
    assert kinds == [
        ["full_attention", "sliding_attention"],
        ["sliding_attention", "full_attention"],
    ]


@pytest.mark.parametrize("width", [0, 32])
def test_the_teacher_s_own_width_means_its_layers(width):
    encoder = make_encoder("bert")
    settings = CohortConfig(student_layers=2, student_width=width)
    backbone = Backbone("tiny", encoder, "", "mean", "")
    cohort = build_cohort(backbone, Config(cohort=settings), classes=3)
    words = vocabulary(encoder)
    for name in cohort.students:
        assert cohort[name].projection is None
        assert vocabulary(cohort[name].encoder).data_ptr() == words.data_ptr()


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_embeddings_are_the_teacher_s_on_the_principal_components_and_lead_back(family):
    encoder, cohort = make_cohort(family)
    words = vocabulary(encoder).numpy().astype(np.float64)
    singular = np.linalg.svd(words, compute_uv=False)
    for name in cohort.students:
        learner = cohort[name]
        components = learner.projection.weight.detach()
        torch.testing.assert_close(components.T @ components, torch.eye(WIDTH), rtol=0, atol=1e-5)
        assert (learner.projection.bias == 0).all()
        own = vocabulary(learner.encoder)
        torch.testing.assert_close(own, vocabulary(encoder) @ components, rtol=0, atol=1e-5)
        with torch.no_grad():
            back = learner.projection(own).numpy()
        # No other plane of this width lies nearer (Eckart and Young).
        assert ((words - back) ** 2).sum() == pytest.approx((singular[WIDTH:] ** 2).sum(), rel=1e-4)
        assert np.linalg.norm(own[:, 0]) == pytest.approx(singular[0], rel=1e-4)  # largest first
    theirs = [m.weight for m in encoder.modules() if isinstance(m, torch.nn.Embedding)]
    narrow = [m.weight for m in learner.encoder.modules() if isinstance(m, torch.nn.Embedding)]
    for a, b in zip(theirs, narrow, strict=True):  # of positions and types too
        torch.testing.assert_close(b, a @ components, rtol=0, atol=1e-5)


def test_what_objectives_compare_is_in_the_teacher_s_width():
    _, cohort = make_cohort("bert")
    ids, mask = make_batch([9, 4])
    chunk = Chunk(torch.arange(2), ids, mask)
    for name in cohort:
        out = cohort[name].read([chunk], keep=frozenset({"hidden_states", "attention_scores"}))
        assert {tuple(s.shape) for s in out.hidden_states} == {(13, 32)}
        assert tuple(out.pooled.shape) == (2, 32)
        torch.testing.assert_close(out.logits, cohort[name](ids, mask), rtol=0, atol=1e-5)
    learner = cohort["student1"]
    out = learner.read([chunk], keep=frozenset({"hidden_states"}))
    embedded = learner.encoder.embed(ids)
    by_hand = [learner.projection(s[mask.bool()]) for s in (embedded,)]
    torch.testing.assert_close(out.hidden_states[0], by_hand[0], rtol=0, atol=1e-6)


def test_chance_is_the_seed_s_and_every_student_s_own():
    def tensors(seed: int) -> dict[str, torch.Tensor]:
        torch.seed()  # whatever state the process is in
        return make_cohort("bert", seed=seed)[1].own_tensors()

    ours, again, other = tensors(0), tensors(0), tensors(1)
    assert all(torch.equal(t, again[n]) for n, t in ours.items())
    weight = "encoder.layers.0.attention.self.query.weight"
    assert not torch.equal(ours[f"student1.{weight}"], other[f"student1.{weight}"])
    assert not torch.equal(ours[f"student1.{weight}"], ours[f"student2.{weight}"])


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_merged_students_compute_the_same_without_the_projection(family):
    encoder, cohort = make_cohort(family)
    words = vocabulary(encoder).clone()
    step(cohort)
    assert torch.equal(vocabulary(encoder), words)
    expected = read(cohort)
    for name in cohort.students:
        merged = cohort[name].merged()
        assert not any("projection" in n for n, _ in merged.named_parameters())
        assert merged.total_count() == cohort[name].total_count() - (32 * WIDTH + 32)
        ids, mask = make_batch([30, 5, 11], seed=3)
        with torch.no_grad():
            torch.testing.assert_close(merged(ids, mask), expected[name], rtol=0, atol=1e-6)
        assert cohort[name].projection is not None  # goes on training


# from training to the bundle

# Of `tiny_bert_folder`: 36 words, 64 positions, two types.
LAYER = 4 * (WIDTH**2 + WIDTH) + (WIDTH * 24 + 24) + (24 * WIDTH + WIDTH) + 4 * WIDTH
PLAIN = (36 + 64 + 2) * WIDTH + 2 * WIDTH + 2 * LAYER + 3 * WIDTH + 3
PROJECTION = 32 * WIDTH + 32
OBJECTIVES = "phases.students.objectives"
NARROW = [f"cohort.student_width={WIDTH}", "cohort.student_peft=full"]
RICH = [
    f"{OBJECTIVES}.representation_distillation.level=hidden",
    f"{OBJECTIVES}.representation_distillation.distance=mse",
    f"{OBJECTIVES}.attention_distillation.weight=1",
    "views.feature_cutoff=0.2",
    "views.adversarial=2",
    "phases.students.learning_rate=1e-3",
]


@pytest.fixture(scope="module")
def run_and_bundle(tiny_bert_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    train(make_settings(tiny_bert_folder, *NARROW, *RICH), make_tables, folder / "run")
    export(folder / "run", folder / "bundle")
    return RunFolder(folder / "run"), folder / "bundle"


def test_the_projection_is_trained_saved_and_read_again(run_and_bundle, tiny_bert_folder):
    run, _ = run_and_bundle
    config, _ = run.read_config()
    fresh = build_cohort(load_backbone(str(tiny_bert_folder)), config, classes=3).own_tensors()
    cohort, saved = load_cohort(run), read_tensors(run.learners)
    for name in cohort.students:
        for part in ("weight", "bias"):
            key = f"{name}.projection.{part}"
            assert torch.equal(getattr(cohort[name].projection, part), saved[key])
            assert not torch.equal(saved[key], fresh[key])
    assert cohort.own_tensors().keys() == saved.keys()


def test_the_bundle_is_the_student_without_the_projection(run_and_bundle):
    run, bundle = run_and_bundle
    summary, manifest = run.read_summary(), read_manifest(bundle)
    name = manifest.learner["name"]
    learner = load_cohort(run)[name]
    assert logits_of(learner).std() > 0.01
    assert largest_difference(learner, bundle / "model.onnx", SHAPES) < 1e-5
    assert manifest.parameters["total"] == PLAIN
    assert summary["total_parameters"][name] == PLAIN + PROJECTION
    assert summary["trainable_parameters"][name] == PLAIN + PROJECTION
    assert summary["trainable_parameters"]["teacher"] > HEAD
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    stored = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == 1)
    assert abs(stored - PLAIN) < PROJECTION
    assert not any("projection" in t.name for t in model.graph.initializer)


def test_a_warm_up_of_all_weights_lets_little_be_trained_afterwards(
    tiny_modernbert_folder, tmp_path
):
    settings = [f"cohort.student_width={WIDTH}", "warmup.steps=2", "warmup.peft=full"]
    config = make_settings(tiny_modernbert_folder, *settings, "training.steps=2")
    summary = train(config, make_tables, tmp_path / "run")
    trained = summary["trainable_parameters"]["student1"]
    assert HEAD < trained < summary["total_parameters"]["student1"] / 2
    cohort = load_cohort(RunFolder(tmp_path / "run"))
    warm = RunFolder(tmp_path / "run").read_warmup()
    own = vocabulary(cohort["student1"].encoder)
    assert torch.equal(own, warm["student1.encoder.embeddings.tok_embeddings.weight"])


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["cohort.student_width=10"], ["cohort.student_width is 10", "multiple of 4", "up to 32"]),
        (["cohort.student_width=6"], ["cohort.student_width is 6", "multiple of 4"]),
        (["cohort.student_width=64"], ["cohort.student_width is 64", "up to 32", "0 means 32"]),
        (["cohort.student_width=36"], ["cohort.student_width is 36", "up to 32"]),
        (
            ["cohort.student_width=16", "cohort.student_peft=bitfit"],
            ["cohort.student_width is 16", "set cohort.student_peft=full", "warmup.peft=full"],
        ),
        (
            ["cohort.student_width=16", "cohort.student_peft=lora", "warmup.peft=bitfit"],
            ["cohort.student_width is 16", "set cohort.student_peft=full"],
        ),
        (
            [
                *("cohort.student_width=16", "cohort.student_peft=head"),
                *("warmup.steps=3", "warmup.peft=bitfit"),
            ],
            ["cohort.student_width is 16", "warmup.peft=full"],
        ),
        (["cohort.student_width=-4"], ["cohort.student_width' is -4", "at least 0"]),
    ],
)
def test_refused_before_data_is_read(tiny_bert_folder, tmp_path, settings, parts):
    with pytest.raises(ConfigError) as error:
        train(
            make_settings(tiny_bert_folder, "cohort.student_peft=full", *settings),
            unread,
            tmp_path / "run",
        )
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert not (tmp_path / "run").exists()

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from nanonet.core.errors import BackboneError, BundleError
from nanonet.export import hub, load_cohort
from nanonet.export.hub import export_hub, hub_id
from nanonet.models.backbones import load_backbone
from nanonet.models.heads import pool
from nanonet.models.learner import Learner
from nanonet.models.stock import stock_model
from nanonet.tasks.tokenization import TextTokenizer, pad
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from runs import refuse, succeed, temporary_files
from tiny import make_settings, make_tables

TEXTS = ["the old apple", "iron " * 40 + "copper", "", "a lake of silver", "wörd 🙂"]
NO_FIRST = "cohort.layer_map=[[3, 4], [2, 5]]"
CASES = {
    "bert": ("bert", []),
    "bert-cls": ("bert", ["backbone.pooling=cls", "head.normalize=false", "head.scale=3"]),
    "bert-lora": ("bert", ["cohort.teacher_peft=lora", "cohort.student_peft=lora"]),
    "modernbert": ("modernbert", ["cohort.layer_map=block_front"]),
    "modernbert-no-first": ("modernbert", [NO_FIRST]),
    "modernbert-head": ("modernbert", [NO_FIRST, "cohort.student_peft=head"]),
    "modernbert-narrow": ("modernbert", ["cohort.student_width=16", "cohort.student_peft=full"]),
}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory) -> tuple[Path, Path]:
    """A run and its folder in Hugging Face's format."""
    family, settings = CASES[request.param]
    backbone = request.getfixturevalue(f"tiny_{family}_folder")
    out = tmp_path_factory.mktemp(request.param)
    train(make_settings(backbone, *settings), make_tables, out / "run")
    export_hub(out / "run", out / "hf")
    return out / "run", out / "hf"


def selected(run: Path) -> tuple[Learner, TextTokenizer]:
    folder = RunFolder(run)
    config, _ = folder.read_config()
    name = folder.read_summary()["selected"]
    return load_cohort(folder)[name], TextTokenizer(folder.read_tokenizer(), config.data.max_length)


def logits_of(run: Path) -> np.ndarray:
    learner, tokenizer = selected(run)
    ids, mask = (torch.from_numpy(a) for a in pad(tokenizer.encode(TEXTS).ids))
    with torch.inference_mode():
        return learner(ids, mask).numpy()


def test_sentence_transformers_gives_the_run_s_logits(exported):
    library = pytest.importorskip("sentence_transformers")
    run, folder = exported
    model = library.SentenceTransformer(str(folder), device="cpu")
    expected = logits_of(run)
    np.testing.assert_allclose(model.encode(TEXTS, batch_size=2), expected, atol=1e-5)
    assert expected.std() > 0.01
    assert model.max_seq_length == 16


def test_transformers_loads_encoder_tokenizer_and_labels(exported, capfd):
    run, folder = exported
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert "MISSING" not in capfd.readouterr().err  # transformers' report of weights made up
    feed = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    learner, _ = selected(run)
    with torch.inference_mode():
        hidden = model(**feed).last_hidden_state
    vectors = pool(hidden, feed["attention_mask"], learner.pooling)
    if learner.head.normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    head = load_file(next(folder.glob("*_Dense")) / "model.safetensors")
    logits = vectors @ head["linear.weight"].T + head["linear.bias"]
    np.testing.assert_allclose(logits.numpy(), logits_of(run), atol=1e-5)
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "0", 1: "1", 2: "2"}
    assert config.label2id == {"0": 0, "1": 1, "2": 2}


def test_facts_and_no_trace_of_this_machine(exported):
    run, folder = exported
    facts = json.loads((folder / "nanonet.json").read_text(encoding="utf-8"))
    assert facts["largest_difference_from_the_run"] < 1e-5
    assert facts["learner"]["name"] == RunFolder(run).read_summary()["selected"]
    assert facts["learner"]["backbone"] is None
    files = [f for f in folder.rglob("*") if f.is_file()]
    texts = [f.read_text(encoding="utf-8") for f in files if f.suffix != ".safetensors"]
    assert not any(str(run.parent.parent) in text for text in texts)
    assert all(f.stat().st_mode & 0o444 == 0o444 for f in folder.rglob("*"))


def test_a_layer_that_does_nothing_stands_in_for_a_missing_first_one(tiny_modernbert_folder):
    encoder = load_backbone(str(tiny_modernbert_folder)).encoder
    for layers, depth in (((1, 4), 2), ((3, 4), 3)):
        part = encoder.subset(layers)
        model = stock_model(part)
        kinds = [encoder.config.layer_types[i - 1] for i in layers]
        assert model.config.num_hidden_layers == len(model.layers) == depth
        assert model.config.layer_types[-2:] == kinds
        assert model.config.norm_bias is False
    assert encoder.config.num_hidden_layers == 6  # the backbone's own stays


def test_a_shape_that_the_family_does_not_have(tiny_bert_folder):
    encoder = load_backbone(str(tiny_bert_folder)).encoder
    encoder.layers[1].odd = torch.nn.Linear(2, 2)
    with pytest.raises(BackboneError, match=r"another shape than transformers' BertModel.*odd"):
        stock_model(encoder)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("answerdotai/ModernBERT-base", "answerdotai/ModernBERT-base"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("./encoder", None),
        ("/data/encoder", None),
        ("models/team/encoder", None),
    ],
)
def test_only_names_of_the_hub_become_the_base_model(backbone, expected):
    assert hub_id(backbone) == expected


def test_the_card(corpus, run_folder, tmp_path):
    """From the command line, with an evaluation."""
    succeed("evaluate", run_folder, "--data", corpus / "test.csv")
    done = succeed("export", run_folder, "--out", tmp_path / "hf", "--format", "hf")
    assert "Hugging Face format" in done.out
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1]
    assert "pipeline_tag: text-classification" in front
    assert "\nlicense" not in front  # whoever publishes says which
    assert "base_model" not in front  # a local folder
    known = ("Probabilities are calibrated: the logits have been divided by ", "Limits")
    for part in ("| 1 | 1 | metal |", "labeled.csv | 30 |", "test.csv | 30 |", *known):
        assert part in card
    code = card.split("```python\n")[1].split("```")[0].replace("PATH", str(tmp_path / "hf"))
    pytest.importorskip("sentence_transformers")
    found: dict = {}
    exec(code, found)
    assert found["probabilities"].shape == (1, 3)
    assert found["labels"][0] in ("fruit", "metal", "water")


# what is refused


def test_out_that_is_taken(run_folder, bundle, tmp_path):
    out = tmp_path / "hf"
    export_hub(run_folder, out)
    parts = [f"{out} exists", "--overwrite"]
    refuse("export", run_folder, "--out", out, "--format", "hf", parts=parts)
    (out / "marker").write_text("x")
    succeed("export", run_folder, "--out", out, "--format", "hf", "--overwrite")
    assert not (out / "marker").exists()
    for other in (bundle, run_folder):
        with pytest.raises(BundleError, match="was not written by --format hf"):
            export_hub(run_folder, other, overwrite=True)
    refuse("export", run_folder, "--out", out, "--overwrite", parts=["is not a bundle"])
    assert temporary_files(tmp_path) == []


def test_what_makes_bundles_smaller_is_for_bundles(run_folder, tmp_path):
    for option in (
        "--quantize=int8",
        "--trim-vocabulary",
        "--tune",
        "--data=x",
        "--min-agreement=0",
    ):
        arguments = ["export", run_folder, "--out", tmp_path / "hf", "--format", "hf", option]
        refuse(*arguments, parts=["go with --format bundle"], status=2)
    assert list(tmp_path.iterdir()) == []


def test_files_that_compute_something_else_are_refused(run_folder, tmp_path, monkeypatch):
    def write(learner, length, folder):
        learner.head.linear.bias.data += 0.1 / learner.head.scale
        original(learner, length, folder)
        learner.head.linear.bias.data -= 0.1 / learner.head.scale

    original = hub.write_modules
    monkeypatch.setattr(hub, "write_modules", write)
    with pytest.raises(BundleError, match=r"differs from the run's by 1\.0e-01"):
        export_hub(run_folder, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []

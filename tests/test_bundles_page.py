"""The examples of docs/bundles.md."""

import re
from pathlib import Path

import numpy as np
import pytest

from nanonet import Predictor
from runs import succeed

PAGE = Path(__file__).parents[1] / "docs" / "bundles.md"
TEXTS = ["the old apple", "silver and tin"]


def example(word: str) -> str:
    """Return the Python example of the page that holds a word."""
    found = [c for c in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if word in c]
    assert len(found) == 1
    return found[0]


def run(code: str) -> dict:
    names: dict = {}
    exec(code, names)
    return names


def test_plain_onnxruntime(bundle, tmp_path, monkeypatch, capsys):
    (tmp_path / "bundle").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    code = example("InferenceSession")
    assert "nanonet" not in code
    predictor = Predictor.load(bundle)
    found = run(code)["probabilities"]
    np.testing.assert_allclose(found, predictor.predict_proba(TEXTS), atol=1e-6)
    assert capsys.readouterr().out == f"{predictor(TEXTS)}\n"


def test_sentence_transformers(bundle, run_folder, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    succeed("export", run_folder, "--out", tmp_path / "model", "--format", "hf")
    monkeypatch.chdir(tmp_path)
    found = run(example("SentenceTransformer"))
    expected = Predictor.load(bundle).predict_proba(TEXTS[:1])
    np.testing.assert_allclose(found["probabilities"].numpy(), expected, atol=1e-5)
    assert found["vectors"].shape == (1, 32)
    np.testing.assert_allclose(np.linalg.norm(found["vectors"]), 1, atol=1e-5)


def test_the_files_for_optimum(bundle):
    """optimum itself wants an older transformers than training does; its loaders read these."""
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(bundle), AutoTokenizer.from_pretrained(bundle)
    assert (config.model_type, config.id2label[1]) == ("bert", "metal")
    found = tokenizer(["a sea", "iron " * 99], truncation=True, padding=True)
    assert set(found) == {"input_ids", "attention_mask"}
    own = Predictor.load(bundle).encode(["a sea", "iron " * 99]).ids
    for ids, mask, row in zip(found["input_ids"], found["attention_mask"], own, strict=True):
        assert ids[: sum(mask)] == row.tolist()

"""A few steps on real text with the real encoder, where both are there."""

import json
from pathlib import Path

import pytest

from nanonet.data.readers import Columns, read_table
from nanonet.models.backbones import offline_minilm
from runs import succeed


@pytest.fixture(scope="module")
def minilm() -> str:
    if offline_minilm() is None:
        pytest.skip("the extra 'offline' is not installed")
    return "minilm"


def test_ag_news_from_the_command_line(ag_news, minilm, tmp_path):
    test = read_table(ag_news / "test.parquet", Columns(), labels="required")
    some, more = tmp_path / "test.jsonl", tmp_path / "more.jsonl"
    rows = zip(test.texts[:80], test.labels, test.names, strict=False)
    some.write_text(
        "".join(json.dumps({"text": t, "label": y, "label_name": n}) + "\n" for t, y, n in rows)
    )
    more.write_text("".join(json.dumps({"text": t}) + "\n" for t in test.texts[80:140]))
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    files = ["--labeled", ag_news / "labeled_10.parquet", "--unlabeled", more]
    small = ["--set", "training.steps=10", "--set", "training.unlabeled_batch=8"]
    small += ["--set", "warmup.steps=3", "--set", "warmup.unlabeled_batch=16"]
    small += ["--set", "warmup.cache=false", "--set", "training.threads=1"]
    small += ["--set", "data.max_length=48"]
    small += ["--set", "guard.every=0.5"]  # else it looks at every step of so few
    succeed("train", *files, *small, "--backbone", minilm, "--out", run)
    scores = json.loads(succeed("evaluate", run, "--data", some, "--json").out)
    assert scores["learners"]["teacher"] > 0.7  # chance is 0.25
    summary = json.loads((run / "summary.json").read_text())
    for learner, trained in summary["trainable_parameters"].items():
        assert trained / summary["total_parameters"][learner] <= 0.0013
    succeed("export", run, "--out", bundle, "--quantize", "int8")
    assert sum(f.stat().st_size for f in Path(bundle).iterdir()) < 19e6
    again = json.loads(succeed("evaluate", bundle, "--data", some, "--json").out)
    assert abs(again["accuracy"] - scores["accuracy"]) <= 0.04

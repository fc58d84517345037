"""How much the labelled texts of each class count."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from nanonet import NanoNetClassifier
from nanonet.core.errors import ConfigError
from nanonet.data.readers import table_from_lists
from nanonet.tasks.labels import LabelSet
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from nanonet.training.weights import class_weights
from runs import FAST, refuse, succeed
from tiny import make_settings, make_tables, make_texts

LABELS = LabelSet((0, 1, 2), ("fruit", "metal", "water"))


def settings(value, folder="minilm"):
    return make_settings(folder, f"training.class_weight={value}")


def test_balanced_is_scikit_learn_s():
    truth = np.array([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    found = class_weights(settings("balanced"), LABELS, truth)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert class_weights(settings("none"), LABELS, truth) is None


def test_a_table_by_value_or_name():
    found = class_weights(settings('{metal = 5, "2" = 0.5}'), LABELS, np.array([0, 1, 2]))
    assert found.tolist() == [1.0, 5.0, 0.5]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("balance", ["'balance'", "did you mean 'balanced'", "or a table of weights"]),
        ("{metal = 0}", ["training.class_weight.metal", "must be above 0"]),
        ("{metal = inf}", ["training.class_weight.metal", "must be above 0"]),
        ("{metal = 'x'}", ["training.class_weight", "must be str or dict"]),
        ("{metl = 2}", ["training.class_weight.metl", "did you mean 'metal'", "fruit, metal, wat"]),
    ],
)
def test_refused(train_arguments, tmp_path, value, parts):
    out = tmp_path / "run"
    arguments = ("--set", f"training.class_weight={value}", "--out", out)
    refuse(*train_arguments, *arguments, parts=parts, status=2)
    assert not out.exists()


def test_a_summarizer_has_no_classes(tiny_bert_folder):
    config = make_settings(tiny_bert_folder, "training.class_weight=balanced")
    from dataclasses import replace

    from nanonet.training.weights import check_class_weight

    with pytest.raises(ConfigError, match="is for classification"):
        check_class_weight(replace(config, task="summarization"))


def test_a_heavy_class_is_learnt_first(tiny_bert_folder, tmp_path):
    """The weights reach the loss: with one class at ten thousand, all answers are that class."""
    tables = make_tables()
    config = make_settings(tiny_bert_folder, 'training.class_weight={"1" = 10000}')
    train(config, lambda: tables, tmp_path / "run")
    succeed("export", tmp_path / "run", "--out", tmp_path / "bundle")
    from nanonet import Predictor

    texts, _ = make_texts(20, seed=9)
    assert Counter(Predictor.load(tmp_path / "bundle")(texts)) == {"1": 60}


def weights_of(run):
    return RunFolder(run).read_summary()["weights_sha256"]


def test_equal_counts_balance_to_nothing(tiny_bert_folder, tmp_path):
    tables = make_tables()
    for name in ("none", "balanced"):
        train(settings(name, tiny_bert_folder), lambda: tables, tmp_path / name)
    assert weights_of(tmp_path / "none") == weights_of(tmp_path / "balanced")


def test_unequal_counts_do_not(tiny_bert_folder, tmp_path):
    full = make_tables()
    rows = [i for i, y in enumerate(full.labeled.labels) if y != 2] + [2]
    few = table_from_lists(
        [full.labeled.texts[i] for i in rows], [full.labeled.labels[i] for i in rows], "few"
    )
    tables = TrainingTables(few, full.unlabeled, None)
    for name in ("none", "balanced"):
        train(settings(name, tiny_bert_folder), lambda: tables, tmp_path / name)
    assert weights_of(tmp_path / "none") != weights_of(tmp_path / "balanced")
    train(settings("balanced", tiny_bert_folder), lambda: tables, tmp_path / "again")
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "balanced")


def test_the_estimator(tiny_bert_folder, tmp_path):
    texts, labels = make_texts(4)
    fast = {k: v for part in FAST[1::2] for k, v in [part.split("=")]}
    values = {k: v if k.endswith("precision") else int(v) for k, v in fast.items()}
    common = {"backbone": str(tiny_bert_folder), "steps": 3, "settings": values}
    for given, kept in (
        ("balanced", "balanced"),
        ({0: 2, np.int64(1): 3.5}, {"0": 2.0, "1": 3.5}),
    ):
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        model = NanoNetClassifier(**common, class_weight=given, run_dir=run)
        model.fit(texts, labels)
        config, _ = RunFolder(run).read_config()
        assert config.training.class_weight == kept
        assert model.get_params()["class_weight"] == given
    with pytest.raises(ConfigError, match=r"training\.class_weight\.9' names no label"):
        NanoNetClassifier(**common, class_weight={9: 2}).fit(texts, labels)
    assert torch.get_num_threads() == 1

"""Texts that may have several labels each: files, metrics, thresholds, propagation."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from nanonet.core.config import Config, DataConfig, PropagationConfig
from nanonet.core.errors import ConfigError, DataError
from nanonet.data.multilabel import multilabel_from_lists, read_multilabel
from nanonet.data.writers import write_table
from nanonet.tasks import multilabel
from nanonet.tasks.labels import LabelSet
from nanonet.training.multilabel import encode_labels, label_set_of
from nanonet.training.propagation import propagate, propagate_each
from nanonet.training.tasks import make_task
from runs import refuse

# reading


def test_every_format_gives_the_same_table(tmp_path):
    texts, labels = ["one", "two", "three"], [["b", "a"], [], ["a"]]
    tables = []
    for name in ("a.jsonl", "a.parquet", "a.csv", "a.tsv"):
        cells = labels if name[2:] in ("jsonl", "parquet") else ["b; a;", "", "a"]
        write_table(tmp_path / name, {"text": texts, "label": cells})
        tables.append(read_multilabel(tmp_path / name, DataConfig(), labels="required"))
    for table in tables:
        assert (table.texts, table.label_lists) == (texts, labels)
    assert {t.rows[0] for t in tables[:2]} == {1}
    other = DataConfig(label_separator="|", label_column="tags", text_column="t")
    write_table(tmp_path / "b.csv", {"t": ["x", "y"], "tags": ["1|2", "2"]})
    assert read_multilabel(tmp_path / "b.csv", other, labels="required").label_lists == [
        [1, 2],
        [2],
    ]


def test_a_label_name_column_is_not_read(tmp_path):
    columns = {"text": ["x", "y"], "label": [["a"], ["b"]], "label_name": ["A", "B"]}
    write_table(tmp_path / "a.jsonl", columns)
    assert read_multilabel(tmp_path / "a.jsonl", DataConfig(), labels="required").names is None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x", "label": "a"}, ["line 2", "'label'", "no list of labels"]),
        ({"text": "x", "label": None}, ["line 2", "no list of labels"]),
        ({"text": "x", "label": [True]}, ["line 2", "truth value"]),
        ({"text": "x", "label": [1.5]}, ["line 2", "whole number or a word"]),
        ({"text": " ", "label": ["a"]}, ["line 2", "'text' is empty"]),
        ({"text": "x"}, ["label"]),
    ],
)
def test_labels_that_cannot_be_read(tmp_path, row, says):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "fine", "label": ["a", "b"]}) + "\n" + json.dumps(row) + "\n"
    )
    with pytest.raises(DataError) as error:
        read_multilabel(path, DataConfig(), labels="required")
    assert all(part in str(error.value) for part in says), error.value
    assert "\n" not in str(error.value)


def test_cells_of_a_csv_file(tmp_path):
    write_table(
        tmp_path / "a.csv", {"text": list("vwxyz"), "label": ["1.0;2", "1", "nan", "[2]", ""]}
    )
    table = read_multilabel(tmp_path / "a.csv", DataConfig(), labels="required")
    assert table.label_lists == [[1, 2], [1], [], [2], []]
    write_table(tmp_path / "b.csv", {"text": ["x", "y"], "label": ["1", "1.5"]})
    with pytest.raises(DataError, match=r"b.csv, line 3.*1.5 must be a whole number or a word"):
        read_multilabel(tmp_path / "b.csv", DataConfig(), labels="required")
    write_table(tmp_path / "c.jsonl", {"text": ["x"], "label": [[["a"]]]})
    with pytest.raises(DataError, match="holds lists"):
        read_multilabel(tmp_path / "c.jsonl", DataConfig(), labels="required")


def test_lists_of_labels_for_a_classifier(tmp_path):
    write_table(tmp_path / "a.jsonl", {"text": ["x", "y"], "label": [["a", "b"], ["a"]]})
    what = ["train", "--labeled", tmp_path / "a.jsonl", "--out", tmp_path / "r"]
    refuse(*what, parts=["line 1", "is a list", "--task multilabel"])


def test_mixed_kinds_and_unknown_labels(tmp_path):
    mixed = multilabel_from_lists(["x", "y"], [["a"], [1]], "given")
    with pytest.raises(DataError, match="mixes numbers and words"):
        label_set_of(mixed)
    known = LabelSet.from_columns(["a", "b"], None, "given")
    with pytest.raises(DataError, match="given, row 2: unknown label 'c'"):
        encode_labels(multilabel_from_lists(["x", "y"], [["a"], ["b", "c"]], "given"), known)


# metrics and thresholds


def test_metrics_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth, said = (rng.random((30, 4)) < 0.3 for _ in range(2))
        assert multilabel.exact_match(truth, said) == accuracy_score(truth, said)
        assert multilabel.micro_f1(truth, said) == pytest.approx(
            f1_score(truth, said, average="micro")
        )
        assert multilabel.macro_f1(truth, said) == pytest.approx(
            f1_score(truth, said, average="macro")
        )
    nothing = np.zeros((3, 2), dtype=bool)
    assert (multilabel.micro_f1(nothing, nothing), multilabel.macro_f1(nothing, nothing)) == (0, 0)
    only = nothing | np.array([True, False])
    assert multilabel.macro_f1(only, only) == 1.0  # the label that never occurs is left out


def test_thresholds_are_those_of_the_best_f1():
    rng = np.random.default_rng(1)
    truth = rng.random((80, 3)) < np.array([0.5, 0.2, 0.02])
    truth[:2, 2] = True
    assert 2 <= truth[:, 2].sum() < multilabel.FEWEST
    probabilities = np.clip(0.3 * truth + 0.5 * rng.random((80, 3)), 0, 1)
    found = multilabel.best_thresholds(truth, probabilities)

    def f1(columns, limit):
        return multilabel.micro_f1(truth[:, columns], probabilities[:, columns] >= limit)

    grid = np.linspace(0, 1, 2001)
    for k in (0, 1):
        assert f1([k], found[k]) >= max(f1([k], limit) for limit in grid) - 1e-12
    # A label of too few texts has no threshold of its own.
    assert found[2] == multilabel.best_thresholds(truth[:, 2:], probabilities[:, 2:])[0]
    none = multilabel.best_thresholds(np.zeros((5, 1), dtype=bool), probabilities[:5, :1])
    assert none == [0.5]


def test_labels_too_few_texts_have_share_a_threshold():
    truth = np.array([[1, 0], [0, 1], [0, 0], [0, 0]], dtype=bool)
    probabilities = np.array([[0.4, 0.1], [0.2, 0.35], [0.1, 0.2], [0.2, 0.1]])
    first, second = multilabel.best_thresholds(truth, probabilities)
    assert first == second
    assert 0.2 < first <= 0.35


# learning


def test_propagation_is_that_of_each_label_on_its_own():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    flags = (rng.random((15, 3)) < 0.4).astype(np.int64)
    config = PropagationConfig(0.25, 5, 0.9, 20)
    found = propagate_each(vectors[:15], flags, vectors[15:], config)
    assert found.probabilities.shape == (25 * 3, 2)
    assert found.confidence.shape == (25 * 3,)
    for k in range(3):
        own = propagate(vectors[:15], flags[:, k], vectors[15:], 2, config).probabilities
        weighed = own * np.array([1 - flags[:, k].mean(), flags[:, k].mean()])
        weighed /= weighed.sum(1, keepdims=True)
        np.testing.assert_allclose(found.probabilities[k::3], weighed, atol=1e-5)
    assert set(np.round(found.confidence * 74).astype(int)) == set(range(75))


def warnings_of(*labels: list[str], validation: list[list[str]] | None = None) -> list[str]:
    table = multilabel_from_lists([f"text {i}" for i in range(len(labels))], labels, "given")
    tables = {"labeled": table}
    if validation is not None:
        texts = [f"other {i}" for i in range(len(validation))]
        tables["validation"] = multilabel_from_lists(texts, validation, "held out")
    task = make_task(dataclasses.replace(Config(), task="multilabel"))
    return task.warnings(tables, label_set_of(table))


def test_odd_labels_are_told():
    assert warnings_of(["a", "b"], ["a"], []) == []
    (warning,) = warnings_of(["a", "b"], ["a"])
    assert "every text has 'a'" in warning
    (warning,) = warnings_of(["a"], ["b"])
    assert "no text has several labels" in warning
    with pytest.raises(DataError, match="held out: no text has a label"):
        warnings_of(["a", "b"], [], validation=[[], []])
    nothing = dataclasses.replace(Config(), task="multilabel", data=DataConfig(label_separator=""))
    with pytest.raises(ConfigError, match="label_separator"):
        make_task(nothing)

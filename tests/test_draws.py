"""Label draws of a benchmark that are made hard."""

from pathlib import Path

import pytest

from nanonet.benchmark.draws import Dataset, draw, read_dataset
from nanonet.benchmark.suite import DatasetConfig
from nanonet.benchmark.table import about_data
from nanonet.core.errors import DataError
from nanonet.data.writers import write_table
from tiny import make_texts


def dataset_of(folder: Path, **hardships: object) -> Dataset:
    """Return 40 texts of each of three classes, 10 of them for testing."""
    texts, labels = make_texts(40)
    write_table(folder / "train.csv", {"text": texts[30:], "label": labels[30:]})
    write_table(folder / "test.csv", {"text": texts[:30], "label": labels[:30]})
    strange = [*texts[:40], *(f"strange text {i}" for i in range(200))]
    write_table(folder / "strange.csv", {"text": strange})
    config = DatasetConfig("train.csv", "test.csv", labeled_per_class=5, **hardships)
    return read_dataset("things", config, folder)


def truth_of(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.train.texts, dataset.train.labels, strict=True))


def test_classes_grow_rarer_with_and_without_labels(tmp_path):
    dataset = dataset_of(tmp_path, imbalance=4.0)
    drawn = draw(dataset, 3)
    truth = truth_of(dataset)
    assert [truth[text] for text in drawn.labeled] == drawn.labels
    assert [drawn.labels.count(c) for c in range(3)] == [5, 2, 1]  # round(5 * 4**(-c/2))
    pool = [truth[text] for text in drawn.unlabeled]
    assert [pool.count(c) for c in range(3)] == [25, 12, 6]


def test_a_share_of_the_labels_is_wrong(tmp_path):
    dataset = dataset_of(tmp_path, wrong_labels=0.4)
    drawn, plain = draw(dataset, 3), draw(dataset_of(tmp_path), 3)
    truth = truth_of(dataset)
    assert (drawn.labeled, drawn.unlabeled) == (plain.labeled, plain.unlabeled)
    wrong = [truth[text] != label for text, label in zip(drawn.labeled, drawn.labels, strict=True)]
    assert sum(wrong) == 6  # of 15
    assert set(drawn.labels) == {0, 1, 2}
    assert drawn == draw(dataset, 3)
    all_wrong = draw(dataset_of(tmp_path, wrong_labels=0.9), 3)
    assert [a == b for a, b in zip(all_wrong.labels, plain.labels, strict=True)].count(True) == 3


@pytest.mark.parametrize(
    ("share", "own", "others"), [(0.5, 75, 75), (0.25, 75, 25), (0.8, 50, 200)]
)
def test_foreign_texts_are_mixed_in(tmp_path, share, own, others):
    """As many as the smaller source allows, and none that is a test text."""
    dataset = dataset_of(tmp_path, foreign="strange.csv", foreign_share=share)
    drawn = draw(dataset, 3)
    strange = [text.startswith("strange") for text in drawn.unlabeled]
    assert (strange.count(False), strange.count(True)) == (own, others)
    assert not set(drawn.unlabeled) & {*dataset.test.texts, *drawn.labeled}
    assert len(set(drawn.unlabeled)) == own + others
    assert 0 < sum(strange[: len(strange) // 2]) < sum(strange)


def test_foreign_texts_that_are_no_others(tmp_path):
    dataset = dataset_of(tmp_path, foreign="train.csv")
    with pytest.raises(DataError, match="75 texts and 0 foreign ones make no mixture"):
        draw(dataset, 3)


def test_what_is_hard_is_part_of_a_draws_identity_and_is_told(tmp_path):
    plain = dataset_of(tmp_path)
    assert "Made hard" not in about_data("things", plain.describe())
    hard = dataset_of(tmp_path, imbalance=3.0, wrong_labels=0.2, foreign="strange.csv")
    assert "foreign" not in plain.identity(0)
    keys = {"imbalance", "wrong_labels", "foreign", "foreign_share"}
    assert hard.identity(0).keys() - plain.identity(0).keys() == keys
    told = about_data("things", hard.describe())
    assert "the first class 3 times as common as the last, 20% of the labels wrong" in told
    assert "50% of the texts without labels from strange.csv" in told

import numpy as np
import pytest

from nanonet.core.errors import DataError
from nanonet.tasks.labels import LabelSet, as_numbers, listing, place, quoted

TOPICS = LabelSet((0, 1, 2), ("World", "Sports", "Business"))


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([10, 9, 9, -1], (-1, 9, 10)),
        (["10", "9", "9"], (9, 10)),
        (["spam", "ham", "spam"], ("ham", "spam")),
        (["010", "009", "100"], ("009", "010", "100")),
        ([1, "0"], (0, 1)),
    ],
)
def test_values_are_sorted_and_numbers_recognised(labels, values):
    label_set = LabelSet.from_columns(labels, None, "train.csv")
    assert label_set.values == values
    assert label_set.names == tuple(str(value) for value in values)
    assert len(label_set) == len(values)


def test_names_follow_their_values():
    labels = [2, 0, 1, 0]
    names = ["Business", "World", "Sports", "World"]
    assert LabelSet.from_columns(labels, names, "train.csv") == TOPICS


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([], None, ["train.csv", "no labels"]),
        (
            ["1", "2", "sport"],
            None,
            ["mixes numbers and words", "'1' (line 4)", "'sport' (line 8)"],
        ),
        ([1, "sport"], None, ["mixes numbers and words", "1 (line 4)", "'sport' (line 6)"]),
        ([0, 1, 0], ["a", "b", "c"], ["line 8", "label 0", "'c'", "'a' in line 4"]),
        ([0, 1], ["a", "a"], ["line 6", "name 'a'", "label 1", "0 in line 4"]),
        ([0, 1], ["1", "0"], ["train.csv", "'1' is the name of label 0"]),
        ([0, 1], ["a"], ["2 labels but 1 label names"]),
        ([0, True], None, ["line 6", "True"]),
        ([0, 1.5], None, ["line 6", "1.5"]),
        ([0, None], None, ["line 6", "None"]),
    ],
)
def test_ambiguous_columns_are_refused(labels, names, expected):
    with pytest.raises(DataError) as error:
        LabelSet.from_columns(labels, names, "train.csv", rows=[4, 6, 8])
    message = one_line(error)
    assert all(part in message for part in expected), message


def test_encode_takes_values_names_and_numbers_as_text():
    ids = TOPICS.encode([2, "2", "Business", " World ", np.int64(1)], "test.csv")
    assert ids.dtype == np.int64
    assert ids.tolist() == [2, 2, 2, 0, 1]
    assert TOPICS.encode([], "test.csv").shape == (0,)


def test_encode_keeps_codes_apart_from_numbers():
    codes = LabelSet.from_columns(["007", "100"], None, "train.csv")
    # A file that happens to hold only "100" is read as the number 100.
    assert codes.encode([100, "007"], "test.csv").tolist() == [1, 0]


def test_unknown_label_is_named_with_its_place_and_the_known_ones():
    with pytest.raises(DataError) as error:
        TOPICS.encode([0, "sport"], "test.csv", rows=[2, 9])
    message = one_line(error)
    assert message == (
        "test.csv, line 9: unknown label 'sport' (did you mean 'Sports'?); "
        "the known labels are 0 (World), 1 (Sports), 2 (Business)"
    )


@pytest.mark.parametrize("label", [7, True, None, 1.5, "x\ny" * 100])
def test_unknown_label_of_any_kind_is_one_short_line(label):
    with pytest.raises(DataError) as error:
        TOPICS.encode([label], "test.parquet")
    message = one_line(error)
    assert "test.parquet, row 1" in message
    assert len(message) < 250


def test_long_list_of_known_labels_is_cut():
    many = LabelSet.from_columns(list(range(25)), None, "train.csv")
    with pytest.raises(DataError, match=r"8, 9, \.\.\. and 15 more$"):
        many.encode([77], "test.csv")


def test_json_round_trip():
    words = LabelSet(("ham", "spam"), ("ham", "spam"))
    for label_set in (TOPICS, words):
        assert LabelSet.from_json(label_set.to_json()) == label_set
    assert TOPICS.to_json() == {"values": [0, 1, 2], "names": ["World", "Sports", "Business"]}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"values": "ab", "names": ["a", "b"]},
        {"values": [0, 1], "names": ["a"]},
        {"values": [0, 0], "names": ["a", "b"]},
        {"values": [0, 1], "names": ["a", "a"]},
        {"values": [0, True], "names": ["a", "b"]},
        {"values": [0, 1.5], "names": ["a", "b"]},
        {"values": [0, 1], "names": ["a", 1]},
        {"values": [1, "1"], "names": ["a", "b"]},
    ],
)
def test_damaged_json_is_refused(data):
    with pytest.raises(DataError, match="label set") as error:
        LabelSet.from_json(data)
    one_line(error)


def test_as_numbers_changes_all_or_nothing():
    assert as_numbers(["0", "-1"]) == [0, -1]
    assert as_numbers(["0", "x"]) == ["0", "x"]
    assert as_numbers(["9" * 5000]) == ["9" * 5000]


def test_message_parts():
    assert place("a/B.CSV.gz", 3) == "a/B.CSV.gz, line 3"
    assert place("hub:imdb", 3) == "hub:imdb, row 3"
    assert quoted("a\nb") == r"'a\nb'"
    assert len(quoted("x" * 1000)) == 60
    assert listing(["a", "b"]) == "a, b"


def test_names_that_contradict_the_labels_are_refused():
    labels = LabelSet((0, 1), ("World", "Sports"))
    assert labels.encode([0, 1], "t.csv", names=["World", "other name"]).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"t\.csv, line 7: label 1 is named 'World'.*'Sports'"):
        labels.encode([0, 1], "t.csv", rows=[6, 7], names=["World", "World"])

import pytest

from nanonet.core.errors import DataError
from nanonet.data.checks import (
    check_labeled,
    conflicting_duplicates,
    duplicate_count,
    fingerprint,
    normalize_text,
)
from nanonet.data.readers import Columns, TextTable, read_table, table_from_lists
from nanonet.tasks.labels import LabelSet

BINARY = LabelSet((0, 1), ("no", "yes"))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("A  b\n", "a B"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("cafe\u0301", "Caf\u00e9"),
        ("a\u00a0b", "a b"),
        ("\u0130", "i\u0307"),
    ],
)
def test_copies_have_one_normal_form(a, b):
    assert normalize_text(a) == normalize_text(b)
    assert normalize_text(normalize_text(a)) == normalize_text(a)


def test_normal_form_keeps_what_matters():
    assert normalize_text("not good!") != normalize_text("not good")


def test_conflicts_pair_the_first_copy_with_each_later_one():
    texts = ["a", "b", "A", " a ", "b"]
    assert conflicting_duplicates(texts, [0, 1, 1, 2, 1]) == [(0, 2), (0, 3)]
    assert conflicting_duplicates(texts, [0, 1, 0, 0, 1]) == []


def test_duplicates():
    assert duplicate_count(["a", "A", "b", "a "]) == 2
    assert duplicate_count([]) == 0


def test_fingerprint_does_not_depend_on_the_format(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,0\ny,1\n")
    from_file = read_table(path, Columns(), labels="required")
    assert fingerprint(from_file) == fingerprint(table_from_lists(["x", "y"], [0, 1]))
    assert len(fingerprint(from_file)) == 64


def test_fingerprint_tells_different_data_apart():
    tables: list[tuple[TextTable, ...]] = [
        (),
        (table_from_lists(["ab", "c"]),),
        (table_from_lists(["a", "bc"]),),
        (table_from_lists(["c", "ab"]),),
        (table_from_lists(["ab"]), table_from_lists(["c"])),
        (table_from_lists(["ab", "c"], [0, 1]),),
        (table_from_lists(["ab", "c"], [1, 0]),),
        (table_from_lists(["ab", "c", "0", "1"]),),
    ]
    assert len({fingerprint(*each) for each in tables}) == len(tables)


def test_clean_table_has_no_warnings():
    assert check_labeled(table_from_lists(["a", "b"], [0, 1]), BINARY) == []


def test_warnings_name_the_count_and_the_first_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,0\nb,1\nA,1\na ,0\nb,0\n")
    table = read_table(path, Columns(), labels="required")
    assert check_labeled(table, BINARY) == [
        f"{path}: 2 copies of an earlier text with another label (first: line 2 and line 4); "
        "decide on one label",
        f"{path}: 1 copy of an earlier text with the same label; "
        "remove them unless their weight is meant",
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, "has no labels"),
        (["yes", "yes"], "only one class ('yes')"),
        (["yes", "nay"], "the given lists, row 2: unknown label 'nay'"),
    ],
)
def test_unusable_tables(labels, expected):
    with pytest.raises(DataError) as error:
        check_labeled(table_from_lists(["a", "b"], labels), BINARY)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)

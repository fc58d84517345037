import hashlib
import json
from pathlib import Path

import pytest

from nanonet.core.errors import ConfigError, DataError
from nanonet.data.checks import normalize_text
from nanonet.data.readers import Columns, TextTable, read_table, table_from_lists
from nanonet.data.splits import Split, split_table, write_split

DATASETS = Path(__file__).parents[2] / "shared" / "datasets"


def make(per_class: int = 40, classes: int = 3) -> TextTable:
    n = per_class * classes
    return table_from_lists([f"text {i}" for i in range(n)], [i % classes for i in range(n)])


def of_class(table: TextTable, rows: list[int], label: int) -> list[int]:
    return [i for i in rows if table.labels[i] == label]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_split_is_stratified_disjoint_and_complete():
    table = make()
    split = split_table(table, labeled_per_class=5, validation_per_class=4, seed=0)
    for label in range(3):
        assert len(of_class(table, split.labeled, label)) == 5
        assert len(of_class(table, split.validation, label)) == 4
    everything = [*split.labeled, *split.validation, *split.unlabeled]
    assert sorted(everything) == list(range(120))
    assert split.unlabeled == sorted(split.unlabeled)
    assert all(type(i) is int for i in everything)


@pytest.mark.parametrize("validation", [(0, 0), (0, 10), (10, 3)])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_draws_are_nested_whatever_the_validation_size(validation, seed):
    table = make()
    small = split_table(table, labeled_per_class=10, validation_per_class=validation[0], seed=seed)
    large = split_table(table, labeled_per_class=30, validation_per_class=validation[1], seed=seed)
    for label in range(3):
        longer = of_class(table, large.labeled, label)
        assert of_class(table, small.labeled, label) == longer[:10]


def test_excluding_a_row_does_not_reorder_the_others():
    table = make()
    plain = split_table(table, labeled_per_class=20, seed=3)
    gone = plain.labeled[0]
    other = split_table(
        table, labeled_per_class=20, seed=3, exclude=table_from_lists([table.texts[gone]])
    )
    kept = [i for i in plain.labeled if i != gone]
    assert [i for i in other.labeled if i in set(kept)] == kept


def test_same_seed_same_split_other_seed_other_split():
    first = split_table(make(), labeled_per_class=5, validation_per_class=5, seed=7)
    assert split_table(make(), labeled_per_class=5, validation_per_class=5, seed=7) == first
    assert split_table(make(), labeled_per_class=5, validation_per_class=5, seed=8) != first


def test_draw_is_pinned():
    # Published splits must stay the same from version to version.
    split = split_table(make(10, 2), labeled_per_class=3, seed=0)
    assert split.labeled == [6, 4, 2, 15, 9, 11]


def test_classes_are_drawn_independently():
    split = split_table(make(), labeled_per_class=10, seed=0)
    places = [[i // 3 for i in split.labeled if i % 3 == label] for label in range(3)]
    assert places[0] != places[1] != places[2]


def test_copies_conflicts_and_excluded_texts_are_dropped_and_counted():
    texts = ["a", "A ", "b", "c", "C", "d", "e", "f", "g"]
    labels = [0, 0, 1, 0, 1, 0, 1, 0, 1]
    exclude = table_from_lists(["D", "z"], source="test.csv")
    split = split_table(
        table_from_lists(texts, labels), labeled_per_class=2, seed=0, exclude=exclude
    )
    assert (split.duplicates_dropped, split.conflicts_dropped, split.excluded_dropped) == (1, 2, 1)
    assert sorted(split.labeled + split.unlabeled) == [0, 2, 6, 7, 8]
    assert split.exclude_source == "test.csv"


def test_small_class_is_named_with_the_largest_possible_number():
    table = table_from_lists(
        [f"t{i}" for i in range(20)], ["rare" if i < 4 else "common" for i in range(20)]
    )
    with pytest.raises(DataError) as error:
        split_table(table, labeled_per_class=5, validation_per_class=1, seed=0)
    message = str(error.value)
    assert "\n" not in message
    for part in ("the given lists", "'rare'", "4 usable rows", "labeled_per_class is 3"):
        assert part in message
    assert len(split_table(table, labeled_per_class=3, validation_per_class=1, seed=0).labeled) == 6
    with pytest.raises(DataError, match="lower validation_per_class"):
        split_table(table, labeled_per_class=1, validation_per_class=4, seed=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"labeled_per_class": 0, "seed": 0}, "labeled_per_class is 0"),
        ({"labeled_per_class": 1, "seed": -1}, "seed is -1"),
        (
            {"labeled_per_class": 1, "seed": 0, "validation_per_class": -1},
            "validation_per_class is -1",
        ),
    ],
)
def test_numbers_out_of_range(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        split_table(make(), **settings)


@pytest.mark.parametrize(("labels", "expected"), [(None, "no labels"), ([1, 1], "only one class")])
def test_unusable_tables(labels, expected):
    with pytest.raises(DataError, match=expected):
        split_table(table_from_lists(["a", "b"], labels), labeled_per_class=1, seed=0)


def drawn(table: TextTable) -> Split:
    return split_table(table, labeled_per_class=2, validation_per_class=1, seed=5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_written_split_reads_back(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    source = tmp_path / "all.csv"
    rows = "".join(f"text {i},{i % 2},{'no' if i % 2 == 0 else 'yes'}\n" for i in range(20))
    source.write_text("text,label,label_name\n" + rows)
    table = read_table(source, Columns(), labels="required")
    out = tmp_path / "deep" / "split"
    split = drawn(table)
    write_split(split, table, out, suffix)
    labeled = read_table(out / f"labeled{suffix}", Columns(), labels="required")
    assert labeled.texts == [table.texts[i] for i in split.labeled]
    assert labeled.labels == [table.labels[i] for i in split.labeled]
    assert labeled.names == [table.names[i] for i in split.labeled]
    validation = read_table(out / f"validation{suffix}", Columns(), labels="required")
    assert len(validation.texts) == 2
    pool = read_table(out / f"unlabeled{suffix}", Columns(), labels="optional")
    assert pool.labels is None
    hidden = read_table(
        out / f"unlabeled{suffix}", Columns(label="label_hidden"), labels="required"
    )
    assert hidden.labels == [table.labels[i] for i in split.unlabeled]
    record = json.loads((out / "split.json").read_text())
    assert record["source"] == str(source)
    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record["seed"] == 5
    assert record["classes"][1] == {
        "label": 1,
        "name": "yes",
        "labeled": 2,
        "validation": 1,
        "unlabeled": 7,
    }
    assert sorted(contents(out)) == sorted([*record["files"], "split.json"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["split"]


def test_parts_without_rows_get_no_file(tmp_path):
    table = make(2)
    write_split(split_table(table, labeled_per_class=2, seed=0), table, tmp_path / "s", ".csv")
    assert sorted(contents(tmp_path / "s")) == ["labeled.csv", "split.json"]
    record = json.loads((tmp_path / "s" / "split.json").read_text())
    assert record["source_sha256"] is None


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path):
    table = make(10)
    out = tmp_path / "split"
    out.mkdir()
    write_split(drawn(table), table, out, ".csv")
    before = contents(out)
    with pytest.raises(DataError, match="not an empty folder"):
        write_split(drawn(table), table, out, ".csv")
    assert contents(out) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="not an empty folder"):
        write_split(drawn(table), table, tmp_path / "file", ".csv")
    with pytest.raises(DataError, match="unknown file type 'csv'"):
        write_split(drawn(table), table, tmp_path / "new", "csv")
    with pytest.raises(DataError, match="name a new folder"):
        write_split(drawn(table), table, Path(), ".csv")
    with pytest.raises(DataError, match="cannot write"):
        write_split(drawn(table), table, tmp_path / "file" / "split", ".csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "split"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, failure):
    table = make(10)

    def fail(*_args, **_options):
        raise failure

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises((DataError, KeyboardInterrupt)):
        write_split(drawn(table), table, tmp_path / "split", ".csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["trec6", "sms_spam"])
def test_real_data(name):
    pytest.importorskip("pyarrow")
    if not (DATASETS / name).is_dir():
        pytest.skip(f"no {DATASETS / name}")
    train = read_table(DATASETS / name / "train.parquet", Columns(), labels="required")
    test = read_table(DATASETS / name / "test.parquet", Columns(), labels="required")
    split = split_table(train, labeled_per_class=30, validation_per_class=8, seed=0, exclude=test)
    held_out = {normalize_text(text) for text in test.texts}
    parts = [
        {normalize_text(train.texts[i]) for i in rows}
        for rows in (split.labeled, split.validation, split.unlabeled)
    ]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert not held_out & set().union(*parts)

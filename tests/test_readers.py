import gzip
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nanonet.core.errors import DataError, MissingExtraError
from nanonet.data.readers import Columns, TextTable, read_table, table_from_lists
from nanonet.data.writers import write_table

DATASETS = Path(__file__).parents[2] / "shared" / "datasets"
COLUMNS = Columns()


def read(path: str | Path, labels="required", columns: Columns = COLUMNS) -> TextTable:
    return read_table(path, columns, labels=labels)


def refuse(path: str | Path, *expected: str, labels="required", columns: Columns = COLUMNS) -> str:
    """Check that reading fails in one line that holds every expected part."""
    with pytest.raises(DataError) as error:
        read(path, labels, columns)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in expected), message
    return message


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


# What is read.


def test_csv_with_everything_that_is_allowed(tmp_path):
    content = (
        "\ufeffid, label ,text,label_name\r\n"
        '7,1,"two\nlines, a comma and a ""quote""", Sports \r\n'
        "\r\n"
        "8,0,plain,World\r\n"
    )
    table = read(put(tmp_path, "t.CSV", content))
    assert table.texts == ['two\nlines, a comma and a "quote"', "plain"]
    assert table.labels == [1, 0]
    assert table.names == ["Sports", "World"]
    assert table.rows == [2, 5]
    assert table.dropped_empty == 0


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
@pytest.mark.parametrize("labels", [[0, 1, 0], ["ham", "spam", "ham"]])
def test_what_is_written_is_read_back(tmp_path, suffix, labels):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    texts = ['a "b", c\td\r\ne', "ünï\rcode 🎈", " x"]
    path = tmp_path / f"t{suffix}"
    write_table(path, {"text": texts, "label": labels, "label_name": [f"n{x}" for x in labels]})
    table = read(path)
    assert table.texts == texts
    assert table.labels == labels
    assert table.names == [f"n{x}" for x in labels]
    assert table.source == str(path)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "t.jsonl.gz", "t.ndjson.gz"])
def test_gzip(tmp_path, name):
    plain = tmp_path / name.removesuffix(".gz")
    write_table(plain, {"text": ["a", "b"], "label": [0, 1]})
    path = put(tmp_path, name, gzip.compress(plain.read_bytes()))
    assert read(path).texts == ["a", "b"]
    assert read(path).rows == read(plain).rows


def test_label_columns_by_use(tmp_path):
    with_labels = put(tmp_path, "a.csv", "text,label\nx,0\ny,1\n")
    without = put(tmp_path, "b.csv", "text\nx\n")
    assert read(with_labels, "optional").labels == [0, 1]
    assert read(with_labels, "optional").names is None
    assert read(with_labels, "ignored").labels is None
    assert read(without, "optional").labels is None
    assert read(without, "ignored").texts == ["x"]


def test_other_column_names(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"v2": "x", "v1": "ham", "n": "Ham"}\n')
    table = read(path, columns=Columns("v2", "v1", "n"))
    assert (table.texts, table.labels, table.names) == (["x"], ["ham"], ["Ham"])


def test_long_field_and_long_line(tmp_path):
    long = "word " * 100_000
    path = put(tmp_path, "a.csv", f'text,label\n"{long}",0\nshort,1\n')
    assert read(path).texts[0] == long


def test_empty_unlabelled_texts_are_dropped_and_counted(tmp_path):
    path = put(tmp_path, "a.csv", 'id,text,label\n1,x,0\n2, ,1\n3,"",1\n4,y,1\n')
    table = read(path, "ignored")
    assert (table.texts, table.rows, table.dropped_empty) == (["x", "y"], [2, 5], 2)
    table = read(path, "optional")
    assert (table.labels, table.dropped_empty) == ([0, 1], 2)
    nulls = put(tmp_path, "a.jsonl", '{"text": null}\n\n{"text": "x"}\n')
    assert (read(nulls, "ignored").rows, read(nulls, "ignored").dropped_empty) == ([3], 1)


def test_whole_floats_are_numbers(tmp_path):
    csv_path = put(tmp_path, "a.csv", "text,label\nx,1.0\ny,0.0\n")
    jsonl_path = put(tmp_path, "a.jsonl", '{"text":"x","label":1.0}\n{"text":"y","label":"0"}\n')
    for path in (csv_path, jsonl_path):
        labels = read(path).labels
        assert labels == [1, 0]
        assert all(type(label) is int for label in labels)


@pytest.mark.parametrize("word", ["None", "null", "True", "3.5.1", "1e5"])
def test_words_stay_words_in_csv(tmp_path, word):
    assert read(put(tmp_path, "a.csv", f"text,label\nx,{word}\n")).labels == [word]


# What is refused: paths.


def test_missing_file_names_the_closest_one(tmp_path):
    put(tmp_path, "train.csv", "text\nx\n")
    refuse(tmp_path / "trian.csv", "no such file", "trian.csv", "did you mean 'train.csv'?", "hub:")
    refuse(tmp_path / "nowhere" / "a.csv", "no such file")
    refuse(tmp_path / "train.csv" / "a.csv", "no such file")
    refuse("nul\0byte.csv", "no such file")
    refuse(tmp_path / ("x" * 300 + ".csv"), "cannot read")


def test_folder_is_refused(tmp_path):
    refuse(tmp_path, str(tmp_path), "is a folder")


def test_unreadable_file(tmp_path, monkeypatch):
    path = put(tmp_path, "a.csv", "text\nx\n")

    def refuse_open(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse_open)
    refuse(path, "cannot read", str(path), "Permission denied", labels="ignored")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "a.parquet"])
def test_unreadable_file_for_real(tmp_path, name):
    path = put(tmp_path, name, "text\nx\n")
    path.chmod(0)
    refuse(path, "cannot read", name, "Permission denied")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.parquet.gz", "a.csv.bz2"])
def test_unknown_suffix_lists_the_known_ones(tmp_path, name):
    refuse(put(tmp_path, name, "x"), name, "unknown file type", ".csv", ".jsonl", ".parquet")


# What is refused: contents of text files. {"text": ...} lines are written by ``lines``.


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


GOOD = {"text": "x", "label": 0}
BAD_TEXT_FILES = {
    "empty file": ("a.csv", "", ["is empty"]),
    "blank lines only": ("a.csv", "\n\n", ["only blank lines"]),
    "blank lines only (jsonl)": ("a.jsonl", "\n\n", ["no rows"]),
    "header only": ("a.csv", "text,label\n", ["no rows"]),
    "no text column": (
        "a.csv",
        "Text,label\nx,0\n",
        ["column 'text'", "did you mean 'Text'?", "'label'", "--set data.text_column=NAME"],
    ),
    "no label column": (
        "a.csv",
        "text,lable\nx,0\n",
        ["column 'label'", "did you mean 'lable'?", "--set data.label_column=NAME"],
    ),
    "no label key": (
        "a.jsonl",
        lines({"text": "x", "y": 0}),
        ["column 'label'", "there are 'text', 'y'", "--set data.label_column=NAME"],
    ),
    "semicolons": ("a.csv", "text;label\nx;0\n", ["column 'text'", "separated by ';'"]),
    "tabs": ("a.csv", "text\tlabel\nx\t0\n", ["separated by '\\t'"]),
    "column twice": ("a.csv", "text,label,text\nx,0,y\n", ["2 columns 'text'"]),
    "latin-1": (
        "a.csv",
        "text,label\nx,0\ncaf\xe9,1\n".encode("latin-1"),
        ["line 3", "byte 0xE9", "byte offset 18", "not UTF-8"],
    ),
    "latin-1 (jsonl)": (
        "a.jsonl",
        lines(GOOD).encode() + b'{"text": "caf\xe9", "label": 1}\n',
        ["line 2", "byte offset 39", "not UTF-8"],
    ),
    "utf-16": ("a.csv", "text,label\nx,0\n".encode("utf-16"), ["line 1", "offset 0", "UTF-8"]),
    "NUL": ("a.csv", "text,label\nx,0\na\0b,1\n", ["line 3", "NUL", "character 2"]),
    "NUL (jsonl)": ("a.jsonl", lines(GOOD) + '{"text": "a\0"}\n', ["line 2", "NUL"]),
    "too few fields": ("a.csv", "text,label\nx,0\ny\n", ["line 3", "1 fields", "has 2"]),
    "too many fields": (
        "a.csv",
        "text,label\nx,0\na,b,1\n",
        ["line 3", "3 fields", "has 2", "','"],
    ),
    "unclosed quote": ("a.csv", 'text,label\nx,0\n"y,1\nz,1\n', ["line 3", "quote"]),
    "quote inside a quoted field": ("a.csv", 'text,label\nx,0\n"a "b",1\n', ["line 3", '("")']),
    "old line ends": ("a.csv", "text,label\rx,0\r", ["line 1", "broken row"]),
    "broken json": ("a.jsonl", lines(GOOD) + '{"text": "x",}\n', ["line 2", "broken JSON"]),
    "truncated json": ("a.jsonl", lines(GOOD) + '{"text": "x', ["line 2", "broken JSON"]),
    "huge number": ("a.jsonl", '{"label": ' + "9" * 5000 + "}\n", ["line 1", "JSON"]),
    "deep json": ("a.jsonl", "[" * 200_000, ["line 1", "JSON"]),
    "json array": ("a.jsonl", lines(GOOD, ["x", 0]), ["line 2", "object", "list"]),
    "json text": ("a.jsonl", lines(GOOD, "x"), ["line 2", "object", "str"]),
    "key missing": ("a.jsonl", lines(GOOD, {"label": 0}), ["line 2", "key 'text'"]),
    "label key missing": ("a.jsonl", lines(GOOD, {"text": "y"}), ["line 2", "key 'label'"]),
    "text is a number": (
        "a.jsonl",
        lines(GOOD, {"text": 5, "label": 0}),
        ["line 2", "'text'", "int 5"],
    ),
    "text is a list": (
        "a.jsonl",
        lines(GOOD, {"text": ["x"], "label": 0}),
        ["line 2", "'text'", "list ['x']"],
    ),
    "half a surrogate pair": (
        "a.jsonl",
        lines(GOOD, {"text": "a\ud800", "label": 0}),
        ["line 2", "'text'", "surrogate"],
    ),
    "half a surrogate pair in a label": (
        "a.jsonl",
        lines({"text": "a", "label": "\udc00"}),
        ["line 1", "'label'", "surrogate"],
    ),
    "label null": ("a.jsonl", lines(GOOD, {"text": "y", "label": None}), ["line 2", "'label'"]),
    "label NaN": ("a.jsonl", '{"text": "y", "label": NaN}\n', ["line 1", "'label'", "no label"]),
    "label fraction": (
        "a.jsonl",
        lines(GOOD, {"text": "y", "label": 0.5}),
        ["line 2", "'label'", "0.5", "whole number"],
    ),
    "label infinite": ("a.jsonl", '{"text": "y", "label": Infinity}\n', ["line 1", "inf"]),
    "label bool": (
        "a.jsonl",
        lines(GOOD, {"text": "y", "label": True}),
        ["line 2", "'label'", "truth value True"],
    ),
    "label list": ("a.jsonl", lines({"text": "y", "label": [1]}), ["line 1", "'label'", "[1]"]),
    "label blank": ("a.csv", "text,label\nx,0\ny, \n", ["line 3", "'label'", "no label"]),
    "label nan": ("a.csv", "text,label\nx,0.0\ny,nan\n", ["line 3", "'label'", "no label"]),
    "label fraction (csv)": ("a.csv", "text,label\nx,0\ny,1.5\n", ["line 3", "'label'", "1.5"]),
    "name blank": ("a.csv", "text,label,label_name\nx,0,\n", ["line 2", "'label_name'"]),
    "name number": (
        "a.jsonl",
        lines({**GOOD, "label_name": 3}),
        ["line 1", "'label_name'", "int 3"],
    ),
    "empty text": (
        "a.csv",
        "text,label\nx,0\n  ,0\n,1\n",
        ["line 3", "'text' is empty", "2 such rows"],
    ),
    "all texts empty": ("a.csv", "text,label\n ,0\n,1\n", ["'text'", "empty in all 2 rows"]),
    "no gzip": ("a.csv.gz", "text,label\nx,0\n", ["gzip", "damaged"]),
    "truncated gzip": ("a.csv.gz", gzip.compress(b"text,label\nx,0\n")[:-9], ["gzip", "damaged"]),
    "altered gzip": (
        "a.csv.gz",
        gzip.compress(b"text,label\nx,0\n")[:10] + b"\xff" * 20,
        ["gzip", "damaged"],
    ),
}


@pytest.mark.parametrize("case", BAD_TEXT_FILES)
def test_bad_text_file(tmp_path, case):
    name, content, expected = BAD_TEXT_FILES[case]
    path = put(tmp_path, name, content)
    refuse(path, str(path), *expected)


def test_all_empty_is_refused_without_labels_too(tmp_path):
    refuse(put(tmp_path, "a.csv", 'text,x\n"",1\n'), "empty in all 1 rows", labels="ignored")


def test_a_label_name_column_that_was_asked_for_must_exist(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\nx,0\n")
    expected = ["'names'", "--set data.label_name_column=NAME"]
    refuse(path, *expected, columns=Columns(label_name="names"))


# Parquet.


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write(**columns: object) -> Path:
        path = tmp_path / "a.parquet"
        pq.write_table(pyarrow.table(columns), path)
        return path

    return write


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["x", None], "label": [0, 1]}, ["row 2", "'text' is empty"]),
        ({"text": [1, 2], "label": [0, 1]}, ["row 1", "'text'", "int 1"]),
        ({"text": [b"x"], "label": [0]}, ["row 1", "'text'", "bytes"]),
        ({"text": ["x", "y"], "label": [0, None]}, ["row 2", "'label'", "no label"]),
        ({"text": ["x", "y"], "label": [0.0, 0.5]}, ["row 2", "'label'", "0.5"]),
        ({"text": ["x"], "label": [float("nan")]}, ["row 1", "'label'", "no label"]),
        ({"text": ["x"], "label": [False]}, ["row 1", "'label'", "truth value"]),
        ({"text": ["x"], "label": [0], "label_name": [None]}, ["row 1", "'label_name'"]),
        ({"texts": ["x"], "label": [0]}, ["column 'text'", "did you mean 'texts'?"]),
    ],
)
def test_bad_parquet(parquet, columns, expected):
    path = parquet(**columns)
    refuse(path, str(path), *expected)


def test_parquet_without_rows(parquet):
    import pyarrow

    refuse(parquet(text=pyarrow.array([], pyarrow.string())), "no rows", labels="ignored")


def test_parquet_with_dictionaries_and_dots(parquet):
    import pyarrow

    text = pyarrow.array(["x", "y"]).dictionary_encode()
    path = parquet(**{"my.text": text, "my": [1, 2], "label": [1.0, 0.0]})
    table = read(path, columns=Columns(text="my.text"))
    assert (table.texts, table.labels) == (["x", "y"], [1, 0])


@pytest.mark.parametrize("keep", [3, 40, -10])
def test_truncated_parquet(parquet, keep):
    path = parquet(text=["x" * 50, "y"], label=[0, 1])
    path.write_bytes(path.read_bytes()[:keep])
    refuse(path, str(path), "Parquet", "damaged")


def test_altered_parquet(parquet):
    path = parquet(text=[f"{i} x" for i in range(500)], label=[0] * 500)
    data = bytearray(path.read_bytes())
    data[10:400] = b"\xff" * 390
    path.write_bytes(bytes(data))
    refuse(path, str(path), "damaged")


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("pyarrow", "a.parquet", "parquet"), ("datasets", "hub:imdb", "train")],
)
def test_missing_extra(tmp_path, monkeypatch, module, source, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.parquet", "x")
    with pytest.raises(MissingExtraError, match=rf"nanonet\[{extra}\]"):
        read(source)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, nanonet.data.readers, nanonet.data.writers, nanonet.data.splits\n"
        "heavy = {'torch', 'pyarrow', 'datasets', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The hub, played by a module of our own.


class FakeDataset:
    def __init__(self, columns: dict[str, list], class_names: list[str] | None = None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        feature = types.SimpleNamespace() if class_names is None else None
        named = feature or types.SimpleNamespace(names=class_names)
        self.features = {name: named for name in columns}

    def __getitem__(self, name: str) -> list:
        return self.columns[name]


@pytest.fixture
def hub(monkeypatch):
    calls = []

    def install(result: object) -> list:
        def load_dataset(name, split):
            calls.append((name, split))
            if isinstance(result, Exception):
                raise result
            return result

        fake = types.SimpleNamespace(load_dataset=load_dataset)
        monkeypatch.setitem(sys.modules, "datasets", fake)
        return calls

    return install


def test_hub_with_class_names(hub):
    calls = hub(FakeDataset({"text": ["x", "y"], "label": [1, 0]}, ["neg", "pos"]))
    table = read("hub:owner/imdb")
    assert (table.texts, table.labels, table.names) == (["x", "y"], [1, 0], ["pos", "neg"])
    assert (table.source, table.rows) == ("hub:owner/imdb", [1, 2])
    read("hub:imdb:train[:10]")
    assert calls == [("owner/imdb", "train"), ("imdb", "train[:10]")]


def test_hub_without_class_names(hub):
    hub(FakeDataset({"text": ["x"], "label": ["b"], "label_name": ["B"]}))
    assert read("hub:a").names == ["B"]
    assert read("hub:a", "ignored").labels is None


def test_hub_errors(hub):
    hub(ConnectionError("Couldn't reach the Hub\nsecond line"))
    expected = ["cannot load hub:x", "Couldn't reach the Hub", "download", ".parquet"]
    assert "second line" not in refuse("hub:x", *expected)
    hub(ValueError())
    refuse("hub:x:nosplit", "hub:x:nosplit", "ValueError")
    refuse("hub:", "no dataset is named")
    hub(FakeDataset({"text": ["x", "y"], "label": [0, -1]}, ["neg", "pos"]))
    refuse("hub:x", "hub:x, row 2", "'label'", "no label")
    hub(FakeDataset({"sentence": ["x"], "label": [0]}))
    refuse("hub:x", "column 'text'", "'sentence'", "--set data.text_column=NAME")


# Lists.


def test_lists_and_arrays():
    table = table_from_lists(np.array(["x", "y"]), np.array([1, 0], dtype=np.int8))
    assert (table.texts, table.labels, table.rows) == (["x", "y"], [1, 0], [1, 2])
    assert type(table.texts[0]) is str
    assert type(table.labels[0]) is int
    assert table_from_lists(iter(["x", ""])).dropped_empty == 1
    assert table_from_lists(["x"], np.array(["a"])).labels == ["a"]


def test_series():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["x", "y"], "label": ["1", "0"]})
    table = table_from_lists(frame["text"], frame["label"])
    assert (table.texts, table.labels) == (["x", "y"], [1, 0])


@pytest.mark.parametrize(
    ("texts", "labels", "expected"),
    [
        ("one text", None, ["texts are one str"]),
        (None, None, ["texts are one NoneType"]),
        (["x"], "a", ["labels are one str"]),
        (["x", "y"], [0], ["2 texts but 1 labels"]),
        ([], None, ["no rows"]),
        (["x", 5], None, ["row 2", "int 5"]),
        (["x", b"y"], None, ["row 2", "bytes"]),
        (np.array([["x", "y"]]), None, ["row 1", "ndarray"]),
        (["x", ""], [0, 1], ["row 2", "empty"]),
        (["", " "], None, ["empty in all 2 rows"]),
        (["x", "y"], [0, np.nan], ["row 2", "no label"]),
        (["x", "y"], [0, np.True_], ["row 2", "truth value"]),
        (["x", "y"], np.array([0.5, 1]), ["row 1", "0.5"]),
    ],
)
def test_bad_lists(texts, labels, expected):
    with pytest.raises(DataError) as error:
        table_from_lists(texts, labels)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("the given lists")
    assert all(part in message for part in expected), message


# Writing.


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = put(tmp_path, f"a{suffix}", "old")

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match=r"cannot write .*a\..*: No space left on device"):
        write_table(path, {"text": ["x"]})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("a.txt", {"text": ["x"]}, "unknown file type"),
        ("a.csv", {"text": ["x"], "label": []}, "text (1), label (0)"),
        ("a.csv", {}, "none"),
        ("a.csv", {"text": ["x", "a\0"]}, "row 2, column 'text' holds a NUL"),
        ("a.jsonl", {"text": ["\ud800"]}, "surrogate"),
        ("a.parquet", {"text": ["x", 1]}, "mixes kinds"),
        ("no/such/a.csv", {"text": ["x"]}, "No such file or directory"),
        ("file/a.csv", {"text": ["x"]}, "Not a directory"),
        ("folder.csv", {"text": ["x"]}, "cannot write"),
    ],
)
def test_bad_writes(tmp_path, name, columns, expected):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / "folder.csv").mkdir()
    put(tmp_path, "file", "x")
    with pytest.raises(DataError) as error:
        write_table(tmp_path / name, columns)
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    assert expected in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


# Real data, where it is there.


@pytest.mark.parametrize("name", ["trec6", "sms_spam", "banking77"])
def test_real_data(name):
    pytest.importorskip("pyarrow")
    if not (DATASETS / name).is_dir():
        pytest.skip(f"no {DATASETS / name}")
    train = read(DATASETS / name / "train.parquet")
    pool = read(DATASETS / name / "unlabeled.parquet", "optional")
    assert len(train.texts) == len(train.labels) == len(train.names) > 1000
    assert pool.labels is None
    refuse(DATASETS / name / "unlabeled.parquet", "column 'label'", "'label_hidden'")

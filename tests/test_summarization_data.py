"""Reading documents: what is given, what is made of it, and what cannot be used."""

import csv
import json

import numpy as np
import pytest

from nanonet.core.config import DataConfig, SummarizationConfig
from nanonet.core.errors import DataError
from nanonet.core.machine import cache_folder
from nanonet.data import documents as documents_module
from nanonet.data.documents import (
    DocumentTable,
    documents_from_lists,
    read_documents,
    stream_documents,
)
from nanonet.data.writers import write_table
from nanonet.tasks.rouge import Rouge
from stories import chosen, make_stories, write_lines


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "cache"))


def read(path, *, labeled: bool = True, **columns: str) -> DocumentTable:
    use = "required" if labeled else "ignored"
    return read_documents(str(path), DataConfig(**columns), "en", labels=use)


STORY = ["the apple is old", "iron and tin", "a pear"]


def test_labels_as_given(tmp_path):
    rows = [
        {"sentences": STORY, "labels": [1, 0, 1], "summary": ["the apple"]},
        {"sentences": STORY[:2], "labels": [False, 1.0]},
    ]
    table = read(write_lines(tmp_path / "a.jsonl", rows))
    assert table.labels == ["101", "01"]
    assert table.truth().tolist() == [1, 0, 1, 0, 1]
    assert table.summaries == [["the apple"], ["iron and tin"]]  # the reference given, else labels
    assert table.texts[0] == " ".join(STORY)
    assert (table.rows, table.left_out, table.warnings()) == ([1, 2], {}, [])


def test_labels_made_from_summaries_are_the_oracle_s(tmp_path):
    stories = make_stories(5)
    rows = [{"sentences": t, "summary": chosen(t, y)} for t, y in stories]
    table = read(write_lines(tmp_path / "a.jsonl", rows))
    for (texts, labels), word in zip(stories, table.labels, strict=True):
        expected = set(Rouge().oracle(chosen(texts, labels), texts))
        assert [i for i, digit in enumerate(word) if digit == "1"] == sorted(expected)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_raw_texts_and_summaries_in_every_format(tmp_path, suffix):
    columns = {
        "text": ["The apple is old. Iron was seen. A pear!", "Tin. The plum is new.\n\nA lake."],
        "summary": ["The apple is old.\nA pear!", "The plum is new."],
    }
    path = tmp_path / f"a.{suffix}"
    write_table(path, columns)
    table = read(path)
    assert table.labels == ["101", "010"]
    assert table.documents[1].sentences == ["Tin.", "The plum is new.", "A lake."]
    assert table.summaries == [["The apple is old.", "A pear!"], ["The plum is new."]]
    assert read(path, labeled=False).labels is None


def test_parquet_lists(tmp_path):
    columns = {"sentences": [STORY, STORY[:1] * 2], "labels": [[0, 0, 1], [1, 0]]}
    write_table(tmp_path / "a.parquet", columns)
    assert read(tmp_path / "a.parquet").labels == ["001", "10"]


def test_columns_of_other_names(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"lines": STORY, "gold": [0, 1, 0]}])
    assert read(path, sentences_column="lines", labels_column="gold").labels == ["010"]


def test_the_oracle_is_asked_once_and_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    rows = [{"sentences": STORY, "summary": ["apple pear"]}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    first = read(path).labels
    (kept,) = (cache_folder() / "oracle").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(documents_module, "Rouge", lambda: pytest.fail("searched again"))
        assert read(path).labels == first
    for damage in ("[[1]]", "{", "[3]"):
        kept.write_text(damage)
        assert read(path).labels == first
    other = [{"sentences": STORY, "summary": ["iron"]}]
    assert read(write_lines(path, other)).labels != first


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "file"))
    rows = [{"sentences": STORY, "summary": ["iron"]}]
    assert read(write_lines(tmp_path / "a.jsonl", rows)).labels == ["010"]


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    rows = [
        {"sentences": [], "summary": ["x"]},
        {"sentences": ["", "  "], "summary": ["x"]},
        {"text": "", "summary": ["x"]},
        {"sentences": STORY, "summary": ["apple"]},
        {"sentences": STORY, "summary": []},
        {"sentences": STORY, "summary": " \n"},
        {"sentences": STORY, "summary": "zebra"},
        {"sentences": STORY},
        {"sentences": STORY, "summary": None},
        {"sentences": STORY, "labels": [0, 0, 0]},
        {"sentences": ["only one"], "labels": [1]},
    ]
    table = read(write_lines(tmp_path / "a.jsonl", rows))
    assert table.rows == [4, 11]
    assert sum(table.left_out.values()) + len(table.rows) == len(rows)
    assert [line.partition(": ")[2] for line in table.warnings()] == [
        "3 documents without a sentence left out",
        "2 documents with an empty summary left out",
        "2 documents without labels or summary left out",
        "1 document whose labels choose no sentence left out",
        "1 document whose summary has no word in common with the document left out",
    ]
    free = read(tmp_path / "a.jsonl", labeled=False)
    assert (len(free.documents), free.dropped_empty) == (8, 3)
    blocks = list(stream_documents(tmp_path / "a.jsonl", DataConfig()))
    assert [len(documents) for documents, _ in blocks] == [len(rows)]


def test_five_thousand_sentences(tmp_path):
    rng = np.random.default_rng(0)
    sentences = [f"iron {rng.integers(1000)} tin" for _ in range(5000)]
    sentences[4000] = "the apple fell"
    rows = [{"sentences": sentences, "summary": "The apple fell."}]
    table = read(write_lines(tmp_path / "a.jsonl", rows))
    assert np.flatnonzero(table.truth()).tolist() == [4000]


BAD = [
    ({"sentences": STORY, "labels": [1]}, ["line 1", "1 labels but 3 sentences", "one label per"]),
    ({"text": "One. Two.", "labels": [1]}, ["1 labels but 2 sentences", "column 'sentences'"]),
    ({"sentences": STORY, "labels": [1, 0, 2]}, ["'labels'", "label 2 must be 0 or 1"]),
    ({"sentences": STORY, "labels": ["1", 0, 0]}, ["label '1' must be 0 or 1"]),
    ({"sentences": STORY, "labels": "1 0 0"}, ["'labels'", "expected a list but found str"]),
    ({"sentences": "one two", "labels": [1]}, ["'sentences'", "expected a list"]),
    ({"sentences": {"a": 1}, "labels": [1]}, ["'sentences'", "expected a list but found dict"]),
    ({"sentences": ["a", 3], "labels": [1, 0]}, ["'sentences'", "found int 3"]),
    ({"text": 7, "summary": "x"}, ["'text'", "found int 7"]),
    ({"sentences": STORY, "summary": [1]}, ["'summary'", "found int 1"]),
    ({"sentences": STORY, "summary": 5}, ["'summary'", "expected a list but found int"]),
    ({"body": "x", "summary": "x"}, ["no column 'sentences' or 'text'", "data.text_column"]),
    ({"sentences": STORY, "label": 1}, ["no column 'labels' or 'summary'", "data.summary_column"]),
    ({"sentences": STORY, "summary": "zebra"}, ["no document that can be used", "1 whose summary"]),
    ({"text": "half \ud800 here", "summary": "x"}, ["half of a surrogate pair"]),
]


@pytest.mark.parametrize(("row", "parts"), BAD)
def test_what_cannot_be_read_is_one_line_that_says_where(tmp_path, row, parts):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.txt", b"x", "unknown file type"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "no column 'sentences'"),
        ("a.jsonl", b"{\n", "line 1: broken JSON"),
        ("a.jsonl", b"[1]\n", "expected a JSON object"),
        ("a.jsonl.gz", b"no gzip", "no gzip file"),
        ("a.parquet", b"PAR1", "no Parquet file"),
        ("a.csv", b"text,summary\n1\n", "line 2: 1 fields where the header has 2"),
        ("a.csv", b"text,summary\n\xff,a\n", "not UTF-8"),
    ],
)
def test_damaged_files(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=part):
        read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl")


def test_csv_lines_are_counted_with_their_line_ends(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        rows = [("text", "summary"), ("One\ntwo. Three.", "Three."), ("x y", "q")]
        csv.writer(stream).writerows(rows)
    table = read(tmp_path / "a.csv")
    assert table.rows == [2]
    assert list(table.left_out.values()) == [1]


# lists


def test_lists_of_texts_or_sentences_with_summaries_or_labels():
    table = documents_from_lists(
        ["The apple is old. Iron.", STORY, np.array(STORY)],
        ["The apple is old.", [0, 1, 0], ["a pear"]],
        SummarizationConfig().language,
    )
    assert table.labels == ["10", "010", "001"]
    assert documents_from_lists([STORY], None, "en").labels is None


@pytest.mark.parametrize(
    ("texts", "answers", "part"),
    [
        ("one text", None, "one str"),
        ([STORY], "one", "one str"),
        ([STORY], [[1], [0]], "1 documents but 2 summaries"),
        ([STORY], [[1]], "row 1: 1 labels but 3 sentences"),
        ([3], None, "expected a list but found int"),
        ([[]], None, "1 without a sentence"),
        ([], None, "no rows"),
    ],
)
def test_lists_that_cannot_be_used(texts, answers, part):
    with pytest.raises(DataError, match=part):
        documents_from_lists(texts, answers, "en")

"""`nanonet predict` with a summarizer: the formats, pipes, kills and resumes of classifiers."""

import csv
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanonet.data import documents, formats
from nanonet.data.writers import write_table
from runs import refuse, succeed, temporary_files
from stories import make_stories, write_lines

COLUMNS = ["text", "summary", "sentences"]
TEXT = "  The apple is old. Iron was seen!\n\nA pear of tin? The river is new.  Plum. "
TEXTS = [TEXT, "", "One", "日本語。", "Iron is old. Tin ü 🎈 is new. A pear. The plum."]


@pytest.fixture(scope="module")
def bundle(story_bundle) -> Path:
    return story_bundle


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_ROWS", 2)


def rows_of(path: Path) -> list[dict]:
    """Read answers, not with the package's readers."""
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        data = pyarrow.input_stream(str(path), compression="zstd").read()
    text = data.decode()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n")[:-1]]
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    return [row | {"sentences": json.loads(row["sentences"])} for row in rows]


@pytest.mark.parametrize("output", ["o.csv", "o.csv.gz", "o.jsonl.zst", "o.parquet"])
@pytest.mark.parametrize("source", ["a.csv", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_rows(bundle, tmp_path, small_blocks, source, output):
    write_table(tmp_path / source, {"id": list(range(5)), "text": TEXTS})
    how = ["--input", tmp_path / source, "--output", tmp_path / output, "--budget", "sentences=2"]
    assert f"{tmp_path / output}: 5 documents, " in succeed("predict", bundle, *how).err
    rows = rows_of(tmp_path / output)
    assert [list(row) for row in rows] == [COLUMNS] * 5
    assert [row["text"] for row in rows] == TEXTS
    assert [len(row["sentences"]) for row in rows] == [2, 0, 1, 1, 2]
    screen = succeed("predict", bundle, "--input", tmp_path / source, "--budget", "sentences=2").out
    assert [json.loads(line) for line in screen.splitlines()] == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, output])


def test_lists_of_sentences_in_parquet_beside_texts(bundle, tmp_path, small_blocks):
    lists = [["the apple", "iron", "tin"], None, [], ["", "one"], [f"tin {i}" for i in range(5000)]]
    write_table(tmp_path / "a.parquet", {"sentences": lists, "text": ["x", "a text", "y", "z", ""]})
    output = tmp_path / "o.parquet"
    succeed("predict", bundle, "--input", tmp_path / "a.parquet", "--output", output)
    rows = rows_of(output)
    assert [row["text"] for row in rows[:4]] == ["the apple iron tin", "a text", "", " one"]
    assert [len(row["sentences"]) for row in rows] == [3, 1, 0, 1, 3]
    for row in rows:
        for sentence in row["sentences"]:
            assert row["text"][sentence["start"] : sentence["end"]] == sentence["text"]


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "o.parquet"])
def test_no_rows_still_have_columns(bundle, tmp_path, output):
    write_table(tmp_path / "a.csv", {"text": []})
    succeed("predict", bundle, "--input", tmp_path / "a.csv", "--output", tmp_path / output)
    assert rows_of(tmp_path / output) == []
    if output == "o.parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        kinds = {field.name: str(field.type) for field in pq.read_schema(tmp_path / output)}
        assert list(kinds) == COLUMNS
        assert "struct<index: int64, start: int64, end: int64, score: double" in kinds["sentences"]


def test_long_documents_make_short_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_CHARACTERS", 100)
    rows = [{"sentences": ["x" * 30, "x" * 30]}, {"text": "y" * 60}, {"text": "z"}, {"text": "z"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    blocks = documents.stream_documents(source, documents.DataConfig())
    assert [len(block) for block, _ in blocks] == [2, 2]


BAD = {
    "no text": ('{"text": 7}', ["line 5", "'text'", "int 7"]),
    "no sentence": ('{"sentences": ["a", 7]}', ["line 5", "'sentences'", "int 7"]),
    "no list": ('{"sentences": "a b"}', ["line 5", "expected a list", "str"]),
    "no key": ('{"id": 1}', ["line 5", "no key 'sentences' or 'text'"]),
    "half": ('{"text": "\\ud800"}', ["line 5", "surrogate"]),
    "no JSON": ("{", ["line 5", "broken JSON"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_ends_in_one_line_and_keeps_what_is_done(bundle, tmp_path, small_blocks, case):
    bad, parts = BAD[case]
    good = [{"sentences": ["the apple", "tin"]}, {"text": "A. B."}] * 2
    source = write_lines(tmp_path / "a.jsonl", good)
    text = source.read_text()
    source.write_text(text + bad + "\n")
    how = ["--input", source, "--output", tmp_path / "o.csv"]
    refuse("predict", bundle, *how, parts=[str(source), *parts])
    assert not (tmp_path / "o.csv").exists()
    source.write_text(text)
    err = succeed("predict", bundle, *how).err
    assert "4 documents (4 of them answered before)" in err
    assert len(rows_of(tmp_path / "o.csv")) == 4
    assert temporary_files(tmp_path) == []


def test_nul_fits_all_outputs_but_csv(bundle, tmp_path):
    rows = [{"text": "a"}, {"sentences": ["b", "c\0"]}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    how = ["--input", source, "--output"]
    refuse("predict", bundle, *how, tmp_path / "o.csv", parts=["line 2", "'sentences'", "NUL"])
    succeed("predict", bundle, *how, tmp_path / "o.jsonl")


@pytest.mark.parametrize(
    ("arguments", "parts", "status"),
    [
        (["--budget", "pages=2"], ["budget 'pages=2'"], 2),
        (["--output", "a.jsonl"], ["is the input"], 2),
        (["--output", "o.txt"], ["unknown file type"], 2),
        (["--input", "hub:x"], ["hub:x", "give a file"], 1),
        (["--input", "b.csv"], ["b.csv has no column 'sentences' or 'text'", "--set"], 1),
        (["--set", "data.text_column=body"], ["line 1", "'sentences' or 'body'"], 1),
    ],
)
def test_options(bundle, tmp_path, monkeypatch, arguments, parts, status):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("a.jsonl"), [{"text": "a"}])
    Path("b.csv").write_text("x\n1\n")
    given = arguments if "--input" in arguments else ["--input", "a.jsonl", *arguments]
    refuse("predict", bundle, *given, parts=parts, status=status)


def test_a_zip_of_a_bundle(bundle, stories, tmp_path):
    zipped = shutil.make_archive(str(tmp_path / "b"), "zip", bundle)
    how = ["--input", stories / "unlabeled.jsonl", "--output", tmp_path / "o.jsonl"]
    succeed("predict", zipped, *how)
    assert len(rows_of(tmp_path / "o.jsonl")) == 12
    asked = ["--data", stories / "test.jsonl", "--json"]
    assert json.loads(succeed("evaluate", zipped, *asked).out)["examples"] == 8


# pipes


COMMAND = [sys.executable, "-W", "error", "-m", "nanonet", "predict"]


def test_a_pipe_is_answered_when_it_pauses(bundle):
    with subprocess.Popen(
        [*COMMAND, str(bundle), "--input", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for row in ({"text": "An apple. Iron."}, {"sentences": ["one"]}):
            process.stdin.write(json.dumps(row).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert list(answer) == COLUMNS
        assert answer["summary"] == "one"
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_bad_line_in_a_pipe(bundle):
    done = subprocess.run(
        [*COMMAND, str(bundle), "--input", "-"],
        input=b'{"text": "a"}\n{"text": 3}\n',
        capture_output=True,
    )
    assert done.stderr.startswith(b"error: stdin, line 2, column 'text': expected text")
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1


# kill and resume


KILLED = """
import os, signal, sys
from nanonet.data import formats
from nanonet.cli import main

formats.BLOCK_ROWS = 5
real, calls = os.fsync, []

def counted(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

os.fsync = counted
main()
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    rows = [{"sentences": texts} for texts, _ in make_stories(30, seed=11)]
    return write_lines(tmp_path_factory.mktemp("big") / "big.jsonl", rows)


@pytest.mark.parametrize("name", ["o.jsonl.gz", "o.parquet"])
def test_killed_and_run_again(bundle, big, tmp_path, monkeypatch, name):
    monkeypatch.setattr(formats, "BLOCK_ROWS", 5)
    undisturbed, output = tmp_path / f"undisturbed-{name}", tmp_path / name
    succeed("predict", bundle, "--input", big, "--output", undisturbed)
    arguments = ["predict", bundle, "--input", big, "--output", output]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)])
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    other = [*arguments, "--budget", "words=9"]
    refuse(*other, parts=["unfinished work", "another budget", "--overwrite"])
    assert "30 documents (10 of them answered before)" in succeed(*arguments).err
    assert output.read_bytes() == undisturbed.read_bytes()
    assert temporary_files(tmp_path) == []


def test_a_text_and_its_only_sentence_are_not_the_same_row(bundle, tmp_path, small_blocks):
    source, output = tmp_path / "a.jsonl", tmp_path / "o.jsonl"
    write_lines(source, [{"text": "An apple. Tin."}] * 2 + [{"text": 1}])
    refuse("predict", bundle, "--input", source, "--output", output, parts=["line 3"])
    write_lines(source, [{"sentences": ["An apple. Tin."]}] * 2)
    err = succeed("predict", bundle, "--input", source, "--output", output).err
    assert "2 documents," in err
    assert [len(row["sentences"]) for row in rows_of(output)] == [1, 1]


# memory


MEMORY = r"""
import re, sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from nanonet.cli.predict import files_of
from nanonet.core.config import DataConfig
from nanonet.data import writers
from nanonet.data.documents import stream_documents
from nanonet.runtime.batch import Summarize, predict_file
from nanonet.runtime.summarizer import Selection
from nanonet.tasks.budgets import Budget

class Progress:
    def update(self, *_): pass

writers._ROW_GROUP_ROWS = 100  # or the smaller file would not fill one
summarizer = SimpleNamespace(
    settings=SimpleNamespace(language="en"),
    score=lambda documents: (np.zeros(len(d.spans)) for d in documents),
)
answerer = Summarize(summarizer, Selection(Budget("ratio", 1.0), False))
bundle, source, output = sys.argv[1:]
read = partial(stream_documents, columns=DataConfig())
files = files_of(source, output, answerer.types, read)
print(predict_file(answerer, Path(bundle), Path(output), files, Progress()).rows)
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(bundle, tmp_path, suffix):
    used = []
    for count in (600, 6000):
        source = tmp_path / f"{count}.{suffix}"
        write_table(source, {"sentences": [[f"{i} " + "words " * 20] * 50 for i in range(count)]})
        command = [sys.executable, "-c", MEMORY, bundle, source, tmp_path / f"o.{suffix}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stderr == ""
        rows, megabytes = map(int, done.stdout.split())
        assert rows == count
        used.append(megabytes)
    assert used[1] - used[0] < 30, used  # the texts alone are 34 MB more, the answers 70


# clusters


def test_a_folder_on_ray(bundle, stories, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'nanonet[cluster]'")
    (tmp_path / "in").mkdir()
    lists = [texts for texts, _ in make_stories(6, seed=3)]
    write_table(tmp_path / "in" / "a.parquet", {"sentences": lists})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 1})
    how = ["--input", str(tmp_path / "in"), "--budget", "words=12", "--threads", "1", "--output"]
    command = [*COMMAND[:1], *COMMAND[3:], str(bundle), *how]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), "--engine", "ray"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "alone.parquet"
    how[1] = str(tmp_path / "in" / "a.parquet")
    succeed("predict", bundle, *how, alone)
    assert (tmp_path / "out" / "a.parquet").read_bytes() == alone.read_bytes()
    again = ["--engine", "ray", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    refuse("predict", bundle, *again, parts=["another budget", "--overwrite"])

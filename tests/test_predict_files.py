"""`nanonet predict` of files and pipes: streaming, whole or not at all, resumable."""

import csv
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanonet.data import formats
from nanonet.data.writers import write_table
from runs import nanonet, refuse, succeed, temporary_files

COMMAND = [sys.executable, "-W", "error", "-m", "nanonet", "predict"]
TEXTS = ["river lake", "", "apple", '  a, "b"\r\nc\t', "zinc ünï 🎈 " * 30, "line\rline", "pear"]
NAMES = ("fruit", "metal", "water")
INPUTS = ["a.csv", "a.tsv", "a.jsonl", "a.ndjson", "a.parquet"]
INPUTS += [name + end for name in INPUTS[:4] for end in (".gz", ".zst")]
OUTPUTS = ["o.csv", "o.tsv.gz", "o.jsonl", "o.ndjson.zst", "o.csv.zst", "o.jsonl.gz", "o.parquet"]
COLUMNS = ["text", "label", "label_name", "probability", "abstained"]


def plain(path: Path) -> bytes:
    """Return what was compressed, not with the package's readers."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        return pyarrow.input_stream(str(path), compression="zstd").read()
    return path.read_bytes()


def rows_of(path: Path) -> list[dict]:
    """Read answers, not with the package's readers."""
    if path.suffix == ".parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        return pq.read_table(path).to_pylist()
    text = plain(path).decode()
    if ".jsonl" in path.name or ".ndjson" in path.name:
        return [json.loads(line) for line in text.split("\n")[:-1]]
    delimiter = "\t" if ".tsv" in path.name else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    kinds = {"text": str, "label": int, "label_name": str, "probability": float}
    kinds["abstained"] = {"False": False, "True": True}.__getitem__
    return [{key: kinds[key](value) for key, value in row.items()} for row in reader]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_ROWS", 2)


# formats


@pytest.mark.parametrize("name", INPUTS)
def test_every_format_is_read(bundle, tmp_path, small_blocks, name):
    source, output = tmp_path / name, tmp_path / "o.jsonl"
    write_table(source, {"id": list(range(7)), "text": TEXTS})
    succeed("predict", bundle, "--input", source, "--output", output)
    rows = rows_of(output)
    assert [row["text"] for row in rows] == TEXTS
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_format_is_written(bundle, tmp_path, small_blocks, name):
    source, output = tmp_path / "a.jsonl", tmp_path / name
    write_table(source, {"text": TEXTS})
    output.write_text("an older file is replaced")
    err = succeed("predict", bundle, "--input", source, "--output", output).err
    assert f"{output}: 7 texts" in err
    rows = rows_of(output)
    assert [list(row) for row in rows] == [COLUMNS] * 7
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert row["label_name"] == NAMES[row["label"]]
        assert 1 / 3 <= row["probability"] <= 1
        assert row["abstained"] is False
    screen = succeed("predict", bundle, "--input", source).out
    assert [json.loads(line) for line in screen.split("\n")[:-1]] == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.jsonl", name])


def test_parquet_row_groups_are_not_as_small_as_blocks(bundle, tmp_path, small_blocks):
    pq = pytest.importorskip("pyarrow.parquet")
    source, output = tmp_path / "a.jsonl", tmp_path / "o.parquet"
    write_table(source, {"text": TEXTS})
    succeed("predict", bundle, "--input", source, "--output", output)
    assert pq.ParquetFile(output).num_row_groups == 1


def test_blocks_cross_the_row_groups_of_parquet(bundle, tmp_path, small_blocks):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    text = pyarrow.array(TEXTS).dictionary_encode()
    pq.write_table(pyarrow.table({"my.text": text}), tmp_path / "a.parquet", row_group_size=3)
    column = ["--set", "data.text_column=my.text"]
    output = tmp_path / "o.csv"
    succeed("predict", bundle, "--input", tmp_path / "a.parquet", "--output", output, *column)
    assert [row["text"] for row in rows_of(output)] == TEXTS


def test_long_texts_make_short_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "BLOCK_CHARACTERS", 100)
    write_table(tmp_path / "a.jsonl", {"text": ["x" * 60, "x" * 60, "y" * 500, "z"]})
    blocks = formats.read_blocks(tmp_path / "a.jsonl", lambda source, available: ["text"])
    assert [len(block.rows) for block in blocks] == [2, 1, 1]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.jsonl", "a.parquet"])
def test_the_fraction_read_grows_to_one(tmp_path, small_blocks, name):
    write_table(tmp_path / name, {"text": TEXTS})
    blocks = formats.read_blocks(tmp_path / name, lambda source, available: ["text"])
    fractions = [block.fraction for block in blocks]
    assert len(fractions) == 4
    assert fractions == sorted(fractions)
    assert fractions[0] > 0
    assert fractions[-1] == 1


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("source", ["a.csv", "a.parquet"])
def test_no_rows(bundle, tmp_path, source, name):
    types = {"text": str}
    write_table(tmp_path / source, {"text": []}, types)
    succeed("predict", bundle, "--input", tmp_path / source, "--output", tmp_path / name)
    assert rows_of(tmp_path / name) == []
    if name == "o.csv":
        assert (tmp_path / name).read_text().strip() == ",".join(f'"{c}"' for c in COLUMNS)
    if name == "o.parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        kinds = [str(field.type) for field in pq.read_schema(tmp_path / name)]
        assert kinds == ["string", "int64", "string", "double", "bool"]
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize(
    ("cut", "message"), [(slice(0, -5), "Truncated"), (slice(6, None), "damaged")]
)
def test_a_damaged_zst_file(bundle, tmp_path, cut, message):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.jsonl.zst"
    write_table(path, {"text": [f"{i} text" for i in range(100)]})
    path.write_bytes(path.read_bytes()[cut])
    refuse("predict", bundle, "--input", path, parts=[str(path), "zstd", message])


def test_zst_files_of_several_frames(bundle, tmp_path):
    path = tmp_path / "a.jsonl.zst"
    write_table(path, {"text": ["a"]})
    path.write_bytes(path.read_bytes() * 3)
    assert succeed("predict", bundle, "--input", path).out.count("\n") == 3


# bad rows


BAD = {
    "NUL": ("a.jsonl", b'{"text": "c"}\n{"text": "d\0"}\n', ["line 6", "NUL"]),
    "no text": ("a.jsonl", b'{"text": "c"}\n{"text": 5}\n', ["line 6", "'text'", "int 5"]),
    "no key": ("a.jsonl", b'{"txt": "c"}\n', ["line 5", "no key 'text'"]),
    "no JSON": ("a.jsonl", b"\n\nc\n", ["line 7", "broken JSON"]),
    "latin-1": ("a.jsonl", b'{"text": "\xe9"}\n', ["line 5", "0xE9", "not UTF-8"]),
    "half": ("a.jsonl", b'{"text": "\\ud800"}\n', ["line 5", "surrogate"]),
    "fields": ("a.csv", b"c,d,e\n", ["line 6", "3 fields"]),
    "quote": ("a.csv", b'"c\n', ["line 6", "broken row"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_ends_in_one_line_and_keeps_what_is_done(bundle, tmp_path, small_blocks, case):
    name, bad, parts = BAD[case]
    source, output = tmp_path / name, tmp_path / "o.csv"
    texts = ["a", "b", "a b", "b a"]
    write_table(source, {"text": texts, **({"id": [1, 2, 3, 4]} if name == "a.csv" else {})})
    good = source.read_bytes()
    source.write_bytes(good + bad)
    refuse("predict", bundle, "--input", source, "--output", output, parts=[str(source), *parts])
    assert not output.exists()
    source.write_bytes(good)
    err = succeed("predict", bundle, "--input", source, "--output", output).err
    assert "4 texts (4 of them answered before)" in err
    assert [row["text"] for row in rows_of(output)] == texts
    assert temporary_files(tmp_path) == []


def test_a_bad_first_block_leaves_nothing(bundle, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n')
    arguments = ["--input", tmp_path / "a.jsonl", "--output", tmp_path / "o.csv"]
    refuse("predict", bundle, *arguments, parts=["a.jsonl, line 1"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_parquet_that_is_not_utf_8(bundle, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    text = pyarrow.array([b"a", b"b", b"\xe9"]).cast(pyarrow.string(), safe=False)
    pq.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    parts = ["a.parquet, row 3", "'text'", "0xE9", "not UTF-8"]
    refuse("predict", bundle, "--input", tmp_path / "a.parquet", parts=parts)


def test_nul_in_a_text_fits_all_outputs_but_csv(bundle, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a"}\n\n{"text": "b\\u0000"}\n')
    for name in ("o.csv", "o.tsv.gz"):
        arguments = ["--input", source, "--output", tmp_path / name]
        refuse("predict", bundle, *arguments, parts=["line 3", "NUL", ".jsonl or .parquet"])
    for name in ("o.jsonl", "o.parquet"):
        succeed("predict", bundle, "--input", source, "--output", tmp_path / name)
        assert [row["text"] for row in rows_of(tmp_path / name)] == ["a", "b\0"]


def test_later_keys_must_not_change_the_meaning(tmp_path):
    """The first line decides which columns there are; a label that appears later is no accident."""
    from nanonet.core.errors import DataError
    from nanonet.data.readers import Columns, read_table

    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "x": 1}\n{"text": "b", "y": 1}\n{"text": "c", "label": 1}\n')
    with pytest.raises(DataError, match=r"line 3: has the key 'label', which line 1 has not"):
        read_table(path, Columns(), labels="optional")
    assert read_table(path, Columns(), labels="ignored").texts == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "parts", "status"),
    [
        (["--output", "."], ["unknown file type"], 2),
        (["--output", "d.csv"], ["d.csv is a folder"], 2),
        (["--output", "o.parquet.gz"], ["unknown file type"], 2),
        (["--output", "o.csv.bz2"], ["unknown file type", ".zst"], 2),
        (["--output", "a.jsonl"], ["is the input"], 2),
        (["--output", "o.csv", "--workers", "2"], ["--engine ray"], 2),
        (["--engine", "spark"], ["spark", "ray"], 2),
    ],
)
def test_options(bundle, tmp_path, monkeypatch, arguments, parts, status):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "d.csv").mkdir()
    refuse("predict", bundle, "--input", "a.jsonl", *arguments, parts=parts, status=status)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "d.csv"]


def test_missing_pyarrow_is_said_before_any_work(bundle, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("o.csv.zst", "o.parquet"):
        arguments = ["--input", tmp_path / "a.jsonl", "--output", tmp_path / name]
        refuse("predict", bundle, *arguments, parts=["the extra 'parquet'", "nanonet[parquet]"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


# kill and resume


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    from tiny import make_texts

    path = tmp_path_factory.mktemp("big") / "big.jsonl"
    texts = [f"{text} {i}" for i, text in enumerate(make_texts(100)[0])]
    write_table(path, {"text": texts, "id": list(range(300))})
    return path


# Ends itself with SIGKILL at the n-th call of a function; 300 rows make 6 blocks.
SUICIDE = """
import os, shutil, signal, sys
from pathlib import Path
from nanonet.data import formats
from nanonet.cli import main

formats.BLOCK_ROWS = 50
where, at = sys.argv.pop(1), int(sys.argv.pop(1))
owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace"), "rmtree": (shutil, "rmtree"),
               "unlink": (Path, "unlink")}[where]
real, calls = getattr(owner, name), []

def counted(*arguments, **options):
    calls.append(1)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

setattr(owner, name, counted)
main()
"""


@pytest.mark.parametrize(
    ("name", "where", "at", "again"),
    [
        ("o.jsonl.gz", "fsync", 1, 300),  # job.json
        ("o.jsonl.gz", "fsync", 4, 200),  # the third block, under its temporary name
        ("o.parquet", "fsync", 4, 200),
        ("o.jsonl.gz", "replace", 5, 150),  # just before the fourth gets its name
        ("o.jsonl.gz", "fsync", 8, 0),  # the joined file
        ("o.parquet", "fsync", 8, 0),
        ("o.jsonl.gz", "replace", 9, 0),  # before the joined file becomes the output
        ("o.jsonl.gz", "unlink", 2, 0),  # the output is there, the folder is whole
        ("o.jsonl.gz", "rmtree", 1, 300),  # the output is there, the folder counts as empty
    ],
)
def test_killed_anywhere_and_run_again(bundle, big, tmp_path, monkeypatch, name, where, at, again):
    monkeypatch.setattr(formats, "BLOCK_ROWS", 50)
    undisturbed, output = tmp_path / f"undisturbed-{name}", tmp_path / name
    succeed("predict", bundle, "--input", big, "--output", undisturbed)
    arguments = ["predict", bundle, "--input", big, "--output", output]
    killed = subprocess.run([sys.executable, "-c", SUICIDE, where, str(at), *map(str, arguments)])
    assert killed.returncode == -signal.SIGKILL
    is_whole = where in ("unlink", "rmtree")
    assert output.exists() == is_whole
    assert temporary_files(tmp_path) == [f".{name}.partial"]
    err = succeed(*arguments).err
    expected = f"300 texts ({300 - again} of them answered before)" if again < 300 else "300 texts,"
    assert expected in err
    assert output.read_bytes() == undisturbed.read_bytes()
    assert temporary_files(tmp_path) == []
    assert [row["text"] for row in rows_of(output)] == [row["text"] for row in rows_of(big)]


def test_killed_from_outside(bundle, big, tmp_path, monkeypatch):
    output = tmp_path / "o.csv"
    arguments = ["predict", bundle, "--input", big, "--output", output]
    code = "from nanonet.data import formats; formats.BLOCK_ROWS = 3\n"
    code += "from nanonet.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    folder = tmp_path / ".o.csv.partial"
    while len(list(folder.glob("0*.csv"))) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    monkeypatch.setattr(formats, "BLOCK_ROWS", 3)
    assert "of them answered before" in succeed(*arguments).err
    undisturbed = tmp_path / "undisturbed.csv"
    succeed("predict", bundle, "--input", big, "--output", undisturbed)
    assert output.read_bytes() == undisturbed.read_bytes()


@pytest.fixture
def half(bundle, tmp_path, small_blocks) -> Path:
    """A folder with 6 good rows and a broken one in a.jsonl, and the work on o.csv begun."""
    path = tmp_path / "a.jsonl"
    write_table(path, {"text": ["a", "b", "c", "d", "e", "f"]})
    path.write_bytes(path.read_bytes() + b"broken\n")
    arguments = ["--input", path, "--output", tmp_path / "o.csv"]
    refuse("predict", bundle, *arguments, parts=["line 7"])
    return tmp_path


def test_a_changed_input_is_answered_as_it_is_now(bundle, half):
    texts = ["a", "b", "apple", "d", "e", "f", "g"]
    write_table(half / "a.jsonl", {"text": texts})
    output = half / "o.csv"
    err = succeed("predict", bundle, "--input", half / "a.jsonl", "--output", output).err
    assert "warning: " in err
    assert "a.jsonl has changed" in err
    assert "1 finished blocks did not fit" in err
    assert "7 texts (4 of them answered before)" in err
    assert [row["text"] for row in rows_of(output)] == texts
    assert [row["label"] for row in rows_of(output)] == [
        json.loads(line)["label"]
        for line in succeed("predict", bundle, "--input", half / "a.jsonl").out.splitlines()
    ]
    assert temporary_files(half) == []


def test_another_bundle_is_refused(bundle, half):
    other = shutil.copytree(bundle, half / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["metrics"] = {}
    (other / "manifest.json").write_text(json.dumps(manifest))
    write_table(half / "a.jsonl", {"text": ["a", "b", "c"]})
    arguments = ["predict", other, "--input", half / "a.jsonl", "--output", half / "o.csv"]
    refuse(*arguments, parts=["o.csv", "another bundle", "--overwrite"])
    assert not (half / "o.csv").exists()
    err = succeed(*arguments, "--overwrite").err
    assert "3 texts," in err
    assert temporary_files(half) == []


def test_ctrl_c_says_how_to_go_on(bundle, half, monkeypatch):
    from nanonet.runtime import batch

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    write_table(half / "a.jsonl", {"text": ["a", "b", "c", "d", "e", "g"]})
    arguments = ["predict", bundle, "--input", half / "a.jsonl", "--output", half / "o.csv"]
    with monkeypatch.context() as patched:
        patched.setattr(batch.Classify, "answer", interrupt)
        refuse(*arguments, parts=["o.csv is not finished", "same command goes on"], status=130)
    assert "6 texts (4 of them answered before)" in succeed(*arguments).err


def test_a_full_disk_keeps_what_is_done(bundle, half, monkeypatch):
    import errno

    def fail(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_table(half / "a.jsonl", {"text": ["a", "b", "c", "d", "e", "f", "g"]})
    arguments = ["predict", bundle, "--input", half / "a.jsonl", "--output", half / "o.csv"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        refuse(*arguments, parts=["cannot write", "o.csv", "No space left"])
    assert not (half / "o.csv").exists()
    assert "7 texts (6 of them answered before)" in succeed(*arguments).err


# memory


MEMORY = r"""
import re, sys
from pathlib import Path
import numpy as np
from functools import partial
from nanonet.cli.predict import files_of
from nanonet.data import writers
from nanonet.data.readers import stream_texts
from nanonet.runtime.batch import Classify, predict_file
from nanonet.tasks.labels import LabelSet

class Predictor:
    labels = LabelSet((0, 1), ("a", "b"))
    min_confidence = 0.0
    def predict_proba(self, texts):
        return np.full((len(texts), 2), 0.5, dtype=np.float32)

class Progress:
    def update(self, *_): pass

writers._ROW_GROUP_ROWS = 4096  # or the smaller file would not fill one
answerer = Classify(Predictor())
bundle, source, output = sys.argv[1:]
files = files_of(source, output, answerer.types, partial(stream_texts, column="text"))
print(predict_file(answerer, Path(bundle), Path(output), files, Progress()).rows)
# Not ru_maxrss, which counts what the parent process had.
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("source", "output"), [("a.csv.gz", "o.jsonl"), ("a.parquet", "o.parquet")]
)
def test_memory_does_not_grow_with_the_file(bundle, tmp_path, source, output):
    used = []
    for rows in (10_000, 100_000):
        path = tmp_path / f"{rows}{source}"
        write_table(path, {"text": [f"{i} " + "some words " * 60 for i in range(rows)]})
        command = [sys.executable, "-c", MEMORY, bundle, path, tmp_path / output]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stderr == ""
        count, megabytes = map(int, done.stdout.split())
        assert count == rows
        used.append(megabytes)
    assert used[1] - used[0] < 30  # the texts alone are 60 MB more


# pipes


def pipe(bundle: Path, content: str | bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    data = content.encode() if isinstance(content, str) else content
    return subprocess.run(
        [*COMMAND, str(bundle), "--input", "-", *arguments], input=data, capture_output=True
    )


@pytest.mark.parametrize("arguments", [[], ["--output", "-"]])
def test_a_pipe(bundle, arguments):
    done = pipe(bundle, '{"id": 1, "text": "äpple"}\n\n{"text": "iron"}', *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [list(row) for row in rows] == [COLUMNS] * 2
    assert [row["text"] for row in rows] == ["äpple", "iron"]


def test_an_empty_pipe(bundle, tmp_path):
    done = pipe(bundle, "")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_pipe_into_a_file(bundle, tmp_path):
    done = pipe(bundle, '{"text": "a"}\n' * 5000, "--output", str(tmp_path / "o.csv"))
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(f"{tmp_path / 'o.csv'}: 5,000 texts".encode())
    assert len(rows_of(tmp_path / "o.csv")) == 5000
    assert temporary_files(tmp_path) == []


def test_a_pipe_into_a_file_waits_for_whole_blocks_and_goes_on(bundle, tmp_path):
    """Where the pipe pauses is chance; cut there, no block could be found again."""
    arguments = [*COMMAND, str(bundle), "--input", "-", "--output", str(tmp_path / "o.csv")]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    for line in (b'{"text": "a"}\n' * 5000, b"broken\n"):
        process.stdin.write(line)
        process.stdin.flush()
        time.sleep(0.2)
    assert b"stdin, line 5001" in process.communicate()[1]
    assert process.returncode == 1
    (folder,) = tmp_path.iterdir()
    names = [p.name[:25] for p in sorted(folder.glob("0*"))]
    assert names == ["000000000000-000000004096", "000000004096-000000005000"]
    done = pipe(bundle, '{"text": "a"}\n' * 5000, "--output", str(tmp_path / "o.csv"))
    assert b"5,000 texts (5,000 of them answered before)" in done.stderr
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"{", b"stdin, line 3: broken JSON"),
        (b'{"txt": 1}', b"stdin, line 3: no key 'text'"),
        (b'{"text": 1}', b"stdin, line 3, column 'text': expected text"),
        (b'{"text": "\xe9"}', b"stdin, line 3: the byte 0xE9"),
    ],
)
def test_a_bad_line_in_a_pipe(bundle, bad, message):
    done = pipe(bundle, b'{"text": "a"}\n\n' + bad + b'\n{"text": "b"}\n')
    assert done.stderr.startswith(b"error: " + message)
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1


def test_a_pipe_is_answered_when_it_pauses(bundle):
    """The reader waits for the answer before it writes on, as a program that talks to it does."""
    process = subprocess.Popen(
        [*COMMAND, str(bundle), "--input", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for text in ("apple", "iron"):
        process.stdin.write(json.dumps({"text": text}).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    process.stdin.close()
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait() == 0


@pytest.mark.parametrize("source", ["-", "FILE"])
def test_a_reader_that_leaves_ends_it_quietly(bundle, tmp_path, source):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "apple"}\n' * 20_000)
    name = path if source == "FILE" else source
    command = f"{sys.executable} -m nanonet predict {bundle} --input {name} < {path} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_closed_stdin(bundle):
    command = f"{sys.executable} -m nanonet predict {bundle} --input - <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: stdin is closed; give --input FILE\n"


# progress


def test_progress_is_a_line_now_and_then_where_nobody_looks(bundle, tmp_path, monkeypatch):
    from nanonet.cli import progress

    monkeypatch.setattr(formats, "BLOCK_ROWS", 2)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    write_table(tmp_path / "a.jsonl", {"text": ["a"] * 8})
    output = tmp_path / "o.csv"
    err = succeed("predict", bundle, "--input", tmp_path / "a.jsonl", "--output", output).err
    lines = err.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith(f"{output}: 4 texts, ")
    assert "texts/s (50% of the input)" in lines[1]


def test_progress_is_a_bar_on_a_terminal(bundle, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(formats, "BLOCK_ROWS", 2)
    write_table(tmp_path / "a.jsonl", {"text": ["a"] * 8})
    from nanonet.cli.progress import RowProgress

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with RowProgress("o.csv") as shown:
        shown.update(4, 0, 0.5)
        shown._bar.refresh()
    assert "o.csv" in screen.getvalue()
    assert "4 texts" in screen.getvalue()


def test_quiet_on_a_screen_that_shows_the_answers(bundle, tmp_path):
    write_table(tmp_path / "a.jsonl", {"text": ["a"] * 8})
    assert nanonet("predict", bundle, "--input", tmp_path / "a.jsonl").err == ""

"""`nanonet predict --engine ray`: a folder of Parquet files on a Ray cluster of this machine."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nanonet.cli.predict import _load_classifier, files_of
from nanonet.core.files import sha256_file
from nanonet.data.readers import stream_texts
from nanonet.runtime.cluster import FileWorker, _todo
from runs import refuse, succeed

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nanonet[cluster]'")
pq = pytest.importorskip("pyarrow.parquet")

LOAD = partial(_load_classifier, min_confidence=None)
FILES_OF = partial(files_of, read=partial(stream_texts, column="body"))
NAMES = ["a.parquet", "b.parquet", "day=1/c.parquet"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three input files, one of them without rows, and some that are no input."""
    from nanonet.data.writers import write_table
    from tiny import make_texts

    texts = make_texts(20)[0]
    source = tmp_path / "in"
    for name, rows in zip(NAMES, (texts[:40], [], texts[40:]), strict=True):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_table(
            source / name, {"body": rows, "n": list(range(len(rows)))}, {"body": str, "n": int}
        )
    for name in ("_SUCCESS", "notes.txt", ".hidden.parquet"):
        (source / name).write_text("x")
    return source


def arguments(bundle: Path, folder: Path, *more: object) -> list[object]:
    column = ["--set", "data.text_column=body"]
    output = folder.parent / "out"
    return [
        "predict",
        bundle,
        "--engine",
        "ray",
        "--input",
        folder,
        "--output",
        output,
        *column,
        *more,
    ]


def ray(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: Ray's warnings are not ours to judge."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        # Ray tells the number of CPUs by its own rules; two actors must fit.
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2}),
    }
    environment.pop("RAY_ADDRESS", None)
    call = [sys.executable, "-m", "nanonet", *map(str, command)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture
def no_ray(monkeypatch):
    """Whoever starts Ray in this process fails."""
    import ray as package

    monkeypatch.setattr(package, "init", lambda *_, **__: pytest.fail("Ray was started"))


def test_every_file_is_answered_as_on_one_machine(bundle, folder, no_ray):
    """With two actors and a file that cannot be answered; then without it, with nothing to do."""
    output, bad = folder.parent / "out", folder / "bad.parquet"
    bad.write_bytes(b"PAR1")
    done = ray(*arguments(bundle, folder, "--workers", 2))
    said = done.stderr.splitlines()[-1]  # Ray says things of its own
    assert said.startswith(f"error: {bad} is no Parquet file"), done.stderr
    assert said.endswith("; 3 of 4 files are answered")
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    bad.unlink()
    assert f"{output}: 0 texts" in succeed(*arguments(bundle, folder)).err
    found = [str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()]
    assert sorted(found) == sorted([".nanonet.json", *NAMES])
    for name in NAMES:
        alone = folder.parent / "alone.parquet"
        column = ["--set", "data.text_column=body", "--threads", 1]
        succeed("predict", bundle, "--input", folder / name, "--output", alone, *column)
        assert (output / name).read_bytes() == alone.read_bytes()
    assert pq.read_table(output / "b.parquet").num_rows == 0


def test_what_an_earlier_call_has_answered(bundle, folder, no_ray):
    output = folder.parent / "out"
    command = arguments(bundle, folder)
    worker = FileWorker(str(bundle), LOAD, 1, FILES_OF, False)
    sources = np.array([str(folder / name) for name in NAMES])
    outputs = np.array([str(output / name) for name in NAMES])
    done = worker({"source": sources, "output": outputs})
    assert done == {"rows": [40, 0, 20], "error": ["", "", ""]}
    refuse(*command, parts=["out exists", "not the output of an earlier run"])
    states = {name: (folder / name).stat() for name in NAMES}
    record = {
        "bundle": sha256_file(bundle / "manifest.json"),
        "text column": "body",
        "least confidence": "None",
        "inputs": {n: f"{s.st_size} {s.st_mtime_ns}" for n, s in states.items()},
    }
    (output / ".nanonet.json").write_text(json.dumps(record))
    assert "0 texts" in succeed(*command).err
    other = json.dumps({**record, "bundle": "0"})
    (output / ".nanonet.json").write_text(other)
    refuse(*command, parts=["out was answered with another bundle", "--overwrite"])
    (output / ".nanonet.json").write_text("[]")
    refuse(*command, parts=[".nanonet.json is damaged"])
    assert pq.read_table(output / "a.parquet").num_rows == 40


def test_which_files_need_work(folder):
    output = folder.parent / "out"
    job = {"bundle": "1", "text column": "body"}
    assert _todo(folder, output, NAMES, job, False) == NAMES
    for name in NAMES:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("answers")
    assert _todo(folder, output, NAMES, job, False) == []
    (output / NAMES[0]).unlink()
    shutil.copy(folder / "a.parquet", folder / "b.parquet")
    assert _todo(folder, output, NAMES, job, False) == NAMES[:2]
    assert not (output / "b.parquet").exists()  # out of date: never to be taken for an answer
    assert (output / NAMES[2]).exists()
    assert _todo(folder, output, NAMES, {**job, "bundle": "2"}, True) == NAMES
    assert not (output / NAMES[2]).exists()


def test_a_bad_file_does_not_stop_the_others(bundle, folder):
    (folder / "b.parquet").write_bytes(b"no Parquet")
    worker = FileWorker(str(bundle), LOAD, 1, FILES_OF, False)
    output = folder.parent / "out"
    done = worker(
        {
            "source": np.array([str(folder / name) for name in NAMES]),
            "output": np.array([str(output / name) for name in NAMES]),
        }
    )
    assert done["rows"] == [40, 0, 20]
    assert [bool(problem) for problem in done["error"]] == [False, True, False]
    assert "b.parquet is no Parquet file" in done["error"][1]
    assert not (output / "b.parquet").exists()


@pytest.mark.parametrize(
    ("change", "parts", "status"),
    [
        (["--output", "in/out"], ["lie in each other"], 2),
        (["--output", "."], ["lie in each other"], 2),
        (["--output", "-"], ["folders --input and --output"], 2),
        (["--input", "-"], ["folders --input and --output"], 2),
        (["--input", "none"], ["folder none does not exist"], 1),
        (["--input", "empty"], ["holds no .parquet files"], 1),
        (["--output", "full"], ["full exists and is not the output"], 1),
        (["--output", "file"], ["file exists and is not the output"], 1),
    ],
)
def test_what_is_refused_before_ray_starts(
    bundle, folder, no_ray, monkeypatch, change, parts, status
):
    monkeypatch.chdir(folder.parent)
    for name in ("empty", "full"):
        Path(name).mkdir()
    Path("full/thesis.tex").write_text("x")
    Path("file").write_text("x")
    command = ["predict", bundle, "--engine", "ray", "--input", "in", "--output", "out", *change]
    refuse(*command, parts=parts, status=status)
    assert Path("full/thesis.tex").read_text() == "x"


def test_a_damaged_bundle_is_refused_before_ray_starts(bundle, folder, no_ray):
    other = shutil.copytree(bundle, folder.parent / "bundle")
    (other / "model.onnx").write_bytes(b"x")
    refuse(*arguments(other, folder), parts=["model.onnx", "checksum"])
    assert not (folder.parent / "out").exists()


def test_missing_extra(bundle, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refuse(*arguments(bundle, folder), parts=["--engine ray", "nanonet[cluster]"])

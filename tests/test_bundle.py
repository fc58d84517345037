import json
import shutil
from pathlib import Path

import pytest

from nanonet.core.bundle import FORMAT, read_manifest
from nanonet.core.errors import BundleError
from nanonet.core.files import sha256_file
from nanonet.runtime.predictor import Predictor
from runs import refuse


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def change(folder: Path, **values: object) -> None:
    """Change the manifest, as a person with an editor would."""
    text = json.dumps({**manifest_of(folder), **values})
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def refuse_bundle(folder: Path, *parts: str) -> None:
    """Check that the library and the command line refuse a bundle in one line."""
    with pytest.raises(BundleError) as error:
        Predictor.load(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    refuse("predict", folder, "text", parts=[message])


def test_a_bundle_can_be_copied(copy):
    assert Predictor.load(copy)(["apple"])[0] in ("fruit", "metal", "water")
    assert Predictor.load(str(copy)).manifest == read_manifest(copy)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_missing_file(copy, name):
    (copy / name).unlink()
    refuse_bundle(copy, str(copy), f"lacks {name}")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_truncated_file(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-10])
    refuse_bundle(copy, name, "checksum")


def test_altered_file(copy):
    text = (copy / "tokenizer.json").read_text(encoding="utf-8")
    (copy / "tokenizer.json").write_text(text.replace("apple", "appel"), encoding="utf-8")
    refuse_bundle(copy, "tokenizer.json", "is not what was exported")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"x"', "\udcff", "[" * 9999])
def test_manifest_that_is_no_table(copy, content):
    data = content.encode("utf-8", "surrogateescape")
    (copy / "manifest.json").write_bytes(data)
    refuse_bundle(copy, "manifest.json", "damaged")


def test_newer_format_comes_before_everything_else(copy):
    change(copy, format=FORMAT + 1, something="new")
    refuse_bundle(copy, f"has format {FORMAT + 1}", "upgrade nanonet")


@pytest.mark.parametrize("value", [0, -1, "1", None, True, 1.5])
def test_format_that_never_was(copy, value):
    change(copy, format=value)
    refuse_bundle(copy, "manifest.json", "format")


@pytest.mark.parametrize("key", ["format", "labels", "files", "max_length", "task"])
def test_manifest_without_a_key(copy, key):
    values = manifest_of(copy)
    del values[key]
    (copy / "manifest.json").write_text(json.dumps(values))
    refuse_bundle(copy, "manifest.json", key)


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ({"values": [0, 1], "names": ["a", "b"]}, "3 outputs"),
        ({"values": [0, 1, 2], "names": ["a", "b"]}, "3 values but 2 names"),
        ({"values": [0, 1, 1], "names": ["a", "b", "c"]}, "twice"),
        ({"values": [0, 1, 2]}, "names"),
        ({}, "values"),
    ],
)
def test_labels_that_do_not_fit(copy, labels, part):
    change(copy, labels=labels)
    refuse_bundle(copy, str(copy), part)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "..", "a/b", ""])
def test_file_outside_of_the_bundle(copy, name):
    (copy.parent / "outside.txt").write_text("x")
    digest = sha256_file(copy.parent / "outside.txt")
    change(copy, files={**manifest_of(copy)["files"], name: digest})
    refuse_bundle(copy, "outside the bundle", repr(name))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_file_without_a_checksum(copy, name):
    files = manifest_of(copy)["files"]
    del files[name]
    change(copy, files=files)
    refuse_bundle(copy, "manifest.json", f"no checksum of {name}")


@pytest.mark.parametrize("value", [0, -1, 1])
def test_max_length_that_cannot_be(copy, value):
    change(copy, max_length=value)
    refuse_bundle(copy, str(copy))


def test_another_task(copy):
    change(copy, task="summarization")
    refuse_bundle(copy, "summarization", "upgrade nanonet")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_file_that_is_right_by_its_checksum_only(copy, name):
    (copy / name).write_text("{}\nnothing")
    change(copy, files={**manifest_of(copy)["files"], name: sha256_file(copy / name)})
    refuse_bundle(copy, str(copy), "cannot be loaded")


def test_no_bundle(tmp_path):
    refuse_bundle(tmp_path / "none", "does not exist")
    refuse_bundle(tmp_path, "is not a bundle", "manifest.json")

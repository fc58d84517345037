import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nanonet.core import bundle as bundle_module
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


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "seen.bin", "config.json"])
def test_missing_file(copy, name):
    (copy / name).unlink()
    refuse_bundle(copy, str(copy), f"lacks {name}")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "seen.bin", "config.json"])
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
    change(copy, task="translation")
    refuse_bundle(copy, "translation", "upgrade nanonet")
    change(copy, task="summarization")
    with pytest.raises(BundleError, match="is a summarizer: load it with Summarizer"):
        Predictor.load(copy)
    refuse("predict", copy, "text", parts=["is damaged", "no summarizer's"])


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_file_that_is_right_by_its_checksum_only(copy, name):
    (copy / name).write_text("{}\nnothing")
    change(copy, files={**manifest_of(copy)["files"], name: sha256_file(copy / name)})
    refuse_bundle(copy, str(copy), "cannot be loaded")


def test_no_bundle(tmp_path):
    refuse_bundle(tmp_path / "none", "does not exist")
    refuse_bundle(tmp_path, "is not a bundle", "manifest.json")


# a hostile mind


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"labels": ["a", "b", "c"]}, "labels"),
        ({"files": ["model.onnx"]}, "files"),
        ({"files": {"model.onnx": 3}}, "files.model.onnx"),
        ({"max_length": "32"}, "max_length"),
        ({"max_length": 32.5}, "max_length"),
        ({"max_length": 10**30}, "cannot be loaded"),
        ({"parameters": {"total": "many"}}, "parameters.total"),
        ({"task": None}, "task"),
        ({"extra" * 9999: 1}, "unknown key"),
        ({"task": ["x" * 99999]}, "task"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_types_and_huge_values(copy, values, part):
    change(copy, **values)
    refuse_bundle(copy, str(copy), part)
    with pytest.raises(BundleError) as error:
        Predictor.load(copy)
    assert len(str(error.value)) < 600


def test_a_manifest_without_end(copy, monkeypatch):
    monkeypatch.setattr(bundle_module, "MANIFEST_LIMIT", 1000)
    refuse_bundle(copy, "manifest.json is damaged: more than 1000 bytes")


def list_file(folder: Path, name: str, digest: str | None = None) -> None:
    """Let the manifest list a file, with its checksum unless another is given."""
    digest = digest or sha256_file(folder / name)
    change(folder, files={**manifest_of(folder)["files"], name: digest})


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0", "manifest.json", "a\\b", "."])
def test_names_that_no_file_of_a_bundle_has(copy, name):
    list_file(copy, name, "0" * 64)
    refuse_bundle(copy, str(copy))


def test_a_folder_in_the_place_of_a_file(copy):
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").mkdir()
    refuse_bundle(copy, "lacks model.onnx")


def test_a_link_counts_by_its_content(copy):
    """Caches of the Hugging Face hub consist of links; the checksum says whether it is right."""
    other = (copy / "tokenizer.json").rename(copy.parent / "blob")
    (copy / "tokenizer.json").symlink_to(other)
    assert Predictor.load(copy)(["apple"])
    other.write_text("secret")
    refuse_bundle(copy, "is not what was exported")


def test_a_tokenizer_with_more_tokens_than_the_model(copy):
    values = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["vocab"]["foreign"] = len(values["model"]["vocab"])
    (copy / "tokenizer.json").write_text(json.dumps(values))
    list_file(copy, "tokenizer.json")
    refuse_bundle(copy, str(copy), "ids of its tokenizer go up to 36")


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0"}', "[" * 9999, "\0"])
def test_a_tokenizer_that_is_none(copy, content):
    (copy / "tokenizer.json").write_text(content)
    list_file(copy, "tokenizer.json")
    refuse_bundle(copy, str(copy), "cannot be loaded")


def test_a_tokenizer_that_panics(copy):
    """tokenizers is written in Rust, whose panics are no Exception."""
    values = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    values["post_processor"]["special_tokens"] = {}
    (copy / "tokenizer.json").write_text(json.dumps(values))
    list_file(copy, "tokenizer.json")
    refuse_bundle(copy, "cannot be loaded: the tokenizer fails", "no entry found for key")


def test_more_tokens_than_the_model_has_positions_for(copy):
    change(copy, max_length=500)
    with pytest.raises(BundleError, match=r"fails on 1 x 402 tokens \(is max_length") as error:
        Predictor.load(copy)(["apple " * 400])
    assert "\n" not in str(error.value)
    refuse("predict", copy, "apple " * 400, parts=["fails on 1 x 402 tokens"])
    assert Predictor.load(copy)(["apple"])


def constant_model(inputs: list[str], output: str, value: np.ndarray) -> onnx.ModelProto:
    """Return a model that gives a constant whatever it is asked."""
    tensor = numpy_helper.from_array(value.astype(np.float32))
    node = helper.make_node("Constant", [], [output], value=tensor)
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["r", "t"]) for n in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, value.shape)],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


BOTH = ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("inputs", "output", "shape", "part"),
    [
        (["x"], "logits", (1, 3), "takes x and gives logits instead of"),
        ([*BOTH, "token_type_ids"], "logits", (1, 3), "token_type_ids and gives logits instead of"),
        (BOTH, "y", (1, 3), "gives y instead of"),
        (BOTH, "logits", (1, 4), "has 4 outputs"),
        (BOTH, "logits", (), "has 0 outputs"),
        (BOTH, "logits", (2, 3), "gives logits (2, 3) of a text"),
        (BOTH, "logits", (1, 1, 3), "gives logits (1, 1, 3) of a text"),
    ],
)
def test_a_model_of_something_else(copy, inputs, output, shape, part):
    onnx.save(constant_model(inputs, output, np.zeros(shape)), copy / "model.onnx")
    list_file(copy, "model.onnx")
    refuse_bundle(copy, str(copy), part)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "gone.bin"])
def test_weights_outside_of_the_bundle(copy, location):
    model = onnx.load(copy / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (copy.parent / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    list_file(copy, "model.onnx")
    refuse_bundle(copy, str(copy), "cannot be loaded")

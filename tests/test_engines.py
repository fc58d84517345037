import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nanonet import Predictor
from nanonet.core.bundle import MODEL
from nanonet.core.errors import BundleError, ConfigError, MissingExtraError
from nanonet.core.files import sha256_file
from nanonet.runtime import engines
from nanonet.runtime.engines import ENGINES, available_engines, open_engine, run_rows
from nanonet.tasks.tokenization import length_chunks

ROWS = [np.arange(2, 2 + n, dtype=np.int64) for n in (3, 9, 1, 4, 16, 5, 2)]


def write_model(path, inputs, outputs):
    """Write a model that multiplies two integer inputs; only its names matter."""
    nodes = [helper.make_node("Mul", list(inputs), [f"{name}_int"]) for name in outputs]
    nodes += [helper.make_node("Cast", [f"{o}_int"], [o], to=TensorProto.FLOAT) for o in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["rows", 3]) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 3]) for n in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def engine(bundle):
    return open_engine(engines.DEFAULT, bundle / MODEL, 1)


def test_an_engine_gives_the_logits_of_the_default_one(engine, bundle):
    assert engine.classes == 3
    expected = run_rows(open_engine(engines.DEFAULT, bundle / MODEL, 2), ROWS)
    found = run_rows(engine, ROWS)
    assert (found.shape, found.dtype) == ((len(ROWS), 3), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.argmax(-1) == expected.argmax(-1)).all()


def test_one_row_is_what_it_is_among_others(engine):
    together = run_rows(engine, ROWS)
    for row, logits in zip(ROWS, together, strict=True):
        np.testing.assert_allclose(run_rows(engine, [row])[0], logits, atol=0.05)
    assert len(np.unique(together.round(5), axis=0)) == len(ROWS)


ALONE = """
import sys
import numpy as np
from nanonet import Predictor
from nanonet.runtime.engines import available_engines, open_engine, run_rows
from nanonet.runtime.tuning import tune
from pathlib import Path

bundle = Path(sys.argv[1])
assert "openvino" in available_engines()
rows = [np.arange(2, 2 + n, dtype=np.int64) for n in (3, 9, 1, 4, 16, 5, 2)]
expected = run_rows(open_engine("onnxruntime", bundle / "model.onnx", 1), rows)
engine = open_engine("openvino", bundle / "model.onnx", 1)
np.testing.assert_allclose(run_rows(engine, rows), expected, atol=1e-4)
for row, logits in zip(rows, expected, strict=True):
    np.testing.assert_allclose(run_rows(engine, [row])[0], logits, atol=1e-4)
mask = np.ones((1, 3), dtype=np.int64)
first = engine.run({"input_ids": rows[0][None], "attention_mask": mask})
kept = first.copy()
engine.run({"input_ids": rows[0][None, ::-1].copy(), "attention_mask": mask})
np.testing.assert_array_equal(first, kept)
assert tune(bundle, seconds=0).choices
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
def test_openvino_in_a_process_of_its_own(bundle):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(bundle)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_openvino_does_not_run_beside_torch():
    """Training in the same process crashed (OpenVINO 2026.4, torch 2.13)."""
    assert "torch" in sys.modules
    assert available_engines() == [engines.DEFAULT]


def test_an_answer_outlives_the_next_run(engine):
    """An engine that reuses its memory must not hand it out."""
    mask = np.ones((1, 3), dtype=np.int64)
    first = engine.run({"input_ids": ROWS[0][None], "attention_mask": mask})
    kept = first.copy()
    engine.run({"input_ids": ROWS[0][None, ::-1].copy(), "attention_mask": mask})
    np.testing.assert_array_equal(first, kept)


class Recorder:
    """An engine that answers each row with its first token, and notes the shapes it was given."""

    classes = 1

    def __init__(self):
        self.shapes = []

    def run(self, feed):
        input_ids, attention_mask = feed["input_ids"], feed["attention_mask"]
        assert input_ids.dtype == attention_mask.dtype == np.int64
        assert (input_ids[attention_mask == 0] == 0).all()
        self.shapes.append(input_ids.shape)
        return input_ids[:, :1].astype(np.float32)


def test_rows_run_in_chunks_and_come_back_in_order():
    rows = [np.full(n, i, dtype=np.int64) for i, n in enumerate([5, 40, 5, 39, 6, 40])]
    recorder = Recorder()
    assert run_rows(recorder, rows, tokens_per_chunk=80).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    lengths = [len(row) for row in rows]
    chunks = length_chunks(lengths, engines.MAX_PADDING, 80)
    assert recorder.shapes == [(len(c), max(lengths[i] for i in c)) for c in chunks]
    assert max(rows * tokens for rows, tokens in recorder.shapes) <= 80
    assert run_rows(recorder, []).shape == (0, 1)


def test_the_default_comes_first():
    assert available_engines()[0] == engines.DEFAULT
    assert set(available_engines()) <= set(ENGINES)


def test_unknown_engine(bundle):
    with pytest.raises(ConfigError, match=r"unknown engine 'onnxruntim' \(did you mean"):
        open_engine("onnxruntim", bundle / MODEL, 1)


def test_an_engine_that_is_not_installed(bundle, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"the engine 'openvino' needs the extra 'openvino'"
    ):
        open_engine("openvino", bundle / MODEL, 1)
    assert available_engines() == []


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (("input_ids", "mask"), ("logits",)),
        (("input_ids", "attention_mask"), ("scores",)),
        (("input_ids", "attention_mask"), ("logits", "more")),
    ],
)
def test_a_model_of_other_inputs_or_outputs(tmp_path, inputs, outputs):
    path = write_model(tmp_path / "m.onnx", inputs, outputs)
    with pytest.raises(BundleError, match="instead of input_ids, attention_mask and logits"):
        open_engine(engines.DEFAULT, path, 1)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_damaged_model(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"m\.onnx cannot be loaded: .") as caught:
        open_engine(engines.DEFAULT, path, 1)
    assert "\n" not in str(caught.value)


def test_a_predictor_says_which_bundle_does_not_fit(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    write_model(copy / MODEL, ("input_ids", "attention_mask"), ("scores",))
    manifest = copy / "manifest.json"
    text = manifest.read_text()
    old = sha256_file(bundle / MODEL)
    manifest.write_text(text.replace(old, sha256_file(copy / MODEL)))
    with pytest.raises(BundleError, match="gives scores instead of"):
        Predictor.load(copy)

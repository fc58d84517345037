"""Weights in fewer bits: how far the outputs move, how small the files get, what is refused."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from nanonet.core.errors import BundleError
from nanonet.export.graph import open_session, write_onnx
from nanonet.export.quantization import _quantize_embeddings, quantize
from test_export import feed_of, random_learner


@pytest.fixture(scope="module", params=["tiny_bert_folder", "tiny_modernbert_folder"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(random_learner(request.getfixturevalue(request.param)), path)
    return path


FEEDS = [feed_of(5, 20, 36, seed) for seed in range(4)]


def outputs(path, feeds=FEEDS) -> np.ndarray:
    session = open_session(path)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


@pytest.mark.parametrize(
    ("kind", "limit"), [("int8", 0.15), ("int8-static", 0.15), ("mixed", 0.4), ("int4", 0.6)]
)
def test_outputs_move_a_little(model, tmp_path, kind, limit):
    small = tmp_path / "model.onnx"
    shutil.copy(model, small)
    quantize(small, kind, FEEDS)
    expected = outputs(model)
    moved = np.linalg.norm(outputs(small) - expected) / np.linalg.norm(expected)
    assert 0 < moved < limit
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert kinds & {"MatMulInteger", "MatMulNBits"}
    assert ("DynamicQuantizeLinear" in kinds) == (kind in ("int8", "mixed"))


def test_none_leaves_the_file_alone(model, tmp_path):
    same = tmp_path / "model.onnx"
    shutil.copy(model, same)
    quantize(same, "none", [])
    assert same.read_bytes() == model.read_bytes()


def test_static_scales_make_an_answer_independent_of_the_batch(model, tmp_path):
    """Beside a text of far larger activations, dynamic scales change and fixed ones do not."""
    small = tmp_path / "model.onnx"
    shutil.copy(model, small)
    quantize(small, "int8-static", FEEDS)
    feed = feed_of(6, 12, 36)
    alone = {name: values[:1] for name, values in feed.items()}
    np.testing.assert_allclose(outputs(small, [alone]), outputs(small, [feed])[:1], atol=1e-5)


def test_static_scales_need_texts(model):
    before = model.read_bytes()
    with pytest.raises(BundleError, match="--data FILE"):
        quantize(model, "int8-static", [])
    assert model.read_bytes() == before


def gathering(table: np.ndarray) -> onnx.ModelProto:
    """Return a model that gathers rows of a table."""
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [None, None])
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, None)
    node = helper.make_node("Gather", ["table", "ids"], ["rows"])
    stored = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph([node], "g", [ids], [rows], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.5 / 127), (4, 1.0 / 8)])
def test_rows_of_a_table_keep_their_own_scale(tmp_path, bits, worst):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 64)).astype(np.float32)
    table *= np.logspace(-3, 3, 200)[:, None].astype(np.float32)  # one scale for all would fail
    table[7] = 0
    model = gathering(table)
    size = model.ByteSize()
    _quantize_embeddings(model.graph, bits)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    ids = np.arange(200).reshape(10, 20)
    found = open_session(path).run(None, {"ids": ids})[0].reshape(200, 64)
    error = np.abs(found - table).max(1) / np.maximum(np.abs(table).max(1), 1e-9)
    assert error.max() <= worst * 1.01
    assert (found[7] == 0).all()
    assert path.stat().st_size < size * (bits / 32 + 0.1)


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(BundleError, match="width 33 cannot be held in 4 bits: use int8"):
        _quantize_embeddings(gathering(np.ones((100, 33), np.float32)).graph, 4)

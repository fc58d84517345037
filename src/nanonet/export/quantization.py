"""Fewer bits for the weights of an ONNX model.

Embeddings are rewritten here, with a scale for each row or group, in operators of plain ONNX; the
linear maps by onnxruntime's own tools.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nanonet.core.errors import BundleError

Quantization = Literal["none", "int8", "int8-static", "mixed", "int4"]
GROUP = 32  # embedding features that share a scale in 4 bits
BLOCK = 64  # inputs of a linear map that share a scale in 4 bits

Feed = dict[str, NDArray[Any]]


def quantize(path: Path, kind: Quantization, feeds: Sequence[Feed]) -> None:
    """Replace an ONNX model by one that holds its weights in fewer bits.

    ``int8``: weights in 8 bits with a scale per output channel, activations quantized as they come
    (a scale per batch). ``int8-static``: the same with scales of the activations fixed beforehand,
    so that a text's answer does not depend on the texts beside it. ``mixed``: as ``int8``, but the
    embeddings in 4 bits with a scale per group of features. ``int4``: the linear maps in 4 bits
    too, with a scale per block, for the smallest file.

    Args:
        path: of the model; read and written.
        kind: see above; ``none`` does nothing.
        feeds: typical inputs, for ``int8-static`` to see the range of the activations.

    Raises:
        BundleError: ``int8-static`` without inputs; a matrix that cannot be held in 4 bits.
    """
    if kind == "none":
        return
    if kind == "int8-static" and not feeds:
        raise BundleError("int8-static needs texts to see typical values: give --data FILE")
    model = onnx.load(str(path))
    _quantize_embeddings(model.graph, 4 if kind in ("mixed", "int4") else 8)
    if kind == "int4":
        model = _four_bits(model)
    else:
        model = _eight_bits(model, path)
        if kind == "int8-static":
            _fix_scales(model, feeds)
    onnx.save(model, str(path))


@contextmanager
def _quiet_root() -> Iterator[None]:
    """Silence the quantizers: they recommend steps that do not apply here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


# --- linear maps


def _eight_bits(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    with _quiet_root():
        # 7 of the 8 bits: without VNNI instructions, sums of two products of 8 bits overflow, and
        # answers would depend on the processor.
        quantize_dynamic(
            model, path, per_channel=True, reduce_range=True, op_types_to_quantize=["MatMul"]
        )
    return onnx.load(str(path))


def _four_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    with _quiet_root():
        nbits.logger.setLevel(logging.ERROR)
        # Level 4: activations in 8 bits too, which is the fast way on processors.
        quantizer = nbits.MatMulNBitsQuantizer(
            model, bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
    small: onnx.ModelProto = quantizer.model.model
    return small


def _fix_scales(model: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Give activations the scale that covers what they reach on ``feeds``, in place."""
    import onnxruntime

    nodes = [n for n in model.graph.node if n.op_type == "DynamicQuantizeLinear"]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for node in nodes:
        for name, kind in zip(node.output[1:], (1, 2), strict=True):  # float scale, uint8 zero
            probe.graph.output.append(helper.make_tensor_value_info(name, kind, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [name for node in nodes for name in node.output[1:]]
    known = [{i.name: feed[i.name] for i in session.get_inputs()} for feed in feeds]
    seen = np.array([[float(v) for v in session.run(names, feed)] for feed in known])
    scales, zeros = seen[:, ::2], seen[:, 1::2]
    lows, highs = (-zeros * scales).min(0), ((255 - zeros) * scales).max(0)
    for node, low, high in zip(nodes, lows, highs, strict=True):
        scale = np.float32(max(high - low, 1e-12) / 255)
        values = (np.array(scale), np.array(np.uint8(round(-low / scale))))
        for name, value in zip(node.output[1:], values, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        node.op_type = "QuantizeLinear"
        node.input.extend(node.output[1:])
        del node.output[1:]


# --- embeddings


def _quantize_embeddings(graph: onnx.GraphProto, bits: int) -> None:
    """Hold the tables that rows are gathered from in fewer bits, in place."""
    tables = {i.name: i for i in graph.initializer if len(i.dims) == 2 and i.data_type == 1}
    for node in list(graph.node):
        if node.op_type != "Gather" or node.input[0] not in tables:
            continue
        if any(a.name == "axis" and a.i != 0 for a in node.attribute):
            continue
        table = numpy_helper.to_array(tables[node.input[0]])
        if len(table) < 2 * GROUP:
            continue  # token types: nothing to win
        if bits == 8:
            new, values = _rows_of_eight_bits(node, table)
        else:
            new, values = _rows_of_four_bits(node, table)
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, made in enumerate(new):
            graph.node.insert(place + offset, made)
        for name, value in values.items():
            graph.initializer.append(numpy_helper.from_array(value, name))
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


Rewritten = tuple[list[Any], dict[str, NDArray[Any]]]


def _rows_of_eight_bits(node: Any, table: NDArray[np.float32]) -> Rewritten:
    """Return row = codes * scale, with one scale per row."""
    scale = np.maximum(np.abs(table).max(1, keepdims=True), 1e-12) / 127
    name, ids, out = node.input[0], node.input[1], node.output[0]
    values = {
        f"{name}_codes": np.round(table / scale).astype(np.int8),
        f"{name}_scale": scale.astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", [f"{name}_codes", ids], [f"{out}_codes"]),
        helper.make_node("Cast", [f"{out}_codes"], [f"{out}_cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out]),
    ]
    return nodes, values


def _rows_of_four_bits(node: Any, table: NDArray[np.float32]) -> Rewritten:
    """Return row = (codes - 8) * scale: two codes in a byte, one scale per group of features.

    The first half of a row stands in the low four bits, the second half in the high ones.

    Raises:
        BundleError: the width is no multiple of twice the group.
    """
    rows, width = table.shape
    group = next((g for g in (GROUP, 16, 8, 4, 2) if width % (2 * g) == 0), 0)
    if not group:
        raise BundleError(f"embeddings of width {width} cannot be held in 4 bits: use int8")
    groups = table.reshape(rows, width // group, group)
    # The code -8 is used too: the largest magnitude of a group, whatever its sign, is exact.
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    scale = np.where(np.abs(largest) < 1e-12, 1e-12, largest) / -8
    codes = (np.clip(np.round(groups / scale), -8, 7) + 8).astype(np.uint8).reshape(rows, width)
    half = width // 2
    name, ids, out = node.input[0], node.input[1], node.output[0]
    values = {
        f"{name}_codes": codes[:, :half] | (codes[:, half:] << 4),
        f"{name}_scale": scale[..., 0].astype(np.float16),
        f"{out}_four": np.array(4, dtype=np.uint8),
        f"{out}_mask": np.array(15, dtype=np.uint8),
        f"{out}_middle": np.array(8, dtype=np.float32),
        f"{out}_split": np.array([0, 0, width // group, group], dtype=np.int64),
        f"{out}_join": np.array([0, 0, width], dtype=np.int64),
        f"{out}_last": np.array([-1], dtype=np.int64),
    }
    cast = {"to": onnx.TensorProto.FLOAT}
    nodes = [
        helper.make_node("Gather", [f"{name}_codes", ids], [f"{out}_bytes"]),
        helper.make_node("BitwiseAnd", [f"{out}_bytes", f"{out}_mask"], [f"{out}_low"]),
        helper.make_node(
            "BitShift", [f"{out}_bytes", f"{out}_four"], [f"{out}_high"], direction="RIGHT"
        ),
        helper.make_node("Concat", [f"{out}_low", f"{out}_high"], [f"{out}_codes"], axis=-1),
        helper.make_node("Cast", [f"{out}_codes"], [f"{out}_cast"], **cast),
        helper.make_node("Sub", [f"{out}_cast", f"{out}_middle"], [f"{out}_centred"]),
        helper.make_node("Reshape", [f"{out}_centred", f"{out}_split"], [f"{out}_groups"]),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_half"]),
        helper.make_node("Cast", [f"{out}_half"], [f"{out}_scale"], **cast),
        helper.make_node("Unsqueeze", [f"{out}_scale", f"{out}_last"], [f"{out}_scales"]),
        helper.make_node("Mul", [f"{out}_groups", f"{out}_scales"], [f"{out}_scaled"]),
        helper.make_node("Reshape", [f"{out}_scaled", f"{out}_join"], [out]),
    ]
    return nodes, values

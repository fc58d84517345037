"""One ONNX graph for all models of one architecture.

torch's exporter takes seconds whatever the model's size, and many tests export one. Models
that differ in nothing but weights get the graph of the first, with weights of their own. That they
compute what torch computes is checked at every export, by `nanonet.export.graph.check_parity`.
"""

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


class SharedGraphs:
    """Stands in for ``torch.onnx.export``, which it calls once per architecture."""

    def __init__(self, export: Callable[..., Any]) -> None:
        self.export = export
        self.kept: dict[str, tuple[onnx.ModelProto, dict[str, tuple[str, bool]]]] = {}

    def __call__(self, model: Any, args: tuple[Any, ...], **settings: Any) -> Any:
        """Return an object with the ``model_proto`` of a model."""
        weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
        key = _architecture(model, args, settings)
        if key not in self.kept:
            program = self.export(model, args, **settings)
            proto = onnx.ModelProto()
            proto.CopyFrom(program.model_proto)
            if (origin := _origin(proto, weights)) is not None:
                self.kept[key] = proto, origin
            return program
        kept, origin = self.kept[key]
        proto = onnx.ModelProto()
        proto.CopyFrom(kept)
        for tensor in proto.graph.initializer:
            if tensor.name in origin:
                name, turned = origin[tensor.name]
                array = weights[name].T if turned else weights[name]
                array = np.ascontiguousarray(array)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return SimpleNamespace(model_proto=proto)


def _architecture(model: Any, args: tuple[Any, ...], settings: Any) -> str:
    """Return all that shapes a model's graph, weights aside."""
    modules = [
        (type(m).__name__, sorted((k, v) for k, v in vars(m).items() if _shapes_the_graph(k, v)))
        for m in model.modules()
    ]
    config = [m.config.to_json_string() for m in model.modules() if hasattr(m, "config")]
    shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
    buffers = [
        (name, hashlib.sha256(b.numpy().tobytes()).hexdigest()) for name, b in model.named_buffers()
    ]
    inputs = [(tuple(a.shape), str(a.dtype)) for a in args]
    return repr(
        (
            repr(model),
            modules,
            config,
            shapes,
            buffers,
            inputs,
            sorted((k, repr(v)) for k, v in settings.items()),
        )
    )


def _shapes_the_graph(name: str, value: Any) -> bool:
    if name.startswith("_") or name in ("training", "peft", "layer_map", "layer_idx"):
        return False  # where the weights are from
    if isinstance(value, tuple):
        return all(_shapes_the_graph(name, v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def _origin(
    proto: onnx.ModelProto, weights: dict[str, np.ndarray]
) -> dict[str, tuple[str, bool]] | None:
    """Return which parameter each table of a graph is, and whether it is transposed.

    None where that is not clear: a parameter that is there twice, or not at all.
    """
    found: dict[str, tuple[str, bool]] = {}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name in weights:
            found[tensor.name] = tensor.name, False
        elif array.dtype == np.float32 and array.ndim == 2:
            same = [name for name, w in weights.items() if np.array_equal(array, w.T)]
            if len(same) != 1:
                return None
            found[tensor.name] = same[0], True
    return found if {name for name, _ in found.values()} >= _read(weights) else None


def _read(weights: dict[str, np.ndarray]) -> set[str]:
    """Return the parameters that a graph must read: matrices, which no exporter leaves out."""
    return {n for n, w in weights.items() if w.ndim == 2 and "embedding" not in n}

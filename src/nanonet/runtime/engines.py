"""What runs ``model.onnx``: ONNX Runtime, or OpenVINO where it is installed.

An engine is opened by name; `available_engines` says which ones this machine has.
"""

import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import BundleError, MissingExtraError, NanoNetError
from nanonet.core.machine import usable_cores
from nanonet.core.registry import Registry
from nanonet.tasks.base import Window
from nanonet.tasks.tokenization import Ids, length_chunks
from nanonet.tasks.windows import feed_of

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "logits"
WINDOW_INPUTS = (*INPUTS, "token_type_ids", "pooling", "features")  # see `pad_windows`
DEFAULT = "onnxruntime"
TOKENS_PER_CHUNK = 1024  # padded tokens of one run of the model; docs/speed.md has the figures
# A sum and a LayerNormalization of their own take a tenth of what the fused kernel takes on a CPU.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
MAX_PADDING = 0.1  # padding tokens per real token of one run at most
Feed = Mapping[str, NDArray[Any]]
Logits = NDArray[np.float32]


class Engine(Protocol):
    """A model ready to run; any thread may call it.

    Attributes:
        inputs: names of what it takes.
        classes: columns of the logits; 0: as many as its inputs have sentences.
    """

    inputs: frozenset[str]
    classes: int

    def run(self, feed: Feed) -> Logits:
        """Return logits (rows, classes or sentences) of `INPUTS` or `WINDOW_INPUTS`."""
        ...


@dataclass(frozen=True)
class EngineKind:
    """An engine that can be asked for.

    Attributes:
        package: the package that it needs.
        exact: whether it computes in the model's own precision.
        open: (model file, threads) -> engine; raises whatever its package does.
        usable: whether this process can run it, asked only where the package is installed.
    """

    package: str
    exact: bool
    open: Callable[[Path, int], Engine]
    usable: Callable[[], bool] = lambda: True


ENGINES: Registry[EngineKind] = Registry("engine")


def available_engines() -> list[str]:
    """Return the engines that this process can run, the default first."""
    names = [n for n in ENGINES if _installed(ENGINES.get(n)) and ENGINES.get(n).usable()]
    return sorted(names, key=lambda name: (name != DEFAULT, name))


def open_engine(name: str, model: Path, threads: int) -> Engine:
    """Open a model.

    Args:
        name: of an engine.
        model: an ONNX file.
        threads: CPU threads of one run; 0: one per usable core.

    Raises:
        ConfigError: no such engine.
        MissingExtraError: its package is not installed.
        BundleError: it cannot run this file, or the model is not one of ours.
    """
    kind = ENGINES.get(name)
    if not _installed(kind):
        raise MissingExtraError(f"the engine '{name}'", kind.package)
    try:
        return kind.open(model, threads or usable_cores())
    except NanoNetError:
        raise
    except Exception as error:  # each package raises kinds of its own
        raise BundleError(f"{model} cannot be loaded: {' '.join(str(error).split())}") from None


def run_rows(
    engine: Engine, ids: Sequence[Ids], tokens_per_chunk: int = TOKENS_PER_CHUNK
) -> Logits:
    """Return logits (n, classes) of n rows of token ids, in their order.

    Rows of like length run together, so that little is padded.

    Raises:
        BundleError: the model fails, as on more tokens than it has positions for.
    """
    if len(ids) == 1:
        mask = np.ones((1, len(ids[0])), dtype=np.int64)
        return _run(engine, {"input_ids": ids[0][None], "attention_mask": mask})
    logits = np.empty((len(ids), engine.classes), dtype=np.float32)
    for rows in length_chunks([len(row) for row in ids], MAX_PADDING, tokens_per_chunk):
        logits[rows] = _run(engine, feed_of([ids[i] for i in rows]))
    return logits


def run_windows(
    engine: Engine, windows: Sequence[Window], tokens_per_chunk: int = TOKENS_PER_CHUNK
) -> Logits:
    """Return the logits (U,) of the units of all windows, in their order; see `run_rows`."""
    logits: list[Logits] = [np.empty(0, np.float32)] * len(windows)
    for rows in length_chunks([len(w) for w in windows], MAX_PADDING, tokens_per_chunk):
        feed = feed_of([windows[i] for i in rows])
        found = _run(engine, {name: a for name, a in feed.items() if name in engine.inputs})
        for place, i in enumerate(rows):
            logits[i] = found[place, : len(windows[i].sizes)]
    return np.concatenate(logits) if logits else np.empty(0, np.float32)


def _run(engine: Engine, feed: Feed) -> Logits:
    try:
        return engine.run(feed)
    except Exception as error:  # each package raises kinds of its own
        rows, tokens = feed["input_ids"].shape
        reason = " ".join(str(error).split())
        raise BundleError(
            f"the bundle's model fails on {rows} x {tokens} tokens (is max_length in its manifest"
            f" right?): {reason}"
        ) from None


def _installed(kind: EngineKind) -> bool:
    return importlib.util.find_spec(kind.package) is not None


def _check_names(model: Path, inputs: list[str], outputs: list[str]) -> None:
    known = set(INPUTS) <= set(inputs) <= set(WINDOW_INPUTS)
    whole = len(inputs) == len(INPUTS) or "pooling" in inputs  # of texts, or of windows
    if not (known and whole) or outputs != [OUTPUT]:
        raise BundleError(
            f"{model} takes {', '.join(inputs)} and gives {', '.join(outputs)} instead of"
            f" {', '.join(INPUTS)} and {OUTPUT}: export it again"
        )


class OnnxRuntime:
    """ONNX Runtime on the CPU; see `Engine`."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised too, and told in one line
        self._session = onnxruntime.InferenceSession(
            str(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=SLOW_FUSIONS,
        )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        _check_names(model, [i.name for i in inputs], [o.name for o in outputs])
        self.inputs = frozenset(i.name for i in inputs)
        columns = outputs[0].shape[-1] if outputs[0].shape else 0
        self.classes = columns if isinstance(columns, int) else 0

    def run(self, feed: Feed) -> Logits:
        """See `Engine.run`."""
        logits: Logits = self._session.run([OUTPUT], feed)[0]
        return logits


class OpenVino:
    """OpenVINO on the CPU; see `Engine`.

    Args:
        model: an ONNX file; one of 8 bits is computed as it is.
        threads: of one run.
        precision: of what the file holds in 32 bits: ``f32`` or ``bf16``.
    """

    def __init__(self, model: Path, threads: int, precision: str) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",  # all threads work on one run, as in ONNX Runtime
            "ENABLE_CPU_PINNING": False,  # the cores are shared with the rest of the process
        }
        core = openvino.Core()
        network = core.read_model(model)
        _check_names(
            model,
            [i.get_any_name() for i in network.inputs],
            [o.get_any_name() for o in network.outputs],
        )
        self.inputs = frozenset(i.get_any_name() for i in network.inputs)
        columns = network.outputs[0].partial_shape[-1]
        self.classes = columns.get_length() if columns.is_static else 0
        self._request = core.compile_model(network, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()  # a request holds one run's tensors

    def run(self, feed: Feed) -> Logits:
        """See `Engine.run`."""
        with self._lock:
            logits: Logits = self._request.infer(feed, share_inputs=True)[OUTPUT]
        return logits


def _is_alone() -> bool:
    """Return whether torch is not loaded: in one process with OpenVINO, its training crashes."""
    return "torch" not in sys.modules


def _computes_bf16() -> bool:
    if not _is_alone():
        return False
    import openvino

    capabilities: Any = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


ENGINES.register(DEFAULT)(EngineKind("onnxruntime", True, OnnxRuntime))
ENGINES.register("openvino")(
    EngineKind("openvino", True, lambda model, threads: OpenVino(model, threads, "f32"), _is_alone)
)
ENGINES.register("openvino-bf16")(
    EngineKind(
        "openvino", False, lambda model, threads: OpenVino(model, threads, "bf16"), _computes_bf16
    )
)

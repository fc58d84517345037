"""NanoNet: small, fast text models from a handful of labels.

The names below are loaded when they are first used: importing ``nanonet`` needs neither torch nor
onnxruntime.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanonet.core.errors import NanoNetError
    from nanonet.estimators import (
        NanoNetClassifier,
        NanoNetMultilabelClassifier,
        NanoNetSummarizer,
    )
    from nanonet.runtime.predictor import MultilabelPredictor, Predictor
    from nanonet.runtime.summarizer import Summarizer

__version__ = metadata.version("nanonet")
__all__ = [
    "MultilabelPredictor",
    "NanoNetClassifier",
    "NanoNetError",
    "NanoNetMultilabelClassifier",
    "NanoNetSummarizer",
    "Predictor",
    "Summarizer",
    "__version__",
]

_HOMES = {
    "MultilabelPredictor": "nanonet.runtime.predictor",
    "NanoNetClassifier": "nanonet.estimators",
    "NanoNetError": "nanonet.core.errors",
    "NanoNetMultilabelClassifier": "nanonet.estimators",
    "NanoNetSummarizer": "nanonet.estimators",
    "Predictor": "nanonet.runtime.predictor",
    "Summarizer": "nanonet.runtime.summarizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nanonet' has no attribute '{name}'")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if _HOMES[name] == "nanonet.estimators" and not (error.name or "").startswith("nanonet"):
            from nanonet.core.errors import MissingExtraError

            raise MissingExtraError(f"nanonet.{name}", "train") from error
        raise


def __dir__() -> list[str]:
    return __all__

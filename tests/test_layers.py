"""Imports go only downwards, lazy ones inside functions included."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanonet

ROOT = Path(nanonet.__file__).parent
LAYERS = [
    {"core"},
    {"tasks"},
    {"data"},
    {"models"},
    {"objectives"},
    {"training"},
    {"export", "runtime"},
    {"scoring"},  # the one part of layer 6 that sees both
    {"estimators", "demo", "benchmark", "report"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
LAYER = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# What a part may import of other packages; absent: anything.
FOREIGN = {
    "core": set(),
    "tasks": {"numpy", "tokenizers", "nltk", "rouge_score", "sentencex", "sklearn"},
    # The server's packages in the server's modules only: a predictor needs none of them.
    "runtime": {
        *("numpy", "onnxruntime", "openvino", "ray"),  # these two inside functions
        *("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"),
    },
    "data": {"numpy", "pyarrow", "datasets", "torch"},  # pyarrow and datasets inside functions
    "cli": {"click", "rich"},  # rich inside functions
    "__init__": set(),
    "__main__": set(),
    "scoring": {"numpy"},
    "report": {"numpy", "jinja2", "markupsafe", "matplotlib"},
}
SERVED = {"core", "tasks"}  # what the runtime may import of the package
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, and of every module that is named for importing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            names = [alias.name for alias in node.names]
            own = node.module == "nanonet"  # from nanonet import scoring
            yield from ((node.lineno, f"nanonet.{n}" if own else node.module) for n in names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split(".")
            if words[0] == "nanonet" and len(words) > 1 and words[1] in LAYER:
                yield node.lineno, node.value


def is_allowed(part: str, module: str) -> bool:
    words = module.split(".")
    if words[0] in sys.stdlib_module_names:
        return True
    if words[0] != "nanonet":
        return part not in FOREIGN or words[0] in FOREIGN[part]
    # A name that is no part, as in ``from nanonet import Predictor``, is the package's own.
    target = words[1] if len(words) > 1 and words[1] in LAYER else "__init__"
    if part == "runtime":
        return target in SERVED | {"runtime"}
    return target == part or LAYER[target] < LAYER[part]


def problems(path: Path, source: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for line, module in imports(ast.parse(source))
        if not is_allowed(part_of(path), module)
    ]


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_go_downwards(path):
    assert part_of(path) in LAYER, "a new part of the package: give it a layer here"
    assert problems(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/config.py", "from nanonet.tasks.labels import LabelSet"),
        ("core/config.py", "import numpy"),
        ("tasks/metrics.py", "def f():\n    import torch"),
        ("runtime/predictor.py", "from nanonet.data.readers import read_table"),
        ("runtime/predictor.py", "from nanonet import export"),
        ("runtime/predictor.py", "import torch"),
        ("export.py", "from nanonet.runtime.predictor import Predictor"),
        ("models/cohort.py", "import nanonet.training.train"),
        ("data/readers.py", "def f():\n    from nanonet.models import peft"),
        ("training/train.py", "load('nanonet.scoring')"),
        ("scoring.py", "from nanonet.cli import main"),
        ("models/peft.py", "from nanonet import Predictor"),
    ],
)
def test_this_test_sees_what_is_wrong(file, source):
    assert problems(ROOT / file, source)


def test_data_needs_no_torch_but_for_augmentation():
    """Readers and writers are part of the base install."""
    for path in (ROOT / "data").glob("*.py"):
        modules = {m.split(".")[0] for _, m in imports(ast.parse(path.read_text()))}
        assert "torch" not in modules or path.name == "augment.py"


def test_public_names():
    expected = {"NanoNetClassifier", "NanoNetError", "NanoNetSummarizer", "Predictor", "Summarizer"}
    expected |= {"MultilabelPredictor", "NanoNetMultilabelClassifier", "__version__"}
    assert set(nanonet.__all__) == expected
    assert set(dir(nanonet)) == expected
    for name in expected:
        assert getattr(nanonet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Predictors'"):
        _ = nanonet.Predictors

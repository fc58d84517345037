"""A bundle is served by the base install: no torch, transformers, scikit-learn, pyarrow, onnx."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runs import succeed

ABSENT = (
    *("torch", "transformers", "sklearn", "scipy", "pyarrow", "safetensors", "onnx"),
    *(
        "onnxscript",
        "datasets",
        "matplotlib",
        "jinja2",
        "tomli_w",
        "accelerate",
        "huggingface_hub",
        "ray",
    ),
    *("fastapi", "uvicorn", "starlette", "pydantic", "httptools", "prometheus_client"),
)
# Says of every package of the extras what Python says of one that is not installed.
BASE_INSTALL = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code as the base install would."""
    command = [sys.executable, "-W", "error", "-c", BASE_INSTALL + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def nanonet(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("from nanonet.cli import main; main()", *arguments)


def test_the_predictor(bundle):
    done = python(
        "import json\n"
        "import nanonet\n"
        "from nanonet import NanoNetError, Predictor\n"
        "predictor = Predictor.load(sys.argv[1])\n"
        "print(json.dumps(predictor(['the apple', 'old iron', ''])))\n"
        "print(predictor.predict_proba(['a']).shape)\n",
        bundle,
    )
    assert done.stderr == ""
    names, shape = done.stdout.splitlines()
    assert set(json.loads(names)) <= {"fruit", "metal", "water"}
    assert shape == "(1, 3)"


def test_importing_the_package_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import nanonet, nanonet.cli"],
        capture_output=True,
        text=True,
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.split("\n")}
    assert "click" in loaded
    assert not loaded & {*ABSENT, "onnxruntime", "tokenizers", "numpy", "rich"}


def test_predict_and_evaluate(bundle, corpus, tmp_path):
    test = corpus / "test.csv"
    done = nanonet("evaluate", bundle, "--data", test, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    with_torch = json.loads(succeed("evaluate", bundle, "--data", test, "--json").out)
    assert json.loads(done.stdout)["accuracy"] == with_torch["accuracy"]
    done = nanonet("predict", bundle, "--input", test, "--output", tmp_path / "out.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 30


def test_split_and_list_recipes(corpus, tmp_path):
    out = tmp_path / "s"
    done = nanonet("split", corpus / "all.csv", "--labeled-per-class", 2, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert nanonet("list", "recipes").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "feature", "extra"),
    [
        (["train", "--labeled", "x.csv", "--out", "run"], "nanonet train", "train"),
        (["train", "--resume", "--out", "run"], "nanonet train", "train"),
        (["export", ".", "--out", "b"], "nanonet export", "train"),
        (["list", "peft"], "nanonet list peft", "train"),
        (["demo"], "nanonet demo", "train"),
        (["serve", "BUNDLE"], "nanonet serve", "serve"),
        (["benchmark", "s.toml", "--out", "o"], "nanonet benchmark", "train"),
        (["report", "RUN"], "nanonet report", "report"),
        (["evaluate", "RUN", "--data", "TEST"], "scoring a run", "train"),
        (["evaluate", "BUNDLE", "--data", "hub:x"], "hub datasets", "train"),
        (["predict", "BUNDLE", "--input", "P"], "reading Parquet", "parquet"),
        (["predict", "BUNDLE", "--input", "TEST", "--output", "o.parquet"], "writing", "parquet"),
    ],
)
def test_what_needs_an_extra_says_so(
    run_folder, bundle, corpus, tmp_path, monkeypatch, arguments, feature, extra
):
    monkeypatch.chdir(tmp_path)
    parquet = tmp_path / "in.parquet"
    parquet.write_bytes(b"PAR1")
    names = {"RUN": run_folder, "BUNDLE": bundle, "TEST": corpus / "test.csv", "P": parquet}
    done = nanonet(*(names.get(a, a) for a in arguments))
    assert done.stderr.startswith(f"error: {feature}")
    assert done.stderr.endswith(f"needs the extra '{extra}': pip install 'nanonet[{extra}]'\n")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (1, "")
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_the_estimator_says_so_too():
    done = python(
        "from nanonet import NanoNetError\n"
        "try:\n"
        "    from nanonet import NanoNetClassifier\n"
        "except NanoNetError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    assert done.stderr == ""
    assert "MissingExtraError nanonet.NanoNetClassifier needs the extra 'train'" in done.stdout


def test_runtime_and_bundle_sources_are_all_that_a_server_needs(bundle):
    """Nothing outside these packages is loaded to serve, so a server's image can be small."""
    done = python(
        "from nanonet import Predictor\n"
        "Predictor.load(sys.argv[1])(['text'])\n"
        "print(*sorted({name.split('.')[1] for name in sys.modules"
        " if name.startswith('nanonet.')}))\n",
        bundle,
    )
    assert done.stdout.split() == ["core", "runtime", "tasks"]
    assert Path(bundle, "manifest.json").is_file()

"""Speed, latency, start, size and memory of bundles, beside what a user would deploy instead.

    python benchmarks/inference.py BUNDLE... --data FOLDER --run RUN --out DIR

FOLDER holds test.parquet (text) and the labelled file (text, label). RUN is the run of the bundles:
its teacher is exported and compared too, which is the frozen encoder with a linear head in ONNX
Runtime. Everything is measured in one run and in turns, each contender in a process of its own that
may use the given number of cores only, so that a busy machine meets all of them: trust the ratios
more than the absolute figures. Writes DIR/inference.json and prints a Markdown table. Linux.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("nanonet", "onnxruntime", "openvino", "torch", "sentence-transformers", "scikit-learn")
BASELINE = "setfit"


class Process:
    """A contender at work, on the first cores of this machine."""

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.spec = spec
        threads = spec["threads"]
        path = folder / f"{spec['name'].replace('/', '_')}-{threads}.json"
        path.write_text(json.dumps(spec))
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        environment = os.environ | dict.fromkeys(limits, str(threads))
        environment |= {"HF_HUB_OFFLINE": "1"}
        cores = sorted(os.sched_getaffinity(0))[:threads]
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "contenders.py"), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not spec.get("loud") else None,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        if self._read() != "ready":
            raise SystemExit(f"error: {spec['name']} did not start")
        self.cold_start = time.perf_counter() - start

    def ask(self, do: str, **what: int) -> Any:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"error: {self.spec['name']} stopped; run it by hand: python"
                f" {HERE / 'contenders.py'} SPEC.json"
            )
        return json.loads(line)


def export_teacher(run: Path, folder: Path) -> Path:
    """Return a bundle of a run's teacher."""
    from nanonet.core.bundle import MODEL, read_manifest
    from nanonet.core.files import sha256_file, write_json
    from nanonet.export import export, load_cohort
    from nanonet.export.graph import write_onnx
    from nanonet.training.run_folder import RunFolder

    out = folder / "teacher"
    export(run, out)
    learner = load_cohort(RunFolder(run))["teacher"].merged()
    write_onnx(learner, out / MODEL)
    values = json.loads((out / "manifest.json").read_text())
    values["files"][MODEL] = sha256_file(out / MODEL)
    values["learner"] |= {"name": "teacher", "layers": list(learner.layer_map)}
    write_json(out / "manifest.json", values)
    read_manifest(out)
    return out


def operations(bundle: Path, texts: list[str]) -> float:
    """Return the floating-point operations that the texts need in a bundle, padding left out.

    Two per weight of the linear maps and token, and four per pair of tokens, unit and layer.
    """
    import numpy as np
    import onnx

    from nanonet import Predictor
    from nanonet.core.bundle import MODEL

    predictor = Predictor.load(bundle, threads=1)
    lengths = predictor.encode(texts).lengths.astype(np.float64)
    graph = onnx.load(bundle / MODEL).graph
    weights = [w for w in graph.initializer if len(w.dims) == 2 and _is_multiplied(w.name, graph)]
    width = Counter(d for w in weights for d in w.dims).most_common(1)[0][0]
    linear = sum(w.dims[0] * w.dims[1] for w in weights if min(w.dims) >= width)
    layers = len(predictor.manifest.learner["layers"])
    return float(2 * linear * lengths.sum() + 4 * layers * width * (lengths**2).sum())


def _is_multiplied(name: str, graph: Any) -> bool:
    """Return whether a tensor is a factor of a matrix product, maybe after a change of form."""
    for node in graph.node:
        if name in node.input:
            if any(word in node.op_type for word in ("MatMul", "Gemm", "Attention")):
                return True
            if node.op_type in ("Transpose", "DequantizeLinear", "Cast", "Identity"):
                return _is_multiplied(node.output[0], graph)
    return False


def measure(processes: list[Process], texts: int, singles: int, rounds: int) -> dict[str, Any]:
    """Return each contender's times: batched seconds per round, single seconds, memory."""
    found: dict[str, Any] = {p.spec["name"]: {"batched": [], "single": []} for p in processes}
    for turn in range(rounds):
        for process in processes if turn % 2 == 0 else processes[::-1]:
            own = found[process.spec["name"]]
            is_gemm = process.spec["contender"] == "gemm"
            own["batched"].append(process.ask("batched", count=texts))
            count = max(1, singles // 4) if is_gemm else singles
            own["single"].append(process.ask("single", first=turn * singles, count=count))
    for process in processes:
        found[process.spec["name"]]["memory"] = process.ask("memory")
    return found


def summarize(
    spec: dict[str, Any], found: dict[str, Any], texts: list[str], flops: float | None
) -> dict[str, Any]:
    """Return a contender's figures and its ratios to the baseline and to the limit."""
    own, base = found[spec["name"]], found[BASELINE]
    single = sorted(t for times in own["single"] for t in times)
    pairs = list(zip(own["batched"], base["batched"], strict=True))
    halves = [statistics.median(times) for times in own["single"]]
    base_halves = [statistics.median(times) for times in base["single"]]
    row = {
        "name": spec["name"],
        "threads": spec["threads"],
        "texts_per_second": len(texts) / statistics.median(own["batched"]),
        "times_baseline_batched": statistics.median(b / a for a, b in pairs),
        "p50_ms": 1e3 * statistics.median(single),
        "p99_ms": 1e3 * single[min(len(single) - 1, int(0.99 * len(single)))],
        "times_baseline_p50": statistics.median(
            b / a for a, b in zip(halves, base_halves, strict=True)
        ),
        "memory": own["memory"],
        "bytes": spec.get("bytes"),
    }
    if flops is not None:
        rows, inner, columns = 2048, 384, 1536
        limit = found[f"gemm {spec['dtype']}"]
        rates = [2 * rows * inner * columns / statistics.median(t) for t in limit["single"]]
        row["flops_per_text"] = flops / len(texts)
        row["limit_gflops"] = statistics.median(rates) / 1e9
        row["share_of_limit"] = statistics.median(
            flops / seconds / rate for seconds, rate in zip(own["batched"], rates, strict=True)
        )
    return row


def make_specs(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return what is compared, ready for `Process` but for the threads."""
    from nanonet.core.bundle import read_manifest
    from nanonet.models.backbones import offline_minilm

    encoder = options.encoder or offline_minilm()
    if encoder is None:
        raise SystemExit("error: give --encoder FOLDER, or install nanonet[offline]")
    files = {"texts": str(folder / "texts.json"), "labeled": str(folder / "labeled.json")}
    bundles = {path.name: path for path in options.bundles}
    if options.run is not None:
        bundles["teacher"] = export_teacher(options.run, folder)
    encoder_files = (Path(encoder) / name for name in ("model.safetensors", "tokenizer.json"))
    specs = [
        {
            "name": BASELINE,
            "contender": "setfit",
            "encoder": str(encoder),
            "head": str(folder / "head.npz"),
            "bytes": sum(f.stat().st_size for f in encoder_files),
        },
        {"name": "tfidf", "contender": "tfidf"},
        *({"name": f"gemm {t}", "contender": "gemm", "dtype": t} for t in ("fp32", "int8")),
    ]
    for name, path in bundles.items():
        # Of 4 bits there is no plain matrix product to compare with.
        dtype = {"none": "fp32", "int4": None}.get(read_manifest(path).quantization, "int8")
        size = sum(f.stat().st_size for f in path.iterdir())
        specs.append(
            {"name": name, "contender": "bundle", "path": str(path), "dtype": dtype, "bytes": size}
        )
    return [spec | files for spec in specs]


def cold_starts(specs: list[dict[str, Any]], folder: Path, rounds: int) -> dict[str, float]:
    """Return each contender's median seconds from a new process to its first answer."""
    times: dict[str, list[float]] = {s["name"]: [] for s in specs if s["contender"] != "gemm"}
    for _ in range(rounds):
        for spec in specs:
            if spec["name"] in times:
                process = Process(spec | {"threads": 1}, folder)
                process.close()
                times[spec["name"]].append(process.cold_start)
    return {name: statistics.median(found) for name, found in times.items() if found}


def install_bytes(folder: Path) -> int:
    """Return the bytes of a new environment's packages with this project, no extras, and no pip."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(HERE.parent)], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "-y", "pip"], check=True)
    return sum(f.stat().st_size for f in (folder / "lib").rglob("*") if f.is_file())


def table(rows: list[dict[str, Any]], colds: dict[str, float]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| | threads | texts/s | × SetFit | of the limit | p50 ms | × SetFit | p99 ms"
        " | cold start s | MB on disk | peak memory MB |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        share = f"{r['share_of_limit']:.0%}" if "share_of_limit" in r else ""
        size = f"{r['bytes'] / 1e6:.1f}" if r["bytes"] else ""
        cold = f"{colds[r['name']]:.2f}" if r["name"] in colds else ""
        lines.append(
            f"| {r['name']} | {r['threads']} | {r['texts_per_second']:.0f}"
            f" | {r['times_baseline_batched']:.2f} | {share} | {r['p50_ms']:.1f}"
            f" | {r['times_baseline_p50']:.2f} | {r['p99_ms']:.1f} | {cold}"
            f" | {size} | {r['memory'].get('peak_mb', '')} |"
        )
    return "\n".join(lines)


def read_texts(options: argparse.Namespace, folder: Path) -> list[str]:
    """Write the texts where the contenders find them, and return those to classify."""
    import pyarrow.parquet as pq

    texts: list[str] = pq.read_table(options.data / "test.parquet")["text"].to_pylist()
    texts = texts[: options.texts]
    labeled = pq.read_table(options.data / options.labeled)
    columns = {"texts": labeled["text"].to_pylist(), "labels": labeled["label"].to_pylist()}
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "labeled.json").write_text(json.dumps(columns))
    return texts


def versions() -> dict[str, str]:
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return {p: metadata.version(p) for p in PACKAGES if p in installed}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--labeled", default="labeled_10.parquet", metavar="FILE")
    parser.add_argument("--run", type=Path, metavar="RUN", help="compare its teacher, too")
    parser.add_argument("--encoder", type=Path, metavar="FOLDER", help="SetFit's; default: MiniLM")
    parser.add_argument("--texts", type=int, default=1000, help="batched, per round")
    parser.add_argument("--singles", type=int, default=50, help="one by one, per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-starts", type=int, default=3, help="0: none")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--install-size", action="store_true", help="measure a fresh environment")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


def main() -> None:
    """Measure everything."""
    from nanonet.core.machine import processor_name

    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = read_texts(options, folder)
        specs = make_specs(options, folder)
        flops = {
            s["name"]: operations(Path(s["path"]), texts)
            for s in specs
            if s.get("dtype") and "path" in s
        }
        for threads in options.threads:
            processes = [Process(spec | {"threads": threads}, folder) for spec in specs]
            found = measure(processes, len(texts), options.singles, options.rounds)
            for process in processes:
                process.close()
            raw.append({"threads": threads, "times": found})
            rows += [
                summarize(spec | {"threads": threads}, found, texts, flops.get(spec["name"]))
                for spec in specs
                if spec["contender"] != "gemm"
            ]
        colds = cold_starts(specs, folder, options.cold_starts)
        size = install_bytes(folder / "venv") if options.install_size else None
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "data": options.data.name,
        "texts": len(texts),
        "rounds": options.rounds,
        "baseline": "SetFit's prediction: SentenceTransformer.encode(batch_size=32) + scikit-learn",
        "rows": rows,
        "cold_start_seconds": colds,
        "install_bytes": size,
        "raw": raw,
    }
    (options.out / "inference.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows, colds))
    if size is not None:
        print(f"\nruntime install: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

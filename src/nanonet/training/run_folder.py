"""The run folder: everything that shaped a run, and everything that came out of it.

::

    config.toml            the whole configuration and the inputs, with their fingerprints
    environment.json       versions, hardware, the command
    labels.json            class values and names
    tokenizer.json         the tokenizer, truncation included
    seen_*.bin             hashes of the training texts, to find test texts among them
    token_counts.bin       how often each token occurs in the training texts
    metrics.jsonl          one line per log row or evaluation
    log.txt                what was said on the way
    warmup/                metrics.jsonl and checkpoints of a warm-up on its way
    warmup.safetensors     what a warm-up has made of the students
    checkpoints/           step-NNNNNN/, the newest two
    learners.safetensors   the trained tensors of all learners (at the end)
    summary.json           the outcome (at the end)
    profile.json           where the time went (with ``--profile``)
    trace.json             a few steps, for Perfetto or chrome://tracing (with ``--profile``)
    evaluations.jsonl      what ``nanonet evaluate`` found, one line per data file
"""

import hashlib
import json
import platform
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nanonet.core.bundle import Priors, Thresholds
from nanonet.core.config import Config
from nanonet.core.errors import ConfigError, RunError
from nanonet.core.files import write_json, write_text
from nanonet.core.machine import processor_name
from nanonet.core.strict import build, to_dict
from nanonet.tasks.labels import LabelSet
from nanonet.training.checkpoint import list_checkpoints, read_tensors, write_tensors
from nanonet.training.device import Hardware

PACKAGES = (
    "nanonet",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "numpy",
    "scipy",
    "safetensors",
)
# Settings that may differ when a run is resumed: they change when it stops, or what it keeps in
# memory, not what it computes (but for a warm-up that a time limit has cut short, which stays so);
# or, of steps and rows, where their number is from.
FREE_ON_RESUME = (
    "training.max_minutes",
    "training.gradient_checkpointing",
    "training.more_steps",
    "training.more_rows",
    "warmup.more_steps",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @property
    def config_path(self) -> Path:
        """File of configuration and inputs."""
        return self.path / "config.toml"

    def seen(self, name: str) -> Path:
        """File of the hashes of the texts that training saw under this name."""
        return self.path / f"seen_{name}.bin"

    def read_seen(self, name: str) -> NDArray[np.uint64]:
        """Return the sorted hashes of the texts that training saw under this name."""
        path = self.seen(name)
        return np.fromfile(path, dtype="<u8") if path.is_file() else np.empty(0, dtype=np.uint64)

    @property
    def token_counts(self) -> Path:
        """File of how often each token occurs in the training texts: (V,) of 32 bits."""
        return self.path / "token_counts.bin"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """File of log rows and evaluations."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """File of what ``nanonet evaluate`` found."""
        return self.path / "evaluations.jsonl"

    @property
    def profile(self) -> Path:
        """File of where the time went."""
        return self.path / "profile.json"

    @property
    def learners(self) -> Path:
        """File of all trained tensors."""
        return self.path / "learners.safetensors"

    @property
    def warmup(self) -> "RunFolder":
        """Folder of a warm-up on its way: its metrics and checkpoints."""
        return RunFolder(self.path / "warmup")

    @property
    def warmup_result(self) -> Path:
        """File of what a warm-up has made of the students."""
        return self.path / "warmup.safetensors"

    def read_warmup(self) -> dict[str, Tensor] | None:
        """Return what a warm-up has made of the students; None where there was none.

        Raises:
            RunError: the file is damaged.
        """
        if not self.warmup_result.is_file():
            return None
        try:
            return read_tensors(self.warmup_result)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.warmup_result} cannot be used: {error}") from None

    def write_warmup(
        self, tensors: Mapping[str, Tensor], steps: int, seconds: float, cached: bool
    ) -> None:
        """Write what a warm-up has made of the students, and how long it took this run."""
        facts = {"steps": steps, "seconds": round(seconds, 3), "cached": cached}
        write_json(self.path / "warmup.json", {**facts, "weights_sha256": weights_sha256(tensors)})
        write_tensors(self.warmup_result, tensors)

    def describe_warmup(self) -> dict[str, Any] | None:
        """Return steps, seconds, origin and SHA-256 of a warm-up; None where this run made none."""
        path = self.path / "warmup.json"
        return self.read_json("warmup.json") if path.is_file() else None

    @property
    def started(self) -> bool:
        """Whether there is anything to continue from."""
        if self.warmup_result.is_file() and self.describe_warmup() is not None:
            return True  # a warm-up of its own; one that came with --init is only a copy
        return any(list_checkpoints(f) for f in (self.checkpoints, self.warmup.checkpoints))

    @property
    def recognized(self) -> bool:
        """Whether the folder is a run folder, and not someone's with a ``config.toml`` of its own.

        Only such a folder may be replaced.
        """
        try:
            values = tomllib.loads(self.config_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return False
        return all(isinstance(values.get(key), dict) for key in ("inputs", "backbone", "cohort"))

    def write_config(self, config: Config, inputs: Mapping[str, Any]) -> None:
        """Write the configuration and what the run reads."""
        import tomli_w

        text = tomli_w.dumps({**to_dict(config), "inputs": dict(inputs)})
        write_text(self.config_path, text)

    def read_config(self) -> tuple[Config, dict[str, Any]]:
        """Return the configuration and the inputs.

        Raises:
            RunError: this is no run folder, or its configuration is damaged.
        """
        path = self.config_path
        if not path.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no config.toml")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            inputs = values.pop("inputs", None)
            if not isinstance(inputs, dict):
                raise ConfigError("its table [inputs], the last of the file, is missing")
            return build(Config, values), inputs
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
            raise RunError(f"{path} cannot be used: {error}") from None

    def write_labels(self, labels: LabelSet) -> None:
        """Write class values and names."""
        write_json(self.path / "labels.json", labels.to_json())

    def read_labels(self) -> LabelSet:
        """Return class values and names."""
        return LabelSet.from_json(self.read_json("labels.json"))

    def read_tokenizer(self) -> str:
        """Return the content of ``tokenizer.json``.

        Raises:
            RunError: missing or unreadable.
        """
        path = self.path / "tokenizer.json"
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None

    def write_environment(self, hardware: Hardware, processes: int) -> None:
        """Write versions, hardware, number of processes and command."""
        write_json(
            self.path / "environment.json",
            {
                "command": sys.argv,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "processor": processor_name(),
                "versions": versions(),
                "hardware": to_dict(hardware),
                "processes": processes,
            },
        )

    def read_hardware(self) -> tuple[Hardware, int]:
        """Return the hardware choice and the number of processes of the run's first session."""
        environment = self.read_json("environment.json")
        return Hardware(**environment["hardware"]), environment.get("processes", 1)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of this folder.

        Raises:
            RunError: missing or damaged.
        """
        path = self.path / name
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{path} is missing: the run is not finished (continue it with --resume)"
                if self.config_path.is_file()
                else f"{self.path} is not a run folder: it has no {name}"
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None
        return value

    def read_summary(self) -> dict[str, Any]:
        """Return the outcome of a finished run (see `read_json` for errors)."""
        return self.read_json("summary.json")

    @property
    def temperature(self) -> float:
        """By what the selected learner's logits are to be divided; 1 where nothing was fitted."""
        calibration = self.read_summary().get("calibration")
        return float(calibration["temperature"]) if calibration else 1.0

    @property
    def priors(self) -> Priors | None:
        """The class shares that the selected learner's logits are to be fitted to."""
        found = self.read_summary().get("priors")
        return build(Priors, found) if found else None

    @property
    def thresholds(self) -> Thresholds | None:
        """From which probability on a text gets each label; None: half."""
        found = self.read_summary().get("thresholds")
        return build(Thresholds, found) if found else None

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the outcome is written."""
        path = self.path / "summary.json"
        return path.is_file() and bool(self.read_json("summary.json").get("finished"))

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Return what ``nanonet evaluate`` has found for this run, oldest first."""
        if not self.evaluations.is_file():
            return []
        try:
            lines = self.evaluations.read_text(encoding="utf-8").splitlines()
            return [dict(json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self.evaluations} is damaged ({error}): delete it") from None

    def describe_evaluations(self) -> list[dict[str, Any]]:
        """Return what is told elsewhere of `read_evaluations`: all but the tables of mistakes."""
        rows = self.read_evaluations()
        return [{key: row[key] for key in row if key != "confusion"} for row in rows]

    def append_evaluation(self, row: Mapping[str, Any]) -> None:
        """Add what an evaluation found; an earlier one on the same data is replaced."""
        key = ("source", "fingerprint")
        kept = [r for r in self.read_evaluations() if any(r.get(k) != row[k] for k in key)]
        lines = [json.dumps(r) + "\n" for r in (*kept, row)]
        try:
            write_text(self.evaluations, "".join(lines))
        except OSError as error:
            raise RunError(f"{self.evaluations} cannot be written: {error.strerror}") from None

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop the lines beyond ``step``: a resumed run writes them again."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            write_text(self.metrics, "".join(kept))


def _step_of(line: str) -> int:
    return int(json.loads(line)["step"])


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a run."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and bytes of trained tensors, in the names' order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_same(saved: Config, asked: Config, folder: Path) -> None:
    """Refuse to resume a run with other settings.

    Raises:
        RunError: names the first key that differs.
    """
    old, new = _flatten(to_dict(saved)), _flatten(to_dict(asked))
    for key in sorted(old.keys() | new.keys()):
        if key not in FREE_ON_RESUME and old.get(key) != new.get(key):
            raise RunError(
                f"run {folder} was started with {key}={old.get(key)!r}, not {new.get(key)!r}:"
                " resume it with the same settings, or start over with --overwrite"
            )


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out

"""What can be compared. A method has a kind; the kind's fields are the keys of its table.

A kind is a frozen dataclass, subclass of `Method`, registered in `KINDS`. `Method.plan` checks
everything that can be checked before a model trains; `Method.run` makes one cell, in a process of
its own.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanonet.benchmark.memory import Probe
from nanonet.core.config import Config, make_config
from nanonet.core.errors import ConfigError
from nanonet.core.registry import Registry
from nanonet.core.strict import build, merge, to_dict
from nanonet.data.readers import Columns, read_table
from nanonet.export import export
from nanonet.models.backbones import Backbone, check_length
from nanonet.models.cohort import check_cohort
from nanonet.runtime.predictor import Predictor
from nanonet.scoring import evaluate_run
from nanonet.training.checkpoint import read_tensors
from nanonet.training.device import choose_hardware
from nanonet.training.display import SilentDisplay
from nanonet.training.inputs import TrainingTables
from nanonet.training.plan import make_plan
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train

SPEED_TEXTS = 1000
NEVER = 10**9  # steps: no run has as many
LoadBackbone = Callable[[str, Literal["auto", "mean", "cls"]], Backbone]


@dataclass(frozen=True)
class Files:
    """The files of a cell: a draw, and what to score on."""

    labeled: Path
    unlabeled: Path
    test: Path
    test_columns: Columns


@dataclass(frozen=True)
class Method:
    """Base of all kinds of methods."""

    def plan(
        self,
        common: Mapping[str, Any],
        over: Mapping[str, Any],
        root: Path,
        load_backbone: LoadBackbone,
    ) -> dict[str, Any]:
        """Return what a cell's result depends on beside data, draw and seed, ready for JSON.

        Args:
            common: the suite's settings; this method's own lie on top.
            over: settings on top of everything (``--set``).
            root: what relative paths start from.
            load_backbone: loads an encoder, each only once.

        Raises:
            NanoNetError: it could not be run.
        """
        raise NotImplementedError

    @classmethod
    def check_installed(cls) -> None:
        """Check for packages that it takes to run.

        Raises:
            MissingExtraError: says which extra has them.
        """

    @staticmethod
    def complete(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of an earlier plan, with the defaults of those that came later."""
        return dict(config)

    @classmethod
    def run(
        cls, plan: Mapping[str, Any], files: Files, seed: int, folder: Path, threads: int
    ) -> Any:
        """Make one cell and return what was measured, ready for JSON.

        Args:
            plan: what `plan` gave.
            files: the texts.
            seed: of training.
            folder: may be filled; the caller deletes it.
            threads: to compute with where the settings leave it open.
        """
        raise NotImplementedError


KINDS: Registry[type[Method]] = Registry("kind of method")


def texts_per_second(predict: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Return how many texts of a list, of the first `SPEED_TEXTS`, are classified in a second."""
    some = texts[:SPEED_TEXTS]
    predict(some[:1])
    start = time.perf_counter()
    predict(some)
    return round(len(some) / (time.perf_counter() - start), 1)


@KINDS.register("nanonet")
@dataclass(frozen=True)
class NanoNet(Method):
    """A recipe of this package, trained and scored as ``nanonet train`` and ``evaluate`` do."""

    recipe: str = "nanonet"
    settings: dict[str, Any] = field(default_factory=dict)

    def plan(
        self,
        common: Mapping[str, Any],
        over: Mapping[str, Any],
        root: Path,
        load_backbone: LoadBackbone,
    ) -> dict[str, Any]:
        """See `Method.plan`."""
        recipe = str(root / self.recipe) if self.recipe.endswith(".toml") else self.recipe
        values = merge(merge(common, self.settings), over)
        if "seed" in values:
            raise ConfigError("key 'seed': the seeds follow from run.seeds; remove it")
        config = make_config(recipe, values)
        if config.task != "classification":
            raise ConfigError(f"a benchmark compares classifiers, and task is '{config.task}'")
        make_plan(config, has_unlabeled=True)
        choose_hardware(config.training)
        backbone = load_backbone(config.backbone.name, config.backbone.pooling)
        check_length(backbone.encoder, config.data.max_length)
        check_cohort(backbone, config)
        return {"config": _without_seed(config), "backbone": backbone.fingerprint}

    @staticmethod
    def complete(config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Method.complete`."""
        try:
            return _without_seed(build(Config, config))
        except ConfigError:  # a setting that is gone since
            return dict(config)

    @classmethod
    def run(
        cls, plan: Mapping[str, Any], files: Files, seed: int, folder: Path, threads: int
    ) -> Any:
        """See `Method.run`."""
        training = {
            "threads": plan["config"]["training"]["threads"] or threads,
            # A cell that was stopped is done anew: only the last step is saved.
            "checkpoint_every": NEVER,
        }
        values = merge(plan["config"], {"seed": seed, "training": training})
        tables = TrainingTables(
            read_table(files.labeled, Columns(), labels="required"),
            read_table(files.unlabeled, Columns(), labels="ignored"),
        )
        watch = _Watch()
        summary = train(build(Config, values), lambda: tables, folder, display=watch)
        test = read_table(files.test, files.test_columns, labels="required")
        scores = evaluate_run(folder, test, as_trained=True)
        environment = RunFolder(folder).read_json("environment.json")
        settled, _ = RunFolder(folder).read_config()
        bundle = folder / "bundle"
        export(folder, bundle)
        predictor = Predictor.load(bundle, threads=training["threads"])
        return {
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "ece": scores.ece,
            "ece_uncalibrated": scores.ece_uncalibrated,
            "learners": scores.learners,
            "teacher": summary["teacher"],
            "selected": summary["selected"],
            "labels_used_to_choose": summary["selection"]["labels_used"],
            "training_seconds": summary["seconds"],
            "memory": watch.probe.measured(),
            "trainable_parameters": summary["trainable_parameters"],
            "total_parameters": summary["total_parameters"],
            "stored_bytes": _stored_bytes(folder, list(scores.learners)),
            "exported_bytes": sum(file.stat().st_size for file in bundle.iterdir()),
            "texts_per_second": texts_per_second(predictor, test.texts),
            "layer_maps": summary["layer_maps"],
            "warmup": summary["warmup"],
            "guard": summary["guard"],
            "rows": summary["rows"],
            "steps": summary["steps"],
            "unlabeled_batch": settled.training.unlabeled_batch,
            "warnings": scores.warnings,
            "hardware": environment["hardware"] | {"processor": environment["processor"]},
            "versions": environment["versions"] | {"python": environment["python"]},
        }


def _without_seed(config: Config) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key != "seed"}


def _stored_bytes(run: Path, learners: list[str]) -> dict[str, int]:
    """Return the bytes of the trained tensors of each learner."""
    tensors = read_tensors(RunFolder(run).learners)
    return {
        learner: sum(t.nbytes for name, t in tensors.items() if name.startswith(f"{learner}."))
        for learner in learners
    }


class _Watch(SilentDisplay):
    """Lets a probe know when training starts; a warm-up starts too, and is part of it here."""

    def __init__(self) -> None:
        self.probe = Probe()

    def start(self, step: int, steps: int, what: str = "training") -> None:
        """See `Display`."""
        self.probe.start()

    def stop(self) -> None:
        """See `Display`."""
        self.probe.stop()

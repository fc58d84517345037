"""What a run says of itself while it trains: its opening line, log rows, checkpoints, a curve."""

from nanonet.core.strict import to_dict
from nanonet.tasks.base import EncodedTable
from nanonet.training.checkpoint import Position, save_checkpoint
from nanonet.training.display import Display
from nanonet.training.observers import LogRow
from nanonet.training.outcome import logits_by_learner
from nanonet.training.prepare import Prepared
from nanonet.training.run_folder import RunFolder
from nanonet.training.texts import Texts


def opening(prepared: Prepared, texts: Texts) -> str:
    """Return the line before the first step: texts, learners, hardware."""
    counts = ", ".join(f"{each.count} {name}" for name, each in texts.facts.items())
    learners = "; ".join(
        f"{name} {prepared.cohort[name].trainable_count():,} of"
        f" {prepared.cohort[name].total_count():,} parameters"
        for name in prepared.cohort
    )
    used, aside = len(prepared.engine.rows.unlabeled), len(prepared.aside)
    if "unlabeled" in prepared.tables and used < len(prepared.tables["unlabeled"].encoded.ids):
        counts += f", of which {used} to learn from and {aside} kept aside"
    cut = sum(prepared.truncated.values())
    count = prepared.engine.processes.count
    shared = f", {count} processes" if count > 1 else ""
    kind = "labels" if prepared.task.outputs.is_multilabel else "classes"
    return (
        f"texts: {counts} ({cut or 'none'} cut to data.max_length); {len(texts.labels)} {kind};"
        f" training: {learners}; computing on"
        f" {prepared.hardware.describe()}{shared}"
    )


class Recorder:
    """Writes log rows, checkpoints and evaluations of a run."""

    def __init__(
        self, run: RunFolder, prepared: Prepared, display: Display, monitor: EncodedTable | None
    ) -> None:
        self._run = run
        self._prepared = prepared
        self._display = display
        self._monitor = monitor
        self._told = len(prepared.engine.guard.alarms) if prepared.engine.guard else 0

    def on_step(self, step: int) -> None:
        """See `observers.Observer`."""
        self._display.on_step(step)
        if (guard := self._prepared.engine.guard) is not None:
            for alarm in guard.alarms[self._told :]:
                self._display.warn(alarm.describe())
            self._told = len(guard.alarms)

    def on_log(self, row: LogRow) -> None:
        """See `observers.Observer`."""
        if self._prepared.engine.processes.main:
            self._run.append_metrics({"kind": "training", **to_dict(row)})
        self._display.on_log(row)

    def on_checkpoint(self, position: Position) -> None:
        """See `observers.Observer`."""
        engine = self._prepared.engine
        scores: dict[str, float] = {}
        if self._monitor is not None:
            with engine.profile.span("evaluation"):
                scores = _scores(self._prepared, self._monitor)
        if not engine.processes.main:
            return
        if self._monitor is not None:
            row = {"kind": "evaluation", "step": position.step, "set": self._monitor.source}
            self._run.append_metrics({**row, self._prepared.task.metric: scores})
        with engine.profile.span("checkpoint"):
            save_checkpoint(
                self._run.checkpoints,
                position,
                engine.cohort,
                engine.optimizers,
                engine.soft_labels,
                engine.guard,
            )


def _scores(prepared: Prepared, table: EncodedTable) -> dict[str, float]:
    logits = logits_by_learner(prepared, table.encoded.ids)
    return {name: prepared.task.score(table, own) for name, own in logits.items()}

"""`train`: from tables of texts to a finished run folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanonet.core.config import Config
from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.core.files import new_folder, write_bytes, write_json, write_text
from nanonet.core.strict import to_dict
from nanonet.data.readers import TextTable
from nanonet.models.backbones import Backbone, check_length, load_backbone
from nanonet.models.cohort import TEACHER, check_cohort
from nanonet.tasks.base import row_lengths
from nanonet.tasks.labels import LabelSet
from nanonet.training.checkpoint import (
    Position,
    list_checkpoints,
    load_checkpoint,
    load_guard,
    load_soft_labels,
    write_tensors,
)
from nanonet.training.device import Hardware, attention_of, own_chance_and_threads
from nanonet.training.display import Display, LoggingDisplay, SilentDisplay, run_shown
from nanonet.training.inputs import TrainingTables
from nanonet.training.outcome import Outcome, conclude
from nanonet.training.plan import (
    WARMUP,
    make_plan,
    wants_warmup,
    with_enough_steps,
    with_enough_unlabeled,
)
from nanonet.training.prepare import Prepared, prepare
from nanonet.training.priors import describe_priors
from nanonet.training.processes import Processes, join_processes
from nanonet.training.profile import OFF, Profile, report_lines
from nanonet.training.propagation import SoftLabels
from nanonet.training.recorder import Recorder, opening
from nanonet.training.resume import Mode, check_resumable, hardware_of, is_done, version_warnings
from nanonet.training.run_folder import RunFolder, weights_sha256
from nanonet.training.streams import (
    token_lengths,
    write_hashes,
)
from nanonet.training.tasks import make_task
from nanonet.training.texts import Texts, all_token_counts, describe, read_texts
from nanonet.training.warmup import Warmup, warm_up

SAID_OUT_OF_REACH = 0.02  # share of the unlabelled texts


def train(
    config: Config,
    read_data: Callable[[], TrainingTables],
    out: Path,
    *,
    mode: Mode = "new",
    init: Path | None = None,
    monitor: TextTable | None = None,
    display: Display | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Train a cohort and return the summary that ``out`` then holds.

    Settings, backbone and layer maps are checked before ``read_data`` is called, and nothing is
    written before the data is known to be usable. Where a launcher has started many processes, each
    calls this, they train together (see `processes`), and one of them writes and shows.

    Args:
        config: everything that shapes the run.
        read_data: gives the texts.
        out: the run folder.
        mode: ``new`` refuses a folder that exists; ``resume`` continues from its newest
            checkpoint, or starts over if there is none; ``overwrite`` replaces it.
        init: an earlier run whose trained tensors this run starts from.
        monitor: labelled texts that are scored at every checkpoint, for a learning curve. They
            never influence the run.
        display: where messages and progress go.
        profile: whether to measure where this session's time goes (see `profile`), and to leave
            ``profile.json`` and ``trace.json`` in ``out``.

    Raises:
        NanoNetError: see the subclasses.
        InterruptedRunError: stopped by Ctrl-C after saving a checkpoint.
    """
    run = RunFolder(out)
    processes = join_processes(config.training.device)
    shown = display if display and processes.main else SilentDisplay()
    _check_init(init, out, mode)
    if is_done(run, mode):
        shown.say(f"run {out} is finished already")
        return run.read_summary()
    clock = Profile(run.path) if profile and processes.main else OFF
    hardware = hardware_of(run, config, mode, processes)
    with clock.span("model"):
        backbone = _checked_backbone(config, hardware)
    task = make_task(config)
    with clock.span("reading"):
        texts = read_texts(config, backbone, task, read_data(), monitor)
    resuming = mode == "resume" and run.started
    are_ready = init is not None or (resuming and "init" in run.read_config()[1])
    warms_up = wants_warmup(config) and "unlabeled" in texts.encoded and not are_ready
    config = _settle(config, texts, warms_up, shown)
    start = None if resuming else init  # a checkpoint holds what the earlier run gave
    inputs = describe(texts.facts, backbone, start)
    if resuming:
        check_resumable(run, config, inputs, init)
    parts = (config, backbone, hardware, texts.encoded, texts.labels, task)
    prepared = None
    if not warms_up:
        with clock.span("model"):
            own_weights = run.read_warmup() if resuming else None
            prepared = prepare(*parts, start, own_weights, processes)

    with _writing(run), own_chance_and_threads(hardware.threads):
        processes.wait()  # all have seen what was there before
        if not resuming and processes.main:
            _create(run, config, inputs, texts, hardware, processes, start)
        processes.wait()
        warnings = texts.warnings + (version_warnings(run) if resuming else [])
        log = LoggingDisplay(shown, run.path / "log.txt") if processes.main else SilentDisplay()
        seconds = 0.0
        with _profiled(run, clock, log):
            if prepared is None:
                with clock.within(WARMUP):
                    warmup = _warm_up(config, run, hardware, backbone, texts, log, clock, processes)
                with clock.span("model"):
                    prepared = prepare(*parts, None, warmup.tensors, processes)
                seconds = warmup.seconds
            prepared.engine.profile = clock
            return _train(run, config, prepared, texts, warnings, seconds, log)


def _settle(config: Config, texts: Texts, warms_up: bool, shown: Display) -> Config:
    """Return the settings with the steps and rows that these texts take; say what is more."""
    count, classes = texts.facts["labeled"].count, len(texts.labels)
    settled = with_enough_steps(config, count, classes)
    if settled.training.steps > config.training.steps:
        shown.say(
            f"{settled.training.steps} steps instead of {config.training.steps}, for"
            f" {classes} classes and {count} labelled texts; training.steps sets another number"
        )
    if "unlabeled" in texts.encoded:
        tokens = float(row_lengths(texts.encoded["unlabeled"].encoded.ids).mean())
        before, settled = settled, with_enough_unlabeled(settled, tokens)
        if warms_up and settled.warmup.steps > before.warmup.steps:
            shown.say(
                f"{settled.warmup.steps} steps of warm-up instead of {before.warmup.steps}, for"
                f" texts of {tokens:.0f} tokens; warmup.steps sets another number"
            )
        rows, least = settled.training.unlabeled_batch, before.training.unlabeled_batch
        if rows > least:
            shown.say(
                f"{rows} unlabelled texts a step instead of {least}, for texts of {tokens:.0f}"
                " tokens; training.unlabeled_batch sets another number"
            )
    return settled


def _warm_up(
    config: Config,
    run: RunFolder,
    hardware: Hardware,
    backbone: Backbone,
    texts: Texts,
    log: Display,
    clock: Profile,
    processes: Processes,
) -> Warmup:
    unlabeled = texts.facts["unlabeled"].fingerprint
    fingerprints = " ".join((backbone.fingerprint, backbone.pooling, unlabeled))
    ids = texts.encoded["unlabeled"].encoded.ids
    return warm_up(config, run, hardware, ids, fingerprints, log, clock, processes)


@contextmanager
def _profiled(run: RunFolder, clock: Profile, log: Display) -> Iterator[None]:
    """Show and write where the time went, in a run that is interrupted too."""

    def write() -> None:
        if clock.on:
            report = clock.report()
            write_json(run.profile, report)
            for line in report_lines(report):
                log.say(line)

    try:
        yield
    except InterruptedRunError:
        write()
        raise
    write()


def _check_init(init: Path | None, out: Path, mode: Mode) -> None:
    if init is None:
        return
    if init.resolve() == out.resolve():
        raise RunError(f"run {out} cannot start from itself: choose another --out")
    if mode != "resume":  # a run that goes on needs it no longer
        RunFolder(init).read_summary()  # it is there and finished, before any data is read


def _checked_backbone(config: Config, hardware: Hardware) -> Backbone:
    """Return the backbone; refuse settings that contradict each other or do not fit it."""
    plan = make_plan(config, has_unlabeled=True)
    attention = attention_of(hardware, plan.watches_attention)
    backbone = load_backbone(config.backbone.name, config.backbone.pooling, attention)
    check_length(backbone.encoder, config.data.max_length)
    check_cohort(backbone, config)
    return backbone


def _train(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    texts: Texts,
    warnings: list[str],
    seconds: float,
    log: Display,
) -> dict[str, Any]:
    """Step from where the run stands to its end and return the summary.

    ``seconds`` is what its warm-up took in this session.
    """
    settled = config.training.steps if prepared.start.settled else 0
    start_at = _position(run, prepared) or Position(settled, seconds, {}, {})
    notices = [prepared.start.notice] if prepared.start.notice else []
    for notice in (*prepared.engine.plan.notices, *warnings, *notices):
        log.warn(notice)
    log.say(opening(prepared, texts))
    recorder = Recorder(run, prepared, log, texts.watched)
    position, stopped = run_shown(prepared.engine, start_at, recorder, log)
    if stopped == "interrupted":
        raise InterruptedRunError(
            f"stopped after step {position.step} of {config.training.steps};"
            f" continue with --resume (run {run.path})"
        )
    return _finish(run, config, prepared, texts.labels, position, stopped, log)


@contextmanager
def _writing(run: RunFolder) -> Iterator[None]:
    """Turn a full or read-only disk into a `RunError`."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our messages has gone; the disk is fine
    except OSError as error:
        raise RunError(
            f"run {run.path} could not be written: {error.strerror or error}; free some space and"
            " continue with --resume"
        ) from None


def _position(run: RunFolder, prepared: Prepared) -> Position | None:
    """Return where the newest checkpoint stands, with its tensors put in place; None: nowhere."""
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    position = load_checkpoint(newest, prepared.cohort, prepared.engine.optimizers)
    propagation_step = prepared.engine.propagation_step
    if propagation_step is not None and position.step > propagation_step:
        prepared.engine.soft_labels = load_soft_labels(newest)
    if prepared.engine.guard is not None:
        load_guard(newest, prepared.engine.guard)
    if prepared.engine.processes.main:
        run.cut_metrics(position.step)
    return position


def _create(
    run: RunFolder,
    config: Config,
    inputs: dict[str, Any],
    texts: Texts,
    hardware: Hardware,
    processes: Processes,
    init: Path | None,
) -> None:
    with new_folder(run.path) as folder:  # an earlier run stays until this one stands
        fresh = RunFolder(folder)
        fresh.checkpoints.mkdir()
        fresh.write_config(config, inputs)
        fresh.write_labels(texts.labels)
        fresh.write_environment(hardware, processes.count)
        write_text(folder / "metrics.jsonl", "")
        write_text(folder / "tokenizer.json", texts.tokenizer.to_json())
        for name, each in texts.facts.items():
            if name != "validation":
                write_hashes(fresh.seen(name), each.hashes)
        write_bytes(fresh.token_counts, all_token_counts(texts).astype("<u4").tobytes())
        if init is not None and RunFolder(init).warmup_result.is_file():
            write_bytes(fresh.warmup_result, RunFolder(init).warmup_result.read_bytes())


def _finish(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    labels: LabelSet,
    position: Position,
    stopped: str,
    display: Display,
) -> dict[str, Any]:
    cohort = prepared.cohort
    with prepared.engine.profile.span("evaluation"):
        outcome = conclude(prepared, config, labels, display)
        selection = outcome.selection
    tensors, guard = cohort.own_tensors(), prepared.engine.guard
    labeled = prepared.tables["labeled"]
    used = len(prepared.engine.rows.unlabeled)
    out_of_reach = used - len(prepared.engine.within_reach()[0])
    pool, spread = prepared.tables.get("unlabeled", labeled), prepared.engine.soft_labels
    summary = {
        "task": config.task,
        "teacher": TEACHER if cohort.has_teacher else None,
        "students": cohort.students,
        "selected": selection.selected,
        "selection": selection.to_dict(),
        "heads": {name: to_dict(head) for name, head in outcome.heads.items()},
        "calibration": to_dict(outcome.calibration) if outcome.calibration else None,
        "priors": to_dict(outcome.priors) if outcome.priors else None,
        "thresholds": to_dict(outcome.thresholds) if outcome.thresholds else None,
        "layer_maps": {name: list(cohort[name].layer_map) for name in cohort},
        "trainable_parameters": {name: cohort[name].trainable_count() for name in cohort},
        "total_parameters": {name: cohort[name].total_count() for name in cohort},
        "weights_sha256": weights_sha256(tensors),
        "warmup": run.describe_warmup(),
        "start": prepared.start.note,
        "classes": len(labels),
        "rows": {name: table.examples for name, table in prepared.tables.items()},
        "name_examples": len(prepared.engine.rows.labeled) - len(labeled.encoded.ids),
        "unlabeled_used": used,
        "unlabeled_aside": len(prepared.aside),
        "unlabeled_out_of_reach": out_of_reach,
        "spreading": None if spread is None else _describe_spreading(spread),
        "guard": guard and {**guard.summary(), "astray": list(outcome.astray)},
        "truncated": prepared.truncated,
        "token_lengths": token_lengths(pool),
        "seed": config.seed,
        "steps": position.step,
        "finished": position.step == config.training.steps,
        "stopped": None if position.step == config.training.steps else stopped,
        "seconds": round(position.seconds, 3),
    }
    if prepared.engine.processes.main:
        write_tensors(run.learners, tensors)
        run.evaluations.unlink(missing_ok=True)  # of a run that was continued: of other weights
        write_json(run.path / "summary.json", summary)
    _tell(summary, outcome, config, labels, display)
    prepared.engine.processes.wait()  # for the one that writes
    return summary


def _describe_spreading(found: SoftLabels) -> dict[str, Any]:
    """Return how labels spread: what texts stood for, and the weight of the names' voice."""
    heard = None if found.names_heard is None else round(float(found.names_heard[0]), 3)
    return {"by_sentences": found.by_sentences is not None, "names_heard": heard}


def _tell(
    summary: dict[str, Any], outcome: Outcome, config: Config, labels: LabelSet, display: Display
) -> None:
    """Say how a run ended."""
    if not summary["finished"]:
        display.warn(
            f"{summary['stopped']} reached after step {summary['steps']} of"
            f" {config.training.steps}; the model so far can be used; continue with --resume and a"
            " larger --max-minutes"
        )
    if outcome.astray:
        display.warn(
            f"{' and '.join(outcome.astray)} ended astray: the answers to unlabelled texts are not"
            " what labels and other learners give reason for; others ship"
        )
    selection = outcome.selection
    display.say(
        f"trained in {summary['seconds']:.0f} s; selected {selection.selected}"
        f" ({selection.criterion}; labels used to choose: {selection.labels_used})"
    )
    used, out_of_reach = summary["unlabeled_used"], summary["unlabeled_out_of_reach"]
    if out_of_reach >= SAID_OUT_OF_REACH * used > 0:
        display.warn(
            f"{out_of_reach} of {used} unlabelled texts are unlike all labelled ones: once labels"
            " had spread, nothing was learnt from them; label some of them if they matter"
        )
    if outcome.priors is not None:
        display.say(describe_priors(outcome.priors, labels))

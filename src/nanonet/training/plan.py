"""The plan of a run: which learners step on which objectives, checked before any data loads."""

import math
from dataclasses import dataclass, replace

from nanonet.core.config import CohortConfig, Config, PhaseConfig, PropagationConfig
from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean
from nanonet.models.cohort import TEACHER
from nanonet.models.learner import ATTENTION, NO_PARTS, Parts
from nanonet.models.peft import PEFT
from nanonet.objectives import Objective
from nanonet.objectives.base import Stream, build_objectives
from nanonet.training.priors import check_class_prior
from nanonet.training.weights import check_class_weight

WARMUP = "warmup"  # the name of the warm-up's phase
# Labelled rows that a class needs, and passes over all of them. Measured in docs/experiments.md.
ROWS_PER_CLASS, PASSES = 120, 3
# Unlabelled tokens of a run, and of a warm-up, where texts are short: as many as 300 steps of 32
# texts of 50 tokens, and 100 steps of 64. And how many times the rows of a step, or a warm-up's
# steps, they may make.
RUN_TOKENS, WARMUP_TOKENS, MOST_TIMES = 300 * 32 * 50, 100 * 64 * 50, 4


@dataclass(frozen=True)
class Phase:
    """One optimizer step within a step: who learns, from what."""

    name: str
    learners: tuple[str, ...]
    objectives: dict[str, Objective]
    config: PhaseConfig

    def progress(self, step: int, steps: int) -> float | None:
        """Return how far this phase is at ``step`` of ``steps``, in [0, 1); None where it rests."""
        window = self.window(steps)
        return (step - window.start) / len(window) if step in window else None

    def window(self, steps: int) -> range:
        """Return those of ``steps`` at which this phase does not rest."""
        return range(round(self.config.start * steps), round(self.config.stop * steps))

    @property
    def streams(self) -> frozenset[Stream]:
        """Return the rows that this phase reads."""
        return frozenset().union(*(o.streams for o in self.objectives.values()))

    @property
    def parts(self) -> Parts:
        """Return what its objectives read of outputs beside logits and pooled vectors."""
        return NO_PARTS.union(*(o.parts() for o in self.objectives.values()))


@dataclass(frozen=True)
class Plan:
    """All phases of a step, in order, and what had to be left out."""

    phases: tuple[Phase, ...]
    notices: tuple[str, ...]

    @property
    def needs_soft_labels(self) -> bool:
        """Return whether an objective reads propagated labels."""
        return any(o.needs_soft_labels for p in self.phases for o in p.objectives.values())

    @property
    def parts(self) -> Parts:
        """Return what objectives read of outputs beside logits and pooled vectors."""
        return NO_PARTS.union(*(phase.parts for phase in self.phases))

    @property
    def watches_attention(self) -> bool:
        """Return whether an objective reads attention maps."""
        return bool(self.parts & ATTENTION)

    @property
    def reads_unlabeled(self) -> bool:
        """Return whether any phase reads unlabelled rows."""
        return any("unlabeled" in phase.streams for phase in self.phases)


def learner_names(cohort: CohortConfig) -> list[str]:
    """Return the names of the learners that a configuration asks for."""
    teacher = [TEACHER] if cohort.teacher else []
    return teacher + [f"student{k + 1}" for k in range(cohort.students)]


def with_enough_steps(config: Config, texts: int, classes: int) -> Config:
    """Return the settings with the steps that so many labelled texts and classes take.

    Where the recipe leaves it open (``training.more_steps``), no fewer than `ROWS_PER_CLASS`
    labelled rows of each class, and no fewer than `PASSES` over all of them, until the first
    learner has done its last.
    """
    training = config.training
    if not training.more_steps:
        return config
    rows = max(ROWS_PER_CLASS * classes, PASSES * texts)
    last = [
        max((p.stop for p in config.phases.values() if _learns(name, p)), default=1.0)
        for name in learner_names(config.cohort)
    ]
    until = min(last, default=1.0) or 1.0  # what stops at 0 is refused elsewhere
    steps = max(training.steps, math.ceil(rows / training.labeled_batch / until))
    return replace(config, training=replace(training, steps=steps, more_steps=False))


def with_enough_unlabeled(config: Config, tokens: float) -> Config:
    """Return the settings with more rows per step, and a longer warm-up, where texts are short.

    So that a run reads as many tokens of these as of longer ones, since students go on gaining from
    texts. Where the recipe leaves it open: more unlabelled rows (``training.more_rows``), and more
    steps of the warm-up (``warmup.more_steps``), which bring more there than rows. What is returned
    leaves it open no longer: a resumed run reads the numbers that it began with.

    Args:
        config: with the steps that it takes, see `with_enough_steps`.
        tokens: of an unlabelled text, on average.
    """
    training, warmup = config.training, config.warmup
    length = max(tokens, 1.0)
    if training.more_rows:
        rows = _raised(training.unlabeled_batch, RUN_TOKENS / length / training.steps)
        training = replace(training, unlabeled_batch=rows, more_rows=False)
    if warmup.more_steps:
        steps = _raised(warmup.steps, WARMUP_TOKENS / length / warmup.unlabeled_batch)
        warmup = replace(warmup, steps=steps, more_steps=False)
    return replace(config, training=training, warmup=warmup)


def _learns(name: str, phase: PhaseConfig) -> bool:
    return phase.learners == "all" or (name == TEACHER) == (phase.learners == "teacher")


def _raised(least: int, wanted: float) -> int:
    return min(max(round(wanted), least), MOST_TIMES * least)


def make_plan(config: Config, has_unlabeled: bool) -> Plan:
    """Return the plan of a configuration.

    Without unlabelled text, objectives that read it are left out, which is noted.

    Raises:
        ConfigError: an objective lacks the teacher or the peers that it needs, nobody learns, or
            there is no such PEFT method.
    """
    names = learner_names(config.cohort)
    if not names:
        raise ConfigError("cohort.students is 0 and cohort.teacher is false: nobody would learn")
    for method in (config.cohort.teacher_peft, config.cohort.student_peft, config.warmup.peft):
        PEFT.get(method)
    _check_views(config, names)
    _check_narrow(config)
    warmup_objectives(config)
    check_class_weight(config)
    check_class_prior(config)
    phases, notices = [], []
    if wants_warmup(config) and not has_unlabeled:
        notices.append("no unlabelled text: no warm-up")
    for name, phase in config.phases.items():
        learners = tuple(n for n in names if _learns(n, phase))
        objectives = build_objectives(phase.objectives, name)
        if phase.start >= phase.stop:
            raise ConfigError(
                f"phases.{name}.start is {phase.start}, but must be less than"
                f" phases.{name}.stop={phase.stop}"
            )
        if not learners:
            continue
        for key, objective in objectives.items():
            _check_objective(f"phases.{name}.objectives.{key}", objective, config.cohort)
            _check_soft_labels(f"phases.{name}", objective, phase, config.propagation)
        _check_trains(name, learners, objectives, config.cohort)
        if not has_unlabeled:
            dropped = [k for k, o in objectives.items() if "unlabeled" in o.streams]
            objectives = {k: o for k, o in objectives.items() if k not in dropped}
            if dropped:
                notices.append(f"no unlabelled text: {', '.join(dropped)} left out of {name}")
        if objectives:
            phases.append(Phase(name, learners, objectives, phase))
    steps = config.training.steps
    trained = {n for phase in phases if phase.window(steps) for n in phase.learners}
    for learner in names:
        if learner not in trained:
            raise ConfigError(
                f"recipe '{config.recipe}' gives '{learner}' nothing to learn: add a phase for it,"
                " or leave it out (cohort.teacher=false, cohort.students=0)"
            )
    return Plan(tuple(phases), tuple(notices))


def wants_warmup(config: Config) -> bool:
    """Return whether there is to be a warm-up, given unlabelled text."""
    return config.warmup.steps > 0 and config.cohort.students > 0


def warmup_objectives(config: Config) -> dict[str, Objective]:
    """Return the objectives of the warm-up; none where there is no warm-up, or no student.

    Raises:
        ConfigError: one of them reads more than unlabelled text and the teacher's
            representations, or none is left.
    """
    if not wants_warmup(config):
        return {}
    objectives = build_objectives(config.warmup.objectives, WARMUP)
    for name, objective in objectives.items():
        if objective.reads_logits or "labeled" in objective.streams:
            raise ConfigError(
                f"warmup.objectives.{name} cannot be learnt before there are labels: use"
                " representation_distillation or attention_distillation"
            )
    if not objectives or config.warmup.peft == "head":
        raise ConfigError("the warm-up has nothing to learn: set warmup.steps=0")
    return objectives


def _check_views(config: Config, names: list[str]) -> None:
    for name in config.views.learners:
        if name not in names:
            raise ConfigError(
                f"views.learners.{name} names no learner{did_you_mean(name, names)}; there are:"
                f" {', '.join(names)}"
            )
    for name in names:
        config.views.of(name)


def _check_narrow(config: Config) -> None:
    """Refuse to train little of weights that start at random: nothing would come of it."""
    warmed = config.warmup.steps > 0 and config.warmup.peft == "full"
    if config.cohort.student_width and not warmed and config.cohort.student_peft != "full":
        raise ConfigError(
            f"cohort.student_width is {config.cohort.student_width}: such students start from"
            " random weights, of which all must be trained; set cohort.student_peft=full, or"
            " warmup.steps to some hundred with warmup.peft=full"
        )


def _check_soft_labels(
    where: str, objective: Objective, phase: PhaseConfig, propagation: PropagationConfig
) -> None:
    if objective.needs_soft_labels and not 0.0 < propagation.at <= phase.start:
        raise ConfigError(
            f"{where} reads propagated labels and starts at {phase.start}, but propagation.at is"
            f" {propagation.at}: propagate above 0 and no later than the phase starts"
        )


def _check_trains(
    phase: str, learners: tuple[str, ...], objectives: dict[str, Objective], cohort: CohortConfig
) -> None:
    """Refuse a phase whose objectives reach nothing that a learner trains."""
    if any(objective.reads_logits for objective in objectives.values()):
        return
    for name in learners if objectives else ():
        key = "teacher_peft" if name == TEACHER else "student_peft"
        if getattr(cohort, key) == "head":
            raise ConfigError(
                f"phases.{phase} leaves {name} nothing to train: {', '.join(objectives)} do not"
                f" reach the head; set cohort.{key}=bitfit, or the weight of each of them to 0"
            )


def _check_objective(where: str, objective: Objective, cohort: CohortConfig) -> None:
    if objective.needs_teacher and not cohort.teacher:
        raise ConfigError(
            f"{where} needs a teacher, but cohort.teacher is false: set {where}.weight=0"
        )
    if cohort.students < objective.min_students:
        raise ConfigError(
            f"{where} needs {objective.min_students} students or more, but cohort.students is"
            f" {cohort.students}: set {where}.weight=0 or cohort.students={objective.min_students}"
        )

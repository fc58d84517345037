"""The plan of a run: which learners step on which objectives, checked before any data loads."""

from dataclasses import dataclass

from nanonet.core.config import CohortConfig, Config, PhaseConfig, PropagationConfig
from nanonet.core.errors import ConfigError
from nanonet.models.cohort import TEACHER
from nanonet.models.peft import PEFT
from nanonet.objectives import Objective
from nanonet.objectives.base import Stream, build_objectives


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
    def needs_hidden_states(self) -> bool:
        """Return whether an objective of this phase reads hidden states."""
        return any(o.needs_hidden_states() for o in self.objectives.values())


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
    def needs_hidden_states(self) -> bool:
        """Return whether an objective reads hidden states."""
        return any(phase.needs_hidden_states for phase in self.phases)

    @property
    def reads_unlabeled(self) -> bool:
        """Return whether any phase reads unlabelled rows."""
        return any("unlabeled" in phase.streams for phase in self.phases)


def learner_names(cohort: CohortConfig) -> list[str]:
    """Return the names of the learners that a configuration asks for."""
    teacher = [TEACHER] if cohort.teacher else []
    return teacher + [f"student{k + 1}" for k in range(cohort.students)]


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
    for method in (config.cohort.teacher_peft, config.cohort.student_peft):
        PEFT.get(method)
    phases, notices = [], []
    for name, phase in config.phases.items():
        learners = tuple(
            n
            for n in names
            if phase.learners == "all" or (n == TEACHER) == (phase.learners == "teacher")
        )
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


def _check_soft_labels(
    where: str, objective: Objective, phase: PhaseConfig, propagation: PropagationConfig
) -> None:
    if objective.needs_soft_labels and not 0.0 < propagation.at <= phase.start:
        raise ConfigError(
            f"{where} reads propagated labels and starts at {phase.start}, but propagation.at is"
            f" {propagation.at}: propagate above 0 and no later than the phase starts"
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

"""The ablation: variants of a recipe, each with one ingredient switched off, on or over.

A pure function of the recipe's tables and the backbone's depth. Only variants that say something of
this recipe are made: nothing is switched off that is off, and where students learn from nobody,
there is nothing to take away.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nanonet.core.config import Config, PhaseConfig
from nanonet.core.errors import ConfigError
from nanonet.core.strict import build, merge
from nanonet.models.cohort import TEACHER
from nanonet.models.layer_maps import LayerMap, layer_maps
from nanonet.models.peft import PEFT
from nanonet.objectives import Objective
from nanonet.objectives.base import build_objectives
from nanonet.training.plan import learner_names

Tables = dict[str, Any]

REFERENCE = "reference"
FEEDBACK = {"supervised": 0.8, "feedback": 0.2}  # weights of the teacher's objectives
APART = ("supervised", "feedback", "mutual")  # objectives that have variants of their own, or none
WARMUP_STEPS = 300
WARMUP_PEFT = ("layers", "bitfit")
STUDENTS = (1, 3, 4)
# Views that are tried one at a time, with the value that switches each on.
VIEWS: dict[str, float] = {
    "token_cutoff": 0.1,
    "span_cutoff": 0.1,
    "feature_cutoff": 0.1,
    "shuffle": 0.2,
    "dropout": 0.1,
    "adversarial": 5,
}


@dataclass(frozen=True)
class Variant:
    """A recipe with one thing changed.

    Attributes:
        group: the ingredient.
        name: of the variant; unique.
        overrides: tables to lay on top of the recipe's.
    """

    group: str
    name: str
    overrides: Tables


def variants(tables: Mapping[str, Any], depth: int) -> list[Variant]:
    """Return the variants of a recipe, the recipe itself first.

    Args:
        tables: the recipe's, further settings included.
        depth: layers of the backbone.

    Raises:
        ConfigError: the tables are no configuration, or its layer maps do not fit the backbone.
    """
    recipe = _Recipe(build(Config, tables), depth)
    return [
        Variant(REFERENCE, REFERENCE, {}),
        *_teacher(recipe),
        *_feedback(recipe),
        *_without_objectives(recipe),
        *_views(recipe),
        *_warmup(recipe),
        *_heads(recipe),
        *_peft(recipe),
        *_students(recipe),
        *_layers(recipe),
    ]


class _Recipe:
    """What the variants ask of a configuration."""

    def __init__(self, config: Config, depth: int) -> None:
        self.config = config
        self.depth = depth
        self.phases = {n: p for n, p in config.phases.items() if self._has_learners(p)}
        self.objectives = {n: build_objectives(p.objectives, n) for n, p in self.phases.items()}
        cohort = config.cohort
        self.maps = (
            layer_maps(cohort.layer_map, depth, cohort.student_layers, cohort.students)
            if cohort.students
            else []
        )

    def _has_learners(self, phase: PhaseConfig) -> bool:
        cohort = self.config.cohort
        there = {"teacher": cohort.teacher, "students": cohort.students > 0}
        return there.get(phase.learners, True)

    def phases_of(self, learners: str) -> dict[str, PhaseConfig]:
        return {n: p for n, p in self.phases.items() if p.learners == learners}

    def active(self, learners: Iterable[str]) -> Iterator[Objective]:
        """Yield the objectives of weight above 0 in phases of these learners."""
        for name, phase in self.phases.items():
            if phase.learners in learners:
                yield from self.objectives[name].values()

    @property
    def needs_teacher(self) -> bool:
        """Whether students learn from the teacher."""
        return any(o.needs_teacher for o in self.active(("students", "all")))

    @property
    def needs_peers(self) -> bool:
        """Whether students learn from each other."""
        return any(o.min_students > 1 for o in self.active(("students", "all")))

    @property
    def students_read_unlabeled(self) -> bool:
        """Whether data views change anything."""
        return any("unlabeled" in o.streams for o in self.active(("students", "all")))

    def off(self, *names: str) -> Tables | None:
        """Return what sets the weights of these objectives to 0.

        None where there are no such objectives, or a learner has nothing else to learn from.
        """
        left: dict[str, set[str]] = {}
        for phase, objectives in self.objectives.items():
            left.setdefault(self.phases[phase].learners, set()).update(objectives.keys() - names)
        to_all = left.pop("all", set())
        if not all(to_all | own for own in left.values()) or not (to_all or left):
            return None
        weights = {
            phase: {name: 0.0 for name in objectives if name in names}
            for phase, objectives in self.objectives.items()
        }
        return set_weights(weights) if any(weights.values()) else None

    def without_peers(self) -> Tables:
        """Return what switches off everything that takes two students."""
        return set_weights(
            {
                phase: {n: 0.0 for n, o in objectives.items() if o.min_students > 1}
                for phase, objectives in self.objectives.items()
            }
        )


def set_weights(weights: Mapping[str, Mapping[str, float]]) -> Tables:
    """Return tables that set weights of objectives, given by phase."""
    return {
        "phases": {
            phase: {"objectives": {name: {"weight": w} for name, w in of_phase.items()}}
            for phase, of_phase in weights.items()
            if of_phase
        }
    }


# --- the teacher


def _teacher(recipe: _Recipe) -> Iterator[Variant]:
    if not (recipe.config.cohort.teacher and recipe.needs_teacher):
        return
    if (overrides := offline_teacher(recipe.config)) is not None:
        yield Variant("teacher", "offline-teacher", overrides)
    weights = {
        name: {
            n: 0.0
            for n, o in recipe.objectives[name].items()
            if o.needs_teacher or phase.learners == "teacher"
        }
        for name, phase in recipe.phases.items()
    }
    left = [recipe.objectives[n].keys() - weights[n] for n in recipe.phases]
    if any(left):
        alone = {"cohort": {"teacher": False}}
        yield Variant("teacher", "no-teacher", merge(alone, set_weights(weights)))


def offline_teacher(config: Config) -> Tables | None:
    """Return what lets the teacher learn to its end before the students start.

    Every phase steps as often as before: the students' phases are moved to where the teacher's
    last one ends, the total grows by as much, and all shares of it are computed anew. Feedback
    falls away, as the students it would come from have learnt nothing yet.

    Returns:
        None where teacher and students share a phase, the teacher is done in time already, or
        there are too few steps for students to take one.
    """
    steps = config.training.steps
    if any(phase.learners == "all" for phase in config.phases.values()):
        return None
    # In steps, rounded as the plan does it.
    windows = {n: (round(p.start * steps), round(p.stop * steps)) for n, p in config.phases.items()}
    students = [n for n, p in config.phases.items() if p.learners == "students"]
    teacher = [n for n in config.phases if n not in students]
    if not students or not teacher:
        return None
    shift = max(windows[n][1] for n in teacher) - min(windows[n][0] for n in students)
    if shift <= 0:
        return None
    if any(windows[n][0] >= windows[n][1] for n in students):
        return None
    total = shift + max(windows[n][1] for n in students)

    def share(old: float, later: int = 0) -> float:
        """Return the new share of a point in time; above 0 stays above 0, if it is no step."""
        return (round(old * steps) + later or min(old * steps, 0.25)) / total

    phases = {}
    for name, phase in config.phases.items():
        later = shift if name in students else 0
        start, stop = share(phase.start, later), share(phase.stop, later)
        # A phase that takes no step takes none now, but has to stop after its start.
        phases[name] = {"start": start, "stop": max(stop, start + 0.2 / total)}
    more = config.training.more_steps  # else a number of steps switches it off
    overrides: Tables = {"training": {"steps": total, "more_steps": more}, "phases": phases}
    if config.propagation.at > 0.0:
        overrides["propagation"] = {"at": share(config.propagation.at)}
    fed = {
        name: {"feedback": 0.0}
        for name in teacher
        if "feedback" in build_objectives(config.phases[name].objectives, name)
    }
    return merge(overrides, set_weights(fed))


def _feedback(recipe: _Recipe) -> Iterator[Variant]:
    """Feedback to the teacher, in phases during which students learn too."""
    windows = [(p.start, p.stop) for p in recipe.phases_of("students").values()]
    phases = [
        name
        for name, phase in recipe.phases_of("teacher").items()
        if "supervised" in recipe.objectives[name]
        and any(start < phase.stop and phase.start < stop for start, stop in windows)
    ]
    if not phases:
        return
    if any("feedback" in recipe.objectives[name] for name in phases):
        off = {name: {"supervised": 1.0, "feedback": 0.0} for name in phases}
        yield Variant("feedback", "no-feedback", set_weights(off))
    else:
        yield Variant("feedback", "feedback", set_weights(dict.fromkeys(phases, FEEDBACK)))


# --- objectives and views


def _without_objectives(recipe: _Recipe) -> Iterator[Variant]:
    if (off := recipe.off("mutual")) is not None:
        yield Variant("mutual learning", "no-mutual", off)
    ramps = {
        phase: {"objectives": {n: {"ramp_up": 0.0} for n, o in objectives.items() if o.ramp_up}}
        for phase, objectives in recipe.objectives.items()
        if any(o.ramp_up for o in objectives.values())
    }
    if ramps:
        yield Variant("mutual learning", "no-ramp-up", {"phases": ramps})
    names = dict.fromkeys(n for objectives in recipe.objectives.values() for n in objectives)
    for name in names:
        if name not in APART and (off := recipe.off(name)) is not None:
            yield Variant(name.replace("_", " "), f"no-{name.replace('_', '-')}", off)


def _views(recipe: _Recipe) -> Iterator[Variant]:
    """Each view on its own: off where a student has it, added to all where none has."""
    if not recipe.students_read_unlabeled:
        return
    views = recipe.config.views
    students = [name for name in learner_names(recipe.config.cohort) if name != TEACHER]
    for view, value in VIEWS.items():
        is_on = any(getattr(views.of(name), view) > 0 for name in students)
        changed: Tables = {view: 0 if is_on else value}
        if own := [name for name in students if view in views.learners.get(name, {})]:
            changed["learners"] = {name: dict(changed) for name in own}
        name = f"{'no-' if is_on else ''}{view.replace('_', '-')}"
        yield Variant("views", name, {"views": changed})


def _warmup(recipe: _Recipe) -> Iterator[Variant]:
    """Distillation from the backbone before any label is used."""
    warmup = recipe.config.warmup
    if not recipe.students_read_unlabeled:
        return
    if warmup.steps > 0:
        yield Variant("warm-up", "no-warmup", {"warmup": {"steps": 0}})
    for peft in WARMUP_PEFT:
        if warmup.steps == 0 or peft != warmup.peft:
            steps = {} if warmup.steps else {"steps": WARMUP_STEPS}
            yield Variant("warm-up", f"warmup-{peft}", {"warmup": {"peft": peft, **steps}})


def _heads(recipe: _Recipe) -> Iterator[Variant]:
    """Students' heads fitted in the end."""
    config = recipe.config
    if config.training.head_texts and config.cohort.teacher and config.cohort.students:
        yield Variant("heads", "no-head-fit", {"training": {"head_texts": 0}})


# --- what is trained, and the students' number and depth


def _peft(recipe: _Recipe) -> Iterator[Variant]:
    cohort = recipe.config.cohort
    own = {cohort.teacher_peft} if cohort.teacher else set()
    own |= {cohort.student_peft} if cohort.students else set()
    for kind in PEFT:
        if {kind} == own:
            continue
        overrides: Tables = {
            "cohort": {"teacher_peft": kind, "student_peft": kind},
            "phases": {name: {"learning_rate": "auto"} for name in recipe.phases},
        }
        if kind == "head":  # nothing that it could train in phases on representations
            idle = {
                phase: dict.fromkeys(objectives, 0.0)
                for phase, objectives in recipe.objectives.items()
                if not any(o.reads_logits for o in objectives.values())
            }
            overrides = merge(overrides, set_weights(idle))
        yield Variant("trained part", f"peft-{kind}", overrides)


def _students(recipe: _Recipe) -> Iterator[Variant]:
    """Other numbers of students, where they learn from anyone but the labels."""
    if not recipe.maps or not (recipe.needs_teacher or recipe.needs_peers):
        return
    for students in STUDENTS:
        maps = distinct_maps(recipe.depth, len(recipe.maps[0]), students, recipe.maps)
        if students != len(recipe.maps) and len(maps) == students:
            yield Variant("number of students", f"students-{students}", _cut(recipe, maps))


def _layers(recipe: _Recipe) -> Iterator[Variant]:
    """Other depths of the students; one student where there is only one way to cut it."""
    if not recipe.maps:
        return
    for layers in range(1, recipe.depth + 1):
        if layers != len(recipe.maps[0]):
            maps = _maps_of_depth(recipe, layers)
            yield Variant("layers per student", f"layers-{layers}", _cut(recipe, maps))


def _maps_of_depth(recipe: _Recipe, layers: int) -> list[LayerMap]:
    """Return the maps of the recipe's rule, or others where it has none or they are not valid."""
    rule, students = recipe.config.cohort.layer_map, len(recipe.maps)
    if isinstance(rule, str):
        with suppress(ConfigError):
            return layer_maps(rule, recipe.depth, layers, students)
    return distinct_maps(recipe.depth, layers, students)


def _cut(recipe: _Recipe, maps: list[LayerMap]) -> Tables:
    """Return what makes students of these maps."""
    listed = [list(layer_map) for layer_map in maps]
    cohort = {"students": len(maps), "student_layers": len(maps[0]), "layer_map": listed}
    return {"cohort": cohort, **(recipe.without_peers() if len(maps) == 1 else {})}


def distinct_maps(
    depth: int, layers: int, students: int, first: Iterable[LayerMap] = ()
) -> list[LayerMap]:
    """Return distinct layer maps for students, fewer where there are no more.

    Args:
        depth: layers of the backbone.
        layers: of each student.
        students: number of students.
        first: maps to begin with. Then come the most even one and those that differ from it in one
            layer: those that end higher first, and of these the most even ones.
    """

    def rank(layer_map: LayerMap) -> tuple[int, int, LayerMap]:
        gaps = (b - a for a, b in itertools.pairwise((0, *layer_map)))
        return -layer_map[-1], sum(gap * gap for gap in gaps), layer_map

    even = tuple(-(-i * depth // layers) for i in range(1, layers + 1))
    others = {
        tuple(sorted({*even, put} - {taken}))
        for taken in even
        for put in range(1, depth + 1)
        if put not in even
    }
    return list(dict.fromkeys([*first, even, *sorted(others, key=rank)]))[:students]

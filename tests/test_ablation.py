"""Variants of a recipe, each with one thing changed."""

import dataclasses
import math

import pytest

from nanonet.benchmark.ablation import VIEWS, WARMUP_PEFT, distinct_maps, offline_teacher, variants
from nanonet.core.config import make_config, read_recipe, recipe_names
from nanonet.core.errors import ConfigError
from nanonet.core.strict import merge, parse_set
from nanonet.models.layer_maps import layer_maps
from nanonet.models.peft import PEFT
from nanonet.training.plan import make_plan, with_enough_steps

DEPTH = 6  # layers of MiniLM


def tables_of(recipe: str, *assignments: str) -> dict:
    return merge(read_recipe(recipe), parse_set(assignments))


def names(recipe: str, *assignments: str) -> list[str]:
    return [v.name for v in variants(tables_of(recipe, *assignments), DEPTH)]


def config_of(recipe: str, name: str, *assignments: str):
    made = variants(tables_of(recipe, *assignments), DEPTH)
    overrides = next(v.overrides for v in made if v.name == name)
    return make_config(recipe, merge(parse_set(assignments), overrides))


def test_variants_of_the_method():
    found = names("nanonet")
    assert found[0] == "reference"
    assert len(set(found)) == len(found)
    wanted = [
        *("offline-teacher", "no-teacher", "feedback", "no-mutual", "no-ramp-up"),
        *("no-prediction-distillation", "no-representation-distillation", "no-propagation"),
        "no-token-cutoff",
        *(f"peft-{kind}" for kind in PEFT if kind != "bitfit"),
        *("students-1", "students-3", "students-4"),
        *(f"layers-{n}" for n in (1, 2, 4, 5, 6)),
    ]
    for name in wanted:
        assert name in found, name
    groups = [v.group for v in variants(tables_of("nanonet"), DEPTH)]
    runs = [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g]
    assert len(set(runs)) == len(runs), "a group stands in one piece"


def test_variants_of_supervised_learning():
    """Nobody learns from anybody and nothing reads unlabelled text: little to take away."""
    found = names("supervised")
    assert found == [
        "reference",
        *(f"peft-{kind}" for kind in PEFT if kind != "bitfit"),
        *(f"layers-{n}" for n in (1, 2, 4, 5, 6)),
    ]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize(("depth", "layers"), [(2, 1), (4, 2), (6, 3), (12, 4), (22, 11)])
def test_every_variant_can_be_planned(recipe, depth, layers):
    settings = parse_set(["cohort.layer_map=stride", f"cohort.student_layers={layers}"])
    # Views of single learners name learners that these variants do not have.
    left_out = {"psnet": ["no-teacher"], "disco": ["students-1", f"layers-{depth}"]}.get(recipe, [])
    for variant in variants(merge(read_recipe(recipe), settings), depth):
        config = make_config(recipe, merge(settings, variant.overrides))
        if variant.name in left_out:
            with pytest.raises(ConfigError, match=r"views\.learners\..* names no learner"):
                make_plan(config, has_unlabeled=True)
            continue
        make_plan(config, has_unlabeled=True)
        cohort = config.cohort
        layer_maps(cohort.layer_map, depth, cohort.student_layers, cohort.students)
        if variant.name != "reference":
            assert config != make_config(recipe, settings), variant.name


def test_warm_up_and_views_are_tried_where_there_is_unlabelled_text():
    found = names("nanonet", "warmup.steps=0")
    assert {*(f"warmup-{kind}" for kind in WARMUP_PEFT), "span-cutoff", "shuffle"} <= set(found)
    own, other = WARMUP_PEFT
    on = ["warmup.steps=50", f"warmup.peft={own}"]
    found = names("nanonet", *on)
    assert {"no-warmup", f"warmup-{other}"} <= set(found)
    assert f"warmup-{own}" not in found
    assert config_of("nanonet", f"warmup-{other}", *on).warmup.steps == 50


def test_heads_that_are_fitted_are_left_as_trained():
    assert config_of("nanonet", "no-head-fit").training.head_texts == 0
    assert "no-head-fit" not in names("nanonet", "training.head_texts=0")
    assert "no-head-fit" not in names("supervised")


def test_what_is_off_is_switched_on_and_what_is_on_off():
    on = ["phases.teacher.objectives.feedback.weight=0.2", "views.token_cutoff=0"]
    on += ["phases.students.objectives.mutual.weight=0"]
    found = names("nanonet", *on)
    assert {"no-feedback", "token-cutoff"} <= set(found)
    assert not {"feedback", "no-token-cutoff", "no-mutual", "no-ramp-up"} & set(found)
    with_feedback = config_of("nanonet", "feedback").phases
    assert with_feedback["teacher"].objectives["supervised"]["weight"] == 0.8
    assert with_feedback["teacher"].objectives["feedback"]["weight"] == 0.2
    assert "feedback" not in with_feedback["preparation"].objectives  # nobody to give it yet
    without = config_of("nanonet", "no-feedback", *on).phases["teacher"].objectives
    assert (without["supervised"]["weight"], without["feedback"]["weight"]) == (1, 0)


def test_one_view_is_changed_at_a_time():
    for variant in variants(tables_of("nanonet"), DEPTH):
        if variant.group == "views":
            ((key, value),) = variant.overrides["views"].items()
            assert value == (0 if variant.name.startswith("no-") else VIEWS[key])


def test_views_of_single_students_are_switched_off_too():
    views = {v.name: config_of("disco", v.name).views for v in variants(tables_of("disco"), DEPTH)}
    reference = [views["reference"].of(f"student{k}") for k in (1, 2)]
    assert [(v.adversarial, v.token_cutoff) for v in reference] == [(5, 0), (0, 0.2)]
    for name, view in (("no-adversarial", "adversarial"), ("no-token-cutoff", "token_cutoff")):
        seen = [views[name].of(f"student{k}") for k in (1, 2)]
        assert seen == [dataclasses.replace(v, **{view: 0}) for v in reference]
    assert not {"adversarial", "token-cutoff"} & views.keys()
    assert views["shuffle"].of("student1").shuffle == VIEWS["shuffle"]


def test_without_a_teacher_only_students_learn():
    plan = make_plan(config_of("nanonet", "no-teacher"), has_unlabeled=True)
    assert [p.name for p in plan.phases] == ["students"]
    assert set(plan.phases[0].objectives) == {"supervised", "mutual"}
    assert not plan.needs_soft_labels


def test_the_last_thing_to_learn_from_is_never_taken():
    off = [f"phases.students.objectives.{n}.weight=0" for n in ("supervised", "mutual")]
    off += ["phases.students.objectives.representation_distillation.weight=0"]
    found = names("nanonet", *off)
    assert "no-prediction-distillation" not in found
    assert "no-teacher" not in found
    assert "no-propagation" in found


def test_offline_teacher_steps_as_often_as_before():
    config = make_config("nanonet", {})
    offline = config_of("nanonet", "offline-teacher")
    assert offline.training.steps == 450  # 200 of the teacher, then 250 of the students
    before, after = make_plan(config, True), make_plan(offline, True)
    windows = {p.name: p.window(450) for p in after.phases}
    assert windows["preparation"] == range(50)
    assert windows["teacher"] == range(50, 200)
    assert windows["students"] == range(200, 450)
    for old, new in zip(before.phases, after.phases, strict=True):
        assert len(old.window(300)) == len(new.window(450))
    assert round(offline.propagation.at * 450) == 50
    before, after = (with_enough_steps(c, texts=770, classes=77) for c in (config, offline))
    assert after.training.steps == pytest.approx(1.5 * before.training.steps, abs=1)


@pytest.mark.parametrize("steps", [2, 3, 7, 33, 201, 1000])
@pytest.mark.parametrize("start", [0.1, 0.25, 1 / 3, 0.6])
def test_offline_teacher_at_any_length(steps, start):
    """Shares are rounded to steps as the plan rounds them, whatever the numbers."""
    settings = [f"training.steps={steps}", "phases.teacher.objectives.feedback.weight=0.2"]
    settings += [f"phases.{n}={start}" for n in ("preparation.stop", "teacher.start")]
    settings += [f"phases.students.start={start}", f"propagation.at={start}"]
    settings += ["phases.teacher.stop=1.0"]
    config = make_config("nanonet", parse_set(settings))
    offline = make_config("nanonet", merge(parse_set(settings), offline_teacher(config)))
    total = offline.training.steps
    before, after = make_plan(config, True), make_plan(offline, True)
    of_teacher = range(0)
    for old, new in zip(before.phases, after.phases, strict=True):
        assert len(old.window(steps)) == len(new.window(total))
        assert "feedback" not in new.objectives
        if new.name == "students":
            assert new.window(total).start == of_teacher.stop == steps
            assert new.window(total).stop == total
        else:
            of_teacher = new.window(total)
            assert of_teacher == old.window(steps)


def test_no_offline_teacher_where_there_is_none_to_make():
    done = ["phases.preparation.stop=0.25", "phases.teacher.stop=0.5", "phases.students.start=0.5"]
    assert "offline-teacher" not in names("nanonet", *done)
    assert "offline-teacher" not in names("nanonet", "cohort.students=0")
    assert offline_teacher(make_config("supervised", {})) is None


def test_rates_follow_the_peft_method():
    """Those of the recipe suit another: all are left to the method."""
    for recipe in ("nanonet", "supervised"):
        phases = config_of(recipe, "peft-full").phases
        assert {phase.learning_rate for phase in phases.values()} == {"auto"}


def test_heads_alone_do_not_learn_in_phases_on_representations():
    plan = make_plan(config_of("psnet", "peft-head"), has_unlabeled=True)
    assert [phase.name for phase in plan.phases] == ["supervision", "teacher", "prediction"]


def test_number_of_students():
    one = make_plan(config_of("nanonet", "students-1"), has_unlabeled=True)
    assert [p.learners for p in one.phases if p.name == "students"] == [("student1",)]
    assert "mutual" not in one.phases[-1].objectives
    reference = layer_maps("spread", DEPTH, 3, 2)
    for count in (3, 4):
        cohort = config_of("nanonet", f"students-{count}").cohort
        maps = layer_maps(cohort.layer_map, DEPTH, cohort.student_layers, cohort.students)
        assert maps[:2] == reference
        assert all(len(m) == 3 and m[-1] == DEPTH for m in maps)


def test_layers_per_student():
    for layers in (1, 2, 4, 5):
        cohort = config_of("nanonet", f"layers-{layers}").cohort
        maps = layer_maps(cohort.layer_map, DEPTH, cohort.student_layers, cohort.students)
        assert len(maps) == 2
        assert all(len(m) == layers for m in maps)
        assert maps[0][-1] == DEPTH
    whole = config_of("nanonet", "layers-6")
    assert whole.cohort.layer_map == [[1, 2, 3, 4, 5, 6]]
    assert "mutual" not in make_plan(whole, has_unlabeled=True).phases[-1].objectives


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 22])
def test_distinct_maps(depth):
    for layers in range(1, depth + 1):
        maps = distinct_maps(depth, layers, 4)
        assert maps[0] == tuple(math.ceil(i * depth / layers) for i in range(1, layers + 1))
        assert len(maps) == min(4, math.comb(depth, layers))
        assert layer_maps([list(m) for m in maps], depth, layers, len(maps)) == maps
        keeping = [m for m in maps if m[-1] == depth]
        assert maps[: len(keeping)] == keeping


@pytest.mark.parametrize("recipe", recipe_names())
def test_of_any_recipe_no_two_variants_are_the_same(recipe):
    made = variants(read_recipe(recipe), DEPTH)
    configs = [make_config(recipe, variant.overrides) for variant in made]
    assert len({variant.name for variant in made}) == len(made)
    for i, config in enumerate(configs):
        assert config not in configs[:i], made[i].name


def test_layer_maps_that_do_not_fit_the_backbone():
    with pytest.raises(ConfigError, match="the backbone has 2 layers"):
        variants(tables_of("nanonet"), 2)

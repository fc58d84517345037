import dataclasses
import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest

from nanonet.core.config import Config, make_config, read_recipe, recipe_names
from nanonet.core.errors import ConfigError
from nanonet.core.registry import Registry, did_you_mean
from nanonet.core.strict import build, merge, parse_set, setting, to_dict


@dataclass(frozen=True)
class Inner:
    rate: float = setting(0.5, 0.0, 1.0)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    size: int
    inner: Inner = field(default_factory=Inner)
    names: list[str] = field(default_factory=list)
    tables: dict[str, Inner] = field(default_factory=dict)
    either: str | list[list[int]] = "x"
    flag: bool = False


def refuse(values: dict, *expected: str, cls: type = Outer) -> None:
    with pytest.raises(ConfigError) as error:
        build(cls, values)
    message = str(error.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_build_nested():
    made = build(
        Outer,
        {
            "size": 3,
            "inner": {"rate": 1, "kind": "b"},
            "names": ["n"],
            "tables": {"t": {"rate": 0.25}},
            "either": [[1, 2], [3]],
            "flag": True,
        },
    )
    assert made == Outer(3, Inner(1.0, "b"), ["n"], {"t": Inner(0.25)}, [[1, 2], [3]], True)
    assert type(made.inner.rate) is float
    assert build(Outer, {"size": 1, "either": "spread"}).either == "spread"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 1, "sise": 2}, ["unknown key 'sise' (did you mean 'size'?)", "known: size,"]),
        ({"size": 1, "inner": {"rat": 1}}, ["unknown key 'inner.rat' (did you mean 'rate'?)"]),
        ({"size": 1, "tables": {"t": {"x": 1}}}, ["unknown key 'tables.t.x'"]),
        ({}, ["key 'size' is missing"]),
        ({"size": 1.5}, ["key 'size' must be int, not 1.5"]),
        ({"size": True}, ["key 'size' must be int, not True"]),
        ({"size": "1"}, ["key 'size' must be int, not '1'"]),
        ({"size": 1, "flag": 1}, ["key 'flag' must be bool, not 1"]),
        ({"size": 1, "inner": 3}, ["key 'inner' must be a table, not 3"]),
        ({"size": 1, "tables": 3}, ["key 'tables' must be a table, not 3"]),
        ({"size": 1, "tables": {"t": 3}}, ["key 'tables.t' must be a table, not 3"]),
        ({"size": 1, "names": "n"}, ["key 'names' must be a list, not 'n'"]),
        ({"size": 1, "names": ["n", 2]}, ["key 'names[1]' must be str, not 2"]),
        ({"size": 1, "either": 3}, ["key 'either' must be str or list", "not 3"]),
        ({"size": 1, "either": [[1], ["x"]]}, ["key 'either'"]),
        ({"size": 1, "inner": {"rate": -0.1}}, ["'inner.rate' is -0.1, but must be at least 0"]),
        ({"size": 1, "inner": {"rate": 2}}, ["'inner.rate' is 2.0, but must be at most 1"]),
        ({"size": 1, "inner": {"rate": float("nan")}}, ["'inner.rate' is nan", "finite"]),
        ({"size": 1, "inner": {"rate": float("inf")}}, ["'inner.rate' is inf", "finite"]),
        ({"size": 1, "inner": {"rate": True}}, ["'inner.rate' must be float, not True"]),
        ({"size": 1, "inner": {"kind": "c"}}, ["'inner.kind' is 'c'", "one of 'a', 'b'"]),
        ({"size": 1, "inner": {"kind": ["a"]}}, ["'inner.kind' is ['a']"]),
    ],
)
def test_refused_values(values, expected):
    refuse(values, *expected)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed=-1", "'seed' is -1, but must be at least 0"),
        ("training.steps=0", "'training.steps' is 0, but must be at least 1"),
        ("views.dropout=0.95", "must be at most 0.9"),
        ("training.precision=fp16", "one of 'auto', 'fp32', 'bf16'"),
        ("data.max_length=3", "must be at least 4"),
        ("head.scale=0", "must be at least 0.01"),
        ("head.scale=inf", "finite"),
        ("phases.students.learning_rate=nan", "'phases.students.learning_rate' is nan"),
        ("cohort.layer_map=[1,2]", "key 'cohort.layer_map' must be"),
        ("trainig.steps=1", "unknown key 'trainig' (did you mean 'training'?)"),
        ("training.step=1", "unknown key 'training.step' (did you mean 'steps'?)"),
        ("phases=3", "key 'phases' must be a table, not 3"),
        ("phases.extra=3", "key 'phases.extra' must be a table, not 3"),
        ("phases.extra=learners", "key 'phases.extra' must be a table"),
        ("phases.student.warmup=0.1", "unknown phase 'phases.student' (did you mean 'students'?)"),
        ("phases.teacher.start=1.1", "'phases.teacher.start' is 1.1, but must be at most 1"),
        ("phases.teacher.stop=-1", "'phases.teacher.stop' is -1.0, but must be at least 0"),
        ("propagation.at=2", "'propagation.at' is 2.0, but must be at most 1"),
        ("propagation.alpha=1", "'propagation.alpha' is 1.0, but must be at most 0.999"),
        ("propagation.neighbours=0", "'propagation.neighbours' is 0, but must be at least 1"),
        ("propagation.neighbors=3", "'propagation.neighbors' (did you mean 'neighbours'?)"),
        ("phases.students=3", "key 'phases.students' must be a table"),
        ("recipe=supervised", "recipe 'nanonet' is used"),
    ],
)
def test_refused_settings(assignment, expected):
    with pytest.raises(ConfigError) as error:
        make_config("nanonet", parse_set([assignment]))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_merge_lays_tables_on_tables_and_leaves_the_originals():
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    over = {"a": {"c": {"f": 4}}, "e": {"g": 5}}
    assert merge(base, over) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("1e-2", 0.01),
        ("true", True),
        ("[[1, 3], [2]]", [[1, 3], [2]]),
        ("'quoted'", "quoted"),
        ("plain", "plain"),
        ("a=b", "a=b"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
        ("/some/folder", "/some/folder"),
    ],
)
def test_values_of_set(text, value):
    assert parse_set([f"a.b={text}"]) == {"a": {"b": value}}


def test_several_settings_and_the_last_one_wins():
    found = parse_set(["a.b=1", "a.c=2", "a.b=3", " d = 4"])
    assert found == {"a": {"b": 3, "c": 2}, "d": 4}
    assert parse_set([]) == {}


@pytest.mark.parametrize("assignment", ["training.steps", "=1", "a..b=1", ".a=1", "a.=1", ""])
def test_settings_without_key_or_value(assignment):
    with pytest.raises(ConfigError, match="write it as key=value"):
        parse_set([assignment])


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_builds_and_survives_toml(recipe):
    tomli_w = pytest.importorskip("tomli_w")
    config = make_config(recipe, {"seed": 3, "cohort": {"layer_map": [[1, 2], [2, 3]]}})
    assert config.recipe == recipe
    assert config.seed == 3
    assert config.phases
    again = build(Config, tomllib.loads(tomli_w.dumps(to_dict(config))))
    assert again == config


def test_defaults_are_within_their_own_ranges():
    def check(cls: type) -> None:
        for spec in dataclasses.fields(cls):
            value = spec.default
            if value is dataclasses.MISSING:
                value = spec.default_factory()
            if dataclasses.is_dataclass(value):
                check(type(value))
            low, high = spec.metadata.get("minimum"), spec.metadata.get("maximum")
            assert low is None or value >= low
            assert high is None or value <= high

    check(Config)
    assert build(Config, {}) == Config()


def test_recipe_files(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[phases.one]\nlearners = "all"\n[phases.one.objectives.supervised]\n')
    config = make_config(str(path), {"phases": {"two": {"learners": "teacher"}}})
    assert config.recipe == str(path)
    assert [p.learners for p in config.phases.values()] == ["all", "teacher"]

    path.write_text("[phases")
    with pytest.raises(ConfigError, match="not valid TOML"):
        make_config(str(path), {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_config(str(path), {})
    with pytest.raises(ConfigError, match="does not exist"):
        read_recipe(str(tmp_path / "no.toml"))
    with pytest.raises(ConfigError, match=r"unknown recipe 'nanone' \(did you mean 'nanonet'\?\)"):
        make_config("nanone", {})


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


def test_registry():
    things: Registry[int] = Registry("thing")
    assert things.register("one")(1) == 1
    things.register("alpha")(2)
    assert list(things) == ["alpha", "one"]
    assert "one" in things
    assert "two" not in things
    assert things.get("alpha") == 2
    with pytest.raises(
        ConfigError, match=r"unknown thing 'on' \(did you mean 'one'\?\).*alpha, one"
    ):
        things.get("on")
    with pytest.raises(ValueError, match="'one' is registered twice"):
        things.register("one")(3)
    assert did_you_mean("zzz", ["one"]) == ""


@pytest.mark.parametrize("value", ["fast", "true", "[1]"])
def test_a_rate_is_a_number_or_auto(value):
    with pytest.raises(ConfigError) as error:
        make_config("nanonet", parse_set([f"phases.students.learning_rate={value}"]))
    assert "phases.students.learning_rate" in str(error.value)
    assert "float or 'auto'" in str(error.value)


def test_a_rate_has_a_range_where_it_is_a_number():
    with pytest.raises(ConfigError, match=r"learning_rate' is -1\.0, but must be at least 0"):
        make_config("nanonet", parse_set(["phases.students.learning_rate=-1"]))

import pytest

from nanonet.core.errors import ConfigError
from nanonet.models.layer_maps import LAYER_MAPS, layer_maps


@pytest.mark.parametrize(
    ("kind", "students", "expected"),
    [
        ("spread", 3, [(3, 6, 9, 12), (2, 5, 8, 12), (1, 4, 7, 12)]),
        ("stride", 3, [(3, 6, 9, 12), (2, 5, 8, 11), (1, 4, 7, 10)]),
        ("block", 2, [(1, 2, 3, 4), (9, 10, 11, 12)]),
        ("block", 3, [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)]),
        ("block", 1, [(9, 10, 11, 12)]),
        ("block_front", 3, [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)]),
        ("block_front", 2, [(1, 2, 3, 4), (5, 6, 7, 8)]),
    ],
)
def test_maps_of_the_predecessors(kind, students, expected):
    assert layer_maps(kind, depth=12, layers=4, students=students) == expected


@pytest.mark.parametrize(
    ("kind", "depth", "layers", "students", "expected"),
    [
        ("spread", 6, 3, 2, [(2, 4, 6), (1, 3, 6)]),
        ("spread", 22, 6, 2, [(3, 7, 11, 14, 18, 22), (2, 6, 10, 13, 17, 22)]),
        ("spread", 7, 3, 2, [(2, 4, 7), (1, 3, 7)]),
        ("stride", 7, 3, 2, [(2, 4, 7), (1, 3, 6)]),
        ("block", 7, 3, 2, [(1, 2, 3), (5, 6, 7)]),
        ("spread", 5, 5, 1, [(1, 2, 3, 4, 5)]),
        ("spread", 4, 1, 1, [(4,)]),
    ],
)
def test_rounding_where_depth_is_no_multiple(kind, depth, layers, students, expected):
    assert layer_maps(kind, depth, layers, students) == expected


def test_explicit_maps():
    assert layer_maps([[1, 3, 6], [2, 4]], 6, 3, 2) == [(1, 3, 6), (2, 4)]


@pytest.mark.parametrize(
    ("kind", "layers", "students", "expected"),
    [
        ([[1, 2]], 2, 2, "lists 1 students, but cohort.students is 2: list the layers of each"),
        ([[0, 2]], 2, 1, r"student 1 is \[0, 2\]"),
        ([[1, 2], [2, 7]], 2, 2, r"student 2 is \[2, 7\]"),
        ([[2, 2]], 2, 1, "must increase"),
        ([[3, 1]], 2, 1, "must increase"),
        ([[]], 2, 1, "must increase"),
        ([[1, 2], [1, 2]], 2, 2, "only 1 distinct views"),
        ("spread", 7, 1, "student_layers is 7, but the backbone has 6 layers: take fewer"),
        ("spread", 3, 3, r"student 3 is \[0, 2, 6\].*fewer students"),
        ("spread", 1, 2, "only 1 distinct views"),
        ("block_front", 3, 3, r"student 3 is \[7, 8, 9\]"),
        ("block", 4, 3, "distinct|must increase"),
        ("sprad", 3, 2, "unknown layer map 'sprad' .did you mean 'spread'"),
    ],
)
def test_maps_that_do_not_fit(kind, layers, students, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        layer_maps(kind, depth=6, layers=layers, students=students)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", list(LAYER_MAPS))
def test_every_rule_gives_valid_maps_or_refuses(kind):
    for depth in range(1, 13):
        for layers in range(1, depth + 1):
            for students in range(1, 5):
                try:
                    maps = layer_maps(kind, depth, layers, students)
                except ConfigError:
                    # One student always has a map; so have those with a block or a shift each.
                    assert students > 1
                    assert layers * students > depth or (kind == "spread" and layers == 1)
                    continue
                assert len(set(maps)) == students
                for layer_map in maps:
                    assert len(layer_map) == layers
                    assert list(layer_map) == sorted(set(layer_map))
                    assert 1 <= layer_map[0] <= layer_map[-1] <= depth

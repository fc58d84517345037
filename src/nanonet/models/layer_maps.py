"""Layer maps: which teacher layers each student is made of (its *model view*).

Sources: PS-NET (arXiv 2412.00883) and DisCo (arXiv 2305.12074), their published code. Layers
are counted from 1; 0 is the embedding output. ``L`` is the teacher's depth, ``l`` the student's.

Where L is not a multiple of l (the predecessors assert that it is), the i-th of the l layers is
the one at ``floor(i * L / l)``, which is what the formulas below give when L is a multiple. Blocks
that count from the back end at L, also where L is no multiple.
"""

import itertools
from collections.abc import Callable

from nanonet.core.errors import ConfigError
from nanonet.core.registry import Registry

LayerMap = tuple[int, ...]

# (teacher layers, student layers, index of the student, number of students) -> layers
LAYER_MAPS: Registry[Callable[[int, int, int, int], LayerMap]] = Registry("layer map")


@LAYER_MAPS.register("spread")
def spread(depth: int, layers: int, student: int, students: int) -> LayerMap:
    """Every (L/l)-th layer, shifted down by the student's index; the last layer stays L."""
    return (*(i * depth // layers - student for i in range(1, layers)), depth)


@LAYER_MAPS.register("stride")
def stride(depth: int, layers: int, student: int, students: int) -> LayerMap:
    """Every (L/l)-th layer, all of them shifted down by the student's index."""
    return tuple(i * depth // layers - student for i in range(1, layers + 1))


@LAYER_MAPS.register("block")
def block(depth: int, layers: int, student: int, students: int) -> LayerMap:
    """Contiguous blocks; the first K//2 students count from the front, others from the back.

    This is PS-NET's rule.
    """
    if student < students // 2:
        return _block_at(student * layers, layers)
    return _block_at(depth - (students - student) * layers, layers)


@LAYER_MAPS.register("block_front")
def block_front(depth: int, layers: int, student: int, students: int) -> LayerMap:
    """Contiguous blocks counted from the front (DisCo)."""
    return _block_at(student * layers, layers)


def _block_at(start: int, layers: int) -> LayerMap:
    return tuple(range(start + 1, start + layers + 1))


def layer_maps(
    kind: str | list[list[int]], depth: int, layers: int, students: int
) -> list[LayerMap]:
    """Return one map per student, checked.

    Args:
        kind: a registered name, or an explicit list of layers for each student.
        depth: teacher layers L.
        layers: student layers l.
        students: number of students K.

    Raises:
        ConfigError: out of range, not increasing, or fewer distinct views than students.
    """
    if not isinstance(kind, str):
        if len(kind) != students:
            raise ConfigError(
                f"cohort.layer_map lists {len(kind)} students, but cohort.students is {students}:"
                " list the layers of each, or change cohort.students"
            )
        maps = [tuple(m) for m in kind]
    else:
        if layers > depth:
            raise ConfigError(
                f"cohort.student_layers is {layers}, but the backbone has {depth} layers: take"
                " fewer, or a deeper backbone"
            )
        rule = LAYER_MAPS.get(kind)
        maps = [rule(depth, layers, k, students) for k in range(students)]
    named = isinstance(kind, str)
    origin, advice = (f" '{kind}'", ", or list the maps in cohort.layer_map") if named else ("", "")
    for k, layer_map in enumerate(maps):
        increasing = all(a < b for a, b in itertools.pairwise(layer_map))
        if not layer_map or not increasing or layer_map[0] < 1 or layer_map[-1] > depth:
            raise ConfigError(
                f"layer map{origin} of student {k + 1} is {list(layer_map)}: layers must increase"
                f" from 1 to {depth}; take fewer students or layers (cohort.students,"
                f" cohort.student_layers){advice}"
            )
    if len(set(maps)) < len(maps):
        raise ConfigError(
            f"cohort.layer_map gives {students} students only {len(set(maps))} distinct views"
            f" ({[list(m) for m in maps]}): take fewer students, or list the maps yourself"
        )
    return maps

"""The table and the chart of a benchmark, from made-up results."""

import copy
import io
import math
import statistics

import pytest
from rich.console import Console

from nanonet.benchmark import stats
from nanonet.benchmark.chart import draw_chart
from nanonet.benchmark.run import make_rows
from nanonet.benchmark.table import markdown, show

PNG = b"\x89PNG\r\n\x1a\n"


def cell(method: str, draw: int, seed: int, shipped: float, **learners: float) -> dict:
    """Return the part of a result that the table reads; student1 is shipped."""
    learners = {"teacher": 0.8, "student1": shipped, **learners}
    return {
        "method": method,
        "dataset": "d",
        "draw": draw,
        "seed": seed,
        "accuracy": shipped,
        "macro_f1": shipped - 0.1,
        "learners": learners,
        "teacher": "teacher",
        "selected": "student1",
        "training_seconds": 10.0,
        "memory": {"peak_mb": 500.0, "above_loaded_mb": 100.0},
        "trainable_parameters": dict.fromkeys(learners, 5),
        "total_parameters": dict.fromkeys(learners, 1000),
        "stored_bytes": dict.fromkeys(learners, 20_000),
        "labels_used_to_choose": 0,
        "hardware": {"device": "cpu", "precision": "bf16", "threads": 1, "processor": "P"},
        "versions": {"nanonet": "0"},
        "date": "2026-01-01T00:00:00",
    }


def made_up_results() -> dict:
    cells = [
        cell("a", 0, 0, 0.70, student2=0.60),
        cell("a", 0, 1, 0.74, student2=0.64),
        cell("a", 1, 0, 0.60, student2=0.66),
        cell("a", 1, 1, 0.64, student2=0.68),
        cell("b", 0, 0, 0.71),
        cell("b", 1, 0, 0.64),
    ]
    about = {"labeled_per_class": 1, "classes": 2, "train": "t", "train_rows": 9, "exclude": None}
    return {
        "suite": "s.toml",
        "ablated_recipe": None,
        "reference": "a",
        "run": {"draws": 2, "seeds": 2},
        "datasets": {"d": {**about, "test": "e", "test_rows": 4}},
        "methods": [{"name": n, "group": ""} for n in ("a", "b", "c")],
        "cells": cells,
    }


def test_figures_of_the_table():
    a, b = make_rows(made_up_results())["d"]
    assert a.accuracy == stats.Spread(
        4, pytest.approx(0.67), pytest.approx(statistics.stdev([0.7, 0.74, 0.6, 0.64])), 0.6
    )
    assert (a.teacher, a.gap) == (pytest.approx(0.8), pytest.approx(0.13))
    assert a.best_student == pytest.approx((0.70 + 0.74 + 0.66 + 0.68) / 4)
    assert a.mean_student == pytest.approx((0.65 + 0.69 + 0.63 + 0.66) / 4)
    assert (a.difference, a.difference_interval) == (None, None)
    assert (a.macro_f1, a.ece) == (pytest.approx(0.57), None)
    assert (a.trainable_share, a.stored_kb) == (0.005, 20.0)
    # b stands beside a in the pairs (0, 0) and (1, 0)
    assert b.difference == pytest.approx((0.01 + 0.04) / 2)
    half = 6.3138 * 0.03 / math.sqrt(2) / math.sqrt(2)  # 95% of t with one degree of freedom
    assert b.difference_interval == pytest.approx((0.025 - half, 0.025 + half), rel=1e-4)
    assert b.mean_student == pytest.approx((0.71 + 0.64) / 2)


def test_spread_over_draws_and_over_seeds_are_told_apart():
    a, b = make_rows(made_up_results())["d"]
    assert a.over_draws == pytest.approx(statistics.stdev([0.72, 0.62]))
    assert a.over_seeds == pytest.approx(0.04 / math.sqrt(2))  # of two figures 0.04 apart
    assert b.over_seeds is None
    assert b.over_draws == pytest.approx(0.07 / math.sqrt(2))
    singles = [0.7, 0.74, 0.6, 0.64, 0.6, 0.64, 0.66, 0.68]
    assert a.students.n == 8
    assert a.students.mean == pytest.approx(statistics.mean(singles))
    assert a.students.std == pytest.approx(statistics.stdev(singles))
    assert a.students.worst == 0.6
    variances = [0.04**2 / 2, 0.04**2 / 2, 0.04**2 / 2, 0.02**2 / 2]
    assert a.students_over_seeds == pytest.approx(math.sqrt(statistics.mean(variances)))


def test_the_table_in_markdown():
    results = made_up_results()
    text = markdown(results, make_rows(results))
    assert (
        "| a | 0.670 ± 0.062 | 0.600 | 0.570 |  | 0.800 | 0.695 / 0.657 | +0.130 |  | 10 |"
        " 500 (100) | 0.50% | 20 |" in text
    )
    assert "| b | 0.675 ± 0.049 | 0.640 |" in text
    assert "| +0.025 (-0.070 to +0.120) |" in text
    assert "guard" not in text
    results["cells"][0] |= {"guard": {"alarms": [{}]}, "ece": 0.05, "ece_uncalibrated": 0.06}
    results["cells"][4] |= {"guard": {"alarms": []}, "selected": "teacher"}
    text = markdown(results, make_rows(results))
    assert "| 0.050 (0.060) |" in text
    assert "- The guard raised alarms in 1 of 2 cells; the teacher was shipped instead of" in text
    assert "in 1 of 6." in text
    assert "- Incomplete on d, cells of 4: b 2.\n- Without any cell on d: c.\n" in text
    assert "ingredient" not in text
    for method in results["methods"]:
        method["group"] = "teacher" if method["name"] == "b" else "reference"
    text = markdown(results, make_rows(results))
    assert "| ingredient | method |" in text
    assert "| teacher | b |" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_leaves_columns_out(width):
    results = made_up_results()
    out = io.StringIO()
    rows = make_rows(results)
    show(results, rows, Console(file=out, width=width, color_system=None))
    lines = [line for line in out.getvalue().splitlines() if line[:1] in "┃│"]
    assert all(len(line) <= width for line in lines)
    assert "…" not in out.getvalue()
    assert "to reference" in lines[0]
    assert "0.675 ± 0.049" in out.getvalue()
    assert ("stored kB" in lines[0]) == (width == 200)


def test_a_warm_up_from_the_cache_is_told():
    results = made_up_results()
    assert "warm-ups" not in markdown(results, make_rows(results))
    results["cells"][1]["warmup"] = {"cached": True}
    assert "leaves out warm-ups" in markdown(results, make_rows(results))


def test_a_method_without_students_has_no_figures_of_them():
    results = made_up_results()
    alone = copy.deepcopy(results["cells"][:1])
    alone[0].update(learners={"teacher": 0.7}, selected="teacher")
    row = make_rows({**results, "cells": alone})["d"][0]
    assert (row.students, row.best_student, row.accuracy.std) == (None, None, None)
    assert "| a | 0.700 | 0.700 | 0.800 |" not in markdown(
        {**results, "cells": alone}, {"d": [row]}
    )


def test_the_chart_of_many_methods(tmp_path):
    results = made_up_results()
    results["methods"] = [{"name": f"method-{i}", "group": str(i // 3)} for i in range(30)]
    results["reference"] = "method-0"
    results["cells"] = [
        cell(f"method-{i}", draw, 0, 0.6 + 0.01 * i + 0.02 * draw)
        for i in range(30)
        for draw in (0, 1)
    ]
    rows = make_rows(results)
    draw_chart(tmp_path / "c.png", "title", rows, results["cells"], "method-0")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)

"""The chart: a panel per data set, a line per method, every cell a dot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanonet.benchmark.stats import Result, Row
from nanonet.core.files import new_file

PANELS_PER_LINE = 3
INCHES_PER_METHOD = 0.27
COLORS = ("#1f6fb4", "#c4581b")  # of groups in turn


def draw_chart(
    picture: Path,
    heading: str,
    rows: Mapping[str, Sequence[Row]],
    cells: Sequence[Result],
    reference: str,
) -> None:
    """Draw the shipped accuracies: mean, standard deviation and every single cell.

    Args:
        picture: the PNG file to write.
        heading: over all panels.
        rows: of each data set.
        cells: all results; each is a small dot.
        reference: the method whose mean is drawn as a line from top to bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row.method for some in rows.values() for row in some))
    across = min(PANELS_PER_LINE, len(rows))
    down = -(-len(rows) // across)
    names = 0.075 * max(len(method) for method in methods)  # inches that the names take
    size = (names + 1.0 + 4.6 * across, 1.3 + (0.7 + INCHES_PER_METHOD * len(methods)) * down)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading)
    panels: Any = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for panel in panels[len(rows) :]:
        panel.set_visible(False)
    for panel, (dataset, some) in zip(panels, rows.items(), strict=False):
        panel.set_title(dataset, fontsize=11)
        _draw_panel(panel, some, methods, [c for c in cells if c["dataset"] == dataset])
        _draw_reference(panel, [row for row in some if row.method == reference])
    with new_file(picture) as temporary:
        figure.savefig(temporary, format="png")


def _draw_panel(
    panel: Any, rows: Sequence[Row], methods: Sequence[str], cells: Sequence[Result]
) -> None:
    groups = list(dict.fromkeys(row.group for row in rows))
    for row in rows:
        line = methods.index(row.method)
        color = COLORS[groups.index(row.group) % len(COLORS)]
        values = [c["accuracy"] for c in cells if c["method"] == row.method]
        panel.scatter(values, [line] * len(values), s=9, color=color, alpha=0.45, zorder=2)
        panel.errorbar(
            row.accuracy.mean,
            line,
            xerr=row.accuracy.std,
            fmt="o",
            markersize=5.5,
            color=color,
            elinewidth=1.6,
            capsize=3,
            zorder=3,
        )
    panel.set_yticks(range(len(methods)), methods)
    panel.set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
    panel.set_xlabel("accuracy of the shipped learner")
    panel.grid(axis="x", alpha=0.25)
    before = rows[0].group
    for row in rows:
        if row.group != before:
            panel.axhline(methods.index(row.method) - 0.5, color="0.85", linewidth=0.8, zorder=0)
        before = row.group


def _draw_reference(panel: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        panel.axvline(row.accuracy.mean, color="0.6", linewidth=1, linestyle="--", zorder=1)

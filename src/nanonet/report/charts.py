"""Learning curves as SVG for a page: colours and fonts are the page's, nothing is loaded."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from nanonet.report.run import ALL_LEARNERS, KINDS, Point

# Stand-ins, replaced by variables of the page's style sheet, which know light and dark.
COLORS = {f"#0000f{i}": f"var(--line{i})" for i in range(1, 7)}
INK = {"#0000e1": "var(--soft)", "#0000e2": "var(--rule)"}
STYLE = {
    "axes.edgecolor": "#0000e1",
    "axes.labelcolor": "#0000e1",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.0,
    "grid.color": "#0000e2",
    "legend.labelcolor": "#0000e1",
    "svg.fonttype": "none",
    "svg.hashsalt": "nanonet",  # the same run gives the same bytes
    "text.parse_math": False,
    "xtick.color": "#0000e1",
    "ytick.color": "#0000e1",
}
DASHES = ("-", "--", ":", "-.")  # learners can be told apart in print
SIZE = (4.4, 2.7)  # inches
WIDE = 50.0  # from this ratio of largest to smallest on, the axis is logarithmic
FEW = 5  # points that are marked one by one
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
TITLES = {"warmup": "warm-up, "}


@dataclass(frozen=True)
class Chart:
    """A figure along the steps.

    Attributes:
        title: what is drawn.
        svg: an ``svg`` element with title and description.
    """

    title: str
    svg: Markup


@dataclass(frozen=True)
class _Curves:
    title: str
    lines: dict[str, list[tuple[int, float]]]  # by learner: steps and values


def draw_charts(points: Sequence[Point]) -> list[Chart]:
    """Return a chart for each figure that was logged, a line per learner."""
    curves: dict[str, _Curves] = {}
    for point in sorted(points, key=lambda p: KINDS.index(p.kind)):  # keeps the order of steps
        for figure, values in point.values.items():
            title = TITLES.get(point.kind, "") + figure
            title += f" on {point.source}" if point.source else ""
            own = curves.setdefault(title, _Curves(title, {}))
            for learner, value in values.items():
                own.lines.setdefault(learner, []).append((point.step, value))
    names = dict.fromkeys(n for own in curves.values() for n in own.lines)
    names.pop(ALL_LEARNERS, None)
    order = {name: i for i, name in enumerate(names)}  # a learner looks the same everywhere
    # What was logged at every step comes last: it says least.
    last = ("learning rate", "tokens")
    ordered = sorted(curves.values(), key=lambda own: own.title.startswith(last))
    return [
        Chart(own.title, _svg(own, order, f"chart{number}"))
        for number, own in enumerate(ordered, 1)
    ]


def _svg(curves: _Curves, order: dict[str, int], name: str) -> Markup:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure.add_subplot(), curves, order)
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    body = svg[svg.index("<g id=") :]
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None
    for stand_in, variable in (COLORS | INK).items():
        body = body.replace(stand_in, variable)
    body = re.sub(r"font(-family)?: (\d+px )?[^;\"]*sans-serif", r"font-family: inherit", body)
    # Names must be unique on the page.
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    return Markup(
        f'<svg viewBox="{view.group(1)}" role="img" aria-labelledby="{name}-t {name}-d"'
        ' xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-t">{escape(curves.title)}</title>'
        f'<desc id="{name}-d">{escape(_in_words(curves))}</desc>{body}'
    )


def _draw(axes: Any, curves: _Curves, order: dict[str, int]) -> None:
    colors = list(COLORS)
    for learner, points in curves.lines.items():
        place = order.get(learner, 0)
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            DASHES[place % len(DASHES)],
            marker="o" if len(points) <= FEW else None,
            markersize=3.5,
            linewidth=1.6,
            color=colors[place % len(colors)],
            label=learner,
        )
    values = [value for points in curves.lines.values() for _, value in points]
    if min(values) > 0 and max(values) / min(values) >= WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=1.0, linewidth=0.6)
    if ALL_LEARNERS not in curves.lines:
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, columnspacing=1.2)


def _in_words(curves: _Curves) -> str:
    """Return first and last value of each line."""
    parts = []
    for learner, points in curves.lines.items():
        (start, first), (end, last) = points[0], points[-1]
        parts.append(f"{learner}: {first:.4g} at step {start}, {last:.4g} at step {end}")
    return "; ".join(parts) + "."

"""The tables: in Markdown for a file, with rich for a terminal, with what they rest on below."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nanonet.benchmark.stats import Row, Spread

Results = Mapping[str, Any]

COLUMNS = (
    "method",
    "accuracy",
    "worst",
    "macro-F1",
    "ECE",
    "teacher",
    "students: best / mean",
    "gap",
    "to reference",
    "training s",
    "peak MB",
    "trained",
    "stored kB",
    "MB",
    "texts/s",
)
# Left out in this order where a terminal is too narrow; the file has them all.
FIRST_TO_GO = (
    *(
        "stored kB",
        "trained",
        "MB",
        "texts/s",
        "peak MB",
        "gap",
        "ECE",
        "students: best / mean",
        "students",
        "ingredient",
    ),
    *("mean", "teacher", "training s", "macro-F1", "std over seeds", "worst"),
    *("shipped: std over seeds", "shipped: std over draws"),
)
SPREAD_COLUMNS = (
    "method",
    "students",
    "mean",
    "std",
    "worst",
    "std over seeds",
    "shipped: std over draws",
    "shipped: std over seeds",
)
ABOUT = """\
accuracy: of the shipped learner on all test rows, mean ± standard deviation over all cells (draws
times seeds); worst: its lowest cell; macro-F1: of the same; ECE: expected calibration error of its
probabilities, in brackets before calibration; students: mean over the cells of the best student (a
choice that looks at test labels) / of all students; gap: teacher less shipped learner; to
reference: mean difference in accuracy from `{reference}` in the same draw and seed, in brackets the
90% interval of this mean over draws (Student's t); peak MB: most
resident memory of the cell's process until training ended, in brackets what training took on top of
the loaded models; trained: share of the shipped learner's parameters; stored kB: its trained
tensors; MB: the whole model in 32 bits; texts/s: that it classifies, a bundle with ONNX Runtime, a
peer as its library does."""
ABOUT_SPREAD = """\
students: how many single students of all cells; mean, std, worst: over their accuracies; std over
seeds: each student against itself with other seeds on the same draw; std over draws: of the draws'
means."""


def markdown(results: Results, rows: Mapping[str, Sequence[Row]]) -> str:
    """Return all tables as Markdown.

    Args:
        results: what ``results.json`` holds.
        rows: of each data set.
    """
    parts = [f"# {title(results)}", ""]
    for dataset, some in rows.items():
        parts += [f"## {dataset}", "", *_markdown_table(*_main(some)), ""]
        parts += ["Single students and spread:", "", *_markdown_table(*_spreads(some)), ""]
    about = ABOUT.format(reference=results["reference"])
    parts += [_paragraph(about), "", _paragraph(ABOUT_SPREAD), ""]
    parts += [f"- {note}" for note in notes(results)]
    return "\n".join(parts) + "\n"


def show(results: Results, rows: Mapping[str, Sequence[Row]], console: Console) -> None:
    """Print all tables."""
    for dataset, some in rows.items():
        groups = [row.group for row in some]
        for heading, cells in (
            (dataset, _main(some)),
            ("Single students and spread", _spreads(some)),
        ):
            console.print(_rich_table(heading, groups, *_fitting(*cells, console.width)))
    for note in notes(results):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def title(results: Results) -> str:
    """Return the headline of table and chart."""
    if results["ablated_recipe"]:
        return f"Ablation of the recipe {results['ablated_recipe']}"
    return f"Benchmark {results['suite']}"


def notes(results: Results) -> list[str]:
    """Return what the figures rest on: data, draws, seeds, hardware, versions, dates."""
    cells, run = results["cells"], results["run"]
    lines = [about_data(name, about) for name, about in results["datasets"].items()]
    lines.append(
        f"Draws: {_range(run['draws'])}; training seeds: {_range(run['seeds'])}; cells per method"
        f" and data set: {run['draws'] * run['seeds']}."
    )
    lines += _incomplete(results)
    used = sorted({c["labels_used_to_choose"] for c in cells})
    lines.append(f"Labels used to choose the shipped learner: {_listed(used)}.")
    lines += _guarded(cells)
    if any((c.get("warmup") or {}).get("cached") for c in cells):
        lines.append("Training s leaves out warm-ups that an earlier cell had made already.")
    lines.append(f"Hardware: {_listed(sorted({_hardware(c['hardware']) for c in cells}))}.")
    versions: dict[str, set[str]] = {}
    for cell in cells:
        for package, version in cell["versions"].items():
            versions.setdefault(package, set()).add(version)
    found = (f"{package} {' and '.join(sorted(some))}" for package, some in versions.items())
    lines.append(f"Versions: {', '.join(found)}.")
    dates = sorted(c["date"][:10] for c in cells)
    lines.append(f"Date: {dates[0]}{f' to {dates[-1]}' if dates[-1] != dates[0] else ''}.")
    return lines


def about_data(name: str, about: Mapping[str, Any]) -> str:
    """Return what a reader should know of a data set, from `Dataset.describe`."""
    kept_out = f", none of {about['exclude']}" if about["exclude"] else ""
    return (
        f"Data {name}: {about['labeled_per_class']} labels for each of {about['classes']} classes,"
        f" drawn from {about['train']} ({about['train_rows']:,} rows{kept_out}); the rest without"
        f" labels; scored on {about['test_rows']:,} rows of {about['test']}.{_hardships(about)}"
    )


def _hardships(about: Mapping[str, Any]) -> str:
    """Return what makes a data set hard."""
    told = []
    if "imbalance" in about:
        told.append(f"the first class {about['imbalance']:g} times as common as the last")
    if "wrong_labels" in about:
        told.append(f"{about['wrong_labels']:.0%} of the labels wrong")
    if "foreign" in about:
        share = f"{about['foreign_share']:.0%}"
        told.append(f"{share} of the texts without labels from {about['foreign']}")
    return f" Made hard: {', '.join(told)}." if told else ""


def _range(count: int) -> str:
    return "0" if count == 1 else f"0 to {count - 1}"


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(str(v) for v in values)


def _hardware(hardware: Mapping[str, Any]) -> str:
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] != 1 else ''}"
    return f"{hardware['processor']}, {hardware['device']}, {hardware['precision']}, {threads}"


def _guarded(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how often the guard had something to say, and a teacher was shipped."""
    watched = [c for c in cells if c.get("guard")]
    alarmed = sum(bool(c["guard"]["alarms"]) for c in watched)
    taught = [c for c in cells if c["teacher"] is not None and len(c["learners"]) > 1]
    fell_back = sum(c["selected"] == c["teacher"] for c in taught)
    if not watched and not fell_back:
        return []
    return [
        f"The guard raised alarms in {alarmed} of {len(watched)} cells; the teacher was shipped"
        f" instead of a student in {fell_back} of {len(taught)}."
    ]


def _incomplete(results: Results) -> list[str]:
    """Return which methods have fewer cells than they should, and which have none."""
    wanted = results["run"]["draws"] * results["run"]["seeds"]
    lines = []
    for dataset in results["datasets"]:
        names = [method["name"] for method in results["methods"]]
        done = [c["method"] for c in results["cells"] if c["dataset"] == dataset]
        some = [f"{n} {done.count(n)}" for n in names if 0 < done.count(n) < wanted]
        if some:
            lines.append(f"Incomplete on {dataset}, cells of {wanted}: {', '.join(some)}.")
        if none := [name for name in names if name not in done]:
            lines.append(f"Without any cell on {dataset}: {', '.join(none)}.")
    return lines


def _paragraph(text: str) -> str:
    return " ".join(text.split())


Cells = tuple[tuple[str, ...], list[list[str]]]


def _main(rows: Sequence[Row]) -> Cells:
    """Return heading and cells of the main table."""
    body = [
        [
            row.method,
            _with_error(row.accuracy.mean, row.accuracy.std),
            _number(row.accuracy.worst),
            _number(row.macro_f1),
            _before(row.ece, row.ece_uncalibrated),
            _number(row.teacher),
            _pair(row.best_student, row.mean_student),
            _signed(row.gap),
            _with_interval(row.difference, row.difference_interval),
            f"{row.seconds:.0f}" if row.seconds >= 10 else f"{row.seconds:.1f}",
            f"{row.memory_mb:.0f} ({row.above_loaded_mb:.0f})",
            f"{row.trainable_share:.2%}",
            f"{row.stored_kb:,.0f}",
            "" if row.exported_mb is None else f"{row.exported_mb:.1f}",
            "" if row.rate is None else f"{row.rate:,.0f}",
        ]
        for row in rows
    ]
    return _with_groups(COLUMNS, rows, body)


def _spreads(rows: Sequence[Row]) -> Cells:
    """Return heading and cells of the table of spread."""
    body = []
    for row in rows:
        students = row.students or Spread(0, 0.0, None, 0.0)
        some = students.n > 0
        body.append(
            [
                row.method,
                str(students.n),
                _number(students.mean if some else None),
                _number(students.std),
                _number(students.worst if some else None),
                _number(row.students_over_seeds),
                _number(row.over_draws),
                _number(row.over_seeds),
            ]
        )
    return _with_groups(SPREAD_COLUMNS, rows, body)


def _with_groups(columns: tuple[str, ...], rows: Sequence[Row], body: list[list[str]]) -> Cells:
    """Put the groups, if there are any, before everything else; each is named once."""
    if not any(row.group for row in rows):
        return columns, body
    before = ""
    for row, cells in zip(rows, body, strict=True):
        cells.insert(0, row.group if row.group != before else "")
        before = row.group
    return ("ingredient", *columns), body


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _with_error(value: float, error: float | None) -> str:
    return _number(value) if error is None else f"{_number(value)} ± {error:.3f}"


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    shown = _signed(value)
    return shown if interval is None else f"{shown} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def _before(value: float | None, before: float | None) -> str:
    return "" if value is None else f"{_number(value)} ({_number(before)})"


def _pair(first: float | None, second: float | None) -> str:
    return "" if first is None else f"{_number(first)} / {_number(second)}"


def _markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---" for _ in columns], *body]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _fitting(columns: tuple[str, ...], body: list[list[str]], width: int) -> Cells:
    """Return the columns that fit a terminal of this width."""

    def needed(names: tuple[str, ...]) -> int:
        # Three characters of frame and padding for each, and one to close it.
        longest = (max(len(line[columns.index(n)]) for line in [columns, *body]) for n in names)
        return 1 + sum(length + 3 for length in longest)

    kept = columns
    for name in FIRST_TO_GO:
        if needed(kept) > width:
            kept = tuple(column for column in kept if column != name)
    return kept, [[line[columns.index(name)] for name in kept] for line in body]


def _rich_table(
    heading: str, groups: Sequence[str], columns: Sequence[str], body: Sequence[Sequence[str]]
) -> Table:
    table = Table(title=heading)
    names = columns.index("method") + 1
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < names else "right", no_wrap=True)
    for i, cells in enumerate(body):
        last = i + 1 == len(groups) or groups[i + 1] != groups[i]
        table.add_row(*cells, end_section=last and bool(groups[i]))
    return table

"""`run_benchmark`: from a suite to results, table and chart."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import nanonet.benchmark.peers  # noqa: F401 (registers its kinds)
from nanonet.benchmark.ablation import REFERENCE, variants
from nanonet.benchmark.chart import draw_chart
from nanonet.benchmark.draws import SUFFIX, Dataset, draw, is_written, read_dataset, write_draw
from nanonet.benchmark.methods import KINDS, LoadBackbone, NanoNet
from nanonet.benchmark.runner import Cell, Runner
from nanonet.benchmark.stats import Row, make_row
from nanonet.benchmark.suite import Suite, chosen, read_suite
from nanonet.benchmark.table import markdown, show, title
from nanonet.core.config import Config, make_config
from nanonet.core.errors import ConfigError, InterruptedRunError, RunError
from nanonet.core.files import write_json, write_text
from nanonet.core.machine import usable_cores
from nanonet.core.strict import build, merge, to_dict
from nanonet.models.backbones import load_backbone

RESULTS, TABLE, CHART = "results.json", "table.md", "chart.png"


@dataclass(frozen=True)
class Options:
    """What the command line asks for beside the suite.

    Attributes:
        ablate: make the methods by switching ingredients of a recipe.
        recipe: the one to ablate.
        only: names or globs of the methods to run; all where empty.
        datasets: the same of the data sets.
        draws: instead of the suite's; None: the suite's.
        seeds: the same.
        jobs: cells at a time; None: one per core.
        settings: on top of every method's.
        keep_runs: keep each cell's run folder.
    """

    ablate: bool = False
    recipe: str = "nanonet"
    only: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    draws: int | None = None
    seeds: int | None = None
    jobs: int | None = None
    settings: Mapping[str, Any] | None = None
    keep_runs: bool = False


@dataclass(frozen=True)
class Planned:
    """A method that has been checked."""

    name: str
    group: str
    kind: str
    plan: dict[str, Any]


def run_benchmark(suite_path: Path, out: Path, options: Options) -> None:
    """Run what of a suite has no result yet; write results, table and chart to ``out``.

    Everything that can be checked is checked before the first model trains.

    Args:
        suite_path: see `suite`.
        out: a folder; one left by an earlier call is added to.
        options: see there.

    Raises:
        NanoNetError: see the subclasses.
        RunError: cells failed; all others are done.
        InterruptedRunError: stopped by Ctrl-C; finished cells are kept.
    """
    console = Console(stderr=True, highlight=False)
    _refuse_other_folder(out)
    suite = read_suite(suite_path, options.draws, options.seeds)
    if options.ablate and suite.methods:
        console.print(
            f"{suite_path}: [methods] is not used with --ablate", markup=False, soft_wrap=True
        )
    methods = _plan(suite, suite_path, options, console)
    wanted = chosen(options.only, [method.name for method in methods], "--only", "method")
    for method in methods:
        if method.name in wanted:
            KINDS.get(method.kind).check_installed()
    common = merge(suite.settings, options.settings or {})
    threads = build(Config, {"training": common.get("training", {})}).training.threads
    used = chosen(options.datasets, list(suite.datasets), "--dataset", "data set")
    datasets = [read_dataset(name, suite.datasets[name], suite_path.parent) for name in used]
    _write_draws(datasets, suite.run.draws, out / "data")
    cells = _cells(suite, methods, datasets, out)
    about = _about(suite, suite_path, methods, datasets, options)
    try:
        _run(cells, wanted, options, threads, console)
    except InterruptedRunError:
        _report(out, about, cells, wanted, console=None)
        raise
    failures = _report(out, about, cells, wanted, Console())
    if failures:
        for cell, error in failures:
            console.print(f"failed: {cell.title}: {error}", markup=False, soft_wrap=True)
        raise RunError(
            f"{len(failures)} of {len(cells)} cells failed (their log.txt in {out / 'cells'} says"
            " more); the same command tries them again"
        )


def _refuse_other_folder(out: Path) -> None:
    """Refuse an output folder that holds something else."""
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / "data").is_dir()):
        raise RunError(f"{out} exists and is no benchmark's folder: choose another --out")


def _plan(suite: Suite, path: Path, options: Options, console: Console) -> list[Planned]:
    """Return the methods, each checked.

    Raises:
        ConfigError: names the suite and the method.
    """
    load: LoadBackbone = functools.cache(load_backbone)  # forgotten once all is planned
    over = options.settings or {}
    if options.ablate:
        return _plan_ablation(suite, options.recipe, over, load, console)
    if not suite.methods:
        raise ConfigError(
            f"suite {path}: there is no method: add a table [methods.NAME], or give --ablate"
        )
    planned = []
    for name, values in suite.methods.items():
        try:
            table = {key: value for key, value in values.items() if key != "kind"}
            kind = str(values.get("kind", "nanonet"))
            method = build(KINDS.get(kind), table)
            plan = method.plan(suite.settings, over, path.parent, load)
        except ConfigError as error:
            raise ConfigError(f"suite {path}, methods.{name}: {error}") from None
        planned.append(Planned(name, "", kind, _as_json(plan)))
    return planned


def _plan_ablation(
    suite: Suite, recipe: str, over: Mapping[str, Any], load: LoadBackbone, console: Console
) -> list[Planned]:
    """Return the variants of a recipe; what cannot be run with its other settings is left out."""
    common = merge(suite.settings, over)
    base = make_config(recipe, common)
    depth = load(base.backbone.name, base.backbone.pooling).layers
    planned = []
    for variant in variants(to_dict(base), depth):
        method = NanoNet(recipe, variant.overrides)
        try:
            plan = method.plan(common, {}, Path(), load)
        except ConfigError as error:
            if variant.name == REFERENCE:
                raise
            text = f"variant {variant.name} left out: {error}"
            console.print(text, markup=False, soft_wrap=True, style="yellow")
            continue
        planned.append(Planned(variant.name, variant.group, "nanonet", _as_json(plan)))
    return planned


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return it as it is after writing and reading, to be compared with what was stored."""
    copy: dict[str, Any] = json.loads(json.dumps(value))
    return copy


def _write_draws(datasets: Sequence[Dataset], draws: int, folder: Path) -> None:
    """Write the draws that are not there yet, once all of them are known to be possible."""
    new = [
        (dataset, draw(dataset, seed), _draw_folder(folder, dataset.name, seed))
        for dataset in datasets
        for seed in range(draws)
        if not is_written(_draw_folder(folder, dataset.name, seed), dataset.identity(seed))
    ]
    for dataset, split, path in new:
        write_draw(dataset, split, path)


def _draw_folder(folder: Path, dataset: str, seed: int) -> Path:
    return folder / dataset / f"draw-{seed}"


def _cells(
    suite: Suite, methods: Sequence[Planned], datasets: Sequence[Dataset], out: Path
) -> list[Cell]:
    """Return all cells: draw by draw, so that methods can soon be compared."""
    return [
        _cell(method, dataset, seed_of_draw, seed, out.resolve())
        for seed_of_draw in range(suite.run.draws)
        for seed in range(suite.run.seeds)
        for dataset in datasets
        for method in methods
    ]


def _cell(method: Planned, dataset: Dataset, seed_of_draw: int, seed: int, out: Path) -> Cell:
    identity = {
        "method": method.name,
        "dataset": dataset.name,
        "draw": seed_of_draw,
        "seed": seed,
        "kind": method.kind,
        "plan": method.plan,
        "data": dataset.identity(seed_of_draw),
    }
    columns = dataset.config.columns
    drawn = _draw_folder(out / "data", dataset.name, seed_of_draw)
    files = {
        "labeled": str(drawn / f"labeled{SUFFIX}"),
        "unlabeled": str(drawn / f"unlabeled{SUFFIX}"),
        "test": str(dataset.path("test")),
        "test_columns": [columns.text, columns.label, columns.label_name],
    }
    name = f"draw-{seed_of_draw}-seed-{seed}"
    return Cell(identity, files, out / "cells" / method.name / dataset.name / name)


def _run(
    cells: Sequence[Cell],
    wanted: Sequence[str],
    options: Options,
    threads: int,
    console: Console,
) -> None:
    """Run those cells of the wanted methods that have no result; no threads: what cores allow."""
    asked = [cell for cell in cells if cell.identity["method"] in wanted]
    missing = [cell for cell in asked if cell.result() is None]
    cores = usable_cores()
    jobs = options.jobs or cores
    threads = threads or max(1, cores // jobs)
    done = len(asked) - len(missing)
    console.print(
        f"{len(asked)} cells: {done} done already, {len(missing)} to run, {jobs} at a time with"
        f" {threads} thread{'s' if threads > 1 else ''} each"
    )
    Runner(jobs, threads, options.keep_runs, console).run(missing)


def _about(
    suite: Suite,
    path: Path,
    methods: Sequence[Planned],
    datasets: Sequence[Dataset],
    options: Options,
) -> dict[str, Any]:
    """Return what ``results.json`` says beside the cells."""
    return {
        "suite": path.name,
        "ablated_recipe": options.recipe if options.ablate else None,
        "reference": REFERENCE if options.ablate else methods[0].name,
        "settings": merge(suite.settings, options.settings or {}),
        "run": to_dict(suite.run),
        "datasets": {dataset.name: dataset.describe() for dataset in datasets},
        "methods": [{"name": m.name, "group": m.group, "kind": m.kind} for m in methods],
    }


def _report(
    out: Path,
    about: Mapping[str, Any],
    cells: Sequence[Cell],
    wanted: Sequence[str],
    console: Console | None,
) -> list[tuple[Cell, str]]:
    """Write results, table and chart, print the table, and return the wanted cells that failed."""
    found = [(cell, cell.result()) for cell in cells]
    failures = [
        (cell, error)
        for cell, result in found
        if result is None and (error := cell.failure()) and cell.identity["method"] in wanted
    ]
    results = {
        **about,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": [result for _, result in found if result is not None],
        "failed": [{**cell.identity, "error": error} for cell, error in failures],
    }
    write_json(out / RESULTS, results)
    if results["cells"]:
        rows = make_rows(results)
        write_text(out / TABLE, markdown(results, rows))
        draw_chart(out / CHART, title(results), rows, results["cells"], results["reference"])
        if console is not None:
            show(results, rows, console)
            console.print(f"\nIn {out}: {RESULTS}, {TABLE}, {CHART}", highlight=False)
    return failures


def make_rows(results: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return the table's rows by data set, in the suite's order; methods without cells: none."""
    rows: dict[str, list[Row]] = {}
    for dataset in results["datasets"]:
        cells = [c for c in results["cells"] if c["dataset"] == dataset]
        of = {m["name"]: [c for c in cells if c["method"] == m["name"]] for m in results["methods"]}
        reference = of[results["reference"]]
        some = [
            make_row(m["name"], m["group"], of[m["name"]], reference)
            for m in results["methods"]
            if of[m["name"]]
        ]
        if some:
            rows[dataset] = some
    return rows

"""`nanonet benchmark`."""

from pathlib import Path

import click

from nanonet.cli.common import need, set_option
from nanonet.core.errors import ConfigError
from nanonet.core.strict import parse_set


@click.command()
@click.argument("suite", metavar="SUITE.toml")
@click.option("--out", required=True, metavar="DIR", help="The folder to write or to add to.")
@click.option("--ablate", is_flag=True, help="Compare a recipe with variants of it.")
@click.option("--recipe", metavar="NAME", help="The recipe to ablate.  [default: nanonet]")
@click.option("--only", multiple=True, metavar="NAME", help="Run these methods; * and ? match.")
@click.option(
    *("--dataset", "datasets"),
    multiple=True,
    metavar="NAME",
    help="On these data sets; * and ? match.",
)
@click.option("--draws", type=click.IntRange(min=1), help="Label draws, instead of the suite's.")
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds, instead of the suite's.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Cells at a time.  [default: one per core]"
)
@click.option("--keep-runs", is_flag=True, help="Keep each cell's run folder.")
@set_option
def benchmark(
    suite: str,
    out: str,
    ablate: bool,
    recipe: str | None,
    only: tuple[str, ...],
    datasets: tuple[str, ...],
    draws: int | None,
    seeds: int | None,
    jobs: int | None,
    keep_runs: bool,
    settings: tuple[str, ...],
) -> None:
    """Compare methods over data sets, label draws and seeds.

    Each cell (method, data set, draw, seed) trains in a process of its own. Ctrl-C keeps what is
    finished; the same command goes on, and runs again what failed or has other settings now.
    DIR gets results.json, table.md and chart.png.
    """
    if recipe is not None and not ablate:
        raise ConfigError("--recipe names what --ablate takes apart: give both, or neither")
    module = need("nanonet.benchmark.run", "nanonet benchmark")
    options = module.Options(
        ablate=ablate,
        recipe=recipe or "nanonet",
        only=only,
        datasets=datasets,
        draws=draws,
        seeds=seeds,
        jobs=jobs,
        settings=parse_set(settings),
        keep_runs=keep_runs,
    )
    module.run_benchmark(Path(suite), Path(out), options)

"""`nanonet train`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from nanonet.cli.common import need, say_error, set_option
from nanonet.core.config import DEFAULT_RECIPES, Config, make_config
from nanonet.core.errors import ConfigError, InterruptedRunError, NanoNetError
from nanonet.core.strict import build, merge, parse_set


@click.command()
@click.option(
    "--labeled",
    metavar="FILE",
    help="Texts with labels (lists of them for multilabel; a;b in CSV); documents with labels or"
    " summaries.",
)
@click.option("--unlabeled", metavar="FILE", help="Texts; labels in it are ignored.")
@click.option("--validation", metavar="FILE", help="Texts with labels to choose a student by.")
@click.option(
    "--task",
    type=click.Choice(list(DEFAULT_RECIPES)),
    help="One class per text, any number of labels, or summaries.  [default: classification]",
)
@click.option(
    "--recipe",
    default=None,
    metavar="NAME",
    help="Recipe, by name or as a .toml file; see nanonet list recipes.  [default: nanonet, or"
    " summarization for that task]",
)
@click.option(
    "--backbone",
    metavar="NAME",
    help="Encoder: minilm, a folder, or a Hugging Face id.  [default: minilm]",
)
@set_option
@click.option("--seed", type=int, help="One seed gives one result on one machine.  [default: 0]")
@click.option("--max-minutes", type=float, help="Stop training after that time.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option("--init", metavar="RUN", help="Start from an earlier run's learners.")
@click.option("--out", required=True, metavar="RUN", help="The run folder to write.")
@click.option("--resume", is_flag=True, help="Continue RUN from its newest checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace RUN if it exists.")
@click.option(
    "--profile",
    is_flag=True,
    help="Measure where the time goes: a table, RUN/profile.json, and RUN/trace.json for Perfetto.",
)
@click.option("--quiet", is_flag=True, help="Show warnings and errors only.")
def train(
    labeled: str | None,
    unlabeled: str | None,
    validation: str | None,
    task: str | None,
    recipe: str | None,
    backbone: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    max_minutes: float | None,
    device: str | None,
    init: str | None,
    out: str,
    resume: bool,
    overwrite: bool,
    profile: bool,
    quiet: bool,
) -> None:
    """Train a teacher and its students.

    The run folder holds configuration, metrics, checkpoints and outcome. Ctrl-C stops after the
    current step and saves; --resume then continues to the very same result.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    run_path = Path(out)
    over = parse_set(settings)
    flags: dict[str, dict[str, Any]] = {
        "task": {} if task is None else {"task": task},
        "seed": {} if seed is None else {"seed": seed},
        "backbone": {} if backbone is None else {"backbone": {"name": backbone}},
        "minutes": {} if max_minutes is None else {"training": {"max_minutes": max_minutes}},
        "device": {} if device is None else {"training": {"device": device}},
    }
    for flag in flags.values():
        over = merge(over, flag)
    train_module = need("nanonet.training.train", "nanonet train")
    inputs = need("nanonet.training.inputs", "nanonet train")
    tasks = need("nanonet.training.tasks", "nanonet train")
    display = need("nanonet.training.display", "nanonet train")
    if labeled is None and resume:
        config, saved = _saved(run_path, recipe, over)
        labeled = saved["labeled"]
        unlabeled = unlabeled or saved["unlabeled"]
        validation = validation or saved["validation"]
        init = init or saved["init"]
    else:
        usual = DEFAULT_RECIPES.get(str(over.get("task")), "nanonet")
        config = make_config(recipe or str(over.get("recipe", usual)), over)
    if labeled is None:
        raise ConfigError("--labeled FILE is missing: training needs texts with labels")
    files = (labeled, unlabeled, validation)
    kind = tasks.make_task(config)
    with _one_voice():
        train_module.train(
            config,
            lambda: inputs.read_tables(kind, *files),
            run_path,
            mode="resume" if resume else "overwrite" if overwrite else "new",
            init=Path(init) if init else None,
            display=display.ConsoleDisplay(quiet=quiet),
            profile=profile,
        )


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of many processes that a launcher has started, let one tell of an error.

    The others end with the same status, and not before it has spoken.
    """
    processes = need("nanonet.training.processes", "nanonet train")
    try:
        yield
    except NanoNetError as error:
        if processes.count_launched() == 1:
            raise
        if processes.speaks_of_failure():
            say_error(error)
        if isinstance(error, InterruptedRunError):  # all stop together; a launcher ends those left
            processes.leave_together()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if processes.speaks_of_failure():
            raise
        sys.exit(130)
    processes.leave_together()


def _saved(
    run_path: Path, recipe: str | None, over: dict[str, Any]
) -> tuple[Config, dict[str, str | None]]:
    """Return configuration and sources that a run was started with, for --resume on its own."""
    from nanonet.core.strict import to_dict
    from nanonet.training.run_folder import RunFolder

    saved, inputs = RunFolder(run_path).read_config()
    asked = merge(to_dict(saved), over) | ({"recipe": recipe} if recipe else {})
    kinds = ("labeled", "unlabeled", "validation", "init")
    return build(Config, asked), {k: inputs.get(k, {}).get("source") for k in kinds}

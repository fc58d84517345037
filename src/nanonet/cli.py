"""Layer 7: the command line. Commands import what they need when they run."""

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import click

import nanonet
from nanonet.core.config import Config, DataConfig, build, make_config, merge, parse_set
from nanonet.core.errors import ConfigError, DataError, MissingExtraError, NanoNetError

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, as in training.steps=100. May be given several times.",
)
data_set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Name the columns: data.text_column=…, data.label_column=…, data.label_name_column=….",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(nanonet.__version__, prog_name="nanonet")
def cli() -> None:
    """Small, fast text models from a handful of labels.

    Labelled and unlabelled texts go in (nanonet train), one small model comes out (nanonet
    export), which runs without torch (nanonet predict).

    FILE is CSV, TSV, JSONL or Parquet with the columns text, label and, optionally, label_name;
    or hub:NAME[:SPLIT] for a data set of the Hugging Face hub.
    """


@cli.command()
@click.option("--labeled", metavar="FILE", help="Texts with labels.")
@click.option("--unlabeled", metavar="FILE", help="Texts; labels in it are ignored.")
@click.option("--validation", metavar="FILE", help="Texts with labels to choose a student by.")
@click.option("--task", type=click.Choice(["classification"]), help="[default: classification]")
@click.option(
    "--recipe",
    default=None,
    metavar="NAME",
    help="Recipe, by name or as a .toml file; see nanonet list recipes.  [default: nanonet]",
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
    train_module = _need("nanonet.training.train", "nanonet train")
    inputs = _need("nanonet.training.inputs", "nanonet train")
    display = _need("nanonet.training.display", "nanonet train")
    if labeled is None and resume:
        config, saved = _saved(run_path, recipe, over)
        labeled = saved["labeled"]
        unlabeled = unlabeled or saved["unlabeled"]
        validation = validation or saved["validation"]
        init = init or saved["init"]
    else:
        config = make_config(recipe or str(over.get("recipe", "nanonet")), over)
    if labeled is None:
        raise ConfigError("--labeled FILE is missing: training needs texts with labels")
    files = (labeled, unlabeled, validation)
    train_module.train(
        config,
        lambda: inputs.read_tables(config.data, *files),
        run_path,
        mode="resume" if resume else "overwrite" if overwrite else "new",
        init=Path(init) if init else None,
        display=display.ConsoleDisplay(quiet=quiet),
    )


def _saved(
    run_path: Path, recipe: str | None, over: dict[str, Any]
) -> tuple[Config, dict[str, str | None]]:
    """Return configuration and sources that a run was started with, for --resume on its own."""
    from nanonet.core.config import to_dict
    from nanonet.training.run_folder import RunFolder

    saved, inputs = RunFolder(run_path).read_config()
    asked = merge(to_dict(saved), over) | ({"recipe": recipe} if recipe else {})
    kinds = ("labeled", "unlabeled", "validation", "init")
    return build(Config, asked), {k: inputs.get(k, {}).get("source") for k in kinds}


@cli.command()
@click.argument("run_or_bundle", metavar="RUN|BUNDLE")
@click.option("--data", required=True, metavar="FILE", help="Texts with labels.")
@click.option("--json", "as_json", is_flag=True, help="Print one line, one JSON object.")
@data_set_option
def evaluate(run_or_bundle: str, data: str, as_json: bool, settings: tuple[str, ...]) -> None:
    """Score a run (all its learners) or a bundle (without torch) on labelled texts."""
    from nanonet import scoring
    from nanonet.core.bundle import is_bundle

    path = _existing_folder(run_or_bundle)
    table = _read(data, settings, labels="required")
    if is_bundle(path):
        scores = scoring.evaluate_bundle(path, table)
    elif not (path / "config.toml").is_file():
        raise DataError(f"{path} is neither a run folder nor a bundle")
    else:
        _need("nanonet.training.train", "scoring a run")
        scores = scoring.evaluate_run(path, table)
    for warning in scores.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(scores.to_json()))
        return
    click.echo(f"accuracy  {scores.accuracy:.4f}")
    click.echo(f"macro F1  {scores.macro_f1:.4f}")
    click.echo(f"examples  {scores.examples}  in {scores.seconds:.1f} s")
    for name, value in scores.learners.items():
        click.echo(f"  {name:10s} accuracy {value:.4f}")


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="BUNDLE", help="The folder to write.")
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    default="none",
    show_default=True,
    help="int8: a quarter of the size, slightly different outputs.",
)
@click.option("--overwrite", is_flag=True, help="Replace BUNDLE if it exists.")
def export(run: str, out: str, quantize: str, overwrite: bool) -> None:
    """Write a finished run's chosen student as a bundle: the folder to ship.

    The model is checked against torch before anything is written.
    """
    exporter = _need("nanonet.export", "nanonet export")
    manifest = exporter.export(
        _existing_folder(run), Path(out), quantize=quantize, overwrite=overwrite
    )
    size = sum(f.stat().st_size for f in Path(out).iterdir())
    difference = manifest.metrics["largest_difference_from_torch"]
    click.echo(
        f"{out}: {manifest.learner['name']}, {len(manifest.labels['names'])} classes,"
        f" {size / 1e6:.1f} MB, quantization {manifest.quantization};"
        f" ONNX differs from torch by at most {difference:.1e}"
    )


@cli.command()
@click.argument("bundle", metavar="BUNDLE")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--input", "source", metavar="FILE", help="Texts to classify.")
@click.option("--output", metavar="FILE", help="Where to write; by its suffix CSV, JSONL, Parquet.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: all]")
@data_set_option
def predict(
    bundle: str,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    threads: int,
    settings: tuple[str, ...],
) -> None:
    """Classify texts with a bundle, without torch.

    TEXTs are answered on the screen, one per line: label, probability, text. With --input, every
    row of the file is answered in its order, with the columns text, label, label_name and
    probability.
    """
    from nanonet.data.writers import SUFFIXES, write_table
    from nanonet.runtime.predictor import Predictor

    if bool(texts) == bool(source):
        raise ConfigError("give either TEXTs or --input FILE")
    if output is not None and Path(output).suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--output {output}: unknown file type (there are: {', '.join(SUFFIXES)})"
        )
    if output is not None and source is None:
        raise ConfigError("--output goes with --input")
    if output is not None and Path(output).exists() and Path(output).samefile(str(source)):
        raise ConfigError(f"--output {output} is the input: choose another file")
    if settings and source is None:
        raise ConfigError("--set names columns: it goes with --input")
    if output is not None and not Path(output).parent.is_dir():
        raise DataError(f"cannot write {output}: folder {Path(output).parent} does not exist")
    predictor = Predictor.load(bundle, threads=threads)
    if source is not None:
        rows = _read(source, settings, labels="ignored", keep_empty=True).texts
    else:
        rows = list(texts)
    probabilities = predictor.predict_proba(rows)
    best = probabilities.argmax(-1)
    columns: dict[str, list[Any]] = {
        "text": rows,
        "label": [predictor.labels.values[i] for i in best],
        "label_name": [predictor.labels.names[i] for i in best],
        "probability": [round(float(p[i]), 6) for p, i in zip(probabilities, best, strict=True)],
    }
    if output is not None:
        write_table(output, columns)
        click.echo(f"{output}: {len(rows)} texts", err=True)
    elif source is not None:
        for values in zip(*columns.values(), strict=True):
            click.echo(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False))
    else:
        for text, _, name, probability in zip(*columns.values(), strict=True):
            click.echo(f"{name}\t{probability:.3f}\t{text}")


@cli.command()
@click.argument("file", metavar="FILE")
@click.option("--labeled-per-class", type=int, required=True, metavar="N", help="Labelled rows.")
@click.option("--validation-per-class", type=int, default=0, metavar="N", help="[default: 0]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--exclude", metavar="FILE", help="Leave out the texts of this file (a test file).")
@click.option("--out", required=True, metavar="DIR", help="The folder to write.")
@data_set_option
def split(
    file: str,
    labeled_per_class: int,
    validation_per_class: int,
    seed: int,
    exclude: str | None,
    out: str,
    settings: tuple[str, ...],
) -> None:
    """Split a labelled FILE into few labelled texts and many unlabelled ones.

    With one seed, a smaller N draws a subset of what a larger N draws. Copies of a text never
    stand on two sides; texts with conflicting labels are left out.
    """
    from nanonet.data.splits import split_table, write_split

    table = _read(file, settings, labels="required")
    other = None if exclude is None else _read(exclude, settings, labels="ignored")
    parts = split_table(
        table,
        labeled_per_class=labeled_per_class,
        validation_per_class=validation_per_class,
        seed=seed,
        exclude=other,
    )
    suffix = Path(file.removesuffix(".gz")).suffix.lower()
    write_split(parts, table, Path(out), suffix if not file.startswith("hub:") else ".jsonl")
    click.echo(
        f"{out}: {len(parts.labeled)} labelled, {len(parts.validation)} validation,"
        f" {len(parts.unlabeled)} unlabelled; left out: {parts.duplicates_dropped} copies,"
        f" {parts.conflicts_dropped} with conflicting labels, {parts.excluded_dropped} excluded"
    )


KINDS = ("recipes", "objectives", "peft", "encoders", "layer-maps")


@cli.command("list")
@click.argument("kind", metavar="KIND")
def list_kind(kind: str) -> None:
    """List what there is of a KIND: recipes, objectives, peft, encoders or layer-maps."""
    from nanonet.core.config import recipe_names
    from nanonet.core.registry import did_you_mean

    if kind == "recipes":
        for name in recipe_names():
            click.echo(f"{name}: {_about_recipe(name)}")
        return
    homes = {
        "objectives": ("nanonet.objectives", "OBJECTIVES"),
        "peft": ("nanonet.models.peft", "PEFT"),
        "encoders": ("nanonet.models.backbones", "ENCODERS"),
        "layer-maps": ("nanonet.models.layer_maps", "LAYER_MAPS"),
    }
    if kind not in homes:
        hint = did_you_mean(kind, KINDS)
        raise ConfigError(f"unknown kind '{kind}'{hint}; there are: {', '.join(KINDS)}")
    module, attribute = homes[kind]
    registry = getattr(_need(module, f"nanonet list {kind}"), attribute)
    for name in registry:
        doc = (registry.get(name).__doc__ or "").strip().splitlines()
        click.echo(f"{name}: {doc[0] if doc else ''}")


def _about_recipe(name: str) -> str:
    """Return how the comment at the head of a recipe begins; the names of its phases without."""
    from importlib import resources

    from nanonet.core.config import read_recipe

    text = resources.files("nanonet").joinpath(f"recipes/{name}.toml").read_text("utf-8")
    head = itertools.takewhile(lambda line: line.startswith("#"), text.strip().splitlines())
    words = " ".join(line.strip("# ") for line in head)
    first = re.split(r"[.!?;](?:\s|$)", words, maxsplit=1)[0].strip()
    return first or f"phases {', '.join(read_recipe(name).get('phases', {}))}"


@cli.command()
@click.option("--out", default="demo-out", show_default=True, metavar="DIR")
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: str, seed: int) -> None:
    """Run the main job on texts found on this machine.

    The docstrings of Python's standard library are filed by area with ten labels each; shows what
    the method makes of them beside simpler ways, and leaves a bundle, a table and a picture.
    """
    _need("nanonet.demo.run", "nanonet demo").run_demo(Path(out), seed)


@cli.command()
@click.argument("suite", metavar="SUITE.toml")
@click.option("--out", required=True, metavar="DIR", help="The folder to write or to add to.")
@click.option("--ablate", is_flag=True, help="Compare a recipe with variants of it.")
@click.option("--recipe", metavar="NAME", help="The recipe to ablate.  [default: nanonet]")
@click.option("--only", multiple=True, metavar="NAME", help="Run these methods; * and ? match.")
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
    module = _need("nanonet.benchmark.run", "nanonet benchmark")
    options = module.Options(
        ablate=ablate,
        recipe=recipe or "nanonet",
        only=only,
        draws=draws,
        seeds=seeds,
        jobs=jobs,
        settings=parse_set(settings),
        keep_runs=keep_runs,
    )
    module.run_benchmark(Path(suite), Path(out), options)


def _need(module: str, feature: str) -> Any:
    """Import a module that needs the extra ``train``."""
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("nanonet"):
            raise
        raise MissingExtraError(feature, "train") from None


def _read(file: str, settings: tuple[str, ...], **how: Any) -> Any:
    from nanonet.data.readers import Columns, read_table

    over = parse_set(settings)
    if set(over) - {"data"}:
        raise ConfigError(f"--set {settings[0]}: only keys under data.* apply here")
    data = build(DataConfig, over.get("data", {}), "data")
    return read_table(
        file, Columns(data.text_column, data.label_column, data.label_name_column), **how
    )


def _existing_folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"folder {path} does not exist")
    return Path(path)


def main() -> None:
    """Run the command line; errors become one line and an exit status."""
    try:
        cli.main(prog_name="nanonet", standalone_mode=False)
    except NanoNetError as error:
        click.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        advice = f" (see {context.command_path} --help)" if context else ""
        click.echo(f"error: {error.format_message()}{advice}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # whatever of the file system was not foreseen where it happened
        name = f": {error.filename}" if error.filename else ""
        click.echo(f"error: {error.strerror or error}{name}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted", err=True)
        sys.exit(130)

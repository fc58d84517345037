"""What several commands need: options, imports of extras, files."""

import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from nanonet.core.bundle import MANIFEST, is_bundle
from nanonet.core.config import DataConfig
from nanonet.core.errors import ConfigError, DataError, MissingExtraError, NanoNetError
from nanonet.core.strict import build, parse_set

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


def say_error(error: NanoNetError) -> None:
    """Show an error as one line."""
    click.echo(f"error: {' '.join(str(error).splitlines())}", err=True)


def need(module: str, feature: str, extra: str = "train") -> Any:
    """Import a module that needs an extra."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("nanonet"):
            raise
        raise MissingExtraError(feature, extra) from None


def data_config(settings: tuple[str, ...]) -> DataConfig:
    """Return the settings of data after ``--set data.*``."""
    over = parse_set(settings)
    if set(over) - {"data"}:
        raise ConfigError(f"--set {settings[0]}: only keys under data.* apply here")
    return build(DataConfig, over.get("data", {}), "data")


def read(file: str, settings: tuple[str, ...], **how: Any) -> Any:
    """Read a table with the columns that ``--set data.*`` names (see `read_table`)."""
    from nanonet.data.readers import Columns, read_table

    data = data_config(settings)
    return read_table(
        file, Columns(data.text_column, data.label_column, data.label_name_column), **how
    )


def task_of(path: Path) -> str:
    """Return the task of a folder's bundle or run, whole or not; empty where it cannot be told."""
    try:
        if is_bundle(path):
            values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        else:
            values = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # whoever loads it will say what is wrong
    return str(values.get("task", ""))


def existing_run_or_bundle(path: str) -> Path:
    """Return the path of a folder, or of a file, which may be a bundle's zip, that is there."""
    return Path(path) if Path(path).is_file() else existing_folder(path)


def existing_folder(path: str) -> Path:
    """Return the path of a folder that is there."""
    if not Path(path).is_dir():
        raise DataError(f"folder {path} does not exist")
    return Path(path)

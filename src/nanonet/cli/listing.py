"""`nanonet list`."""

import itertools
import re

import click

from nanonet.cli.common import need
from nanonet.core.errors import ConfigError

KINDS = ("recipes", "objectives", "peft", "encoders", "layer-maps")


@click.command("list")
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
        "encoders": ("nanonet.models.encoders", "ENCODERS"),
        "layer-maps": ("nanonet.models.layer_maps", "LAYER_MAPS"),
    }
    if kind not in homes:
        hint = did_you_mean(kind, KINDS)
        raise ConfigError(f"unknown kind '{kind}'{hint}; there are: {', '.join(KINDS)}")
    module, attribute = homes[kind]
    registry = getattr(need(module, f"nanonet list {kind}"), attribute)
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

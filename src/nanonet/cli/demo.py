"""`nanonet demo`."""

from pathlib import Path

import click

from nanonet.cli.common import need


@click.command()
@click.option("--out", default="demo-out", show_default=True, metavar="DIR")
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: str, seed: int) -> None:
    """Run the main job on texts found on this machine.

    The docstrings of Python's standard library are filed by area with ten labels each; shows what
    the method makes of them beside simpler ways, and leaves a bundle, a table and a picture.
    """
    need("nanonet.demo.run", "nanonet demo").run_demo(Path(out), seed)

"""Write docs/help.md, the command line's reference, from the command line itself.

With --check, exit with status 1 if the page is stale.
"""

import sys
from pathlib import Path

import click

from nanonet.cli import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "help.md"


def render() -> str:
    """Return the page."""
    parts = ["# Command line", "", "Made by `make docs` from `nanonet --help`; do not edit.", ""]
    commands = {"nanonet": cli} | {f"nanonet {n}": c for n, c in sorted(cli.commands.items())}
    for name, command in commands.items():
        parent = None if command is cli else click.Context(cli, info_name="nanonet")
        info = name.split()[-1]
        context = click.Context(
            command, info_name=info, parent=parent, terminal_width=100, max_content_width=100
        )
        parts += [f"## {name}", "", "```", command.get_help(context), "```", ""]
    return "\n".join(parts)


def main() -> None:
    """Write or check the page."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/help.md is stale: run make docs")


if __name__ == "__main__":
    main()

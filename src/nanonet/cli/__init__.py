"""Layer 7: the command line, a file per command. Commands import what they need when they run."""

import sys

import click

import nanonet
from nanonet.cli.benchmark import benchmark
from nanonet.cli.common import say_error
from nanonet.cli.demo import demo
from nanonet.cli.evaluate import evaluate
from nanonet.cli.export import export
from nanonet.cli.listing import list_kind
from nanonet.cli.predict import predict
from nanonet.cli.report import report
from nanonet.cli.serve import serve
from nanonet.cli.split import split
from nanonet.cli.suggest import suggest
from nanonet.cli.train import train
from nanonet.core.errors import NanoNetError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(nanonet.__version__, prog_name="nanonet")
def cli() -> None:
    """Small, fast text models from a handful of labels.

    Labelled and unlabelled texts go in (nanonet train), one small model comes out (nanonet
    export), which runs without torch (nanonet predict).

    FILE is CSV, TSV, JSONL or Parquet with the columns text, label and, optionally, label_name;
    or hub:NAME[:SPLIT] for a data set of the Hugging Face hub.
    """


for command in (
    *(train, evaluate, export, report, predict, serve),
    *(split, suggest, list_kind, demo, benchmark),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; errors become one line and an exit status."""
    try:
        cli.main(prog_name="nanonet", standalone_mode=False)
    except NanoNetError as error:
        say_error(error)
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

"""`nanonet report`."""

from pathlib import Path
from typing import Any

import click

from nanonet.cli.common import data_set_option, existing_folder, need, read
from nanonet.cli.multilabel import is_multilabel, read_labels
from nanonet.cli.summaries import is_summarizer, read_for


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--data", metavar="FILE", help="Texts with labels: evaluate on them and show some.")
@click.option("--out", metavar="HTML", help="The file to write.  [default: RUN/report.html]")
@data_set_option
def report(run: str, data: str | None, out: str | None, settings: tuple[str, ...]) -> None:
    """Write a page about a run: figures, learning curves, how to make it again.

    The page is one HTML file that loads nothing from elsewhere. Evaluations are those that nanonet
    evaluate has noted in the run; --data adds one. An unfinished run is reported as far as it goes.
    """
    path = existing_folder(run)
    pages = need("nanonet.report", "nanonet report", "report")
    target = path / "report.html" if out is None else Path(out)
    found = pages.read_run(path)
    pages.check_out(target)
    table: Any = None
    if data is not None:
        run_folder = need("nanonet.training.run_folder", "scoring a run").RunFolder(path)
        run_folder.read_summary()  # refuse before the data is read
        if is_summarizer(path):
            table = read_for(path, data, settings, labels="required")
        elif is_multilabel(path):
            table = read_labels(data, settings, "required")
        else:
            table = read(data, settings, labels="required")
    pages.write_report(found, target, table)
    click.echo(f"{target}: {target.stat().st_size / 1000:.0f} kB", err=True)

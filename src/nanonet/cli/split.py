"""`nanonet split`."""

from pathlib import Path

import click

from nanonet.cli.common import data_set_option, read


@click.command()
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

    table = read(file, settings, labels="required")
    other = None if exclude is None else read(exclude, settings, labels="ignored")
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

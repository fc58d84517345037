"""The page: one HTML file that loads nothing."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from nanonet.core.errors import ConfigError, RunError
from nanonet.core.files import write_text
from nanonet.data.documents import DocumentTable
from nanonet.data.multilabel import MultilabelTable
from nanonet.data.readers import TextTable
from nanonet.report.charts import draw_charts
from nanonet.report.examples import DocumentExample, TextExamples, classify, summarize
from nanonet.report.figures import Table, headline, percent, tables_of
from nanonet.report.run import Outcome, Run, read_run

MARK = '<meta name="generator" content="nanonet report">'  # of our own pages
MARK_WITHIN = 1000  # characters from the start
SUMMARIZATION = "summarization"
KINDS = {"labeled": "labelled", "unlabeled": "unlabelled", "validation": "validation"}


def check_out(out: Path) -> None:
    """Refuse to write over anything but a report.

    Raises:
        ConfigError: something else is there, or there is no folder for it.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: name the file to write with --out")
    if not out.parent.is_dir():
        raise ConfigError(f"folder {out.parent} does not exist: choose another --out")
    if out.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            if MARK not in file.read(MARK_WITHIN):
                raise ConfigError(f"{out} exists and is no report: choose another --out")


def write_report(run: Run, out: Path, table: TextTable | None = None) -> None:
    """Write the report of a run.

    Args:
        run: as it stands in its folder.
        out: the HTML file to write.
        table: labelled texts, or documents with references, on which the run is evaluated first.

    Raises:
        RunError: the run cannot be evaluated, or the page cannot be written.
        NanoNetError: see `examples`.
    """
    texts: TextExamples | None = None
    documents: Sequence[DocumentExample] = ()
    if isinstance(table, DocumentTable):
        documents = summarize(run.path, table)
    elif isinstance(table, MultilabelTable):
        from nanonet.scoring.multilabel import evaluate_run

        evaluate_run(run.path, table)
    elif table is not None:
        texts = classify(run.path, table, run.classes)
    if table is not None:
        run = read_run(run.path)  # with the evaluation that was just noted
    page = _render(run, texts, documents)
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}") from None


def _render(run: Run, texts: TextExamples | None, documents: Sequence[DocumentExample]) -> str:
    environment = Environment(
        loader=PackageLoader("nanonet", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    inputs = [[KINDS.get(i.kind, i.kind), f"{i.rows:,}", i.source] for i in run.inputs]
    evaluations = [(e, tables_of(e, run.classes)) for e in run.evaluations]
    return environment.get_template("page.html").render(
        run=run,
        name=run.path.resolve().name,
        title=_title(run),
        status=_status(run),
        tiles=_tiles(run),
        choice=_choice(run.outcome) if run.outcome else "",
        inputs=Table("Data", ["", "rows", "file"], inputs, words=True),
        learners=_learners(run.outcome) if run.outcome else None,
        heads=_heads(run.outcome) if run.outcome and run.outcome.heads else None,
        validated=any(i.kind == "validation" for i in run.inputs),
        evaluations=evaluations,
        texts=texts,
        documents=documents,
        charts=draw_charts(run.points),
    )


def _title(run: Run) -> str:
    rows = {i.kind: i.rows for i in run.inputs}
    labeled, unlabeled = rows.get("labeled", 0), rows.get("unlabeled", 0)
    units = "documents" if run.task == SUMMARIZATION else "texts"
    what = {
        SUMMARIZATION: "Summarizer",
        "multilabel": f"Model of {len(run.classes)} labels",
    }.get(run.task, f"Classifier of {len(run.classes)} classes")
    more = f" and {unlabeled:,} unlabelled" if unlabeled else ""
    return f"{what}, from {labeled:,} labelled{more} {units}"


def _status(run: Run) -> str:
    """Return what is unfinished; empty where nothing is."""
    if run.outcome is None:
        last = max((p.step for p in run.points if p.kind != "warmup"), default=0)
        return (
            f"This run is not finished: its log ends at step {last} of {run.steps}, and no learner"
            " has been chosen yet."
        )
    if not run.outcome.finished:
        why = run.outcome.stopped or "stopped"
        return (
            f"This run is not finished ({why} at step {run.outcome.steps} of {run.steps}). What is"
            " shown is the model so far, which can be used."
        )
    return ""


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return what to see first: name, value and remark."""
    tiles = []
    if (outcome := run.outcome) is not None:
        own = next(one for one in outcome.learners if one.name == outcome.selected)
        layers = ", ".join(map(str, own.layers))
        tiles.append(("shipped", own.name, f"layers {layers} of {run.backbone}"))
        if run.evaluations:
            last = run.evaluations[-1]
            figure, value = headline(last)
            tiles.append((figure, value, f"{last.examples:,} rows of {Path(last.source).name}"))
        share = f"{100 * own.trained / own.total:.2f}% of {own.total:,}"
        tiles.append(("parameters trained", f"{own.trained:,}", share))
        pace = f"{outcome.steps} steps"
        tiles.append(("training time", duration(outcome.seconds), pace))
    environment = run.environment
    tiles.append(("hardware", environment.processor or "unknown", environment.hardware))
    return tiles


def duration(seconds: float) -> str:
    """Return a time in the two units that fit it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _choice(outcome: Outcome) -> str:
    return (
        f"{outcome.selected} is shipped. How it was chosen: {outcome.criterion}. Labels used to"
        f" choose, beyond those trained on: {outcome.labels_used or 'none'}."
    )


def _learners(outcome: Outcome) -> Table:
    rows = []
    for one in outcome.learners:
        layers = ", ".join(map(str, one.layers))
        score = "" if one.score is None else f"{one.score:.4f}".replace("-", "−")
        rows.append([one.name, layers, f"{one.trained:,}", f"{one.total:,}", score])
    head = ["learner", "layers", "parameters trained", "in all", "compared by"]
    if not any(one.score is not None for one in outcome.learners):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table("Learners", head, rows, outcome.selected)


def _heads(outcome: Outcome) -> Table:
    rows = [
        [
            own.student,
            f"{own.texts:,}",
            f"{own.judges:,}",
            percent(own.before),
            percent(own.after),
            "yes" if own.kept else "no",
        ]
        for own in outcome.heads
    ]
    head = ["student", "texts", "others", "right before, %", "right fitted, %", "in use"]
    return Table("Heads fitted to the teacher's answers, in the end", head, rows, outcome.selected)

"""The demo: from texts to an exported model, beside simpler ways, on any machine."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from nanonet.core.config import make_config
from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.core.files import new_folder, write_json, write_text
from nanonet.data.readers import TextTable, table_from_lists
from nanonet.demo.corpus import Docstring, Split, read_corpus, split_corpus
from nanonet.export import Compression, export
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import TEACHER, build_cohort
from nanonet.runtime.predictor import Predictor
from nanonet.scoring import evaluate_run
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import accuracy
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.device import choose_hardware
from nanonet.training.display import ConsoleDisplay
from nanonet.training.evaluation import embed
from nanonet.training.inputs import TrainingTables, label_set_of
from nanonet.training.train import train

LABELED_PER_AREA = 10
# Fewer than the recipe's: the corpus is small, and five minutes are to be enough.
STEPS, WARMUP_STEPS = 200, 40
CURVE_TEXTS = 200  # test texts scored along the way; the table is over all of them
RESULTS = "demo-results.json"
SHOWN = 8  # predictions to judge by eye


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    accuracy: float
    note: str


def run_demo(out: Path, seed: int) -> list[Row]:
    """Run the demo and leave run, bundle, table and picture in ``out``.

    Args:
        out: a folder; one left by an earlier demo is replaced.
        seed: of the draw of labels and of training.

    Raises:
        RunError: ``out`` holds something else.
    """
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / RESULTS).is_file()):
        raise RunError(f"{out} exists and is no demo's folder: choose another --out")
    console = Console()
    started = time.perf_counter()
    split = split_corpus(read_corpus(), labeled_per_area=LABELED_PER_AREA, seed=seed)
    console.print(
        f"Docstrings of Python's standard library: {len(split.labeled)} labelled"
        f" ({LABELED_PER_AREA} per area), {len(split.unlabeled)} unlabelled, {len(split.test)} to"
        " test on."
    )
    try:
        with new_folder(out) as folder:
            rows = _compare(split, folder, seed, console)
            minutes = (time.perf_counter() - started) / 60
            _show(rows, split, folder, console)
            draw_curve(folder / "run" / "metrics.jsonl", folder / "learning_curve.png", rows)
    except InterruptedRunError:
        raise InterruptedRunError("the demo was interrupted; nothing was kept") from None
    console.print(f"\nTook {minutes:.1f} minutes. In {out}: run/, bundle/, table.md,")
    console.print("learning_curve.png. Try:")
    console.print(f'  nanonet predict {out}/bundle "Wait until the queue has a free slot"')
    return rows


def _compare(split: Split, folder: Path, seed: int, console: Console) -> list[Row]:
    """Train everything that the table shows; best known last."""
    labeled, test = _table(split.labeled, "labeled"), _table(split.test, "test")
    unlabeled = table_from_lists([d.text for d in split.unlabeled], None, "unlabeled")
    labels = label_set_of(labeled)
    console.print("Simpler ways first ...")
    rows = baselines(labeled, test, labels)

    alone_only = {"seed": seed, "cohort": {"teacher": False, "students": 1}}
    config = make_config("supervised", {**alone_only, "training": {"steps": STEPS}})
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run"
        train(config, lambda: TrainingTables(labeled), path)
        alone = evaluate_run(path, test)
    rows.append(Row("3-layer student, labels only", alone.accuracy, "no teacher, no unlabelled"))

    console.print("NanoNet: a teacher and two students learn together ...")
    config = make_config(
        "nanonet",
        {
            "seed": seed,
            "warmup": {"steps": WARMUP_STEPS},
            "training": {"steps": STEPS, "checkpoint_every": 32},
        },
    )
    chosen = np.random.default_rng(seed).permutation(len(split.test))[:CURVE_TEXTS]
    summary = train(
        config,
        lambda: TrainingTables(labeled, unlabeled),
        folder / "run",
        monitor=_table([split.test[i] for i in chosen], "test"),
        display=ConsoleDisplay(),
    )
    scores = evaluate_run(folder / "run", test)
    for name, value in scores.learners.items():
        mark = "selected" if name == summary["selected"] else ""
        rows.append(Row(f"NanoNet {name}", value, mark))
    export(folder / "run", folder / "bundle", compression=Compression("int8"))
    rows.append(_bundle_row(folder / "bundle", test, labels))
    return rows


def _table(docs: Sequence[Docstring], source: str) -> TextTable:
    return table_from_lists([d.text for d in docs], [d.area for d in docs], source)


def baselines(labeled: TextTable, test: TextTable, labels: LabelSet) -> list[Row]:
    """Return what TF-IDF and the frozen encoder reach with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    truth, wanted = _indexes(labeled, labels), _indexes(test, labels)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    counts, test_counts = words.fit_transform(labeled.texts), words.transform(test.texts)
    model = LogisticRegression(max_iter=1000).fit(counts, truth)
    tfidf = Row(
        "TF-IDF + logistic regression", accuracy(wanted, model.predict(test_counts)), "no encoder"
    )
    backbone = load_backbone("minilm")
    tokenizer = TextTokenizer(backbone.tokenizer_json, max_length=256)
    hardware = choose_hardware(make_config("supervised", {}).training)
    frozen_only = make_config("supervised", {"cohort": {"students": 0, "teacher_peft": "head"}})
    encoder = build_cohort(backbone, frozen_only, len(labels))[TEACHER]
    vectors, test_vectors = (
        embed(encoder, tokenizer.encode(t.texts).ids, hardware) for t in (labeled, test)
    )
    model = LogisticRegression(max_iter=1000).fit(vectors, truth)
    frozen = Row(
        "frozen encoder + logistic regression",
        accuracy(wanted, model.predict(test_vectors)),
        "ships the whole encoder",
    )
    return [tfidf, frozen]


def _indexes(table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
    return labels.encode(table.labels or [], table.source, table.rows)


def _bundle_row(bundle: Path, test: TextTable, labels: LabelSet) -> Row:
    predictor = Predictor.load(bundle)
    predictor(test.texts[:64])  # the first run allocates
    start = time.perf_counter()
    predicted = predictor.predict_logits(test.texts).argmax(-1)
    speed = len(test.texts) / (time.perf_counter() - start)
    size = sum(f.stat().st_size for f in bundle.iterdir()) / 1e6
    score = accuracy(_indexes(test, labels), predicted)
    return Row("exported bundle, int8", score, f"{size:.1f} MB, {speed:.0f} texts/s, no torch")


def _show(rows: list[Row], split: Split, folder: Path, console: Console) -> None:
    """Print the table and some predictions; write the table as Markdown."""
    title = f"Accuracy on {len(split.test)} test texts, {LABELED_PER_AREA} labels per area"
    table = Table(title=title)
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("")
    lines = [f"# {title}", "", "| model | accuracy | |", "|---|---|---|"]
    for row in rows:
        table.add_row(row.name, f"{row.accuracy:.3f}", row.note)
        lines.append(f"| {row.name} | {row.accuracy:.3f} | {row.note} |")
    console.print(table)
    write_text(folder / "table.md", "\n".join(lines) + "\n")
    write_json(folder / RESULTS, [asdict(row) for row in rows])

    some = split.test[:: max(1, len(split.test) // SHOWN)][:SHOWN]
    answers = Predictor.load(folder / "bundle").predict_proba([d.text for d in some])
    names = label_set_of(_table(split.labeled, "labeled")).names
    table = Table(title="Some predictions of the bundle on test texts")
    for heading in ("docstring", "says", "sure", "truth"):
        table.add_column(heading)
    for doc, answer in zip(some, answers, strict=True):
        said = names[int(answer.argmax())]
        text = doc.text if len(doc.text) <= 70 else doc.text[:69] + "…"
        style = "green" if said == doc.area else "red"
        table.add_row(text, f"[{style}]{said}[/]", f"{answer.max():.2f}", doc.area)
    console.print(table)


def draw_curve(metrics: Path, picture: Path, rows: list[Row]) -> None:
    """Draw the learners' accuracy along training, and the simpler ways as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    points = [line for line in lines if line["kind"] == "evaluation"]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    steps = [p["step"] for p in points]
    for name in points[0]["accuracy"]:
        style = "-" if name != "teacher" else "--"
        axes.plot(steps, [p["accuracy"][name] for p in points], style, marker="o", label=name)
    greys = ("0.75", "0.55", "0.35")
    for row, grey in zip(rows[:3], greys, strict=True):
        axes.axhline(row.accuracy, color=grey, linestyle=":", label=row.name)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"accuracy on {CURVE_TEXTS} test texts (lines: all)")
    axes.set_title(f"Learning from {LABELED_PER_AREA} labels per area")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)
    figure.savefig(picture)

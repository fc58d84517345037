"""`nanonet report`: one page from a run folder, for both tasks."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nanonet import Summarizer
from nanonet.core.config import DataConfig
from nanonet.core.errors import RunError
from nanonet.data.documents import read_documents
from nanonet.report import examples, page, read_run, write_report
from runs import refuse, succeed, temporary_files
from stories import flags, write_stories
from test_torch_free import ABSENT

VOID = {"meta", "link", "br", "hr", "img", "input"}
MARKUP = "<script>alert('x')</script> & \"<b>\""


class Page(html.parser.HTMLParser):
    """Refuses what is not well formed, and collects what tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(run_folder, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    (copy / "evaluations.jsonl").unlink(missing_ok=True)
    return copy


@pytest.fixture(scope="module")
def evaluated(run_folder, corpus, tmp_path_factory):
    """A run with an evaluation and its report, examples included. Read only."""
    copy = shutil.copytree(run_folder, tmp_path_factory.mktemp("evaluated") / "run")
    (copy / "evaluations.jsonl").unlink(missing_ok=True)
    succeed("report", copy, "--data", corpus / "test.csv")
    return copy


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("stories"))


@pytest.fixture(scope="module")
def summarizer(stories, tiny_bert_folder, tmp_path_factory):
    """A summarizer's run, an evaluation and its report, examples included. Read only."""
    out = tmp_path_factory.mktemp("summarizer") / "run"
    settings = flags()
    files = ["--labeled", stories / "labeled.jsonl", "--unlabeled", stories / "unlabeled.jsonl"]
    backbone = ["--backbone", tiny_bert_folder]
    succeed("train", "--task", "summarization", *files, *backbone, "--out", out, *settings)
    succeed("report", out, "--data", stories / "test.jsonl")
    return out


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# what is on the page


def test_a_run_without_an_evaluation(run):
    done = succeed("report", run)
    assert (done.out, done.err.startswith(f"{run}/report.html: ")) == ("", True)
    shown = Page(run / "report.html")
    summary = json.loads((run / "summary.json").read_text())
    assert "Classifier of 3 classes, from 30 labelled and 60 unlabelled texts" in shown.text
    assert f"{summary['selected']} is shipped. How it was chosen: agreement" in shown.text
    assert "beyond those trained on: none" in shown.text
    for name in ("teacher", "student1", "student2"):
        assert f"{summary['trainable_parameters'][name]:,}" in shown.text
        assert f"{summary['total_parameters'][name]:,}" in shown.text
    assert f"nanonet evaluate {run} --data FILE" in shown.text
    assert "nanonet train --labeled" in shown.text
    assert "[phases.teacher.objectives.supervised]" in shown.text
    assert json.loads((run / "environment.json").read_text())["versions"]["torch"] in shown.text
    assert "not finished" not in shown.text


def test_heads_that_were_fitted_are_shown(run):
    shared = {"texts": 2000, "judges": 512}
    heads = {
        "student1": {**shared, "before": 0.9, "after": 0.912, "kept": True},
        "student2": {**shared, "before": 0.904, "after": 0.904, "kept": False},
    }
    succeed("report", run)
    assert "Heads fitted" not in Page(run / "report.html").text  # too few texts for that
    change(run / "summary.json", heads=heads)
    succeed("report", run)
    shown = Page(run / "report.html").text
    assert "2,000 512 90.0 91.2 yes" in shown
    assert "2,000 512 90.4 90.4 no" in shown
    assert "Right: texts kept aside are answered as the teacher does." in shown
    with (run / "config.toml").open("a") as config:
        config.write('\n[inputs.validation]\nsource = "v.csv"\nrows = 512\n')
    succeed("report", run)
    shown = Page(run / "report.html").text
    assert "Right: validation rows are answered as they are labelled." in shown
    change(run / "summary.json", heads={"student1": shared})
    refuse("report", run, parts=["summary.json cannot be read (KeyError: 'before')"])


def test_a_chart_for_each_logged_figure(run):
    succeed("report", run)
    shown = Page(run / "report.html")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    objectives = {key.split(".")[1] for row in rows for key in row["losses"]}
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown.source)
    wanted = {f"loss: {name}" for name in objectives}
    wanted |= {"learning rate: encoder", "learning rate: head", "tokens per second"}
    assert set(captions) == wanted
    assert len(captions) == len(shown.named("svg")) == len(wanted)
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in shown.named("svg"):
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(ids)
    last = rows[-1]["losses"]["student1.supervised"]
    assert f"{last:.4g} at step {rows[-1]['step']}" in shown.text
    used = [a["xlink:href"].removeprefix("#") for a in shown.named("use")]
    assert used
    assert set(used) <= set(ids)


def test_evaluations_along_the_way_are_drawn(run):
    with (run / "metrics.jsonl").open("a") as file:
        row = {"kind": "evaluation", "step": 12, "set": "dev.csv", "accuracy": {"teacher": 0.25}}
        file.write(json.dumps(row) + "\n")
    succeed("report", run)
    assert "teacher: 0.25 at step 12" in Page(run / "report.html").text


@pytest.mark.parametrize("which", ["evaluated", "summarizer"])
def test_nothing_comes_from_elsewhere(which, request):
    shown = Page(request.getfixturevalue(which) / "report.html")
    for tag, attributes in shown.tags:
        assert tag not in ("script", "img", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert value.startswith(("#", "data:,"))
    assert not re.search(r"url\((?!#)|@import", shown.source)
    (policy,) = [m["content"] for m in shown.named("meta") if "http-equiv" in m]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize("which", ["evaluated", "summarizer"])
def test_in_a_browser(which, request):
    """Nothing is asked for, nothing is refused, and a phone need not scroll sideways."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (or name it in the variable CHROMIUM)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    url = (request.getfixturevalue(which) / "report.html").as_uri()
    wrong = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        shown = browser.new_page(viewport={"width": 360, "height": 800})
        shown.on("request", lambda asked: wrong.extend([asked.url] * (asked.url != url)))
        shown.on("console", lambda message: wrong.append(message.text))
        shown.goto(url)
        width = shown.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert wrong in ([], ["data:,"])  # the icon, which is empty
    assert width == 360


def test_an_evaluation_of_a_classifier(evaluated, corpus):
    shown = Page(evaluated / "report.html")
    (noted,) = [json.loads(x) for x in (evaluated / "evaluations.jsonl").read_text().splitlines()]
    assert f"{corpus / 'test.csv'}: 30 texts" in shown.text
    for accuracy in noted["learners"].values():
        assert f"{100 * accuracy:.1f}" in shown.text
    assert "(always the most frequent class) 33.3" in shown.text
    counts = np.array(noted["confusion"][noted["selected"]])
    assert counts.sum() == 30
    assert np.trace(counts) == round(30 * noted["accuracy"])
    for name, own in zip(("fruit", "metal", "water"), counts, strict=True):
        assert " ".join([name, *map(str, own)]) in shown.text
    assert "Surest mistakes of the shipped learner" in shown.text
    assert "Texts on which the learners differ most" in shown.text


def test_the_figures_stay_and_need_no_torch(evaluated, tmp_path):
    """What was evaluated once is in the next report, made where neither torch nor peft is."""
    absent = tuple(name for name in ABSENT if name not in ("jinja2", "matplotlib"))
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {absent!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from nanonet.cli import main; main()\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, "report", evaluated, "--out"]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "r.html")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = Page(tmp_path / "r.html")
    assert "Confusion: true classes in rows" in shown.text
    assert "Surest mistakes" not in shown.text


def test_a_summarizer(summarizer):
    shown = Page(summarizer / "report.html")
    assert "Summarizer, from 10 labelled and 12 unlabelled documents" in shown.text
    assert "test.jsonl: 8 documents" in shown.text
    (noted,) = [json.loads(x) for x in (summarizer / "evaluations.jsonl").read_text().splitlines()]
    for name in ("lead", "longest", "random", "centroid", "oracle"):
        rates = " ".join(f"{100 * value:.1f}" for value in noted[name].values())
        assert f"({name}) {rates}" in shown.text
    low, high = noted["intervals"]["rouge2"]
    assert f"{100 * noted['rouge2']:.1f} ({100 * low:.1f} to {100 * high:.1f})" in shown.text
    for which in ("closest to its reference", "in the middle", "furthest from its reference"):
        assert which in shown.text
    assert 3 <= len(shown.named("mark")) <= 9  # the budget is three sentences


def test_marked_sentences_are_those_of_predict(summarizer, stories, tmp_path):
    succeed("export", summarizer, "--out", tmp_path / "bundle")
    table = read_documents(str(stories / "test.jsonl"), DataConfig(), "en", labels="required")
    predictor = Summarizer.load(tmp_path / "bundle", threads=1)
    for example in examples.summarize(summarizer, table):
        line = int(re.search(r"line (\d+):", example.which).group(1))
        sentences = table.documents[line - 1].sentences
        assert [text for text, _ in example.sentences] == sentences
        chosen = [text for text, taken in example.sentences if taken]
        assert predictor([sentences]) == ["\n".join(chosen)]


def test_warnings_of_run_and_evaluation(run, corpus):
    with (run / "log.txt").open("a") as file:
        file.write("warning: odd thing\nwarning: odd thing\nsomething else\n")
    succeed("report", run, "--data", corpus / "labeled.csv")
    shown = Page(run / "report.html")
    assert shown.text.count("odd thing") == 1
    assert "something else" not in shown.text
    assert "30 of 30 texts" in shown.text
    assert "too good" in shown.text


def test_texts_are_escaped(run, tmp_path):
    labels = json.loads((run / "labels.json").read_text())
    change(run / "labels.json", names=[MARKUP, *labels["names"][1:]])
    with (run / "log.txt").open("a") as file:
        file.write(f"warning: {MARKUP}\n")
    row = {"kind": "evaluation", "step": 1, "set": MARKUP, "accuracy": {"<script>": 0.5, "$a^": 1}}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("labeled.csv", "<script>.csv"))
    test = tmp_path / "test.csv"
    test.write_text(f'text,label\n"{MARKUP.replace(chr(34), chr(34) * 2)}",0\nan apple,1\nold,2\n')
    succeed("report", run, "--data", test)
    shown = Page(run / "report.html")
    assert "<script" not in shown.source
    assert shown.text.count(MARKUP) >= 4  # label, warning, chart, text


# unfinished runs, damaged files


def test_a_killed_run(run):
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + '{"kind": "training", "st')
    succeed("report", run)
    shown = Page(run / "report.html")
    assert "This run is not finished: its log ends at step 12 of 12" in shown.text
    assert "is shipped" not in shown.text
    assert shown.named("svg")
    assert "Once the run is finished" in shown.text


def test_a_run_that_has_only_begun(run):
    for name in ("summary.json", "metrics.jsonl", "log.txt", "learners.safetensors"):
        (run / name).unlink()
    succeed("report", run)
    assert "Nothing has been logged yet" in Page(run / "report.html").text


def test_a_run_that_a_time_limit_stopped(run):
    change(run / "summary.json", finished=False, stopped="time limit", steps=5)
    succeed("report", run)
    text = Page(run / "report.html").text
    assert "This run is not finished (time limit at step 5 of 12)" in text
    assert "is shipped" in text


def test_an_unfinished_run_is_not_evaluated(run, corpus):
    (run / "summary.json").unlink()
    refuse("report", run, "--data", corpus / "test.csv", parts=["summary.json", "not finished"])
    assert not (run / "report.html").exists()


def test_what_is_no_run(bundle, tmp_path):
    refuse("report", tmp_path, parts=["not a run folder", "config.toml"])
    refuse("report", tmp_path / "none", parts=["does not exist"])
    refuse("report", bundle, parts=["is a bundle"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", "task = "),
        ("config.toml", 'task = "classification"'),
        ("labels.json", '{"names": 3}'),
        ("environment.json", "{}"),
        ("summary.json", '{"selected": "stud'),
        ("summary.json", "[]"),
        ("metrics.jsonl", '{"kind": "training", "step": "many"}\n'),
        ("metrics.jsonl", '{"kind": "unheard", "step": 1}\n'),
        ("evaluations.jsonl", '{"source": "x"}\n'),
        ("log.txt", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(run, name, content):
    (run / name).write_bytes(content.encode() if isinstance(content, str) else content)
    refuse("report", run, parts=[str(run / name), "cannot be read"])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"examples": 0},
        {"selected": "student9"},
        {"learners": {"student1": 1.5, "student2": 0.5}},
        {"confusion": {"student1": [[30]]}},
        {"confusion": {"student1": [[31, 0, 0], [0, -1, 0], [0, 0, 0]]}},
    ],
)
def test_an_evaluation_that_contradicts_itself(evaluated, tmp_path, change):
    copy = shutil.copytree(evaluated, tmp_path / "run")
    path = copy / "evaluations.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    refuse("report", copy, parts=[f"{path}, line 1 cannot be read"])


def test_an_evaluation_of_an_older_version(evaluated, tmp_path):
    copy = shutil.copytree(evaluated, tmp_path / "run")
    path = copy / "evaluations.jsonl"
    row = json.loads(path.read_text())
    del row["confusion"], row["warnings"]
    path.write_text(json.dumps(row | {"ece": 0.125}) + "\n")
    succeed("report", copy)
    text = Page(copy / "report.html").text
    assert f"{100 * row['macro_f1']:.1f}" in text
    assert "Confusion" not in text
    assert "ece: 0.1250" in text


# the file


def test_out_is_only_written_over_a_report(run, tmp_path):
    other = tmp_path / "notes.html"
    other.write_text("mine")
    refuse("report", run, "--out", other, parts=["no report", "--out"], status=2)
    refuse("report", run, "--out", tmp_path, parts=["is a folder"], status=2)
    refuse("report", run, "--out", tmp_path / "no" / "r.html", parts=["does not exist"], status=2)
    assert other.read_text() == "mine"
    succeed("report", run, "--out", tmp_path / "r.html")
    first = (tmp_path / "r.html").read_bytes()
    succeed("report", run, "--out", tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == first  # the same run, the same bytes


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path, monkeypatch):
    out = tmp_path / "r.html"
    out.write_text(page.MARK)

    def full(self, data):
        raise OSError(28, "No space left on device")

    found = read_run(run)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"r\.html cannot be written: No space left"):
        write_report(found, out)
    assert out.read_text() == page.MARK
    assert temporary_files(tmp_path) == []


def test_the_mark_of_a_report_is_where_it_is_looked_for(run):
    succeed("report", run)
    assert page.MARK in (run / "report.html").read_text()[: page.MARK_WITHIN]


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_its_packages(run, missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom nanonet.cli import main; main()"
    command = [sys.executable, "-c", code, "report", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == (
        "error: nanonet report needs the extra 'report': pip install 'nanonet[report]'\n"
    )


def test_a_run_made_from_python_has_no_command(run):
    change(run / "environment.json", command=["notebook.py", "--x"])
    succeed("report", run)
    text = Page(run / "report.html").text
    assert "started from Python" in text
    assert "nanonet train" not in text

"""Summarization from files to a bundle: train, evaluate, export, predict."""

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet
import pytest
import torch

from nanonet import Predictor, Summarizer
from nanonet.core.config import make_config
from nanonet.core.errors import BundleError, ConfigError, DataError, InterruptedRunError
from nanonet.core.strict import merge
from nanonet.data.documents import documents_from_lists
from nanonet.export import load_cohort
from nanonet.models.backbones import load_backbone
from nanonet.objectives.base import OBJECTIVES
from nanonet.tasks.base import FEATURES
from nanonet.tasks.documents import join_sentences
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.tasks.windows import DocumentEncoder, pad_windows
from nanonet.training.device import Hardware
from nanonet.training.evaluation import predict_logits
from nanonet.training.inputs import TrainingTables
from nanonet.training.prepare import prepare
from nanonet.training.run_folder import RunFolder
from nanonet.training.step import PhaseStep
from nanonet.training.stopping import StopRequest
from nanonet.training.tasks import make_task
from nanonet.training.train import train
from runs import refuse, succeed
from stories import FAST, chosen, flags, make_stories, write_lines

FP32 = Hardware("cpu", "fp32", "eager", 1)
METRICS = ("rouge1", "rouge2", "rougeL")
BASELINES = ("lead", "longest", "random", "centroid", "oracle")


def make_settings(folder: Path, recipe: str = "summarization", **more: object):
    values: dict[str, object] = {"task": "summarization", "backbone": {"name": str(folder)}}
    for key, value in (FAST | {k.replace("__", "."): v for k, v in more.items()}).items():
        table: object = value
        for part in reversed(key.split(".")):
            table = {part: table}
        values = merge(values, table)
    return make_config(recipe, values)


def make_tables(validation: int = 0) -> TrainingTables:
    labeled, free, held_out = (make_stories(n, seed) for n, seed in ((10, 0), (12, 1), (5, 3)))

    def table(stories, name: str, answers: bool = True):
        labels = [y for _, y in stories] if answers else None
        return documents_from_lists([t for t, _ in stories], labels, "en", name)

    return TrainingTables(
        table(labeled, "labeled"),
        table(free, "unlabeled", answers=False),
        table(held_out, "validation") if validation else None,
    )


@pytest.fixture(scope="module")
def run(story_run) -> Path:
    return story_run


@pytest.fixture(scope="module")
def bundle(story_bundle) -> Path:
    return story_bundle


# training


def test_what_a_run_says_of_itself(run):
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["task"], summary["finished"]) == ("summarization", True)
    assert summary["rows"] == {"labeled": 10, "unlabeled": 12}  # documents, not windows
    assert summary["selected"] in ("student1", "student2")
    config, _ = RunFolder(run).read_config()
    assert config.recipe == "summarization"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["losses"]["student1.supervised"] for row in rows]
    assert losses[-1] < losses[0] < 1.0


def test_sentences_of_summaries_score_higher(bundle):
    stories = make_stories(30, seed=9)
    scores = list(Summarizer.load(bundle).score([join_sentences(t) for t, _ in stories]))
    truth = np.concatenate([y for _, y in stories]).astype(bool)
    together = np.concatenate(scores)
    above = (together[truth][:, None] > together[~truth][None, :]).mean()
    assert above > 0.6  # 0.5 by chance


def test_labels_meet_the_logits_of_their_own_sentences(tiny_bert_folder):
    """What an objective reads of a batch is what each window gives alone, sentence by sentence."""
    config = make_settings(tiny_bert_folder)
    task, tables = make_task(config), make_tables()
    backbone = load_backbone(str(tiny_bert_folder))
    tokenizer = TextTokenizer(backbone.tokenizer_json, config.data.max_length)
    encoded = {
        name: task.encode(t, None if name == "unlabeled" else task.label_set(t), tokenizer)
        for name, t in tables.by_name().items()
    }
    labels = task.label_set(tables.labeled)
    made = prepare(config, backbone, FP32, encoded, labels, task, None)
    engine, learner = made.engine, made.cohort["student1"]
    torch.nn.init.normal_(learner.head.linear.weight)
    torch.nn.init.normal_(learner.head.feature_weights)
    batch = engine._draw(3)
    phase = engine.plan.phases[-1]
    views = {name: config.views.of("teacher") for name in made.cohort}
    step = PhaseStep(made.cohort, phase, batch, views, 0, 3, 10)
    own, free = step.own("student1", "labeled"), step.own("student1", "unlabeled")
    assert len(own.logits) == len(batch.labels) == sum(len(w.sizes) for w in batch.labeled)
    assert len(free.logits) == sum(len(w.sizes) for w in batch.unlabeled)
    for output, windows in ((own, batch.labeled), (free, batch.unlabeled)):
        alone = []
        for window in windows:
            extra = {k: torch.from_numpy(v) for k, v in pad_windows([window]).items()}
            ids = torch.from_numpy(window.ids)[None]
            alone.append(learner(ids, torch.ones_like(ids), **extra)[0])
        torch.testing.assert_close(output.logits[:, 1], torch.cat(alone), atol=1e-4, rtol=1e-4)
        assert not output.logits[:, 0].any()
    words = {tuple(w.ids.tolist()): w for w in encoded["labeled"].encoded.ids}
    assert all(tuple(w.ids.tolist()) in words for w in batch.labeled)


def test_the_choice_among_students_by_validation_documents(tiny_bert_folder, tmp_path):
    config = make_settings(tiny_bert_folder, training__steps=2)
    summary = train(config, lambda: make_tables(validation=5), tmp_path / "run")
    selection = summary["selection"]
    assert selection["criterion"] == "ROUGE-2 F1 at sentences=3 on 5 validation rows"
    assert selection["labels_used"] == 5
    assert all(0 <= score <= 1 for score in selection["scores"].values())


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tiny_bert_folder, tmp_path, monkeypatch):
    config = make_settings(tiny_bert_folder)
    whole = train(config, make_tables, tmp_path / "whole")
    check = StopRequest.check_clock
    calls = []

    def stop_after_7(self, seconds, max_minutes):
        calls.append(seconds)
        if len(calls) == 7:
            self.reason = "interrupted"
        check(self, seconds, max_minutes)

    monkeypatch.setattr(StopRequest, "check_clock", stop_after_7)
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, tmp_path / "parts")
    resumed = train(config, make_tables, tmp_path / "parts", mode="resume")
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["selection"] == whole["selection"]


@pytest.mark.parametrize("recipe", ["nanonet", "disco", "psnet", "distill", "self-training"])
def test_every_recipe_learns_this_task_too(recipe, tiny_bert_folder, tmp_path):
    warm = {"warmup__steps": 2} if recipe in ("disco", "psnet") else {}
    config = make_settings(tiny_bert_folder, recipe, training__steps=6, **warm)
    assert train(config, make_tables, tmp_path / "run")["finished"]


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_is_finite_on_sentences(objective, tiny_bert_folder, tmp_path):
    over = {
        "training": {"steps": 2},
        "propagation": {"at": 0.5},
        "phases": {"more": {"learners": "students", "start": 0.5, "objectives": {objective: {}}}},
    }
    config = make_config(
        "summarization",
        merge(
            merge(over, {"task": "summarization", "backbone": {"name": str(tiny_bert_folder)}}),
            {"data": {"max_length": 40}, "cohort": {"student_layers": 2}},
        ),
    )
    assert train(config, make_tables, tmp_path / "run")["finished"]  # it stops where one is not


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_backbones_and_poolings_to_the_bundle(family, pooling, request, tmp_path):
    folder = request.getfixturevalue(f"tiny_{family}_folder")
    more = {"summarization__pooling": pooling, "summarization__features": family == "bert"}
    config = make_settings(folder, training__steps=3, **more)
    train(config, make_tables, tmp_path / "run")
    succeed("export", tmp_path / "run", "--out", tmp_path / "bundle")
    documents = [join_sentences(t) for t, _ in make_stories(6, seed=4, longest=40)]
    same_scores(tmp_path / "run", tmp_path / "bundle", documents)


def same_scores(run: Path, bundle: Path, documents, atol: float = 1e-4) -> None:
    """Compare a bundle's sentence logits with torch's."""
    folder = RunFolder(run)
    config, _ = folder.read_config()
    encoder = DocumentEncoder(folder.read_tokenizer(), config.data.max_length, config.summarization)
    encoded = encoder.encode(documents)
    learner = load_cohort(folder)[folder.read_summary()["selected"]]
    logits = predict_logits(learner, encoded.ids, FP32)
    expected = encoded.merge(logits[:, 1])
    found = list(Summarizer.load(bundle).score(documents))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


# the bundle


def test_the_bundle(run, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["task"] == "summarization"
    assert manifest["settings"]["pooling"] == "mean"
    graph = onnx.load(bundle / "model.onnx").graph
    shapes = {
        given.name: [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
        for given in (*graph.input, *graph.output)
    }
    assert shapes == {
        "input_ids": ["rows", "tokens"],
        "attention_mask": ["rows", "tokens"],
        "token_type_ids": ["rows", "tokens"],
        "pooling": ["rows", "sentences", "tokens"],
        "features": ["rows", "sentences", FEATURES],
        "logits": ["rows", "sentences"],
    }
    same_scores(run, bundle, [join_sentences(t) for t, _ in make_stories(9, seed=5, longest=60)])


def test_int8(run, tmp_path):
    succeed("export", run, "--out", tmp_path / "small", "--quantize", "int8")
    documents = [join_sentences(t) for t, _ in make_stories(3, seed=5)]
    same_scores(run, tmp_path / "small", documents, atol=0.5)


def test_a_document_scores_the_same_alone_and_among_others(bundle):
    summarizer = Summarizer.load(bundle)
    documents = [join_sentences(t) for t, _ in make_stories(8, seed=6, longest=50)]
    together = list(summarizer.score(documents))
    for document, scores in zip(documents, together, strict=True):
        np.testing.assert_allclose(next(summarizer.score([document])), scores, atol=1e-4)


def test_summaries_hold_offsets_order_and_budget(bundle):
    summarizer = Summarizer.load(bundle)
    text = "  The apple is old. Iron was seen!\n\nA pear of tin? The river is new.  Plum. "
    (summary,) = summarizer.summarize([text], budget="sentences=3")
    assert len(summary.sentences) == 3
    assert len(summary.scores) == 5
    assert [s.index for s in summary.sentences] == sorted(s.index for s in summary.sentences)
    for sentence in summary.sentences:
        assert text[sentence.start : sentence.end] == sentence.text
        assert sentence.score == pytest.approx(summary.scores[sentence.index])
        assert 0 < sentence.score < 1
    best = sorted(summary.scores)[-3:]
    assert sorted(s.score for s in summary.sentences) == pytest.approx(best)
    assert summary.text.count("\n") == 2
    texts, _ = make_stories(1, seed=7, longest=30)[0]
    for words in (5, 20, 60):
        (summary,) = summarizer.summarize([texts], budget=f"words={words}")
        assert len(summary.text.split()) <= max(words, 9)


def test_odd_documents_are_answered(bundle):
    summarizer = Summarizer.load(bundle)
    many = [f"the {w} is old" for w in ("apple", "iron", "river")] * 1667
    odd = ["", " \n", "One", [], [""], ["", "pear"], ["日本語。"], many[:5000]]
    summaries = summarizer.summarize(odd)
    assert [len(s.sentences) for s in summaries] == [0, 0, 1, 0, 0, 1, 1, 3]
    assert len(summaries[-1].scores) == 5000
    assert summarizer([]) == []
    assert summarizer(["", "The apple. Iron."])[0] == ""


@pytest.mark.parametrize("documents", ["text", 3, [3], [[3]], [None], ["half \ud800"]])
def test_what_is_no_document(bundle, documents):
    with pytest.raises(DataError):
        Summarizer.load(bundle).summarize(documents)


def test_bad_budgets_and_other_tasks_are_refused(bundle, run_folder, corpus, request):
    with pytest.raises(ConfigError, match="did you mean 'words'"):
        Summarizer.load(bundle).summarize(["a"], budget="word=3")
    with pytest.raises(BundleError, match="load it with Summarizer"):
        Predictor.load(bundle)
    classifier = run_folder.parent / "bundle-of-classes"
    if not classifier.exists():
        succeed("export", run_folder, "--out", classifier)
    with pytest.raises(BundleError, match="load it with Predictor"):
        Summarizer.load(classifier)
    test = corpus / "test.csv"
    refuse("predict", classifier, "x", "--budget", "words=3", parts=["for summarizers"], status=2)
    for place in (classifier, run_folder):
        where = ["evaluate", place, "--data", test, "--block-trigrams"]
        refuse(*where, parts=["--block-trigrams is for summarizers"], status=2)


# evaluate


def scored(*arguments: object) -> dict[str, object]:
    return json.loads(succeed("evaluate", *arguments, "--json").out)


def test_evaluate_a_run_and_its_bundle(run, bundle, stories):
    how = ["--data", stories / "test.jsonl", "--budget", "ratio=0.4"]
    of_run, of_bundle = scored(run, *how), scored(bundle, *how)
    for name in BASELINES:
        assert tuple(of_run[name]) == METRICS
        assert of_run[name] == of_bundle[name]
    selected = json.loads((run / "summary.json").read_text())["selected"]
    assert {m: of_run[m] for m in METRICS} == of_run["learners"][selected]
    assert {m: of_run[m] for m in METRICS} == {m: of_bundle[m] for m in METRICS}
    assert set(of_run["learners"]) == {"teacher", "student1", "student2"}
    assert "learners" not in of_bundle
    assert (of_run["budget"], of_run["examples"]) == ("ratio=0.4", 8)
    for metric in METRICS:
        low, high = of_run["intervals"][metric]
        assert low <= of_run[metric] <= high
        margin = of_run["margins"][metric]
        best = max(of_run[name][metric] for name in BASELINES[:-1])
        assert of_run[margin["over"]][metric] == best
        assert margin["difference"] == pytest.approx(of_run[metric] - best, abs=1e-5)
        assert of_run["oracle"][metric] > best
    noted = RunFolder(run).read_evaluations()
    assert noted[-1]["rouge1"] == of_run["rouge1"]


def test_evaluate_in_words(run, stories):
    done = succeed("evaluate", run, "--data", stories / "test.jsonl")
    assert "8 documents, budget sentences=3" in done.out
    lines = done.out.splitlines()
    assert lines[1].split() == list(METRICS)
    assert [line.split()[0] for line in lines[2:8]] == ["model", *BASELINES]
    assert "against" in lines[-1]


def test_documents_of_training_are_noticed(bundle, stories):
    done = succeed("evaluate", bundle, "--data", stories / "labeled.jsonl")
    assert "10 of 10 texts" in done.err
    assert "too good" in done.err


def test_evaluate_leaves_out_what_has_no_reference(bundle, tmp_path):
    rows = [
        {"sentences": ["the apple", "iron", "tin"], "summary": ["the apple"]},
        {"sentences": [], "summary": ["x"]},
        {"sentences": ["a pear", "tin"], "summary": ""},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    done = succeed("evaluate", bundle, "--data", path, "--budget", "sentences=1", "--json")
    assert json.loads(done.out)["examples"] == 1
    assert "1 document without a sentence left out" in done.err
    assert "1 document with an empty summary left out" in done.err


# predict


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_predict_answers_every_row_in_order(bundle, tmp_path, suffix):
    rows = [
        {"sentences": ["the apple is old", "iron", "tin"]},
        {"sentences": []},
        {"sentences": ["one"]},
    ]
    out = tmp_path / f"out.{suffix}"
    source = write_lines(tmp_path / "a.jsonl", rows)
    how = ["--output", out, "--budget", "sentences=2"]
    done = succeed("predict", bundle, "--input", source, *how)
    assert done.err.startswith(f"{out}: 3 documents, ")
    if suffix == "parquet":
        answers = pyarrow.parquet.read_table(out).to_pylist()
    elif suffix == "csv":
        with out.open(newline="") as stream:
            answers = list(csv.DictReader(stream))
        for answer in answers:
            answer["sentences"] = json.loads(answer["sentences"])
    else:
        answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [a["text"] for a in answers] == ["the apple is old iron tin", "", "one"]
    assert [len(a["sentences"]) for a in answers] == [2, 0, 1]
    for answer in answers:
        lines = [s["text"] for s in answer["sentences"]]
        assert answer["summary"] == "\n".join(lines)
        for s in answer["sentences"]:
            assert answer["text"][s["start"] : s["end"]] == s["text"]


def test_predict_on_the_screen(bundle, stories):
    done = succeed("predict", bundle, "The apple. Iron is old.", "A pear.", "--budget", "words=2")
    assert done.out.count("\n\n") == 1
    source = stories / "unlabeled.jsonl"
    lines = succeed("predict", bundle, "--input", source).out.splitlines()
    assert len(lines) == 12
    assert all(len(json.loads(line)["sentences"]) == 3 for line in lines)


# what goes wrong


def test_training_refuses_what_it_cannot_use(tiny_bert_folder, tmp_path):
    out = ["--backbone", tiny_bert_folder, "--out", tmp_path / "run", "--task", "summarization"]
    source = write_lines(tmp_path / "a.jsonl", [{"sentences": ["a", "b"], "labels": [1]}])
    refuse("train", "--labeled", source, *out, *flags(), parts=["line 1", "1 labels but 2"])
    source = write_lines(tmp_path / "a.jsonl", [{"sentences": ["a", "b"], "labels": [1, 1]}])
    refuse("train", "--labeled", source, *out, *flags(), parts=["every sentence is in"])
    source = write_lines(tmp_path / "a.jsonl", [{"sentences": ["a"], "summary": ["zzz"]}])
    refuse("train", "--labeled", source, *out, *flags(), parts=["no document that can be used"])
    bad = flags(summarization__budget="pages=2")
    refuse("train", "--labeled", source, *out, *bad, parts=["budget 'pages=2'"], status=2)
    bad = flags(summarization__language="english (UK)")
    refuse("train", "--labeled", source, *out, *bad, parts=["language code"], status=2)
    bad = [*flags(), "--set", "propagation.labels=co-trained"]
    says = ["is for texts that have one of several labels: the task summarization has"]
    refuse("train", "--labeled", source, *out, *bad, parts=says, status=2)
    assert not (tmp_path / "run").exists()


def test_training_counts_what_it_leaves_out(tiny_bert_folder, tmp_path):
    rows = [{"sentences": t, "summary": chosen(t, y)} for t, y in make_stories(4)]
    rows += [{"sentences": ["a b"], "summary": ["zzz"]}, {"sentences": []}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    out = ["--backbone", tiny_bert_folder, "--out", tmp_path / "run", "--task", "summarization"]
    done = succeed("train", "--labeled", source, *out, *flags(training__steps=1))
    assert "1 document whose summary has no word in common" in done.err + done.out
    assert "1 document without a sentence left out" in done.err + done.out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows"] == {"labeled": 4}

"""Smaller summarizers and what they cost, and summarizers tuned to a machine."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from nanonet import NanoNetSummarizer, Summarizer
from nanonet.core.bundle import MODEL, TOKENIZER, read_manifest
from nanonet.core.config import SummarizationConfig
from nanonet.core.errors import BundleError, ConfigError
from nanonet.core.files import sha256_file
from nanonet.data.documents import documents_from_lists
from nanonet.export import Compression, export, samples
from nanonet.export.agreement import Measure, read_counts
from nanonet.export.samples import DocumentSample, draw_documents
from nanonet.runtime import choices, tuning
from nanonet.runtime.choices import TUNING, recorded
from nanonet.runtime.tuning import tune
from nanonet.tasks.documents import join_sentences
from nanonet.tasks.rouge import METRICS
from nanonet.training.run_folder import RunFolder
from runs import refuse, succeed
from stories import FAST, flags, make_stories
from test_compression import folder  # noqa: F401 (a fixture)

DOCUMENTS = [texts for texts, _ in make_stories(12, seed=21, longest=30)]


@pytest.fixture(scope="module")
def run(stories, folder, tmp_path_factory) -> Path:  # noqa: F811
    """A run whose tokenizer can be trimmed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    files = ["--labeled", stories / "summarized.jsonl", "--unlabeled", stories / "unlabeled.jsonl"]
    how = ["--task", "summarization", "--backbone", folder, *flags()]
    succeed("train", *files, *how, "--out", out)
    return out


@pytest.fixture(scope="module")
def plain(run) -> Path:
    out = run.parent / "plain"
    export(run, out)
    return out


@pytest.fixture
def copy(story_bundle, tmp_path, monkeypatch) -> Path:
    """A bundle of our own, and a cache of our own."""
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(story_bundle, tmp_path / "copy")


def sample(documents=DOCUMENTS, references=None, seen=False) -> DocumentSample:
    made = [join_sentences(document) for document in documents]
    return DocumentSample("these", made, references, seen, SummarizationConfig())


# what agreement is


def test_agreement_is_the_f1_of_the_chosen_sentences():
    agreement = sample().agreement
    some = [frozenset({0, 1, 2}), frozenset({4}), frozenset()]
    assert agreement(some, some) == 1.0
    others = [frozenset({1, 2, 3}), frozenset({4, 5}), frozenset()]
    assert agreement(some, others) == pytest.approx((2 / 3 + 2 / 3) / 2)  # none chosen: no answer
    assert agreement([frozenset()], [frozenset()]) == 1.0
    assert agreement([frozenset({1})], [frozenset({2})]) == 0.0


def test_answers_are_those_of_the_summarizer(plain):
    manifest = read_manifest(plain)
    drawn = sample([*DOCUMENTS, [], ["one"]])
    measure = Measure(plain / MODEL, (plain / TOKENIZER).read_text(), manifest.max_length, drawn)
    summaries = Summarizer.load(plain).summarize([*DOCUMENTS, [], ["one"]])
    assert measure._answers == [frozenset(s.index for s in y.sentences) for y in summaries]
    some = drawn.answers(measure._session, measure._rows, [3, 1])
    assert some == [measure._answers[3], measure._answers[1]]


def test_what_is_drawn(monkeypatch):
    monkeypatch.setattr(samples, "DOCUMENTS", 5)
    labels = [y for _, y in make_stories(12, seed=21, longest=30)]
    table = documents_from_lists(DOCUMENTS, labels, "en")
    drawn = draw_documents(table, SummarizationConfig(), seen=False)
    assert len(drawn.documents) == len(drawn.references) == 5
    pairs = list(zip(table.documents, table.summaries, strict=True))
    assert all(p in pairs for p in zip(drawn.documents, drawn.references, strict=True))
    assert draw_documents(table, SummarizationConfig(), seen=True).references is None
    best = [frozenset(np.flatnonzero([int(c) for c in word])) for word in table.labels]
    places = [table.documents.index(document) for document in drawn.documents]
    found = drawn.scores([best[i] for i in places])
    assert found == dict.fromkeys(METRICS, pytest.approx(1.0))


def test_the_vocabulary_is_as_small_as_agreement_allows(plain, run, monkeypatch):
    monkeypatch.setattr("nanonet.export.agreement.SIZES", (4, 8, 16, 32, 64))
    run_folder = RunFolder(run)
    measure = Measure(plain / MODEL, run_folder.read_tokenizer(), 40, sample())
    counts = read_counts(run_folder)
    chosen = [measure.smallest_vocabulary(counts, wanted) for wanted in (0.0, 0.8, 1.0)]
    assert chosen[0] == 4
    assert chosen == sorted(chosen), "the more agreement, the more tokens"


# export


def test_what_a_smaller_summarizer_costs_is_shown(run, stories, tmp_path):
    out = tmp_path / "b"
    done = succeed(
        *("export", run, "--out", out, "--trim-vocabulary=40", "--quantize", "int8"),
        *("--data", stories / "test.jsonl"),
    )
    head, *steps, last = done.out.splitlines()[1:]
    assert head.split() == ["MB", "agreement", *METRICS]
    kept = read_manifest(out).metrics["vocabulary"]
    assert [line.split("  ")[0] for line in steps] == [
        *("32 bits", f"{kept['kept']} of {kept['of']} tokens", "int8")
    ]
    assert last == f"measured on 8 documents of {stories / 'test.jsonl'}"
    first, *_, small = read_manifest(out).metrics["steps"]
    assert (first["agreement"], first["accuracy"]) == (1.0, None)
    assert small["bytes"] < first["bytes"]
    shown = json.loads(succeed("evaluate", out, "--data", stories / "test.jsonl", "--json").out)
    for metric in METRICS:
        assert small["rouge"][metric] == pytest.approx(shown[metric], abs=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int8-static", "mixed", "int4"])
def test_every_number_of_bits(run, plain, tmp_path, kind):
    done = succeed("export", run, "--out", tmp_path / "b", "--quantize", kind)
    assert "measured on 12 documents of " in done.out
    (_, step) = read_manifest(tmp_path / "b").metrics["steps"]
    assert step["name"] == kind
    assert step["rouge"] is None  # of training documents, ROUGE says nothing
    small, whole = Summarizer.load(tmp_path / "b"), Summarizer.load(plain)
    drawn = sample()
    answers = [
        [frozenset(s.index for s in summary.sentences) for summary in model.summarize(DOCUMENTS)]
        for model in (small, whole)
    ]
    assert drawn.agreement(*answers) > 0.5
    assert ("warning: " in done.err) == (step["agreement"] < 0.95)


def test_too_little_agreement_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(DocumentSample, "agreement", lambda *_: 0.5)
    how = ["--quantize", "int8", "--min-agreement", "0.9"]
    parts = ["answers 50.00% as before on 12 documents of", "--min-agreement 0.9", "nothing was"]
    refuse("export", run, "--out", tmp_path / "b", *how, parts=parts)
    assert list(tmp_path.iterdir()) == []


def test_bad_data_is_refused_before_anything_is_written(run, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": 3}\n')
    how = ["--quantize", "int8", "--data", data]
    refuse("export", run, "--out", tmp_path / "b", *how, parts=["line 1", "'text'", "int 3"])
    data.write_text('{"body": "a"}\n')
    refuse("export", run, "--out", tmp_path / "b", *how, parts=["no column 'sentences' or"])
    assert not (tmp_path / "b").exists()


def test_documents_without_references_are_enough(run, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"sentences": DOCUMENTS[0]}) + "\n")
    done = succeed("export", run, "--out", tmp_path / "b", "--quantize", "int8", "--data", data)
    assert done.out.splitlines()[1].split() == ["MB", "agreement"]
    assert f"measured on 1 documents of {data}" in done.out


def test_the_estimator_measures_on_its_own_documents(folder):  # noqa: F811
    stories = make_stories(8)
    settings = {key: value for key, value in FAST.items() if key != "training.steps"}
    model = NanoNetSummarizer(
        backbone=str(folder),
        steps=2,
        settings=settings,
        quantize="int8-static",
        trim_vocabulary=30,
    ).fit([t for t, _ in stories], [y for _, y in stories], unlabeled=DOCUMENTS)
    metrics = model.summarizer_.manifest.metrics
    assert metrics["measured_on"] == "12 documents of unlabeled"
    assert metrics["vocabulary"]["frequent"] == 30
    assert len(model.predict(DOCUMENTS)) == len(DOCUMENTS)


# tune


@pytest.mark.parametrize("threads", [0, 1])
def test_tuning_changes_no_answer(copy, threads, monkeypatch):
    monkeypatch.setattr(tune, "__kwdefaults__", tune.__kwdefaults__ | {"seconds": 0})
    before = list(Summarizer.load(copy, threads=1).score(list(map(join_sentences, DOCUMENTS))))
    tuned = Summarizer.load(copy, threads=threads, tune=True)
    assert (copy / TUNING).is_file()
    for model in (tuned, Summarizer.load(copy, threads=threads)):
        after = model.score(list(map(join_sentences, DOCUMENTS)))
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_what_was_recorded_is_used(copy):
    tuned = tune(copy, texts=["An apple. Tin.", DOCUMENTS[0]], threads=1, seconds=0)
    choices.record(copy, tuned)
    choice = recorded(copy, read_manifest(copy), 1)
    assert Summarizer.load(copy, threads=1)._tokens_per_chunk == choice.tokens_per_chunk


def test_a_sample_of_documents_is_made_of_windows(copy):
    tokenizer = tuning._read_tokenizer(copy, read_manifest(copy))
    for texts in ((), DOCUMENTS):
        drawn = tuning.make_sample(tokenizer, [3, 30, 1000], texts)
        assert len(drawn.single) == tuning.SINGLE_ROWS
        assert max(len(row) for row in drawn.batched) <= 40
        assert all(len(row.sizes) for row in (*drawn.single, *drawn.batched))


def test_lower_precision_is_for_classifiers(copy):
    with pytest.raises(ConfigError, match="min_agreement is for classifiers"):
        tune(copy, min_agreement=0.9)


def test_export_keeps_the_fastest_that_agrees(run, stories, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tuning.compare, "__kwdefaults__", tuning.compare.__kwdefaults__ | {"seconds": 0}
    )
    out, data = tmp_path / "b", stories / "test.jsonl"
    done = succeed("export", run, "--out", out, "--tune", "--data", data)
    assert "windows/s  agreement" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if "onnxruntime" in line][
        -1
    ] == "int8"
    manifest = read_manifest(out)
    assert f"quantization {manifest.quantization}" in done.out
    assert recorded(out, manifest) is not None
    assert Summarizer.load(out)(DOCUMENTS[:1])


ALONE = """
import sys
from pathlib import Path
import numpy as np
from nanonet import Summarizer
from nanonet.runtime.choices import Choice, Tuning, conditions, record, FORMAT
from nanonet.core.bundle import read_manifest
from nanonet.tasks.documents import join_sentences

bundle = Path(sys.argv[1])
documents = [join_sentences(["the apple is old", "iron and tin", "a pear"] * n) for n in (1, 9, 3)]
expected = list(Summarizer.load(bundle, threads=1).score(documents))
sha256 = read_manifest(bundle).files["model.onnx"]
choice = Choice("openvino", 1, 64, 1.0, 1.0)
record(bundle, Tuning(FORMAT, conditions(sha256), [choice]))
summarizer = Summarizer.load(bundle, threads=1)
assert type(summarizer._engine).__name__ == "OpenVino"
for one, other in zip(summarizer.score(documents), expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-3)
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
def test_openvino_in_a_process_of_its_own(copy):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(copy)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# bundles that do not fit together


def refit(bundle: Path, **files: Path) -> None:
    """Put other files into a bundle, and their checksums into its manifest."""
    text = (bundle / "manifest.json").read_text()
    for name, source in files.items():
        name = {"model": MODEL, "tokenizer": TOKENIZER}[name]
        text = text.replace(sha256_file(bundle / name), sha256_file(source))
        shutil.copy(source, bundle / name)
    (bundle / "manifest.json").write_text(text)


def test_a_classifier_s_model_in_a_summarizer(copy, bundle):
    refit(copy, model=bundle / MODEL)
    with pytest.raises(BundleError, match="damaged: its model takes attention_mask, input_ids,"):
        Summarizer.load(copy)


def test_a_tokenizer_of_another_model(copy, plain):
    refit(copy, tokenizer=plain / TOKENIZER)  # of more tokens
    with pytest.raises(BundleError, match=r"damaged: .*ids of its tokenizer go up to"):
        Summarizer.load(copy)


def test_compression_needs_documents(run, tmp_path, monkeypatch):
    monkeypatch.setattr("nanonet.export.run_sample", lambda *_: None)
    with pytest.raises(BundleError, match="--data FILE"):
        export(run, tmp_path / "b", compression=Compression("int8-static"))
    assert not (tmp_path / "b").exists()
    done = succeed("export", run, "--out", tmp_path / "b", "--quantize", "int8")
    assert "warning: agreement was not measured" in done.err


def test_hugging_face_s_format_is_for_classifiers(run, tmp_path):
    parts = ["of the task summarization", "export a bundle"]
    refuse("export", run, "--out", tmp_path / "hf", "--format", "hf", parts=parts)
    assert list(tmp_path.iterdir()) == []

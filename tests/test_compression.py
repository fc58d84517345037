"""From a run to a smaller bundle: vocabulary and bits, measured on texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from nanonet.core.errors import BundleError
from nanonet.data.readers import table_from_lists
from nanonet.export import Compression, export
from nanonet.export.agreement import SIZES, Measure, read_counts
from nanonet.export.samples import TextSample
from nanonet.runtime.predictor import Predictor
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from runs import FAST, refuse, succeed
from test_vocabulary import SPECIAL
from tiny import WORDS, bert_config, make_model, make_settings, make_texts


def word_pieces() -> Tokenizer:
    """Letters, half the words whole, endings, and many tokens that no text holds."""
    from tokenizers import models, normalizers, pre_tokenizers, processors

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*SPECIAL, *letters, *("##" + c for c in letters), *WORDS, "##er", "##ing"]
    tokens += [f"nowhere{c}" for c in letters]
    model = models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("word_pieces")
    tokenizer = word_pieces()
    make_model(bert_config(vocab_size=tokenizer.get_vocab_size())).save_pretrained(out)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def run(folder, corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    files = ["--labeled", corpus / "labeled.csv", "--unlabeled", corpus / "unlabeled.csv"]
    succeed("train", *files, "--backbone", folder, *FAST, "--out", out)
    return out


@pytest.fixture(scope="module")
def plain_bundle(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "plain"
    export(run, out)
    return out


@pytest.fixture(scope="module")
def plain(plain_bundle) -> Predictor:
    return Predictor.load(plain_bundle)


def test_a_run_counts_the_tokens_of_its_texts(run, corpus):
    counts = read_counts(RunFolder(run))
    tokenizer = TextTokenizer(RunFolder(run).read_tokenizer(), 32)
    texts = [json.loads(line)["text"] for line in read_rows(corpus)]
    ids = np.concatenate(tokenizer.encode(texts).ids)
    assert counts.tolist() == np.bincount(ids, minlength=tokenizer.size).tolist()


def read_rows(corpus: Path) -> list[str]:
    import csv

    rows = []
    for name in ("labeled.csv", "unlabeled.csv"):
        with (corpus / name).open(newline="") as file:
            rows += [json.dumps({"text": row["text"]}) for row in csv.DictReader(file)]
    return rows


def test_texts_of_kept_tokens_are_answered_exactly_as_before(run, plain, tmp_path):
    seen = int((read_counts(RunFolder(run)) > 0).sum())
    manifest = export(run, tmp_path / "b", compression=Compression(vocabulary=seen))
    small = Predictor.load(tmp_path / "b")
    texts, _ = make_texts(30, seed=5)
    np.testing.assert_array_equal(small.predict_logits(texts), plain.predict_logits(texts))
    vocabulary = manifest.metrics["vocabulary"]
    assert vocabulary["frequent"] == seen
    assert seen < vocabulary["kept"] < vocabulary["of"]
    first, last = manifest.metrics["steps"]
    assert last["bytes"] < first["bytes"]
    assert last["agreement"] == 1.0


def test_other_words_fall_into_letters_and_none_becomes_unknown(run, plain, tmp_path):
    export(run, tmp_path / "b", compression=Compression(vocabulary=1))
    small = Predictor.load(tmp_path / "b")
    texts = ["nowherea iron rivering", "apple zincer", "unheard of"]
    assert small.encode(texts).unknown_share == plain.encode(texts).unknown_share == 0
    assert len(small.encode(texts).ids[0]) > len(plain.encode(texts).ids[0])


def test_the_vocabulary_is_as_small_as_agreement_allows(plain_bundle, run, monkeypatch):
    """With a model whose answer is the number of tokens: a word in pieces is another answer."""
    monkeypatch.setattr("nanonet.export.agreement.SIZES", (4, 8, 16, 32, 64))
    monkeypatch.setattr("nanonet.export.samples.logits_of", count_tokens)
    folder = RunFolder(run)
    texts, _ = make_texts(30, seed=5)
    sample = TextSample("these", texts, None, seen=False)
    measure = Measure(plain_bundle / "model.onnx", folder.read_tokenizer(), 32, sample)
    counts = read_counts(folder)
    chosen = [measure.smallest_vocabulary(counts, wanted) for wanted in (0.0, 0.3, 1.0)]
    assert chosen[0] == 4
    assert chosen == sorted(set(chosen)), "the more agreement, the more tokens"
    assert chosen[2] >= len({word for text in texts for word in text.split()})


def count_tokens(session, ids):
    return np.eye(99)[[len(row) for row in ids]]


def test_texts_that_training_read_do_not_choose_the_tokens_they_are_measured_with(
    plain_bundle, run
):
    """Counted themselves, each text's rare words would be kept for it."""
    folder = RunFolder(run)
    texts = make_texts(10, seed=5)[0]
    tokenizer = TextTokenizer(folder.read_tokenizer(), 32)
    own = np.bincount(np.concatenate(tokenizer.encode(texts).ids), minlength=tokenizer.size)
    for seen, left in ((True, 3), (False, 3 + own)):
        sample = TextSample("these", texts, None, seen)
        measure = Measure(plain_bundle / "model.onnx", folder.read_tokenizer(), 32, sample)
        assert (measure.counts_elsewhere(own + 3) == left).all()


def test_trimmed_and_quantized(run, plain, corpus, tmp_path):
    out = tmp_path / "b"
    said = succeed(
        *("export", run, "--out", out, "--trim-vocabulary=40", "--quantize", "int8"),
        *("--data", corpus / "test.csv"),
    ).out
    names = [line.split("  ")[0] for line in said.splitlines()[2:-1]]
    kept = Predictor.load(out).manifest.metrics["vocabulary"]
    assert names == ["32 bits", f"{kept['kept']} of {kept['of']} tokens", "int8"]
    texts, _ = make_texts(30, seed=5)
    same = np.mean([a == b for a, b in zip(Predictor.load(out)(texts), plain(texts), strict=True)])
    assert same >= 0.8


def test_texts_given_as_lists_are_not_there_to_measure_on(folder, tmp_path):
    labeled = table_from_lists(*make_texts(4))
    settings = make_settings(folder, "training.steps=2")
    train(settings, lambda: TrainingTables(labeled), tmp_path / "run")
    for compression in (Compression(vocabulary="auto"), Compression("int8", min_agreement=0.9)):
        with pytest.raises(BundleError, match="--data FILE"):
            export(tmp_path / "run", tmp_path / "b", compression=compression)
        assert not (tmp_path / "b").exists()
    outcome = succeed("export", tmp_path / "run", "--out", tmp_path / "b", "--quantize", "int8")
    assert "warning: agreement was not measured" in outcome.err
    refuse(
        *("export", tmp_path / "run", "--out", tmp_path / "c", "--quantize", "int8-static"),
        parts=["--quantize int8-static needs texts", "--data FILE"],
    )


def test_a_run_of_an_older_version_has_no_counts(run, tmp_path):
    import shutil

    old = tmp_path / "old"
    shutil.copytree(run, old)
    RunFolder(old).token_counts.unlink()
    message = refuse(
        *("export", old, "--out", tmp_path / "b", "--trim-vocabulary"),
        parts=["no token counts", "train again"],
    )
    assert "\n" not in message.strip()
    assert not (tmp_path / "b").exists()


def test_sizes_grow_and_reach_the_largest_vocabularies():
    assert list(SIZES) == sorted(set(SIZES))
    assert SIZES[0] == 500
    assert SIZES[-1] > 200_000


def test_the_estimator_measures_on_its_own_texts(folder):
    from nanonet import NanoNetClassifier

    texts, labels = make_texts(4)
    settings = {"data.max_length": 32, "cohort.student_layers": 2, "training.threads": 1}
    model = NanoNetClassifier(
        backbone=str(folder),
        steps=2,
        settings=settings,
        quantize="int8-static",
        trim_vocabulary=30,
    ).fit(texts, labels, unlabeled=make_texts(5, seed=1)[0])
    metrics = model.predictor_.manifest.metrics
    assert metrics["measured_on"] == "15 texts of unlabeled"
    assert metrics["vocabulary"]["frequent"] == 30
    assert [step["accuracy"] for step in metrics["steps"]] == [None] * 3
    assert len(model.predict(texts)) == len(texts)

"""Long texts stand where their sentences do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nanonet.data.readers import table_from_lists
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import pretrained_learner
from nanonet.training import engine as engine_module
from nanonet.training import spreading
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.device import Hardware
from nanonet.training.engine import Engine
from nanonet.training.evaluation import embed
from nanonet.training.guard import Guard
from nanonet.training.inputs import TrainingTables
from nanonet.training.passages import LONG, Sentences, are_long, is_end, place, sentences_of
from nanonet.training.processes import ALONE
from nanonet.training.rows import TrainingRows
from nanonet.training.spreading import spread_labels
from nanonet.training.train import train
from test_resume import interrupted
from tiny import WORDS, make_settings, make_texts

FP32 = Hardware("cpu", "fp32", "eager", 1)
CLS, SEP, STOP = 1, 2, 9
SENTENCES = Sentences(np.array([CLS]), np.array([SEP]), np.array([STOP]))


def row(*body):
    return np.array([CLS, *body, SEP])


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ([], [[]]),
        ([5, 6], [[5, 6]]),
        ([5, 6, 7, STOP], [[5, 6, 7, STOP]]),
        ([5, 6, 7, STOP, 4, 5, 6, STOP], [[5, 6, 7, STOP], [4, 5, 6, STOP]]),
        ([5, 6, 7, STOP, 4, 5, 6, 7], [[5, 6, 7, STOP], [4, 5, 6, 7]]),
        # Short ones join the next, and at the end the last.
        ([5, STOP, 6, 7, STOP, 4, 5, 6, 7], [[5, STOP, 6, 7, STOP], [4, 5, 6, 7]]),
        ([5, 6, 7, STOP, 4, STOP], [[5, 6, 7, STOP, 4, STOP]]),
        ([STOP] * 3, [[STOP] * 3]),
    ],
)
def test_a_text_falls_into_sentences(body, parts):
    found = SENTENCES.of(row(*body))
    assert [part.tolist() for part in found] == [row(*part).tolist() for part in parts]


@pytest.mark.parametrize(
    ("token", "ends"),
    [
        *((token, True) for token in (".", " !", "?", "...", "。", "##.", '."', "?)")),
        *((token, False) for token in (",", "U.S", "##", "", " ", '"', "##s")),
    ],
)
def test_which_tokens_end_a_sentence(token, ends):
    assert is_end(token) is ends


def test_a_tokenizer_tells_what_stands_around_texts_and_what_ends_sentences():
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, ".": 4, "b": 5, "!": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, special)
    tokenizer.enable_padding(length=8)  # as MiniLM's does
    found = sentences_of(tokenizer.to_str())
    assert [part.tolist() for part in (found.before, found.after, found.ends)] == [[1], [2], [4, 6]]


def test_long_is_what_the_median_text_is():
    assert not are_long([])
    assert not are_long([np.zeros(LONG), np.zeros(3), np.zeros(1000)])
    assert are_long([np.zeros(LONG + 1), np.zeros(3), np.zeros(1000)])


def test_a_text_stands_where_its_sentences_do_on_average(tiny_bert_folder):
    learner = pretrained_learner(load_backbone(str(tiny_bert_folder)))
    texts = [row(5, 6, 7, STOP, 8, 5, 8, STOP, 6, 6), row(7, 7), row(5, 6, 7, STOP, 4, 8, 8, 8)]
    placed = place(learner, texts, FP32, SENTENCES)
    for text, vector in zip(texts, placed, strict=True):
        mean = embed(learner, SENTENCES.of(text), FP32).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(place(learner, texts, FP32), embed(learner, texts, FP32))
    assert not np.allclose(placed[0], embed(learner, texts, FP32)[0], atol=1e-3)


def test_the_pretrained_learner_shares_what_the_backbone_holds(tiny_bert_folder):
    backbone = load_backbone(str(tiny_bert_folder))
    learner = pretrained_learner(backbone)
    own, given = (dict(m.named_parameters()) for m in (learner.encoder, backbone.encoder))
    assert own.keys() == given.keys()
    assert all(own[name] is given[name] for name in own)
    assert not learner.training


def test_training_leaves_the_pretrained_space_as_it_was(tmp_path, tiny_bert_folder, monkeypatch):
    seen = []
    original = Engine.run

    def spy(engine, *rest):
        before = {n: p.clone() for n, p in engine.backbone.encoder.named_parameters()}
        position = original(engine, *rest)
        seen.append((before, dict(engine.backbone.encoder.named_parameters())))
        return position

    monkeypatch.setattr(Engine, "run", spy)
    texts, labels = make_texts(20)

    def tables():
        return TrainingTables(
            table_from_lists(texts[:12], labels[:12], source="labeled"),
            table_from_lists(texts[12:], source="unlabeled"),
        )

    train(make_settings(tiny_bert_folder), tables, tmp_path / "run")
    before, after = seen[-1]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("setting", "words", "better", "expected"),
    [
        ("true", 40, True, True),
        ("true", 40, False, False),
        ("true", 9, True, False),
        ("false", 40, True, False),
    ],
)
def test_only_long_texts_of_a_run_that_are_better_so_fall_into_sentences(
    tmp_path, tiny_bert_folder, monkeypatch, setting, words, better, expected
):
    seen = []

    def spread(*given):
        seen.append(given[1].sentences if given[-1] else None)
        return spread_labels(*given)

    def refer(guard, learner, rows, sentences):
        seen.append(sentences)

    monkeypatch.setattr(engine_module, "spread_labels", spread)
    monkeypatch.setattr(engine_module, "better_in_sentences", lambda *_: better)
    monkeypatch.setattr(Guard, "refer", refer)
    monkeypatch.setattr("nanonet.training.prepare.names_tell", lambda *_: True)
    monkeypatch.setattr("nanonet.training.passages.LONG", 20)
    texts, labels = make_texts(60)
    texts = [" ".join((text.split() * words)[:words]) for text in texts]
    names = [WORDS[label] for label in labels]

    def tables():
        return TrainingTables(
            table_from_lists(texts[:12], names[:12], source="labeled"),
            table_from_lists(texts[12:], source="unlabeled"),
        )

    extra = (f"propagation.sentences={setting}", "data.max_length=64")
    train(make_settings(tiny_bert_folder, *extra), tables, tmp_path / "run")
    assert [place is not None for place in seen] == [expected, expected]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["spreading"]["by_sentences"] is expected
    assert 0.0 <= summary["spreading"]["names_heard"] <= 1.0


@pytest.mark.parametrize("better", [True, False])
def test_sentences_are_better_where_labels_then_say_more_often_what_names_say(monkeypatch, better):
    """By sentences (or whole) texts stand where names put them, which know it one way only."""
    truth = np.array([0, 0, 1, 1] * 10)
    right = np.eye(2, dtype=np.float32)[truth]
    wrong = np.eye(2, dtype=np.float32)[np.arange(40) % 2]

    def placed(learner, rows, hardware, sentences, processes):
        if len(rows) == 2:
            return np.eye(2, dtype=np.float32)
        return right if (sentences is not None) is better else wrong

    monkeypatch.setattr(spreading, "place", placed)
    names = [0.1 * wrong, right]  # of whole texts, then of sentences: the sum is right
    monkeypatch.setattr(spreading, "name_similarities", lambda *_: names.pop(0))
    monkeypatch.setattr(spreading, "random_rows", lambda n, *_: np.arange(n))
    settings = make_settings("nowhere")
    both = [row(5), row(6)]
    rows = TrainingRows(both, np.array([0, 1]), [row(7)] * 40, names=both, sentences=SENTENCES)
    given = (settings, FP32, ALONE, "a backbone")
    assert spreading.better_in_sentences(None, rows, *given) is better
    for without in (replace(rows, names=()), replace(rows, sentences=None)):
        assert not spreading.better_in_sentences(None, without, *given)
    assert not spreading.better_in_sentences(None, rows, settings, FP32, ALONE, None)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_with_names_and_sentences_resumes_to_the_bit(
    tmp_path, tiny_bert_folder, monkeypatch, step
):
    """Labels spread after two of eight steps; unlabelled texts are learnt from after four."""
    monkeypatch.setattr("nanonet.training.prepare.names_tell", lambda *_: True)
    monkeypatch.setattr("nanonet.training.passages.LONG", 4)
    monkeypatch.setattr(engine_module, "better_in_sentences", lambda *_: True)
    texts, labels = make_texts(60)
    names = [WORDS[label] for label in labels]

    def tables():
        return TrainingTables(
            table_from_lists(texts[:12], names[:12], source="labeled"),
            table_from_lists(texts[12:], source="unlabeled"),
        )

    extra = ["training.steps=8", "guard.every=0.25", "propagation.at=0.25"]
    for phase in ("preparation.stop", "teacher.start", "students.start"):
        extra.append(f"phases.{phase}=0.5")
    config = make_settings(tiny_bert_folder, *extra)
    train(config, tables, tmp_path / "whole")
    interrupted(config, tmp_path / "parts", step, tables)
    train(config, tables, tmp_path / "parts", mode="resume")
    whole, parts = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "parts")
    )
    assert whole["spreading"]["by_sentences"] is True
    assert whole["spreading"]["names_heard"] is not None
    for key in ("weights_sha256", "guard", "spreading", "selected"):
        assert parts[key] == whole[key]
    references = [
        read_tensors(list_checkpoints(tmp_path / name / "checkpoints")[-1] / "guard.safetensors")
        for name in ("whole", "parts")
    ]
    assert torch.equal(references[0]["reference"], references[1]["reference"])

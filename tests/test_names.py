"""Labels' names as examples of their classes."""

import json

import numpy as np
import pytest

from nanonet.data.readers import table_from_lists
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import pretrained_learner
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training import names as names_module
from nanonet.training import prepare as prepare_module
from nanonet.training import spreading
from nanonet.training.device import Hardware
from nanonet.training.engine import Engine
from nanonet.training.evaluation import embed
from nanonet.training.inputs import TrainingTables
from nanonet.training.names import NAME_TEMPLATE, as_text, name_rows, name_similarities, names_tell
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from tiny import WORDS, make_settings, make_texts, make_tokenizer


@pytest.fixture
def tokenizer():
    return TextTokenizer(make_tokenizer().backend_tokenizer.to_str(), 16)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("World", "World"),
        ("Sci/Tech", "Sci Tech"),
        ("apple_pay_or_google_pay", "apple pay or google pay"),
        ("EducationalInstitution", "Educational Institution"),
        ("  spam ", "spam"),
        ("NASA", "NASA"),
        ("größe-Änderung", "größe Änderung"),
        ("7", "7"),
    ],
)
def test_names_become_words(name, text):
    assert as_text(name) == text


def test_names_are_read_if_all_of_them_are_words(tokenizer):
    one, two = WORDS[:2]
    rows = name_rows([one, f"{one}_{two}"], tokenizer)
    expected = tokenizer.encode([one, f"{one} {two}"]).ids
    assert [row.tolist() for row in rows] == [row.tolist() for row in expected]
    assert name_rows(["0", "1"], tokenizer) == []
    assert name_rows([one, "?!"], tokenizer) == []


@pytest.mark.parametrize(
    ("names", "tell"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], True),
        ([[0.0, 1.0], [1.0, 0.0]], False),
        ([[1.0, 1.0], [1.0, 1.0]], False),  # all the same: the first class for every text
    ],
)
def test_names_that_are_nearest_to_other_classes_tell_nothing(monkeypatch, names, tell):
    monkeypatch.setattr(names_module, "embed", lambda learner, rows, hardware: np.array(rows))
    texts = [[1, 0.1], [0.9, 0.2], [0.1, 1.0]]
    assert names_tell(names, texts, np.array([0, 0, 1]), None, None) is tell


def named_tables():
    texts, labels = make_texts(8)
    names = [WORDS[label] for label in labels]
    return TrainingTables(
        table_from_lists(texts[:12], names[:12], source="labeled"),
        table_from_lists(texts[12:], source="unlabeled"),
    )


@pytest.mark.parametrize(
    ("tells", "setting", "expected"),
    [(True, "true", 3), (False, "true", 0), (True, "false", 0)],
)
def test_a_run_learns_from_names_that_tell(
    tmp_path, tiny_bert_folder, monkeypatch, tells, setting, expected
):
    seen = []
    original = Engine.run

    def spy(engine, *rest):
        seen.append(engine.rows)
        return original(engine, *rest)

    monkeypatch.setattr(Engine, "run", spy)
    monkeypatch.setattr(prepare_module, "names_tell", lambda *_: tells)
    settings = make_settings(tiny_bert_folder, f"training.name_examples={setting}")
    train(settings, named_tables, tmp_path / "run")
    (rows,) = seen
    assert len(rows.labeled) == len(rows.labels) == 12 + expected
    assert rows.labels[12:].tolist() == [0, 1, 2][:expected]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["name_examples"] == expected
    assert summary["rows"]["labeled"] == 12  # the user's own


def test_numbers_are_no_names(tmp_path, tiny_bert_folder, monkeypatch):
    monkeypatch.setattr(prepare_module, "names_tell", lambda *_: pytest.fail("asked"))
    texts, labels = make_texts(8)

    def tables():
        free = table_from_lists(texts[12:], source="unlabeled")
        return TrainingTables(table_from_lists(texts[:12], labels[:12], source="labeled"), free)

    assert train(make_settings(tiny_bert_folder), tables, tmp_path / "run")["name_examples"] == 0


def test_names_stand_in_sentences(tokenizer):
    one, two = WORDS[:2]
    rows = name_rows([one, two], tokenizer, "a {} b")
    expected = tokenizer.encode([f"a {one} b", f"a {two} b"]).ids
    assert [row.tolist() for row in rows] == [row.tolist() for row in expected]
    assert name_rows(["0", "1"], tokenizer, "text {}") == []


def test_a_text_is_as_near_to_names_as_its_cosines_say(tiny_bert_folder, tokenizer):
    backbone = load_backbone(str(tiny_bert_folder))
    hardware = Hardware("cpu", "fp32", "eager", 1)
    texts, names = tokenizer.ids(make_texts(4)[0]), tokenizer.ids([*WORDS[:3]])
    found = name_similarities(names, texts, backbone, hardware)
    learner = pretrained_learner(backbone)
    cosines = embed(learner, texts, hardware) @ embed(learner, names, hardware).T
    both = cosines - cosines.mean(1, keepdims=True) - cosines.mean(0) + cosines.mean()
    np.testing.assert_allclose(found, both / both.std(), atol=1e-3)
    assert np.isfinite(name_similarities(names[:1] * 3, texts, backbone, hardware)).all()


@pytest.mark.parametrize(
    ("tells", "setting", "count"), [(True, "true", 3), (False, "true", 0), (True, "false", 0)]
)
def test_names_have_a_say_when_labels_spread(
    tmp_path, tiny_bert_folder, monkeypatch, tells, setting, count
):
    seen = []
    original = spreading.label_texts

    def spy(vectors, labels, texts, config, seed, names):
        seen.append((names, texts, len(vectors), len(labels)))
        return original(vectors, labels, texts, config, seed, names)

    monkeypatch.setattr(spreading, "label_texts", spy)
    monkeypatch.setattr(prepare_module, "names_tell", lambda *_: tells)
    train(
        make_settings(tiny_bert_folder, f"propagation.names={setting}"),
        named_tables,
        tmp_path / "run",
    )
    view, texts, rows, labeled = seen[0]
    assert (view is not None) is (count > 0)
    if view is not None:
        assert view.similarities.shape == (rows, count)
        assert view.known == labeled - count == 12
        backbone = load_backbone(str(tiny_bert_folder))
        labels = RunFolder(tmp_path / "run").read_labels()
        prompts = name_rows(labels.names, TextTokenizer(backbone.tokenizer_json, 64), NAME_TEMPLATE)
        fp32 = Hardware("cpu", "fp32", "eager", 1)
        expected = name_similarities(prompts, texts, backbone, fp32)
        correlation = np.corrcoef(view.similarities.ravel(), expected.ravel())[0, 1]
        assert correlation > 0.95  # bf16 where the machine has it

"""Labels' names as examples of their classes."""

import json

import numpy as np
import pytest

from nanonet.data.readers import table_from_lists
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training import names as names_module
from nanonet.training import prepare as prepare_module
from nanonet.training.engine import Engine
from nanonet.training.inputs import TrainingTables
from nanonet.training.names import as_text, name_rows, names_tell
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

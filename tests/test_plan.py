"""How many steps and rows a run takes."""

import pytest

from nanonet.core.config import make_config
from nanonet.core.errors import RunError
from nanonet.training.plan import with_enough_steps, with_enough_unlabeled
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_training import Notes
from tiny import make_settings, make_tables


@pytest.mark.parametrize(
    ("labels", "classes", "batch", "steps"),
    [
        (40, 4, 16, 300),  # the recipe's
        (770, 77, 16, 867),  # 120 rows of each class in the teacher's two thirds
        (7700, 77, 16, 2166),  # three passes over all
        (770, 77, 64, 300),
    ],
)
def test_many_classes_or_labels_take_more_steps(labels, classes, batch, steps):
    config = make_config("nanonet", {"training": {"labeled_batch": batch}})
    assert with_enough_steps(config, labels, classes).training.steps == steps
    fixed = make_config("nanonet", {"training": {"steps": 7, "labeled_batch": batch}})
    assert with_enough_steps(fixed, labels, classes) == fixed  # who says how many gets so many


@pytest.mark.parametrize(
    ("tokens", "steps", "rows"),
    [
        (50.0, 300, 32),
        (202.0, 300, 32),  # long ones: no fewer
        (25.0, 300, 64),
        (13.5, 300, 119),
        (1.0, 300, 128),
        (15.0, 867, 37),  # many steps take their share
    ],
)
def test_short_texts_take_more_rows(tokens, steps, rows):
    config = make_config("nanonet", {"training": {"steps": steps}})
    assert with_enough_unlabeled(config, tokens).training.unlabeled_batch == rows
    fixed = make_config("nanonet", {"training": {"unlabeled_batch": 32}, "warmup": {"steps": 100}})
    assert with_enough_unlabeled(fixed, tokens) == fixed


@pytest.mark.parametrize(
    ("tokens", "rows", "steps"),
    [(50.0, 64, 100), (202.0, 64, 100), (20.0, 64, 250), (10.0, 64, 400), (10.0, 128, 250)],
)
def test_short_texts_take_more_steps_of_warm_up(tokens, rows, steps):
    config = make_config("nanonet", {"warmup": {"unlabeled_batch": rows}})
    assert with_enough_unlabeled(config, tokens).warmup.steps == steps
    fixed = make_config("nanonet", {"warmup": {"unlabeled_batch": rows, "steps": 0}})
    assert with_enough_unlabeled(fixed, tokens).warmup.steps == 0


@pytest.mark.parametrize("tokens", [4.0, 10.0, 13.5, 50.0])
def test_what_texts_take_is_settled_once(tokens):
    config = make_config("nanonet", {})
    settled = with_enough_unlabeled(with_enough_steps(config, 770, 77), tokens)
    assert with_enough_unlabeled(with_enough_steps(settled, 770, 77), tokens) == settled


def test_a_run_on_short_texts_is_resumed_with_its_own_settings(tmp_path, tiny_bert_folder):
    out = tmp_path / "run"
    more = ("training.more_rows=true", "training.more_steps=true", "training.unlabeled_batch=2")
    summary = train(make_settings(tiny_bert_folder, *more), make_tables, out)
    settled, _ = RunFolder(out).read_config()
    assert settled.training.unlabeled_batch == 8
    (out / "summary.json").unlink()
    assert train(settled, make_tables, out, mode="resume") == summary


def test_a_run_takes_the_rows_its_texts_allow_and_says_so(tmp_path, tiny_bert_folder):
    out, display = tmp_path / "run", Notes()
    settings = make_settings(tiny_bert_folder, "training.more_rows=true")
    summary = train(settings, make_tables, out, display=display)
    assert any("unlabelled texts a step instead of" in said for said in display.said)
    assert RunFolder(out).read_config()[0].training.unlabeled_batch == 32  # 4 x 8
    (out / "summary.json").unlink()
    assert train(settings, make_tables, out, mode="resume") == summary


def test_a_run_takes_the_steps_its_labels_ask_for_and_is_resumed_so(tmp_path, tiny_bert_folder):
    out, tables = tmp_path / "run", make_tables()
    more = ("training.more_steps=true", "training.labeled_batch=90")
    config = make_settings(tiny_bert_folder, "training.steps=2", *more)
    summary = train(config, lambda: tables, out)
    assert (summary["steps"], summary["finished"]) == (4, True)  # 3 classes * 120 rows / 90
    assert RunFolder(out).read_config()[0].training.steps == 4
    (out / "summary.json").unlink()
    assert train(config, lambda: tables, out, mode="resume")["steps"] == 4
    (out / "summary.json").unlink()
    other = make_settings(tiny_bert_folder, "training.steps=7", "training.labeled_batch=90")
    with pytest.raises(RunError, match=r"training\.steps=4, not 7"):
        train(other, lambda: tables, out, mode="resume")
    larger = make_tables(labeled=45)  # 135 labels: five steps
    with pytest.raises(RunError, match="labeled differs"):
        train(config, lambda: larger, out, mode="resume")

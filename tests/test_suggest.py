"""Texts to label next."""

import csv

import numpy as np
import pytest

from nanonet import NanoNetClassifier
from nanonet.core.errors import ConfigError, DataError
from nanonet.data.readers import Columns, read_table, table_from_lists
from nanonet.data.writers import write_table
from nanonet.scoring import suggest_by_bundle, suggest_by_run
from nanonet.tasks.informative import most_informative
from runs import refuse, succeed


def gradients(probabilities, vectors):
    """The gradients that `most_informative` never makes, (n, C * H)."""
    doubt = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(-1)]
    return (doubt[:, :, None] * vectors[:, None, :]).reshape(len(doubt), -1)


def draw(probabilities, vectors, count, seed):
    """k-means++ over explicit gradients, the longest one first."""
    g, rng = gradients(probabilities, vectors), np.random.default_rng(seed)
    eps = np.finfo(float).eps
    chosen = [int((g**2).sum(-1).argmax())]
    while len(chosen) < count:
        to_chosen = ((g[:, None] - g[chosen][None]) ** 2).sum(-1).clip(eps)
        nearest = np.minimum((g**2).sum(-1) + eps, to_chosen.min(1))
        nearest[chosen] = 0
        chosen.append(int(rng.choice(len(g), p=nearest / nearest.sum())))
    return chosen


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=50)
    vectors = rng.normal(size=(50, 6))
    return probabilities, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_drawn_as_k_means_draws_centres_among_the_gradients(cloud, seed):
    assert most_informative(*cloud, 12, seed) == draw(*cloud, 12, seed)


def test_without_vectors_all_texts_are_alike(cloud):
    probabilities, _ = cloud
    same = np.ones((50, 1))
    assert most_informative(probabilities, None, 9, 0) == draw(probabilities, same, 9, 0)


def test_fewer_are_the_first_of_more(cloud):
    assert most_informative(*cloud, 30, 3)[:7] == most_informative(*cloud, 7, 3)


def test_a_text_in_doubt_comes_before_sure_ones_and_its_copies_after_other_doubts():
    sure, first, second = [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.45, 0.55]
    probabilities = np.array([sure, first, first, first, second, sure])
    assert most_informative(probabilities, None, 2, 0) == [1, 4]


def test_all_rows_are_given_where_more_are_wanted_even_without_any_doubt():
    probabilities = np.eye(3)[[0, 0, 1, 2]]
    assert sorted(most_informative(probabilities, None, 10, 0)) == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def pool(corpus):
    """Labelled training texts, others, and one of the others again."""
    labeled = read_table(corpus / "labeled.csv", Columns(), labels="ignored").texts
    others = read_table(corpus / "test.csv", Columns(), labels="ignored").texts
    return table_from_lists([*labeled[:5], *others, others[3]], None, "pool")


def test_a_run_leaves_out_what_is_labelled_and_copies(run_folder, pool):
    found = suggest_by_run(run_folder, pool, 8)
    assert len({s.text for s in found.rows}) == len(found.rows) == 8
    assert (found.labeled, found.copies) == (5, 1)
    for s in found.rows:
        assert pool.texts[s.row - 1] == s.text
        assert 5 < s.row <= 35


def test_a_bundle_does_the_same(bundle, pool):
    found = suggest_by_bundle(bundle, pool, 40)
    assert sorted(s.row for s in found.rows) == list(range(6, 36))
    assert (found.labeled, found.copies) == (5, 1)


def test_a_run_asks_all_its_learners(run_folder, pool):
    """The probability shown is that of the mean of the cohort."""
    from nanonet.scoring.classification import predict_run
    from nanonet.tasks.metrics import softmax

    table = table_from_lists(pool.texts, [0] * len(pool.texts), "pool")
    said = predict_run(run_folder, table).logits
    mean = np.mean([softmax(z.astype(np.float64)) for z in said.values()], axis=0)
    for s in suggest_by_run(run_folder, pool, 4).rows:
        assert s.guess == mean[s.row - 1].argmax()
        assert s.probability == pytest.approx(mean[s.row - 1].max(), abs=1e-5)


def test_texts_that_are_all_labelled_are_refused(bundle, corpus):
    table = read_table(corpus / "labeled.csv", Columns(), labels="ignored")
    with pytest.raises(DataError, match="training had the labels of all its texts"):
        suggest_by_bundle(bundle, table, 3)


def test_none_wanted_is_refused(bundle, pool):
    with pytest.raises(ConfigError, match="at least 1"):
        suggest_by_bundle(bundle, pool, 0)


def test_the_command_line_shows_rows_guesses_and_texts(run_folder, corpus):
    lines = succeed("suggest", run_folder, "--data", corpus / "test.csv", "-n", 5).out
    rows = [line.split("\t") for line in lines.splitlines()]
    source = (corpus / "test.csv").read_text().splitlines()
    assert len(rows) == 5
    for row, guess, probability, text in rows:
        assert guess in ("fruit", "metal", "water")
        assert 1 / 3 <= float(probability) <= 1
        assert text in source[int(row) - 1]


@pytest.mark.parametrize("name", ["to_label.csv", "to_label.jsonl", "to_label.parquet"])
def test_a_file_to_fill_in_has_labels_once_it_is_filled_in(bundle, corpus, tmp_path, name):
    out = tmp_path / name
    data = corpus / "unlabeled.csv"
    said = succeed("suggest", bundle, "--data", data, "-n", 6, "--output", out)
    assert said.out == ""
    with pytest.raises(DataError, match="no label; label this row or remove it"):
        read_table(out, Columns(), labels="required")
    hints = read_table(out, Columns(label="guess"), labels="required")
    assert len(hints.texts) == 6
    assert set(hints.labels) <= {0, 1, 2}
    filled = tmp_path / f"filled_{name}"
    write_table(filled, {"text": hints.texts, "label": hints.labels, "guess": hints.labels})
    assert read_table(filled, Columns(), labels="required").labels == hints.labels


def test_the_columns_of_a_file_to_fill_in(bundle, corpus, tmp_path):
    out = tmp_path / "to_label.csv"
    succeed("suggest", bundle, "--data", corpus / "unlabeled.csv", "-n", 4, "--output", out)
    for row in csv.DictReader(out.read_text().splitlines()):
        assert set(row) == {"text", "label", "row", "guess", "guess_name", "probability"}
        assert row["label"] == ""
        assert row["guess_name"] == ["fruit", "metal", "water"][int(row["guess"])]
        assert 1 / 3 <= float(row["probability"]) <= 1


def test_what_is_filled_in_is_never_overwritten(bundle, corpus, tmp_path):
    out = tmp_path / "to_label.csv"
    out.write_text("text,label\na,1\n")
    data = corpus / "unlabeled.csv"
    wanted = ["--data", data, "-n", 2, "--output", out]
    refuse("suggest", bundle, *wanted, parts=["is there already"], status=2)
    assert out.read_text() == "text,label\na,1\n"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--data", "missing.csv", "-n", 2], "missing.csv", 1),
        (["--data", "{texts}", "-n", 0], "0 is not in the range", 2),
        (["--data", "{texts}"], "Missing option '-n'", 2),
        (["--data", "{texts}", "-n", 2, "--output", "a.xlsx"], "unknown file type", 1),
        (["--data", "{texts}", "-n", 2, "--output", "no/a.csv"], "folder no does not exist", 1),
        (["--data", "{texts}", "-n", 2, "--output", "{texts}"], "is the file of --data", 2),
        (["--data", "{texts}", "-n", 2, "--set", "data.text_column=body"], "body", 1),
        (["--data", "{texts}", "-n", 2, "--set", "training.steps=3"], "only keys under data", 2),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(bundle, corpus, arguments, message, status):
    given = [str(a).replace("{texts}", str(corpus / "unlabeled.csv")) for a in arguments]
    refuse("suggest", bundle, *given, parts=[message], status=status)


def test_a_folder_that_is_neither_is_refused(corpus, tmp_path):
    wanted = ["--data", corpus / "test.csv", "-n", 2]
    refuse("suggest", tmp_path, *wanted, parts=["neither a run folder nor a bundle"])


def test_a_summarizer_is_refused(story_bundle, corpus):
    wanted = ["--data", corpus / "test.csv", "-n", 2]
    refuse("suggest", story_bundle, *wanted, parts=["for classifiers only"], status=2)


def test_fewer_texts_than_wanted_are_all_named_with_a_warning(bundle, corpus):
    said = succeed("suggest", bundle, "--data", corpus / "test.csv", "-n", 500)
    count = len(said.out.splitlines())
    assert f"no more than {count} texts to label" in said.err


def test_the_estimator_names_positions_in_the_list(bundle, pool):
    model = NanoNetClassifier.load(bundle)
    found = model.suggest(["", *pool.texts], n=5)  # an empty text is never named
    same = [s.row for s in suggest_by_bundle(bundle, pool, 5).rows]
    assert found.tolist() == same

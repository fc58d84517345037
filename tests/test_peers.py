"""Peers in the benchmark: what users would pick instead, on the same rows."""

from importlib.util import find_spec

import numpy as np
import pytest

from nanonet.benchmark.memory import Probe
from nanonet.benchmark.methods import KINDS, Files
from nanonet.benchmark.peers import Frozen, Peer, SetFit, TfIdf
from nanonet.benchmark.stats import make_row
from nanonet.core.errors import BackboneError, ConfigError, MissingExtraError
from nanonet.data.readers import Columns
from nanonet.data.writers import write_table
from nanonet.models.backbones import load_backbone
from runs import refuse, succeed
from tiny import make_texts

PEERS = ("tfidf", "frozen", "finetune", "setfit")
FEW = {"finetune": {"steps": 30, "learning_rate": 3e-3}, "setfit": {"steps": 8}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    """Ten texts of each class to learn from, others to score on."""
    folder = tmp_path_factory.mktemp("peers")
    texts, labels = make_texts(40)
    names = ("labeled", "unlabeled", "test")
    for name, rows in zip(names, (slice(0, 30), slice(30, 60), slice(60, 120)), strict=True):
        write_table(folder / f"{name}.csv", {"text": texts[rows], "label": labels[rows]})
    return Files(*(folder / f"{name}.csv" for name in names), Columns())


def plan_of(kind: str, backbone, **fields) -> dict:
    common = {"backbone": {"name": str(backbone)}, "data": {"max_length": 32}}
    return KINDS.get(kind)(**fields).plan(common, {}, None, load_backbone)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # setfit's, on machines without a GPU
@pytest.mark.parametrize("kind", PEERS)
def test_a_peer_learns_and_its_figures_are_those_of_any_method(
    kind, files, tiny_bert_folder, tmp_path
):
    if kind == "setfit" and find_spec("setfit") is None:
        pytest.skip("the extra 'bench' is not installed")
    plan = plan_of(kind, tiny_bert_folder, **FEW.get(kind, {}))
    cells = [
        KINDS.get(kind).run(plan, files, seed=seed, folder=tmp_path, threads=1) for seed in (0, 0)
    ]
    cell = cells[0]
    assert cells[1]["accuracy"] == cell["accuracy"]  # one seed, one result
    # Chance is a third; a random encoder hardly tells the words apart that make up the classes.
    assert cell["accuracy"] > (0.9 if kind == "tfidf" else 0.4)
    assert 0 <= cell["macro_f1"] <= 1
    assert cell["labels_used_to_choose"] == 0
    trained, total = cell["trainable_parameters"]["model"], cell["total_parameters"]["model"]
    assert trained == total if kind != "frozen" else trained < total
    assert cell["exported_bytes"] == 4 * total
    assert cell["texts_per_second"] > 0
    assert cell["training_seconds"] > 0
    assert cell["memory"]["peak_mb"] > 50
    row = make_row(kind, "", [{**cell, "draw": 0, "seed": 0}], [])
    assert row.teacher is row.best_student is row.students is None
    assert row.exported_mb == cell["exported_bytes"] / 1e6


def test_frozen_is_a_regression_on_the_encoders_vectors(files, tiny_bert_folder):
    """Against sentence-transformers, which embeds in its own way."""
    transformers = pytest.importorskip("sentence_transformers")
    from sklearn.linear_model import LogisticRegression

    texts, labels = make_texts(20)
    truth = np.unique(labels, return_inverse=True)[1]
    fitted = Frozen.fit(plan_of("frozen", tiny_bert_folder), texts[:30], truth[:30], 0, Probe())
    encoder = transformers.SentenceTransformer(str(tiny_bert_folder), device="cpu")
    encoder.max_seq_length = 32
    vectors = encoder.encode(texts, normalize_embeddings=True)
    expected = LogisticRegression(max_iter=1000).fit(vectors[:30], truth[:30])
    np.testing.assert_array_equal(fitted.predict(texts), expected.predict(vectors))


def test_what_a_result_depends_on(tiny_bert_folder, tiny_modernbert_folder):
    """Another encoder or setting is another cell; TF-IDF knows no encoder."""
    assert plan_of("frozen", tiny_bert_folder) != plan_of("frozen", tiny_modernbert_folder)
    assert plan_of("finetune", tiny_bert_folder) != plan_of("finetune", tiny_bert_folder, steps=3)
    assert plan_of("tfidf", tiny_bert_folder) == plan_of("tfidf", tiny_modernbert_folder)


def test_it_is_refused_before_anything_runs(files, tiny_bert_folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="positions for 64"):
        Frozen().plan(
            {"backbone": {"name": str(tiny_bert_folder)}, "data": {"max_length": 99}},
            {},
            None,
            load_backbone,
        )
    with pytest.raises(BackboneError, match="does not exist"):
        plan_of("finetune", tmp_path / "none")
    monkeypatch.setattr("nanonet.benchmark.peers.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs the extra 'bench': pip install"):
        SetFit.check_installed()
    suite = tmp_path / "suite.toml"
    train, test = str(files.labeled), str(files.test)
    suite.write_text(
        f"[datasets.d]\ntrain = {train!r}\ntest = {test!r}\nlabeled_per_class = 1\n"
        "[methods.a]\nkind = 'tfidf'\n[methods.b]\nkind = 'setfit'\n"
    )
    out = tmp_path / "out"
    refuse("benchmark", suite, "--out", out, parts=["'setfit'", "nanonet[bench]"])
    assert not out.exists()
    succeed("benchmark", suite, "--only", "a", "--draws", 1, "--jobs", 1, "--out", out)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("kind = 'tfidf'\nngrams = 0", ["methods.a", "'ngrams' is 0", "at least 1"]),
        ("kind = 'finetune'\nstep = 3", ["methods.a", "'step'", "did you mean 'steps'"]),
        ("kind = 'frosen'", ["methods.a", "unknown kind of method 'frosen'", "'frozen'"]),
    ],
)
def test_a_bad_table_is_one_line(files, tmp_path, line, parts):
    suite = tmp_path / "suite.toml"
    train, test = str(files.labeled), str(files.test)
    suite.write_text(f"[datasets.d]\ntrain = {train!r}\ntest = {test!r}\n\n[methods.a]\n{line}\n")
    refuse("benchmark", suite, "--out", tmp_path / "out", parts=parts, status=2)


def test_kinds_are_peers():
    assert {kind for kind in KINDS if issubclass(KINDS.get(kind), Peer)} == set(PEERS)
    assert TfIdf().ngrams == 1
    assert (SetFit().steps, SetFit().batch_size) == (200, 16)

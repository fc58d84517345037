import pickle
import sys

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from nanonet import NanoNetClassifier, Predictor
from nanonet.core.errors import BundleError, ConfigError, DataError, RunError
from nanonet.export import model as model_module
from nanonet.training.train import train
from runs import SETTINGS, succeed
from tiny import make_texts

TEXTS, LABELS = make_texts(8)
NEW = make_texts(4, seed=9)[0]
WORDS = ["fruit", "metal", "water"]


@pytest.fixture(scope="module")
def settings() -> dict[str, object]:
    return {k: v for k, v in SETTINGS.items() if k != "training.steps"}


@pytest.fixture(scope="module")
def new(tiny_bert_folder, settings):
    """Make a classifier that fits in no time."""

    def make(**changes):
        values = {"backbone": str(tiny_bert_folder), "steps": 4, "settings": settings}
        return NanoNetClassifier(**(values | changes))

    return make


@pytest.fixture(scope="module")
def fitted(new) -> NanoNetClassifier:
    """Fitted on words. Read only."""
    return new().fit(TEXTS, [WORDS[y] for y in LABELS], unlabeled=NEW)


@pytest.fixture
def no_export(monkeypatch, fitted):
    """Fit without the seconds that torch's exporter takes: the tests look at other things.

    Every model of three classes then predicts as `fitted` does.
    """

    def write(learner, path):
        path.write_bytes(fitted._files["model.onnx"])

    monkeypatch.setattr(model_module, "write_onnx", write)
    monkeypatch.setattr(model_module, "check_parity", lambda *_: 0.0)


@pytest.fixture
def tables(monkeypatch, no_export):
    """What fit passes to training."""
    import nanonet.training.train as module

    seen = []

    def watch(config, read_data, *rest, **more):
        seen.append((config, read_data()))
        return train(config, read_data, *rest, **more)

    monkeypatch.setattr(module, "train", watch)
    return seen


# scikit-learn's own checks that need no numeric X


CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("name", CHECKS)
def test_scikit_learn_check(name):
    check = getattr(estimator_checks, name)
    check("NanoNetClassifier", NanoNetClassifier())


def test_parameters_are_default_constructible():
    estimator_checks.check_parameters_default_constructible(
        "NanoNetClassifier", NanoNetClassifier()
    )


def test_tags():
    tags = NanoNetClassifier().__sklearn_tags__()
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert is_classifier(NanoNetClassifier())


def test_clone_copies_parameters_but_not_the_fit(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "predictor_")
    assert clone(fitted.set_params(verbose=False)).verbose is False


# fit


def test_fit_and_predict(fitted):
    assert fitted.classes_.tolist() == WORDS
    assert fitted.summary_["finished"] is True
    assert fitted.summary_["steps"] == 4
    probabilities = fitted.predict_proba(NEW)
    assert probabilities.shape == (len(NEW), 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    predicted = fitted.predict(NEW)
    assert predicted.tolist() == [WORDS[i] for i in probabilities.argmax(-1)]
    assert 0 <= fitted.score(TEXTS, [WORDS[y] for y in LABELS]) <= 1
    assert fitted.predict([]).shape == (0,)


def test_fit_returns_self_and_can_be_repeated(new, no_export):
    model = new()
    assert model.fit(TEXTS, LABELS) is model
    first = model.summary_["weights_sha256"]
    assert model.fit(TEXTS, LABELS).summary_["weights_sha256"] == first
    assert model.set_params(random_state=1).fit(TEXTS, LABELS).summary_["weights_sha256"] != first


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([5, 7, 30], [5, 7, 30]),
        (["b", "a", "c"], ["a", "b", "c"]),
        (["9", "10", "11"], ["10", "11", "9"]),
        ([0.0, 1.0, 2.0], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array])
def test_classes_are_labels_as_given_and_sorted(new, no_export, labels, classes, kind):
    given = kind([labels[y] for y in LABELS])
    model = new().fit(kind(TEXTS), given)
    assert model.classes_.tolist() == classes
    assert model.classes_.tolist() == np.unique(given).tolist()
    assert set(model.predict(NEW).tolist()) <= set(classes)
    # columns follow classes_, whatever the order inside the bundle is
    names = [model.predictor_.labels.names[i] for i in model._order]
    assert names == [str(c) for c in classes]
    expected = model.predictor_(NEW)
    assert [str(label) for label in model.predict(NEW)] == expected
    model.score(TEXTS, given)  # labels of another kind than the given ones would be refused


@pytest.mark.parametrize("mark", [-1, np.int64(-1), -1.0])
def test_rows_marked_minus_one_are_unlabelled(new, tables, mark):
    labels = [mark if i % 4 == 3 else LABELS[i] for i in range(len(LABELS))]
    new().fit(TEXTS, labels, unlabeled=NEW)
    ((_, read),) = tables
    assert read.unlabeled.texts == [*TEXTS[3::4], *NEW]
    assert -1 not in read.labeled.labels
    assert len(read.labeled.texts) == len(TEXTS) - len(TEXTS[3::4])


def test_rows_marked_minus_one_among_words(new, tables):
    labels = np.array([WORDS[y] for y in LABELS], dtype=object)
    labels[::6] = -1
    model = new().fit(np.array(TEXTS, dtype=object), labels)
    ((_, read),) = tables
    assert read.unlabeled.texts == TEXTS[::6]
    assert model.classes_.tolist() == WORDS


def test_unlabelled_texts_are_used(new, tables):
    new().fit(TEXTS, LABELS, unlabeled=np.array(NEW))
    new().fit(TEXTS, LABELS)
    assert tables[0][1].unlabeled.texts == NEW
    assert tables[1][1].unlabeled is None


def test_validation_texts_choose_the_student(new, no_export):
    model = new().fit(TEXTS, LABELS, validation=(NEW, make_texts(4, seed=9)[1]))
    assert model.summary_["selection"]["labels_used"] == len(NEW)


def test_settings_reach_training(new, tables, settings):
    more = {**settings, "views.token_cutoff": 0.3, "phases.students.learning_rate": 0.5}
    new(settings=more, steps=2, random_state=np.int64(8)).fit(TEXTS, LABELS)
    ((config, _),) = tables
    assert config.views.token_cutoff == 0.3
    assert config.phases["students"].learning_rate == 0.5
    assert config.training.steps == 2
    assert config.seed == 8


def test_random_state_may_be_a_generator_or_none(new, tables):
    for state in (np.random.RandomState(3), np.random.RandomState(3), None):
        new(random_state=state).fit(TEXTS, LABELS)
    seeds = [config.seed for config, _ in tables]
    assert seeds[0] == seeds[1] != seeds[2]


def test_the_run_folder_is_kept_where_asked(new, no_export, tmp_path):
    run = tmp_path / "run"
    new(run_dir=run).fit(TEXTS, LABELS)
    assert (run / "summary.json").is_file()
    with pytest.raises(RunError, match="exists"):  # nothing is replaced without being asked
        new(run_dir=str(run)).fit(TEXTS, LABELS)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_nothing_is_shown_unless_asked(new, no_export, capfd):
    new().fit(TEXTS, LABELS)
    assert capfd.readouterr() == ("", "")
    new(verbose=True).fit(TEXTS, LABELS)
    assert "selected student" in capfd.readouterr().err


# what is refused


@pytest.mark.parametrize(
    ("texts", "labels", "more", "message"),
    [
        (TEXTS[:3], [0, 1], {}, "3 texts but 2 labels"),
        ("one text", [0] * 8, {}, "X is one text"),
        (TEXTS[:2], [0, 1], {"unlabeled": "one text"}, "unlabeled is one text"),
        (["a", 3], [0, 1], {}, "X, y, row 2.*int 3"),
        (["a", "b"], [0, 0], {}, "only one class"),
        (["a", "b"], [-1, -1], {}, "X, y has no rows"),
        (["a", "b"], [0, "x"], {}, "mixes numbers and words"),
        (["a", "b"], [True, False], {}, "truth value"),
        (["a", "b"], [0.5, 1], {}, "0.5"),
        (["a", ""], [0, 1], {}, "row 2.*empty"),
        (["a", "b"], [0, 1], {"validation": (["c"], [2])}, "validation, row 1: unknown label 2"),
        (["a", "b"], [0, 1], {"validation": (["c"], [0, 1])}, "1 texts but 2 labels"),
        ([], [], {}, "no rows"),
    ],
)
def test_texts_and_labels_that_cannot_be_used(new, texts, labels, more, message):
    with pytest.raises(DataError, match=message):
        new().fit(texts, labels, **more)


def test_settings_that_cannot_be_used(new):
    with pytest.raises(ConfigError, match=r"training\.step' .did you mean 'steps'"):
        new(settings={"training.step": 3}).fit(TEXTS, LABELS)
    with pytest.raises(ConfigError, match="unknown recipe"):
        new(recipe="none").fit(TEXTS, LABELS)


def test_a_failed_fit_leaves_the_model_unfitted(new):
    model = new()
    with pytest.raises(DataError):
        model.fit(TEXTS, [0] * len(TEXTS))
    with pytest.raises(NotFittedError):
        model.predict(NEW)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "save"])
def test_before_fit(method):
    with pytest.raises(NotFittedError):
        getattr(NanoNetClassifier(), method)(["text"])


@pytest.mark.parametrize("texts", ["one text", ["a", 3], np.zeros((2, 2))])
def test_predict_of_what_is_no_list_of_texts(fitted, texts):
    with pytest.raises(DataError, match="text"):
        fitted.predict(texts)


# save and load


def test_saved_and_loaded_models_are_equal(fitted, tmp_path):
    fitted.save(tmp_path / "deep" / "bundle")
    loaded = NanoNetClassifier.load(tmp_path / "deep" / "bundle")
    np.testing.assert_array_equal(loaded.predict_proba(NEW), fitted.predict_proba(NEW))
    assert loaded.predict(NEW).tolist() == fitted.predict(NEW).tolist()
    assert loaded.classes_.tolist() == WORDS
    loaded.save(tmp_path / "again")
    predictor = Predictor.load(tmp_path / "again")
    assert predictor(NEW) == fitted.predict(NEW).tolist()
    out = succeed("predict", tmp_path / "again", NEW[0]).out
    assert out.startswith(fitted.predict(NEW)[0])


def test_save_writes_no_pickle_and_overwrites_nothing(fitted, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle is used")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    fitted.save(tmp_path / "b")
    NanoNetClassifier.load(tmp_path / "b")
    names = {p.name for p in (tmp_path / "b").iterdir()}
    configs = {"config.json", "tokenizer_config.json"}
    assert names == {"manifest.json", "model.onnx", "seen.bin", "tokenizer.json"} | configs
    with pytest.raises(BundleError, match="exists"):
        fitted.save(tmp_path / "b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written"):
        fitted.save(tmp_path / "file" / "b")
    with pytest.raises(BundleError, match="does not exist"):
        NanoNetClassifier.load(tmp_path / "none")


def test_a_fitted_model_can_be_pickled(fitted):
    # joblib, and so GridSearchCV in processes, sends estimators this way; our files never do.
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict_proba(NEW), fitted.predict_proba(NEW))
    assert copy.classes_.tolist() == WORDS
    unfitted = pickle.loads(pickle.dumps(NanoNetClassifier(steps=3)))
    assert unfitted.steps == 3
    with pytest.raises(NotFittedError):
        unfitted.predict(NEW)


# in company


def test_cross_validation(new, no_export):
    words = [WORDS[y] for y in LABELS]
    scores = cross_val_score(new(), TEXTS, words, cv=2, error_score="raise")
    assert scores.shape == (2,)
    proba = cross_val_predict(new(), TEXTS, words, cv=2, method="predict_proba")
    assert proba.shape == (len(TEXTS), 3)


def test_grid_search(new, no_export):
    grid = {"steps": [2, 3], "recipe": ["nanonet", "supervised"]}
    search = GridSearchCV(new(), grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert search.best_params_["steps"] in (2, 3)
    assert set(search.predict(NEW).tolist()) <= {0, 1, 2}


def test_in_a_pipeline(new, no_export):
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    model = make_pipeline(lower, new()).fit(TEXTS, LABELS)
    assert model.predict(["APPLE"]).shape == (1,)


def test_without_torch_fit_names_the_extra(new, monkeypatch):
    from nanonet.core.errors import MissingExtraError

    for name in [m for m in sys.modules if m.startswith(("nanonet.export", "nanonet.training"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"NanoNetClassifier\.fit needs the extra 'train'"):
        new().fit(TEXTS, LABELS)

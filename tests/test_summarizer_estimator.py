"""The estimator `NanoNetSummarizer`, and what the base install does with a summarizer."""

import json
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

from nanonet import NanoNetSummarizer
from nanonet.core.errors import BundleError, ConfigError, DataError
from stories import FAST, chosen, make_stories, write_lines
from test_torch_free import nanonet, python

STORIES = make_stories(10)
NEW = make_stories(5, seed=8)
TEXTS = [t for t, _ in NEW]


def make(folder, **more) -> NanoNetSummarizer:
    settings = FAST | {"training.steps": 4}
    return NanoNetSummarizer(backbone=str(folder), settings=settings, **more)


@pytest.fixture(scope="module")
def fitted(tiny_bert_folder) -> NanoNetSummarizer:
    model = make(tiny_bert_folder, budget="sentences=2")
    summaries = [chosen(t, y) for t, y in STORIES]
    free = [t for t, _ in make_stories(6, seed=1)]
    return model.fit([t for t, _ in STORIES], summaries, unlabeled=free)


@pytest.mark.parametrize(
    "name",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_get_params_invariance",
        "check_no_attributes_set_in_init",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
def test_scikit_learn_check(name):
    getattr(estimator_checks, name)("NanoNetSummarizer", NanoNetSummarizer())


def test_predictions(fitted):
    summaries = fitted.predict(TEXTS)
    assert [len(s.splitlines()) for s in summaries] == [min(2, len(t)) for t in TEXTS]
    for summary, texts in zip(summaries, TEXTS, strict=True):
        assert set(summary.splitlines()) <= set(texts)
    assert fitted.summary_["rows"] == {"labeled": 10, "unlabeled": 6}
    assert 0 < fitted.score(TEXTS, [y for _, y in NEW]) <= 1
    assert fitted.predict([""]) == [""]


def test_a_fit_travels(fitted, tmp_path):
    expected = [s.scores for s in fitted.summarize(TEXTS)]
    fitted.save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists"):
        fitted.save(tmp_path / "bundle")
    loaded = NanoNetSummarizer.load(tmp_path / "bundle")
    assert loaded.budget == "sentences=2"
    for other in (loaded, pickle.loads(pickle.dumps(fitted))):
        for ours, theirs in zip(other.summarize(TEXTS), expected, strict=True):
            np.testing.assert_array_equal(ours.scores, theirs)
    assert not hasattr(clone(fitted), "summarizer_")


def test_labels_a_validation_set_and_one_seed_one_result(tiny_bert_folder):
    texts, labels = [t for t, _ in STORIES], [y for _, y in STORIES]
    held_out = (TEXTS, [y for _, y in NEW])
    one, two = (make(tiny_bert_folder).fit(texts, labels, validation=held_out) for _ in range(2))
    assert one.summary_["weights_sha256"] == two.summary_["weights_sha256"]
    assert one.summary_["selection"]["labels_used"] == 5


def test_what_cannot_be_used(tiny_bert_folder):
    with pytest.raises(DataError, match="10 documents but 1 summaries"):
        make(tiny_bert_folder).fit([t for t, _ in STORIES], ["one"])
    with pytest.raises(ConfigError, match="budget 'pages=1'"):
        make(tiny_bert_folder, budget="pages=1").fit([["a", "b"]], [[1, 0]])


# without torch, scikit-learn, sentencex, rouge-score


def test_the_base_install_serves_lists_of_sentences(fitted, tmp_path):
    bundle = tmp_path / "bundle"
    fitted.save(bundle)
    code = (
        "class Also:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('sentencex', 'rouge_score', 'nltk'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Also())\n"
        "import json\n"
        "from nanonet import NanoNetError, Summarizer\n"
        "summarizer = Summarizer.load(sys.argv[1])\n"
        "print(json.dumps(summarizer([['the apple', 'old iron', 'tin'], []])))\n"
        "try:\n"
        "    summarizer(['A text. Another.'])\n"
        "except NanoNetError as error:\n"
        "    print(error)\n"
        "print(*sorted({n.split('.')[1] for n in sys.modules if n.startswith('nanonet.')}))\n"
    )
    done = python(code, bundle)
    assert done.stderr == ""
    answers, refusal, modules = done.stdout.splitlines()
    assert [len(a.splitlines()) for a in json.loads(answers)] == [2, 0]
    assert "needs the extra 'summarization'" in refusal
    assert modules.split() == ["core", "runtime", "tasks"]


def test_predict_on_the_command_line_needs_no_torch(fitted, tmp_path):
    bundle = tmp_path / "bundle"
    fitted.save(bundle)
    source = write_lines(tmp_path / "a.jsonl", [{"sentences": t} for t in TEXTS])
    done = nanonet("predict", bundle, "--input", source)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["summary"] for row in rows] == fitted.predict(TEXTS)

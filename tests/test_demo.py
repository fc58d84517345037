import json

import pytest

from nanonet.core.errors import RunError
from nanonet.data.readers import table_from_lists
from nanonet.demo.run import Row, baselines, draw_curve, run_demo
from nanonet.models.backbones import offline_minilm
from nanonet.training.inputs import label_set_of

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(RunError, match="no demo's folder"):
        run_demo(tmp_path, seed=0)
    with pytest.raises(RunError, match="no demo's folder"):
        run_demo(tmp_path / "table.md", seed=0)
    assert (tmp_path / "table.md").read_text() == "mine"


def test_the_picture(tmp_path):
    rows = [
        {"kind": "training", "step": 10},
        {"kind": "evaluation", "step": 10, "accuracy": {"teacher": 0.5, "student1": 0.2}},
        {"kind": "evaluation", "step": 20, "accuracy": {"teacher": 0.6, "student1": 0.55}},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = tmp_path / "curve.png"
    draw_curve(metrics, picture, [Row(f"way {i}", 0.1 * i, "") for i in range(3)])
    content = picture.read_bytes()
    assert content.startswith(PNG)
    assert len(content) > 5_000


@pytest.mark.skipif(offline_minilm() is None, reason="the extra 'offline' is not installed")
def test_the_simpler_ways():
    topics = {
        "food": ["apple pie with cream", "bread and butter", "tomato soup", "fried rice and beans"],
        "music": ["the guitar solo", "a violin concerto", "drums and bass", "she sings a ballad"],
    }
    texts = [(text, topic) for topic, some in topics.items() for text in some]
    labeled = table_from_lists([t for t, _ in texts], [y for _, y in texts], "labeled")
    test = table_from_lists(
        ["a bowl of noodles", "cheese on toast", "the piano sonata", "an old folk song"],
        ["food", "food", "music", "music"],
        "test",
    )
    tfidf, frozen = baselines(labeled, test, label_set_of(labeled))
    assert frozen.accuracy == 1.0  # no word in common, but the encoder knows
    assert 0.0 <= tfidf.accuracy <= 1.0

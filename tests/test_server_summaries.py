"""The server with a summarizer, over real sockets and in a real browser."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from nanonet.core.errors import BundleError
from nanonet.runtime.requests import Limits
from nanonet.runtime.server import create_server
from nanonet.runtime.service import ServerSettings
from nanonet.runtime.summarizer import Summarizer
from servers import process, running
from stories import make_stories
from test_server_page import browser, page  # noqa: F401 (fixtures)

LIMITS = Limits(body_bytes=200_000, texts=4, characters=50_000)
TEXT = "  The 🍎 apple is old. Iron was seen!\n\nA pear of tin? The river is new.  Plum. "


@pytest.fixture(scope="module")
def summarizer(story_bundle):
    return Summarizer.load(story_bundle, threads=1)


@pytest.fixture(scope="module")
def client(summarizer):
    with running(summarizer, ServerSettings(60.0, LIMITS)) as (client, _):
        yield client


def expected(summarizer, *documents, **how):
    found = summarizer.summarize(documents, **how)
    return [json.loads(json.dumps(summary.to_json())) for summary in found]


def test_a_text_is_answered_as_the_summarizer_does(client, summarizer):
    reply = client.predict(text=TEXT)
    assert reply.status == 200
    (answer,) = reply.json["predictions"]
    assert len(answer["sentences"]) == 3
    for sentence in answer["sentences"]:
        assert list(sentence) == ["index", "start", "end", "score", "text"]
        assert TEXT[sentence["start"] : sentence["end"]] == sentence["text"]
    assert [answer] == expected(summarizer, TEXT)


def test_sentences_lists_of_both_and_what_can_be_asked_for(client, summarizer):
    sentences = make_stories(1, seed=3, longest=40)[0][0]
    reply = client.predict(sentences=sentences, budget="words=12", block_trigrams=True)
    how = {"budget": "words=12", "block_trigrams": True}
    (answer,) = reply.json["predictions"]
    (alone,) = expected(summarizer, sentences, **how)
    assert answer["summary"] == alone["summary"]
    assert len(answer["summary"].split()) <= 12
    assert [s["index"] for s in answer["sentences"]] == [s["index"] for s in alone["sentences"]]
    several = client.predict(texts=[TEXT, sentences, "One", []], budget="sentences=1")
    counts = [len(p["sentences"]) for p in several.json["predictions"]]
    assert counts == [1, 1, 1, 0]
    again = ["the old apple", "the old apple tin", "the old apple is"]
    for block, count in ((True, 1), (False, 3)):
        (answer,) = client.predict(sentences=again, block_trigrams=block).json["predictions"]
        assert len(answer["sentences"]) == count


@pytest.mark.parametrize("sentences", [[], [""], ["", " \n"]])
def test_documents_without_words_have_empty_summaries(client, sentences):
    reply = client.predict(sentences=sentences)
    assert (reply.status, reply.json) == (200, {"predictions": [{"summary": "", "sentences": []}]})


def test_five_thousand_sentences(client):
    sentences = [f"tin {i % 10}" for i in range(5000)]
    (answer,) = client.predict(sentences=sentences, budget="sentences=7").json["predictions"]
    assert len(answer["sentences"]) == 7
    text = " ".join(sentences)
    assert all(text[s["start"] : s["end"]] == s["text"] for s in answer["sentences"])


def test_requests_of_unlike_budgets_share_batches(summarizer):
    """Each gets its own length, though the model reads them together."""

    class Slow:
        def __init__(self):
            self.gate, self.manifest = threading.Event(), summarizer.manifest
            self.settings, self.selection = summarizer.settings, summarizer.selection
            self.gate.set()
            self.counts = []

        def score(self, documents):
            self.counts.append(len(documents))
            assert self.gate.wait(60)
            return summarizer.score(documents)

    slow = Slow()
    with running(slow, ServerSettings(60.0, LIMITS)) as (client, server):
        slow.gate.clear()
        with ThreadPoolExecutor(6) as pool:
            sent = [
                pool.submit(client.predict, sentences=["a tin", "iron", "plum"], budget=budget)
                for budget in ("sentences=1", "sentences=2", "ratio=1", "sentences=3")
            ]
            deadline = time.monotonic() + 30  # the first batch may hold several
            while server.service.batcher.waiting + sum(slow.counts[4:]) < 4:
                assert time.monotonic() < deadline
                threading.Event().wait(0.01)
            slow.gate.set()
            found = [s.result(60).json["predictions"][0]["sentences"] for s in sent]
        assert [len(sentences) for sentences in found] == [1, 2, 3, 3]
        assert max(slow.counts[4:]) > 1  # the first four measured the model


BAD = {
    "nothing": (b"{}", 422, "give one of 'text', 'sentences' (of one document) and 'texts'"),
    "two": (b'{"text": "a", "sentences": ["a"]}', 422, "give one of"),
    "text number": (b'{"text": 1}', 422, "'text' must be of the type string"),
    "text list": (b'{"text": ["a"]}', 422, "'text' must be of the type string"),
    "sentences text": (b'{"sentences": "a b"}', 422, "'sentences' must be of the type array"),
    "sentences number": (b'{"sentences": ["a", 1]}', 422, "'sentences[1]' must be of the type"),
    "sentences nested": (b'{"sentences": [["a"]]}', 422, "'sentences[0]' must be of the type str"),
    "texts number": (b'{"texts": ["a", 1]}', 422, "'texts[1]' must be of the type string"),
    "texts deep": (b'{"texts": ["a", ["b", null]]}', 422, "'texts[1][1]' must be of the type str"),
    "texts deeper": (b'{"texts": [[["a"]]]}', 422, "'texts[0][0]' must be of the type string"),
    "texts empty": (b'{"texts": []}', 422, "'texts' is empty"),
    "too many": (b'{"texts": ["a", "b", [], "d", "e"]}', 422, "5 texts in one request; at most 4"),
    "too long": (
        json.dumps({"sentences": ["a" * 49_999, "b"]}).encode(),
        422,
        "'sentences' has 50,001 characters; at most 50,000",
    ),
    "many empty": (json.dumps({"sentences": [""] * 50_002}).encode(), 413, "more than"),
    "NUL": (b'{"texts": ["a", ["b", "\\u0000"]]}', 422, "'texts[1]' holds a NUL character"),
    "half a pair": (b'{"sentences": ["\\ud800"]}', 400, "not valid JSON"),
    "a classifier's key": (b'{"text": "a", "top_k": 1}', 422, "unknown key 'top_k' (known: text, "),
    "budget kind": (b'{"text": "a", "budget": "word=3"}', 422, "did you mean 'words'"),
    "budget number": (b'{"text": "a", "budget": 3}', 422, "'budget' must be of the type string"),
    "budget 0": (b'{"text": "a", "budget": "sentences=0"}', 422, "must be a whole number from 1"),
    "budget inf": (b'{"text": "a", "budget": "words=1e999"}', 422, "must be a whole number"),
    "budget nan": (b'{"text": "a", "budget": "ratio=nan"}', 422, "above 0 and at most 1"),
    "budget long": (json.dumps({"text": "a", "budget": "x" * 9999}).encode(), 422, "is unknown"),
    "trigrams": (b'{"text": "a", "block_trigrams": 1}', 422, "'block_trigrams' must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_get_one_clear_error(client, name):
    body, status, part = BAD[name]
    reply = client.ask("POST", "/predict", body)
    assert list(reply.json) == ["error"]
    assert part in reply.json["error"]
    assert reply.status == status
    assert "\n" not in reply.json["error"]
    assert len(reply.json["error"]) < 250
    assert client.predict(text="still there").status == 200


def test_a_document_that_would_take_longer_than_the_budget(summarizer):
    with running(summarizer, ServerSettings(2.0, Limits())) as (client, server):
        server.service.batcher._throughput.rate = 100.0  # tokens per second
        reply = client.predict(sentences=["some words of tin"] * 200)
    assert reply.status == 413
    assert "these texts would take about" in reply.json["error"]


def test_what_the_server_says_of_itself(client, summarizer):
    info = client.get("/info").json
    assert info["task"] == "summarization"
    assert "labels" not in info
    assert (info["budget"], info["block_trigrams"]) == ("sentences=3", False)
    assert info["max_length"] == summarizer.manifest.max_length
    api = client.get("/openapi.json").json
    assert api["info"]["description"] == "Extractive summarization."
    operation = api["paths"]["/predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {
        *("text", "sentences", "texts", "budget", "block_trigrams")
    }
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["$ref"].endswith("/SummariesAnswer")
    assert "SummaryPrediction" in api["components"]["schemas"]
    metrics = client.get("/metrics").body.decode()
    assert 'nanonet_requests_total{path="/predict",status="200"}' in metrics


def test_without_the_extra_only_sentences_are_taken(summarizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with running(summarizer, ServerSettings(60.0, LIMITS)) as (client, _):
        assert client.predict(sentences=["An apple.", "Tin."]).status == 200
        reply = client.predict(texts=[["Tin."], "An apple. Tin."])
    assert reply.status == 422
    assert "takes sentences only" in reply.json["error"]
    assert "nanonet[summarization]" in reply.json["error"]


def test_a_model_that_does_not_run_is_refused(summarizer, monkeypatch):
    def broken(documents):
        raise RuntimeError("the model broke")

    monkeypatch.setattr(summarizer, "score", broken)
    with pytest.raises(BundleError, match="the bundle's model does not run: the model broke"):
        create_server(summarizer, ServerSettings())


def test_the_command(story_bundle):
    with process(story_bundle, "--threads", 1) as (server, client):
        client.wait_until_ready()
        assert len(client.predict(text=TEXT).json["predictions"][0]["sentences"]) == 3
        server.terminate()
        _, err = server.communicate(timeout=60)
    assert server.returncode == 0
    first = json.loads(err.splitlines()[0])
    assert (first["event"], first["task"]) == ("start", "summarization")
    assert "apple" not in err


# the page


@pytest.fixture(scope="module")
def url(client):
    return f"http://127.0.0.1:{client.port}"


def test_the_page_marks_what_was_chosen(page, url, summarizer):  # noqa: F811
    page.goto(url)
    page.get_by_text("Extractive summarization").wait_for()
    assert page.get_by_label("Length at most").input_value() == "3"
    text = TEXT + "<b>Old</b> iron."
    page.get_by_role("textbox", name="Text").fill(text)
    page.get_by_label("Length at most").fill("2")
    page.get_by_role("button", name="Summarize").click()
    page.get_by_role("heading", name="2 sentences in").wait_for()
    (summary,) = summarizer.summarize([text], budget="sentences=2")
    chosen = [sentence.text for sentence in summary.sentences]
    assert page.locator("mark").all_text_contents() == chosen
    assert page.locator("dt").all_text_contents() == chosen
    assert page.locator(".whole").text_content() == text  # as text, not as HTML
    shares = [f"{100 * sentence.score:.1f}%" for sentence in summary.sentences]
    assert page.locator("dd:not(.bar)").all_text_contents() == shares


def test_the_page_asks_for_words_and_shows_errors(page, url):  # noqa: F811
    page.goto(url)
    page.get_by_role("textbox", name="Text").fill("One two. Three four five. Six.")
    page.get_by_role("combobox").select_option("words")
    page.get_by_label("Length at most").fill("0.5")
    page.get_by_label("No repeated word triples").check()
    page.get_by_role("textbox", name="Text").press("Control+Enter")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "must be a whole number from 1" in alert.text_content()
    page.get_by_label("Length at most").fill("1")
    page.get_by_role("button").click()
    page.get_by_role("heading", name="1 sentence in").wait_for()
    assert page.locator("mark").all_text_contents() == ["Six."]
    page.get_by_role("textbox", name="Text").fill(" ")
    page.get_by_role("button").click()
    page.get_by_text("There are no words to choose from.").wait_for()


def test_scores_are_probabilities(client):
    (answer,) = client.predict(text=TEXT).json["predictions"]
    scores = np.array([sentence["score"] for sentence in answer["sentences"]])
    assert ((scores > 0) & (scores < 1)).all()

"""The server over real sockets: answers, refusals, limits, token, metrics, stopping."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from nanonet.core.errors import BundleError
from nanonet.runtime.predictor import Predictor
from nanonet.runtime.requests import Limits
from nanonet.runtime.server import create_server
from nanonet.runtime.service import ServerSettings
from servers import running

LIMITS = Limits(body_bytes=20_000, texts=8, characters=1000)


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor.load(bundle, threads=1)


@pytest.fixture(scope="module")
def client(predictor):
    with running(predictor, ServerSettings(60.0, LIMITS)) as (client, _):
        yield client


class Gated:
    """A predictor whose model waits while ``gate`` is shut, and breaks if ``fails``."""

    def __init__(self, predictor):
        self.predictor = predictor
        self.manifest, self.labels = predictor.manifest, predictor.labels
        self.min_confidence = predictor.min_confidence
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fails = False

    def predict_proba(self, texts):
        if not self.gate.is_set():
            self.entered.release()
            assert self.gate.wait(60)
        if self.fails:
            raise RuntimeError(f"the model broke on {texts}")
        return self.predictor.predict_proba(texts)


@pytest.fixture
def gated(predictor):
    gated = Gated(predictor)
    yield gated
    gated.gate.set()


def test_a_text_is_answered_as_the_predictor_does(client, predictor):
    reply = client.predict(text="the apple fell")
    assert reply.status == 200
    (row,) = predictor.predict_proba(["the apple fell"])
    best = int(row.argmax())
    assert reply.json == {
        "predictions": [
            {
                "label": predictor.labels.values[best],
                "label_name": predictor.labels.names[best],
                "probability": pytest.approx(float(row[best]), abs=1e-6),
                "abstained": False,
            }
        ]
    }


def test_many_texts_in_order_with_all_that_can_be_asked_for(client, predictor):
    texts = ["the apple fell", "", "old iron\nand gold", "water " * 100, "Ähre 水 🍎"]
    answers = client.predict(texts=texts, top_k=2, probabilities=True).json["predictions"]
    expected = predictor.predict_proba(texts)
    names = list(predictor.labels.names)
    assert len(answers) == len(texts)
    for answer, row in zip(answers, expected, strict=True):
        assert list(answer["probabilities"]) == names
        np.testing.assert_allclose(list(answer["probabilities"].values()), row, atol=1e-5)
        order = np.argsort(-row)[:2]
        assert [c["label_name"] for c in answer["top"]] == [names[i] for i in order]
        assert answer["label_name"] == answer["top"][0]["label_name"]
        assert answer["probability"] == answer["top"][0]["probability"]


def test_top_k_of_more_than_all_is_all(client):
    (answer,) = client.predict(text="a", top_k=1000).json["predictions"]
    assert len(answer["top"]) == 3


def test_abstaining(client):
    (sure,) = client.predict(text="a", min_probability=0).json["predictions"]
    (unsure,) = client.predict(text="a", min_probability=1).json["predictions"]
    assert not sure["abstained"]
    assert sure["label_name"] in ("fruit", "metal", "water")
    assert unsure == {**sure, "label": None, "label_name": None, "abstained": True}


def test_the_bundle_s_threshold_holds_where_none_is_asked_for(gated):
    gated.min_confidence = 1.0
    with running(gated, ServerSettings(60.0)) as (client, _):
        (own,) = client.predict(text="a").json["predictions"]
        (asked,) = client.predict(text="a", min_probability=0).json["predictions"]
        assert client.get("/info").json["min_probability"] == 1.0
    assert (own["abstained"], own["label"]) == (True, None)
    assert asked["abstained"] is False


def test_many_clients_each_get_their_own(client, predictor):
    texts = [f"{word} {i}" for i in range(40) for word in ("apple", "iron")]
    expected = [predictor.labels.names[i] for i in predictor.predict_proba(texts).argmax(-1)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda text: client.predict(text=text), texts))
    assert [r.json["predictions"][0]["label_name"] for r in replies] == expected


LONG = "a" * 1001
BAD = {
    "nothing": (b"", 400, "not valid JSON: EOF"),
    "half": (b'{"text": "a', 400, "not valid JSON: EOF"),
    "words": (b"text=a", 400, "not valid JSON"),
    "not UTF-8": (b'{"text": "\xff"}', 400, "not UTF-8 (byte 10)"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), 400, "not UTF-8 (byte 0)"),
    "NUL byte": (b'{"text": "a\0b"}', 400, "not valid JSON: control character"),
    "NUL escape": (b'{"text": "a\\u0000b"}', 422, "'text' holds a NUL character"),
    "half a pair": (b'{"text": "\\ud800"}', 400, "not valid JSON"),
    "other half": (b'{"texts": ["\\udc00"]}', 400, "not valid JSON"),
    "deep": (b"[" * 10_000, 400, "not valid JSON: recursion limit"),
    "list": (b'["a"]', 422, "must be a JSON object such as"),
    "null": (b"null", 422, "must be a JSON object such as"),
    "number": (b"1", 422, "must be a JSON object such as"),
    "empty object": (b"{}", 422, "give either 'text' (one) or 'texts' (a list)"),
    "both": (b'{"text": "a", "texts": ["a"]}', 422, "give either"),
    "text null": (b'{"text": null}', 422, "give either"),
    "text number": (b'{"text": 1}', 422, "'text' must be of the type string"),
    "text list": (b'{"text": ["a"]}', 422, "'text' must be of the type string"),
    "texts text": (b'{"texts": "abc"}', 422, "'texts' must be of the type array"),
    "texts empty": (b'{"texts": []}', 422, "'texts' is empty"),
    "texts null": (b'{"texts": [null]}', 422, "'texts[0]' must be of the type string"),
    "one of many": (b'{"texts": ["a", "b", {}]}', 422, "'texts[2]' must be"),
    "all wrong": (b'{"texts": [' + b"1," * 5000 + b"1]}", 422, "'texts[0]' must be"),
    "too many": (json.dumps({"texts": ["a"] * 9}).encode(), 422, "9 texts in one request; at most"),
    "too long": (json.dumps({"texts": ["a", LONG]}).encode(), 422, "'texts[1]' has 1,001 char"),
    "unknown key": (b'{"text": "a", "topk": 1}', 422, "unknown key 'topk' (known: text, texts"),
    "top_k 0": (b'{"text": "a", "top_k": 0}', 422, "'top_k' must be greater than or equal to 1"),
    "top_k true": (b'{"text": "a", "top_k": true}', 422, "'top_k' must be of the type integer"),
    "top_k text": (b'{"text": "a", "top_k": "2"}', 422, "'top_k' must be of the type integer"),
    "top_k 1.5": (b'{"text": "a", "top_k": 1.5}', 422, "'top_k' must be of the type integer"),
    "top_k huge": (b'{"text": "a", "top_k": 1' + b"0" * 400 + b"}", 422, "'top_k' must be"),
    "probabilities": (b'{"text": "a", "probabilities": 1}', 422, "'probabilities' must be"),
    "minimum": (b'{"text": "a", "min_probability": 2}', 422, "'min_probability' must be less"),
    "minimum NaN": (b'{"text": "a", "min_probability": NaN}', 422, "'min_probability' must be"),
    "10 MB": (json.dumps({"text": "a" * 10_000_000}).encode(), 413, "more than 20,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_get_one_clear_error(client, name):
    body, status, part = BAD[name]
    reply = client.ask("POST", "/predict", body)
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert part in reply.json["error"]
    assert "\n" not in reply.json["error"]
    assert len(reply.json["error"]) < 200
    assert client.predict(text="still there").status == 200


def test_a_long_unknown_key_is_cut(client):
    reply = client.ask("POST", "/predict", json.dumps({"k" * 10_000: 1}))
    assert reply.status == 422
    assert len(reply.json["error"]) < 200


def test_a_chunked_body_is_measured_as_it_comes(client):
    small = client.ask("POST", "/predict", iter([b'{"text":', b' "a"}']))
    assert small.status == 200
    big = client.ask("POST", "/predict", iter([b'{"text": "'] + [b"a" * 1000] * 500))
    assert big.status == 413
    assert "more than 20,000 bytes" in big.json["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\0" * 1000,
        b"GET /" + b"a" * 2_000_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 2_000_000,
    ],
)
def test_what_is_not_http_does_no_harm(client, data):
    try:
        answer = client.raw(data)
    except OSError:  # it was closed before all was sent
        answer = b""
    assert b"200 OK" not in answer
    assert client.predict(text="still there").status == 200


def test_a_broken_off_body_does_no_harm(client):
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
    assert b"200 OK" not in client.raw(head + b'{"text"')
    assert client.predict(text="still there").status == 200


def test_routes_that_are_not_there(client):
    missing = client.get("/nothing")
    assert (missing.status, missing.json) == (404, {"error": "Not Found"})
    wrong = client.get("/predict")
    assert (wrong.status, wrong.json) == (405, {"error": "Method Not Allowed"})


def test_alive_ready_info(client, predictor):
    assert client.get("/healthz").json == {"status": "alive"}
    assert client.get("/readyz").json == {"status": "ready"}
    info = client.get("/info").json
    assert [entry["label_name"] for entry in info["labels"]] == list(predictor.labels.names)
    assert info["max_length"] == predictor.manifest.max_length
    assert info["min_probability"] == 0.0
    assert info["limits"] == {
        "body_bytes": 20_000,
        "texts": 8,
        "characters": 1000,
        "latency_ms": 60_000,
    }


def test_openapi_describes_the_routes_and_the_pages_load_nothing_from_elsewhere(client):
    api = client.get("/openapi.json").json
    assert {"/predict", "/healthz", "/readyz", "/metrics", "/info"} == set(api["paths"])
    operation = api["paths"]["/predict"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {
        *("text", "texts", "top_k", "probabilities", "min_probability")
    }
    assert {"200", "413", "422", "429", "503"} <= set(operation["responses"])
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert b"http://" not in page.body
        assert b"https://" not in page.body


def test_metrics(predictor):
    def read(client):
        lines = client.get("/metrics").body.decode().splitlines()
        values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in values}

    with running(predictor, ServerSettings(60.0, LIMITS)) as (client, _):
        client.predict(texts=["a", "b"])
        client.predict(text=1)
        client.get("/secret%20text")
        values = read(client)
    assert values['nanonet_requests_total{path="/predict",status="200"}'] == 1
    assert values['nanonet_requests_total{path="/predict",status="422"}'] == 1
    assert values['nanonet_requests_total{path="other",status="404"}'] == 1
    assert values["nanonet_texts_total"] == 2
    assert values["nanonet_request_seconds_count"] == 1
    assert values["nanonet_batch_texts_sum"] == 2
    assert values["nanonet_queue_texts"] == 0
    assert values["nanonet_tokens_per_second"] > 0


def test_the_token_guards_what_is_no_page_and_no_probe(predictor):
    token = "sésame-42"
    with running(predictor, ServerSettings(60.0, LIMITS, token)) as (client, _):
        for path in ("/healthz", "/readyz", "/", "/docs"):
            assert client.get(path).status == 200, path
        for header in ({}, *({"Authorization": a} for a in ("Bearer", "Bearer x", "Basic a"))):
            for path in ("/metrics", "/info", "/openapi.json"):
                assert client.get(path, **header).status == 401, (path, header)
            refused = client.ask("POST", "/predict", b'{"text": "a"}', **header)
            assert (refused.status, list(refused.json)) == (401, ["error"])
            assert refused.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": f"Bearer {token}".encode()}
        for path in ("/metrics", "/info", "/openapi.json"):
            assert client.get(path, **right).status == 200, path
        assert client.ask("POST", "/predict", b'{"text": "a"}', **right).status == 200
        assert "HTTPBearer" in client.get("/openapi.json", **right).body.decode()


def wait_until(condition):
    while not condition():
        threading.Event().wait(0.01)


def test_overload_is_refused_and_what_was_accepted_is_answered(gated):
    settings = ServerSettings(2.0, LIMITS)
    with running(gated, settings) as (client, server), ThreadPoolExecutor(4) as pool:
        gated.gate.clear()
        first = pool.submit(client.predict, text="first")
        gated.entered.acquire()
        second = pool.submit(client.predict, text="second")
        wait_until(lambda: server.service.batcher.waiting == 1)
        # The model hangs: soon nothing more fits into the budget.
        wait_until(lambda: server.service.overload() is not None)
        refused = client.predict(text="third")
        assert refused.status == 429
        assert list(refused.json) == ["error"]
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status == 200  # the event loop is free
        gated.gate.set()
        assert [first.result(60).status, second.result(60).status] == [200, 200]
        metrics = client.get("/metrics").body.decode()
        assert 'nanonet_rejected_total{reason="overload"}' in metrics


def test_a_request_that_would_take_longer_than_the_budget(gated):
    with running(gated, ServerSettings(2.0)) as (client, server):
        work = server.service.served.work("a " * 500)
        server.service.batcher._throughput.rate = work  # one such text per second
        fits = client.predict(texts=["a " * 500])
        assert fits.status == 200
        server.service.batcher._throughput.rate = work
        reply = client.predict(texts=["a " * 500] * 20)
        assert reply.status == 413
        assert "would take about 20000 ms" in reply.json["error"]


def test_an_error_of_the_model_is_a_500_that_quotes_no_text(gated, capsys):
    with running(gated, ServerSettings(60.0)) as (client, _):
        gated.fails = True
        reply = client.predict(text="a private thing")
        assert (reply.status, list(reply.json)) == (500, ["error"])
        assert "private" not in reply.body.decode()
        gated.fails = False
        assert client.predict(text="a").status == 200
    assert "private" not in capsys.readouterr().err


def test_not_ready_while_it_measures(gated):
    created = threading.Event()

    class Slow(Gated):
        def predict_proba(self, texts):
            if created.is_set():
                assert self.gate.wait(60)
            return super().predict_proba(texts)

    slow = Slow(gated.predictor)
    with running(slow, ServerSettings(60.0), ready=False) as (client, server):
        slow.gate.clear()
        created.set()
        server.service.batcher._throughput = None  # as if it had not measured yet
        reply = client.get("/readyz")
        assert (reply.status, reply.json) == (503, {"error": "the server is not ready yet"})
        assert client.predict(text="a").status == 503
        slow.gate.set()


def test_a_model_that_does_not_run_is_refused(gated):
    gated.fails = True
    with pytest.raises(BundleError, match="the bundle's model does not run: the model broke"):
        create_server(gated, ServerSettings())


def test_stopping_answers_what_was_accepted_and_takes_nothing_more(gated):
    with running(gated, ServerSettings(60.0)) as (client, server), ThreadPoolExecutor(4) as pool:
        gated.gate.clear()
        running_one = pool.submit(client.predict, text="first")
        gated.entered.acquire()
        waiting = pool.submit(client.predict, texts=["second", "third"])
        wait_until(lambda: server.service.batcher.waiting == 2)
        server.handle_exit(signal.SIGTERM, None)
        reply = client.get("/readyz")
        assert (reply.status, reply.json) == (503, {"error": "the server is stopping"})
        assert client.get("/healthz").status == 200
        refused = client.predict(text="late")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["connection"] == "close"
        gated.gate.set()
        assert running_one.result(60).status == 200
        assert len(waiting.result(60).json["predictions"]) == 2

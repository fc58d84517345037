"""Micro-batches and admission, without HTTP. Time is a number that the model moves on."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from nanonet.runtime import batching
from nanonet.runtime.batching import (
    BATCH_SHARE,
    HEADROOM,
    Batcher,
    ClosedError,
    OverloadedError,
    Throughput,
    TooMuchError,
)

SECONDS_PER_TEXT = 0.01  # of the model below, so 100 texts per second
WARM_UP = ["warm"] * 4


class Model:
    """Answers each text with itself, while ``gate`` is open; a text ``bad`` breaks its batch."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(batching, "time", clock)

    def __call__(self, texts):
        if texts == WARM_UP:
            self.now += SECONDS_PER_TEXT * len(texts)
            return texts
        self.batches.append(len(texts))
        self.entered.release()
        assert self.gate.wait(60)
        self.now += SECONDS_PER_TEXT * len(texts)
        if "bad" in texts:
            raise RuntimeError("cannot")
        if "panic" in texts:
            raise BaseException("a panic of the tokenizer")
        return [f"<{text}>" for text in texts]


@pytest.fixture
def model(monkeypatch):
    return Model(monkeypatch)


@pytest.fixture
def make(model):
    """Return a function that starts a batcher of this budget; it is closed at the end."""
    started = []

    def make(budget=10.0, **options):
        batcher = Batcher(model, lambda text: 1.0, budget, **options)
        batcher.start(WARM_UP)
        started.append(batcher)
        while not batcher.ready:
            threading.Event().wait(0.001)
        return batcher

    yield make
    model.gate.set()
    for batcher in started:
        batcher.close()
        batcher.join()


def rows(future):
    return future.result(60).rows


def fill(batcher):
    """Submit single texts until one is refused; return those accepted and the refusal."""
    accepted = []
    while len(accepted) < 100_000:
        try:
            accepted.append((f"<{len(accepted)}>", batcher.submit([str(len(accepted))])))
        except OverloadedError as error:
            return accepted, error
    pytest.fail("everything was accepted")


def test_every_request_gets_the_rows_of_its_texts_in_order(make):
    batcher = make()
    requests = [[f"{i}.{j}" for j in range(1 + i % 7)] for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda texts: rows(batcher.submit(texts)), requests))
    assert answers == [[f"<{text}>" for text in texts] for texts in requests]
    assert batcher.waiting == 0


def test_what_waits_while_the_model_runs_is_the_next_batch(make, model):
    batcher = make()
    model.gate.clear()
    first = batcher.submit(["a"])
    model.entered.acquire()
    others = [batcher.submit(["b", "c"]), batcher.submit(["d"])]
    assert batcher.waiting == 3
    model.gate.set()
    assert [rows(f) for f in (first, *others)] == [["<a>"], ["<b>", "<c>"], ["<d>"]]
    assert model.batches == [1, 3]
    assert others[0].result().batch == 3


def test_a_batch_is_a_share_of_the_budget_and_requests_are_cut(make, model):
    batcher = make(budget=2.0)  # a batch of 100 * 2 * 0.1 = 20 texts
    texts = [str(i) for i in range(50)]
    answer = batcher.submit(texts).result(60)
    assert answer.rows == [f"<{t}>" for t in texts]
    assert max(model.batches) == round(BATCH_SHARE * 2.0 / SECONDS_PER_TEXT)
    assert sum(model.batches) == 50


def test_accepted_is_what_can_be_answered_within_the_budget(make, model):
    batcher = make(budget=2.0)
    model.gate.clear()
    accepted, refusal = fill(batcher)
    assert len(accepted) == pytest.approx(HEADROOM * 2.0 / SECONDS_PER_TEXT, abs=1)
    assert refusal.seconds > 0
    with pytest.raises(OverloadedError):
        batcher.check(late=SECONDS_PER_TEXT)
    model.gate.set()
    assert all(rows(future) == [text] for text, future in accepted)
    batcher.check(late=0.0)
    assert rows(batcher.submit(["again"])) == ["<again>"]


def test_a_slower_model_gets_less(make, model):
    batcher = make(budget=2.0)
    model.gate.clear()
    before, _ = fill(batcher)
    model.entered.acquire()
    model.now += 20.0  # the running batch takes that long
    model.gate.set()
    for _, future in before:
        future.result(60)
    assert batcher.rate < 100
    model.gate.clear()
    after, _ = fill(batcher)
    assert 0 < len(after) < len(before)


def test_a_batch_that_hangs_closes_the_door(make, model):
    batcher = make(budget=2.0)
    model.gate.clear()
    running = batcher.submit(["a"])
    model.entered.acquire()
    batcher.submit(["b"])
    model.now += 1.5  # and no end in sight
    with pytest.raises(OverloadedError):
        batcher.submit(["c"])
    model.gate.set()
    assert rows(running) == ["<a>"]


def test_what_the_caller_knows_of_delays_counts(make):
    batcher = make(budget=2.0)
    with pytest.raises(OverloadedError):
        batcher.submit(["a"], late=HEADROOM * 2.0)
    with pytest.raises(OverloadedError):
        batcher.check(late=HEADROOM * 2.0 + 0.1)
    assert rows(batcher.submit(["a"], late=HEADROOM * 1.0)) == ["<a>"]


def test_a_request_that_never_fits_is_told_so(make, model):
    batcher = make(budget=2.0)
    with pytest.raises(TooMuchError, match="about 2000 ms, and only 1200 ms are allowed"):
        batcher.submit(["a"] * 200)
    assert model.batches == []


@pytest.mark.parametrize("text", ["bad", "panic"])
def test_an_error_of_the_model_reaches_its_requests_and_no_others(make, model, text):
    batcher = make()
    model.gate.clear()
    before = batcher.submit(["a"])
    model.entered.acquire()
    broken = [batcher.submit(["b", text]), batcher.submit(["c"])]
    model.gate.set()
    assert rows(before) == ["<a>"]
    for future in broken:
        assert str(future.exception(60)) in ("cannot", "a panic of the tokenizer")
    assert rows(batcher.submit(["d"])) == ["<d>"]


def test_a_request_of_several_batches_fails_with_the_first_of_them(make, model):
    batcher = make(budget=2.0)  # batches of 20
    broken = batcher.submit(["bad"] + ["a"] * 50)
    assert str(broken.exception(60)) == "cannot"
    assert rows(batcher.submit(["b"])) == ["<b>"]


def test_nothing_is_taken_before_the_start_is_over(model):
    batcher = Batcher(model, lambda text: 1.0, 2.0)
    assert (batcher.ready, batcher.rate) == (False, 0.0)
    batcher.check(late=100.0)
    with pytest.raises(ClosedError, match="not ready yet"):
        batcher.submit(["a"])


def test_closing_answers_what_was_accepted(make, model):
    batcher = make()
    model.gate.clear()
    accepted = [batcher.submit([str(i)]) for i in range(10)]
    batcher.close()
    assert not batcher.ready
    assert not batcher.finished
    with pytest.raises(ClosedError, match="stopping"):
        batcher.submit(["late"])
    model.gate.set()
    batcher.join()
    assert batcher.finished
    assert [rows(f) for f in accepted] == [[f"<{i}>"] for i in range(10)]


def test_accepted_requests_cannot_be_cancelled(make):
    future = make().submit(["a"])
    assert not future.cancel()
    assert rows(future) == ["<a>"]


def test_batches_are_observed(make):
    seen = []
    batcher = make(observe=lambda texts, seconds: seen.append((texts, round(seconds, 6))))
    rows(batcher.submit(["a", "b"]))
    batcher.close()
    batcher.join()
    assert seen == [(2, 2 * SECONDS_PER_TEXT)]


def test_throughput_forgets_and_small_batches_do_not_count():
    throughput = Throughput(100.0, 1.0)
    assert throughput.rate == 100.0
    throughput.add(1.0, 1.0, full=10.0)
    assert throughput.rate == 100.0
    throughput.add(10.0, 0.05, full=10.0)
    assert throughput.rate == pytest.approx(200.0)
    for _ in range(int(batching.HALF_LIFE)):
        throughput.add(10.0, 0.2, full=10.0)
    assert 50.0 < throughput.rate < 75.0
    for _ in range(100):
        throughput.add(10.0, 0.2, full=10.0)
    assert throughput.rate == pytest.approx(50.0, rel=1e-3)

import json
import shutil
import stat
from dataclasses import asdict, replace

import numpy as np
import pytest

from nanonet import Predictor
from nanonet.core.bundle import MODEL, read_manifest
from nanonet.core.machine import cache_folder
from nanonet.runtime import choices, tuning
from nanonet.runtime.choices import TUNING, Choice, Tuning, conditions, record, recorded
from nanonet.runtime.engines import DEFAULT, TOKENS_PER_CHUNK, EngineKind, available_engines
from nanonet.runtime.tuning import race, ranked, tune
from nanonet.tasks.tokenization import TextTokenizer, length_quantiles
from runs import refuse, succeed

TEXTS = ["the old apple", "iron " * 25 + "copper", "", "a pond in the sea", "tin " * 9]


class Clock:
    """Time that passes only when a task says so."""

    def __init__(self):
        self.now = 0.0
        self.ran = []

    def __call__(self):
        return self.now

    def task(self, name, *seconds):
        """Return a task that takes the given times in turn, the last one from then on."""
        left = list(seconds)

        def run():
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def copy(bundle, tmp_path, monkeypatch):
    """A bundle of our own, and a cache of our own."""
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(bundle, tmp_path / "bundle")


def choice(threads=1, single=1.0, batched=1.0, engine=DEFAULT, chunk=64) -> Choice:
    return Choice(engine, threads, chunk, single, batched)


def a_tuning(bundle, *found: Choice) -> Tuning:
    sha256 = read_manifest(bundle).files[MODEL]
    return Tuning(choices.FORMAT, conditions(sha256), list(found or [choice()]))


def read(bundle, threads=0):
    return recorded(bundle, read_manifest(bundle), threads)


# measuring


def test_a_busy_spell_does_not_decide():
    clock = Clock()
    tasks = {"a": clock.task("a", 1, 9, 1, 1, 1), "b": clock.task("b", 1.2)}
    found = race(tasks, 1000, clock)
    assert found == {"a": 1, "b": pytest.approx(1.2)}
    assert clock.ran[:4] == ["a", "b", "b", "a"]  # in turns, the order changing


def test_the_hopeless_run_once():
    clock = Clock()
    tasks = {"slow": clock.task("slow", 5), "a": clock.task("a", 1), "b": clock.task("b", 1.1)}
    assert race(tasks, 1000, clock) == {"slow": 5, "a": 1, "b": pytest.approx(1.1)}
    assert clock.ran.count("slow") == 1
    assert clock.ran.count("a") == clock.ran.count("b") == tuning.ROUNDS


def test_no_round_begins_after_the_time_given():
    clock = Clock()
    race({"a": clock.task("a", 1), "b": clock.task("b", 1)}, 3, clock)
    assert clock.ran == ["a", "b", "b", "a"]
    race({"c": clock.task("c", 100)}, 0, clock)
    assert clock.ran.count("c") == 1


def test_what_is_ranked():
    first = choice(2, single=1.0, batched=4.0)
    equal = choice(2, single=1.0, batched=3.9, chunk=128)
    one = choice(1, single=2.0, batched=1.0)
    assert ranked([first, equal, one], "both") == [one, first]  # sqrt(2) < sqrt(4)
    assert ranked([first, equal, one], "single") == [first, one]
    assert ranked([first, equal, one], "batched") == [one, first]
    assert ranked([], "both") == []


def test_quantiles_of_lengths():
    assert length_quantiles(range(1, 101), 4) == [13, 38, 63, 88]
    assert length_quantiles([7], 3) == [7, 7, 7]


def test_a_sample_is_like_the_texts(bundle):
    tokenizer = TextTokenizer((bundle / "tokenizer.json").read_text(), 32)
    sample = tuning.make_sample(tokenizer, [1], TEXTS)
    lengths = sorted(len(row) for row in tokenizer.ids(TEXTS))
    assert [len(row) for row in sample.single] == length_quantiles(lengths, tuning.SINGLE_ROWS)
    total = sum(len(row) for row in sample.batched)
    assert 0.8 * tuning.BATCHED_TOKENS < total < 1.3 * tuning.BATCHED_TOKENS


def test_a_sample_without_texts_has_the_lengths_asked_for(bundle):
    tokenizer = TextTokenizer((bundle / "tokenizer.json").read_text(), 32)
    sample = tuning.make_sample(tokenizer, [3, 3, 1000, 0])
    assert {len(row) for row in sample.batched} == {1, 3, 32}
    ids = np.concatenate(sample.batched)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.size


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([5, 6], [5, 6]), ([], None), ("5", None), ([5, "6"], None), ([0], None), ([True], None)],
)
def test_lengths_of_the_manifest_if_they_are_any(bundle, lengths, expected):
    manifest = read_manifest(bundle)
    manifest = replace(manifest, metrics={tuning.LENGTHS: lengths})
    assert list(tuning._lengths(manifest)) == (expected or list(tuning.USUAL_LENGTHS))


def test_every_installed_engine_and_number_of_threads_is_measured(copy, monkeypatch):
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    opened = []
    real = tuning.open_engine

    def spy(name, model, threads):
        opened.append((name, threads))
        return real(name, model, threads)

    monkeypatch.setattr(tuning, "open_engine", spy)
    found = tune(copy, seconds=0, timer=Clock())
    exact = [n for n in available_engines() if tuning.ENGINES.get(n).exact]
    assert set(opened) == {(name, threads) for name in exact for threads in (1, 2)}
    assert sorted(c.threads for c in found.choices) == [1, 2]
    # A clock that stands still: all cost the same, so what comes first is chosen.
    assert found.choices[0] == Choice(DEFAULT, 2, TOKENS_PER_CHUNK, 0, 0)
    assert tune(copy, threads=1, seconds=0, timer=Clock()).choices[0].threads == 1


class Scaled:
    """The default engine, its logits times a factor."""

    classes = 3

    def __init__(self, model, threads, factor):
        self._inner = tuning.open_engine(DEFAULT, model, threads)
        self._factor = factor

    def run(self, feed):
        return self._factor * self._inner.run(feed)


@pytest.mark.parametrize(
    ("factor", "exact", "min_agreement", "candidate"),
    [
        (1.0, True, None, True),
        (2.0, True, None, False),  # not the same computation
        (1.0, False, None, False),  # not asked for
        (2.0, False, 1.0, True),
        (-1.0, False, 0.9, False),
    ],
)
def test_which_engines_are_candidates(copy, monkeypatch, factor, exact, min_agreement, candidate):
    kind = EngineKind("numpy", exact, lambda model, threads: Scaled(model, threads, factor))
    monkeypatch.setitem(tuning.ENGINES._entries, "scaled", kind)
    tokenizer = TextTokenizer((copy / "tokenizer.json").read_text(), 32)
    sample = tuning.make_sample(tokenizer, [4, 9])
    engines = tuning._open_all(copy / MODEL, 1, sample, min_agreement)
    assert (("scaled", 1) in engines) == candidate
    assert next(iter(engines)) == (DEFAULT, 1)


def test_an_engine_that_breaks_is_no_candidate(copy, monkeypatch):
    def broken(model, threads):
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(tuning.ENGINES._entries, "broken", EngineKind("numpy", True, broken))
    assert tune(copy, threads=1, seconds=0, timer=Clock()).choices[0].engine == DEFAULT


# keeping


def test_a_choice_is_kept_in_the_bundle_and_found(copy):
    assert read(copy) is None
    two, one = choice(1, chunk=99), choice(2)
    assert record(copy, a_tuning(copy, two, one)) == copy / TUNING
    assert read(copy) == read(copy, 1) == two
    assert read(copy, 3) is None
    read_manifest(copy)  # still a bundle whose checksums hold
    assert not cache_folder().exists()


def test_more_threads_than_there_are_now(copy, monkeypatch):
    record(copy, a_tuning(copy, choice(threads=10**6)))
    assert read(copy) is None


def test_a_bundle_that_cannot_be_written(copy, monkeypatch):
    real = choices.write_json

    def write(path, value):
        if path.parent == copy:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, value)

    record(copy, a_tuning(copy, choice(chunk=1)))  # what it came with
    monkeypatch.setattr(choices, "write_json", write)
    path = record(copy, a_tuning(copy, choice(chunk=2)))
    assert path is not None
    assert path.parent.parent == cache_folder()
    assert stat.S_ISREG(path.stat().st_mode)
    assert read(copy).tokens_per_chunk == 2
    monkeypatch.undo()
    monkeypatch.setenv("NANONET_CACHE", str(path.parent.parent))
    record(copy, a_tuning(copy, choice(chunk=3)))
    assert read(copy).tokens_per_chunk == 3  # the newer one, though the cache is read first


def test_nowhere_to_write(copy, monkeypatch):
    def fail(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(choices, "write_json", fail)
    assert record(copy, a_tuning(copy)) is None
    assert read(copy) is None


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "another"},
        {"cores": 4096},
        {"versions": {"onnxruntime": "0.1"}},
        {"model_sha256": "0" * 64},
    ],
)
def test_measured_under_other_conditions(copy, change):
    found = a_tuning(copy)
    record(copy, replace(found, conditions=replace(found.conditions, **change)))
    assert read(copy) is None
    assert Predictor.load(copy, threads=1)(["apple"])


def damaged(good: dict) -> list[object]:
    def changed(**change):
        return good | {"choices": [good["choices"][0] | change]}

    return [
        *("", "{", "[]", "null", "[" * 100_000, "\udcff", "1" * 200_000),
        good | {"format": 2},
        good | {"more": 1},
        good | {"choices": []},
        good | {"choices": {}},
        {k: v for k, v in good.items() if k != "conditions"},
        changed(engine="os.system"),
        changed(engine=3),
        changed(threads=0),
        changed(threads=True),
        changed(threads=1.5),
        changed(tokens_per_chunk=0),
        changed(tokens_per_chunk=10**9),
        changed(single_ms=-1),
        changed(batched_ms="1"),
    ]


@pytest.mark.parametrize("case", range(21))
def test_a_damaged_file_is_as_none(copy, case):
    good = json.loads(json.dumps(asdict(a_tuning(copy))))
    assert len(damaged(good)) == 21
    content = damaged(good)[case]
    text = content if isinstance(content, str) else json.dumps(content)
    (copy / TUNING).write_bytes(text.encode(errors="surrogateescape"))
    assert read(copy) is None
    assert Predictor.load(copy, threads=1)(["apple"])


# using


def test_a_predictor_uses_what_was_recorded(copy, monkeypatch):
    record(copy, a_tuning(copy, choice(threads=1, chunk=77)))
    seen = []
    real = choices.open_engine
    monkeypatch.setattr(choices, "open_engine", lambda *a: seen.append(a) or real(*a))
    predictor = Predictor.load(copy)
    assert seen == [(DEFAULT, copy / MODEL, 1)]
    assert predictor._tokens_per_chunk == 77
    assert Predictor.load(copy, threads=2)._tokens_per_chunk == TOKENS_PER_CHUNK
    assert seen[1:] == [(DEFAULT, copy / MODEL, 2)]


def test_a_recorded_engine_that_broke(copy, monkeypatch):
    def broken(model, threads):
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(choices.ENGINES._entries, "broken", EngineKind("numpy", True, broken))
    record(copy, a_tuning(copy, choice(engine="broken")))
    assert read(copy).engine == "broken"
    assert Predictor.load(copy)(["apple"])


@pytest.mark.parametrize("threads", [0, 1])
def test_tuning_changes_no_answer(copy, threads, monkeypatch):
    monkeypatch.setattr(tuning.tune, "__kwdefaults__", tuning.tune.__kwdefaults__ | {"seconds": 0})
    plain = Predictor.load(copy, threads=1)
    tuned = Predictor.load(copy, threads=threads, tune=True)
    assert (copy / TUNING).is_file()
    np.testing.assert_allclose(tuned.predict_logits(TEXTS), plain.predict_logits(TEXTS), atol=1e-4)
    assert tuned(TEXTS) == plain(TEXTS)
    assert Predictor.load(copy, threads=threads)(TEXTS) == plain(TEXTS)


# on the command line


@pytest.fixture
def agreement() -> float:
    return 0.995


@pytest.fixture
def quick_export(bundle, monkeypatch, agreement):
    """Exports in no time: copies of one bundle, which say what they were asked to be."""
    import nanonet.export

    def export(run, out, *, compression, data, target_precision=None, overwrite=False):
        shutil.copytree(bundle, out)
        metrics = {
            "largest_difference_from_torch": 0.0,
            "steps": [{"name": "int8", "bytes": 1, "agreement": agreement, "accuracy": None}],
            "measured_on": "some texts",
        }
        manifest = read_manifest(out)
        manifest = replace(manifest, quantization=compression.quantize, metrics=metrics)
        manifest.write(out)
        return manifest

    monkeypatch.setattr(nanonet.export, "export", export)


@pytest.mark.parametrize(("agreement", "kept"), [(0.5, "none"), (0.995, "int8")])
def test_export_keeps_the_fastest_that_agrees(
    run_folder, tmp_path, monkeypatch, quick_export, agreement, kept
):
    """int8 is made the faster one; whether it may be kept depends on the agreement."""

    def compare(bundles, *, texts):
        times = {"none": 2.0, "int8": 1.0}
        return {name: a_tuning(bundles[name], choice(single=times[name])) for name in bundles}

    monkeypatch.setattr(tuning, "compare", compare)
    out = tmp_path / "b"
    done = succeed("export", run_folder, "--out", out, "--tune")
    assert f"quantization {kept}" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["int8", DEFAULT, "1", "1.00", "1000", f"{agreement:.4f}"] in rows
    manifest = read_manifest(out)
    assert manifest.quantization == kept
    assert read(out) == choice(single={"none": 2.0, "int8": 1.0}[kept])
    files = [*manifest.files, "manifest.json", TUNING]
    assert sorted(p.name for p in out.iterdir()) == sorted(files)
    assert Predictor.load(out)(["apple"])


def test_export_tunes_only_the_variant_asked_for(run_folder, corpus, tmp_path, quick_export):
    out = tmp_path / "b"
    data = corpus / "test.csv"
    done = succeed(
        *("export", run_folder, "--out", out, "--quantize", "int8", "--tune", "--data", data)
    )
    assert "\nint8 " in done.out
    assert "\nnone " not in done.out
    assert read(out) is not None


def test_agreement():
    logits = np.float32([[1, 2], [2, 1], [3, 0], [0, 3]])
    assert tuning.agreement(logits, -logits) == 0.0
    assert tuning.agreement(logits, np.float32([[1, 2], [2, 1], [3, 0], [3, 0]])) == 0.75


def test_wrong_use_of_tune(run_folder, tmp_path):
    out = tmp_path / "b"
    refuse(
        *("export", run_folder, "--out", out, "--data", "x.csv"),
        parts=["--data", "go with --quantize, --trim-vocabulary or --tune"],
        status=2,
    )
    refuse(
        *("export", run_folder, "--out", out, "--tune", "--data", tmp_path / "no.csv"),
        parts=["no.csv"],
    )
    assert not out.exists()

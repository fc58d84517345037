"""Unlabelled texts read as a stream: the same as held in memory, whatever their number."""

import errno
import tracemalloc

import numpy as np
import pytest

from nanonet.core.errors import DataError, InterruptedRunError
from nanonet.data import readers
from nanonet.data.checks import fingerprint, text_hashes
from nanonet.data.readers import Columns, open_stream, read_table, stream_of, table_from_lists
from nanonet.data.writers import write_table
from nanonet.tasks import stored
from nanonet.tasks.base import row_lengths, unit_counts
from nanonet.tasks.stored import Spool, StoredRows, random_rows
from nanonet.tasks.tokenization import TextTokenizer, length_quantiles, quantiles_of_counts
from nanonet.training import streams
from nanonet.training.inputs import TrainingTables
from nanonet.training.prepare import divide
from nanonet.training.streams import encode_stream, write_hashes
from nanonet.training.train import train
from runs import refuse
from test_resume import interrupt_at
from test_training import contents
from tiny import SPECIAL, WORDS, make_settings, make_tables, make_texts, make_tokenizer

LENGTH = 12


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer().backend_tokenizer.to_str(), LENGTH)


@pytest.fixture
def on_disk(monkeypatch):
    """Everything goes to files, a few numbers at a time."""
    monkeypatch.setattr(stored, "KEPT_BYTES", 8)
    monkeypatch.setattr(stored, "BLOCK", 5)
    monkeypatch.setattr(readers, "BLOCK_ROWS", 7)
    monkeypatch.setattr("nanonet.data.formats.BLOCK_ROWS", 7)
    monkeypatch.setattr(streams, "HASHES_AT_ONCE", 4)


def texts_with_gaps() -> list[str]:
    texts = make_texts(10)[0]
    return [*texts[:3], "", texts[0], "qwertz zuiop", "  ", *texts[3:], "iron " * 40]


def test_a_spool_gives_back_what_was_written(on_disk):
    spool = Spool(np.int64)
    for numbers in (np.arange(3), np.empty(0), np.arange(3, 11)):
        spool.append(numbers)
    assert len(spool) == 11
    assert spool.read(2, 5).tolist() == [2, 3, 4]
    assert [len(block) for block in spool.blocks()] == [5, 5, 1]
    assert np.concatenate(list(spool.blocks())).tolist() == list(range(11))
    spool.append(np.array([7]))  # after reading, at the end all the same
    assert spool.read(10, 12).tolist() == [10, 7]


def test_nothing_is_left_in_the_cache_folder(on_disk, monkeypatch, tmp_path):
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "deep" / "cache"))
    spool = Spool(np.int64)
    spool.append(np.arange(100))
    assert spool.read(99, 100).tolist() == [99]
    assert list((tmp_path / "deep" / "cache").iterdir()) == []


def test_without_a_cache_folder_the_systems_temporary_folder_serves(on_disk, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NANONET_CACHE", str(tmp_path / "file" / "cache"))
    spool = Spool(np.int64)
    spool.append(np.arange(100))
    assert spool.read(99, 100).tolist() == [99]


def test_stored_rows(on_disk):
    rows = [np.arange(n) + 10 * n for n in (3, 1, 4, 1, 5, 9, 2, 6)]
    tokens, ends = Spool(np.uint32), Spool(np.int64)
    tokens.append(np.concatenate(rows))
    ends.append(np.cumsum([0, *map(len, rows)]))
    whole = StoredRows(tokens, ends)
    assert [row.tolist() for row in whole] == [row.tolist() for row in rows]
    assert whole[-1].tolist() == rows[-1].tolist()
    assert whole[0].dtype == np.int64
    assert row_lengths(whole).tolist() == [len(row) for row in rows]
    assert unit_counts(whole).tolist() == [1] * 8
    some = whole.take(np.array([6, 0, 5, 2]))
    assert [row.tolist() for row in some] == [rows[i].tolist() for i in (6, 0, 5, 2)]
    assert some.lengths.tolist() == [2, 3, 9, 4]
    assert [row.tolist() for row in some[1:3]] == [rows[0].tolist(), rows[5].tolist()]
    for index in (8, -9):
        with pytest.raises(IndexError):
            whole[index]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".jsonl.gz", ".parquet"])
def test_a_stream_gives_what_the_whole_table_gives(tmp_path, tokenizer, on_disk, suffix):
    path = tmp_path / f"pool{suffix}"
    write_table(path, {"text": texts_with_gaps()})
    table = read_table(path, Columns(), labels="ignored")
    expected = tokenizer.encode(table.texts)
    for stream in (open_stream(path, "text"), stream_of(table)):
        found = encode_stream(stream, tokenizer)
        assert [row.tolist() for row in found.ids] == [row.tolist() for row in expected.ids]
        lost = (expected.truncated, expected.unknown_share)
        assert (found.truncated, found.unknown_share) == lost
        assert (found.facts.source, found.facts.count) == (str(path), len(table.texts))
        assert found.facts.dropped_empty == table.dropped_empty == 2
        assert found.facts.fingerprint == fingerprint(table)
        write_hashes(tmp_path / "seen.bin", found.facts.hashes)
        assert (tmp_path / "seen.bin").read_bytes() == text_hashes(table.texts).tobytes()
        counts = np.bincount(np.concatenate(expected.ids), minlength=len(SPECIAL) + len(WORDS))
        assert found.token_counts.tolist() == counts.tolist()
        quantiles = quantiles_of_counts(found.length_counts)
        assert quantiles == length_quantiles([len(row) for row in expected.ids])


def test_the_hub_as_a_stream(on_disk, monkeypatch, tokenizer):
    class Hub:
        column_names = ("text", "label")

        def __getitem__(self, name):
            assert name == "text"
            return texts_with_gaps()

    monkeypatch.setattr(readers, "_load_hub", lambda name: Hub())
    found = encode_stream(open_stream("hub:pool", "text"), tokenizer)
    expected = table_from_lists(texts_with_gaps())
    assert found.facts.fingerprint == fingerprint(expected)
    assert found.facts.dropped_empty == 2


@pytest.mark.parametrize("lengths", [[5], [1, 2], [3, 3, 3, 9], [0, 4, 2, 2, 7, 1, 1]])
@pytest.mark.parametrize("count", [1, 4, 64])
def test_quantiles_of_counts_are_numpys(lengths, count):
    at = (np.arange(count) + 0.5) / count
    expected = np.quantile(lengths, at, method="nearest").tolist()
    assert quantiles_of_counts(np.bincount(lengths), count) == expected


def test_random_rows_of_few_and_of_many(monkeypatch):
    few = random_rows(50, 20, seed=3)
    assert few.tolist() == np.random.default_rng((3, 50)).permutation(50)[:20].tolist()
    monkeypatch.setattr(stored, "MOST_SHUFFLED", 40)
    many = random_rows(50, 20, seed=3)
    assert len(set(many.tolist())) == 20
    assert many.tolist() == random_rows(50, 20, seed=3).tolist()
    assert many.tolist() != random_rows(50, 20, seed=4).tolist()
    assert many.tolist() != sorted(many)  # the first of them are a sample too
    assert sorted(random_rows(50, 90, seed=3)) == list(range(50))
    drawn = np.concatenate([random_rows(50, 20, seed) for seed in range(300)])
    assert 80 < np.bincount(drawn, minlength=50).min() <= np.bincount(drawn).max() < 160


def file_of(tables, tmp_path):
    """The tables with the unlabelled texts in a file."""
    path = tmp_path / "pool.csv"
    write_table(path, {"text": tables.unlabeled.texts})
    return TrainingTables(tables.labeled, open_stream(path, "text"), tables.validation)


def comparable(folder) -> dict:
    """Contents of a run folder without clocks and sources."""
    varying = (
        "metrics.jsonl",
        "log.txt",
        "summary.json",
        "config.toml",
        "environment.json",
        "warmup.json",
    )
    return {
        name: data
        for name, data in contents(folder).items()
        if name not in varying and not name.endswith("position.json")
    }


def test_a_run_on_a_stream_gives_the_same_bits(tmp_path, tiny_bert_folder, monkeypatch, request):
    monkeypatch.setattr("nanonet.training.prepare.PROPAGATION_TEXTS", 20)
    settings = ("training.unlabeled_batch=2", "warmup.steps=2", "warmup.cache=false")
    config, tables = make_settings(tiny_bert_folder, *settings), make_tables(validation=2)
    first = train(config, lambda: tables, tmp_path / "memory")
    request.getfixturevalue("on_disk")
    streamed = file_of(tables, tmp_path)
    second = train(config, lambda: streamed, tmp_path / "stream")
    assert second["weights_sha256"] == first["weights_sha256"]
    assert second["token_lengths"] == first["token_lengths"]
    assert second["unlabeled_used"] == 20
    assert comparable(tmp_path / "stream") == comparable(tmp_path / "memory")

    parts = tmp_path / "parts"
    with pytest.raises(InterruptedRunError):
        train(config, lambda: streamed, parts, display=interrupt_at(3))
    third = train(config, lambda: streamed, parts, mode="resume")
    assert third["weights_sha256"] == first["weights_sha256"]


def test_a_run_on_more_rows_than_are_ever_shuffled(tmp_path, tiny_bert_folder, monkeypatch):
    monkeypatch.setattr(stored, "MOST_SHUFFLED", 25)
    monkeypatch.setattr("nanonet.training.warmup.MOST_SHUFFLED", 25)
    monkeypatch.setattr("nanonet.training.prepare.PROPAGATION_TEXTS", 20)
    settings = ("training.unlabeled_batch=2", "warmup.steps=2", "warmup.unlabeled_batch=4")
    config = make_settings(tiny_bert_folder, *settings, "warmup.cache=false")
    found = [train(config, make_tables, tmp_path / name) for name in ("a", "b")]
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"]
    assert (found[0]["unlabeled_used"], found[0]["rows"]["unlabeled"]) == (20, 30)


def test_changed_texts_are_noticed_on_resume(tmp_path, tiny_bert_folder):
    tables = make_tables()
    config, out = make_settings(tiny_bert_folder), tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        train(config, lambda: file_of(tables, tmp_path), out, display=interrupt_at(3))
    fewer = table_from_lists(tables.unlabeled.texts[:-1])
    changed = TrainingTables(tables.labeled, fewer, None)
    with pytest.raises(Exception, match="other data"):
        train(config, lambda: file_of(changed, tmp_path), out, mode="resume")
    assert train(config, lambda: file_of(tables, tmp_path), out, mode="resume")["finished"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("text\n", ["has no rows"]),
        ('text\n""\n"  "\n', ["'text' is empty in all 2 rows"]),
        ("txt\nx\n", ["no column 'text'", "did you mean", "data.text_column"]),
        ("text\na\nb,c\n", ["pool.csv, line 3"]),
        (None, ["no such file", "pool.csv"]),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(tmp_path, train_arguments, content, parts):
    path = tmp_path / "pool.csv"
    if content is not None:
        path.write_text(content)
    arguments = list(train_arguments)
    arguments[arguments.index("--unlabeled") + 1] = path
    refuse(*arguments, "--out", tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


def test_no_space_for_the_tokens_is_one_line(tokenizer, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    with pytest.raises(DataError, match=r"tokens of lists could not be kept: No space.*CACHE"):
        encode_stream(stream_of(table_from_lists(["a"], source="lists")), tokenizer)


def test_memory_does_not_grow_with_the_texts(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(stored, "KEPT_BYTES", 2**14)
    monkeypatch.setattr("nanonet.data.formats.BLOCK_ROWS", 256)
    training = make_settings("x").training

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        words = np.random.default_rng(0).choice(WORDS, (rows, 6))
        write_table(path, {"text": [" ".join(row) for row in words]})
        tracemalloc.start()
        try:
            found = encode_stream(open_stream(path, "text"), tokenizer)
            write_hashes(tmp_path / "seen.bin", found.facts.hashes)
            assert len(found.ids) == rows
            reached, aside = divide(found.ids, 100, training, 0)
            assert len(aside) == 100
            assert sum(row_lengths(reached[:100])) == 100 * 8
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(600)
    monkeypatch.setattr(stored, "MOST_SHUFFLED", 1000)
    monkeypatch.setattr(streams, "HASHES_AT_ONCE", 1000)
    monkeypatch.setattr("nanonet.training.prepare.PROPAGATION_TEXTS", 200)
    assert peak(16_000) < 1.2 * peak(2_000)

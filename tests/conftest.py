"""Shared fixtures: small random encoders, and the shared data sets where present."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A worker of pytest-xdist keeps to one core, and so does what it starts: tiny matrices are slower
# on many threads, and workers would take the cores from each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Real data sets, beside the project where there are any; they are not part of it.
SHARED = Path(__file__).resolve().parents[2] / "shared" / "datasets"


@pytest.fixture(scope="session")
def ag_news() -> Path:
    folder = SHARED / "ag_news"
    if not folder.is_dir():
        pytest.skip("the AG News files are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT (4 layers, 32 wide, 64 positions) with a word-level tokenizer."""
    from tiny import bert_config, save_folder

    return save_folder(bert_config(), tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="session")
def tiny_modernbert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ModernBERT (6 layers, 32 wide, window 4 to each side, global layers 1 and 4)."""
    from tiny import modernbert_config, save_folder

    return save_folder(modernbert_config(), tmp_path_factory.mktemp("tiny_modernbert"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share the machine; and tiny matrices are slower on many threads."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_graphs() -> Iterator[None]:
    """Most tests that export a model are not about torch's exporter, which takes seconds."""
    try:
        import torch.onnx
    except ModuleNotFoundError:
        yield
        return
    from graphs import SharedGraphs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", SharedGraphs(torch.onnx.export))
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test may leave a warm-up in the user's cache, or find one there."""
    os.environ["NANONET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labeled.csv, unlabeled.csv, test.csv and all.csv: three classes with names."""
    from nanonet.data.writers import write_table
    from tiny import make_texts

    folder = tmp_path_factory.mktemp("corpus")
    texts, labels = make_texts(40)
    names = [["fruit", "metal", "water"][label] for label in labels]
    for name, rows in (
        ("labeled", slice(0, 30)),
        ("test", slice(90, 120)),
        ("all", slice(0, 120)),
    ):
        columns = {"text": texts[rows], "label": labels[rows], "label_name": names[rows]}
        write_table(folder / f"{name}.csv", columns)
    write_table(folder / "unlabeled.csv", {"text": texts[30:90]})
    return folder


@pytest.fixture(scope="session")
def train_arguments(corpus: Path, tiny_bert_folder: Path) -> list[object]:
    """Arguments of ``nanonet train`` for a run of about a second, without --out."""
    from runs import FAST

    files = ["--labeled", corpus / "labeled.csv", "--unlabeled", corpus / "unlabeled.csv"]
    return ["train", *files, "--backbone", tiny_bert_folder, *FAST]


@pytest.fixture(scope="session")
def run_folder(train_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by the command line. Read only."""
    from runs import succeed
    from tiny import WINDOW_FLAGS

    out = tmp_path_factory.mktemp("runs") / "run"
    succeed(*train_arguments, *WINDOW_FLAGS, "--out", out)
    return out


@pytest.fixture(scope="session")
def bundle(run_folder: Path) -> Path:
    """The bundle of `run_folder`, made by the command line. Read only."""
    from runs import succeed

    out = run_folder.parent / "bundle"
    succeed("export", run_folder, "--out", out)
    return out


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents, see `stories.write_stories`."""
    from stories import write_stories

    return write_stories(tmp_path_factory.mktemp("stories"))


@pytest.fixture(scope="session")
def story_run(
    stories: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A summarizer's run, long enough to have learnt something. Read only."""
    from runs import succeed
    from stories import flags

    out = tmp_path_factory.mktemp("story_runs") / "run"
    files = ["--labeled", stories / "summarized.jsonl", "--unlabeled", stories / "unlabeled.jsonl"]
    settings = flags(training__steps=40)
    how = ["--task", "summarization", "--backbone", tiny_bert_folder, *settings]
    succeed("train", *files, *how, "--out", out)
    return out


@pytest.fixture(scope="session")
def story_bundle(story_run: Path) -> Path:
    """The bundle of `story_run`. Read only."""
    from runs import succeed

    out = story_run.parent / "bundle"
    succeed("export", story_run, "--out", out)
    return out

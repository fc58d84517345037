"""What the learners of a run say of texts, and whether they have seen them before."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanonet.core.machine import usable_cores
from nanonet.data.checks import text_hashes
from nanonet.data.readers import TextTable
from nanonet.tasks.tokenization import encoding_warnings


@dataclass(frozen=True)
class Answers:
    """What the learners of a run say of n texts.

    Attributes:
        logits: of all units, (U, C), by learner (see `predict_logits`).
        seconds: by learner, tokenization included.
        selected: the shipped learner.
        warnings: what makes figures on these texts doubtful.
    """

    logits: dict[str, NDArray[np.float32]]
    seconds: dict[str, float]
    selected: str
    warnings: list[str]


def ask_run(path: Path, table: TextTable, *, as_trained: bool = False) -> Answers:
    """Ask all learners of a run about texts.

    Args:
        path: the run folder.
        table: texts.
        as_trained: compute with the hardware and precision of training, which can be several
            times as fast; else on the CPU in 32 bits, as a bundle does.

    Raises:
        RunError: not a finished run.
        BackboneError: its backbone is gone.
    """
    from nanonet.export import load_cohort
    from nanonet.tasks.tokenization import TextTokenizer
    from nanonet.training.device import Hardware, shrink_frozen
    from nanonet.training.evaluation import predict_logits
    from nanonet.training.run_folder import RunFolder

    run = RunFolder(path)
    selected = str(run.read_summary()["selected"])
    config, _ = run.read_config()
    cohort = load_cohort(run)
    tokenizer = TextTokenizer(run.read_tokenizer(), config.data.max_length)
    hardware = Hardware("cpu", "fp32", "eager", usable_cores())
    if as_trained:
        hardware, _ = run.read_hardware()
        if hardware.precision == "bf16":
            shrink_frozen(cohort)
        cohort.to(hardware.device)
    start = time.perf_counter()
    encoded = tokenizer.encode(table.texts)
    tokenizing = time.perf_counter() - start
    logits: dict[str, NDArray[np.float32]] = {}
    seconds: dict[str, float] = {}
    for name in cohort:
        start = time.perf_counter()
        logits[name] = predict_logits(cohort[name], encoded.ids, hardware)
        seconds[name] = tokenizing + time.perf_counter() - start
    warnings = encoding_warnings(table.source, encoded, config.data.max_length)
    warnings += leaks(table, {name: run.read_seen(name) for name in ("labeled", "unlabeled")})
    return Answers(logits, seconds, selected, warnings)


def leaks(table: TextTable, seen: dict[str, NDArray[np.uint64]]) -> list[str]:
    """Return a warning for each training file that holds texts of this table."""
    warnings = []
    hashes = text_hashes(table.texts)
    for name, known in seen.items():
        if shared := int(np.isin(hashes, known).sum()):
            kind = "labelled" if name == "labeled" else "unlabelled"
            warnings.append(
                f"{shared} of {len(table.texts)} texts of {table.source} were among the {kind}"
                " training texts: the figures are too good"
            )
    return warnings

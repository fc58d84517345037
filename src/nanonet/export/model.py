"""From a learner to the model and the tokenizer of a bundle, in measured steps."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nanonet.core.bundle import AGREEMENT, MODEL
from nanonet.core.errors import BundleError
from nanonet.export.agreement import Measure, read_counts
from nanonet.export.graph import check_parity, replace_table, write_onnx
from nanonet.export.quantization import Quantization, quantize
from nanonet.export.samples import Sample, batches
from nanonet.export.vocabulary import kept_tokens, trim_embeddings, trim_tokenizer
from nanonet.models.learner import Learner
from nanonet.training.run_folder import RunFolder

CALIBRATION_BATCHES = 16  # of typical texts, for scales that are fixed beforehand


@dataclass(frozen=True)
class Compression:
    """How much smaller than its learner a bundle's model is to be.

    Attributes:
        quantize: how many bits its weights are held in, see `quantization.quantize`.
        vocabulary: how many tokens are kept for their frequency; ``auto``: as few as answer texts
            as before; None: all.
        min_agreement: see `Sample.agreement`; with less, nothing is written; None: it is only
            reported.
    """

    quantize: Quantization = "none"
    vocabulary: int | Literal["auto"] | None = None
    min_agreement: float | None = None

    def vocabulary_agreement(self, usual: float) -> float:
        """What ``vocabulary="auto"`` aims at: half of the loss is left to fewer bits, if any."""
        wanted = usual if self.min_agreement is None else self.min_agreement
        return wanted if self.quantize == "none" else (1 + wanted) / 2

    @property
    def is_none(self) -> bool:
        """Whether the model is left as it is."""
        return self.quantize == "none" and self.vocabulary is None


def write_model(
    run: RunFolder,
    learner: Learner,
    folder: Path,
    max_length: int,
    compression: Compression,
    sample: Sample | None,
) -> tuple[str, dict[str, Any]]:
    """Write a learner's model into a folder.

    Args:
        run: what the learner is from.
        learner: merged.
        folder: to write to.
        max_length: tokens of one text at most.
        compression: see there.
        sample: texts to measure agreement on; None: there are none.

    Returns:
        The ``tokenizer.json`` content, and what the manifest's ``metrics`` say of the model.

    Raises:
        BundleError: the model does not match torch's, or answers too few texts as before.
    """
    _check_possible(run, compression, sample)
    path, tokenizer = folder / MODEL, run.read_tokenizer()
    write_onnx(learner, path)
    metrics: dict[str, Any] = {"largest_difference_from_torch": check_parity(learner, path)}
    if compression.is_none:
        return tokenizer, metrics
    measure = Measure(path, tokenizer, max_length, sample)
    measure.step("32 bits", path, tokenizer)
    if compression.vocabulary is not None:
        counts = read_counts(run)
        n = compression.vocabulary
        if n == "auto":
            assert sample is not None  # see _check_possible
            wanted = compression.vocabulary_agreement(AGREEMENT[sample.task])
            n = measure.smallest_vocabulary(counts, wanted)
        kept = kept_tokens(tokenizer, counts, n)
        small, table = trim_embeddings(learner, kept)
        tokenizer = trim_tokenizer(tokenizer, kept)
        replace_table(path, small, table)
        check_parity(small, path)
        metrics["vocabulary"] = {"kept": len(kept), "of": len(counts), "frequent": n}
        measure.step(f"{len(kept)} of {len(counts)} tokens", path, tokenizer)
    if compression.quantize != "none":
        rows = [row for own in measure.encode(tokenizer) for row in own]
        feeds = [f for f, _ in batches(rows)[:CALIBRATION_BATCHES]]
        quantize(path, compression.quantize, feeds)
        measure.step(compression.quantize, path, tokenizer)
    metrics["steps"] = [asdict(step) for step in measure.steps]
    metrics["measured_on"] = None if sample is None else sample.describe()
    _check_agreement(measure, compression)
    return tokenizer, metrics


def _check_possible(run: RunFolder, compression: Compression, sample: Sample | None) -> None:
    """Refuse, before anything is computed, what needs texts or token counts that are not there."""
    if compression.vocabulary is not None:
        read_counts(run)
    needs = {
        "--trim-vocabulary without a number": compression.vocabulary == "auto",
        "--quantize int8-static": compression.quantize == "int8-static",
        "--min-agreement": compression.min_agreement is not None and not compression.is_none,
    }
    for option, is_asked in needs.items():
        if is_asked and sample is None:
            raise BundleError(
                f"{option} needs texts to measure on, and the run's are gone or have changed: give"
                " --data FILE"
            )


def _check_agreement(measure: Measure, compression: Compression) -> None:
    wanted, found = compression.min_agreement, measure.steps[-1].agreement
    if wanted is None or found is None or measure.sample is None:
        return
    if found < wanted:
        raise BundleError(
            f"the smaller model answers {found:.2%} as before on {measure.sample.describe()}, less"
            f" than --min-agreement {wanted}; nothing was written: keep more tokens or bits, or"
            " ask for less agreement"
        )

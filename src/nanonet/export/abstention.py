"""Below which probability a bundle is to give no label, so that the labels it gives are right."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from nanonet.core.bundle import MODEL, Abstention
from nanonet.core.config import Config
from nanonet.core.errors import BundleError, DataError
from nanonet.data.checks import fingerprint, text_hashes
from nanonet.data.readers import TextTable, read_table
from nanonet.export.graph import open_session
from nanonet.export.samples import logits_of
from nanonet.tasks.metrics import softmax
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.inputs import columns_of
from nanonet.training.run_folder import RunFolder

LEVEL = 0.95  # of confidence in the bound on the precision
FIRST_SHARE = 0.2  # of the rows that the search begins with


def lower_bound(right: int, rows: int) -> float:
    """Return the one-sided Clopper-Pearson bound on a precision of which ``right`` of n were seen.

    With 95% confidence the true precision is no lower.
    """
    return float(betaincinv(right, rows - right + 1, 1 - LEVEL)) if right else 0.0


def fewest_rows(target: float) -> int:
    """Return how many rows, all of them right, it takes to show a precision."""
    return int(np.ceil(np.log(1 - LEVEL) / np.log(target)))


def labelled_texts(
    run: RunFolder, config: Config, inputs: dict[str, Any], data: TextTable | None
) -> TextTable:
    """Return labelled texts to choose a threshold on: ``data``, or the run's validation texts.

    Raises:
        BundleError: there are none; or the run is no classifier's.
    """
    if config.task != "classification":
        raise BundleError(
            f"--target-precision is for classifiers: leave it out for the task {config.task}"
        )
    if data is not None:
        if data.labels is None:
            raise BundleError(f"--target-precision needs labels, and {data.source} has none")
        return data
    known = inputs.get("validation", {})
    try:
        source = str(known.get("source", ""))
        table = read_table(source, columns_of(config.data), labels="required")
    except DataError:
        table = None
    if table is None or fingerprint(table) != known["fingerprint"]:
        raise BundleError(
            "--target-precision needs texts with labels, and the run's validation texts are"
            f" {'gone or have changed' if known else 'none'}: give --data FILE"
        )
    return table


def choose_on(
    table: TextTable, run: RunFolder, folder: Path, tokenizer: TextTokenizer, target: float
) -> Abstention:
    """Return the threshold for the model in a folder, chosen on labelled texts.

    Texts that were among the labelled training texts are left out: on those it is surer than it
    will be. Raises what `choose_threshold` and `LabelSet.encode` raise.
    """
    truth = run.read_labels().encode(table.labels or [], table.source, table.rows, table.names)
    seen = set(run.read_seen("labeled").tolist())
    new = [i for i, text in enumerate(table.texts) if int(text_hashes([text])[0]) not in seen]
    ids = tokenizer.encode([table.texts[i] for i in new]).ids
    session = open_session(folder / MODEL)
    probabilities = softmax(np.stack(logits_of(session, ids))) if ids else np.empty((0, 1))
    right = probabilities.argmax(-1) == truth[new]
    return choose_threshold(probabilities.max(-1), right, target, table.source)


def choose_threshold(
    confidence: NDArray[np.floating[Any]],
    right: NDArray[np.bool_],
    target: float,
    source: str,
) -> Abstention:
    """Return the threshold of largest coverage whose precision is shown to reach a target.

    From the rows that the model is surest of, rows are added as long as the bound on the precision
    reaches the target; the first set that does not ends the search. Thanks to this order the bound
    holds for the set that is chosen, though many were looked at (fixed sequence testing in "Learn
    then test", Angelopoulos et al. 2021). The first set is a fifth of the rows, as a single error
    among very few would end the search at once, or as many as can show the target at all.

    Args:
        confidence: probability of the most probable class, (n,).
        right: whether that class is the truth, (n,).
        target: precision that labels are to have, below 1.
        source: where the rows are from.

    Raises:
        BundleError: no threshold is shown to reach the target.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order], dtype=np.int64)
    rows = len(sure)
    # Rows of equal confidence stand on one side of any threshold.
    ends = [i for i in range(rows) if i + 1 == rows or sure[i + 1] < sure[i]]
    first = max(fewest_rows(target), round(FIRST_SHARE * rows))
    covered = 0
    for end in (i for i in ends if i + 1 >= first):
        if lower_bound(int(hits[end]), end + 1) < target:
            break
        covered = end + 1
    if not covered:
        raise BundleError(_why(hits, first, rows, target, source))
    threshold = 0.0 if covered == rows else float(sure[covered - 1] + sure[covered]) / 2
    return Abstention(
        min_confidence=threshold,
        target_precision=target,
        precision=float(hits[covered - 1] / covered),
        precision_bound=lower_bound(int(hits[covered - 1]), covered),
        coverage=covered / rows,
        rows=rows,
        source=source,
    )


def _why(hits: NDArray[np.int64], first: int, rows: int, target: float, source: str) -> str:
    """Return why no threshold was found."""
    asked = f"--target-precision {target:g}"
    if rows < first:
        return (
            f"{asked} takes at least {first} labelled rows to show, and {source} has {rows}: give"
            " more, or ask for less"
        )
    return (
        f"{asked} is not reached: of the {first} rows of {source} that the model is surest of,"
        f" {hits[first - 1]} are right, which shows {lower_bound(int(hits[first - 1]), first):.1%};"
        " ask for less, give more labelled rows, or train with more labels"
    )

"""Labels spread through the neighbourhoods of the teacher's space.

Once, after a share of the steps, the teacher places every labelled and unlabelled text in its space
as it then is. Labels spread along the graph of nearest neighbours (Zhou et al. 2003, "Learning with
local and global consistency": F <- alpha S F + (1 - alpha) Y, S the normalised adjacency), which
gives each unlabelled text a soft label. A classifier, the texts' tokens and the labels' names may
have a say too (see `combine` and `co_training`). What this brings is measured in
``docs/experiments.md``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nanonet.core.config import PropagationConfig
from nanonet.core.errors import ConfigError
from nanonet.tasks.calibration import temperature_of_confidence
from nanonet.tasks.metrics import Floats, softmax

Vectors = NDArray[np.float32]
SIMILARITIES_AT_ONCE = 20_000_000  # numbers of the similarity matrix: bounds memory to some 400 MB
STRENGTH = 10.0  # of the logistic regression: C, the inverse of its penalty's weight
SHARPNESS = 4  # power of the cosine that weighs an edge
# A text is out of reach that less arrives at than this many times what arrives at nine in ten
# labelled texts from the others. Measured in docs/experiments.md.
REACH, REACHED_SHARE, PROBES = 0.5, 0.9, 100


def check_neighbours_only(config: PropagationConfig, task: str) -> None:
    """Refuse labels from more than neighbours.

    Raises:
        ConfigError: they are asked for in a task whose units do not have one of several classes.
    """
    if config.labels not in ("auto", "neighbours"):
        raise ConfigError(
            f"propagation.labels={config.labels} is for texts that have one of several labels: the"
            f" task {task} has auto and neighbours"
        )


@dataclass(frozen=True)
class SoftLabels:
    """What propagation says of the unlabelled texts.

    Attributes:
        probabilities: (n_u, C), rows sum to 1.
        confidence: (n_u,), rank of the row among all by how clear its label is, from 0 for the
            least clear to 1; 0 for every row that no label has reached.
        reached: which rows are within reach, see `within_reach`: the unlabelled ones, then those
            kept aside, (n_u + n_a,); None: all.
        by_sentences: whether the texts stood where their sentences do, (1,); None: they did not.
        names_heard: weight of the names' voice in the end, from 0 to 1, (1,); None: they had none.
    """

    probabilities: Vectors
    confidence: Vectors
    reached: NDArray[np.bool_] | None = None
    by_sentences: NDArray[np.bool_] | None = None
    names_heard: NDArray[np.float64] | None = None


def propagate(
    labeled: Vectors,
    labels: NDArray[np.int64],
    unlabeled: Vectors,
    classes: int,
    config: PropagationConfig,
) -> SoftLabels:
    """Return soft labels of the unlabelled vectors, by their neighbours alone.

    Class columns are scaled to equal mass, so that a class whose labelled texts stand in a crowd
    does not flood the graph.

    Args:
        labeled: L2-normalised vectors (n_l, H).
        labels: their class indexes (n_l,).
        unlabeled: L2-normalised vectors (n_u, H).
        classes: number of classes C.
        config: neighbours, alpha and iterations.
    """
    counts = np.bincount(labels, minlength=classes)
    start = np.zeros((len(labels), classes), dtype=np.float32)
    start[np.arange(len(labels)), labels] = 1.0 / counts[labels]
    return soft_labels(_spread(start, labeled, unlabeled, config))


def propagate_each(
    labeled: Vectors, flags: NDArray[np.int64], unlabeled: Vectors, config: PropagationConfig
) -> SoftLabels:
    """Return soft labels where a text may have many labels: each of them spreads on its own.

    Both answers spread, that a text has the label and that it has not, to masses that are as the
    labelled texts' shares.

    Args:
        labeled: L2-normalised vectors (n_l, H).
        flags: 1 where a text has a label, else 0, (n_l, L).
        unlabeled: L2-normalised vectors (n_u, H).
        config: neighbours, alpha and iterations.

    Returns:
        Those of each label of each text: (n_u L, 2) and (n_u L,).
    """
    answers = np.stack([1 - flags, flags], axis=-1)  # (n_l, L, 2)
    counts = answers.sum(0, keepdims=True)
    start = (answers / np.maximum(counts, 1)).reshape(len(flags), -1).astype(np.float32)
    mass = _spread(start, labeled, unlabeled, config).reshape(len(unlabeled), -1, 2)
    return soft_labels((mass * (counts / len(flags))).astype(np.float32).reshape(-1, 2))


def within_reach(
    labeled: Vectors,
    labels: NDArray[np.int64],
    unlabeled: Vectors,
    config: PropagationConfig,
    seed: int,
) -> NDArray[np.bool_]:
    """Return which unlabelled texts are like the labelled ones, (n_u,).

    What spreads from labelled texts hardly arrives among texts of another kind, as these are one
    another's neighbours. How much arrives where it should, labelled texts tell: at each of them,
    without its own.

    Args:
        labeled: L2-normalised vectors (n_l, H).
        labels: their class indexes (n_l,).
        unlabeled: L2-normalised vectors (n_u, H).
        config: neighbours, alpha and iterations.
        seed: draws the labelled texts that are looked at, if there are more than `PROBES`.
    """
    probes = np.random.default_rng((seed, len(labels))).permutation(len(labels))[:PROBES]
    weights = 1.0 / np.bincount(labels)[labels]
    start = np.zeros((len(labels), 1 + len(probes)), dtype=np.float32)
    start[:, 0] = weights  # of all texts together, then of each probe alone
    start[probes, 1 + np.arange(len(probes))] = weights[probes]
    spread = _spread_masses(start, labeled, unlabeled, config)
    others = spread[probes, 0] - spread[probes, 1 + np.arange(len(probes))]
    least = REACH * np.quantile(others, 1.0 - REACHED_SHARE)
    reached: NDArray[np.bool_] = spread[len(labels) :, 0] >= least
    return reached


def _spread(
    start: Vectors, labeled: Vectors, unlabeled: Vectors, config: PropagationConfig
) -> Vectors:
    """Return what has reached the unlabelled texts, (n_u, K), of columns of the same mass.

    Args:
        start: what the labelled texts have, (n_l, K).
        labeled, unlabeled, config: see `propagate`.
    """
    spread = _spread_masses(start, labeled, unlabeled, config)
    mass = spread / np.maximum(spread.sum(0, keepdims=True), 1e-12)
    reached: Vectors = mass[len(labeled) :]
    return reached


def _spread_masses(
    start: Vectors, labeled: Vectors, unlabeled: Vectors, config: PropagationConfig
) -> Vectors:
    """Return what is where in the end, (n_l + n_u, K); see `_spread`."""
    graph = neighbour_graph(np.concatenate([labeled, unlabeled]), config.neighbours)
    start = np.concatenate([start, np.zeros((len(unlabeled), start.shape[1]), dtype=np.float32)])
    spread = start
    for _ in range(config.iterations):
        spread = config.alpha * (graph @ spread) + (1.0 - config.alpha) * start
    return spread


def soft_labels(found: NDArray[np.floating[Any]]) -> SoftLabels:
    """Return soft labels of masses (n, C)."""
    total = found.sum(1, keepdims=True)
    reached = total > 1e-30
    uniform = np.full_like(found, 1.0 / found.shape[1])
    probabilities = np.where(reached, found / np.maximum(total, 1e-30), uniform)
    exact = probabilities.astype(np.float64)  # flat ones differ by less than 32 bits can hold
    confidence = np.where(reached[:, 0], clearness(exact), 0.0)
    return SoftLabels(probabilities.astype(np.float32), confidence.astype(np.float32))


def clearness(probabilities: Floats) -> Floats:
    """Return each row's rank by its entropy, from 0 for the least clear one to 1, (n,).

    Ranks, since the entropy's scale depends on alpha, on the classes and on the graph.
    """
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1)
    ranks = (-entropy).argsort(kind="stable").argsort(kind="stable")
    clear: Floats = ranks / max(len(ranks) - 1, 1)
    return clear


@dataclass(frozen=True)
class Combined:
    """What neighbours and a classifier say together.

    Attributes:
        probabilities: (n_u, C).
        agreement: the share of texts on which the two agree.
    """

    probabilities: Floats
    agreement: float


def combine(
    found: SoftLabels, labeled: Vectors, labels: NDArray[np.int64], unlabeled: Vectors
) -> Combined:
    """Return the geometric mean of what neighbours and a logistic regression say.

    The two err in different places: one sees how texts crowd together, the other directions that
    tell classes apart. Each is brought to a mean confidence that equals the share of texts on which
    they agree, since the one is flat and the other's scale follows from its penalty.

    Args:
        found: by propagation, of n_u texts.
        labeled: L2-normalised vectors (n_l, H).
        labels: their class indexes (n_l,), each class at least once.
        unlabeled: L2-normalised vectors (n_u, H).
    """
    own = classifier().fit(labeled, labels).predict_proba(unlabeled)
    spread = found.probabilities.astype(np.float64)
    agreement = agreement_of(own, spread)
    logits = (logits_at(own, agreement) + logits_at(spread, agreement)) / 2
    return Combined(softmax(logits), agreement)


def classifier() -> Any:
    """Return an untrained logistic regression for L2-normalised vectors."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-6, max_iter=1000)


def agreement_of(one: Floats, other: Floats) -> float:
    """Return the share of rows whose most probable class is the same in both, (n, C) each."""
    return float((one.argmax(1) == other.argmax(1)).mean())


def logits_at(probabilities: Floats, confidence: float) -> Floats:
    """Return logits (n, C) whose softmax has this mean confidence, within what C classes allow."""
    logits = np.log(np.maximum(probabilities, 1e-12))
    lowest = 1.2 / logits.shape[1]  # no temperature makes texts less sure than a uniform guess
    scaled: Floats = logits / temperature_of_confidence(
        logits, float(np.clip(confidence, lowest, 0.99))
    )
    return scaled


def neighbour_graph(vectors: Vectors, neighbours: int) -> sparse.csr_matrix:
    """Return the normalised adjacency (n, n): each row's nearest neighbours, made symmetric.

    Args:
        vectors: L2-normalised, (n, H).
        neighbours: of each row, by cosine, itself not counted.
    """
    n = len(vectors)
    k = min(neighbours, n - 1)
    rows, columns, weights = [], [], []
    step = max(1, SIMILARITIES_AT_ONCE // n)
    for start in range(0, n, step):
        block = np.arange(start, min(start + step, n))
        similarity = vectors[block] @ vectors.T
        similarity[np.arange(len(block)), block] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        rows.append(np.repeat(block, k))
        columns.append(nearest.ravel())
        weights.append(np.take_along_axis(similarity, nearest, axis=1).ravel())
    values = np.maximum(np.concatenate(weights), 0.0) ** SHARPNESS
    places = (np.concatenate(rows), np.concatenate(columns))
    adjacency = sparse.csr_matrix((values, places), shape=(n, n), dtype=np.float32)
    adjacency = adjacency.maximum(adjacency.T)
    degree = np.asarray(adjacency.sum(1)).ravel()
    scale = sparse.diags(1.0 / np.sqrt(np.maximum(degree, 1e-12)))
    return sparse.csr_matrix(scale @ adjacency @ scale)

"""Labels of unlabelled texts, as plain statements: neighbours, a classifier, co-training."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

SHARES = (0.4, 0.55, 0.7, 0.8, 0.8)
FOLDS = 3


def propagate(labeled: Tensor, labels: Tensor, unlabeled: Tensor, neighbours: int) -> Tensor:
    """Return class probabilities of unlabelled vectors, (n_u, C).

    Labels spread along the graph of nearest neighbours: F <- a S F + (1 - a) Y.
    """
    vectors = torch.cat([labeled, unlabeled]).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    graph = np.zeros_like(cosines)
    for i, row in enumerate(cosines):
        nearest = np.argsort(-row)[:neighbours]
        graph[i, nearest] = np.maximum(row[nearest], 0.0) ** 4
    graph = np.maximum(graph, graph.T)
    degree = graph.sum(1)
    normalized = graph / np.sqrt(degree[:, None] * degree[None, :])

    given = np.zeros((len(vectors), int(labels.max()) + 1))
    given[np.arange(len(labels)), labels] = 1.0
    spread = given
    for _ in range(30):
        spread = 0.95 * normalized @ spread + 0.05 * given
    spread /= spread.sum(0)  # classes of equal mass
    found = spread[len(labels) :]
    return torch.from_numpy(found / found.sum(1, keepdims=True))


def classify(labeled: Tensor, labels: Tensor, unlabeled: Tensor) -> Tensor:
    """Return what a logistic regression says of unlabelled vectors, (n_u, C).

    It minimises half the squared weights plus ten times the loss of rows that count so that all
    classes weigh the same.
    """
    x, u = (F.normalize(v.double(), dim=-1) for v in (labeled, unlabeled))
    classes = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=classes)
    share = (len(labels) / (classes * counts))[labels].double()
    weights = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        logits = x @ weights[:, :-1].T + weights[:, -1]
        each = F.cross_entropy(logits, labels, reduction="none")
        total = 0.5 * (weights[:, :-1] ** 2).sum() + 10.0 * (share * each).sum()
        total.backward()
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    return (u @ weights[:, :-1].T + weights[:, -1]).softmax(-1).detach()


def at_confidence(q: Tensor, confidence: float) -> Tensor:
    """Return logits (n, C) at the temperature that makes the mean greatest probability this."""
    wanted, z = min(max(confidence, 1.2 / q.shape[1]), 0.99), q.double().clamp_min(1e-12).log()

    def excess(inverse: float) -> float:
        return float((inverse * z).softmax(-1).max(-1).values.mean()) - wanted

    return brentq(excess, 1 / 20, 20.0, xtol=1e-12) * z


def agree_on(one: Tensor, other: Tensor) -> tuple[Tensor, float]:
    """Return the geometric mean of two sets of probabilities, both as sure as they agree, and how
    often they do."""
    agreement = float((one.argmax(1) == other.argmax(1)).double().mean())
    logits = at_confidence(one, agreement) + at_confidence(other, agreement)
    return (logits / 2).softmax(-1), agreement


def rank_of_clearness(q: Tensor) -> Tensor:
    """Return each row's place by entropy, from 0 for the least clear to 1, (n_u,)."""
    entropy = -(q * q.log()).sum(1)
    rank = torch.empty(len(q))
    rank[entropy.argsort(descending=True)] = torch.arange(len(q), dtype=torch.float32)
    return rank / (len(q) - 1)


def tf_idf(texts: list[list[int]]) -> Tensor:
    """Return weights of tokens and pairs that two texts have, and of what all have, (n, F)."""
    counts = [Counter(["", *text, *pairwise(text)]) for text in texts]
    frequency = Counter(key for each in counts for key in each)
    kept = [key for key, n in frequency.items() if n >= 2]
    weights = torch.zeros(len(texts), len(kept), dtype=torch.float64)
    for i, each in enumerate(counts):
        for j, key in enumerate(kept):
            if each[key]:
                inverse = np.log((1 + len(texts)) / (1 + frequency[key])) + 1
                weights[i, j] = (1 + np.log(each[key])) * inverse
    return weights / weights.norm(dim=1, keepdim=True).clamp_min(1e-12)


def naive_bayes(rows: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
    """Return what complement naive Bayes says, (n, C): unlike each other class's tokens."""
    number = int(classes.max()) + 1
    logits = []
    for c in range(number):
        others = rows[classes != c].sum(0) + 0.3
        logits.append(-(asked @ (others / others.sum()).log()))
    return torch.stack(logits, 1).softmax(1)


def agreement(one: Tensor, other: Tensor) -> float:
    """Return the share of texts with the same most probable class."""
    return float((one.argmax(1) == other.argmax(1)).double().mean())


def log_shares(q: Tensor) -> Tensor:
    """Return log(w C) of the class shares w that these (n, C) have if classes were equally common
    to what gave them; 50 more texts of each class are counted. 0 where w is about 1 / C."""
    n, classes = q.shape
    w = torch.full((classes,), 1 / classes, dtype=torch.float64)
    for _ in range(200):
        likely = q * w
        w = ((likely / likely.sum(1, keepdim=True)).sum(0) + 50) / (n + 50 * classes)
    return (w * classes).log() * float((w - 1 / classes).abs().sum() / 2 >= 0.1)


def co_train(
    start: Tensor, agreed: float, places: tuple[Tensor, Tensor], texts: Tensor, labels: Tensor
) -> Tensor:
    """Return class probabilities of the unlabelled texts, (n_u, C), with seed 0.

    Args:
        start: what neighbours and the classifier say together.
        agreed: the share of texts on which they say the same.
        places: vectors of the labelled and of the unlabelled texts.
        texts: TF-IDF weights of both.
        labels: of the labelled texts.
    """
    random = np.random.default_rng((0, len(labels)))
    vectors = torch.cat(places).double()
    logits = at_confidence(start.double(), agreed)
    common = log_shares(logits.softmax(1))
    for_tokens = for_space = both = (logits + common).softmax(1)

    def judged(by: str, found: Tensor, share: float) -> Tensor:
        guesses = found.argmax(1)
        entropy = -(found * found.log()).sum(1)
        sure = torch.zeros(len(found), dtype=torch.bool)
        for c in guesses.unique():
            rows = torch.nonzero(guesses == c)[:, 0]
            rows = rows[entropy[rows].argsort(stable=True)]
            sure[rows[: max(1, round(share * len(rows)))]] = True
        folds = torch.from_numpy(random.integers(0, FOLDS, len(found)))
        said = torch.zeros_like(found)
        for fold in range(FOLDS):
            teaching = torch.nonzero(sure & (folds != fold))[:, 0] + len(labels)
            taught = torch.cat([torch.arange(len(labels)), teaching])
            classes = torch.cat([labels, guesses[teaching - len(labels)]])
            asked = torch.nonzero(folds == fold)[:, 0]
            rows = asked + len(labels)
            if by == "tokens":
                said[asked] = naive_bayes(texts[taught], classes, texts[rows])
            else:
                said[asked] = classify(vectors[taught], classes, vectors[rows])
        return said

    tokens = judged("tokens", both, SHARES[0])
    space = judged("space", tokens, SHARES[0])
    alone = agreement(judged("tokens", space, SHARES[0]), space)
    for share in SHARES:
        tokens = judged("tokens", for_tokens, share)
        space = judged("space", for_space, share)
        x = agreement(tokens, for_tokens)
        weight = min(max((1 - max(x, alone)) / (1 - agreed) - 1, 0.0), 1.0)
        own = weight * at_confidence(start.double(), agreed)
        tokens, space = at_confidence(tokens, x), at_confidence(space, max(x, agreed))
        all_say = own + space + tokens
        for_tokens = (own + space + common).softmax(1)
        for_space = (own + tokens + common).softmax(1)
        both = (all_say + common).softmax(1)
    return both

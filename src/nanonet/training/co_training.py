"""Labels on which two views of the texts agree: the teacher's space and the texts' tokens.

Co-training (Blum and Mitchell 1998, "Combining labeled and unlabeled data with co-training"): each
view learns from what the other one is sure of. The views are a logistic regression on the teacher's
vectors and naive Bayes on how often tokens and pairs of tokens occur (Rennie et al. 2003,
"Tackling the poor assumptions of naive Bayes text classifiers"). Two departures keep it from
drifting: no text is ever judged by a model that was taught that text, and what the labels alone
said keeps a say, which fades only as far as the views come to agree. A third view are the texts'
similarities to the labels' names (see `names`), the less the worse they are than tokens.
What it brings is measured in ``docs/experiments.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nanonet.core.config import PropagationConfig
from nanonet.tasks.metrics import Floats, softmax
from nanonet.tasks.priors import distance, estimate_shares
from nanonet.tasks.tokenization import Ids
from nanonet.training.names import NameView
from nanonet.training.propagation import (
    Combined,
    SoftLabels,
    Vectors,
    agreement_of,
    classifier,
    clearness,
    combine,
    logits_at,
    propagate,
    soft_labels,
)

SHARES = (0.4, 0.55, 0.7, 0.8, 0.8)  # of each class's texts, the surest, that teach in each round
CO_TRAINED = ("auto", "co-trained")  # values of propagation.labels
FOLDS = 3
SMOOTHING = 0.3  # of naive Bayes: added to each count
# Of each class, counted beside the texts when its share is estimated; from which distance on shares
# are not taken for even ones; how often those who tell them agree. Measured in docs/experiments.md.
EVEN_TEXTS, LEAST_DISTANCE, LEAST_AGREEMENT = 50.0, 0.1, 0.85
WELL_STANDING, WELL_TRUSTED = 0.9, 2 / 3  # names' standing and trust that bound the labels' own
NAMES_POWER = 4  # of their weight: docstrings lost one to four points by the plain one
DOUBT = 10.0  # labelled texts' worth of what names' agreement says, beside those that they tell
MOST_TAUGHT = 6_000  # texts that a regression learns from at a time: bounds its seconds


@dataclass(frozen=True)
class View:
    """One way to see texts, and what learns from it.

    Attributes:
        rows: of the labelled texts, then of the unlabelled ones.
        model: returns an untrained classifier of scikit-learn.
        most: unlabelled rows that teach it at a time; None: no limit.
    """

    rows: Any
    model: Callable[[], Any]
    most: int | None = None


def label_texts(
    vectors: Vectors,
    labels: NDArray[np.int64],
    texts: Sequence[Ids],
    config: PropagationConfig,
    seed: int,
    names: NameView | None = None,
) -> SoftLabels:
    """Return soft labels of unlabelled texts, by all that ``config.labels`` gives a say.

    Args:
        vectors: of the labelled texts, then of the unlabelled ones, L2-normalised, (n_l + n_u, H).
        labels: class indexes of the labelled texts (n_l,), each class at least once.
        texts: token ids of the same texts.
        config: of propagation.
        seed: of chance in co-training.
        names: the same texts beside the labels' names; None: these have no say.
    """
    labeled, unlabeled = vectors[: len(labels)], vectors[len(labels) :]
    found = propagate(labeled, labels, unlabeled, int(labels.max()) + 1, config)
    if config.labels == "neighbours":
        return found
    both = combine(found, labeled, labels, unlabeled)
    if config.labels == "combined":
        return soft_labels(both.probabilities)
    return co_train(both, vectors, tf_idf(texts), labels, seed, names)


def tf_idf(texts: Sequence[Ids]) -> sparse.csr_matrix:
    """Return TF-IDF weights of tokens and of pairs of neighbouring tokens, (n, features).

    What occurs in one text only is left out; one feature is in all texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer=_tokens_and_pairs, sublinear_tf=True, min_df=2, dtype=np.float32
    )
    counts: sparse.csr_matrix = vectorizer.fit_transform(texts)
    return counts


def _tokens_and_pairs(ids: Ids) -> list[tuple[int, ...]]:
    tokens = ids.tolist()
    every = ()  # in all texts, so that there is something to count where they share no token
    return [every, *((token,) for token in tokens), *pairwise(tokens)]


def co_train(
    start: Combined,
    vectors: Vectors,
    counts: sparse.csr_matrix,
    labels: NDArray[np.int64],
    seed: int,
    names: NameView | None = None,
) -> SoftLabels:
    """Return soft labels of the unlabelled texts.

    Each voice is brought to a mean confidence that says how far it is to be trusted: the labels'
    own to the agreement a of neighbours and classifier, the tokens' to their agreement x with what
    taught them, the vectors' to the greater of the two. Logits add up. The labels' own voice counts
    by (1 - x) / (1 - a) - 1, within 0 and 1: nothing where tokens, which see none of the vectors,
    predict labels as well as the vectors agree among themselves. The x of this is not less than it
    would be if the labels' own voice were silent: an error that neighbours and regression share,
    tokens do not repeat, and it alone would make them seem bad. Names are trusted to the share t
    of labelled texts that they tell, and count by ((1 - x) / (1 - t))^4, 1 at most: they are few
    directions of a space that has not learnt the classes. Where (1 - x) / (1 - t) is 0.9 or more,
    and t two thirds or more, the labels' own voice is trusted no further than the greater of x and
    t: neighbours and regression know the same few texts, and may agree on an error.

    No voice knows how common the classes are: neighbours' columns have equal mass, the regression
    is balanced, and this naive Bayes has no prior. What the labels alone say tells it, once, if it
    can be trusted: each round's estimate would lead the next one astray (see `_how_common`).

    Args:
        start: what the labels alone say of the n_u unlabelled texts.
        vectors: of the labelled texts, then of the unlabelled ones, (n_l + n_u, H).
        counts: of the same texts' tokens, (n_l + n_u, features).
        labels: class indexes of the labelled texts (n_l,), each class at least once.
        seed: of the folds.
        names: the same texts beside the labels' names; None: these have no say.
    """
    random = np.random.default_rng((seed, len(labels)))
    space = View(vectors, classifier, MOST_TAUGHT)
    tokens = View(counts, _naive_bayes)
    own_logits = logits_at(start.probabilities, start.agreement)
    common = _how_common(softmax(own_logits), start.agreement)
    for_space = for_tokens = for_names = together = softmax(own_logits + common)
    alone = _agreement_alone(space, tokens, labels, together, random)
    for share in SHARES:
        by_tokens = _out_of_fold(tokens, labels, for_tokens, share, random)
        by_space = _out_of_fold(space, labels, for_space, share, random)
        agreement, own_trust = agreement_of(by_tokens, for_tokens), start.agreement
        name_logits = np.zeros_like(own_logits)
        if names is not None:
            by_names, trust = _by_names(names, labels, for_names, share, random)
            standing = np.clip((1 - agreement) / max(1 - trust, 1e-6), 0.0, 1.0)
            heard = standing**NAMES_POWER
            name_logits = heard * logits_at(by_names, trust)
            if standing >= WELL_STANDING and trust >= WELL_TRUSTED:
                own_trust = min(own_trust, max(agreement, trust))
        doubt = 1 - max(agreement, alone)
        weight = np.clip(doubt / max(1 - own_trust, 1e-6) - 1, 0.0, 1.0)
        prior = weight * logits_at(start.probabilities, own_trust) + common
        token_logits = logits_at(by_tokens, agreement)
        space_logits = logits_at(by_space, max(agreement, own_trust))
        # Each is taught by the others, and not by itself: its own errors would grow.
        for_tokens = softmax(prior + space_logits + name_logits)
        for_space = softmax(prior + token_logits + name_logits)
        for_names = softmax(prior + token_logits + space_logits)
        together = softmax(prior + token_logits + space_logits + name_logits)
    found = soft_labels(together)
    return found if names is None else replace(found, names_heard=np.array([heard]))


def _agreement_alone(
    space: View,
    tokens: View,
    labels: NDArray[np.int64],
    found: Floats,
    random: np.random.Generator,
) -> float:
    """Return how often tokens say what the vectors do that tokens have taught.

    Args:
        space, tokens: the views.
        labels: of the labelled texts.
        found: what the unlabelled texts are taken for, (n_u, C); it teaches tokens, once.
        random: draws the folds.
    """
    by_tokens = _out_of_fold(tokens, labels, found, SHARES[0], random)
    by_space = _out_of_fold(space, labels, by_tokens, SHARES[0], random)
    again = _out_of_fold(tokens, labels, by_space, SHARES[0], random)
    return agreement_of(again, by_space)


def _by_names(
    names: NameView,
    labels: NDArray[np.int64],
    found: Floats,
    share: float,
    random: np.random.Generator,
) -> tuple[Floats, float]:
    """Return what names say of the unlabelled texts, (n_u, C), and how far they are to be trusted.

    Args:
        names: the texts beside the names.
        labels: of the labelled texts.
        found: what the unlabelled texts are taken for, by other voices, (n_u, C).
        share: see `_out_of_fold`.
        random: draws the folds.
    """
    rows, guesses = names.similarities, found.argmax(1)[:MOST_TAUGHT]
    said = _out_of_fold(View(rows, _few_directions, MOST_TAUGHT), labels, found, share, random)
    told = guesses[:1] == labels[: names.known]
    if len(np.unique(guesses)) > 1:
        model = _few_directions().fit(rows[len(labels) :][: len(guesses)], guesses)
        told = model.predict(rows[: names.known]) == labels[: names.known]
    trust = (told.sum() + DOUBT * agreement_of(said, found)) / (names.known + DOUBT)
    return said, float(trust)


def _how_common(found: Floats, agreement: float) -> Floats:
    """Return log(C w) of the classes' shares w, (C,), to add to logits that know nothing of them.

    Zeros where the shares are even or nearly so, or where those who tell them often disagree: the
    shares may be errors of the model.

    Args:
        found: probabilities (n, C) of texts, if classes were equally common.
        agreement: of neighbours and classifier.
    """
    classes = found.shape[1]
    even = np.full(classes, 1 / classes)
    shares = estimate_shares(found, even, EVEN_TEXTS * classes)
    if distance(shares, even) < LEAST_DISTANCE or agreement < LEAST_AGREEMENT:
        return np.zeros(classes)
    logits: Floats = np.log(shares / even)
    return logits


def _out_of_fold(
    view: View, labels: NDArray[np.int64], found: Floats, share: float, random: np.random.Generator
) -> Floats:
    """Return what a view says of each unlabelled text when taught the others, (n_u, C).

    Args:
        view: what is seen.
        labels: of the labelled texts.
        found: what the unlabelled texts are taken for, (n_u, C).
        share: of each class's texts that teach, the surest first.
        random: draws the folds.
    """
    guesses, sure = found.argmax(1), _surest(found, share)
    folds = random.integers(0, FOLDS, len(found))
    said = np.zeros_like(found)
    for fold in range(FOLDS):
        asked, teaching = np.flatnonzero(folds == fold), np.flatnonzero(sure & (folds != fold))
        if view.most is not None and len(teaching) > view.most:
            teaching = np.sort(random.choice(teaching, view.most, replace=False))
        taught = np.concatenate([np.arange(len(labels)), len(labels) + teaching])
        model = view.model().fit(view.rows[taught], np.concatenate([labels, guesses[teaching]]))
        if len(asked):
            said[asked] = model.predict_proba(view.rows[len(labels) + asked])
    return said


def _surest(found: Floats, share: float) -> NDArray[np.bool_]:
    """Return which rows are among this share of their class's clearest ones, (n,)."""
    guesses, clear = found.argmax(1), clearness(found)
    chosen = np.zeros(len(found), dtype=bool)
    for number in np.unique(guesses):
        rows = np.flatnonzero(guesses == number)
        count = max(1, round(share * len(rows)))
        chosen[rows[np.argsort(-clear[rows], kind="stable")[:count]]] = True
    return chosen


def _few_directions() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=1000)


def _naive_bayes() -> Any:
    from sklearn.naive_bayes import ComplementNB

    return ComplementNB(alpha=SMOOTHING)

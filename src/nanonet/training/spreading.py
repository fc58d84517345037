"""Labels for the unlabelled rows of a run, in the space of a learner as it is at that time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.models.backbones import Backbone
from nanonet.models.learner import Learner
from nanonet.tasks.base import Row, Window
from nanonet.tasks.stored import random_rows
from nanonet.tasks.tokenization import Ids
from nanonet.training.co_training import CO_TRAINED, label_texts
from nanonet.training.contrastive import contrastive_copy
from nanonet.training.device import Hardware
from nanonet.training.names import NameView, name_similarities
from nanonet.training.passages import Sentences, place
from nanonet.training.processes import Processes
from nanonet.training.propagation import (
    SoftLabels,
    Vectors,
    agreement_of,
    combine,
    propagate,
    propagate_each,
    within_reach,
)

ASKED = 1_000  # unlabelled texts that say whether sentences place them better
FEWEST_REACHED = 32  # unlabelled rows: with fewer, none is taken for being out of reach


def spread_labels(
    learner: Learner,
    labeled: Sequence[Row],
    labels: NDArray[np.int64],
    unlabeled: Sequence[Row],
    aside: Sequence[Row],
    config: Config,
    hardware: Hardware,
    processes: Processes,
    backbone: Backbone | None = None,
    names: Sequence[Row] = (),
    sentences: Sentences | None = None,
) -> SoftLabels:
    """Return soft labels of the unlabelled rows' units.

    Args:
        learner: whose space it is.
        labeled: rows.
        labels: see `engine.TrainingRows`.
        unlabeled: rows to label.
        aside: rows that get no labels; only whether they are within reach is asked.
        config: its ``propagation`` and ``seed`` are read.
        hardware: where to compute.
        processes: who shares the rows.
        backbone: the pretrained encoder, for names and for a second space; None: without them.
        names: token ids of a sentence with each class's name, where the last labelled rows are the
            names; none: names have no say.
        sentences: how the texts fall into sentences, where they are long.
    """

    def vectors_of(source: Learner, *tables: Sequence[Row]) -> list[Vectors]:
        return [place(source, rows, hardware, sentences, processes) for rows in tables]

    settings = config.propagation
    given, others = vectors_of(learner, labeled, unlabeled)
    if learner.outputs.is_multilabel:
        return propagate_each(given, labels.reshape(len(given), -1), others, settings)
    if learner.outputs.level == "sentence":
        return propagate(given, labels, others, learner.classes, settings)
    more = vectors_of(learner, aside)[0] if aside else others[:0]
    pool = np.concatenate([others, more])
    reached = within_reach(given, labels, pool, settings, config.seed)
    if reached[: len(others)].sum() < min(FEWEST_REACHED, len(others)):
        reached[:] = True
    kept = np.flatnonzero(reached[: len(others)])
    near = [unlabeled[int(i)] for i in kept]
    texts = [*_token_ids(labeled), *_token_ids(near)]
    vectors = np.concatenate([given, others[kept]])
    if backbone is not None and settings.contrastive_steps > 0:
        tuned = contrastive_copy(backbone, labeled, labels, config, hardware, processes)
        second = np.concatenate(vectors_of(tuned, labeled, near))
        vectors = np.concatenate([vectors, second], axis=1) / np.float32(np.sqrt(2.0))
    view = None
    if backbone is not None and len(names) and settings.labels in CO_TRAINED:
        near_names = name_similarities(names, texts, backbone, hardware, sentences, processes)
        view = NameView(near_names, len(labels) - len(names))
    found = label_texts(vectors, labels, texts, settings, config.seed, view)
    found = _among_all(found, kept, len(others), reached)
    return found if sentences is None else replace(found, by_sentences=np.array([True]))


def better_in_sentences(
    learner: Learner,
    labeled: Sequence[Row],
    labels: NDArray[np.int64],
    unlabeled: Sequence[Row],
    names: Sequence[Row],
    sentences: Sentences,
    config: Config,
    hardware: Hardware,
    processes: Processes,
    backbone: Backbone,
) -> bool:
    """Return whether long texts are to be placed by their sentences.

    They are if what the labels say of some texts is then more often what names say: these know
    nothing of the labels, and are asked in both ways at once. Mood is told by sentences, a topic by
    the whole (figures in ``docs/experiments.md``).

    Args:
        learner, labeled, labels, config, hardware, processes, backbone: see `spread_labels`.
        unlabeled: rows, some of which are asked.
        names: token ids of a sentence with each class's name.
        sentences: how the texts fall into sentences.
    """
    drawn = random_rows(len(unlabeled), ASKED, config.seed)
    asked = [unlabeled[int(i)] for i in drawn]
    says, near = [], np.zeros((len(asked), len(names)), dtype=np.float32)
    for how in (None, sentences):
        given, others = (
            place(learner, rows, hardware, how, processes) for rows in (labeled, asked)
        )
        found = propagate(given, labels, others, len(names), config.propagation)
        says.append(combine(found, given, labels, others).probabilities)
        near += name_similarities(names, asked, backbone, hardware, how, processes)
    whole, parts = (agreement_of(near, said) for said in says)
    better = torch.tensor([float(parts > whole and processes.main)])
    processes.add_up(better)  # a last digit may differ elsewhere: what the main one has found
    return bool(better)


def _token_ids(rows: Sequence[Row]) -> list[Ids]:
    return [row for row in rows if not isinstance(row, Window)]


def _among_all(
    found: SoftLabels, kept: NDArray[np.int64], rows: int, reached: NDArray[np.bool_]
) -> SoftLabels:
    """Return soft labels of all rows; those that are not kept say nothing."""
    classes = found.probabilities.shape[1]
    probabilities: Vectors = np.full((rows, classes), 1 / classes, dtype=np.float32)
    confidence: Vectors = np.zeros(rows, dtype=np.float32)
    probabilities[kept], confidence[kept] = found.probabilities, found.confidence
    return replace(found, probabilities=probabilities, confidence=confidence, reached=reached)

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
from nanonet.training.passages import place
from nanonet.training.processes import ALONE, Processes
from nanonet.training.propagation import (
    SoftLabels,
    Vectors,
    agreement_of,
    combine,
    propagate,
    propagate_each,
    within_reach,
)
from nanonet.training.rows import TrainingRows

ASKED = 1_000  # unlabelled texts that say whether sentences place them better
FEWEST_REACHED = 32  # unlabelled rows: with fewer, none is taken for being out of reach


def spread_labels(
    learner: Learner,
    rows: TrainingRows,
    config: Config,
    hardware: Hardware,
    processes: Processes = ALONE,
    backbone: Backbone | None = None,
    by_sentences: bool = False,
) -> SoftLabels:
    """Return soft labels of the unlabelled rows' units.

    Rows kept aside get no labels; only whether they are within reach is asked.

    Args:
        learner: whose space it is.
        rows: of the run.
        config: its ``propagation`` and ``seed`` are read.
        hardware: where to compute.
        processes: who shares the rows.
        backbone: the pretrained encoder, for names and for a second space; None: without them.
        by_sentences: whether texts stand where their sentences do, if ``rows.sentences`` says how.
    """
    sentences = rows.sentences if by_sentences else None
    labels, settings = rows.labels, config.propagation

    def vectors_of(source: Learner, *tables: Sequence[Row]) -> list[Vectors]:
        return [place(source, table, hardware, sentences, processes) for table in tables]

    given, others = vectors_of(learner, rows.labeled, rows.unlabeled)
    if learner.outputs.is_multilabel:
        return propagate_each(given, labels.reshape(len(given), -1), others, settings)
    if learner.outputs.level == "sentence":
        return propagate(given, labels, others, learner.classes, settings)
    more = vectors_of(learner, rows.aside)[0] if rows.aside else others[:0]
    pool = np.concatenate([others, more])
    reached = within_reach(given, labels, pool, settings, config.seed)
    if reached[: len(others)].sum() < min(FEWEST_REACHED, len(others)):
        reached[:] = True
    kept = np.flatnonzero(reached[: len(others)])
    near = [rows.unlabeled[int(i)] for i in kept]
    texts = [*_token_ids(rows.labeled), *_token_ids(near)]
    vectors = np.concatenate([given, others[kept]])
    if backbone is not None and settings.contrastive_steps > 0:
        tuned = contrastive_copy(backbone, rows.labeled, labels, config, hardware, processes)
        second = np.concatenate(vectors_of(tuned, rows.labeled, near))
        vectors = np.concatenate([vectors, second], axis=1) / np.float32(np.sqrt(2.0))
    view = None
    if backbone is not None and rows.names and settings.labels in CO_TRAINED:
        near_names = name_similarities(rows.names, texts, backbone, hardware, sentences, processes)
        view = NameView(near_names, len(labels) - len(rows.names))
    found = label_texts(vectors, labels, texts, settings, config.seed, view)
    found = _among_all(found, kept, len(others), reached)
    return found if sentences is None else replace(found, by_sentences=np.array([True]))


def better_in_sentences(
    learner: Learner,
    rows: TrainingRows,
    config: Config,
    hardware: Hardware,
    processes: Processes,
    backbone: Backbone | None,
) -> bool:
    """Return whether texts are long, and are to be placed by their sentences.

    They are if what the labels say of some texts is then more often what names say: these know
    nothing of the labels, and are asked in both ways at once. Mood is told by sentences, a topic by
    the whole (figures in ``docs/experiments.md``).

    Args:
        learner, rows, config, hardware, processes, backbone: see `spread_labels`.
    """
    if rows.sentences is None or not rows.names or backbone is None:
        return False
    drawn = random_rows(len(rows.unlabeled), ASKED, config.seed)
    asked = [rows.unlabeled[int(i)] for i in drawn]
    says, near = [], np.zeros((len(asked), len(rows.names)), dtype=np.float32)
    for how in (None, rows.sentences):
        given, others = (
            place(learner, table, hardware, how, processes) for table in (rows.labeled, asked)
        )
        found = propagate(given, rows.labels, others, len(rows.names), config.propagation)
        says.append(combine(found, given, rows.labels, others).probabilities)
        near += name_similarities(rows.names, asked, backbone, hardware, how, processes)
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

"""What a run reads: tables of texts, checked and encoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.data.readers import TextTable
from nanonet.models.backbones import Backbone
from nanonet.tasks.base import EncodedTable, Task
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.inputs import TrainingTables
from nanonet.training.priors import given_priors
from nanonet.training.run_folder import RunFolder
from nanonet.training.streams import TextFacts, facts_of, text_warnings, token_counts
from nanonet.training.weights import class_weights


@dataclass(frozen=True)
class Texts:
    """What a run reads, checked and encoded."""

    labels: LabelSet
    tokenizer: TextTokenizer
    encoded: dict[str, EncodedTable]
    facts: dict[str, TextFacts]
    watched: EncodedTable | None
    warnings: list[str]


def read_texts(
    config: Config,
    backbone: Backbone,
    task: Task[Any],
    tables: TrainingTables,
    monitor: TextTable | None,
) -> Texts:
    """Return a run's tables, checked and encoded.

    Raises:
        DataError, ConfigError: they cannot be trained on, or not with these settings.
    """
    named = tables.by_name()
    labels = task.label_set(tables.labeled)
    warnings = task.warnings(named, labels)
    tokenizer = TextTokenizer(backbone.tokenizer_json, config.data.max_length)
    encoded = {
        name: task.encode(table, None if name == "unlabeled" else labels, tokenizer)
        for name, table in named.items()
    }
    facts = {name: facts_of(table, encoded[name]) for name, table in named.items()}
    warnings += text_warnings(facts)
    # Refused now, not after a warm-up or at the end.
    class_weights(config, labels, encoded["labeled"].truth)
    given_priors(config, labels, encoded["labeled"].truth)
    for table in encoded.values():
        warnings += task.encoding_warnings(table, config.data.max_length)
    watched = task.encode(monitor, labels, tokenizer) if monitor else None
    return Texts(labels, tokenizer, encoded, facts, watched, warnings)


def describe(
    facts: Mapping[str, TextFacts], backbone: Backbone, start: Path | None
) -> dict[str, Any]:
    """Return what a run folder keeps of tables, backbone and the run that it starts from."""
    inputs: dict[str, Any] = {
        name: {"source": each.source, "rows": each.count, "fingerprint": each.fingerprint}
        for name, each in facts.items()
    }
    inputs["backbone_fingerprint"] = backbone.fingerprint
    if start is not None:
        sha256 = RunFolder(start).read_summary()["weights_sha256"]
        inputs["init"] = {"source": str(start), "weights_sha256": sha256}
    return inputs


def all_token_counts(texts: Texts) -> NDArray[np.int64]:
    """Return how often each token occurs in the labelled and unlabelled texts, (V,)."""
    size = texts.tokenizer.size
    tables = [table for name, table in texts.encoded.items() if name != "validation"]
    return sum((token_counts(table, size) for table in tables), np.zeros(size, dtype=np.int64))

"""`NanoNetSummarizer`: an estimator in the manner of scikit-learn, for documents.

>>> from nanonet import NanoNetSummarizer
>>> model = NanoNetSummarizer(budget="sentences=3")
>>> model.fit(documents, summaries, unlabeled=more).predict(new)  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils.validation import check_is_fitted

from nanonet.core.config import make_config
from nanonet.core.strict import merge
from nanonet.data.documents import DocumentTable, documents_from_lists
from nanonet.estimators.base import BundleEstimator
from nanonet.runtime.summarizer import Summarizer, Summary
from nanonet.tasks.budgets import Budget
from nanonet.tasks.rouge import rouge_of
from nanonet.training.inputs import TrainingTables

Documents = Sequence[str | Sequence[str]]


class NanoNetSummarizer(BundleEstimator):
    """A small extractive summarizer from few documents with summaries and many without.

    ``fit`` trains a teacher and students together and keeps the chosen student as a bundle;
    ``predict`` runs that bundle, just as a server would.

    Args:
        recipe: name of a recipe, or path of a TOML file.
        backbone: ``minilm``, a folder or a Hugging Face id.
        steps: training steps; None: as the recipe says.
        settings: further settings by full key, such as ``{"summarization.language": "de"}``.
        quantize: bits of the weights, as for `nanonet export`.
        trim_vocabulary: how many tokens to keep for their frequency; ``auto``: as few as choose
            sentences as before; None: all.
        random_state: the seed; None or a generator: one is drawn from it.
        run_dir: where to keep the run folder; None: a temporary one, deleted after fitting.
        verbose: show progress.
        budget: of a summary: ``sentences=3``, ``words=100``, or ``ratio=0.3`` of the document's
            words.

    Attributes:
        summary_: the run's summary.
        summarizer_: the bundle at work.
    """

    _loaded = "summarizer_"

    def __init__(
        self,
        recipe: str = "summarization",
        backbone: str = "minilm",
        steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
        quantize: Literal["none", "int8", "int8-static", "mixed", "int4"] = "none",
        trim_vocabulary: int | Literal["auto"] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        run_dir: str | Path | None = None,
        verbose: bool = False,
        budget: str = "sentences=3",
    ) -> None:
        self.recipe = recipe
        self.backbone = backbone
        self.steps = steps
        self.settings = settings
        self.quantize = quantize
        self.trim_vocabulary = trim_vocabulary
        self.random_state = random_state
        self.run_dir = run_dir
        self.verbose = verbose
        self.budget = budget

    def fit(
        self,
        X: Documents,  # noqa: N803 (scikit-learn's name)
        y: Sequence[Any],
        unlabeled: Documents | None = None,
        validation: tuple[Documents, Sequence[Any]] | None = None,
    ) -> "NanoNetSummarizer":
        """Train.

        Args:
            X: documents, (n,): texts, or lists of sentences.
            y: of each its summary (a text, or a list of sentences), or a list of 0 and 1 per
                sentence. Documents whose summary is empty, or has no word in common with them, are
                left out; ``verbose`` says how many.
            unlabeled: further documents.
            validation: documents and summaries or labels for choosing a student; not needed.

        Raises:
            NanoNetError: settings or documents that cannot be used.
        """
        own = {"task": "summarization", "summarization": {"budget": self.budget}}
        config = make_config(self.recipe, merge(self._overrides(), own))
        language = config.summarization.language
        labeled = documents_from_lists(X, y, language, "X, y")
        free = None
        if unlabeled is not None:
            free = documents_from_lists(unlabeled, None, language, "unlabeled")
        held_out = None
        if validation is not None:
            held_out = documents_from_lists(*validation, language, "validation")
        tables = TrainingTables(labeled, free, held_out)
        self._train(config, lambda: tables, free or labeled)
        return self

    def _load(self, bundle: Path) -> None:
        self.summarizer_ = Summarizer.load(bundle)

    def predict(self, X: Documents) -> list[str]:  # noqa: N803
        """Return the summary of each document, a sentence a line; empty for one without words."""
        return [summary.text for summary in self.summarize(X)]

    def summarize(self, X: Documents) -> list[Summary]:  # noqa: N803
        """Return the chosen sentences of each document with their scores and places."""
        check_is_fitted(self, "summarizer_")
        return self.summarizer_.summarize(X, self.budget)

    def score(self, X: Documents, y: Sequence[Any]) -> float:  # noqa: N803
        """Return the mean ROUGE-2 F1 of the summaries against references, 0 to 1.

        Args:
            X: documents, (n,).
            y: as in `fit`; those that cannot be used are left out.
        """
        check_is_fitted(self, "summarizer_")
        language = self.summarizer_.settings.language
        table: DocumentTable = documents_from_lists(X, y, language, "X, y")
        block = self.summarizer_.settings.block_trigrams
        scores = self.summarizer_.score(table.documents)
        texts = [document.sentences for document in table.documents]
        budget = Budget.parse(self.budget)
        return float(rouge_of(scores, texts, table.summaries or [], budget, block)[:, 1].mean())

    @classmethod
    def load(cls, path: str | Path) -> "NanoNetSummarizer":
        """Return a fitted summarizer from a bundle.

        Raises:
            BundleError: see `Summarizer.load`.
        """
        model = cls()
        model._keep(Path(path))
        model.budget = model.summarizer_.settings.budget
        return model

"""Layer 7: estimators in the manner of scikit-learn, for texts.

>>> from nanonet import NanoNetClassifier
>>> model = NanoNetClassifier(steps=200)
>>> model.fit(texts, labels, unlabeled=more_texts).predict(new_texts)  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from nanonet.core.config import make_config
from nanonet.core.errors import DataError
from nanonet.core.strict import merge
from nanonet.data.readers import TextTable, table_from_lists
from nanonet.estimators.base import BundleEstimator
from nanonet.runtime.predictor import Predictor
from nanonet.scoring.suggestions import suggest_by
from nanonet.training.inputs import TrainingTables

UNLABELED = -1  # scikit-learn's mark of an unlabelled row


class NanoNetClassifier(ClassifierMixin, BundleEstimator):  # type: ignore[misc]
    """A small text classifier from few labelled and many unlabelled texts.

    ``fit`` trains a teacher and students together and keeps the chosen student as a bundle;
    ``predict`` runs that bundle, just as a server would.

    Args:
        recipe: name of a recipe, or path of a TOML file.
        backbone: ``minilm``, a folder or a Hugging Face id.
        steps: training steps, after the warm-up; None: as the recipe says.
        settings: further settings by full key, such as ``{"cohort.students": 3}``.
        quantize: how many bits the bundle holds its weights in: ``none``, ``int8``,
            ``int8-static``, ``mixed`` or ``int4``.
        trim_vocabulary: how many tokens the bundle keeps for their frequency; ``auto``: as few as
            answer the texts as before; None: all.
        class_weight: how much labelled texts of each class count: ``balanced``, a weight by label
            (1 where it is left out), or None: all the same.
        random_state: the seed; None or a generator: one is drawn from it.
        run_dir: where to keep the run folder; None: a temporary one, deleted after fitting.
        verbose: show progress.

    Attributes:
        classes_: class labels as given in ``y``, sorted, (C,).
        summary_: the run's summary.
        predictor_: the bundle at work.
    """

    _loaded = "predictor_"

    def __init__(
        self,
        recipe: str = "nanonet",
        backbone: str = "minilm",
        steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
        quantize: Literal["none", "int8", "int8-static", "mixed", "int4"] = "none",
        trim_vocabulary: int | Literal["auto"] | None = None,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        run_dir: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.backbone = backbone
        self.steps = steps
        self.settings = settings
        self.quantize = quantize
        self.trim_vocabulary = trim_vocabulary
        self.class_weight = class_weight
        self.random_state = random_state
        self.run_dir = run_dir
        self.verbose = verbose

    def fit(
        self,
        X: Sequence[str],  # noqa: N803 (scikit-learn's name)
        y: Sequence[Any],
        unlabeled: Sequence[str] | None = None,
        validation: tuple[Sequence[str], Sequence[Any]] | None = None,
    ) -> "NanoNetClassifier":
        """Train.

        Args:
            X: texts, (n,).
            y: labels (n,), numbers or words; rows whose label is the number -1 are unlabelled.
            unlabeled: further texts without labels.
            validation: texts and labels for choosing a student; not needed.

        Raises:
            NanoNetError: settings, texts or labels that cannot be used.
        """
        labeled, free = _tables(X, y, unlabeled)
        held_out = table_from_lists(*validation, "validation") if validation else None
        config = make_config(self.recipe, merge(self._overrides(), self._weights()))
        self._train(config, lambda: TrainingTables(labeled, free, held_out), free or labeled)
        self._set_classes(self.predictor_.labels.values)
        if any(isinstance(label, str) for label in y):
            self._set_classes([str(value) for value in self.predictor_.labels.values])
        return self

    def _weights(self) -> dict[str, Any]:
        """Return the setting of the class weights; a numpy label reads as the number it is."""
        weights = self.class_weight
        if weights is None:
            return {}
        if isinstance(weights, Mapping):
            return {"training": {"class_weight": {str(k): float(w) for k, w in weights.items()}}}
        return {"training": {"class_weight": weights}}

    def _load(self, bundle: Path) -> None:
        self.predictor_ = Predictor.load(bundle)

    def _set_classes(self, values: Sequence[Any]) -> None:
        """Sort the classes: as text, "10" comes before "9"."""
        self._order = np.argsort(values)
        self.classes_ = np.asarray(values)[self._order]

    def predict(self, X: Sequence[str]) -> NDArray[Any]:  # noqa: N803
        """Return the label of each text, (n,)."""
        indexes = self._proba(X).argmax(-1)
        labels: NDArray[Any] = self.classes_[indexes]
        return labels

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float32]:  # noqa: N803
        """Return probabilities (n, C), columns in the order of ``classes_``."""
        return self._proba(X)

    def _proba(self, texts: Sequence[str]) -> NDArray[np.float32]:
        check_is_fitted(self, "predictor_")
        return self.predictor_.predict_proba(texts)[:, self._order]

    def suggest(self, X: Sequence[str], n: int = 10) -> NDArray[np.int64]:  # noqa: N803
        """Return the indexes of the n texts that should be labelled next, (n,) or fewer.

        See `scoring.suggestions.suggest_by_bundle`: copies and labelled training texts are left
        out.

        Raises:
            ConfigError: n is below 1.
            DataError: not texts, or training had the labels of all.
        """
        check_is_fitted(self, "predictor_")
        found = suggest_by(self.predictor_, table_from_lists(X, None, "X"), n)
        return np.array([s.row - 1 for s in found.rows], dtype=np.int64)

    @classmethod
    def load(cls, path: str | Path) -> "NanoNetClassifier":
        """Return a fitted classifier from a bundle.

        A bundle keeps labels such as ``"3"`` as numbers, so they come back as numbers.

        Raises:
            BundleError: see `Predictor.load`.
        """
        model = cls()
        model._keep(Path(path))
        model._set_classes(model.predictor_.labels.values)
        return model


def _tables(
    texts: Sequence[str], labels: Sequence[Any], unlabeled: Sequence[str] | None
) -> tuple[TextTable, TextTable | None]:
    """Part rows labelled -1 from the others."""
    for name, given in (("X", texts), ("unlabeled", unlabeled)):
        if isinstance(given, str):
            raise DataError(f"{name} is one text: put it in a list")
    all_texts, all_labels = list(texts), list(labels)
    if len(all_texts) != len(all_labels):
        raise DataError(f"{len(all_texts)} texts but {len(all_labels)} labels: give one per text")
    marked = [not isinstance(y, str) and bool(y == UNLABELED) for y in all_labels]
    pairs = list(zip(all_texts, all_labels, marked, strict=True))
    free = [t for t, _, m in pairs if m] + list(unlabeled if unlabeled is not None else [])
    table = table_from_lists(
        [t for t, _, m in pairs if not m], [y for _, y, m in pairs if not m], "X, y"
    )
    return table, table_from_lists(free, None, "unlabeled") if free else None

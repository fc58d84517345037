"""An estimator for texts that may have several labels each."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from nanonet.core.config import make_config
from nanonet.core.errors import DataError
from nanonet.core.strict import merge
from nanonet.data.multilabel import MultilabelTable, flags_of, multilabel_from_lists
from nanonet.data.readers import table_from_lists
from nanonet.estimators.base import BundleEstimator
from nanonet.runtime.predictor import MultilabelPredictor
from nanonet.tasks.multilabel import micro_f1
from nanonet.training.inputs import TrainingTables


class NanoNetMultilabelClassifier(BundleEstimator):
    """A small model that gives a text any number of labels, from few labelled texts.

    Args:
        recipe: name of a recipe, or path of a TOML file.
        backbone: ``minilm``, a folder or a Hugging Face id.
        steps: training steps, after the warm-up; None: as the recipe says.
        settings: further settings by full key, such as ``{"cohort.students": 3}``.
        quantize: how many bits the bundle holds its weights in: ``none``, ``int8``,
            ``int8-static``, ``mixed`` or ``int4``.
        trim_vocabulary: how many tokens the bundle keeps for their frequency; ``auto``: as few as
            answer the texts as before; None: all.
        random_state: the seed; None or a generator: one is drawn from it.
        run_dir: where to keep the run folder; None: a temporary one, deleted after fitting.
        verbose: show progress.

    Attributes:
        classes_: the labels, sorted, (L,).
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
        self.random_state = random_state
        self.run_dir = run_dir
        self.verbose = verbose

    def fit(
        self,
        X: Sequence[str],  # noqa: N803 (scikit-learn's name)
        y: Any,
        unlabeled: Sequence[str] | None = None,
        validation: tuple[Sequence[str], Any] | None = None,
    ) -> "NanoNetMultilabelClassifier":
        """Train.

        Args:
            X: texts, (n,).
            y: a list of labels for each text, empty where it has none; or a table of 0 and 1,
                (n, L), as scikit-learn's MultiLabelBinarizer makes it: its labels are 0 to L - 1,
                or the names of a data frame's columns.
            unlabeled: further texts without labels.
            validation: texts and labels for choosing a student and each label's threshold; not
                needed.

        Raises:
            NanoNetError: settings, texts or labels that cannot be used.
        """
        if isinstance(X, str) or isinstance(unlabeled, str):
            raise DataError("texts must be in a list, and this is one text")
        _refuse_empty_columns(y)
        labeled = multilabel_from_lists(X, _lists(y), "X, y")
        free = table_from_lists(unlabeled, None, "unlabeled") if unlabeled is not None else None
        held_out = None
        if validation is not None:
            held_out = multilabel_from_lists(validation[0], _lists(validation[1]), "validation")
        config = make_config(self.recipe, merge(self._overrides(), {"task": "multilabel"}))
        self._train(config, lambda: TrainingTables(labeled, free, held_out), free or labeled)
        self._set_classes()
        return self

    def _set_classes(self) -> None:
        self.classes_ = np.array(self.predictor_.labels.values)

    def _load(self, bundle: Path) -> None:
        self.predictor_ = MultilabelPredictor.load(bundle)

    def predict(self, X: Sequence[str]) -> NDArray[np.int64]:  # noqa: N803
        """Return 1 where a text gets a label, else 0, (n, L), columns as in ``classes_``."""
        given = self.predict_proba(X) >= self.predictor_.thresholds
        return given.astype(np.int64)

    def predict_labels(self, X: Sequence[str]) -> list[list[Any]]:  # noqa: N803
        """Return the labels of each text."""
        return [self.classes_[own == 1].tolist() for own in self.predict(X)]

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float32]:  # noqa: N803
        """Return the probability of each label, (n, L), each on its own."""
        check_is_fitted(self, "predictor_")
        return self.predictor_.predict_proba(X)

    def score(self, X: Sequence[str], y: Any) -> float:  # noqa: N803
        """Return the micro-averaged F1, 0 to 1; ``y`` as in `fit`."""
        table: MultilabelTable = multilabel_from_lists(X, _lists(y), "X, y")
        return micro_f1(flags_of(table, self.predictor_.labels), self.predict(X) == 1)

    @classmethod
    def load(cls, path: str | Path) -> "NanoNetMultilabelClassifier":
        """Return a fitted estimator from a bundle.

        Raises:
            BundleError: see `MultilabelPredictor.load`.
        """
        model = cls()
        model._keep(Path(path))
        model._set_classes()
        return model


def _lists(y: Any) -> list[Any]:
    """Return a list of labels for each text, of such lists or of a table of 0 and 1."""
    dense = y.toarray() if hasattr(y, "toarray") else y  # a sparse matrix
    if getattr(dense, "ndim", 1) == 2:
        table = np.asarray(dense)
        names = list(getattr(dense, "columns", range(table.shape[1])))
        if not np.isin(table, (0, 1)).all():
            raise DataError("y is a table with other numbers than 0 and 1: give lists of labels")
        return [[names[k] for k in np.flatnonzero(own)] for own in table]
    if isinstance(dense, str) or not isinstance(dense, Iterable):
        raise DataError(f"y is {type(y).__name__}: give a list of labels for each text")
    lists = list(dense)
    if any(isinstance(own, list | tuple) and len(set(own)) < len(own) for own in lists):
        raise DataError(
            "y has a label twice for a text: give lists of different labels, or a table of 0 and 1"
            " as an array"
        )
    return lists


def _refuse_empty_columns(y: Any) -> None:
    """Refuse a table of 0 and 1 with a label that no text has: columns would move."""
    dense = y.toarray() if hasattr(y, "toarray") else y
    if getattr(dense, "ndim", 1) != 2:
        return
    if len(never := np.flatnonzero(~np.asarray(dense).astype(bool).any(0))):
        raise DataError(
            f"column {never[0]} of y is 0 for all texts, from which nothing can be learnt: leave"
            " it out"
        )

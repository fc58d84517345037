"""Layer 7: estimators in the manner of scikit-learn, for texts.

>>> from nanonet import NanoNetClassifier
>>> model = NanoNetClassifier(steps=200)
>>> model.fit(texts, labels, unlabeled=more_texts).predict(new_texts)  # doctest: +SKIP
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from nanonet.core.config import make_config, merge
from nanonet.core.errors import BundleError, DataError, MissingExtraError
from nanonet.data.readers import TextTable, table_from_lists
from nanonet.runtime.predictor import Predictor

UNLABELED = -1  # scikit-learn's mark of an unlabelled row


class NanoNetClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A small text classifier from few labelled and many unlabelled texts.

    ``fit`` trains a teacher and students together and keeps the chosen student as a bundle;
    ``predict`` runs that bundle, just as a server would.

    Args:
        recipe: name of a recipe, or path of a TOML file.
        backbone: ``minilm``, a folder or a Hugging Face id.
        steps: training steps; None: as the recipe says.
        settings: further settings by full key, such as ``{"cohort.students": 3}``.
        quantize: how many bits the bundle holds its weights in: ``none``, ``int8``,
            ``int8-static``, ``mixed`` or ``int4``.
        trim_vocabulary: how many tokens the bundle keeps for their frequency; ``auto``: as few as
            answer the texts as before; None: all.
        random_state: the seed; None or a generator: one is drawn from it.
        run_dir: where to keep the run folder; None: a temporary one, deleted after fitting.
        verbose: show progress.

    Attributes:
        classes_: class labels as given in ``y``, sorted, (C,).
        summary_: the run's summary.
        predictor_: the bundle at work.
    """

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
        try:
            from nanonet.export import Compression, export
            from nanonet.training.display import ConsoleDisplay
            from nanonet.training.inputs import TrainingTables
            from nanonet.training.train import train
        except ModuleNotFoundError as error:
            raise MissingExtraError("NanoNetClassifier.fit", "train") from error

        labeled, free = _tables(X, y, unlabeled)
        held_out = table_from_lists(*validation, "validation") if validation else None
        config = make_config(self.recipe, self._overrides())
        with tempfile.TemporaryDirectory(prefix="nanonet-") as folder:
            run = Path(self.run_dir) if self.run_dir is not None else Path(folder) / "run"
            bundle = Path(folder) / "bundle"
            self.summary_ = train(
                config,
                lambda: TrainingTables(labeled, free, held_out),
                run,
                display=ConsoleDisplay() if self.verbose else None,
            )
            smaller = Compression(self.quantize, self.trim_vocabulary)
            export(run, bundle, compression=smaller, data=free or labeled)
            self._use(bundle)
        if any(isinstance(label, str) for label in y):
            self._set_classes([str(value) for value in self.predictor_.labels.values])
        return self

    def _overrides(self) -> dict[str, Any]:
        over: dict[str, Any] = {
            "seed": self._seed(),
            "backbone": {"name": self.backbone},
        }
        if self.steps is not None:
            over["training"] = {"steps": self.steps}
        for key, value in (self.settings or {}).items():
            table: Any = value
            for part in reversed(key.split(".")):
                table = {part: table}
            over = merge(over, table)
        return over

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _use(self, bundle: Path) -> None:
        """Take a bundle into memory."""
        self.predictor_ = Predictor.load(bundle)
        self._files = {f.name: f.read_bytes() for f in bundle.iterdir() if f.is_file()}
        self._set_classes(self.predictor_.labels.values)

    def _set_classes(self, values: Sequence[Any]) -> None:
        """Sort the classes: as text, "10" comes before "9"."""
        self._order = np.argsort(values)
        self.classes_ = np.asarray(values)[self._order]

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the session, which cannot be pickled."""
        return {k: v for k, v in super().__getstate__().items() if k != "predictor_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            with tempfile.TemporaryDirectory(prefix="nanonet-") as folder:
                self._write(Path(folder))
                self.predictor_ = Predictor.load(folder)

    def _write(self, folder: Path) -> None:
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

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

    def save(self, path: str | Path) -> None:
        """Write the bundle: a folder for `load`, for `Predictor` and for the command line.

        Raises:
            BundleError: ``path`` exists or cannot be written.
        """
        from nanonet.core.files import new_folder

        check_is_fitted(self, "predictor_")
        if Path(path).exists():
            raise BundleError(f"{path} exists: choose another folder")
        try:
            with new_folder(Path(path)) as folder:
                self._write(folder)
        except OSError as error:
            raise BundleError(f"{path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> "NanoNetClassifier":
        """Return a fitted classifier from a bundle.

        A bundle keeps labels such as ``"3"`` as numbers, so they come back as numbers.

        Raises:
            BundleError: see `Predictor.load`.
        """
        model = cls()
        model._use(Path(path))
        return model

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.non_deterministic = False
        return tags


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

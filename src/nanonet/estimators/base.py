"""What the estimators have in common."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from nanonet.core.config import Config
from nanonet.core.errors import BundleError, MissingExtraError
from nanonet.core.strict import merge
from nanonet.data.readers import TextTable
from nanonet.training.inputs import TrainingTables


class BundleEstimator(BaseEstimator):  # type: ignore[misc]
    """What the estimators have in common: settings that become a run, and a bundle in memory."""

    recipe: str
    backbone: str
    steps: int | None
    settings: Mapping[str, Any] | None
    quantize: Literal["none", "int8", "int8-static", "mixed", "int4"]
    trim_vocabulary: int | Literal["auto"] | None = None
    random_state: int | np.random.RandomState | None
    run_dir: str | Path | None
    verbose: bool
    summary_: dict[str, Any]
    _files: dict[str, bytes]
    _loaded = ""  # the attribute that holds the bundle at work

    def _load(self, bundle: Path) -> None:
        """Set that attribute from a bundle."""
        raise NotImplementedError

    def _train(
        self, config: Config, tables: Callable[[], TrainingTables], texts: TextTable | None = None
    ) -> None:
        """Train a run and take its bundle into memory; its size is measured on ``texts``."""
        try:
            from nanonet.export import Compression, export
            from nanonet.training.display import ConsoleDisplay
            from nanonet.training.train import train
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{type(self).__name__}.fit", "train") from error

        with tempfile.TemporaryDirectory(prefix="nanonet-") as folder:
            run = Path(self.run_dir) if self.run_dir is not None else Path(folder) / "run"
            bundle = Path(folder) / "bundle"
            display = ConsoleDisplay() if self.verbose else None
            self.summary_ = train(config, tables, run, display=display)
            smaller = Compression(self.quantize, self.trim_vocabulary)
            export(run, bundle, compression=smaller, data=texts)
            self._keep(bundle)

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

    def _keep(self, bundle: Path) -> None:
        """Take a bundle into memory."""
        self._load(bundle)
        self._files = {f.name: f.read_bytes() for f in bundle.iterdir() if f.is_file()}

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the session, which cannot be pickled."""
        return {k: v for k, v in super().__getstate__().items() if k != self._loaded}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            with tempfile.TemporaryDirectory(prefix="nanonet-") as folder:
                self._write(Path(folder))
                self._load(Path(folder))

    def _write(self, folder: Path) -> None:
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def save(self, path: str | Path) -> None:
        """Write the bundle: a folder for `load`, for `Predictor` and for the command line.

        Raises:
            BundleError: ``path`` exists or cannot be written.
        """
        from nanonet.core.files import new_folder

        check_is_fitted(self, self._loaded)
        if Path(path).exists():
            raise BundleError(f"{path} exists: choose another folder")
        try:
            with new_folder(Path(path)) as folder:
                self._write(folder)
        except OSError as error:
            raise BundleError(f"{path} cannot be written: {error.strerror or error}") from None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.non_deterministic = False
        return tags

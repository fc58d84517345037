"""What users would pick instead, on the same draws and the same encoder.

Each gets the labelled rows only, as none of them uses text without labels. What is not a field has
the libraries' defaults. All but `TfIdf` read the suite's ``backbone.name`` and ``data.max_length``.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from platform import python_version
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from nanonet.benchmark.memory import Probe
from nanonet.benchmark.methods import KINDS, Files, LoadBackbone, Method, texts_per_second
from nanonet.core.config import CohortConfig, Config, make_config
from nanonet.core.errors import MissingExtraError
from nanonet.core.machine import processor_name
from nanonet.core.strict import merge, setting
from nanonet.data.readers import Columns, read_table
from nanonet.models.backbones import check_length, load_backbone, source_of
from nanonet.models.cohort import build_cohort
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import accuracy, macro_f1
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed

Labels = NDArray[np.int64]
Predict = Callable[[list[str]], Labels]
PACKAGES = ("numpy", "scikit-learn", "sentence-transformers", "setfit", "torch", "transformers")
NAME = "model"  # of the only learner


@dataclass(frozen=True)
class Fitted:
    """A peer that has been trained.

    Attributes:
        predict: texts to class indexes (n,).
        trainable: parameters that were trained.
        total: parameters that it takes to predict.
    """

    predict: Predict
    trainable: int
    total: int


@dataclass(frozen=True)
class Peer(Method):
    """Base of all peers: what they share, around `fit`."""

    extra: ClassVar[str] = ""  # package without which it cannot run; "": none beside `train`'s
    reads_backbone: ClassVar[bool] = True

    @classmethod
    def check_installed(cls) -> None:
        """See `Method.check_installed`."""
        if cls.extra and find_spec(cls.extra) is None:
            raise MissingExtraError(f"the method '{cls.extra}'", "bench")

    def plan(
        self,
        common: Mapping[str, Any],
        over: Mapping[str, Any],
        root: Path,
        load_backbone: LoadBackbone,
    ) -> dict[str, Any]:
        """See `Method.plan`."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plan: dict[str, Any] = {"config": own}
        if self.reads_backbone:
            config = make_config("nanonet", merge(common, over))
            backbone = load_backbone(config.backbone.name, config.backbone.pooling)
            check_length(backbone.encoder, config.data.max_length)
            plan["backbone"] = backbone.fingerprint
            plan["encoder"] = {
                "name": config.backbone.name,
                "pooling": backbone.pooling,
                "max_length": config.data.max_length,
            }
        return plan

    @staticmethod
    @abstractmethod
    def fit(
        plan: Mapping[str, Any], texts: list[str], labels: Labels, seed: int, probe: Probe
    ) -> Fitted:
        """Train on texts and class indexes (n,); call ``probe.start`` once all is loaded."""

    @classmethod
    def run(
        cls, plan: Mapping[str, Any], files: Files, seed: int, folder: Path, threads: int
    ) -> Any:
        """See `Method.run`."""
        torch.set_num_threads(threads)
        labeled = read_table(files.labeled, Columns(), labels="required")
        assert labeled.labels is not None
        classes = LabelSet.from_columns(labeled.labels, labeled.names, labeled.source, labeled.rows)
        truth = classes.encode(labeled.labels, labeled.source, labeled.rows, labeled.names)
        probe = Probe()
        fitted = cls.fit(plan, labeled.texts, truth, seed, probe)
        probe.stop()
        test = read_table(files.test, files.test_columns, labels="required")
        assert test.labels is not None
        predicted = fitted.predict(test.texts)
        expected = classes.encode(test.labels, test.source, test.rows, test.names)
        return {
            "accuracy": accuracy(expected, predicted),
            "macro_f1": macro_f1(expected, predicted),
            "learners": {},
            "teacher": None,
            "selected": NAME,
            "labels_used_to_choose": 0,
            "training_seconds": round(probe.seconds, 3),
            "memory": probe.measured(),
            "trainable_parameters": {NAME: fitted.trainable},
            "total_parameters": {NAME: fitted.total},
            "stored_bytes": {NAME: 4 * fitted.trainable},
            "exported_bytes": 4 * fitted.total,
            "texts_per_second": texts_per_second(fitted.predict, test.texts),
            "rows": {"labeled": len(labeled.texts), "unlabeled": 0},
            "warnings": [],
            "hardware": {
                "device": "cpu",
                "precision": "fp32",
                "threads": threads,
                "processor": processor_name(),
            },
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    found = {p: metadata.version(p) for p in PACKAGES if find_spec(p.replace("-", "_")) is not None}
    return {**found, "scikit-learn": metadata.version("scikit-learn"), "python": python_version()}


def _regression(vectors: Any, labels: Labels) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(vectors, labels)


@KINDS.register("tfidf")
@dataclass(frozen=True)
class TfIdf(Peer):
    """TF-IDF of words with logistic regression (scikit-learn)."""

    ngrams: int = setting(1, 1, 5)  # words in a row at most

    reads_backbone = False

    @staticmethod
    def fit(
        plan: Mapping[str, Any], texts: list[str], labels: Labels, seed: int, probe: Probe
    ) -> Fitted:
        """See `Peer.fit`."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, plan["config"]["ngrams"]))
        probe.start()
        model = _regression(vectorizer.fit_transform(texts), labels)
        size = model.coef_.size + model.intercept_.size
        return Fitted(lambda some: model.predict(vectorizer.transform(some)), size, size)


@KINDS.register("frozen")
@dataclass(frozen=True)
class Frozen(Peer):
    """The pretrained encoder as it is, with logistic regression on its normalised vectors."""

    @staticmethod
    def fit(
        plan: Mapping[str, Any], texts: list[str], labels: Labels, seed: int, probe: Probe
    ) -> Fitted:
        """See `Peer.fit`."""
        encoder = plan["encoder"]
        backbone = load_backbone(encoder["name"], encoder["pooling"])
        config = Config(cohort=CohortConfig(students=0))
        learner = build_cohort(backbone, config, int(labels.max()) + 1)["teacher"]
        tokenizer = TextTokenizer(backbone.tokenizer_json, encoder["max_length"])
        hardware = Hardware("cpu", "fp32", "eager", torch.get_num_threads())
        probe.start()

        def vectors_of(some: list[str]) -> NDArray[np.float32]:
            return embed(learner, tokenizer.encode(some).ids, hardware)

        model = _regression(vectors_of(texts), labels)
        trained = model.coef_.size + model.intercept_.size
        total = sum(p.numel() for p in backbone.encoder.parameters()) + trained
        return Fitted(lambda some: model.predict(vectors_of(some)), trained, total)


@KINDS.register("setfit")
@dataclass(frozen=True)
class SetFit(Peer):
    """SetFit with its default settings, but for the number of steps."""

    steps: int = setting(200, 1)
    batch_size: int = setting(16, 1)

    extra = "setfit"

    @staticmethod
    def fit(
        plan: Mapping[str, Any], texts: list[str], labels: Labels, seed: int, probe: Probe
    ) -> Fitted:
        """See `Peer.fit`."""
        from tempfile import TemporaryDirectory

        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments

        encoder = plan["encoder"]
        model = SetFitModel.from_pretrained(source_of(encoder["name"]), device="cpu")
        model.model_body.max_seq_length = encoder["max_length"]
        rows = Dataset.from_dict({"text": texts, "label": labels.tolist()})
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                batch_size=plan["config"]["batch_size"],
                max_steps=plan["config"]["steps"],
                seed=seed,
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
            )
            probe.start()
            Trainer(model=model, args=arguments, train_dataset=rows).train()
        body = sum(p.numel() for p in model.model_body.parameters())
        total = body + model.model_head.coef_.size + model.model_head.intercept_.size
        return Fitted(
            lambda some: np.asarray(model.predict(some, show_progress_bar=False)), total, total
        )


@KINDS.register("finetune")
@dataclass(frozen=True)
class FineTune(Peer):
    """All weights of the encoder and a new linear head, as Hugging Face's `Trainer` does it."""

    steps: int = setting(200, 1)
    batch_size: int = setting(16, 1)
    learning_rate: float = setting(5e-5, 0.0)

    @staticmethod
    def fit(
        plan: Mapping[str, Any], texts: list[str], labels: Labels, seed: int, probe: Probe
    ) -> Fitted:
        """See `Peer.fit`."""
        from tempfile import TemporaryDirectory

        import transformers

        encoder, config = plan["encoder"], plan["config"]
        source = source_of(encoder["name"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        transformers.set_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=int(labels.max()) + 1
        )
        cut = {"truncation": True, "max_length": encoder["max_length"]}
        rows = [
            {**tokenizer(text, **cut), "labels": int(label)}
            for text, label in zip(texts, labels, strict=True)
        ]
        with TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=config["batch_size"],
                max_steps=config["steps"],
                learning_rate=config["learning_rate"],
                seed=seed,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            collate = transformers.DataCollatorWithPadding(tokenizer)
            probe.start()
            transformers.Trainer(
                model=model, args=arguments, train_dataset=rows, data_collator=collate
            ).train()
        model.eval()

        def predict(some: list[str]) -> Labels:
            found = np.empty(len(some), dtype=np.int64)
            order = np.argsort([len(text) for text in some], kind="stable")
            for first in range(0, len(order), 32):
                part = order[first : first + 32]
                batch = tokenizer([some[i] for i in part], padding=True, return_tensors="pt", **cut)
                with torch.inference_mode():
                    found[part] = model(**batch).logits.argmax(-1).numpy()
            return found

        total = sum(p.numel() for p in model.parameters())
        return Fitted(predict, total, total)

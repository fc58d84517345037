"""The configuration: frozen dataclasses, and recipes that fill them.

Every key that a run depends on is a field here (the settings of objectives are fields of the
objectives themselves, see ``nanonet.objectives``). What is wrong is refused before any data loads,
see `core.strict`.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean
from nanonet.core.strict import build, merge, setting

DEFAULT_RECIPES = {  # by task
    "classification": "nanonet",
    "multilabel": "nanonet",
    "summarization": "summarization",
}


@dataclass(frozen=True)
class DataConfig:
    """How texts are read and cut."""

    text_column: str = "text"
    label_column: str = "label"
    label_name_column: str = "label_name"
    label_separator: str = ";"  # between a text's labels in CSV and TSV files, for multilabel
    sentences_column: str = "sentences"
    labels_column: str = "labels"
    summary_column: str = "summary"
    max_length: int = setting(256, 4)  # tokens of one text, the special ones included


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained encoder."""

    name: str = "minilm"  # alias, folder or Hugging Face id
    pooling: Literal["auto", "mean", "cls"] = "auto"


@dataclass(frozen=True)
class HeadConfig:
    """The classifier on top: logits = scale * (W x + b), x the pooled vector."""

    normalize: bool = True  # L2-normalise x first
    scale: float = setting(10.0, 0.01)


@dataclass(frozen=True)
class CohortConfig:
    """Who learns: a teacher and its students."""

    teacher: bool = True
    students: int = setting(2, 0)
    student_layers: int = setting(3, 1)
    student_width: int = setting(0, 0)  # 0: the teacher's; else its weights start at random
    layer_map: str | list[list[int]] = "spread"  # a name, or one list of layers (from 1) each
    teacher_peft: str = "bitfit"
    student_peft: str = "bitfit"


@dataclass(frozen=True)
class LoraConfig:
    """Settings of the PEFT method ``lora``."""

    rank: int = setting(8, 1)
    alpha: float = setting(16.0, 0.01)  # the product of the two matrices is scaled by alpha / rank
    targets: list[str] = field(default_factory=list)  # names of linear maps; empty: all in layers


@dataclass(frozen=True)
class WarmupConfig:
    """Distillation on unlabelled text before any label is used."""

    steps: int = setting(0, 0)  # 0: no warm-up
    more_steps: bool = False  # take more where texts are short, see plan.with_enough_unlabeled
    seed: int = setting(0, 0)  # its own, so that runs of several seeds can share one warm-up
    peft: str = "layers"  # what of each student it trains: a PEFT method
    unlabeled_batch: int = setting(64, 1)  # rows per step at most
    learning_rate: float = setting(5e-4, 0.0)
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    warmup: float = setting(0.1, 0.0, 1.0)  # share of its steps in which the rate rises
    clip_norm: float = setting(1.0, 0.0)  # per learner; 0: off
    cache: bool = True  # keep the result for other runs on the same data and backbone
    objectives: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"representation_distillation": {"level": "pooled"}}
    )


@dataclass(frozen=True)
class ViewConfig:
    """How one learner sees the unlabelled batch (its data view)."""

    token_cutoff: float = setting(0.0, 0.0, 0.9)  # share of tokens hidden
    span_cutoff: float = setting(0.0, 0.0, 0.9)  # length of one hidden span, as a share of the row
    feature_cutoff: float = setting(0.0, 0.0, 0.9)  # share of embedding features set to 0
    shuffle: float = setting(0.0, 0.0, 1.0)  # share of tokens that exchange their positions
    dropout: float = setting(0.0, 0.0, 0.9)  # in the encoder whenever it trains
    adversarial: int = setting(0, 0)  # inner steps that adversarial noise grows to
    adversarial_rate: float = setting(1e-3, 0.0)  # step size of an inner step


@dataclass(frozen=True)
class ViewsConfig(ViewConfig):
    """The students' view, and what differs for single learners, the teacher included."""

    learners: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, learner: str) -> ViewConfig:
        """Return a learner's view; the teacher sees the text as it is unless told otherwise.

        Raises:
            ConfigError: unknown key or value out of range under ``views.learners``.
        """
        common = {f.name: getattr(self, f.name) for f in dataclasses.fields(ViewConfig)}
        base = {} if learner == "teacher" else common
        own = self.learners.get(learner, {})
        return build(ViewConfig, {**base, **own}, f"views.learners.{learner}")


@dataclass(frozen=True)
class PropagationConfig:
    """How unlabelled texts get labels: along nearest neighbours in the teacher's space, first."""

    at: float = setting(0.0, 0.0, 1.0)  # share of the steps after which it is done; 0: never
    neighbours: int = setting(20, 1)
    alpha: float = setting(0.95, 0.0, 0.999)  # weight of the neighbours against one's own label
    iterations: int = setting(30, 1)
    # By neighbours alone, combined with a logistic regression, or that co-trained with the texts'
    # tokens and labels' names (see training/co_training.py). auto: co-trained where a text has one
    # label.
    labels: Literal["auto", "neighbours", "combined", "co-trained"] = "auto"
    contrastive_steps: int = setting(0, 0)  # of a copy of the encoder, see contrastive.py
    names: bool = True  # labels' names have a say too, where they are learnt as examples
    sentences: bool = True  # long texts stand where their sentences do, see passages.py


@dataclass(frozen=True)
class GuardConfig:
    """Looking whether learners are sound while they train (see training/guard.py)."""

    every: float = setting(0.0, 0.0, 1.0)  # share of the steps between two looks; 0: never


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    steps: int = setting(300, 1)
    more_steps: bool = (
        False  # take more where there are many classes or labels, see plan.with_enough_steps
    )
    labeled_batch: int = setting(16, 1)  # rows per step
    unlabeled_batch: int = setting(64, 1)  # rows per step at most
    more_rows: bool = False  # take more where texts are short, see plan.with_enough_unlabeled
    token_budget: int = setting(6144, 64)  # unlabelled tokens per step at most
    max_padding: float = setting(0.15, 0.0, 1.0)  # padding per real token in a chunk at most
    checkpoint_every: int = setting(50, 1)  # steps
    log_every: int = setting(10, 1)  # steps
    name_examples: bool = False  # labels' names as one more text of each class, where they tell
    head_texts: int = setting(0, 0)  # unlabelled, to fit students' heads to in the end; 0: not done
    # Of labelled rows in the loss: none, balanced (as in scikit-learn), or a weight by label.
    class_weight: str | dict[str, float] = "none"
    # Of texts to come: auto (see training/priors.py), labeled (as learnt), or a share by label.
    class_prior: str | dict[str, float] = "auto"
    max_minutes: float = setting(0.0, 0.0)  # 0: no limit
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    threads: int = setting(0, 0)  # 0: one per core
    gradient_checkpointing: bool = False  # less memory, a third more arithmetic


@dataclass(frozen=True)
class SummarizationConfig:
    """The task ``summarization``: how documents are read, scored and cut to a summary."""

    language: str = "en"  # of raw texts, which are cut into sentences
    pooling: Literal["mean", "token"] = "mean"  # of a sentence's tokens, or of one put before it
    segments: bool = True  # alternate the token types of sentences, where the backbone has such
    features: bool = True  # the head also reads position, length and lexical centrality
    start: bool = False  # heads start from a regression, see `nanonet.training.sentences`
    overlap: float = setting(0.1, 0.0, 0.9)  # of neighbouring windows of a long document
    budget: str = "sentences=3"  # unless another is asked for; words=100; ratio=0.3 of the words
    block_trigrams: bool = False  # no two sentences with three words in a row in common


@dataclass(frozen=True)
class PhaseConfig:
    """One optimizer step of the online step: who learns, from what, how fast, and when."""

    learners: Literal["teacher", "students", "all"]
    start: float = setting(0.0, 0.0, 1.0)  # share of all steps before which it rests
    stop: float = setting(1.0, 0.0, 1.0)  # share of all steps after which it rests
    # Of the encoder's trainable parameters. auto: what suits the learner's PEFT method.
    learning_rate: float | Literal["auto"] = setting("auto", 0.0)
    head_learning_rate: float = setting(1e-2, 0.0)
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    warmup: float = setting(0.0, 0.0, 1.0)  # share of the phase's steps
    weight_decay: float = setting(0.0, 0.0)
    clip_norm: float = setting(1.0, 0.0)  # per learner; 0: off
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything that shapes a run, apart from the data."""

    task: Literal["classification", "multilabel", "summarization"] = "classification"
    recipe: str = "nanonet"
    seed: int = setting(0, 0)
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    propagation: PropagationConfig = field(default_factory=PropagationConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    summarization: SummarizationConfig = field(default_factory=SummarizationConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("nanonet").joinpath("recipes")
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Return a recipe's tables, by name or by the path of a TOML file.

    Raises:
        ConfigError: no such recipe, or a file that is not TOML.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"recipe file {name} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe file {name} cannot be read: {error}") from None
    else:
        if name not in recipe_names():
            hint = did_you_mean(name, recipe_names())
            raise ConfigError(
                f"unknown recipe '{name}'{hint}; there are: {', '.join(recipe_names())};"
                " or give the path of a .toml file"
            )
        text = resources.files("nanonet").joinpath(f"recipes/{name}.toml").read_text("utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name} is not valid TOML: {error}") from None


# What settings count, and what lets a run take more.
MORE = (
    ("training", "steps", "more_steps"),
    ("training", "unlabeled_batch", "more_rows"),
    ("warmup", "steps", "more_steps"),
)


def make_config(recipe: str, overrides: Mapping[str, Any]) -> Config:
    """Return the configuration of a recipe with overrides laid on top.

    Raises:
        ConfigError: see `build` and `read_recipe`.
    """
    tables = read_recipe(recipe)
    if overrides.get("recipe", recipe) != recipe:
        raise ConfigError(f"key 'recipe' is {overrides['recipe']!r}, but recipe '{recipe}' is used")
    values = merge(tables, overrides)
    values["recipe"] = recipe
    for section, count, more in MORE:  # who says how many gets so many
        given = overrides.get(section)
        if isinstance(given, Mapping) and count in given and more not in given:
            values[section][more] = False
    known, phases = tables.get("phases", {}), overrides.get("phases", {})
    known = known if _is_table(known) else {}
    added = {n: p for n, p in phases.items() if n not in known} if _is_table(phases) else {}
    for name, phase in added.items():
        if _is_table(phase) and "learners" not in phase:
            raise ConfigError(
                f"unknown phase 'phases.{name}'{did_you_mean(name, known)}"
                f"; recipe {recipe} has: {', '.join(known)}"
            )
    return build(Config, values)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)

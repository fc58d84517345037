"""The cohort: a teacher and its students, each a learner of its own."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nanonet.core.config import CohortConfig, Config
from nanonet.core.errors import ConfigError
from nanonet.models.backbones import Backbone
from nanonet.models.heads import LinearHead
from nanonet.models.layer_maps import LayerMap, layer_maps
from nanonet.models.learner import Learner
from nanonet.models.narrow import check_width, narrow_encoder
from nanonet.models.peft import make_trainable, set_parameter, trainable_names
from nanonet.tasks.base import OUTPUTS

TEACHER = "teacher"


class Cohort(nn.Module):
    """A teacher (optional) and K students by name: ``teacher``, ``student1`` … ``studentK``."""

    def __init__(self, learners: dict[str, Learner]) -> None:
        super().__init__()
        self.learners = nn.ModuleDict(learners)

    def __getitem__(self, name: str) -> Learner:
        return self.learners[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self.learners)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher."""
        return TEACHER in self.learners

    @property
    def students(self) -> list[str]:
        """The students' names, in order."""
        return [name for name in self.learners if name != TEACHER]

    def own_tensors(self) -> dict[str, Tensor]:
        """Return every learner's trained tensors by full name, on their device."""
        return {
            f"{learner}.{name}": parameter.detach()
            for learner in self
            for name, parameter in self[learner].own_parameters().items()
        }

    def load_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put trained tensors in place; all of them or none.

        Raises:
            ValueError: names or shapes differ from this cohort's.
        """
        own = self.own_tensors()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())[0]
            raise ValueError(f"trained tensors do not fit this cohort, for instance {odd}")
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}, but {tuple(own[name].shape)} is needed"
                )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def build_cohort(
    backbone: Backbone,
    config: Config,
    classes: int,
    own_weights: Mapping[str, Tensor] | None = None,
) -> Cohort:
    """Cut teacher and students out of one backbone; frozen tensors are shared by all.

    Args:
        backbone: the pretrained encoder.
        config: its ``task``, ``cohort``, ``head``, ``lora`` and ``seed`` are read.
        classes: number of classes C.
        own_weights: weights that take the place of pretrained ones, by
            ``<learner>.<parameter>``: what a warm-up has made of the students.

    Raises:
        ConfigError: layer maps or PEFT methods that do not fit the backbone; nobody to train.
    """
    outputs = OUTPUTS[config.task]
    plans = learner_plans(config.cohort, backbone.layers)
    learners = {}
    for index, (name, (layer_map, peft)) in enumerate(plans.items()):
        words = np.random.SeedSequence((config.seed, index))
        with torch.random.fork_rng():  # chance: LoRA's first matrix, weights of narrow students
            torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
            width = config.cohort.student_width if name != TEACHER else 0
            projection: nn.Linear | None = None
            if width in (0, backbone.encoder.hidden_size):
                encoder = backbone.encoder.subset(layer_map)
            else:
                encoder, projection = narrow_encoder(backbone.encoder, layer_map, width)
            linear = LinearHead(
                encoder.hidden_size,
                outputs.logits(classes),
                config.head.normalize,
                config.head.scale,
                outputs.features,
            )
            learner = Learner(
                encoder, linear, backbone.pooling, layer_map, peft, projection, outputs
            )
            for full_name, tensor in (own_weights or {}).items():
                owner, _, parameter = full_name.partition(".")
                if owner == name:
                    set_parameter(learner, parameter, nn.Parameter(tensor.clone()))
            make_trainable(encoder, peft, config.lora)
            learners[name] = learner
    return Cohort(learners)


def pretrained_learner(backbone: Backbone) -> Learner:
    """Return the whole pretrained encoder as a learner, to place texts; its head says nothing.

    It shares every tensor with the backbone.
    """
    every = tuple(range(1, backbone.layers + 1))
    encoder = backbone.encoder.subset(every)
    unused = LinearHead(encoder.hidden_size, 1, normalize=True, scale=1.0)
    return Learner(encoder, unused, backbone.pooling, every).eval()


def learner_plans(cohort: CohortConfig, depth: int) -> dict[str, tuple[LayerMap, str]]:
    """Return each learner's layers of a backbone of ``depth`` and its PEFT method.

    Raises:
        ConfigError: layer maps that do not fit the backbone; nobody to train.
    """
    if cohort.students == 0 and not cohort.teacher:
        raise ConfigError("cohort.students is 0 and cohort.teacher is false: nobody would learn")
    plans: dict[str, tuple[LayerMap, str]] = {}
    if cohort.teacher:
        plans[TEACHER] = (tuple(range(1, depth + 1)), cohort.teacher_peft)
    if cohort.students:
        maps = layer_maps(cohort.layer_map, depth, cohort.student_layers, cohort.students)
        for k, layer_map in enumerate(maps):
            plans[f"student{k + 1}"] = (layer_map, cohort.student_peft)
    return plans


def check_cohort(backbone: Backbone, config: Config) -> None:
    """Refuse, before any data loads, what does not fit the backbone.

    Raises:
        ConfigError: layer maps, PEFT methods, LoRA targets, views or widths that do not fit.
    """
    encoder = backbone.encoder
    for name, (layer_map, peft) in learner_plans(config.cohort, backbone.layers).items():
        warms_up = config.warmup.steps > 0 and name != TEACHER
        for method in (peft, config.warmup.peft) if warms_up else (peft,):
            trainable_names(encoder.subset(layer_map), method, config.lora)
        view = config.views.of(name)
        if (view.adversarial or view.feature_cutoff) and not encoder.has_embedding_output:
            raise ConfigError(
                f"the view of {name} changes the embedding output, which the adapter of backbone"
                f" {backbone.name} gives no access to: set views.adversarial=0 and"
                " views.feature_cutoff=0, or take another backbone"
            )
    if config.cohort.students:
        check_width(encoder, config.cohort.student_width)

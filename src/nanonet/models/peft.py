"""Parameter-efficient training: which of an encoder's parameters a learner may change.

A method says by name which parameters it trains, after creating what it needs. Those parameters
become the learner's own; every other tensor stays frozen and shared with the other learners.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from nanonet.core.config import LoraConfig
from nanonet.core.errors import ConfigError
from nanonet.core.registry import Registry
from nanonet.models.encoders import Encoder


class PeftMethod:
    """A way to train little of an encoder; subclass and register to add one.

    Attributes:
        teacher_rate: the learning rate that suits a teacher (a phase's ``learning_rate="auto"``).
        student_rate: that of students, who begin as layers taken out of their stack.
    """

    teacher_rate: ClassVar[float] = 1e-3
    student_rate: ClassVar[float] = 1e-3

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """Create what it needs in an encoder and return the names of what it trains."""
        raise NotImplementedError

    @staticmethod
    def merge(encoder: Encoder) -> None:
        """Give an encoder the family's plain shape again, in place; it computes the same.

        Most methods train parameters where the pretrained ones stood: nothing to do.
        """


PEFT: Registry[type[PeftMethod]] = Registry("PEFT method")


@PEFT.register("bitfit")
class BitFit(PeftMethod):
    """All bias terms (BitFit, arXiv 2106.10199); zero ones are created where there are none.

    Linear maps and norms that come without a bias (the ModernBERT family) get one of zeros, which
    leaves the function as it was.
    """

    teacher_rate, student_rate = 5e-3, 2e-2

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """See `PeftMethod.apply`."""
        for module in encoder.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is None:
                # The bias takes the shape of the output; weights of both kinds start with it.
                weight = module.weight
                module.bias = nn.Parameter(torch.zeros(weight.shape[0], device=weight.device))
        return [name for name, _ in encoder.named_parameters() if name.split(".")[-1] == "bias"]


@PEFT.register("layernorm")
class Norms(PeftMethod):
    """Scale and bias of every normalisation layer."""

    teacher_rate, student_rate = 5e-3, 2e-2

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """See `PeftMethod.apply`."""
        return [
            f"{name}.{parameter}"
            for name, module in encoder.named_modules()
            if isinstance(module, nn.LayerNorm)
            for parameter, value in module.named_parameters(recurse=False)
            if value is not None
        ]


@PEFT.register("head")
class HeadOnly(PeftMethod):
    """Nothing in the encoder: only the head learns."""

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """See `PeftMethod.apply`."""
        return []


@PEFT.register("layers")
class Layers(PeftMethod):
    """Everything but the embeddings, which are most of a small model and change least."""

    teacher_rate, student_rate = 1e-4, 3e-4

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """See `PeftMethod.apply`."""
        inside = {
            id(parameter)
            for module in encoder.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        return [name for name, p in encoder.named_parameters() if id(p) not in inside]


@PEFT.register("full")
class Full(PeftMethod):
    """Everything."""

    teacher_rate, student_rate = 1e-4, 3e-4

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """See `PeftMethod.apply`."""
        return [name for name, _ in encoder.named_parameters()]


@PEFT.register("lora")
class Lora(PeftMethod):
    """Low-rank additions to linear maps (LoRA, arXiv 2106.09685), by Hugging Face's peft."""

    teacher_rate, student_rate = 2e-3, 3e-3

    @staticmethod
    def apply(encoder: Encoder, lora: LoraConfig) -> list[str]:
        """See `PeftMethod.apply`.

        Raises:
            ConfigError: ``lora.targets`` match no linear map.
        """
        from peft import LoraConfig as Settings
        from peft import inject_adapter_in_model

        linear = [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear)]
        chosen = [n for n in linear if _is_target(n, lora.targets)]
        if not chosen:
            known = sorted({name.split(".")[-1] for name in linear})
            raise ConfigError(
                f"lora.targets {lora.targets} match no linear map of this backbone; there are:"
                f" {', '.join(known)} (leave lora.targets empty for all of them)"
            )
        settings = Settings(r=lora.rank, lora_alpha=lora.alpha, target_modules=chosen)  # type: ignore[arg-type]
        inject_adapter_in_model(settings, encoder)
        return [name for name, _ in encoder.named_parameters() if ".lora_" in name]

    @staticmethod
    def merge(encoder: Encoder) -> None:
        """Put W + (alpha / rank) B A in the place of every adapted linear map."""
        from peft.tuners.lora import Linear as LoraLinear

        adapted = [(n, m) for n, m in encoder.named_modules() if isinstance(m, LoraLinear)]
        for name, module in adapted:
            base: Any = module.get_base_layer()
            delta = module.get_delta_weight("default")
            plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            # A new tensor: the pretrained weight is shared with other learners.
            plain.weight = nn.Parameter((base.weight.float() + delta.float()).detach())
            plain.bias = base.bias
            owner, _, leaf = name.rpartition(".")
            setattr(encoder.get_submodule(owner), leaf, plain)


def _is_target(name: str, targets: list[str]) -> bool:
    if not targets:
        return name.startswith("layers.")
    return any(f".{name}".endswith(f".{target}") for target in targets)


def trainable_names(encoder: Encoder, method: str, lora: LoraConfig) -> list[str]:
    """Apply a method to an encoder and return the names of what it trains.

    Raises:
        ConfigError: unknown method, or one that finds nothing to train in this encoder.
    """
    names = PEFT.get(method).apply(encoder, lora)
    if not names and method != "head":
        raise ConfigError(
            f"PEFT method '{method}' finds no parameter to train in this backbone; use another"
            f" ({', '.join(PEFT)})"
        )
    return names


def make_trainable(encoder: Encoder, method: str, lora: LoraConfig) -> None:
    """Give ``encoder`` its own 32-bit copy of what ``method`` trains; freeze everything else.

    Raises:
        ConfigError: see `trainable_names`.
    """
    names = trainable_names(encoder, method, lora)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    for name in names:
        own = get_parameter(encoder, name).detach().clone().to(torch.float32)
        set_parameter(encoder, name, nn.Parameter(own))


def get_parameter(encoder: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter by its full name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(encoder.get_submodule(owner), leaf)  # type: ignore[no-any-return]


def set_parameter(encoder: nn.Module, name: str, value: nn.Parameter) -> None:
    """Put a parameter in the place of the one of that name, or where there is none yet."""
    owner, _, leaf = name.rpartition(".")
    setattr(encoder.get_submodule(owner), leaf, value)

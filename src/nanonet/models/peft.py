"""Parameter-efficient training: which of an encoder's parameters a learner may change.

A method says by name which parameters it trains, after creating what it needs. Those parameters
become the learner's own; every other tensor stays frozen and shared with the other learners.
"""

from collections.abc import Callable

import torch
from torch import nn

from nanonet.core.errors import ConfigError
from nanonet.core.registry import Registry
from nanonet.models.backbones import Encoder

# encoder -> names of the parameters to train
PEFT: Registry[Callable[[Encoder], list[str]]] = Registry("PEFT method")


@PEFT.register("bitfit")
def bitfit(encoder: Encoder) -> list[str]:
    """All bias terms (BitFit, arXiv 2106.10199).

    Linear maps and norms that come without a bias (the ModernBERT family) get one of zeros, which
    leaves the function as it was.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is None:
            # The created bias takes the shape of the output; weights of both kinds start with it.
            weight = module.weight
            module.bias = nn.Parameter(torch.zeros(weight.shape[0], device=weight.device))
    return [name for name, _ in encoder.named_parameters() if name.split(".")[-1] == "bias"]


@PEFT.register("layernorm")
def layernorm(encoder: Encoder) -> list[str]:
    """Scale and bias of every normalisation layer."""
    return [
        f"{name}.{parameter}"
        for name, module in encoder.named_modules()
        if isinstance(module, nn.LayerNorm)
        for parameter, value in module.named_parameters(recurse=False)
        if value is not None
    ]


@PEFT.register("head")
def head(encoder: Encoder) -> list[str]:
    """Nothing in the encoder: only the head learns."""
    return []


@PEFT.register("full")
def full(encoder: Encoder) -> list[str]:
    """Everything."""
    return [name for name, _ in encoder.named_parameters()]


def make_trainable(encoder: Encoder, method: str) -> None:
    """Give ``encoder`` its own 32-bit copy of what ``method`` trains; freeze everything else.

    Raises:
        ConfigError: unknown method, or one that finds nothing to train in this encoder.
    """
    names = PEFT.get(method)(encoder)
    if not names and method != "head":
        raise ConfigError(
            f"PEFT method '{method}' finds no parameter to train in this backbone; use another"
        )
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        owner = encoder.get_submodule(owner_name)
        own = getattr(owner, leaf).detach().clone().to(torch.float32)
        setattr(owner, leaf, nn.Parameter(own))

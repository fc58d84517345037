"""Students narrower than the teacher: weights of their own instead of the teacher's layers.

They begin at random, but for the embeddings, which are the teacher's on their principal
components; a learned projection, which starts as the way back, leads into the teacher's width.
"""

import copy

import torch
from torch import Tensor, nn

from nanonet.core.errors import ConfigError
from nanonet.models.encoders import ENCODERS, Encoder
from nanonet.models.layer_maps import LayerMap


def check_width(encoder: Encoder, width: int) -> None:
    """Refuse a width of students that cannot be cut into the backbone's attention heads.

    Raises:
        ConfigError: it cannot; 0 and the backbone's own width always can.
    """
    heads, hidden_size = int(encoder.config.num_attention_heads), encoder.hidden_size
    # Two per head at least: rotary positions turn pairs of numbers.
    if width and (width % (2 * heads) != 0 or width > hidden_size):
        raise ConfigError(
            f"cohort.student_width is {width}, but must be a multiple of {2 * heads} (twice the"
            f" backbone's attention heads) up to {hidden_size}; 0 means {hidden_size}"
        )


def narrow_encoder(encoder: Encoder, layer_map: LayerMap, width: int) -> tuple[Encoder, nn.Linear]:
    """Return an encoder of another width and its projection (width -> hidden size).

    Args:
        encoder: the teacher's.
        layer_map: the teacher layers that it will imitate; as many layers it has.
        width: of its hidden states; see `check_width`.
    """
    from transformers import AutoModel

    config = copy.deepcopy(encoder.config)
    ratio = width / encoder.hidden_size
    config.hidden_size = width
    config.num_hidden_layers = len(layer_map)
    config.intermediate_size = max(1, round(config.intermediate_size * ratio))
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [encoder.config.layer_types[i - 1] for i in layer_map]
    attention = encoder.config._attn_implementation
    model = AutoModel.from_config(config, attn_implementation=attention, dtype=torch.float32)
    narrow = ENCODERS.get(str(config.model_type))(model)  # type: ignore[call-arg]
    components = _principal_components(_embeddings(encoder)[0].weight.float(), width)
    for own, theirs in zip(_embeddings(narrow), _embeddings(encoder), strict=True):
        own.weight = nn.Parameter((theirs.weight.float() @ components).detach())
    projection = nn.Linear(width, encoder.hidden_size)
    projection.weight = nn.Parameter(components.clone())
    nn.init.zeros_(projection.bias)
    return narrow.eval(), projection


def _embeddings(encoder: Encoder) -> list[nn.Embedding]:
    """Return an encoder's embeddings, that of the vocabulary first."""
    found = [m for m in encoder.modules() if isinstance(m, nn.Embedding)]
    return sorted(found, key=lambda module: -module.num_embeddings)


def _principal_components(vectors: Tensor, count: int) -> Tensor:
    """Return the directions (H, count) in which vectors (V, H) are largest."""
    directions: Tensor = torch.linalg.eigh(vectors.T @ vectors)[1]  # eigenvalues ascending
    return directions[:, -count:].flip(-1).contiguous()

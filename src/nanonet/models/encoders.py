"""Pretrained encoders behind one small interface, and layer-subset students of them.

An `Encoder` gives what the objectives need and Hugging Face's ``forward`` hides: the embedding
output as a value, every layer's hidden states, and the freedom to run a subset of the layers.
To add a family, subclass `Encoder` and register it under its ``config.model_type``.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanonet.core.errors import BackboneError
from nanonet.core.registry import Registry
from nanonet.models.attention import PACKED, Packing

Pooling = Literal["mean", "cls"]


class Encoder(nn.Module):
    """A stack of pretrained layers.

    Attributes:
        layers: the transformer layers that this encoder runs, in order.
        hidden_size: width H.
        max_length: positions that the encoder knows.
        has_embedding_output: `embed` gives the embedding output, which some views change.
        has_token_types: `embed` takes token types.
        gradient_checkpointing: where there is a gradient, keep only what goes into each layer, and
            run the layer again in the backward pass.
    """

    has_embedding_output: ClassVar[bool] = True
    has_token_types: bool = False
    gradient_checkpointing: bool = False

    layers: nn.ModuleList
    config: Any

    def __init__(self, model: Any, layers: nn.ModuleList) -> None:
        super().__init__()
        self.config = model.config
        self.layers = layers
        self.hidden_size = int(self.config.hidden_size)
        self.max_length = int(self.config.max_position_embeddings)

    def embed(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the embedding output (B, T, H) of token ids (B, T).

        Args:
            input_ids: (B, T).
            positions: of the tokens in their row, (B, T), from 0; 0 .. T-1 where None.
        """
        raise NotImplementedError

    def embed_typed(
        self, input_ids: Tensor, token_types: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Return `embed` with token types (B, T), which are 0 or 1, where the family has such."""
        return self.embed(input_ids, positions)

    def run_layers(
        self, hidden: Tensor, attention_mask: Tensor, positions: Tensor | None = None
    ) -> list[Tensor]:
        """Return the hidden states after each layer.

        Args:
            hidden: embedding output (B, T, H).
            attention_mask: (B, T), 1 where a token may be attended to.
            positions: as in `embed`.
        """
        raise NotImplementedError

    def run_chunks(
        self,
        embedded: Sequence[Tensor],
        real: Sequence[Tensor],
        masks: Sequence[Tensor],
        positions: Sequence[Tensor | None],
    ) -> list[list[Tensor]]:
        """Return what `run_layers` does for each of many chunks.

        Args:
            embedded: of each chunk, its embedding output.
            real: of each chunk, (b, T), 1 at real tokens; what is returned elsewhere means nothing.
            masks: as in `run_layers`, of each chunk.
            positions: as in `run_layers`, of each chunk.
        """
        each = zip(embedded, masks, positions, strict=True)
        return [self.run_layers(*chunk) for chunk in each]

    def run_layer(self, layer: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """Return what a layer makes of hidden states (B, T, H)."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, hidden, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        """Return what pooling reads (B, T, H): a final norm where the family has one."""
        return hidden

    def subset(self, layers: Sequence[int]) -> "Encoder":
        """Return an encoder of only these layers (counted from 1) that shares every tensor."""
        shared: dict[int, Any] = {id(t): t for t in [*self.parameters(), *self.buffers()]}
        shared[id(self.config)] = self.config
        whole = self.layers
        self.layers = nn.ModuleList(whole[i - 1] for i in layers)
        try:
            return copy.deepcopy(self, memo=shared)
        finally:
            self.layers = whole

    def stock_config(self) -> Any:
        """Return the configuration of a Hugging Face model that computes what this encoder does."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = self.empty_layers + len(self.layers)
        return config

    @property
    def empty_layers(self) -> int:
        """How many layers that do nothing a Hugging Face model needs in front of these."""
        return 0


ENCODERS: Registry[type[Encoder]] = Registry("encoder family")


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where ``allowed`` and the dtype's minimum elsewhere, to add to attention scores."""
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


class BertEncoder(Encoder):
    """BERT and its kin: absolute positions, post-norm layers, a bias on every linear map."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.encoder.layer)
        self.embeddings = model.embeddings
        padding = getattr(self.embeddings, "padding_idx", None)
        self.has_token_types = int(getattr(self.config, "type_vocab_size", 1)) > 1
        self.first_position = 0
        if padding is not None and self.config.model_type != "bert":
            self.first_position = int(padding) + 1  # RoBERTa counts positions from there
        self.max_length -= self.first_position

    def embed(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `Encoder.embed`."""
        return self._embed(input_ids, None, positions)

    def embed_typed(
        self, input_ids: Tensor, token_types: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """See `Encoder.embed_typed`."""
        return self._embed(input_ids, token_types if self.has_token_types else None, positions)

    def _embed(
        self, input_ids: Tensor, token_types: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        if positions is not None:
            positions = positions + self.first_position
        return self.embeddings(  # type: ignore[no-any-return]
            input_ids=input_ids, token_type_ids=token_types, position_ids=positions
        )

    def run_layers(
        self, hidden: Tensor, attention_mask: Tensor, positions: Tensor | None = None
    ) -> list[Tensor]:
        """See `Encoder.run_layers`."""
        mask = additive_mask(attention_mask[:, None, None, :].bool(), hidden.dtype)
        states = []
        for layer in self.layers:
            hidden = self.run_layer(partial(layer, attention_mask=mask), hidden)
            states.append(hidden)
        return states

    def run_chunks(
        self,
        embedded: Sequence[Tensor],
        real: Sequence[Tensor],
        masks: Sequence[Tensor],
        positions: Sequence[Tensor | None],
    ) -> list[list[Tensor]]:
        """See `Encoder.run_chunks`. All but attention reads the real tokens of all chunks at once.

        Nothing is computed for padding then, and matrices are large however rows are cut.
        """
        if self.config._attn_implementation != PACKED:
            return super().run_chunks(embedded, real, masks, positions)
        kind = embedded[0].dtype
        added = [additive_mask(mask[:, None, None, :].bool(), kind) for mask in masks]
        packing = Packing.of(real, added)
        hidden = packing.pack(embedded)[None]  # one row of all tokens
        states = []
        for layer in self.layers:
            bound = partial(layer, attention_mask=None, packing=packing)
            hidden = self.run_layer(bound, hidden)
            states.append(packing.unpack(hidden[0]))
        return [list(chunk) for chunk in zip(*states, strict=True)]


for _family in ("bert", "roberta", "xlm-roberta", "camembert"):
    ENCODERS.register(_family)(BertEncoder)


@ENCODERS.register("modernbert")
class ModernBertEncoder(Encoder):
    """ModernBERT and its kin: rotary positions, pre-norm, local and global layers, no biases."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.layers)
        self.embeddings = model.embeddings
        self.rotary = model.rotary_emb
        self.final_norm = model.final_norm

    def embed(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `Encoder.embed`. Positions come in at the layers only."""
        return self.embeddings(input_ids=input_ids)  # type: ignore[no-any-return]

    def run_layers(
        self, hidden: Tensor, attention_mask: Tensor, positions: Tensor | None = None
    ) -> list[Tensor]:
        """See `Encoder.run_layers`. A local layer sees ``config.sliding_window`` to each side."""
        places = torch.arange(hidden.shape[1], device=hidden.device)
        positions = places[None] if positions is None else positions
        real = attention_mask[:, None, None, :].bool()
        distance = (places[:, None] - places[None, :]).abs()
        near = distance <= self.config.sliding_window
        masks = {
            "full_attention": additive_mask(real, hidden.dtype),
            "sliding_attention": additive_mask(real & near, hidden.dtype),
        }
        kinds = {str(layer.attention_type) for layer in self.layers}
        rotary = {k: self.rotary(hidden, positions, k) for k in kinds}
        states = []
        for layer in self.layers:
            kind = str(layer.attention_type)
            bound = partial(layer, attention_mask=masks[kind], position_embeddings=rotary[kind])
            hidden = self.run_layer(bound, hidden)
            states.append(hidden)
        return states

    def finish(self, hidden: Tensor) -> Tensor:
        """See `Encoder.finish`."""
        return self.final_norm(hidden)  # type: ignore[no-any-return]

    def stock_config(self) -> Any:
        """See `Encoder.stock_config`. Says which biases there are: the family has none."""
        config = super().stock_config()
        first: Any = self.layers[0]
        kinds = [str(layer.attention_type) for layer in self.layers]
        config.layer_types = [kinds[0]] * self.empty_layers + kinds
        config.attention_bias = first.attn.Wqkv.bias is not None
        config.mlp_bias = first.mlp.Wi.bias is not None
        config.norm_bias = self.final_norm.bias is not None
        return config

    @property
    def empty_layers(self) -> int:
        """See `Encoder.empty_layers`: a Hugging Face model has no norm before its first layer."""
        return 0 if isinstance(self.layers[0].attn_norm, nn.Identity) else 1


def wrap_model(model: Any, name: str = "the given model") -> Encoder:
    """Return the adapter of a loaded Hugging Face encoder, frozen and in evaluation mode.

    Raises:
        BackboneError: no adapter for this family.
    """
    family = str(model.config.model_type)
    if family not in ENCODERS:
        raise BackboneError(
            f"backbone {name} is of the family '{family}', which NanoNet has no adapter for"
            f" (there are: {', '.join(ENCODERS)})"
        )
    encoder = ENCODERS.get(family)(model)  # type: ignore[call-arg]
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    return encoder.eval()

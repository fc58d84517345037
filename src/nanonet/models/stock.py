"""An encoder as the model class of transformers for its family: what Hugging Face tools load."""

from typing import Any

import torch

from nanonet.core.errors import BackboneError
from nanonet.models.encoders import ENCODERS, Encoder


def stock_model(encoder: Encoder) -> Any:
    """Return a model of transformers that computes what a merged encoder computes.

    What the encoder has no values for is zero: BERT's pooler, which nothing here reads, and the
    layer that a ModernBERT student without the first layer needs in front, which with zeros adds
    nothing to the hidden states.

    Raises:
        BackboneError: the encoder has another shape than its family.
    """
    from transformers import AutoModel

    config = encoder.stock_config()
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).zero_()
    wrapped = ENCODERS.get(str(config.model_type))(model)  # type: ignore[call-arg]
    wrapped.layers = wrapped.layers[encoder.empty_layers :]
    try:
        wrapped.load_state_dict(encoder.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"the encoder has another shape than transformers' {type(model).__name__}, so that it"
            f" cannot be written in Hugging Face's format: {reason}"
        ) from None
    return model

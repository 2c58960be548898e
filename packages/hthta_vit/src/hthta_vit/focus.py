"""The attention map that the Focused Attention Percentage compares with Grad-CAM."""

import torch
from torch import Tensor, nn

from hthta_vit.model import HTHTAViT
from vit_core.explain import class_token_attention


def attention_map(model: nn.Module, images: Tensor) -> Tensor:
    """(B, rows, columns): the pooling's α, mean over its heads; without pooling, the class token's attention in the
    last block, mean over its heads. ValueError for a model that has neither.

    In the row "bigru" the class token is not used after the last block, so its attention there gets no gradient.
    """
    if isinstance(model, HTHTAViT):
        with torch.no_grad():
            pooled = model.attention_map(images)
        if pooled is not None:
            return pooled
    return class_token_attention(model, images)

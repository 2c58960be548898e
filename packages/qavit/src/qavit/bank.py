"""The global token bank of QAViT: a small memory that all blocks read, and how it is written.

Shapes: B batch, N tokens, d embed_dim, M bank size.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qavit.config import QAViTConfig


class Bank(NamedTuple):
    """Contents of the global token bank on their way through the blocks; (1, M, d), or (B, M, d) when per sample."""

    k: Tensor
    v: Tensor


class GlobalTokenBank(nn.Module):
    """M key and value tokens shared by all blocks, and the MLA gateway that writes to them.

    `inplace`: as published. In training, each write adds a step that is averaged over the batch, and takes no part in
    autograd: the gateway (norm, gate, compression) never gets a gradient. What the last write left is stored when the
    forward pass ends (`store`), not before, so every gradient is taken at the values that were read; the step is
    averaged over the ranks of a data-parallel run, so they keep one bank.
    `functional`: the bank starts from the learned tokens in each forward pass and is written per sample, inside
    autograd, in training and evaluation alike: the gateway learns, and no sample sees another.
    `frozen`: never written.
    """

    def __init__(self, config: QAViTConfig) -> None:
        super().__init__()
        d, M = config.embed_dim, config.global_bank_size
        self.update = config.bank_update
        self.global_k = nn.Parameter(torch.empty(1, M, d))
        self.global_v = nn.Parameter(torch.empty(1, M, d))
        self.write_norm = nn.LayerNorm(d)
        self.write_gate = nn.Linear(d, M)  # W_g
        self.write_compression = nn.Linear(d, d)  # W_c

    @property
    def writes(self) -> bool:
        return self.update == "functional" or (self.update == "inplace" and self.training)

    def read(self) -> Bank:
        return Bank(self.global_k.clone(), self.global_v.clone())  # clones: `store` must not touch saved tensors

    def write(self, bank: Bank, tokens: Tensor, norm: nn.LayerNorm) -> Bank:
        """tokens (B, N, d), normalised by the branch's own `norm` first."""
        if not self.writes:
            return bank
        if self.update == "functional":
            delta_k, delta_v = self._delta(norm(tokens))
        else:
            with (
                torch.no_grad(),
                torch.autocast(tokens.device.type, enabled=False),
            ):  # fp16 steps ran into NaN
                delta_k, delta_v = self._delta(norm(tokens.to(self.global_k.dtype)), over_batch=True)
        return Bank(bank.k + 0.1 * delta_k, bank.v + 0.1 * delta_v)

    def _delta(self, tokens: Tensor, over_batch: bool = False) -> tuple[Tensor, Tensor]:
        t = self.write_norm(tokens)
        a = self.write_gate(t).softmax(dim=1)  # (B, N, M), over the tokens
        delta_v = a.transpose(1, 2) @ t  # (B, M, d)
        if over_batch:
            delta_v = delta_v.mean(0, keepdim=True)
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(delta_v)
                delta_v /= dist.get_world_size()
        # aᵀ(W_c t) = W_c(aᵀ t), since each column of a sums to 1: M tokens to compress, not N, or B·N.
        delta_k = self.write_compression(delta_v)
        return delta_k.clamp(-0.5, 0.5), delta_v.clamp(-0.5, 0.5)

    @torch.no_grad()
    def store(self, bank: Bank) -> None:
        if self.update == "inplace" and self.training:
            self.global_k.copy_(bank.k)
            self.global_v.copy_(bank.v)

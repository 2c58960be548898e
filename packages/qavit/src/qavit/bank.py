"""The global token bank of QAViT: a small memory that all blocks read and write.

Shapes: B batch, N tokens, d embed_dim, M bank size.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qavit.config import QAViTConfig


class Bank(NamedTuple):
    """Keys and values of the global token bank during a forward pass: (1, M, d), or (B, M, d) when per sample."""

    k: Tensor
    v: Tensor


class GlobalTokenBank(nn.Module):
    """M key and value tokens shared by all blocks, and the MLA gateway that writes to them.

    `inplace`: as published. In training, each write adds an update averaged over the batch, outside autograd: the
    gateway (norm, gate, compression) never gets a gradient. The result is stored only at the end of the forward pass
    (`store`), so every gradient is computed at the values that were read. In data-parallel training the update is
    averaged over the ranks, so all keep the same bank.
    `functional`: each forward pass starts from the learned tokens and writes per sample, inside autograd, in training
    and evaluation: the gateway is trained, and samples do not influence each other.
    `frozen`: the bank is never written.
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
        """Write tokens (B, N, d), first normalized by the branch's own `norm`."""
        if not self.writes:
            return bank
        if self.update == "functional":
            delta_k, delta_v = self._delta(norm(tokens))
        else:
            with (
                torch.no_grad(),
                torch.autocast(tokens.device.type, enabled=False),
            ):  # updates in fp16 became NaN
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
        # aᵀ(W_c t) = W_c(aᵀ t), since each column of a sums to 1: compresses M tokens instead of N or B·N.
        delta_k = self.write_compression(delta_v)
        return delta_k.clamp(-0.5, 0.5), delta_v.clamp(-0.5, 0.5)

    @torch.no_grad()
    def store(self, bank: Bank) -> None:
        if self.update == "inplace" and self.training:
            self.global_k.copy_(bank.k)
            self.global_v.copy_(bank.v)

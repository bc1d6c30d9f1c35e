"""Batch norm as HiT (arXiv 2106.07631) uses it: Keras' constants, and statistics of one process or of all.

Legend: B batch, C channels. torch's own modules do not fit: they keep a counter among the weights, and their
synchronised form refuses CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

EPS = 1e-3
MOMENTUM = 0.01  # Keras' 0.99: how much of the old statistics stays


class BatchNorm(nn.Module):
    """Normalises each channel over all tokens of the batch, then scales and shifts it.

    In training mode with the statistics of the batch, which move those that are kept; the kept variance is
    the unbiased one. synchronised: with the statistics of all processes' batches together, if
    `torch.distributed` runs. Source: arXiv 1502.03167.
    """

    def __init__(self, channels: int, synchronised: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.synchronised = synchronised
        self.frozen = False  # do the kept statistics stay as they are, in training mode too?

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ..., C] -> [B, ..., C]."""
        if self.training and self.synchronised and dist.is_available() and dist.is_initialized():
            return self._synchronised(x)
        tokens = x.flatten(1, -2).unsqueeze(2).permute(0, 3, 1, 2)  # [B, C, L, 1], channels last
        momentum = 0.0 if self.frozen else MOMENTUM
        kept = (self.running_mean, self.running_var)
        y = F.batch_norm(tokens, *kept, self.weight, self.bias, self.training, momentum, EPS)
        return y.permute(0, 2, 3, 1).reshape(x.shape)

    def _synchronised(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        axes = tuple(range(x.dim() - 1))
        count = wide.new_full((1,), x.numel() // x.shape[-1])
        *total, count = _Sum.apply(torch.cat([wide.sum(axes), count])).split([x.shape[-1], 1])
        mean = total[0] / count
        variance = _Sum.apply((wide - mean).square().sum(axes)) / count  # two rounds: exact for large means
        if not self.frozen:
            self._keep(mean.detach(), (variance * count / (count - 1)).detach())
        y = (wide - mean) * torch.rsqrt(variance + EPS) * self.weight + self.bias
        return y.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        for kept, new in ((self.running_mean, mean), (self.running_var, variance)):
            kept.lerp_(new.to(kept.dtype), MOMENTUM)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, because each process has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(grad.contiguous())


class OnceCounted:
    """A block for gradient checkpointing, which runs it again for gradients: only its first run moves the
    kept statistics."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.ran = block, False

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        if not self.ran:
            self.ran = True
            return self.block(*args)
        with frozen_statistics(self.block):
            return self.block(*args)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, no batch norm of the model moves what it keeps; whatever it computes stays the same."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and not module.frozen]
    for norm in norms:
        norm.frozen = True
    try:
        yield
    finally:
        for norm in norms:
            norm.frozen = False

"""The moving average of a generator's weights, which is what draws the pictures."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(
    batch: int, half_life_images: float = 10_000.0, ramp_up: float | None = None, seen: int = 0
) -> float:
    """Decay per step of `batch` images: weights lose half their share after `half_life_images` images.

    ramp_up: early in training, let the half-life be this fraction of the images `seen` so far (0.05 in
    StyleGAN2-ADA).
    """
    half_life = half_life_images if ramp_up is None else min(half_life_images, ramp_up * seen)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, for parameters only; buffers stay."""
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        # Not lerp_: the original's order of operations, which tells where a step is as small as the rounding.
        old.mul_(decay).add_(new.to(old.dtype), alpha=1 - decay)

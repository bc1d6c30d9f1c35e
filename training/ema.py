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
def update_ema(average: nn.Module, model: nn.Module, decay: float, *, statistics: bool = False) -> None:
    """average = decay * average + (1 - decay) * model, for parameters, and with `statistics` for those of a
    generator's batch norm; other buffers stay."""
    old, new = ([*m.parameters(), *(m.statistics() if statistics else ())] for m in (average, model))
    for kept, moved in zip(old, new, strict=True):
        # Not lerp_: the original's order of operations, which tells where a step is as small as the rounding.
        kept.mul_(decay).add_(moved.to(kept.dtype), alpha=1 - decay)

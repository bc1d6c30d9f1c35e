"""The fixed sine code of positions that StyleSwin and StyleNAT add when the grid grows."""

from __future__ import annotations

import math

import torch


def sine_positions(height: int, width: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """[height, width, channels] in the dtype and on the device of `like`.

    The first half of the channels codes x, the second y; each half is sines, then cosines, of positions
    counted from 1, with frequencies from 1 down to 1e-4. `channels` must be a multiple of 4, 8 or more.
    """
    x, y = _axis(width, channels // 2, like), _axis(height, channels // 2, like)
    shape = (height, width, channels // 2)
    return torch.cat([x[None].expand(shape), y[:, None].expand(shape)], dim=-1)


def _axis(length: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """[length, channels]: computed in float32 at least, since positions reach 1024."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    half = channels // 2
    steps = torch.arange(half, dtype=dtype, device=like.device)
    frequencies = torch.exp(steps * (-math.log(10_000) / (half - 1)))
    angles = torch.arange(1, length + 1, dtype=dtype, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)

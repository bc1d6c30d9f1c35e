"""Neighborhood attention the slow and obvious way, as a dense masked matrix: the oracle of all backends.

Legend: B batch, H,W tokens, N heads, D head dim, L = H * W. Memory grows with L squared: tests and debugging
only. Differentiable any number of times, in any floating dtype; meant to be called in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stylenat_hub.attention.geometry import axis_neighbors
from stylenat_hub.attention.groups import HeadGroup, attend_by_group


def unsupported(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Sequence[HeadGroup]) -> str | None:
    """Why this backend cannot do the job, or None."""
    return None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Sequence[HeadGroup], scale: float
) -> torch.Tensor:
    """q, k, v [B, H, W, N, D] -> [B, H, W, N, D]."""
    return attend_by_group(_attend_group, q, k, v, groups, scale)


def _attend_group(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: HeadGroup, scale: float
) -> torch.Tensor:
    """q, k, v [B, H, W, n, D] of one group -> the same."""
    height, width = q.shape[1:3]
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))  # [B, n, L, D]
    bias = _dense_bias(group, height, width, q)  # [n or 1, L, L]
    weights = torch.softmax(q @ k.transpose(-1, -2) * scale + bias, dim=-1)
    return (weights @ v).transpose(1, 2).unflatten(1, (height, width))


def _dense_bias(group: HeadGroup, height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """[n, L, L]: the bias of each pair, -inf where the query does not see the key."""
    rows, seen_rows = _dense_axis(height, group, like.device)  # [H, H]
    columns, seen_columns = _dense_axis(width, group, like.device)  # [W, W]
    seen = seen_rows[:, None, :, None] & seen_columns[None, :, None, :]  # [H, W, H, W]: query, then key
    if group.table is None:
        bias = torch.zeros(1, *seen.shape, dtype=like.dtype, device=like.device)
    else:
        bias = group.table.to(like.dtype)[:, rows[:, None, :, None], columns[None, :, None, :]]
    return bias.masked_fill(~seen, -torch.inf).flatten(3, 4).flatten(1, 2)


def _dense_axis(length: int, group: HeadGroup, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[L, L] table row of each (query, key), 0 where unseen, and [L, L] whether it is seen."""
    keys, index = axis_neighbors(length, group.kernel_size, group.dilation)
    rows = torch.zeros(length, length, dtype=torch.long, device="cpu").scatter(1, keys, index)
    seen = torch.zeros(length, length, dtype=torch.bool, device="cpu").scatter(1, keys, True)
    return rows.to(device), seen.to(device)

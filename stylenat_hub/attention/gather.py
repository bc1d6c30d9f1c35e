"""Neighborhood attention by gathering the k * k neighbors of every query. Simple, and k * k times the memory.

Legend: B batch, H,W tokens, N heads, n heads of a group, D head dim. It is differentiable any number of
times, so `tiled` uses it for second derivatives; the benchmark measures the other backends against it.
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
    keys_h, index_h = (x.to(q.device) for x in axis_neighbors(height, group.kernel_size, group.dilation))
    keys_w, index_w = (x.to(q.device) for x in axis_neighbors(width, group.kernel_size, group.dilation))
    rows, columns = keys_h[:, None, :, None], keys_w[None, :, None, :]  # broadcast to [H, W, k, k]
    logits = torch.einsum("bhwnd,bhwijnd->bhwnij", q * scale, k[:, rows, columns])
    if group.table is not None:
        bias = group.table.to(logits.dtype)[:, index_h[:, None, :, None], index_w[None, :, None, :]]
        logits = logits + bias.permute(1, 2, 0, 3, 4)  # [n, H, W, k, k] -> [H, W, n, k, k]
    weights = torch.softmax(logits.flatten(-2), dim=-1).view_as(logits)
    return torch.einsum("bhwnij,bhwijnd->bhwnd", weights, v[:, rows, columns])

"""Which keys a query sees in neighborhood attention, and which bias each of them gets.

This is the only statement of the rule; every backend and every test builds on it. Per axis of length L with
kernel size k and dilation d, the token at position i belongs to the group of residue r = i mod d and stands
there at p = i div d. A group holds ceil((L - r) / d) tokens. A query sees the k tokens of its own group that
lie around it; at the border the window stops moving, so that it is never smaller. Source: NATTEN, as recorded
from 0.14.6 and 0.17.5; dilation as in arXiv 2209.15001.
"""

from __future__ import annotations

import functools

import torch


def group_length(length: int, dilation: int, residue: int) -> int:
    """Number of tokens of an axis whose position is `residue` modulo `dilation`."""
    return -((residue - length) // dilation)


def window_start(position: int, length: int, kernel_size: int) -> int:
    """First key of the query at `position`, both counted inside a group of `length` tokens."""
    return min(max(position - kernel_size // 2, 0), length - kernel_size)


def bias_index(key: int, query: int, kernel_size: int) -> int:
    """Row (or column) of the bias table for a key and a query, both counted inside their group."""
    return key - query + kernel_size - 1


@functools.lru_cache(maxsize=256)
def axis_neighbors(length: int, kernel_size: int, dilation: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All windows of one axis.

    Returns:
        keys [L, k] int64: positions on the axis that each query sees, in rising order.
        index [L, k] int64: the bias table's row for each of them.
    """
    keys, index = [], []
    for query in range(length):
        position, residue = divmod(query, dilation)
        start = window_start(position, group_length(length, dilation, residue), kernel_size)
        window = range(start, start + kernel_size)
        keys.append([key * dilation + residue for key in window])
        index.append([bias_index(key, position, kernel_size) for key in window])
    with torch.inference_mode(False):  # cached tensors must serve gradients too, whoever asks first
        return torch.tensor(keys, device="cpu"), torch.tensor(index, device="cpu")

"""Head groups: runs of heads with one kernel size and one dilation, the partitions of Hydra attention."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from stylenat_hub.errors import InputError


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Heads `start` to `stop` (exclusive), kernel size, dilation and bias table [n, 2k-1, 2k-1] or None."""

    start: int
    stop: int
    kernel_size: int
    dilation: int
    table: torch.Tensor | None

    @property
    def heads(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def num_heads(self) -> int:
        return self.stop - self.start


def head_groups(
    num_heads: int,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int],
    rpb: torch.Tensor | Sequence[torch.Tensor] | None,
) -> list[HeadGroup]:
    """Cut the heads into groups; `neighborhood_attention` documents the arguments."""
    kernels = _per_head("kernel_size", kernel_size, num_heads)
    dilations = _per_head("dilation", dilation, num_heads)
    for kernel in kernels:
        if kernel < 3 or kernel % 2 == 0:
            raise InputError(f"kernel_size is {kernel}; allowed: odd numbers from 3")
    for value in dilations:
        if value < 1:
            raise InputError(f"dilation is {value}; allowed: whole numbers from 1")
    windows = list(zip(kernels, dilations, strict=True))
    whole = rpb is None or isinstance(rpb, torch.Tensor)
    if whole:
        cuts = [head for head in range(1, num_heads) if windows[head] != windows[head - 1]]
    else:
        cuts = _table_cuts(rpb, num_heads)
    groups = []
    for number, (start, stop) in enumerate(pairwise([0, *cuts, num_heads])):
        if len(set(windows[start:stop])) > 1:
            raise InputError(
                f"rpb table {number} serves heads {start} to {stop - 1}, which have several kernel sizes or "
                "dilations; give one table for each run of equal heads"
            )
        table = _slice_table(rpb, start, stop, kernels) if whole else rpb[number]
        groups.append(
            HeadGroup(start, stop, *windows[start], _checked_table(table, stop - start, kernels[start]))
        )
    return groups


def attend_by_group(
    attend_group: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    groups: Sequence[HeadGroup],
    scale: float,
) -> torch.Tensor:
    """`attend_group(q, k, v, group, scale)` for each group of heads of q, k, v [B, H, W, N, D], joined."""
    parts = [attend_group(*(x[:, :, :, g.heads] for x in (q, k, v)), g, scale) for g in groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def _per_head(name: str, value: int | Sequence[int], num_heads: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * num_heads
    if len(values) != num_heads:
        raise InputError(
            f"{name} has {len(values)} values; allowed: one number, or one per head ({num_heads})"
        )
    try:
        return tuple(operator.index(v) for v in values)
    except TypeError:
        raise InputError(f"{name} is {value!r}; allowed: whole numbers") from None


def _table_cuts(tables: Sequence[torch.Tensor], num_heads: int) -> list[int]:
    if not isinstance(tables, Sequence) or not all(
        isinstance(x, torch.Tensor) and x.dim() == 3 for x in tables
    ):
        raise InputError("rpb is neither None, nor a tensor, nor a list of tensors [heads, 2k-1, 2k-1]")
    heads = [table.shape[0] for table in tables]
    if sum(heads) != num_heads or 0 in heads:
        raise InputError(
            f"the rpb tables hold {heads} heads; together they must hold the {num_heads} heads of q"
        )
    return [sum(heads[: i + 1]) for i in range(len(heads) - 1)]


def _slice_table(
    rpb: torch.Tensor | None, start: int, stop: int, kernels: tuple[int, ...]
) -> torch.Tensor | None:
    """The group's part of a table for all heads; smaller kernels read the centre of the largest one's."""
    if rpb is None:
        return None
    num_heads, largest = len(kernels), max(kernels)
    side = 2 * largest - 1
    if tuple(rpb.shape) != (num_heads, side, side):
        raise InputError(
            f"rpb has the shape {tuple(rpb.shape)}; {num_heads} heads with kernel size {largest} need "
            f"{(num_heads, side, side)}"
        )
    if stop - start == num_heads:
        return rpb  # itself and not a view, which a backend could not recognise at the next call
    rim = largest - kernels[start]
    return rpb[start:stop, rim : side - rim, rim : side - rim]


def _checked_table(table: torch.Tensor | None, heads: int, kernel: int) -> torch.Tensor | None:
    side = 2 * kernel - 1
    if table is not None and tuple(table.shape) != (heads, side, side):
        raise InputError(
            f"an rpb table has the shape {tuple(table.shape)}; kernel size {kernel} needs "
            f"{(heads, side, side)}"
        )
    return table

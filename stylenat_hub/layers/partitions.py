"""What a run of attention heads can see: the description that attention maps and receptive fields share.

Legend: L positions of an axis, K of them that one position sees, s side of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Partition:
    """Heads that look alike. All attention here is separable: a query at row y, column x sees the keys at
    `keys[y]` x `keys[x]`, row by row, of a square grid, which is the queries' own. Nothing else can be said:
    no other keys down than across, no keys of a coarser grid.

    label: for people, such as "kernel 7, dilation 2". keys: [L, K] int64 on the CPU. counted: [L, K] bool;
    False where a constant of about -100 is added (StyleSwin's seam): a pair counts if both of its axes do.

    Each row of keys is evenly spaced and holds the query itself, also where it wraps around: a bias by offset
    and averages by offset need it (`logits.offsets` checks), maps do not.
    """

    label: str
    heads: slice
    keys: torch.Tensor
    counted: torch.Tensor

    @property
    def num_heads(self) -> int:
        return self.heads.stop - self.heads.start


@dataclass(frozen=True, eq=False)
class AttentionSite:
    """One self-attention of a generator: side of its level in px, its number among the level's blocks from 1
    on, the module, and its partitions, which cover its heads in order.

    The module has `watched`, the name of the method that it is called by while a picture is drawn, and
    `compared(first argument of that method, level) -> logits.Compared`."""

    level: int
    block: int
    module: nn.Module
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, eq=False)
class CrossSite:
    """One attention of all places to the latent's tokens: side of its level in px, the module, and what
    turns the tokens it gets, [B, ..., C], into rows of the picture [B, h, W, C]."""

    level: int
    module: nn.Module
    as_rows: Callable[[torch.Tensor], torch.Tensor]


def partition(label: str, start: int, stop: int, keys: torch.Tensor) -> Partition:
    """Heads `start` to `stop` (exclusive), all of whose keys count."""
    return Partition(label, slice(start, stop), keys, torch.ones_like(keys, dtype=torch.bool))


def everything(length: int) -> torch.Tensor:
    """[L, L]: every position sees all."""
    return torch.arange(length, device="cpu").expand(length, -1)


def windows(length: int, side: int, shift: int = 0) -> torch.Tensor:
    """[L, s]: the positions of the window that each lies in. Windows begin at `shift`; what is left over at
    the end of the axis continues at its beginning."""
    place = (torch.arange(length, device="cpu") - shift) % length
    first = place - place % side
    return (first[:, None] + torch.arange(side, device="cpu") + shift) % length


def strides(length: int, side: int) -> torch.Tensor:
    """[L, L / s]: the positions at the same place of every window."""
    place = torch.arange(length, device="cpu") % side
    return place[:, None] + torch.arange(0, length, side, device="cpu")

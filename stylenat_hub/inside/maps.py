"""What every attention head looks at in a picture: exact weights, of chosen queries or averaged over all.

The weights are computed anew from the queries and keys that the attention gets while the picture is drawn, a
few queries at a time: no matrix of all pairs exists, and nothing of any other level is kept.

Legend: L tokens of an axis, N heads, n heads of a partition, K keys that one query sees along an axis, Q
chosen queries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from stylenat_hub.errors import InputError
from stylenat_hub.inside.places import CENTRE, check_place, token_at
from stylenat_hub.inside.recording import draw_watching, site_at
from stylenat_hub.layers.logits import Compared, offsets
from stylenat_hub.layers.partitions import AttentionSite, Partition
from stylenat_hub.models.base import Generator

MAX_QUERIES = 64  # at once: a guard, since each has a picture for every head
CHUNK_BYTES = 16 << 20  # of the keys that are gathered at a time


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The weights of chosen queries at one attention of one picture.

    image: [3, R, R] in [0, 1]. level: px. block: from 1 on. queries: (x, y) in [0, 1] each; tokens: the (row,
    column) of each on the level's grid. partitions: what the heads can see. weights: for each partition
    [Q, n, K, K] over `Partition.keys` of the query's row and column; each query's and head's sum to 1.
    All tensors are on the CPU.
    """

    image: torch.Tensor
    level: int
    block: int
    queries: tuple[tuple[float, float], ...]
    tokens: tuple[tuple[int, int], ...]
    partitions: tuple[Partition, ...]
    weights: tuple[torch.Tensor, ...]

    @property
    def heads(self) -> int:
        return sum(part.num_heads for part in self.partitions)

    def map(self, query: int, partition: int) -> torch.Tensor:
        """One query's weights on the level's grid, for the heads of one partition: [n, L, L], 0 where they do
        not look. Numbers count from 0 on."""
        part, (row, column) = self.partitions[partition], self.tokens[query]
        weights = self.weights[partition][query]
        found = weights.new_zeros(part.num_heads, self.level, self.level)
        found[:, part.keys[row][:, None], part.keys[column][None, :]] = weights
        return found

    def seen(self, query: int, partition: int) -> torch.Tensor:
        """[L, L] bool: where the heads of a partition can look."""
        part, (row, column) = self.partitions[partition], self.tokens[query]
        seen = torch.zeros(self.level, self.level, dtype=torch.bool)
        counts = part.counted[row][:, None] & part.counted[column][None, :]
        seen[part.keys[row][:, None], part.keys[column][None, :]] = counts
        return seen

    @property
    def maps(self) -> torch.Tensor:
        """All of them on the level's grid, [Q, N, L, L], each summing to 1. At 1024 px one is 4 MB."""
        each = [
            torch.cat([self.map(query, partition) for partition in range(len(self.partitions))])
            for query in range(len(self.queries))
        ]
        return torch.stack(each)


@dataclass(frozen=True, eq=False)
class AttentionAverages:
    """The weights at one attention of one picture, averaged over all L * L queries.

    image, level, block, partitions: as in `AttentionMaps`. by_offset: for each partition [n, 2K-1, 2K-1], the
    mean weight of the key that stands so many keys below and to the right of the query, from -(K - 1) on; a
    partition's keys are evenly spaced. It sums to 1. received: for each partition [n, L, L], the mean weight
    that a token gets from all queries. It sums to 1, and would be 1 / L^2 if all got the same.
    """

    image: torch.Tensor
    level: int
    block: int
    partitions: tuple[Partition, ...]
    by_offset: tuple[torch.Tensor, ...]
    received: tuple[torch.Tensor, ...]


def attention_maps(
    generator: Generator,
    ws: torch.Tensor,
    level: int | None = None,
    *,
    block: int | None = None,
    queries: Sequence[tuple[float, float]] = (CENTRE,),
) -> AttentionMaps:
    """What every head of one attention looks at from chosen places of a picture.

    ws: styles [1, num_ws, w_dim]. level, block: see `site_at`. queries: up to 64 places (x, y), from (0, 0)
    at the top left to (1, 1) at the bottom right; each means the token that it lies in.

    The weights are the model's own, computed from its queries and keys in float32, or float64 if it is in
    that. One thread at a time: see `watching`.

    Raises `InputError`: no such level or block, a place outside, or styles that do not fit.
    """
    site, places = site_at(generator, level, block), _checked(queries)
    tokens = [(token_at(y, site.level), token_at(x, site.level)) for x, y in places]
    found: list[torch.Tensor] = []

    def see(received: torch.Tensor, *_: int) -> None:
        compared = site.module.compared(received, site.level)
        rows, columns = (torch.tensor(axis, device=received.device) for axis in zip(*tokens, strict=True))
        for number, part in enumerate(site.partitions):
            found.append(compared.weights(number, part, rows, columns).cpu())

    image = draw_watching(generator, ws, site.module, site.module.watched, see)
    return AttentionMaps(
        image, site.level, site.block, tuple(places), tuple(tokens), site.partitions, tuple(found)
    )


def attention_averages(
    generator: Generator,
    ws: torch.Tensor,
    level: int | None = None,
    *,
    block: int | None = None,
    progress: bool = False,
) -> AttentionAverages:
    """What every head of one attention looks at on average over all places of a picture, and what is looked
    at. progress: show a bar. Other arguments and errors: `attention_maps`."""
    site = site_at(generator, level, block)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(received: torch.Tensor, *_: int) -> None:
        compared = site.module.compared(received, site.level)
        total = len(site.partitions) * site.level**2
        with tqdm(total=total, desc="queries", leave=False, file=sys.stderr, disable=not progress) as bar:
            for number in range(len(site.partitions)):
                found.append(_averages(compared, site, number, bar))

    image = draw_watching(generator, ws, site.module, site.module.watched, see)
    by_offset, received = zip(*found, strict=True)
    return AttentionAverages(image, site.level, site.block, site.partitions, by_offset, received)


def _averages(
    compared: Compared, site: AttentionSite, number: int, bar: tqdm
) -> tuple[torch.Tensor, torch.Tensor]:
    """by_offset [n, 2K-1, 2K-1] and received [n, L, L] of a partition, some queries at a time."""
    part, length, device = site.partitions[number], site.level, compared.q.device
    count = part.keys.shape[1]
    side = 2 * count - 1
    keys, index = part.keys.to(device), offsets(part.keys).to(device)
    # the last sums are of a million numbers; MPS has no float64
    wide = torch.float32 if device.type == "mps" else torch.float64
    by_offset = torch.zeros(part.num_heads, side * side, dtype=wide, device=device)
    received = torch.zeros(part.num_heads, length * length, dtype=wide, device=device)
    for some in torch.arange(length * length, device=device).split(_at_a_time(compared, part)):
        rows, columns = some // length, some % length
        weights = compared.weights(number, part, rows, columns).to(wide)
        weights = weights.transpose(0, 1).flatten(1)  # [n, Q * K * K]
        received.index_add_(1, _pairs(keys, rows, columns, length), weights)
        by_offset.index_add_(1, _pairs(index, rows, columns, side), weights)
        bar.update(len(some))
    shapes = (by_offset.unflatten(1, (side, side)), received.unflatten(1, (length, length)))
    exact = torch.promote_types(compared.q.dtype, torch.float32)
    by_offset, received = ((x / length**2).to(exact).cpu() for x in shapes)
    return by_offset, received


def _pairs(axis: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """[Q * K * K]: where each pair of an axis's values [L, K] lies in a flattened square of this width."""
    return (axis[rows][:, :, None] * width + axis[columns][:, None, :]).flatten()


def _at_a_time(compared: Compared, part: Partition) -> int:
    """How many queries' keys fit the memory budget, at float32 or more."""
    size = max(4, compared.q.element_size())
    keys = part.keys.shape[1] ** 2 * part.num_heads
    return max(1, CHUNK_BYTES // (keys * (compared.q.shape[-1] * size + 16)))


def _checked(queries: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if not 1 <= len(queries) <= MAX_QUERIES:
        raise InputError(f"{len(queries)} queries are asked for; allowed: 1 to {MAX_QUERIES}")
    return [check_place(place) for place in queries]

"""Precision, recall, density, coverage: which features lie among those of the other set; nearest neighbours.

A set's manifold is the union of closed balls around its features, each reaching to the feature's own k-th
nearest neighbour in the set. Legend: N real and M fake features, D their length.

Distances are float64. They come from products of blocks, x.x + y.y - 2 x.y, which is fast and rounds; where
that rounding could decide whether a feature is in a ball, the distance is taken again from the differences,
pair by pair. So what is counted does not depend on the size of the blocks, a copy of a feature is at distance
0, and what lies exactly on a ball's surface is in it. Float32 would halve the time on a CPU, but the bound of
its rounding, 1e-4 of the squared lengths at D = 2048, leaves too many neighbours in doubt.

Memory: up to 300 MiB at D = 2048, on the device where it is computed, and some 20 bytes per feature, besides
the features themselves, which may be in float16 or float32. Time grows with N M D: 50,000 of each at D = 2048
are 5 * 10^12 multiplications for each of the products that a metric names below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.checks import check_features, to_float64

BLOCK = 2**10  # features whose distances to as many are in memory
SPARE = 8  # neighbours beyond k whose distances are taken exactly, because rounding may have swapped them


@torch.no_grad()
def precision_recall(real: torch.Tensor, fake: torch.Tensor, *, k: int = 3) -> tuple[float, float]:
    """Improved precision (the share of fake features in the real manifold) and recall (the share of real ones
    in the fake manifold), from 0 to 1, high is good.

    real [N, D], fake [M, D]: of any float type; computed on the device of `real`. The paper takes 50,000 of
    each; both values depend on the numbers, so compare only equal ones. k: 3 in the paper. Three products:
    N N, M M, N M. Source: Kynkaanniemi et al., arXiv 1904.06991, section 2, equation 1.

    Raises `InputError` for other shapes, numbers that are not finite, or a k that is not from 1 to one less
    than the smaller set has.
    """
    real, fake = _sets(real, fake)
    real_reach, fake_reach = _reach(real, k, "real"), _reach(fake, k, "fake")
    precise = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for block in _blocks(fake, real):
        precise[block.rows] |= block.within(real_reach[None, block.columns]).any(1)
        recalled[block.columns] |= block.within(fake_reach[block.rows, None]).any(0)
    return _share(precise), _share(recalled)


@torch.no_grad()
def density_coverage(real: torch.Tensor, fake: torch.Tensor, *, k: int = 5) -> tuple[float, float]:
    """Density (in how many of the real balls a fake feature lies, divided by k, on average; it may exceed 1)
    and coverage (the share of real balls with a fake feature in them, from 0 to 1). High is good; outliers
    among the real features, which raise precision, do little here.

    real [N, D], fake [M, D]: of any float type; computed on the device of `real`. k: 5 in the paper. Two
    products: N N, N M. The paper's code takes balls without their surface, which matters only for features at
    the very same distance, such as copies. Source: Naeem et al., arXiv 2002.09797, section 3.2.

    Raises `InputError` for other shapes, numbers that are not finite, or k not from 1 to N - 1.
    """
    real, fake = _sets(real, fake)
    reach = _reach(real, k, "real")
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    pairs = 0
    for block in _blocks(fake, real):
        within = block.within(reach[None, block.columns])
        pairs += int(within.sum())
        covered[block.columns] |= within.any(0)
    return pairs / (k * len(fake)), _share(covered)


@torch.no_grad()
def nearest(real: torch.Tensor, fake: torch.Tensor, *, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k real features nearest to each fake one, to see whether a model repeats what it was trained on.

    real [N, D], fake [M, D]: of any float type; computed on the device of `real`. Returns their rows in
    `real`, int64 [M, k], and their distances, float64 [M, k], ascending, both on the CPU. Equally distant
    ones come in the order of their rows; where more than 8 compete for the last places, any of them get in.
    One product: N M.

    Raises `InputError` for other shapes, numbers that are not finite, or k not from 1 to N.
    """
    real, fake = _sets(real, fake)
    if not 1 <= k <= len(real):
        raise InputError(f"k is {k} of {len(real)} real features; allowed: from 1 to {len(real)}")
    indices, squared = _nearest(fake, real, k)
    return indices.cpu(), squared.sqrt().cpu()


@dataclass(frozen=True)
class _Block:
    """Squared distances [b, c] of some rows of one set to some of another, rounded by up to `slack`.

    rows, columns: where they are in their sets. a [b, D], b [c, D]: the features, float64.
    """

    rows: slice
    columns: slice
    a: torch.Tensor
    b: torch.Tensor
    squared: torch.Tensor
    slack: float

    def within(self, reach: torch.Tensor) -> torch.Tensor:
        """Which squared distances are at most `reach` ([1, c] or [b, 1]), as if none were rounded: bool
        [b, c]."""
        excess = self.squared - reach
        inside = excess <= 0
        unsure = (excess.abs_() <= self.slack).nonzero()
        reach = reach.expand(inside.shape)
        for pairs in unsure.split(BLOCK):
            i, j = pairs.unbind(1)
            inside[i, j] = _squared(self.a[i], self.b[j]) <= reach[i, j]
        return inside


def _blocks(a: torch.Tensor, b: torch.Tensor, row: int | None = None) -> Iterator[_Block]:
    """All distances of features a [., D] to b [., D], block by block, a's slowest. row: of a's blocks only
    the one that begins there."""
    origin = to_float64(b[:BLOCK]).mean(0)  # a mean far from 0 would take digits from the products
    for i in range(0, len(a), BLOCK) if row is None else (row,):
        some = to_float64(a[i : i + BLOCK])
        left = some - origin
        for j in range(0, len(b), BLOCK):
            others = to_float64(b[j : j + BLOCK])
            right = others - origin
            lengths = left.square().sum(1)[:, None], right.square().sum(1)[None]
            squared = torch.addmm(lengths[0] + lengths[1], left, right.T, alpha=-2)
            # twice the bound of what D products and their sums round, each by 2^-53 of at most `largest`
            largest = (lengths[0].max() + lengths[1].max()).item()
            slack = 4 * (a.shape[1] + 6) * torch.finfo(torch.float64).eps * largest
            yield _Block(slice(i, i + len(some)), slice(j, j + len(others)), some, others, squared, slack)


def _nearest(
    a: torch.Tensor, among: torch.Tensor, k: int, apart: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the k features of `among` nearest to each of a, and squared distances, ascending: [., k] each.

    apart: a and `among` are one set, in which no feature is its own neighbour.
    """
    wanted = min(k + SPARE, len(among) - apart)
    indices, distances = [], []
    for start in range(0, len(a), BLOCK):
        best = places = None
        for block in _blocks(a, among, start):
            if apart and block.columns.start == start:
                block.squared.fill_diagonal_(torch.inf)
            place = torch.arange(block.columns.start, block.columns.stop, device=block.squared.device)
            place = place.expand(block.squared.shape)
            found = block.squared
            if best is not None:
                found, place = torch.cat([best, found], 1), torch.cat([places, place], 1)
            best, order = found.topk(min(wanted, found.shape[1]), largest=False)
            places = place.gather(1, order)
        exact = torch.stack([_squared(block.a, to_float64(among[column])) for column in places.T], dim=1)
        places, order = places.sort(dim=1)
        exact, order = exact.gather(1, order).sort(dim=1, stable=True)
        indices.append(places.gather(1, order)[:, :k])
        distances.append(exact[:, :k])
    return torch.cat(indices), torch.cat(distances)


def _reach(features: torch.Tensor, k: int, name: str) -> torch.Tensor:
    """Squared distance of each feature to its k-th nearest neighbour: float64 [N]."""
    if not 1 <= k < len(features):
        raise InputError(
            f"k is {k} of {len(features)} {name} features; allowed: from 1 to {len(features) - 1}, one less "
            f"than there are; use more pictures"
        )
    return _nearest(features, features, k, apart=True)[1][:, -1].contiguous()


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of rows a, b [n, D], float64: |a - b|^2 [n], each from its own row alone."""
    return (a - b).square_().sum(1)


def _share(chosen: torch.Tensor) -> float:
    return int(chosen.sum()) / len(chosen)


def _sets(real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    real = check_features(real, "real features")
    fake = check_features(fake, "fake features", real.shape[1])
    device = "cpu" if real.device.type == "mps" else real.device
    return real.to(device), fake.to(device)

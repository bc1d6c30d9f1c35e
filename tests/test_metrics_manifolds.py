"""Precision, recall, density, coverage and neighbours: on manifolds made by hand, and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_features import normal

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import density_coverage, nearest, precision_recall


def points(*numbers: float) -> torch.Tensor:
    """On a line: [., 1]."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def naive(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """All four, by loops over pairs."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).sum())

    def reach(features: np.ndarray) -> list[float]:
        own = range(len(features))
        return [sorted(distance(features[i], features[j]) for j in own if j != i)[k - 1] for i in own]

    real_reach, fake_reach = reach(real), reach(fake)
    inside = np.array([[distance(y, x) <= r for x, r in zip(real, real_reach, strict=True)] for y in fake])
    among = np.array([[distance(x, y) <= r for y, r in zip(fake, fake_reach, strict=True)] for x in real])
    density = inside.sum() / (k * len(fake))
    return inside.any(1).mean(), among.any(1).mean(), density, inside.any(0).mean()


def measured(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    return (*precision_recall(real, fake, k=k), *density_coverage(real, fake, k=k))


def test_on_a_line():
    """Real at 0, 1, 2, 3 and 10; with k = 1 the balls reach 1, 1, 1, 1 and 7. Fake at 0.5 (balls of 0 and 1),
    3.5 (3 and 10), 12 (10), -1 (on the surface of 0's), -2 (none); these reach 1.5, 3, 8.5, 1 and 1."""
    real, fake = points(0, 1, 2, 3, 10), points(0.5, 3.5, 12, -1, -2)
    precision, recall, density, coverage = measured(real, fake, k=1)
    assert precision == 4 / 5
    assert recall == 1  # 10 is in the ball of 12, the others in those of 0.5 and 3.5
    assert density == 6 / 5
    assert coverage == 4 / 5  # nobody is near 2: 3.5 is 1.5 away


def test_two_clusters_of_which_one_is_missed():
    """A generator with one mode: all it draws is right, and half of what there is, is missing."""
    real = torch.cat([normal(60, 5, seed=1), normal(60, 5, seed=2) + 100])
    fake = 0.3 * normal(120, 5, seed=3)
    precision, recall, density, coverage = measured(real, fake, k=3)
    assert precision == 1 and recall < 0.1 and density > 1 and coverage <= 0.5
    precision, recall, density, coverage = measured(fake, real, k=3)
    assert precision < 0.1 and recall == 1 and density < 0.05


@pytest.mark.parametrize("k", [1, 3, 5])
def test_apart_and_alike(k):
    """Sets far from each other share nothing. Of a copy all is shared, and each ball holds its centre and the
    k neighbours it reaches to: a density of (k + 1) / k."""
    real = normal(70, 20)
    assert measured(real, real + 1000, k) == (0, 0, 0, 0)
    assert measured(real, real.clone(), k) == (1, 1, (k + 1) / k, 1)
    # random features have no equal distances, and in float32 not either
    assert measured(real.float(), real.flip(0).float(), k) == (1, 1, (k + 1) / k, 1)


def test_copies_of_one_feature():
    """Balls without extent hold copies, and nothing else. 0.1 and 0.3 are rounded, and so are products."""
    one = torch.tensor([[0.1, 0.3, 1e3 / 3]], dtype=torch.float64)
    real = one.repeat(9, 1)
    assert measured(real, real[:7], k=3) == (1, 1, 3, 1)
    assert measured(real, real[:7] + 1e-10, k=3) == (0, 0, 0, 0)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_whole_numbers_far_from_zero(shift):
    """On a grid nearly all distances are equal to others, so every ball's surface is crowded."""
    chance = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(4, (size, 3), generator=chance).double() for size in (60, 50))
    got = measured(real + shift, fake + shift, k=3)
    assert got == pytest.approx(naive(real.numpy(), fake.numpy(), k=3), abs=1e-15)
    assert all(0 < value < 3 for value in got)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_agrees_with_loops(dtype, k):
    real, fake = normal(50, 6, seed=1).to(dtype), (0.9 * normal(40, 6, seed=2) + 0.4).to(dtype)
    right = naive(real.double().numpy(), fake.double().numpy(), k)
    assert measured(real, fake, k) == pytest.approx(right, abs=1e-15)
    assert 0.1 < right[0] < 1 and 0.1 < right[1] < 1


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_matter(monkeypatch, block):
    """To the bit, also where features repeat and lie on surfaces."""
    real = torch.cat([normal(40, 6, seed=1), normal(40, 6, seed=1)[:20]]).float()
    fake = torch.cat([0.9 * normal(30, 6, seed=2).float(), real[5:25]])
    right, near = measured(real, fake, k=2), nearest(real, fake, k=4)
    monkeypatch.setattr("stylenat_hub.metrics.manifolds.BLOCK", block)
    assert measured(real, fake, k=2) == right
    assert all(torch.equal(a, b) for a, b in zip(nearest(real, fake, k=4), near, strict=True))


def test_order_does_not_matter():
    real, fake = normal(50, 6, seed=1), normal(45, 6, seed=2)
    assert measured(real.flip(0), fake.flip(0), k=3) == measured(real, fake, k=3)


def test_nearest_neighbours():
    real, fake = normal(60, 8, seed=1).float(), normal(9, 8, seed=2).float()
    fake[4] = real[17]
    indices, distances = nearest(real, fake, k=5)
    right = (fake.double()[:, None] - real.double()[None]).square().sum(2).sqrt()
    order = right.argsort(1)[:, :5]
    assert torch.equal(indices, order)
    assert (distances - right.gather(1, order)).abs().max() < 1e-14
    assert indices[4, 0] == 17 and distances[4, 0] == 0
    everyone, _ = nearest(real, fake, k=60)
    assert torch.equal(everyone.sort(1).values, torch.arange(60).expand(9, 60))


def test_equally_near_ones_come_in_order():
    indices, distances = nearest(points(2, 0, 2, 1, 0), points(1), k=5)
    assert indices.tolist() == [[3, 0, 1, 2, 4]] and distances.tolist() == [[0, 1, 1, 1, 1]]


def test_what_rounding_swaps_is_put_right():
    """Far from the origin of the products their rounding is larger than the gaps between neighbours."""
    real = torch.cat([points(-1e9), 1e-3 * points(*range(5, 0, -1)), points(1e9)])
    indices, distances = nearest(real, points(0), k=5)
    assert indices.tolist() == [[5, 4, 3, 2, 1]]
    assert distances[0].tolist() == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.005], rel=1e-12)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_bad_k(k):
    real, fake = normal(6, 2), normal(9, 2)
    with pytest.raises(InputError, match=rf"k is {k} of 6 real features; allowed: from 1 to 5"):
        precision_recall(real, fake, k=k)
    with pytest.raises(InputError, match=rf"k is {k} of 6 real features; allowed: from 1 to 5"):
        density_coverage(real, fake, k=k)
    with pytest.raises(InputError, match=r"k is \d of 6 fake features"):
        precision_recall(fake, real, k=6)
    with pytest.raises(InputError, match="k is 7 of 6 real features; allowed: from 1 to 6"):
        nearest(real, fake, k=7)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage, lambda a, b: nearest(a, b, k=1)])
def test_bad_features(metric):
    good = normal(9, 2)
    for bad, says in (
        (normal(9, 3), r"fake features are \[9, 3\] of torch.float64; allowed: \[B, 2\]"),
        (normal(9), r"fake features are \[9\]"),
        (good * math.nan, "fake features are not all finite"),
        (good.long(), "torch.int64"),
    ):
        with pytest.raises(InputError, match=says):
            metric(good, bad)
    with pytest.raises(InputError, match="real features are not all finite"):
        metric(good * math.inf, good)

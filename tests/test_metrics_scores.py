"""Inception Score and KID: known answers, other formulas, the original's; what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hit_recordings import recorded
from known_features import Given, normal

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import InceptionScore, kernel_distance

# Inception Score


def scored(logits: torch.Tensor, splits: int, batch: int) -> InceptionScore:
    result = InceptionScore(len(logits), splits)
    for start in range(0, len(logits), batch):
        result.update(logits[start : start + batch], start)
    return result


def naive_score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    """By loops, and by another form: the mean of KL(p(y|x) || p(y))."""
    scores = []
    for split in range(splits):
        first, last = (part * len(logits) // splits for part in (split, split + 1))
        p = np.exp(logits[first:last].double().numpy())
        p /= p.sum(1, keepdims=True)
        marginal = p.mean(0)
        scores.append(math.exp(np.mean([sum(row * np.log(row / marginal)) for row in p])))
    return float(np.mean(scores)), float(np.std(scores))


def test_inception_score_of_the_original():
    """Consecutive splits, deviation divided by their number; its probabilities are float32."""
    golden = recorded("eval")
    mean, deviation = scored(golden["is.logits"], 3, batch=60).result()
    right = golden["is.mean_std_3splits"].tolist()
    assert [mean, deviation] == pytest.approx(right, abs=1e-6)
    assert (mean, deviation) == pytest.approx(naive_score(golden["is.logits"], 3), abs=1e-12)


def test_inception_score_of_known_distributions():
    """As many classes as are used equally and surely; 1 if all pictures are alike."""
    sure = 1000.0 * torch.eye(8)[torch.arange(80) % 8]  # so sure that most probabilities are 0
    assert scored(sure, 2, 30).result() == pytest.approx((8, 0), abs=1e-12)
    assert scored(sure[:, :4].repeat(1, 2), 1, 30).result()[0] == pytest.approx(naive_pairs(), abs=1e-12)
    assert scored(normal(1, 8).expand(40, 8), 4, 7).result() == pytest.approx((1, 0), abs=1e-12)


def naive_pairs() -> float:
    """Half of the pictures are half one class and half another, of four such pairs; half are of all eight."""
    certain = 0.5 * math.log(0.5) + 0.5 * math.log(1 / 8)
    return math.exp(certain + math.log(8))


@pytest.mark.parametrize(("count", "splits"), [(60, 3), (61, 3), (59, 10), (10, 10), (11, 1)])
def test_inception_score_does_not_depend_on_batches(count, splits):
    """Also where the splits are not of one size."""
    logits = 3 * normal(count, 7)
    right = naive_score(logits, splits)
    for batch in (1, 4, 13, 1000):
        assert scored(logits, splits, batch).result() == pytest.approx(right, rel=1e-12, abs=1e-12)


def test_inception_score_merges():
    """Parts in any order, one of which has seen nothing; each is as it was."""
    logits = 3 * normal(61, 7)
    right = scored(logits, 4, 61).result()
    parts = [InceptionScore(61, 4) for _ in range(4)]
    for number, start in enumerate(range(0, 61, 5)):
        parts[number % 3].update(logits[start : start + 5], start)
    for order in (parts, parts[::-1]):
        merged = InceptionScore(61, 4)
        for part in order:
            merged.merge(InceptionScore.from_state(part.state()))
        assert merged.result() == pytest.approx(right, rel=1e-12)
    with pytest.raises(InputError, match="both have seen"):
        merged.merge(parts[1])
    assert merged.result() == pytest.approx(right, rel=1e-12)
    with pytest.raises(InputError, match=r"of 61 samples are missing, the first is number 0"):
        parts[1].result()


def test_inception_score_agrees_with_torchmetrics():
    """It draws the order of the samples and divides the variance by splits - 1: with one split the first does
    not matter, and the second is not a number."""
    inception = pytest.importorskip("torchmetrics.image.inception")
    logits = 2 * normal(90, 12)
    metric = inception.InceptionScore(feature=Given(12), splits=1)
    metric.update(logits[:, :, None, None])
    assert scored(logits, 1, 90).result()[0] == pytest.approx(metric.compute()[0].item(), rel=1e-6)


# KID


def naive_kernel_distance(x: np.ndarray, y: np.ndarray, degree: int = 3) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** degree

    n, m = len(x), len(y)
    same = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(60, 12, seed=1).float(), normal(60, 12, seed=2).float() + 0.5
    metric = kid.KernelInceptionDistance(feature=Given(12), subsets=2, subset_size=60)
    metric.update(x[:, :, None, None], real=True)
    metric.update(y[:, :, None, None], real=False)
    mean, _ = kernel_distance(x, y, subsets=2, subset_size=60)  # all features: the draws do not matter
    assert mean == pytest.approx(metric.compute()[0].item(), rel=1e-4)  # it computes in float32


@pytest.mark.parametrize("degree", [1, 3])
def test_kernel_distance_of_whole_sets(degree):
    x, y = normal(30, 5, seed=1), normal(30, 5, seed=2) + 0.3
    mean, deviation = kernel_distance(x, y, subsets=4, subset_size=30, degree=degree)
    assert mean == pytest.approx(naive_kernel_distance(x.numpy(), y.numpy(), degree), rel=1e-10)
    assert deviation < 1e-12  # each subset is the set, in another order


def test_kernel_distance_of_points_known_by_heart():
    """Sets of one number each: x.x = 4, y.y = 9, x.y = 6, over D = 1: 5^3 + 10^3 - 2 * 7^3."""
    x, y = torch.full((4, 1), 2.0), torch.full((3, 1), 3.0)
    assert kernel_distance(x, y, subsets=2, subset_size=3) == (125 + 1000 - 2 * 343, 0)


def test_subsets_have_the_mean_of_whole_sets():
    """The estimate is unbiased for any size of subsets, so their mean is that of the sets."""
    x, y = normal(40, 5, seed=1), normal(50, 5, seed=2) + 0.2
    mean, deviation = kernel_distance(x, y, subsets=4000, subset_size=10)
    right = naive_kernel_distance(x.numpy(), y.numpy())
    assert abs(mean - right) < 4 * deviation / math.sqrt(4000)
    assert deviation > abs(right) / 10  # or the line above would say nothing


def test_kernel_distance_is_unbiased():
    """Over fresh samples of one distribution its mean is 0 within its own standard error; of shifted ones it
    is not."""
    errors = {}
    for shift in (0.0, 0.3):
        values = [
            kernel_distance(
                normal(40, 8, seed=2 * seed),
                normal(40, 8, seed=2 * seed + 1) + shift,
                subsets=4,
                subset_size=20,
                seed=seed,
            )[0]
            for seed in range(150)
        ]
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        errors[shift] = np.mean(values) / error
        assert error < 0.03  # the biased estimate, with the diagonal, is 0.8 off
    assert abs(errors[0.0]) < 3 and errors[0.3] > 10


def test_kernel_distance_by_seed():
    x, y = normal(60, 5, seed=1), normal(50, 5, seed=2)
    values = [kernel_distance(x, y, subsets=3, subset_size=20, seed=seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    halved = kernel_distance(x.half(), y.half(), subsets=3, subset_size=20)
    assert halved == kernel_distance(x.half().double(), y.half().double(), subsets=3, subset_size=20)


# What they refuse


def test_bad_scores():
    with pytest.raises(InputError, match="count is 4 and splits is 5"):
        InceptionScore(4, 5)
    with pytest.raises(InputError, match="splits is 0"):
        InceptionScore(4, 0)
    one = scored(normal(6, 3), 2, 6)
    before = one.result()
    for logits, start, says in (
        (normal(1, 3), 5, "5 to 5 some were added before"),
        (normal(2, 3), 5, "5 to 6; allowed: 0 to 5"),
        (normal(1, 3), -1, "-1 to -1"),
        (normal(1, 4), 0, r"allowed: \[B, 3\]"),
        (torch.full((1, 3), torch.nan), 0, "not all finite"),
    ):
        with pytest.raises(InputError, match=says):
            one.update(logits, start)
    assert one.result() == before
    with pytest.raises(InputError, match=r"are \(6, 2, 3\) and \(6, 3, 3\)"):
        one.merge(InceptionScore(6, 3))
    state = one.state()
    with pytest.raises(InputError, match="the state has"):
        InceptionScore.from_state({"seen": state["seen"]})
    with pytest.raises(InputError, match=r"sums and certainty are \[6\], \[2, 3\] and \[3\]"):
        InceptionScore.from_state({**state, "certainty": torch.zeros(3, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "subset_size is 1000 of 5 real and 4 fake"),
        ({"subset_size": 5}, "subset_size is 5"),
        ({"subset_size": 1}, "subset_size is 1"),
        ({"subset_size": 3, "subsets": 0}, "subsets is 0"),
        ({"subset_size": 3, "degree": 0}, "degree 0"),
    ],
)
def test_bad_subsets(options, says):
    with pytest.raises(InputError, match=says):
        kernel_distance(normal(5, 2), normal(4, 2), **options)
    with pytest.raises(InputError, match="fake features are"):
        kernel_distance(normal(5, 2), normal(5, 3), subset_size=3)

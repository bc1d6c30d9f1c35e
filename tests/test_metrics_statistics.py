"""FID and the statistics under it: known answers, other formulas, the original's; what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hit_recordings import recorded
from known_features import Given, normal, rotation

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import FeatureStatistics, frechet_distance

DIM = 12


def gathered(features: torch.Tensor, batch: int = 10_000) -> FeatureStatistics:
    result = FeatureStatistics(features.shape[1])
    for some in features.split(batch):
        result.update(some)
    return result


def sample(count: int, mean: torch.Tensor, root: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """[count, D] whose own mean is `mean` and whose own unbiased covariance is root root^T, exactly."""
    x = normal(count, root.shape[1], seed=seed)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(count - 1)  # orthonormal columns, each with mean 0
    return mean + x @ root.T


def closeness(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# Statistics


def test_mean_and_covariance():
    features = normal(500, DIM, seed=1) @ normal(DIM, DIM, seed=2) + 3
    one = gathered(features, batch=7)
    assert one.count == 500
    assert closeness(one.mean, features.mean(0)) < 1e-14
    assert closeness(one.covariance, torch.from_numpy(np.cov(features.numpy().T))) < 1e-13
    assert torch.equal(one.covariance, one.covariance.T)


@pytest.mark.parametrize("batch", [1, 3, 64, 2000])
def test_batches_do_not_matter(batch):
    """Up to the rounding of float64; the number of features is exact."""
    features = normal(2000, DIM, seed=1).float() * 5 + 20
    other = normal(900, DIM, seed=2).float() + 19
    whole, parts = gathered(features), gathered(features, batch)
    assert parts.count == whole.count == 2000
    assert closeness(parts.covariance, whole.covariance) < 1e-12
    right = frechet_distance(whole, gathered(other))
    assert frechet_distance(parts, gathered(other, batch)) == pytest.approx(right, rel=1e-10)


@pytest.mark.parametrize("cuts", [(1000,), (0, 1, 2, 1500), (500, 1000, 1500), (7, 2000)])
def test_merging_is_gathering(cuts):
    """Any partition, also with empty parts and in any order."""
    features = normal(2000, DIM, seed=1) + 100
    parts = [gathered(some) if len(some) else FeatureStatistics(DIM) for some in features.tensor_split(cuts)]
    states = [part.state() for part in parts]
    right = gathered(features)
    for order in (parts, parts[::-1]):
        merged = FeatureStatistics(DIM)
        for part in order:
            merged.merge(part)
        assert merged.count == 2000
        assert closeness(merged.mean, right.mean) < 1e-14
        assert closeness(merged.covariance, right.covariance) < 1e-12
        target = torch.zeros(DIM), torch.eye(DIM)
        assert frechet_distance(merged, target) == pytest.approx(frechet_distance(right, target), rel=1e-12)
    for part, state in zip(parts, states, strict=True):  # what is merged is not changed
        assert all(torch.equal(a, state[name]) for name, a in part.state().items())


def test_a_large_mean_costs_no_digits():
    """The textbook sum of squares less the square of the sum would leave nothing at 1e9."""
    features = normal(1000, DIM, seed=1)
    shifted = gathered(features + 1e9, batch=10)
    # the features themselves are rounded by 1e9 * 2^-53 = 1e-7 each
    assert closeness(shifted.covariance, gathered(features).covariance) < 1e-6
    shift = frechet_distance(shifted, gathered(features + 1e9 + 2))
    assert shift == pytest.approx(4 * DIM, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float_types(dtype):
    """Each is taken as the numbers it holds; gradients are not followed."""
    features = normal(100, DIM).to(dtype)
    one, right = gathered(features.requires_grad_(), 30), gathered(features.detach().double(), 30)
    assert all(torch.equal(a, b) for a, b in zip(one.state().values(), right.state().values(), strict=True))


def test_large_updates_are_cut(monkeypatch):
    features = normal(100, DIM)
    right = gathered(features).covariance
    monkeypatch.setattr("stylenat_hub.metrics.statistics.BLOCK", 7)
    assert closeness(gathered(features).covariance, right) < 1e-13


def test_state_of_statistics():
    one = gathered(normal(50, DIM))
    again = FeatureStatistics.from_state(one.state())
    assert again.count == 50 and torch.equal(again.mean, one.mean)
    assert torch.equal(again.covariance, one.covariance)
    again.update(normal(5, DIM))  # shares no memory
    assert one.count == 50 and not torch.equal(again.mean, one.mean)
    state = one.state()
    again = FeatureStatistics.from_state(state)
    state["scatter"].zero_(), state["mean"].zero_()
    assert one.covariance.any() and torch.equal(again.covariance, one.covariance)
    assert torch.equal(again.mean, one.mean)


# The Frechet distance


@pytest.mark.parametrize("size", [1, 2, DIM])
def test_frechet_distance_of_known_gaussians(size):
    """Covariances of the same axes: the sum of (sqrt a - sqrt b)^2, and the squared distance of the means."""
    turn = rotation(size)
    a, b = (0.1 + 3 * normal(size, seed=seed).abs() for seed in (1, 2))
    means = normal(2, size, seed=3)
    moments = [(mean, turn @ torch.diag(x) @ turn.T) for mean, x in zip(means, (a, b), strict=True)]
    right = ((a.sqrt() - b.sqrt()) ** 2).sum() + ((means[0] - means[1]) ** 2).sum()
    assert frechet_distance(*moments) == pytest.approx(right.item(), abs=1e-12)
    roots = [turn @ torch.diag(x.sqrt()) for x in (a, b)]
    sets = [gathered(sample(80, *of, seed=5)) for of in zip(means, roots, strict=True)]
    assert frechet_distance(*sets) == pytest.approx(right.item(), abs=1e-11)
    assert frechet_distance(sets[1], moments[0]) == pytest.approx(right.item(), abs=1e-11)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """In two dimensions the trace of the root is sqrt(tr AB + 2 sqrt(det AB)), by Cayley and Hamilton."""
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, -0.3], [-0.3, 4.0]], dtype=torch.float64)
    root = math.sqrt((a @ b).trace() + 2 * math.sqrt(torch.linalg.det(a @ b)))
    mean = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0])
    right = 9 + (a.trace() + b.trace()).item() - 2 * root
    assert frechet_distance((mean[0], a), (mean[1], b)) == pytest.approx(right, abs=1e-12)
    roots = [torch.linalg.cholesky(x) for x in (a, b)]
    sets = [gathered(sample(50, m, root, seed=4)) for m, root in zip(mean, roots, strict=True)]
    assert frechet_distance(*sets) == pytest.approx(right, abs=1e-11)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(0, 40), (7, 40), (7, 9), (40, 1), (0, 0)])
def test_frechet_distance_of_singular_covariances(rank_a, rank_b):
    """Of the same axes, of which some have no variance at all. With the rounding of those eigenvalues (1e-16)
    under a root (1e-8) the answer would be wrong by 1e-7 and more, and by more yet with an epsilon added."""
    turn = rotation(40)
    a, b = (torch.linspace(1, 3, 40, dtype=torch.float64).roll(shift) for shift in (0, 11))
    a[rank_a:], b[rank_b:] = 0, 0
    mean = torch.zeros(40)
    moments = [(mean, turn @ torch.diag(x) @ turn.T) for x in (a, b)]
    right = ((a.sqrt() - b.sqrt()) ** 2).sum().item()
    assert frechet_distance(*moments) == pytest.approx(right, abs=1e-11)
    sets = [gathered(sample(100, mean, turn @ torch.diag(x.sqrt()))) for x in (a, b)]
    assert frechet_distance(*sets) == pytest.approx(right, abs=1e-10)


def test_frechet_distance_of_fewer_features_than_dimensions():
    """Two orthogonal subspaces share nothing: all of both traces is left. And a set is at 0 from itself."""
    turn = rotation(60)
    a = normal(20, 30, seed=1) @ turn[:, :30].T
    b = normal(15, 30, seed=2) @ turn[:, 30:].T
    a, b = a - a.mean(0), b - b.mean(0)
    right = (a.square().sum() / 19 + b.square().sum() / 14).item()
    assert frechet_distance(gathered(a), gathered(b)) == pytest.approx(right, abs=1e-12)
    assert 0 <= frechet_distance(gathered(a), gathered(a, 3)) < 1e-12


def test_frechet_distance_over_many_scales():
    """Variances from 1 to 1e-12, as features of a network have, beside the same at another scale."""
    variances = torch.logspace(0, -12, 30, dtype=torch.float64)
    turn = rotation(30)
    moments = [(torch.zeros(30), turn @ torch.diag(x) @ turn.T) for x in (variances, 4 * variances)]
    assert frechet_distance(*moments) == pytest.approx(variances.sum().item(), abs=1e-9)
    assert frechet_distance(moments[1], moments[0]) == pytest.approx(variances.sum().item(), abs=1e-9)


def eigenvalue_formula(a: np.ndarray, b: np.ndarray) -> float:
    """pytorch-fid's, with the trace of sqrtm(AB) as the sum of the roots of AB's eigenvalues."""
    first, second = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * roots


def test_frechet_distance_by_other_formulas():
    a, b = normal(300, DIM, seed=1) @ normal(DIM, DIM, seed=2), normal(200, DIM, seed=3) + 0.5
    value = frechet_distance(gathered(a), gathered(b))
    assert value == pytest.approx(eigenvalue_formula(a.numpy(), b.numpy()), rel=1e-10)
    linalg = pytest.importorskip("scipy.linalg")
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = np.trace(linalg.sqrtm(first @ second).real)
    right = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first) + np.trace(second) - 2 * root
    assert value == pytest.approx(right, rel=1e-9)


def test_frechet_distance_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    metric = fid.FrechetInceptionDistance(feature=Given(DIM), input_img_size=(DIM, 1, 1))
    a, b = normal(300, DIM, seed=1) @ normal(DIM, DIM, seed=2), normal(200, DIM, seed=3) + 0.5
    for features, real in ((a, True), (b, False)):
        metric.update(features.float()[:, :, None, None], real=real)
    value = frechet_distance(gathered(a.float()), gathered(b.float()))
    assert value == pytest.approx(metric.compute().item(), rel=1e-6)  # its result is float32


def test_frechet_distance_of_the_original():
    """HiT's own formula has the unbiased covariance too. It computes in float32, by singular values, which
    moves its result by 3.3e-5 from float64; the biased covariance would by 5e-3."""
    golden = recorded("eval")
    value = frechet_distance(gathered(golden["fid.features_real"]), gathered(golden["fid.features_fake"]))
    assert value == pytest.approx(golden["fid.value"].item(), rel=5e-5)
    a, b = (golden[f"fid.features_{name}"].double().numpy() for name in ("real", "fake"))
    assert value == pytest.approx(eigenvalue_formula(a, b), rel=1e-10)


# What they refuse


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (torch.zeros(2, 3), r"features are \[2, 3\] of torch.float32; allowed: \[B, 12\]"),
        (torch.zeros(DIM), r"features are \[12\]"),
        (torch.zeros(0, DIM), r"features are \[0, 12\]"),
        (torch.zeros(2, DIM, dtype=torch.uint8), "torch.uint8"),
        (torch.full((2, DIM), torch.nan), "not all finite"),
        (torch.full((2, DIM), torch.inf), "not all finite"),
    ],
)
def test_bad_features_change_nothing(features, says):
    one = gathered(normal(5, DIM))
    before = one.state()
    with pytest.raises(InputError, match=says):
        one.update(features)
    assert all(torch.equal(a, before[name]) for name, a in one.state().items())


def test_too_few_features():
    with pytest.raises(InputError, match="dim is 0"):
        FeatureStatistics(0)
    with pytest.raises(InputError, match="a mean needs 1 or more features and 0"):
        _ = FeatureStatistics(3).mean
    one = gathered(normal(1, 3))
    assert torch.equal(one.mean, normal(1, 3)[0])
    with pytest.raises(InputError, match="a covariance needs 2 or more features and 1"):
        frechet_distance(one, one)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": torch.tensor(-1)}, "count is -1"),
        ({"count": torch.tensor(2.0)}, "count is 2.0"),
        ({"mean": torch.zeros(3, dtype=torch.float64)}, r"mean and scatter are \[3\] and \[2, 2\]"),
        ({"mean": torch.zeros(2)}, "torch.float32"),
        ({"mean": torch.tensor([0.0, torch.nan]).double()}, "not finite"),
        ({"scatter": torch.tensor([[1.0, 2], [0, 1]]).double()}, "not symmetric"),
        ({"scatter": torch.tensor([[1.0, 0], [0, -1]]).double()}, "variances below 0"),
        ({"more": torch.zeros(1)}, r"the state has \['count', 'mean', 'more', 'scatter'\]"),
    ],
)
def test_bad_states(change, says):
    with pytest.raises(InputError, match=says):
        FeatureStatistics.from_state({**gathered(normal(4, 2)).state(), **change})


@pytest.mark.parametrize(
    ("mean", "covariance", "says"),
    [
        (torch.zeros(3), torch.eye(3), "of 2 and 3 features"),
        (torch.zeros(2), torch.eye(3), r"mean and covariance are \[2\] and \[3, 3\]"),
        (torch.full((2,), torch.nan), torch.eye(2), "mean is not finite"),
        (torch.zeros(2), torch.full((2, 2), torch.inf), "covariance is not finite"),
        (torch.zeros(2), torch.tensor([[1.0, 2], [0, 1]]), "not symmetric"),
        (torch.zeros(2), torch.tensor([[1.0, 2], [2, 1]]), "eigenvalue -1 beside the largest, 3"),
        (torch.zeros(2), -torch.eye(2), "eigenvalue -1 beside the largest, 0"),
    ],
)
def test_bad_moments(mean, covariance, says):
    with pytest.raises(InputError, match=says):
        frechet_distance(gathered(normal(4, 2)), (mean, covariance))


def test_statistics_of_different_lengths_do_not_merge():
    with pytest.raises(InputError, match="of 2 and 3 features"):
        gathered(normal(4, 2)).merge(gathered(normal(4, 3)))

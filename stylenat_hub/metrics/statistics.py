"""FID, Inception Score and KID from features and logits, whatever network they come from.

All is computed in float64. Legend: B features of one update, N and M features of two sets, D their length,
K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.checks import (
    BLOCK,
    check_count,
    check_features,
    check_matrix,
    check_names,
    to_float64,
)

NEGATIVE = 1e-5  # of the largest eigenvalue: how far below 0 float32 may push that of a covariance

Moments = tuple[torch.Tensor, torch.Tensor]


class FeatureStatistics:
    """Number, mean and covariance of features, gathered batch by batch, of which none is kept.

    Each batch is reduced to its own mean and its products around that mean, and what is there is merged with
    them, so a mean that is large beside the deviations loses no digits, and neither the size of the batches
    nor the order of merging changes more than the rounding of float64. Source: Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", for matrices.

    dim: D. Raises `InputError` for less than 1.

    Memory: 8 D^2 bytes, so 32 MiB at D = 2048, on the CPU, however many features; an update takes up to
    32,768 D bytes more, 64 MiB at D = 2048.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InputError(f"dim is {dim}; allowed: 1 or more, the length of the extractor's features")
        self.dim = dim
        self.count = 0  # N
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Add features [B, D] of any float type, on any device.

        Raises `InputError`, with nothing added, for another shape or type or numbers that are not finite.
        """
        for rows in check_features(features, "features", self.dim).split(BLOCK):
            rows = rows.to("cpu").double()
            mean = rows.mean(0)
            weight = (len(rows) * self.count / (len(rows) + self.count)) ** 0.5
            # the distance of the two means as one row more: all is one product, added in place
            rows = torch.cat([rows - mean, weight * (mean - self._mean)[None]])
            self._scatter.addmm_(rows.T, rows)
            self._move(mean, len(rows) - 1)

    @torch.no_grad()
    def merge(self, other: FeatureStatistics) -> None:
        """Add all that another has seen; it is not changed.

        Raises `InputError` for another D.
        """
        if other.dim != self.dim:
            raise InputError(
                f"the statistics are of {self.dim} and {other.dim} features; allowed: the same length; "
                f"gather both with one extractor"
            )
        if not other.count:
            return
        step = other._mean - self._mean
        weight = self.count * other.count / (self.count + other.count)
        self._scatter += other._scatter
        self._scatter.addr_(step, step, alpha=weight)
        self._move(other._mean, other.count)

    @property
    def mean(self) -> torch.Tensor:
        """float64 [D]. Raises `InputError` before the first feature."""
        self._need(1, "a mean")
        return self._mean.clone()

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased (divided by N - 1), float64 [D, D], symmetric to the bit. Raises `InputError` before the
        second feature."""
        self._need(2, "a covariance")
        return (self._scatter + self._scatter.T) / (2 * (self.count - 1))

    def state(self) -> dict[str, torch.Tensor]:
        """A copy to save or to send: `count` int64 [], `mean` float64 [D], `scatter` float64 [D, D], the sum
        of (x - mean) (x - mean)^T."""
        count = torch.tensor(self.count)
        return {"count": count, "mean": self._mean.clone(), "scatter": self._scatter.clone()}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> FeatureStatistics:
        """What `state` was taken of, to the bit.

        Raises `InputError` for missing or unexpected names, other shapes or types, or numbers that no
        features have.
        """
        check_names(state, ("count", "mean", "scatter"))
        count, mean, scatter = (state[name].detach().to("cpu") for name in ("count", "mean", "scatter"))
        check_count(count)
        floats = mean.dtype == scatter.dtype == torch.float64
        if not floats or mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise InputError(
                f"mean and scatter are {list(mean.shape)} and {list(scatter.shape)} of {mean.dtype} and "
                f"{scatter.dtype}; allowed: [D] and [D, D] of torch.float64; gather the statistics again"
            )
        check_matrix(scatter, "scatter")
        if not mean.isfinite().all() or scatter.diagonal().min() < 0:
            raise InputError(
                "the statistics have means that are not finite or variances below 0; gather them again"
            )
        result = cls(len(mean))
        result.count, result._mean, result._scatter = int(count), mean.clone(), scatter.clone()
        return result

    def _move(self, mean: torch.Tensor, count: int) -> None:
        self.count += count
        self._mean += (mean - self._mean) * (count / self.count)

    def _need(self, count: int, what: str) -> None:
        if self.count < count:
            raise InputError(f"{what} needs {count} or more features and {self.count} were added; add more")


@torch.no_grad()
def frechet_distance(a: FeatureStatistics | Moments, b: FeatureStatistics | Moments) -> float:
    """How far apart two Gaussians are: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)). With the features of the
    FID network it is the FID.

    a, b: statistics, or mean [D] and covariance [D, D]. The order does not matter.

    The trace of the root is the sum of the singular values of A^(1/2) B^(1/2), which exists for any
    covariances, also singular ones (fewer features than D), so nothing is added to their diagonals.
    Eigenvalues below D * 2.2e-16 of the largest are rounding and count as 0: their roots would not be small.
    What rounding leaves of the distance below 0 is returned as 0. Covariances are the unbiased ones, as in
    pytorch-fid, torchmetrics and the originals of StyleSwin, StyleNAT and HiT; dividing by N instead of N - 1
    changes the value in its third digit at 200 features.

    At D = 2048 it takes seconds on a CPU, and 160 MiB besides its arguments. Sources: Dowson and Landau 1982,
    "The Frechet distance between multivariate normal distributions"; Heusel et al., arXiv 1706.08500.

    Raises `InputError` for other shapes, different D, fewer than two features, numbers that are not finite,
    a matrix that is not symmetric (beyond 1e-6 of its largest entry) or has an eigenvalue below -1e-5 of the
    largest.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = _moments(a), _moments(b)
    if len(mean_a) != len(mean_b):
        raise InputError(
            f"the statistics are of {len(mean_a)} and {len(mean_b)} features; allowed: the same length; use "
            f"one extractor for both"
        )
    shared = torch.linalg.svdvals(_factor(covariance_a) @ _factor(covariance_b).T).sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * shared
    return max(0.0, ((mean_a - mean_b).square().sum() + spread).item())


def _moments(of: FeatureStatistics | Moments) -> Moments:
    if isinstance(of, FeatureStatistics):
        return of.mean, of.covariance
    mean, covariance = (torch.as_tensor(part).detach().to("cpu").double() for part in of)
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise InputError(
            f"mean and covariance are {list(mean.shape)} and {list(covariance.shape)}; allowed: [D] and "
            f"[D, D], as FeatureStatistics has them"
        )
    if not mean.isfinite().all():
        raise InputError("the mean is not finite; allowed: finite numbers; gather the statistics again")
    check_matrix(covariance, "covariance")
    return mean, (covariance + covariance.T) / 2


def _factor(covariance: torch.Tensor) -> torch.Tensor:
    """[D, D] -> F [rank, D] with F^T F = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[-1].clamp_min(0)
    if values[0] < -NEGATIVE * largest:
        raise InputError(
            f"a covariance has the eigenvalue {values[0].item():.4g} beside the largest, "
            f"{largest.item():.4g}; allowed: none below 0 but by rounding; gather the statistics again"
        )
    kept = values > len(values) * torch.finfo(torch.float64).eps * largest
    return (vectors[:, kept] * values[kept].sqrt()).T


class InceptionScore:
    """The Inception Score, gathered batch by batch: how sure a classifier is of each picture, and how many
    classes all pictures have. High is good.

    The samples 0 to count - 1 are cut, in their order, into `splits` equal parts (where that does not come
    out even, part i starts with sample i * count // splits); each part has a score
    exp(mean KL(p(y|x) || p(y))), and the result is their mean and standard deviation. A sample's number
    decides its part, so batches and processes do not matter. Each sample counts once: adding it again is
    refused. Softmax is over all K logits given: the FID network has 1008, others 1000, and the scores differ.

    count: of all samples. splits: 10 in the paper; HiT's evaluation has one for each 5000 samples.

    Memory: count + 8 K splits bytes, and up to 32,768 K more for an update. Source: Salimans et al., arXiv
    1606.03498, section 4.

    Raises `InputError` for less than 1 split, or fewer samples than splits.
    """

    def __init__(self, count: int, splits: int = 10) -> None:
        if splits < 1 or count < splits:
            raise InputError(
                f"count is {count} and splits is {splits}; allowed: 1 split or more, and as many samples or "
                f"more; the paper has 50000 and 10"
            )
        self.count, self.splits = count, splits
        self._seen = torch.zeros(count, dtype=torch.bool)
        self._sums = torch.zeros(splits, 0, dtype=torch.float64)  # of p(y|x), once K is known [splits, K]
        self._certainty = torch.zeros(splits, dtype=torch.float64)  # sum of p log p

    @torch.no_grad()
    def update(self, logits: torch.Tensor, start: int) -> None:
        """Add logits [B, K] of the samples start to start + B - 1.

        Raises `InputError`, with nothing added, for other shapes, numbers that are not finite, samples that
        do not exist, and samples that were added before.
        """
        logits = check_features(logits, "logits", self._sums.shape[1] or None)
        stop = start + len(logits)
        if start < 0 or stop > self.count:
            raise InputError(f"the samples are {start} to {stop - 1}; allowed: 0 to {self.count - 1}")
        if self._seen[start:stop].any():
            raise InputError(f"of the samples {start} to {stop - 1} some were added before; add each once")
        if not self._sums.shape[1]:
            self._sums = self._sums.new_zeros(self.splits, logits.shape[1])
        for split, first, last in self._parts(start, stop):
            for rows in logits[first - start : last - start].split(BLOCK):
                rows = rows.to("cpu").double().log_softmax(1)
                chances = rows.exp()
                self._sums[split] += chances.sum(0)
                self._certainty[split] += chances.mul_(rows).sum()
        self._seen[start:stop] = True

    @torch.no_grad()
    def merge(self, other: InceptionScore) -> None:
        """Add all that another, of the same count and splits, has seen; it is not changed.

        Raises `InputError` for other numbers of samples, splits or classes, and where both have seen a
        sample.
        """
        classes = self._sums.shape[1] or other._sums.shape[1]
        mine = (self.count, self.splits, classes)
        theirs = (other.count, other.splits, other._sums.shape[1] or classes)
        if mine != theirs:
            raise InputError(f"count, splits and classes are {mine} and {theirs}; allowed: equal ones")
        if (self._seen & other._seen).any():
            raise InputError("both have seen some of the samples; give each sample to one of them")
        if not other._sums.shape[1]:
            return
        if not self._sums.shape[1]:
            self._sums = self._sums.new_zeros(self.splits, classes)
        self._sums += other._sums
        self._certainty += other._certainty
        self._seen |= other._seen

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation of the parts' scores. The deviation is divided by `splits`, as in the
        paper's code and HiT's; torchmetrics divides by splits - 1, and draws the order of the samples.

        Raises `InputError` unless every sample was added.
        """
        if not self._seen.all():
            missing = (~self._seen).nonzero()[:, 0]
            raise InputError(
                f"{len(missing)} of {self.count} samples are missing, the first is number "
                f"{missing[0].item()}; add them, or state the true count"
            )
        bounds = torch.tensor([self._first(split) for split in range(self.splits + 1)])
        sizes = bounds.diff().double()
        marginal = self._sums / sizes[:, None]
        divergence = self._certainty / sizes - torch.xlogy(marginal, marginal).sum(1)
        scores = divergence.exp()
        return scores.mean().item(), scores.std(correction=0).item()

    def state(self) -> dict[str, torch.Tensor]:
        """A copy to save or to send: `seen` bool [count], `sums` float64 [splits, K] of the probabilities (K
        is 0 before the first), `certainty` float64 [splits], the sums of p log p."""
        return {
            "seen": self._seen.clone(),
            "sums": self._sums.clone(),
            "certainty": self._certainty.clone(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> InceptionScore:
        """What `state` was taken of, to the bit. Raises `InputError` for missing or unexpected names, and
        other shapes or types."""
        check_names(state, ("seen", "sums", "certainty"))
        seen, sums, certainty = (state[n].detach().to("cpu").clone() for n in ("seen", "sums", "certainty"))
        shapes = (seen.ndim, sums.ndim, list(certainty.shape)) == (1, 2, list(sums.shape[:1]))
        if not shapes or (seen.dtype, sums.dtype, certainty.dtype) != (torch.bool, *[torch.float64] * 2):
            raise InputError(
                f"seen, sums and certainty are {list(seen.shape)}, {list(sums.shape)} and "
                f"{list(certainty.shape)}; allowed: bool [count], float64 [splits, K] and float64 [splits]"
            )
        result = cls(len(seen), len(sums))
        result._seen, result._sums, result._certainty = seen, sums, certainty
        return result

    def _first(self, split: int) -> int:
        return split * self.count // self.splits

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The splits that samples start to stop - 1 touch: (split, first sample, last + 1)."""
        low, high = (((sample + 1) * self.splits - 1) // self.count for sample in (start, stop - 1))
        return [
            (split, max(start, self._first(split)), min(stop, self._first(split + 1)))
            for split in range(low, high + 1)
        ]


@torch.no_grad()
def kernel_distance(
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    seed: int = 0,
) -> tuple[float, float]:
    """KID: the unbiased squared maximum mean discrepancy, with the kernel (x . y / D + 1)^degree. Low is
    good; two samples of one distribution give 0 on average, so single values may be below 0.

    real [N, D], fake [M, D]: of any float type, computed in float64 on the device of `real` (on the CPU if
    that is Apple's, which has no float64). subsets: as many times, `subset_size` features of each set are
    drawn without replacement, by the seed; the result is the mean and the standard deviation (divided by
    `subsets`) of their values, as in torchmetrics and torch-fidelity. The deviation is that of single
    subsets, not of their mean.

    Papers often print 1000 times the value. Memory besides the features: 16 subset_size (D + 2 subset_size)
    bytes, 64 MiB at D = 2048 and 1000. Source: Binkowski et al., arXiv 1801.01401, section 4.

    Raises `InputError` for other shapes, numbers that are not finite, a subset larger than a set or smaller
    than 2, no subset, or a degree below 1.
    """
    real = check_features(real, "real features")
    fake = check_features(fake, "fake features", real.shape[1])
    if not 2 <= subset_size <= min(len(real), len(fake)):
        raise InputError(
            f"subset_size is {subset_size} of {len(real)} real and {len(fake)} fake features; allowed: from "
            f"2 to the smaller of these; use more pictures, or smaller subsets, and say which"
        )
    if subsets < 1 or degree < 1:
        raise InputError(f"subsets is {subsets} and degree {degree}; allowed: 1 or more (as usual: 100, 3)")
    chance = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (
            to_float64(
                features[torch.randperm(len(features), generator=chance)[:subset_size].to(features.device)]
            )
            for features in (real, fake)
        )
        values.append(_discrepancy(x, y.to(x.device), degree))
    result = torch.tensor(values, dtype=torch.float64)
    return result.mean().item(), result.std(correction=0).item()


def _discrepancy(x: torch.Tensor, y: torch.Tensor, degree: int) -> float:
    """Of x, y [m, D]: the mean of k(x, x') and k(y, y') over pairs of different samples, less twice that of
    k(x, y) over all pairs."""
    size = len(x)

    def mean(a: torch.Tensor, b: torch.Tensor, pairs: int) -> torch.Tensor:
        kernel = (a @ b.T).div_(a.shape[1]).add_(1).pow_(degree)
        if a is b:
            kernel.fill_diagonal_(0)
        return kernel.sum() / pairs

    others = size * (size - 1)
    return (mean(x, x, others) + mean(y, y, others) - 2 * mean(x, y, size * size)).item()

"""Metrics by name: what each needs of two sets of pictures, and how it is computed from that.

Legend: B pictures of a batch, N real and M generated pictures, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.features import Extractor
from stylenat_hub.metrics.manifolds import density_coverage, precision_recall
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.statistics import (
    FeatureStatistics,
    InceptionScore,
    frechet_distance,
    kernel_distance,
)

Batches = Iterable[tuple[int, torch.Tensor]]  # number of the first picture, uint8 [B, 3, H, W]
Scores = dict[str, float]
Part = tuple[FeatureStatistics, InceptionScore | None, list[tuple[int, torch.Tensor]]]


@dataclass
class Summary:
    """What is kept of one set of pictures. statistics: of the features. features: float32 [N, D] in the
    order of the pictures, None if nothing needs them. inception: of the logits, None likewise."""

    count: int
    statistics: FeatureStatistics
    features: torch.Tensor | None = None
    inception: InceptionScore | None = None


@dataclass(frozen=True)
class Metric:
    """needs: "features" or "logits" beyond the statistics. real: is it about two sets, or the second alone?
    names: of what it returns. source: the paper, and what is better. pictures: fewest of each set.
    parameters: what else fixes the figure."""

    measure: Callable[[Summary | None, Summary], Scores]
    names: tuple[str, ...]
    title: str
    source: str
    needs: frozenset[str] = field(default_factory=frozenset)
    real: bool = True
    pictures: int = 2
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _fid(real: Summary | None, fake: Summary) -> Scores:
    return {"fid": frechet_distance(real.statistics, fake.statistics)}


def _kid(real: Summary | None, fake: Summary) -> Scores:
    size = min(1000, real.count, fake.count)
    mean, std = kernel_distance(real.features, fake.features, subset_size=size)
    if size == real.count == fake.count:  # all subsets are the whole sets
        return {"kid": mean}
    return {"kid": mean, "kid_std": std}


def _is(real: Summary | None, fake: Summary) -> Scores:
    mean, std = fake.inception.result()
    return {"is": mean, "is_std": std}


def _pr(real: Summary | None, fake: Summary) -> Scores:
    return dict(zip(("precision", "recall"), precision_recall(real.features, fake.features), strict=True))


def _dc(real: Summary | None, fake: Summary) -> Scores:
    return dict(zip(("density", "coverage"), density_coverage(real.features, fake.features), strict=True))


_FEATURES = frozenset({"features"})
METRICS: dict[str, Metric] = {
    "fid": Metric(_fid, ("fid",), "FID", "arXiv 1706.08500; lower is better"),
    "kid": Metric(
        _kid,
        ("kid", "kid_std"),
        "KID",
        "arXiv 1801.01401; lower is better",
        _FEATURES,
        parameters={
            "subsets": 100,
            "subset_size": "1000, or all where a set has fewer",
            "degree": 3,
            "seed": 0,
        },
    ),
    "is": Metric(
        _is,
        ("is", "is_std"),
        "Inception score",
        "arXiv 1606.03498, 10 parts; higher is better",
        frozenset({"logits"}),
        real=False,
        pictures=10,
        parameters={"parts": 10},
    ),
    "pr": Metric(
        _pr,
        ("precision", "recall"),
        "precision and recall, k = 3",
        "arXiv 1904.06991 (there on VGG-16's features); higher is better",
        _FEATURES,
        pictures=4,
        parameters={"k": 3},
    ),
    "dc": Metric(
        _dc,
        ("density", "coverage"),
        "density and coverage, k = 5",
        "arXiv 2002.09797 (there on VGG-16's features); higher is better",
        _FEATURES,
        pictures=6,
        parameters={"k": 5},
    ),
}


def chosen(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names. Raises `InputError` for another one."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"the metric is {unknown[0]!r}; allowed: {', '.join(METRICS)}, swd")
    return [METRICS[name] for name in names]


def check_counts(metrics: Sequence[Metric], *counts: int) -> None:
    """Raise `InputError` if a set of so many pictures is too small for one of the metrics."""
    fewest = min(counts)
    for metric in metrics:
        if fewest < metric.pictures:
            raise InputError(
                f"{metric.title} needs {metric.pictures} pictures or more of each set, and there are {fewest}"
            )


def summarise(
    batches: Batches,
    count: int,
    extractor: Extractor,
    metrics: Sequence[Metric],
    processes: Processes | None = None,
) -> Summary:
    """What the metrics need of a set of `count` pictures, of which `batches` are this process's.

    Raises `InputError` if a metric needs logits and the extractor has none, or the set is too small;
    `ProcessError` if another process failed.
    """
    check_counts(metrics, count)
    needs = frozenset().union(*(metric.needs for metric in metrics))
    parts = (processes or Processes()).each(lambda: _part(batches, count, extractor, needs))
    return _merged(parts, count)


def _part(batches: Batches, count: int, extractor: Extractor, needs: frozenset[str]) -> Part:
    """What one process measures."""
    statistics, kept = FeatureStatistics(extractor.dim), []
    inception = InceptionScore(count) if "logits" in needs else None
    for start, images in batches:
        features, logits = extractor(images)
        features = features.cpu()
        statistics.update(features)
        if inception is not None:
            if logits is None:
                raise InputError(f"the Inception score needs classes, and {extractor.name!r} has none")
            inception.update(logits.cpu(), start)
        if "features" in needs:
            kept.append((start, features))
    return statistics, inception, kept


def _merged(parts: list[Part], count: int) -> Summary:
    (statistics, inception, kept), *others = parts
    for other, scores, more in others:
        statistics.merge(other)
        if inception is not None:
            inception.merge(scores)
        kept = kept + more
    if statistics.count != count:
        raise RuntimeError(f"{statistics.count} pictures were measured, not {count}")
    features = torch.cat([part for _, part in sorted(kept, key=lambda pair: pair[0])]) if kept else None
    return Summary(count, statistics, features, inception)

"""The metric of the training loop: pictures of the averaged generator against pictures of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import SlicedWasserstein, sliced_wasserstein
from stylenat_hub.models.base import Generator
from stylenat_hub.pipeline import latents
from training.data import Pictures
from training.monitor import Metric
from training.sources import Source

FIRST_SEED = 1_000_000  # far from those of the grids
_BATCH = 32


def sliced_wasserstein_metric(
    source: Source, resolution: int, count: int, allow_upscaling: bool = False
) -> Metric:
    """The sliced Wasserstein distance between `count` pictures of the data and as many drawn ones.

    The data's pictures are the first ones of one fixed order; their descriptors are computed once. Raises
    `InputError` if the data has fewer than `count` pictures.
    """
    if len(source) < count:
        raise InputError(
            f"the metric compares {count} pictures, but {source.name!r} has {len(source)}; pass "
            f"--metric-images {len(source)}, or --metric none"
        )
    kept: list[SlicedWasserstein] = []

    @torch.no_grad()
    def measure(generator: Generator) -> Mapping[str, float]:
        if not kept:
            kept.append(_of_data(source, resolution, count, allow_upscaling))
        drawn = SlicedWasserstein(resolution)
        for start in range(FIRST_SEED, FIRST_SEED + count, _BATCH):
            seeds = range(start, min(start + _BATCH, FIRST_SEED + count))
            # In whole batches: to the bit as the pipeline's pictures is not needed here, and this is faster.
            z = latents(seeds, generator.z_dim).to(generator.w_avg.device)
            drawn.update(generator.to_rgb01(generator(z)))
        return sliced_wasserstein(kept[0], drawn)

    return measure


def _of_data(source: Source, resolution: int, count: int, allow_upscaling: bool) -> SlicedWasserstein:
    pictures = Pictures(source, resolution, flip=False, seed=0, allow_upscaling=allow_upscaling)
    collected = SlicedWasserstein(resolution)
    for number in range(count):
        collected.update(pictures[number][None].float() / 255)
    return collected


# name -> (source, resolution, count, allow_upscaling) -> metric
METRICS: dict[str, Callable[[Source, int, int, bool], Metric]] = {"swd": sliced_wasserstein_metric}

"""The metric of the training loop: pictures of the averaged generator against pictures of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import KNOWN, SlicedWasserstein, sliced_wasserstein
from stylenat_hub.metrics.evaluate import Evaluation, drawn_by
from stylenat_hub.metrics.features import load_extractor
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.reference import RealPictures
from stylenat_hub.metrics.score import METRICS as SCORES
from stylenat_hub.models.base import Generator
from stylenat_hub.pipeline import latents
from stylenat_hub.sources import Source, open_source
from training.data import Pictures, check_source
from training.monitor import Metric

FIRST_SEED = 1_000_000  # far from those of the grids
DEFAULT_IMAGES = 1_000  # of each set
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


CHOICES = ("swd", *SCORES)
METRICS = tuple(KNOWN)  # names of figures in a run's log; one metric may give several


def names_of(text: str) -> list[str]:
    """`swd,fid` -> ["swd", "fid"]; none of `none`. Raises `InputError` for what is no metric."""
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CHOICES:
            raise InputError(f"the metric is {name!r}; allowed: {', '.join(CHOICES)}, none")
    return names


def for_run(options: Any, source: Source, resolution: int, device: torch.device) -> Metric | None:
    """The metric that a run's `train.Options` ask for; None if they ask for none. Raises `InputError`."""
    names = names_of(options.metric)
    if not names or not options.schedule.metric_every:
        return None
    if options.eval_data:
        source = open_source(options.eval_data, options.split)
        check_source(source, resolution, options.allow_upscaling)
    count = options.metric_images or min(DEFAULT_IMAGES, len(source))
    network = (options.metric_extractor, options.metric_weights)
    return metric(names, source, resolution, count, options.allow_upscaling, network, device)


def metric(
    names: Sequence[str],
    source: Source,
    resolution: int,
    count: int,
    allow_upscaling: bool = False,
    network: tuple[str, str | None] = ("inception", None),
    device: str | torch.device = "cpu",
) -> Metric:
    """Some metrics of `count` drawn pictures against as many of the data, as one; `stylenat evaluate` has the
    same code.

    network: extractor and its weights, as of `load_extractor`, which is called at once, so that a missing
    file shows before the training begins. Raises `InputError`.
    """
    parts: list[Metric] = []
    if "swd" in names:
        parts.append(sliced_wasserstein_metric(source, resolution, count, allow_upscaling))
    if scores := tuple(name for name in names if name != "swd"):
        real = RealPictures(source, resolution, min(count, len(source)), allow_upscaling)
        extractor = load_extractor(network[0], weights=network[1], device=device)
        parts.append(_scored(Evaluation(scores, real, extractor, Processes(), quiet=True), count))
    return lambda generator: {key: value for part in parts for key, value in part(generator).items()}


def _scored(evaluation: Evaluation, count: int) -> Metric:
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    return lambda generator: evaluation.score(drawn_by(generator, seeds), count)

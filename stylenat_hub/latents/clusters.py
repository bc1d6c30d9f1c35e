"""Centres of a model's styles: where multi-modal truncation pulls to, instead of one mean for everything.

Mokady et al., Self-Distilled StyleGAN (arXiv 2202.12211): where data are of many kinds, their mean
is a picture of no kind, so styles are clustered by k-means and each is truncated towards its nearest centre.

Legend: n styles, k centres, D = w_dim.
"""

from __future__ import annotations

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.latents.checks import whole
from stylenat_hub.latents.seeded import seeded_styles
from stylenat_hub.models.base import MEAN_LATENTS, MEAN_SEED, Generator

MAX_CENTERS = 1_024
MAX_LATENTS = 200_000  # 400 MB of styles at w_dim 512
STARTS = 3  # k-means ends where it began to look: the best of a few beginnings counts
MAX_PASSES = 100
_BATCH = 1_000  # styles added at a time
_PART = 1 << 22  # distances held at a time


@torch.no_grad()
def style_centers(
    generator: Generator, count: int, *, latents: int = MEAN_LATENTS, seed: int = MEAN_SEED
) -> torch.Tensor:
    """The centres [count, w_dim] of `count` clusters of styles, for `truncation_centers`: float32 on the
    generator's device, that of the largest cluster first. One centre is the mean of the styles.

    latents: how many to draw, from one seed; the mapping runs in the generator's type, k-means on the CPU, so
    one machine always finds the same centres. Its distances are float32, its sums float64.

    Raises `InputError`: a model without styles of its own (HiT's are the latents, one Gaussian without
    clusters), a number out of its range, or styles that are not finite.
    """
    if generator.styles_are_latents:
        raise InputError(
            f"centres are clusters of styles, and a {type(generator).__name__} has none: its styles are the "
            "latents, one Gaussian around 0; truncate to the mean, or use a StyleNAT or StyleSwin model"
        )
    seed = whole("seed", seed, 0, 2**32 - 1)
    latents = whole("latents", latents, 1, MAX_LATENTS)
    count = whole("the number of centres", count, 1, min(MAX_CENTERS, latents))
    styles = torch.empty(latents, generator.w_dim)  # filled in place: there may be 400 MB of them
    for part, some in zip(styles.split(_BATCH), seeded_styles(generator, latents, seed), strict=True):
        part.copy_(some)
    mean = styles.double().mean(0)
    styles -= mean.float()  # around 0 the distances below lose no digits
    source = torch.Generator().manual_seed(seed)
    found = [_cluster(styles, _spread(styles, count, source)) for _ in range(STARTS if count > 1 else 1)]
    _, centers, places = min(found, key=lambda one: one[0])
    order = torch.bincount(places, minlength=count).argsort(descending=True, stable=True)
    return (centers[order] + mean).float().to(generator.w_avg.device)


def _spread(styles: torch.Tensor, count: int, source: torch.Generator) -> torch.Tensor:
    """Where to begin [k, D]: k-means++ (Arthur and Vassilvitskii, 2007), each next one drawn by its squared
    distance from those before."""
    first = int(torch.randint(len(styles), (1,), generator=source))
    centers = [styles[first]]
    lengths = torch.linalg.vecdot(styles, styles)
    nearest = torch.full((len(styles),), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        far = torch.addmv(lengths, styles, centers[-1], alpha=-2) + centers[-1].square().sum()
        nearest = torch.minimum(nearest, far.clamp(min=0).double())
        total = nearest.cumsum(0)
        at = torch.rand(1, generator=source, dtype=torch.float64) * total[-1]
        chosen = int(torch.searchsorted(total, at, right=True).clamp(max=len(styles) - 1))
        centers.append(styles[chosen])
    return torch.stack(centers).double()


def _cluster(styles: torch.Tensor, centers: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Lloyd's k-means until no style changes its centre: the sum of squared distances, the centres [k, D] in
    float64, and each style's centre [n]."""
    places, far = _assign(styles, centers)
    for _ in range(MAX_PASSES):
        centers = _means(styles, places, far, len(centers))
        before = places
        places, far = _assign(styles, centers)
        if torch.equal(places, before):
            break
    return float(far.double().sum()), centers, places


def _assign(styles: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of each style's nearest centre [n], and its squared distance [n] from it."""
    goals = centers.float()
    lengths = goals.square().sum(1)
    places, far = [], []
    for part in styles.split(max(1, _PART // len(goals))):
        nearest = torch.addmm(lengths, part, goals.T, alpha=-2).min(dim=1)
        places.append(nearest.indices)
        far.append((nearest.values + part.square().sum(1)).clamp(min=0))
    return torch.cat(places), torch.cat(far)


def _means(styles: torch.Tensor, places: torch.Tensor, far: torch.Tensor, count: int) -> torch.Tensor:
    """The mean [k, D] of each cluster; an empty one begins anew at a style that is far from its centre."""
    sums = torch.zeros(count, styles.shape[1], dtype=torch.float64)
    for part, place in zip(styles.split(_BATCH), places.split(_BATCH), strict=True):
        sums.index_add_(0, place, part.double())
    sizes = torch.bincount(places, minlength=count)
    means = sums / sizes.clamp(min=1)[:, None]
    empty = (sizes == 0).nonzero()[:, 0]
    if len(empty):
        means[empty] = styles[far.argsort(descending=True, stable=True)[: len(empty)]].double()
    return means

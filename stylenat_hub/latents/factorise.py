"""Directions found without labels: from the weights of the style layers, or from the styles themselves.

D = w_dim, R rows of weights. Everything is computed in float64. A vector's sign, which no method knows, is
the one that makes its largest entry positive (the first of equally large ones).
"""

from __future__ import annotations

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.latents.checks import whole
from stylenat_hub.latents.directions import Directions, weights_of
from stylenat_hub.latents.levels import styles_at
from stylenat_hub.latents.seeded import seeded_styles
from stylenat_hub.models.base import MEAN_LATENTS, MEAN_SEED, Generator

MAX_LATENTS = 10_000_000


def closed_form(generator: Generator, count: int, levels: str = "all") -> Directions:
    """SeFa (Shen & Zhou, arXiv 2007.06600): the directions that the layers which read styles answer to most,
    the strongest first, called `sefa-1` and so on, or `sefa-coarse-1`. Orthonormal.

    They are the eigenvectors of A^T A (equation 7), where A [R, D] are the weights of all the layers of these
    levels. Each row is divided by its length first, so that every output counts alike: otherwise the
    few whose scale training has left large would decide. Biases have no part in it. A model without a mapping
    network (HiT) is factorised where it reads the latent.

    count: 1 to w_dim. levels: what is read and what is moved, see `levels.styles_at`.

    Raises `InputError`: a count or levels that the model does not have, weights that are not finite.
    """
    count = _checked_count(count, generator)
    styles = styles_at(generator, levels)
    rows = torch.cat(
        [weight.detach().cpu().double() for number, weight in generator.style_layers() if number in styles]
    )
    rows = torch.nn.functional.normalize(rows, dim=1)  # a row of zeros stays one
    vectors = _eigenvectors(rows.T @ rows)[:count]
    covariance = style_covariance(generator, MEAN_LATENTS, MEAN_SEED)
    return _directions(generator, vectors, covariance, "sefa", levels)


def principal(
    generator: Generator, count: int, levels: str = "all", latents: int = MEAN_LATENTS, seed: int = MEAN_SEED
) -> Directions:
    """GANSpace (Harkonen et al., arXiv 2004.02546): the principal components of w, the largest first, called
    `pca-1` and so on, or `pca-coarse-1`. Orthonormal.

    count: 1 to w_dim. levels: where the directions are applied, see `levels.styles_at`; which they are does
    not depend on it. latents: how many styles are drawn, more than w_dim; seed: from which.

    Raises `InputError`: a number out of its range, or a model without a w space (HiT): its latents are as
    likely in every direction, so that they have no principal one.
    """
    count = _checked_count(count, generator)
    if generator.styles_are_latents:
        raise InputError(
            f"a {type(generator).__name__} has no w space: its styles are the latents, which vary alike in "
            "every direction, so there are no principal ones; use the method sefa (closed_form)"
        )
    latents = whole("latents", latents, generator.w_dim + 1, MAX_LATENTS)
    seed = whole("seed", seed, 0, 2**32 - 1)
    styles_at(generator, levels)
    covariance = style_covariance(generator, latents, seed)
    vectors = _eigenvectors(covariance)[:count]
    found = _directions(generator, vectors, covariance, "pca", levels)
    return found.described(latents=str(latents), seed=str(seed))


def style_covariance(generator: Generator, latents: int, seed: int) -> torch.Tensor:
    """The covariance [D, D] of the styles of so many latents, in float64; where styles are latents, the
    known one. Raises `InputError` where styles are not finite."""
    if generator.styles_are_latents:
        return torch.eye(generator.w_dim, dtype=torch.float64)
    sum_, products = torch.zeros(generator.w_dim).double(), torch.zeros(generator.w_dim).double().diag()
    for w in seeded_styles(generator, latents, seed):
        sum_ += w.sum(0)
        products += w.T @ w
    mean = sum_ / latents
    return products / latents - mean.outer(mean)


def _eigenvectors(matrix: torch.Tensor) -> torch.Tensor:
    """The eigenvectors [D, D] of a symmetric matrix as rows, by falling eigenvalue, with their signs set."""
    if not torch.isfinite(matrix).all():
        raise InputError("the weights of the style layers hold NaN or infinity; load them again")
    vectors = torch.linalg.eigh(matrix).eigenvectors.T.flip(0)
    # argmax of rounded sizes: two that are equal but for rounding must not change places
    largest = vectors.abs().mul(1e9).round().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def _directions(
    generator: Generator, vectors: torch.Tensor, covariance: torch.Tensor, method: str, levels: str
) -> Directions:
    """vectors: [n, D]. covariance: [D, D], of the styles."""
    levels = levels.replace(" ", "")
    prefix = method if levels == "all" else f"{method}-{levels.replace(',', '+')}"
    variances = ((vectors @ covariance) * vectors).sum(1).clamp_min(0)
    total = covariance.trace().clamp_min(torch.finfo(torch.float64).tiny)
    return Directions(
        names=tuple(f"{prefix}-{number + 1}" for number in range(len(vectors))),
        vectors=vectors,
        deviations=variances.sqrt(),
        shares=variances / total,
        styles=(tuple(styles_at(generator, levels)),) * len(vectors),
        about={"method": method, "levels": levels, **weights_of(generator)},
    )


def _checked_count(count: int, generator: Generator) -> int:
    return whole("the number of directions", count, 1, generator.w_dim)

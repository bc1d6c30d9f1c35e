"""Attention to the latent's own tokens, which HiT has at every level: what each place takes from the latent.

Legend: L tokens of an axis, S tokens of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.inside.recording import draw_watching
from stylenat_hub.models.base import Generator


@dataclass(frozen=True, eq=False)
class CrossMaps:
    """image: [3, R, R] in [0, 1]. level: px. heads: how many. weights: [S, L, L], how much each place attends
    to each of the latent's tokens, the mean of all heads; for each place they sum to 1. On the CPU."""

    image: torch.Tensor
    level: int
    heads: int
    weights: torch.Tensor


def cross_maps(generator: Generator, ws: torch.Tensor, level: int | None = None) -> CrossMaps:
    """What each place of a level takes from the latent, by default of the finest.

    ws: styles [1, num_ws, w_dim]; in HiT that is the latent itself. One thread at a time: see `watching`.

    Raises `InputError`: a family without such attention, no such level, or styles that do not fit.
    """
    sites = {site.level: site for site in generator.cross_attentions()}
    if not sites:
        raise InputError(
            f"a {type(generator).__name__} has no cross-attention to its latent; HiT has. Leave --cross out"
        )
    level = max(sites) if level is None else level
    if level not in sites:
        there = ", ".join(map(str, sorted(sites)))
        raise InputError(f"this model has no level of {level!r} px; levels with cross-attention: {there}")
    site, strips = sites[level], []

    def see(x: torch.Tensor, embedding: torch.Tensor) -> None:
        weights = site.module.weights(x, embedding).mean(dim=-2)  # [1, ..., S]
        strips.append(site.as_rows(weights)[0].permute(2, 0, 1).cpu())

    image = draw_watching(generator, ws, site.module, "forward", see)
    # where a picture is drawn some rows at a time, they come from the top downwards
    return CrossMaps(image, level, site.module.heads, torch.cat(strips, dim=1))

"""The styles of seeded latents, which means, centres, directions and projection are estimated from."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.models.base import Generator, mapped_seed


def seeded_styles(generator: Generator, latents: int, seed: int) -> Iterator[torch.Tensor]:
    """The styles of so many latents of one seed, in batches [some, w_dim] of float64 on the CPU; the latents
    are those of `estimate_w_avg`. Raises `InputError` where styles are not finite."""
    for styles in mapped_seed(generator, latents, seed):
        if not torch.isfinite(styles).all():
            raise InputError(
                f"the styles of this model in {generator.dtype} hold NaN or infinity; use dtype float32 or "
                "bfloat16, or load its weights again"
            )
        yield styles

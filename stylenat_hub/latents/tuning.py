"""Pivotal tuning: a copy of the generator whose weights are fine-tuned until it draws a picture at the styles
that projection found (Roich et al., arXiv 2106.05744).

The loss is that of projection at the pivot, plus what keeps the generator as it was around it: pictures of
styles between the pivot and random ones shall stay those of the original (their section 3.2). There the
distance from the pivot is a length in w, which fits one model; here it is a share of the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.latents.checks import not_negative, whole
from stylenat_hub.latents.losses import FEATURES, picture_loss
from stylenat_hub.latents.pictured import check_target, frozen, rgb
from stylenat_hub.models.base import Generator

LEARNING_RATE = 3e-4  # of Adam, theirs
LOCALITY = 0.1  # weight of the pictures around the pivot, theirs
MAX_TUNING = 100_000  # steps
AWAY = 0.5  # share of the way from the pivot to a random style


def tune(
    generator: Generator,
    ws: torch.Tensor,
    target: torch.Tensor,
    steps: int,
    *,
    seed: int = 0,
    features: Any = "random-conv",
    feature_weight: float = FEATURES,
    learning_rate: float = LEARNING_RATE,
    locality: float = LOCALITY,
    callback: Callable[[int, float], None] | None = None,
) -> Generator:
    """A copy of the generator, tuned to draw the targets at the styles; the generator is left as it was.

    ws: [B, num_ws, w_dim], of `projection.project`. target: as there. steps: of Adam, at most 100,000. seed:
    of the random styles. locality: weight of staying as before around the styles. callback: called after each
    step with its number, from 1, and the loss. The copy is in evaluation mode, in float32.

    Raises `InputError`: an argument out of its range, or a loss that is no longer finite; see `project`.
    """
    steps = whole("steps", steps, 0, MAX_TUNING)
    seed = whole("seed", seed, 0, 2**32 - 1)
    learning_rate, locality = not_negative("learning_rate", learning_rate), not_negative("locality", locality)
    if generator.dtype != torch.float32:
        raise InputError(f"the model is in {generator.dtype}; tuning needs it in float32")
    generator.check_styles(ws)
    device = next(generator.parameters()).device
    goal, ws = check_target(generator, target).to(device), ws.detach().to(device)
    if len(goal) != len(ws):
        raise InputError(f"there are {len(ws)} styles and {len(goal)} targets; give one style for each")
    loss = picture_loss(features, weight=feature_weight, device=device)(goal)
    tuned = copy.deepcopy(generator).eval().requires_grad_(True)
    tuned.remember({})  # what is recorded is of the original's weights
    adam = torch.optim.Adam(tuned.parameters(), lr=learning_rate)
    chance = torch.Generator().manual_seed(seed)
    with frozen(generator), torch.enable_grad():
        for step in range(1, steps + 1):
            near = loss(rgb(tuned, tuned.synthesis(ws))).mean()
            around = _around(generator, ws, chance)
            with torch.no_grad():
                before = rgb(generator, generator.synthesis(around))
            moved = (rgb(tuned, tuned.synthesis(around)) - before).square().mean()
            total = near + locality * moved
            if not math.isfinite(total.item()):
                raise InputError(f"the loss is no longer finite at step {step}; use a smaller learning rate")
            adam.zero_grad()
            total.backward()
            adam.step()
            if callback:
                callback(step, near.item())
    return tuned.requires_grad_(False)


@torch.no_grad()
def _around(generator: Generator, ws: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Styles [B, num_ws, w_dim] on the way from each pivot to the style of a random latent."""
    z = torch.randn(len(ws), generator.z_dim, generator=chance).to(ws.device)
    return torch.lerp(ws, generator.mapping(z), AWAY)

"""Models so small that tests can make them anew."""

from __future__ import annotations

import torch

from stylenat_hub.registry import FAMILIES


def tiny_generator(family: str = "stylenat", seed: int = 0):
    """A family's `tiny` preset with seeded weights so large that seeds differ visibly, and `w_avg`."""
    family = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family.generator(family.config.preset("tiny")).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
            model.w_avg.copy_(model.mapping(torch.randn(256, model.z_dim))[:, 0].mean(0))
    return model

"""Losses and regularisers of GAN training as pure functions of logits and pictures.

Legend: B batch. Logits are [B, 1], high means real; every loss is a scalar, the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


def discriminator_logistic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """softplus(-real) + softplus(fake). Source: arXiv 1406.2661, as in StyleGAN2."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_nonsaturating(fake: torch.Tensor) -> torch.Tensor:
    """softplus(-fake): strong gradients where the discriminator is sure. Source: arXiv 1406.2661."""
    return F.softplus(-fake).mean()


def discriminator_relativistic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """softplus(fake - real), pair by pair: how much more real is a real picture. Source: R3GAN, arXiv
    2501.05441.
    """
    return F.softplus(fake - real).mean()


def generator_relativistic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """softplus(real - fake), the same game from the other side. Source: R3GAN, arXiv 2501.05441."""
    return F.softplus(real - fake).mean()


def discriminator_hinge(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """relu(1 - real) + relu(1 + fake): nothing is gained beyond a margin. Source: arXiv 1705.02894."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_hinge(fake: torch.Tensor) -> torch.Tensor:
    """-fake. Source: arXiv 1705.02894."""
    return -fake.mean()


def gradient_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of the logits' gradient in the pictures: R1 on real ones, R2 on fakes (arXiv
    1801.04406).

    images [B, 3, R, R] must require gradients, and `logits` must be computed from them. Differentiable.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def weighted_penalty(penalty: torch.Tensor, weight: float, interval: int) -> torch.Tensor:
    """A gradient penalty as it enters the loss if it is computed every `interval` steps only: times half the
    weight and the interval (arXiv 1912.04958).
    """
    return weight / 2 * penalty * interval


def balanced_consistency(
    real: torch.Tensor,
    fake: torch.Tensor,
    real_augmented: torch.Tensor,
    fake_augmented: torch.Tensor,
    real_weight: float = 10.0,
    fake_weight: float = 10.0,
) -> torch.Tensor:
    """bCR: augmenting a picture must not change its logit, real or fake. Source: arXiv 2002.04724.

    Logits [B, 1] of the same pictures before and after the augmentation; gradients flow through both.
    """
    real_change = (real_augmented - real).square().mean()
    fake_change = (fake_augmented - fake).square().mean()
    return real_weight * real_change + fake_weight * fake_change


class GANLoss(NamedTuple):
    """What the two players minimise, each (logits of real pictures, logits of fakes) -> scalar.

    paired: does the generator's loss look at real pictures too?
    """

    discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    generator: Callable[[torch.Tensor | None, torch.Tensor], torch.Tensor]
    paired: bool


LOSSES = {
    "logistic": GANLoss(discriminator_logistic, lambda _real, fake: generator_nonsaturating(fake), False),
    "hinge": GANLoss(discriminator_hinge, lambda _real, fake: generator_hinge(fake), False),
    "relativistic": GANLoss(discriminator_relativistic, generator_relativistic, True),
}

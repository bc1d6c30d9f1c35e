"""Losses and regularisers of GAN training as pure functions of logits and pictures.

Legend: B batch. Logits are [B, 1], high means real; every loss is a scalar, the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Discriminator = Callable[[torch.Tensor], torch.Tensor]
Augmentation = Callable[[torch.Tensor], torch.Tensor]


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


def gradient_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of the logits' gradient in the pictures: R1 on real ones, R2 on fakes (arXiv
    1801.04406).

    images [B, 3, R, R] must require gradients, and `logits` must be computed from them. Differentiable.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def lazy_r1(penalty: torch.Tensor, weight: float, interval: int) -> torch.Tensor:
    """The R1 penalty as it enters the loss when it is computed only every `interval` steps (arXiv
    1912.04958).
    """
    return weight / 2 * penalty * interval


def balanced_consistency(
    discriminator: Discriminator,
    augmentation: Augmentation,
    real: torch.Tensor,
    fake: torch.Tensor,
    real_logits: torch.Tensor,
    fake_logits: torch.Tensor,
    real_weight: float = 10.0,
    fake_weight: float = 10.0,
) -> torch.Tensor:
    """bCR: augmenting a picture must not change its logit, real or fake. Source: arXiv 2002.04724.

    real, fake: pictures [B, 3, R, R] with their logits from the same step.
    """
    real_change = discriminator(augmentation(real)) - real_logits
    fake_change = discriminator(augmentation(fake)) - fake_logits
    return real_weight * real_change.square().mean() + fake_weight * fake_change.square().mean()

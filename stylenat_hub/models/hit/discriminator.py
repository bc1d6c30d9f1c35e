"""The residual discriminator that HiT (arXiv 2106.07631) was trained against, StyleGAN2's without its gains.

Legend: B batch, C channels, R side of the pictures. Everything is differentiable twice, as R1 needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.layers.discriminator import blur, minibatch_stddev
from stylenat_hub.models.base import Discriminator
from stylenat_hub.models.hit.config import HiTDiscriminatorConfig

Pool = Callable[[torch.Tensor], torch.Tensor]
POOLS: dict[str, Pool] = {
    "blur": partial(blur, padding=1, stride=2),
    "average": partial(F.avg_pool2d, kernel_size=2),
}


def leaky(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2, without a gain."""
    return F.leaky_relu(x, 0.2)


class Weights(nn.Module):
    """Weight and bias: Glorot-uniform as they are, or N(0, 1) and scaled by the root of the fan-in on use."""

    def __init__(self, *shape: int, equalized: bool, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.scale = 1 / math.sqrt(math.prod(shape[1:])) if equalized else 1.0
        if equalized:
            nn.init.normal_(self.weight)
        else:
            nn.init.xavier_uniform_(self.weight)

    def scaled(self) -> torch.Tensor:
        return self.weight if self.scale == 1 else self.weight * self.scale


class Conv(Weights):
    """Convolution with zeros beyond the border."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        return F.conv2d(x, self.scaled(), self.bias, padding=self.weight.shape[-1] // 2)


class Linear(Weights):
    """Linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C] -> [B, C']."""
        return F.linear(x, self.scaled(), self.bias)


class ResidualBlock(nn.Module):
    """Two convolutions around the halving of the side, beside a skip connection of one."""

    def __init__(self, in_channels: int, out_channels: int, pool: Pool, equalized: bool) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, in_channels, 3, 3, equalized=equalized)
        self.conv2 = Conv(out_channels, in_channels, 3, 3, equalized=equalized)
        self.skip = Conv(out_channels, in_channels, 1, 1, equalized=equalized, bias=False)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', H/2, W/2]."""
        main = leaky(self.conv2(self.pool(leaky(self.conv1(x)))))
        return (main + self.skip(self.pool(x))) / math.sqrt(2)


class HiTDiscriminator(Discriminator):
    """Images [B, 3, R, R], normalised as the generator's -> logits [B, 1]; high means real.

    Source: arXiv 2106.07631, appendix; checked against tensors recorded from the authors' code.
    """

    config_class = HiTDiscriminatorConfig

    def __init__(self, config: HiTDiscriminatorConfig) -> None:
        super().__init__(config)
        widths, equalized, pool = config.channels, config.equalized, POOLS[config.pooling]
        self.from_rgb = Conv(widths[0], 3, 3, 3, equalized=equalized)
        self.blocks = nn.ModuleList(
            ResidualBlock(widths[i], widths[i + 1], pool, equalized) for i in range(len(widths) - 1)
        )
        told = config.stddev_group > 1  # one more channel
        self.final_conv = Conv(widths[-1], widths[-1] + told, 3, 3, equalized=equalized)
        self.hidden = Linear(widths[-1], 16 * widths[-1], equalized=equalized)
        self.logit = Linear(1, widths[-1], equalized=equalized)

    @property
    def stddev_group(self) -> int:
        return self.config["stddev_group"]

    def finest_parts(self, count: int) -> list[nn.Module]:
        self.check_finest(count, len(self.blocks))
        return [self.from_rgb, *self.blocks[:count]] if count else []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises `InputError` for images of another size, or a batch that groups of `stddev_group` do not
        divide."""
        self.check_images(images)
        x = leaky(self.from_rgb(images))
        for block in self.blocks:
            x = block(x)
        x = leaky(self.final_conv(self._told(x)))
        return self.logit(leaky(self.hidden(x.flatten(1))))

    def _told(self, x: torch.Tensor) -> torch.Tensor:
        """With the spread of its group's samples as one more channel, if they are compared."""
        if self.stddev_group == 1:
            return x
        return minibatch_stddev(x, self.group_of(len(x)))

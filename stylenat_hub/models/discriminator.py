"""The wavelet discriminator that StyleSwin and StyleNAT were trained against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.layers.discriminator import (
    Conv,
    Linear,
    blur,
    haar_wavelets,
    inverse_haar_wavelets,
    leaky_with_gain,
    minibatch_stddev,
)
from stylenat_hub.models.base import Discriminator
from stylenat_hub.models.config import WIDEST, ModelConfig, is_power_of_two, is_whole

# As wide for both families at each size, though StyleSwin's generator is half as wide at 1024 px.
_SHAPE_256 = {"resolution": 256, "channels": (128, 512, 512, 512, 512, 512)}
_SHAPE_1024 = {"resolution": 1024, "channels": (32, 128, 256, 512, 512, 512, 512, 512)}

PRESETS: dict[str, dict[str, Any]] = {
    "ffhq-256": _SHAPE_256,
    "ffhq-1024": _SHAPE_1024,
    "celebahq-256": _SHAPE_256,
    "celebahq-1024": _SHAPE_1024,
    "church-256": _SHAPE_256,
    "toy-church": {"resolution": 32, "channels": (64, 128, 128)},
    "tiny": {"resolution": 32, "channels": (16, 32, 32)},
}


@dataclass(frozen=True)
class WaveletDiscriminatorConfig(ModelConfig):
    """Shape of a wavelet discriminator.

    resolution: side of the pictures, a power of two from 16 px. channels: width at each scale, from half the
    resolution (the side of its wavelets) down to 4 px. stddev_group: samples whose spread is told to each of
    them.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    resolution: int
    channels: tuple[int, ...]
    stddev_group: int = 4

    def validate(self) -> None:
        size = self.resolution
        fits = is_power_of_two(size, 16, 4096)
        self.require(fits, "resolution", "a power of two, 16 or more, 4096 at most")
        scales = size.bit_length() - 3
        whole = isinstance(self.channels, tuple) and all(is_whole(c, 1, WIDEST) for c in self.channels)
        self.require(
            whole and len(self.channels) == scales,
            "channels",
            f"{scales} whole numbers, one per scale from {size // 2} down to 4 px, each from 1 to {WIDEST}",
        )
        self.require_whole("stddev_group", 1, 4096)


class Scale(nn.Module):
    """One scale: two convolutions, the second of which halves the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, in_channels, 3)
        self.conv2 = Conv(in_channels, out_channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', H/2, W/2]."""
        return self.conv2(self.conv1(x))


class WaveletDiscriminator(Discriminator):
    """Images [B, 3, R, R], normalised as the generator's -> logits [B, 1]; high means real.

    With spectral norm: each call in training mode makes one power iteration, so use eval mode to look only.
    Source: arXiv 2112.10762, 2211.05770; checked against tensors recorded from the authors' code.
    """

    config_class = WaveletDiscriminatorConfig

    def __init__(self, config: WaveletDiscriminatorConfig) -> None:
        super().__init__(config)
        widths = config.channels
        self.from_rgb = nn.ModuleList(Conv(12, width, 1) for width in widths)
        self.scales = nn.ModuleList(Scale(widths[i], widths[i + 1]) for i in range(len(widths) - 1))
        self.final_conv = Conv(widths[-1] + 1, widths[-1], 3)
        self.hidden = Linear(16 * widths[-1], widths[-1])
        # The activation's own bias beside the layer's: they learn at twice the rate, so both are kept.
        self.hidden_bias = nn.Parameter(torch.zeros(widths[-1]))
        self.logit = Linear(widths[-1], 1)

    @property
    def stddev_group(self) -> int:
        return self.config["stddev_group"]

    def finest_parts(self, count: int) -> list[nn.Module]:
        self.check_finest(count, len(self.from_rgb))
        return [*self.from_rgb[:count], *self.scales[:count]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises `InputError` for images of another size, or a batch that groups of `stddev_group` do not
        divide.
        """
        self.check_images(images)
        group = self.group_of(len(images))
        wavelets = haar_wavelets(images)
        x = self.from_rgb[0](wavelets)
        for scale, from_rgb in zip(self.scales, self.from_rgb[1:], strict=True):
            wavelets = haar_wavelets(blur(inverse_haar_wavelets(wavelets), padding=1, stride=2))
            x = scale(x) + from_rgb(wavelets)
        x = self.final_conv(minibatch_stddev(x, group))
        return self.logit(leaky_with_gain(self.hidden(x.flatten(1)) + self.hidden_bias))

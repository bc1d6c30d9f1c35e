"""Parts of discriminators: of the wavelet one that StyleSwin (arXiv 2112.10762) and StyleNAT (2211.05770)
train against, of which HiT's (2106.07631) has `blur` and `minibatch_stddev` too.

Legend: B batch, C channels, H,W pixels. In the wavelet one pictures enter as Haar wavelets; at every scale
the wavelets of the smaller picture join in (SWAGAN, arXiv 2102.06108). Everything is differentiable twice,
as R1 needs it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def haar_wavelets(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, 4C, H/2, W/2]: mean, top - bottom, left - right and diagonal, band by band, halved
    sums.
    """
    top_left, top_right = x[:, :, 0::2, 0::2], x[:, :, 0::2, 1::2]
    bottom_left, bottom_right = x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]
    top, bottom = top_left + top_right, bottom_left + bottom_right
    top_step, bottom_step = top_left - top_right, bottom_left - bottom_right
    return torch.cat([top + bottom, top - bottom, top_step + bottom_step, top_step - bottom_step], dim=1) / 2


def inverse_haar_wavelets(x: torch.Tensor) -> torch.Tensor:
    """[B, 4C, H, W] -> [B, C, 2H, 2W], undoing `haar_wavelets`."""
    mean, vertical, horizontal, diagonal = x.chunk(4, dim=1)
    top, bottom = mean + vertical, mean - vertical
    top_step, bottom_step = horizontal + diagonal, horizontal - diagonal
    rows = [
        torch.stack([top + top_step, top - top_step], dim=-1).flatten(-2),
        torch.stack([bottom + bottom_step, bottom - bottom_step], dim=-1).flatten(-2),
    ]
    return torch.stack(rows, dim=-2).flatten(2, 3) / 2


def blur(x: torch.Tensor, padding: int, stride: int = 1) -> torch.Tensor:
    """Filter every channel with [1, 3, 3, 1] along both axes (sum 1), zeros beyond the border."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, stride=stride, groups=x.shape[1])


def minibatch_stddev(x: torch.Tensor, group: int = 4) -> torch.Tensor:
    """Append one channel: how much samples of a group differ, so that a lack of variety shows in every
    sample.

    x [B, C, H, W] -> [B, C + 1, H, W]. Sample i is in one group with i + B/g, i + 2B/g, ... for g = min(B,
    group). Raises `ValueError` if g does not divide B.
    """
    size = min(len(x), group)
    if len(x) % size:
        raise ValueError(
            f"a batch of {len(x)} cannot be cut into groups of {size}; use a multiple of {group}"
        )
    grouped = x.unflatten(0, (size, -1))
    spread = (grouped.var(0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3), keepdim=True)  # [B/g, 1, 1, 1]
    return torch.cat([x, spread.repeat(size, 1, *x.shape[2:])], dim=1)


def leaky_with_gain(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2 that keeps the variance (gain sqrt 2)."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value, tracked by one power iteration per call in training
    mode.

    Source: arXiv 1802.05957. `u` [rows] and `v` [columns] are the tracked singular vectors.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        rows, columns = shape[0], math.prod(shape[1:])
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(columns), dim=0))

    def normalised(self) -> torch.Tensor:
        # Not in half precision under autocast: a singular value rounded to 8 bits scales the whole layer.
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            if self.training:
                with torch.no_grad():
                    self.v.copy_(F.normalize(matrix.t() @ self.u, dim=0, eps=1e-12))
                    self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))
            # Clones, because the next call (real after fake pictures) changes the vectors before the gradient
            # is taken.
            u, v = self.u.clone(), self.v.clone()
            return self.weight / torch.dot(u, matrix @ v)


class Conv(SpectralNorm):
    """Convolution, bias, leaky ReLU. A stride of 2 blurs first, so that it does not alias."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__(out_channels, in_channels, size, size)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = self.weight.shape[-1] // 2
        if self.stride == 2:
            x, padding = blur(x, padding=2), 0
        return leaky_with_gain(F.conv2d(x, self.normalised(), self.bias, stride=self.stride, padding=padding))


class Linear(SpectralNorm):
    """Linear layer with a bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(out_features, in_features)
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.uniform_(self.bias, -(in_features**-0.5), in_features**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.normalised(), self.bias)

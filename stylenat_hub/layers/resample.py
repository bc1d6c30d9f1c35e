"""Doubling the resolution of token grids and of pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def upsample_tokens(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] -> [B, 2H, 2W, C], bilinear with pixel centres aligned (align_corners False)."""
    x = x.permute(
        0, 3, 1, 2
    )  # a channels-last view of [B, C, H, W]: PyTorch has kernels for it, nothing is copied
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def upsample_fir(images: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W] with the filter [1, 3, 3, 1] of StyleGAN2, zeros beyond the border."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=images.dtype, device=images.device)
    kernel = (
        torch.outer(taps, taps) / 16
    )  # sums to 4, because three of four positions are zeros before filtering
    flat = images.flatten(0, 1).unsqueeze(1)
    return F.conv_transpose2d(flat, kernel[None, None], stride=2, padding=1).view(
        *images.shape[:2], *_doubled(images)
    )


def _doubled(images: torch.Tensor) -> tuple[int, int]:
    return 2 * images.shape[2], 2 * images.shape[3]

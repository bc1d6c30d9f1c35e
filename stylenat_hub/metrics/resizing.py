"""From pictures to what a feature network is fed: the resizes and normalisations of the known tools.

A figure belongs to its resize: the same pictures and weights give other FIDs under another. Each way is here
as the tool does it, with the words that name it in a report.

Legend: B pictures, C = 3 colours, H, W their height and width, S the side that the network wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stylenat_hub.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """One way to prepare pictures. apply: uint8 [B, 3, H, W], side S -> float32 [B, 3, S, S] on the same
    device. resize, normalisation, source: what a report says of it."""

    apply: Callable[[torch.Tensor, int], torch.Tensor]
    resize: str
    normalisation: str
    source: str

    def facts(self, side: int) -> Mapping[str, str]:
        """What a protocol says of it."""
        return {"resize": f"{self.resize}, to {side} px", "normalisation": self.normalisation}


def check_images(images: torch.Tensor) -> torch.Tensor:
    """The pictures themselves. Raises `InputError` unless they are uint8 [B, 3, H, W] with H, W > 0."""
    if not isinstance(images, torch.Tensor):
        raise InputError(f"images are a {type(images).__name__}; allowed: a tensor uint8 [B, 3, H, W]")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise InputError(
            f"images are {list(images.shape)} of {images.dtype}; allowed: [B, 3, H, W] of torch.uint8; bring "
            "pictures in [0, 1] there by (x * 255).round().to(torch.uint8), as a PNG would hold them"
        )
    return images


def bilinear(images: torch.Tensor, side: int) -> torch.Tensor:
    """pytorch-fid's: to [0, 1], two by two pixels around each place without a filter, to [-1, 1].

    Without a filter large pictures alias: that is part of the published figures.
    """
    unit = images.contiguous().float().div(255)  # in this order, so that not even the rounding differs
    return 2 * F.interpolate(unit, size=(side, side), mode="bilinear", align_corners=False) - 1


def bilinear_from_corner(images: torch.Tensor, side: int) -> torch.Tensor:
    """torch-fidelity's: TensorFlow 1's resize, which lays the first pixels' corners upon each other, not the
    pictures' centres, in [0, 255]; then (x - 128) / 128."""
    across = _between(images.float(), side, 3)
    return (_between(across, side, 2) - 128) / 128


def _between(images: torch.Tensor, side: int, axis: int) -> torch.Tensor:
    """Interpolate linearly along one axis, from the places i * size / side, in float32 as TensorFlow does."""
    size = images.shape[axis]
    scale = torch.tensor(size / side, dtype=torch.float32, device=images.device)
    place = torch.arange(side, dtype=torch.float32, device=images.device) * scale
    first = place.long()
    share = (place - first).reshape([-1 if axis == own else 1 for own in range(4)])
    low = images.index_select(axis, first)
    high = images.index_select(axis, (first + 1).clamp(max=size - 1))
    return low + (high - low) * share


def bicubic_float(images: torch.Tensor, side: int) -> torch.Tensor:
    """clean-fid's: Pillow's bicubic filter, wide enough not to alias, on each colour in float and neither
    rounded nor clamped; then (x - 128) / 128. Always on the CPU."""
    planes = images.cpu().flatten(0, 1).float().numpy()
    resized = [
        np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)) for plane in planes
    ]
    return (_stacked(resized, images, side) - 128) / 128


def bicubic_8bit(images: torch.Tensor, side: int) -> torch.Tensor:
    """torchvision's on Pillow pictures: the bicubic filter on RGB in 8 bits, rounded and clamped; to [0, 1].
    Always on the CPU."""
    pixels = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    resized = [
        np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        for one in pixels
    ]
    return _stacked(resized, images, side).div(255)


def _stacked(planes: list[np.ndarray], images: torch.Tensor, side: int) -> torch.Tensor:
    joined = np.stack(planes) if planes else np.empty(0)
    return torch.from_numpy(joined).float().reshape(len(images), 3, side, side).to(images.device)


def imagenet(images: torch.Tensor, side: int) -> torch.Tensor:
    """`bicubic_8bit`, then each colour by ImageNet's mean and standard deviation, as DINOv2 was trained."""
    mean, std = (
        torch.tensor(values, device=images.device).reshape(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (bicubic_8bit(images, side) - mean) / std


# The ways of the `inception` extractor, by the names of their tools.
INCEPTION = {
    "pytorch-fid": Preprocessing(
        bilinear,
        "torch bilinear, align_corners=False, no antialiasing",
        "2 * (x / 255) - 1",
        "https://github.com/mseitzer/pytorch-fid",
    ),
    "torch-fidelity": Preprocessing(
        bilinear_from_corner,
        "TensorFlow 1 bilinear, align_corners=False, no antialiasing",
        "(x - 128) / 128",
        "https://github.com/toshas/torch-fidelity",
    ),
    "clean": Preprocessing(
        bicubic_float,
        "Pillow bicubic, antialiased, each colour in float32, not clamped",
        "(x - 128) / 128",
        "https://github.com/GaParmar/clean-fid, arXiv 2104.11222",
    ),
}

DINOV2 = Preprocessing(
    imagenet,
    "Pillow bicubic, antialiased, RGB in 8 bits",
    f"(x / 255 - {IMAGENET_MEAN}) / {IMAGENET_STD}",
    "https://github.com/layer6ai-labs/dgm-eval, arXiv 2306.04675",
)

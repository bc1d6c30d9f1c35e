"""What projection and tuning share: pictures of styles, with gradients or in 8 bits, and how near two are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.models.base import Generator


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio [B] in dB of pictures uint8 [B, 3, H, W]: 10 log10(255^2 / MSE).
    On the CPU: not every device computes in float64."""
    error = (one.cpu().double() - other.cpu().double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def rgb(generator: Generator, images: torch.Tensor) -> torch.Tensor:
    """What a network returned, as RGB in [0, 1]: `to_rgb01`, but gradients pass where it is cut off. So a
    pixel that is beyond white may stay there where the target is white, and comes back elsewhere."""
    whole = generator.unclamped_rgb(images)
    return whole + (whole.clamp(0, 1) - whole).detach()


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 1], or a little beyond, as uint8."""
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def drawn(generator: Generator, ws: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, R, R] on the CPU of styles [B, n, d], one by one as the pipeline draws them on a CPU."""
    images = [generator.to_rgb01(generator.synthesis(one)) for one in ws.split(1)]
    return eight_bit(torch.cat(images)).cpu()


@contextlib.contextmanager
def frozen(generator: Generator) -> Iterator[None]:
    """In evaluation mode and without gradients of the weights inside; as before afterwards."""
    modes = [(module, module.training) for module in generator.modules()]
    learning = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    try:
        generator.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_()


def check_target(generator: Generator, target: torch.Tensor) -> torch.Tensor:
    """The target as float32 [B, 3, R, R] in [0, 1]. Raises `InputError` unless it is one."""
    side = generator.resolution
    if not isinstance(target, torch.Tensor):
        raise InputError(f"the target is a {type(target).__name__}; allowed: a tensor [B, 3, {side}, {side}]")
    images = target[None] if target.dim() == 3 else target
    if images.dim() != 4 or images.shape[1:] != (3, side, side) or len(images) == 0:
        raise InputError(
            f"the target is {list(target.shape)}; this model needs [3, {side}, {side}] or [B, 3, {side}, "
            f"{side}]: `photos.open_photo` brings any picture there"
        )
    images = images.float() / 255 if images.dtype == torch.uint8 else images.detach().float()
    if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise InputError("the target has values outside 0 to 1; allowed: RGB in [0, 1], or uint8")
    return images

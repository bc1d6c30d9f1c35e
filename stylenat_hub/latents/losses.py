"""How far a picture is from another, with gradients: pixels at several scales, and features of a network.

A loss is a callable: pictures [B, 3, R, R] in [0, 1] -> [B], 0 where the picture is the target. It is made
once per target, so that the target's features are computed once.

| features | what it is |
|---|---|
| `pixels` | no features, the pixels alone |
| `random-conv` | the maps of the random network of `metrics`; no download; good for tiny pictures |
| `inception` | maps of the FID network at four depths; needs its weights (95 MB) |
| `dinov2` | the tokens of DINOv2; needs transformers and 1.2 GB of weights |
| `lpips` | LPIPS (arXiv 1801.03924), where that package is installed |
| `module:attr` | one's own extractor that has `differentiable` (see `metrics.features`) |

Legend: B pictures, R their side, C channels, H, W a map's height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from stylenat_hub.errors import InputError
from stylenat_hub.latents.checks import not_negative
from stylenat_hub.metrics.features import KNOWN_EXTRACTORS, load_extractor

Loss = Callable[[torch.Tensor], torch.Tensor]
Maker = Callable[[torch.Tensor], Loss]  # target [B, 3, R, R] -> the loss towards it

PIXELS = 1.0  # weight of the pixels; a mean squared error of 0.001 (30 dB) at all scales counts 0.001
FEATURES = 0.02  # weight of the features, whose loss is 1 where nothing of the target's is there
SMALLEST = 8  # px of the coarsest scale of the pyramid


def pyramid(images: torch.Tensor, smallest: int = SMALLEST) -> list[torch.Tensor]:
    """Pictures [B, 3, R, R], and halved by averages as often as the sides stay even and at least `smallest`
    px, finest first."""
    scales = [images]
    while scales[-1].shape[-1] % 2 == 0 and scales[-1].shape[-1] // 2 >= smallest:
        scales.append(F.avg_pool2d(scales[-1], 2))
    return scales


def pixel_loss(target: torch.Tensor) -> Loss:
    """The mean squared error of each scale of the pyramid, averaged over the scales."""
    wanted = pyramid(target)

    def loss(images: torch.Tensor) -> torch.Tensor:
        pairs = zip(pyramid(images), wanted, strict=True)
        return sum((one - other).square().mean(dim=(1, 2, 3)) for one, other in pairs) / len(wanted)

    return loss


def feature_loss(differentiable: Callable[[torch.Tensor], Any], target: torch.Tensor) -> Loss:
    """The squared distance of each feature from the target's over the target's square, averaged over the
    features: 0 for the target, about 1 where nothing of it is there, whatever the features' unit.

    differentiable: pictures [B, 3, R, R] in [0, 1] -> a tensor [B, ...] or several.
    """
    with torch.no_grad():
        wanted = [feature.flatten(1) for feature in _several(differentiable(target))]
        scale = [feature.square().mean(dim=1) + 1e-8 for feature in wanted]

    def loss(images: torch.Tensor) -> torch.Tensor:
        total = images.new_zeros(len(images))
        for feature, goal, unit in zip(_several(differentiable(images)), wanted, scale, strict=True):
            total = total + (feature.flatten(1) - goal).square().mean(dim=1) / unit
        return total / len(wanted)

    return loss


def _several(features: Any) -> Sequence[torch.Tensor]:
    several = [features] if isinstance(features, torch.Tensor) else features
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, torch.Tensor) for one in several):
        raise InputError(
            f"the extractor's differentiable() returns a {type(features).__name__}; allowed: a tensor [B, "
            "...] or a list of them"
        )
    return several


def picture_loss(
    features: Any = "random-conv",
    *,
    weight: float = FEATURES,
    device: str | torch.device = "cpu",
) -> Maker:
    """What projection makes small: `PIXELS` times `pixel_loss` plus `weight` times the loss of the features.

    features: a name of the table above, or an extractor object. It is loaded once; the result makes a loss
    for each target.

    Raises:
        InputError: an unknown name, an extractor without gradients, or a package that is not installed.
        WeightsError: the extractor's weights are missing or damaged.
    """
    weight = not_negative("feature_weight", weight)
    if features == "pixels":
        return lambda target: _sum([(PIXELS, pixel_loss(target))])
    make = _lpips(device) if features == "lpips" else _extracted(features, device)
    return lambda target: _sum([(PIXELS, pixel_loss(target)), (weight, make(target))])


def _sum(terms: Sequence[tuple[float, Loss]]) -> Loss:
    return lambda images: sum(weight * loss(images) for weight, loss in terms)


def check_features(features: Any) -> None:
    """Raise `InputError` for a name that no features have. Nothing is loaded."""
    known = ("pixels", "lpips", *KNOWN_EXTRACTORS)
    if isinstance(features, str) and features not in known and ":" not in features:
        raise InputError(
            f"there are no features {features!r}; allowed: {', '.join(known)}, or module:attr for your own"
        )


def _extracted(features: Any, device: str | torch.device) -> Maker:
    check_features(features)
    extractor = load_extractor(features, device=device)
    return lambda target: feature_loss(extractor.differentiable, target)


def _lpips(device: str | torch.device) -> Maker:
    try:
        import lpips
    except ImportError as error:
        raise InputError(
            "the features 'lpips' need the package lpips, which is not installed; install it with `pip "
            "install lpips` (it brings torchvision), or use random-conv, inception or pixels"
        ) from error
    network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False).to(device)

    def make(target: torch.Tensor) -> Loss:
        return lambda images: network(images * 2 - 1, target * 2 - 1).flatten()

    return make

"""Features without any download: a small random network, for tests and for trends on one's own data.

Everything in it is a whole number, so that a feature is the same to the bit on every machine and device, in
every batch and with any number of threads: sums of whole numbers below 2^24 are exact in float32, in
whatever order a kernel adds them.

Legend: B pictures, C channels, H, W their height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from stylenat_hub.errors import WeightsError
from stylenat_hub.metrics.exact import exact
from stylenat_hub.metrics.inception_weights import tensors_sha256
from stylenat_hub.metrics.resizing import check_images

NOTE = "not comparable with published figures"
SEED = 0
WEIGHT = 7  # weights are whole numbers from -7 to 7
LARGEST = 1023  # of an activation; 1023 * 7 * 9 * 64 < 2^24, and exact even where float32 is cut to TF32
# channels that come in, that go out, and the power of two by which the sums are divided
LAYERS = ((3, 32, 3), (32, 32, 6), (32, 64, 6), (64, 64, 6))
POOLED = (0, 1, 3)  # the layers whose means over the picture are features
FEATURES, CLASSES = 128, 16
UNIT = 2.0**-7  # of features
SPREAD = 2.0**-10  # of logits, so that they are not all certain of one class
PIXELS = 2**16  # at a time, so that they stay in the cache; features do not notice
SHA256 = "fba6e65141889fbe69a468f25a8c10f9b00985b07f6f93f912f870cda263369a"


class RandomConvExtractor:
    """Features [B, 128] and logits [B, 16] of four random convolutions; an `Extractor` (see
    `stylenat_hub.metrics.features`). Figures by it are **not comparable with published figures**.

    Each convolution halves the sides; the means of the first, second and last one's outputs over the picture
    are the features. Pictures are not resized, so figures of one size do not compare with those of another.
    The classes of the logits mean nothing: an Inception Score by them tells no more than that all is alike.
    Float32 features, the same to the bit everywhere (see above).

    Raises `WeightsError` where torch's generator gives other numbers than it did: then its figures would not
    compare with earlier ones.
    """

    name = f"random-conv ({NOTE})"
    dim = FEATURES

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self._weights = _drawn()
        digest = tensors_sha256(self._weights)
        if digest != SHA256:
            raise WeightsError(
                f"torch {torch.__version__} draws other random weights (SHA-256 {digest[:12]}...) than those "
                f"of random-conv ({SHA256[:12]}...), so its figures would not compare with earlier ones; use "
                "another version of torch, or another extractor"
            )
        self.protocol: Mapping[str, Any] = {
            "extractor": "random-conv",
            "note": NOTE,
            "network": f"{len(LAYERS)} random convolutions in whole numbers, seed {SEED}",
            "resize": "none",
            "normalisation": "x - 128",
            "features": f"{FEATURES}, means of layers 1, 2 and 4",
            "logits": str(CLASSES),
            "precision": "exact",
            "weights_sha256": digest,
            "source": "stylenat_hub",
        }
        self.to(device)

    def to(self, device: str | torch.device) -> RandomConvExtractor:
        """Move the weights there; returns itself."""
        self.device = torch.device(device)
        self._weights = {name: weight.to(self.device) for name, weight in self._weights.items()}
        return self

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> float32 of the same shape, from -128 to 127, on the extractor's device."""
        return check_images(images).to(self.device).float() - 128

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [B, 3, H, W] in RGB -> features [B, 128] and logits [B, 16], float32, on the extractor's
        device. Raises `InputError` for other pictures."""
        height, width = check_images(images).shape[2:]
        with exact():
            some = [self._features(part) for part in images.split(max(1, PIXELS // (height * width)))]
            features = torch.cat(some)
            logits = F.linear(features.floor(), self._weights["classes"])
            return features * UNIT, logits * SPREAD

    def differentiable(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Pictures [B, 3, H, W] in [0, 1] -> the outputs of the four layers [B, C, H', W'] with gradients:
        the same sums, not rounded. For `latents.losses`; no metric uses it."""
        x, maps = images.to(self.device) * 255 - 128, []
        for number, (_, _, shift) in enumerate(LAYERS):
            sums = F.conv2d(x, self._weights[f"layer{number + 1}"], stride=2, padding=1)
            x = (sums * 2.0**-shift).clamp(0, LARGEST)
            maps.append(x)
        return maps

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        x = self.preprocess(images)
        means = []
        for number, (_, _, shift) in enumerate(LAYERS):
            # [B, C, H, W] -> [B, C', H / 2, W / 2]. Some kernels compute with fractions: hence round().
            sums = F.conv2d(x, self._weights[f"layer{number + 1}"], stride=2, padding=1).round_()
            x = sums.mul_(2.0**-shift).floor_().clamp_(0, LARGEST)
            if number in POOLED:
                rows = x.sum(dim=3)  # exact up to 16,400 pixels; the sum of rows may need more than float32
                means.append(rows.sum(dim=2, dtype=torch.int64).float() / (x.shape[2] * x.shape[3]))
        return torch.cat(means, dim=1)


def _drawn() -> dict[str, torch.Tensor]:
    """Whole numbers, because a generator draws these alike on every machine."""
    chance = torch.Generator().manual_seed(SEED)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-WEIGHT, WEIGHT + 1, shape, generator=chance).float()

    weights = {f"layer{n + 1}": whole(out, into, 3, 3) for n, (into, out, _) in enumerate(LAYERS)}
    return {**weights, "classes": whole(CLASSES, FEATURES)}

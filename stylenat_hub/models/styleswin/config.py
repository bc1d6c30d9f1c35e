"""Hyper-parameters of StyleSwin (arXiv 2112.10762) and its published shapes as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stylenat_hub.models.config import IMAGENET_MEAN, IMAGENET_STD, WIDEST, TransformerLevelsConfig, is_whole

WINDOW = 8
LARGEST_WINDOW = 64  # bounds the pairs of a window, 4096 x 4096 biases per head


def _shape(widths: Sequence[int], **fields: Any) -> dict[str, Any]:
    """A preset as the paper states it: windows of 8 (4 at 4 px), 32 channels a head, 4 heads at least."""
    return {
        "resolution": 4 * 2 ** (len(widths) - 1),
        "channels": tuple(widths),
        "num_heads": tuple(max(width // 32, 4) for width in widths),
        "window_sizes": (4,) + (WINDOW,) * (len(widths) - 1),
        **fields,
    }


# All models of one size have one shape. At 1024 px the levels from 64 px on are half as wide.
_SHAPE_256 = _shape((512, 512, 512, 512, 512, 256, 128))
_SHAPE_1024 = _shape((512, 512, 512, 512, 256, 128, 64, 32, 16))

PRESETS: dict[str, dict[str, Any]] = {
    "ffhq-256": _SHAPE_256,
    "ffhq-1024": _SHAPE_1024,
    "celebahq-256": _SHAPE_256,
    "celebahq-1024": _SHAPE_1024,
    "church-256": _SHAPE_256,
    "tiny": _shape((32, 32, 32, 16), z_dim=32, w_dim=32, mapping_layers=4),
}


@dataclass(frozen=True)
class StyleSwinConfig(TransformerLevelsConfig):
    """Everything that fixes the shape and the arithmetic of a StyleSwin generator.

    Fields with one entry per level run from the 4 px level to the output resolution.

    resolution: side of the square output, a power of two from 8 px. channels, num_heads, window_sizes: per
    level. The first half of a level's heads attends in windows, the second half in windows shifted by half a
    window; where one window is the whole level nothing is shifted.
    image_mean, image_std: normalisation of the training images, per RGB channel (images in [0, 1]).

    Source: arXiv 2112.10762, section 3, and the authors' code. Raises `ConfigError` on construction.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    resolution: int
    channels: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_sizes: tuple[int, ...]
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_lr_mul: float = 0.01
    mlp_ratio: float = 4
    qkv_bias: bool = True
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD

    def shift(self, level: int) -> int:
        """How far the windows of the second half of the heads are moved, in pixels."""
        window = self.window_sizes[level]
        return window // 2 if window < self.level_size(level) else 0

    def validate(self) -> None:
        self.validate_common(("channels", "num_heads", "window_sizes"))
        for level in range(self.num_levels):
            self._validate_level(level)

    def _validate_level(self, level: int) -> None:
        size, at = self.level_size(level), f"at level {level} ({self.level_size(level)} px)"
        width, heads, window = self.channels[level], self.num_heads[level], self.window_sizes[level]
        self.validate_width(level, at)
        fits = is_whole(heads, 2, WIDEST) and heads % 2 == 0 and width % heads == 0
        self.require(fits, "num_heads", f"an even divisor of {width} channels {at}, not {heads!r}")
        fits = is_whole(window, 2, LARGEST_WINDOW) and size % window == 0
        allowed = f"a divisor of {size} from 2 to {LARGEST_WINDOW} {at}, not {window!r}"
        self.require(fits, "window_sizes", allowed)

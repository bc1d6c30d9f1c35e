"""Hyper-parameters of StyleNAT (arXiv 2211.05770) and its published shapes as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stylenat_hub.models.config import IMAGENET_MEAN, IMAGENET_STD, WIDEST, TransformerLevelsConfig, is_whole


def partition_heads(num_heads: int, partitions: int) -> tuple[int, ...]:
    """How many heads each partition gets: an even cut, the remainder one head each to the LAST partitions."""
    share, extra = divmod(num_heads, partitions)
    return (share,) * (partitions - extra) + (share + 1,) * extra


def _shape(
    widths: Sequence[int], min_heads: int, dilations: Sequence[Sequence[int]], **fields: Any
) -> dict[str, Any]:
    """A preset as the paper states it: kernel 7 (3 at 4 px), 32 channels a head, `min_heads` at least."""
    return {
        "resolution": 4 * 2 ** (len(widths) - 1),
        "channels": tuple(widths),
        "num_heads": tuple(max(width // 32, min_heads) for width in widths),
        "kernel_sizes": tuple((3 if level == 0 else 7,) * len(d) for level, d in enumerate(dilations)),
        "dilations": tuple(tuple(d) for d in dilations),
        **fields,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "ffhq-256": _shape(
        (512, 512, 512, 512, 512, 256, 128), 4, ([1], [1, 1], [1, 2], [1, 4], [1, 8], [1, 16], [1, 32])
    ),
    "ffhq-1024": _shape(
        (512, 512, 512, 512, 512, 256, 128, 64, 32),
        4,
        ([1], [1, 1], [1, 2], [1, 4], [1, 8], [1, 16], [1, 32], [1, 64], [1, 128]),
    ),
    "church-256": _shape(
        (512, 512, 512, 512, 512, 256, 128),
        8,
        ([1], [1], [1, 2], [1, 2, 4], [1, 2, 4, 8], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 32]),
    ),
    # Small enough to train on a CPU and to ship in the wheel: three partitions at 32 px.
    "toy-church": _shape(
        (128, 128, 128, 64), 4, ([1], [1], [1, 2], [1, 2, 4]), z_dim=128, w_dim=128, mapping_layers=4
    ),
    "tiny": _shape((32, 32, 32, 16), 4, ([1], [1], [1, 2], [1, 2, 4]), z_dim=32, w_dim=32, mapping_layers=4),
}


@dataclass(frozen=True)
class StyleNATConfig(TransformerLevelsConfig):
    """Everything that fixes the shape and the arithmetic of a StyleNAT generator.

    Fields with one entry per level run from the 4 px level to the output resolution.

    resolution: side of the square output, a power of two from 8 px. channels, num_heads: per level.
    kernel_sizes, dilations: per level, one value per Hydra partition; a partition is a run of heads (see
    `partition_heads`). The 4 px level always attends to all 16 tokens, so it has one partition and its kernel
    is a record only.
    image_mean, image_std: normalisation of the training images, per RGB channel (images in [0, 1]).

    Source: arXiv 2211.05770, section 3 and Tables 5 and 6. Raises `ConfigError` on construction.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    resolution: int
    channels: tuple[int, ...]
    num_heads: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    dilations: tuple[tuple[int, ...], ...]
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_lr_mul: float = 0.01
    mlp_ratio: float = 4
    qkv_bias: bool = True
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD

    def validate(self) -> None:
        self.validate_common(("channels", "num_heads", "kernel_sizes", "dilations"))
        for level in range(self.num_levels):
            self._validate_level(level)

    def _validate_level(self, level: int) -> None:
        size, at = self.level_size(level), f"at level {level} ({self.level_size(level)} px)"
        width, heads = self.channels[level], self.num_heads[level]
        kernels, dilations = self.kernel_sizes[level], self.dilations[level]
        self.validate_width(level, at)
        fits = is_whole(heads, 1, WIDEST) and width % heads == 0
        self.require(fits, "num_heads", f"a divisor of {width} channels {at}, not {heads!r}")
        for field, values in (("kernel_sizes", kernels), ("dilations", dilations)):
            whole = isinstance(values, tuple) and values and all(is_whole(v, 1, 4096) for v in values)
            self.require(
                bool(whole), field, f"a list of whole numbers, one per partition, {at}, not {values!r}"
            )
        self.require(
            len(kernels) == len(dilations),
            "kernel_sizes",
            f"as many entries as dilations ({len(dilations)}) {at}",
        )
        self.require(
            len(dilations) <= heads,
            "dilations",
            f"at most {heads} partitions {at}, one head each, not {len(dilations)}",
        )
        if level == 0:
            self.require(
                dilations == (1,), "dilations", "(1,) at the 4 px level, which attends to all its tokens"
            )
        for kernel, dilation in zip(kernels, dilations, strict=True):
            self.require(
                kernel % 2 == 1 and kernel > 1, "kernel_sizes", f"odd numbers from 3 {at}, not {kernel}"
            )
            self.require(
                kernel * dilation <= size,
                "dilations",
                f"kernel * dilation at most {size} {at}, not {kernel} * {dilation} = {kernel * dilation}",
            )

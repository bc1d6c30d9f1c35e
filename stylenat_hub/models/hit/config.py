"""Hyper-parameters of HiT (arXiv 2106.07631) and of its discriminator, and their published shapes as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stylenat_hub.models.config import WIDEST, ModelConfig, is_whole

FIRST = 8  # px, the side of the first stage
NORMS = ("batch", "layer")
POOLINGS = ("blur", "average")


def _shape(
    depths: Sequence[int],
    channels: Sequence[int],
    heads: Sequence[int],
    blocked: Sequence[int],
    **fields: Any,
) -> dict[str, Any]:
    """A preset as the paper states it. heads, blocked: the last heads go on; stages without a block are
    those of high resolution."""
    stages = len(channels)
    return {
        "resolution": FIRST * 2 ** (stages - 1),
        "depths": tuple(depths),
        "channels": tuple(channels),
        "num_heads": (*heads, *(heads[-1:] * (stages - len(heads)))),
        "block_sizes": (*blocked, *((None,) * (stages - len(blocked)))),
        **fields,
    }


_HEADS, _BLOCKED = (16, 8, 4), (4, 4, 8, 8)

# Table 9 and the released code's tables. Where these two differ, the name without an ending is the paper's.
PRESETS: dict[str, dict[str, Any]] = {
    "s-256": _shape((2, 2, 1, 1, 1, 1), (512, 256, 128, 64, 32, 32), _HEADS, _BLOCKED),
    # The paper's figure for HiT-S, 38.01 M parameters, belongs to these widths and not to its Table 9.
    "s-256-38m": _shape((2, 2, 1, 1, 1, 1), (512, 256, 128, 128, 64, 64), _HEADS, _BLOCKED),
    "b-256": _shape((2, 2, 2, 2, 1, 1), (512, 512, 256, 128, 64, 64), _HEADS, _BLOCKED),
    "l-256": _shape((2, 2, 2, 2, 2, 2), (1024, 512, 256, 128, 128, 128), _HEADS, _BLOCKED),
    "b-1024": _shape((2, 2, 2, 2, 1, 1, 1, 1), (512, 512, 256, 128, 64, 64, 32, 32), _HEADS, _BLOCKED),
    "imagenet-128": _shape((2, 2, 2, 2, 2), (1024, 512, 256, 128, 128), _HEADS, _BLOCKED, z_dim=256),
    "imagenet-128-code": _shape((2, 2, 2, 2, 2), (512, 512, 256, 128, 128), _HEADS, _BLOCKED, z_dim=256),
    "tiny": _shape((2, 1, 1), (32, 16, 16), (4, 2), (4,), z_dim=32),
}


@dataclass(frozen=True)
class StagesConfig(ModelConfig):
    """What fixes the shape and the arithmetic of HiT's stages, whatever they start from.

    Fields with one entry per stage run from the first stage to the output resolution.

    resolution: side of the square output, a power of two from that of the first stage. depths: blocks of a
    stage after its cross-attention. channels, num_heads: per stage. block_sizes: side of the square blocks of
    tokens that self-attention works on; None for the stages of high resolution, the last ones, which have no
    self-attention and write RGB. mlp_ratio: width of the MLPs' hidden layer per channel. multi_query: do all
    heads share one key and one value? norm: "batch" (the published models) or "layer". sync_batch_norm:
    statistics over all processes of a training run instead of each one's own. image_mean, image_std:
    normalisation of the training images (images in [0, 1]): the network's are in [-1, 1].
    """

    resolution: int
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    num_heads: tuple[int, ...]
    block_sizes: tuple[int | None, ...]
    mlp_ratio: int = dataclasses.field(default=4, kw_only=True)
    multi_query: bool = dataclasses.field(default=True, kw_only=True)
    norm: str = dataclasses.field(default="batch", kw_only=True)
    sync_batch_norm: bool = dataclasses.field(default=False, kw_only=True)
    image_mean: tuple[float, ...] = dataclasses.field(default=(0.5, 0.5, 0.5), kw_only=True)
    image_std: tuple[float, ...] = dataclasses.field(default=(0.5, 0.5, 0.5), kw_only=True)

    @property
    def first(self) -> int:
        """Side of the first stage's grid of tokens."""
        return FIRST

    @property
    def num_stages(self) -> int:
        return len(self.channels)

    def stage_size(self, stage: int) -> int:
        """Side of the token grid of a stage, in pixels."""
        return self.first * 2**stage

    def validate(self) -> None:
        self.require_power_of_two("resolution", self.first, 4096)
        size, first = self.resolution, self.first
        stages = (size // first).bit_length()
        for field in ("depths", "channels", "num_heads", "block_sizes"):
            value = getattr(self, field)
            fits = isinstance(value, tuple) and len(value) == stages
            self.require(fits, field, f"{stages} entries, one per stage from {first} to {size} px")
        self.require_whole("mlp_ratio", 1, 64)
        for field in ("multi_query", "sync_batch_norm"):
            self.require(isinstance(getattr(self, field), bool), field, "true or false")
        self.require(self.norm in NORMS, "norm", ", ".join(NORMS))
        self.require_rgb("image_mean")
        self.require_rgb("image_std", low=0)
        for stage in range(stages):
            self._validate_stage(stage)
        blocked = [size is not None for size in self.block_sizes]
        self.require(
            blocked == sorted(blocked, reverse=True) and not blocked[-1],
            "block_sizes",
            "null for the last stage and for others right before it, because only these write RGB",
        )

    def _validate_stage(self, stage: int) -> None:
        size, at = self.stage_size(stage), f"at stage {stage} ({self.stage_size(stage)} px)"
        depth, width, heads = self.depths[stage], self.channels[stage], self.num_heads[stage]
        block = self.block_sizes[stage]
        self.require(is_whole(depth, 0, 64), "depths", f"a whole number from 0 to 64 {at}, not {depth!r}")
        last = stage == self.num_stages - 1  # all others become four pixels of a quarter of their channels
        fits = is_whole(width, 1, WIDEST) and (last or width % 4 == 0)
        self.require(fits, "channels", f"a multiple of 4 up to {WIDEST} {at}, not {width!r}")
        fits = is_whole(heads, 1, WIDEST) and width % heads == 0
        self.require(fits, "num_heads", f"a divisor of {width} channels {at}, not {heads!r}")
        if block is not None:
            fits = is_whole(block, 1, size) and size % block == 0
            self.require(fits, "block_sizes", f"null, or a divisor of {size} {at}, not {block!r}")
            self.require(heads % 2 == 0, "num_heads", f"an even number {at}, half per axis, not {heads}")


@dataclass(frozen=True)
class HiTConfig(StagesConfig):
    """Everything that fixes the shape and the arithmetic of a HiT generator: see `StagesConfig`; its first
    stage is at 8 px.

    z_dim: of the latent; w_dim is the same, there is no mapping network.

    Source: arXiv 2106.07631, section 3 and Table 9. Raises `ConfigError` on construction.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    z_dim: int = 512
    w_dim: int | None = None  # filled with z_dim

    def __post_init__(self) -> None:
        if self.w_dim is None:
            object.__setattr__(self, "w_dim", self.z_dim)
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        self.require_whole("z_dim", 1, WIDEST)
        self.require(self.w_dim == self.z_dim, "w_dim", f"the value of z_dim, {self.z_dim}, or nothing")


# Sides, widths and codes are this zoo's choice: the paper's table of its decoder was not at hand. The stages
# of 256 px are HiT-B's from 32 px on.
DECODER_PRESETS: dict[str, dict[str, Any]] = {
    "b-256": {
        "resolution": 256,
        "grid": 32,
        "feature_dim": 256,
        "depths": (2, 2, 1, 1),
        "channels": (256, 128, 64, 64),
        "num_heads": (4, 4, 4, 4),
        "block_sizes": (8, 8, None, None),
    },
    "tiny": {
        "resolution": 32,
        "grid": 8,
        "feature_dim": 16,
        **{name: PRESETS["tiny"][name] for name in ("depths", "channels", "num_heads", "block_sizes")},
    },
}


@dataclass(frozen=True)
class HiTDecoderConfig(StagesConfig):
    """HiT's stages on a grid of features: see `StagesConfig`.

    grid: side of the grid and of the first stage, a power of two from 4. feature_dim: channels of the
    features. Raises `ConfigError` on construction.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DECODER_PRESETS

    grid: int = 8
    feature_dim: int = 256

    @property
    def first(self) -> int:
        return self.grid

    def validate(self) -> None:
        self.require_power_of_two("grid", 4, 1024)
        super().validate()
        self.require_whole("feature_dim", 1, WIDEST)


def _vq(preset: str, codes: int, encoder_channels: tuple[int, ...]) -> dict[str, Any]:
    """A decoder's preset with codes, and with layer norm: the statistics that batch norm keeps lag behind
    codes that move, and an autoencoder is to give a picture back whatever else is in its batch."""
    return {
        **DECODER_PRESETS[preset],
        "norm": "layer",
        "codes": codes,
        "encoder_channels": encoder_channels,
    }


VQ_PRESETS: dict[str, dict[str, Any]] = {
    "b-256": _vq("b-256", 1024, (64, 128, 128, 256)),
    "tiny": _vq("tiny", 256, (16, 32, 32)),
}


@dataclass(frozen=True)
class VQHiTConfig(HiTDecoderConfig):
    """A decoder with the encoder and the codebook before it: see `HiTDecoderConfig`, whose features are the
    codes.

    codes: entries of the codebook. encoder_channels: widths of the encoder from the resolution down to the
    grid. commitment: weight of the encoder's way to its codes, beside 1 for the codes' way to it
    (arXiv 1711.00937, equation 3).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = VQ_PRESETS

    codes: int = 256
    encoder_channels: tuple[int, ...] = ()
    commitment: float = 0.25

    @property
    def decoder(self) -> HiTDecoderConfig:
        """The decoder's part of it."""
        names = {field.name for field in dataclasses.fields(HiTDecoderConfig)}
        return HiTDecoderConfig(**{name: value for name, value in self.to_dict().items() if name in names})

    def validate(self) -> None:
        super().validate()
        self.require_whole("codes", 2, 1 << 20)
        self.require_number("commitment", 0, 1e3)
        widths = self.encoder_channels
        whole = isinstance(widths, tuple) and all(is_whole(c, 4, WIDEST) and c % 4 == 0 for c in widths)
        self.require(
            whole and len(widths) == self.num_stages,
            "encoder_channels",
            f"{self.num_stages} multiples of 4, one per side from {self.resolution} down to {self.grid} px",
        )


def discriminator_channels(resolution: int, multiplier: int = 1) -> tuple[int, ...]:
    """Widths of the published discriminators from `resolution` down to 4 px: 512 up to 32 px, then halved at
    every doubling, times the `multiplier`. Source: the released code's table."""
    sizes = [4 * 2**i for i in range(resolution.bit_length() - 2)]
    return tuple(512 if size <= 32 else multiplier * 16384 // size for size in reversed(sizes))


def _judge(resolution: int, multiplier: int = 1) -> dict[str, Any]:
    return {"resolution": resolution, "channels": discriminator_channels(resolution, multiplier)}


DISCRIMINATOR_PRESETS: dict[str, dict[str, Any]] = {
    **{name: _judge(preset["resolution"]) for name, preset in PRESETS.items() if name != "tiny"},
    "256-wide": _judge(256, multiplier=2),
    "tiny": {"resolution": 32, "channels": (16, 32, 32, 32)},
}


@dataclass(frozen=True)
class HiTDiscriminatorConfig(ModelConfig):
    """Shape and arithmetic of HiT's residual discriminator.

    resolution: side of the pictures, a power of two from 8 px. channels: width at each side from the
    resolution down to 4 px. pooling: how a side is halved, "blur" ([1, 3, 3, 1]) or "average" (2 x 2).
    equalized: weights are kept at N(0, 1) and scaled on use. stddev_group: samples whose spread is told to
    each of them; 1, as published, for none.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DISCRIMINATOR_PRESETS

    resolution: int
    channels: tuple[int, ...]
    pooling: str = "blur"
    equalized: bool = False
    stddev_group: int = 1

    def validate(self) -> None:
        self.require_power_of_two("resolution", 8, 4096)
        size = self.resolution
        sides = size.bit_length() - 2
        whole = isinstance(self.channels, tuple) and all(is_whole(c, 1, WIDEST) for c in self.channels)
        self.require(
            whole and len(self.channels) == sides,
            "channels",
            f"{sides} whole numbers, one per side from {size} down to 4 px, each from 1 to {WIDEST}",
        )
        self.require(self.pooling in POOLINGS, "pooling", ", ".join(POOLINGS))
        self.require(isinstance(self.equalized, bool), "equalized", "true or false")
        self.require_whole("stddev_group", 1, 4096)

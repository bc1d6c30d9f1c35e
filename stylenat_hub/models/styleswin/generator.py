"""The StyleSwin generator (arXiv 2112.10762): a style-based transformer with attention in split windows.

Legend: B batch, H,W tokens of a level, L = H * W, C channels, N heads, D head dim, R output resolution;
h,w windows of an axis, s their side, S = s * s, n heads of one half.
Read it as data flows: levels from 4 to R px with two blocks each, and the picture growing beside them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.layers.partitions import AttentionSite, Partition, windows
from stylenat_hub.layers.resample import upsample_fir
from stylenat_hub.layers.style import MappingNetwork
from stylenat_hub.layers.transformer import (
    Attention,
    Block,
    ToRGB,
    Upsample,
    attention_sites,
    bias_table,
    relative_bias,
    style_layers,
)
from stylenat_hub.models.base import Generator
from stylenat_hub.models.styleswin.config import StyleSwinConfig

SEAM = -100.0  # what the original adds where a shifted window joins opposite borders; exp(-100) is 4e-44
CHUNK_BYTES = {"cpu": 4 << 20}  # a chunk's windows stay in the cache of a CPU core ...
DEFAULT_CHUNK_BYTES = 512 << 20  # ... while a GPU wants all the work it can get at once
MAX_PROBLEMS = 65_535  # CUDA's limit on windows * heads in one scaled_dot_product_attention


class SplitWindowAttention(Attention):
    """Half of the heads attend in windows, the other half in windows shifted by half a window."""

    seam = SEAM

    def __init__(self, channels: int, heads: int, window: int, shift: int, qkv_bias: bool) -> None:
        super().__init__(channels, heads, qkv_bias, (bias_table(heads // 2, window) for _ in range(2)))
        self.shifts = (0, shift)

    def partitions(self, size: int) -> tuple[Partition, ...]:
        """What the heads of each half see on a grid of `size`."""
        found = []
        for half, (table, shift) in enumerate(zip(self.rpb, self.shifts, strict=True)):
            side, heads = (table.shape[1] + 1) // 2, len(table)
            label = f"window {side}" + (f", shifted by {shift}" if shift else "")
            keys = windows(size, side, shift)
            # within the last window of an axis, what lies beyond the seam is of the other border
            beyond = keys < shift
            counted = beyond == (torch.arange(size, device="cpu") < shift)[:, None]
            found.append(Partition(label, slice(half * heads, (half + 1) * heads), keys, counted))
        return tuple(found)

    def attend(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        qkv = qkv.unflatten(1, (size, size)).unflatten(3, (3, self.heads, -1))  # [B, H, W, 3, N, D]
        halves = zip(qkv.chunk(2, dim=4), self.rpb, self.shifts, strict=True)
        x = torch.cat([window_attention(half, table, shift) for half, table, shift in halves], dim=3)
        return x.flatten(3).flatten(1, 2)


def window_attention(qkv: torch.Tensor, table: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """Attention inside of s x s windows that tile the grid, with a bias per offset of key and query.

    qkv [B, H, W, 3, n, D], table [n, 2s-1, 2s-1] -> [B, H, W, n, D]; s divides H and W. With a shift the
    windows begin at row and column `shift`; the last ones of an axis continue at its beginning, and what lies
    on the two sides of that seam hardly sees each other: `SEAM` is added.

    Source: arXiv 2103.14030, section 3.2; the constant is that of StyleSwin's code.
    """
    side = (table.shape[1] + 1) // 2
    if shift:
        qkv = qkv.roll((-shift, -shift), (1, 2))
    qkv = qkv.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [B, h, s, w, s, 3, n, D]
    windows = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # [3, B, h, w, n, s, s, D]
    bias = relative_bias(table).to(qkv.dtype)  # [n, S, S]
    x = _attend_at_seams(windows, bias, shift) if shift else _attend(windows, bias)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)  # [B, H, W, n, D]
    return x.roll((shift, shift), (1, 2)) if shift else x


def _attend_at_seams(windows: torch.Tensor, bias: torch.Tensor, shift: int) -> torch.Tensor:
    """The windows of the last row and of the last column, and all others, each kind with its own bias."""
    side = windows.shape[-2]
    inner, last = slice(None, -1), slice(-1, None)
    rows = []
    for row in (inner, last):
        kinds = [
            _attend(windows[:, :, row, column], bias + seam(side, shift, row == last, column == last, bias))
            for column in (inner, last)
        ]
        rows.append(torch.cat(kinds, dim=2))
    return torch.cat(rows, dim=1)


def seam(side: int, shift: int, rows: bool, columns: bool, like: torch.Tensor) -> torch.Tensor:
    """[S, S]: `SEAM` where the seam that crosses rows or columns lies between query and key, else 0."""
    beyond = torch.arange(side, device=like.device) >= side - shift
    region = 2 * (beyond & rows)[:, None] + (beyond & columns)[None, :].long()
    region = region.flatten()
    return torch.where(region[:, None] == region[None, :], 0.0, SEAM).to(like.dtype)


def _attend(windows: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[3, B, h, w, n, s, s, D] -> [B, h, w, n, s, s, D]: dense attention, some windows at a time."""
    lead, (heads, side, _, dim) = windows.shape[1:4], windows.shape[4:]
    q, k, v = windows.reshape(3, -1, heads, side * side, dim)
    parts = zip(*(x.split(_windows_at_a_time(q)) for x in (q, k, v)), strict=True)
    out = [F.scaled_dot_product_attention(*part, attn_mask=bias[None]) for part in parts]
    return torch.cat(out).reshape(*lead, heads, side, side, dim)


def _windows_at_a_time(q: torch.Tensor) -> int:
    """How many windows [n, S, D] fit the memory budget, with two matrices [S, S] per head, and the limit."""
    _, heads, tokens, dim = q.shape
    size = heads * tokens * (4 * dim + 2 * tokens) * q.element_size()
    return max(1, min(CHUNK_BYTES.get(q.device.type, DEFAULT_CHUNK_BYTES) // size, MAX_PROBLEMS // heads))


class Level(nn.Module):
    """Two blocks at one resolution; every level but the last one then doubles it."""

    def __init__(self, config: StyleSwinConfig, level: int) -> None:
        super().__init__()
        channels = config.channels[level]
        self.size = config.level_size(level)
        self.blocks = nn.ModuleList(
            Block(channels, config.w_dim, _attention(config, level), config.mlp_ratio) for _ in range(2)
        )
        last = level == config.num_levels - 1
        self.upsample = None if last else Upsample(channels, config.channels[level + 1])


def _attention(config: StyleSwinConfig, level: int) -> SplitWindowAttention:
    channels, heads, window = config.channels[level], config.num_heads[level], config.window_sizes[level]
    return SplitWindowAttention(channels, heads, window, config.shift(level), config.qkv_bias)


class StyleSwinGenerator(Generator):
    """StyleSwin: z [B, z_dim] -> images [B, 3, R, R]; `Generator` documents the methods.

    Initialised as the original is, from torch's global generator: the same seed gives the same weights.
    Source: arXiv 2112.10762; checked against tensors recorded from the authors' code (tests/goldens).
    """

    config_class = StyleSwinConfig
    _no_split_modules = ["Block"]  # noqa: RUF012  diffusers' name for "keep on one device"

    def __init__(self, config: StyleSwinConfig) -> None:
        super().__init__(config)
        self.mapping_network = MappingNetwork(
            config.z_dim, config.w_dim, config.mapping_layers, config.mapping_lr_mul
        )
        self.constant = nn.Parameter(torch.randn(1, config.channels[0], 4, 4))
        self.levels = nn.ModuleList(Level(config, level) for level in range(config.num_levels))
        # to_rgb reads a level after its upsampling; the last level has none
        widths = [*config.channels[1:], config.channels[-1]]
        self.to_rgb = nn.ModuleList(ToRGB(width) for width in widths)

    @property
    def num_ws(self) -> int:
        return 2 * len(self.levels)  # one style per block

    @property
    def style_levels(self) -> tuple[int, ...]:
        return tuple(level.size for level in self.levels for _ in level.blocks)

    def style_layers(self) -> list[tuple[int, torch.Tensor]]:
        return style_layers(self.levels)

    def attention_sites(self) -> list[AttentionSite]:
        return attention_sites(self.levels)

    def level_rows(self) -> list[dict[str, Any]]:
        config = self.typed_config
        return [
            {
                "px": level.size,
                "channels": config.channels[i],
                "heads": config.num_heads[i],
                "window": config.window_sizes[i],
                "shift": config.shift(i),
                "parameters": sum(p.numel() for part in (level, to_rgb) for p in part.parameters()),
            }
            for i, (level, to_rgb) in enumerate(zip(self.levels, self.to_rgb, strict=True))
        ]

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        self.check_latents(z)
        return self.mapping_network(z).unsqueeze(1).expand(-1, self.num_ws, -1)

    def synthesis(self, ws: torch.Tensor) -> torch.Tensor:
        return self.preview(ws, self.resolution)

    def preview(self, ws: torch.Tensor, px: int) -> torch.Tensor:
        self.check_styles(ws)
        px = self.check_preview(px)
        x = self.constant.flatten(2).transpose(1, 2).expand(len(ws), -1, -1)  # [B, 16, C]
        rgb = None
        for index, (level, to_rgb) in enumerate(zip(self.levels, self.to_rgb, strict=True)):
            size = level.size
            for number, block in enumerate(level.blocks):
                x = self.run_block(block, x, ws[:, 2 * index + number], size)
            if level.upsample is not None:
                x = level.upsample(x, size)
                size = 2 * size
                rgb = None if rgb is None else upsample_fir(rgb)
            rgb = to_rgb(x, size) if rgb is None else rgb + to_rgb(x, size)
            if px <= size < self.resolution:  # at full size two levels add to the picture: not yet the last
                break
        return rgb

"""The StyleNAT generator (arXiv 2211.05770): a style-based transformer with Hydra neighborhood attention.

Legend: B batch, H,W tokens of a level, L = H * W, C channels, N heads, D head dim, R output resolution.
Read it as data flows: levels from 4 to R px with two blocks each, and the picture growing beside them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.attention import neighborhood_attention
from stylenat_hub.attention.geometry import axis_neighbors
from stylenat_hub.layers.partitions import AttentionSite, Partition, everything, partition
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
from stylenat_hub.models.stylenat.config import StyleNATConfig, partition_heads


class HydraAttention(Attention):
    """Neighborhood attention in partitions of heads, each with its own kernel size and dilation."""

    def __init__(
        self, channels: int, heads: int, kernels: tuple[int, ...], dilations: tuple[int, ...], qkv_bias: bool
    ) -> None:
        sizes = partition_heads(heads, len(kernels))
        super().__init__(
            channels, heads, qkv_bias, (bias_table(n, k) for n, k in zip(sizes, kernels, strict=True))
        )
        self.kernel_sizes = _per_head(kernels, sizes)
        self.dilations = _per_head(dilations, sizes)

    def partitions(self, size: int) -> tuple[Partition, ...]:
        """What each partition's heads see on a grid of `size`."""
        found, start = [], 0
        for table in self.rpb:
            stop = start + len(table)
            kernel, dilation = self.kernel_sizes[start], self.dilations[start]
            keys, _ = axis_neighbors(size, kernel, dilation)
            found.append(partition(f"kernel {kernel}, dilation {dilation}", start, stop, keys))
            start = stop
        return tuple(found)

    def attend(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        qkv = qkv.unflatten(1, (size, size)).unflatten(3, (3, self.heads, -1))  # [B, H, W, 3, N, D]
        q, k, v = qkv.unbind(3)
        x = neighborhood_attention(
            q, k, v, kernel_size=self.kernel_sizes, dilation=self.dilations, rpb=list(self.rpb)
        )
        return x.flatten(3).flatten(1, 2)


class GlobalAttention(Attention):
    """Attention of all tokens to all tokens with a relative position bias, for the 4 px level."""

    def __init__(self, channels: int, heads: int, size: int, qkv_bias: bool) -> None:
        super().__init__(channels, heads, qkv_bias, [bias_table(heads, size)])

    def partitions(self, size: int) -> tuple[Partition, ...]:
        """All heads see all tokens."""
        return (partition("all tokens", 0, self.heads, everything(size)),)

    def attend(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, N, L, D] each
        bias = relative_bias(self.rpb[0]).to(q.dtype)  # [N, L, L]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(len(q), -1, -1, -1))
        return x.transpose(1, 2).flatten(2)


class Level(nn.Module):
    """Two blocks at one resolution; every level but the last one then doubles it."""

    def __init__(self, config: StyleNATConfig, level: int) -> None:
        super().__init__()
        channels, size = config.channels[level], config.level_size(level)
        self.size = size
        self.blocks = nn.ModuleList(
            Block(channels, config.w_dim, _attention(config, level), config.mlp_ratio) for _ in range(2)
        )
        last = level == config.num_levels - 1
        self.upsample = None if last else Upsample(channels, config.channels[level + 1])


class StyleNATGenerator(Generator):
    """StyleNAT: z [B, z_dim] -> images [B, 3, R, R]; `Generator` documents the methods.

    Initialised as the original is, from torch's global generator: the same seed gives the same weights.
    Source: arXiv 2211.05770; checked against tensors recorded from the authors' code (tests/goldens).
    """

    config_class = StyleNATConfig
    _no_split_modules = ["Block"]  # noqa: RUF012  diffusers' name for "keep on one device"

    def __init__(self, config: StyleNATConfig) -> None:
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
                "kernels": config.kernel_sizes[i],
                "dilations": config.dilations[i],
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


def _attention(config: StyleNATConfig, level: int) -> Attention:
    channels, heads = config.channels[level], config.num_heads[level]
    if level == 0:
        return GlobalAttention(channels, heads, config.level_size(0), config.qkv_bias)
    return HydraAttention(
        channels, heads, config.kernel_sizes[level], config.dilations[level], config.qkv_bias
    )


def _per_head(values: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value for value, size in zip(values, sizes, strict=True) for _ in range(size))

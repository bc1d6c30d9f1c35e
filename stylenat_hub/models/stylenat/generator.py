"""The StyleNAT generator (arXiv 2211.05770): a style-based transformer with Hydra neighborhood attention.

Legend: B batch, H,W tokens of a level, L = H * W, C channels, N heads, D head dim, R output resolution.
Read it as data flows: levels from 4 to R px with two blocks each, and the picture growing beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.attention import neighborhood_attention
from stylenat_hub.errors import InputError
from stylenat_hub.layers.position import sine_positions
from stylenat_hub.layers.resample import upsample_fir, upsample_tokens
from stylenat_hub.layers.style import AdaIN, MappingNetwork
from stylenat_hub.models.base import Generator
from stylenat_hub.models.stylenat.config import StyleNATConfig, partition_heads

PART_BYTES = 4 << 20  # of the widest layer; so much at a time stays in a CPU's cache


def _linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Linear layer with the transformer's initialisation: truncated normal of 0.02, bias 0."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """What both kinds of attention share: projections in and out, and a bias table per partition."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool, tables: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(channels, 3 * channels, qkv_bias)
        self.rpb = nn.ParameterList(tables)
        self.proj = _linear(channels, channels)

    def forward(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, C] -> [B, L, C] on a grid of `size` x `size` tokens."""
        return self.proj(self.attend(self.qkv(x), size))

    def attend(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, 3C] -> [B, L, C]: what lies between the projections."""
        raise NotImplementedError


class HydraAttention(Attention):
    """Neighborhood attention in partitions of heads, each with its own kernel size and dilation."""

    def __init__(
        self, channels: int, heads: int, kernels: tuple[int, ...], dilations: tuple[int, ...], qkv_bias: bool
    ) -> None:
        sizes = partition_heads(heads, len(kernels))
        super().__init__(
            channels, heads, qkv_bias, (_bias_table(n, k) for n, k in zip(sizes, kernels, strict=True))
        )
        self.kernel_sizes = _per_head(kernels, sizes)
        self.dilations = _per_head(dilations, sizes)

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
        super().__init__(channels, heads, qkv_bias, [_bias_table(heads, size)])

    def attend(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, N, L, D] each
        offset = torch.arange(size, device=qkv.device)
        offset = offset[None, :] - offset[:, None] + size - 1  # [query, key] along one axis
        bias = self.rpb[0][:, offset[:, None, :, None], offset[None, :, None, :]]  # [N, H, W, H, W]
        bias = bias.flatten(3).flatten(1, 2).to(q.dtype)  # [N, L, L]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(len(q), -1, -1, -1))
        return x.transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = round(channels * ratio)
        self.fc1 = _linear(channels, hidden)
        self.fc2 = _linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention, then MLP, each after a style-modulated norm and around a skip connection."""

    def __init__(self, channels: int, w_dim: int, attention: Attention, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = AdaIN(channels, w_dim)
        self.attn = attention
        self.norm2 = AdaIN(channels, w_dim)
        self.mlp = MLP(channels, mlp_ratio)

    def forward(self, x: torch.Tensor, w: torch.Tensor, size: int) -> torch.Tensor:
        """x [B, L, C], w [B, w_dim] -> [B, L, C]."""
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            return self._forward_in_parts(x, w, size)
        x = x + self.attn(self.norm1(x, w), size)
        return x + self.mlp(self.norm2(x, w))

    def _forward_in_parts(self, x: torch.Tensor, w: torch.Tensor, size: int) -> torch.Tensor:
        """The same sums; what acts on single tokens is done for some at a time, which stay in the cache.

        Hooks on the linear layers see the parts; `attn`, `norm1` and `norm2` are not called as modules here.
        """
        tokens = max(1, PART_BYTES // (self.mlp.fc1.out_features * x.element_size()))
        parts = [(b, slice(i, i + tokens)) for b in range(len(x)) for i in range(0, x.shape[1], tokens)]
        mean, scale, shift = self.norm1.statistics(x, w)
        qkv = x.new_empty(*x.shape[:2], 3 * x.shape[2])
        for b, part in parts:
            qkv[b, part] = self.attn.qkv(self.norm1.modulate(x[b, part], mean[b], scale[b], shift[b]))
        attended = self.attn.attend(qkv, size)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for b, part in parts:
            torch.add(x[b, part], self.attn.proj(attended[b, part]), out=out[b, part])
        mean, scale, shift = self.norm2.statistics(out, w)
        for b, part in parts:
            out[b, part] += self.mlp(self.norm2.modulate(out[b, part], mean[b], scale[b], shift[b]))
        return out


class Upsample(nn.Module):
    """Twice the grid, the next level's channels, and the position code of the new grid."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=1e-5)
        self.proj = _linear(in_channels, out_channels, bias=False)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, C] on a grid of `size` -> [B, 4L, C'] on a grid of 2 * `size`."""
        x = upsample_tokens(x.unflatten(1, (size, size)))
        x = self.proj(self.norm(x))
        x = x + self.alpha * sine_positions(2 * size, 2 * size, x.shape[-1], like=x)
        return x.flatten(1, 2)


class ToRGB(nn.Module):
    """Tokens to RGB. Two biases, as in the original: they learn at twice the rate, so both are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 1)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        nn.init.xavier_normal_(self.conv.weight, gain=0.02)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, C] on a grid of `size` -> [B, 3, size, size]."""
        rgb = F.linear(x, self.conv.weight.flatten(1), self.conv.bias)  # a 1 x 1 convolution, in token layout
        return rgb.transpose(1, 2).unflatten(2, (size, size)) + self.bias


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
        if ws.shape[1:] != (self.num_ws, self.w_dim):
            raise InputError(
                f"ws has the shape {tuple(ws.shape)}; this model needs [batch, {self.num_ws}, {self.w_dim}]"
            )
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
        return rgb


def _attention(config: StyleNATConfig, level: int) -> Attention:
    channels, heads = config.channels[level], config.num_heads[level]
    if level == 0:
        return GlobalAttention(channels, heads, config.level_size(0), config.qkv_bias)
    return HydraAttention(
        channels, heads, config.kernel_sizes[level], config.dilations[level], config.qkv_bias
    )


def _bias_table(heads: int, size: int) -> nn.Parameter:
    """[heads, 2 * size - 1, 2 * size - 1], one bias per offset, height first."""
    table = nn.Parameter(torch.empty(heads, 2 * size - 1, 2 * size - 1))
    nn.init.trunc_normal_(table, std=0.02)  # in place: while diffusers loads, these functions return None
    return table


def _per_head(values: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value for value, size in zip(values, sizes, strict=True) for _ in range(size))

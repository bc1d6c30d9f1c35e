"""The transformer block that StyleSwin (arXiv 2112.10762) and StyleNAT (2211.05770) share, whatever attends
in it, and what joins their levels: upsampling with a position code, tokens to RGB.

Legend: B batch, H,W tokens of a level, L = H * W, C channels, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stylenat_hub.layers.logits import Compared
from stylenat_hub.layers.partitions import AttentionSite
from stylenat_hub.layers.position import sine_positions
from stylenat_hub.layers.resample import upsample_tokens
from stylenat_hub.layers.style import AdaIN

PART_BYTES = 4 << 20  # of the widest layer; so much at a time stays in a CPU's cache


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Linear layer with the transformer's initialisation: truncated normal of 0.02, bias 0."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def bias_table(heads: int, size: int) -> nn.Parameter:
    """[heads, 2 * size - 1, 2 * size - 1], one bias per offset, height first."""
    table = nn.Parameter(torch.empty(heads, 2 * size - 1, 2 * size - 1))
    nn.init.trunc_normal_(table, std=0.02)  # in place: while diffusers loads, these functions return None
    return table


def relative_bias(table: torch.Tensor) -> torch.Tensor:
    """A bias per offset [N, 2s-1, 2s-1] -> one per pair of tokens of an s x s grid, [N, s * s, s * s].

    Query first; the offset is key minus query, plus s - 1.
    """
    size = (table.shape[1] + 1) // 2
    offset = torch.arange(size, device=table.device)
    offset = offset[None, :] - offset[:, None] + size - 1  # [query, key] along one axis
    bias = table[:, offset[:, None, :, None], offset[None, :, None, :]]  # [N, s, s, s, s]
    return bias.flatten(3).flatten(1, 2)


class Attention(nn.Module):
    """What all kinds of attention share: projections in and out, and a bias table per partition of heads."""

    watched: ClassVar[str] = "attend"  # the method whose first argument `compared` takes
    seam: ClassVar[float] = 0.0  # what is added where a pair does not count

    def __init__(self, channels: int, heads: int, qkv_bias: bool, tables: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(channels, 3 * channels, qkv_bias)
        self.rpb = nn.ParameterList(tables)
        self.proj = linear(channels, channels)

    def forward(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, C] -> [B, L, C] on a grid of `size` x `size` tokens."""
        return self.proj(self.attend(self.qkv(x), size))

    def attend(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, 3C] -> [B, L, C]: what lies between the projections."""
        raise NotImplementedError

    def compared(self, qkv: torch.Tensor, size: int) -> Compared:
        """[B, L, 3C] -> what the weights of `attend` are made of; views, nothing is copied."""
        q, k, _ = qkv.unflatten(1, (size, size)).unflatten(3, (3, self.heads, -1)).unbind(3)
        return Compared(q, k, tuple(self.rpb), self.seam)


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = round(channels * ratio)
        self.fc1 = linear(channels, hidden)
        self.fc2 = linear(hidden, channels)

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
        self.proj = linear(in_channels, out_channels, bias=False)
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


def style_layers(levels: Iterable[nn.Module]) -> list[tuple[int, torch.Tensor]]:
    """The weights [2C, w_dim] that read styles in `levels` of such blocks, each with its style's number: one
    style per block. See `Generator.style_layers`."""
    blocks = [block for level in levels for block in level.blocks]
    return [(i, norm.style.weight) for i, b in enumerate(blocks) for norm in (b.norm1, b.norm2)]


def attention_sites(levels: Iterable[nn.Module]) -> list[AttentionSite]:
    """Every attention in `levels` of such blocks. See `Generator.attention_sites`."""
    return [
        AttentionSite(level.size, number + 1, block.attn, block.attn.partitions(level.size))
        for level in levels
        for number, block in enumerate(level.blocks)
    ]

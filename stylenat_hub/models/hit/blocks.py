"""What HiT (arXiv 2106.07631) does within a stage: attention along two axes of a picture cut into blocks,
cross-attention to the latent's tokens, MLPs, and the blocks of these.

Legend: B batch, H,W tokens of a stage, M blocks of tokens, T tokens of a block, S tokens attended to, C
channels, N heads, K heads of keys and values (1, or N), D head dim. Tokens are [B, H, W, C], or [B, M, T, C]
where they are cut into blocks: everything but self-attention treats tokens one by one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stylenat_hub.layers.logits import Compared
from stylenat_hub.layers.partitions import Partition, partition, strides, windows
from stylenat_hub.models.hit.config import StagesConfig
from stylenat_hub.models.hit.norm import BatchNorm


def learned(*shape: int) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(shape))
    _initialise(weight)
    return weight


def _initialise(weight: torch.Tensor) -> None:
    """Truncated normal of 0.02, cut at two sigma. In place: while diffusers loads, it returns None."""
    nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)


def linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    _initialise(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def make_norm(config: StagesConfig, channels: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(channels, eps=1e-6)
    return BatchNorm(channels, synchronised=config.sync_batch_norm)


def to_blocks(x: torch.Tensor, side: int) -> torch.Tensor:
    """[B, H, W, C] -> [B, M, T, C]: squares of `side` tokens, row by row, and the tokens of each likewise."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [B, H/side, side, W/side, side, C]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_blocks(x: torch.Tensor, side: int, height: int) -> torch.Tensor:
    """[B, M, T, C] -> [B, H, W, C] with H = `height`, undoing `to_blocks`."""
    x = x.unflatten(2, (side, side)).unflatten(1, (height // side, -1))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class _Attend(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v, with a gradient that can itself be differentiated.

    The fused kernels of `scaled_dot_product_attention` cannot, and path-length regularisation does it. So the
    gradient is written out here, on weights that are computed anew.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [B, K, L, D], k and v [B, K, S, D] -> [B, K, L, D]."""
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        weights = (q @ k.mT * scale).softmax(dim=-1)  # [B, K, L, S]
        grad_weights = grad @ v.mT
        grad_logits = weights * (grad_weights - (grad_weights * weights).sum(dim=-1, keepdim=True)) * scale
        return grad_logits @ k, grad_logits.mT @ q, weights.mT @ grad


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q [..., L, N, D], k and v [..., S, K, D] -> [..., L, N, D]: attention among each leading index.

    Heads that share a key lie in the same matrix, as if they were more tokens, so that it is read once.
    """
    *lead, length, heads, _ = q.shape
    shared = k.shape[-2]
    q = q.unflatten(-2, (shared, heads // shared)).flatten(0, -5).permute(0, 2, 1, 3, 4)  # [B', K, L, N/K, D]
    k, v = (x.flatten(0, -4).transpose(1, 2) for x in (k, v))  # [B', K, S, D]
    x = _Attend.apply(q.flatten(2, 3), k, v).unflatten(2, (length, -1))
    return x.transpose(1, 2).flatten(2, 3).reshape(*lead, length, heads, -1)


class Attention(nn.Module):
    """What both kinds of attention share: queries for each head, and keys and values for one or for each.

    Source: arXiv 1911.02150 (multi-query), arXiv 2106.07631, Algorithms 1 and 2.
    """

    def __init__(self, channels: int, source: int, heads: int, multi_query: bool) -> None:
        super().__init__()
        self.heads, width = heads, channels // heads
        self.shared = 1 if multi_query else heads
        self.query = linear(channels, channels)
        self.key = linear(source, self.shared * width)
        self.value = linear(source, self.shared * width)
        self.proj = linear(channels, channels)

    def projected(self, x: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q [..., N, D] of the tokens x [..., C]; k and v [..., K, D] of the tokens `source` [..., C']."""
        q = self.query(x).unflatten(-1, (self.heads, -1))
        k, v = (layer(source).unflatten(-1, (self.shared, -1)) for layer in (self.key, self.value))
        return q, k, v


class CrossAttention(Attention):
    """Every token attends to all tokens of the latent's embedding."""

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x [B, ..., C], embedding [B, S, C'] -> [B, ..., C]."""
        q, k, v = self.projected(x.flatten(1, -2), embedding)
        return self.proj(attend(q, k, v).flatten(2)).view_as(x)

    def weights(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x [B, ..., C], embedding [B, S, C'] -> [B, ..., N, S]: how much each token attends to each of the
        latent's, summing to 1. In float32 at least."""
        q, k, _ = self.projected(x.flatten(1, -2), embedding)
        q, k = (
            y.to(torch.promote_types(y.dtype, torch.float32)) for y in (q, k.expand(-1, -1, self.heads, -1))
        )
        logits = torch.einsum("blnd,bsnd->blns", q * q.shape[-1] ** -0.5, k)
        return logits.softmax(dim=-1).unflatten(1, x.shape[1:-1])


class MultiAxisAttention(Attention):
    """The first heads attend within a block, the others across blocks, to the tokens of the same place.

    This is the order of the released code; Algorithm 2 of the paper has the other one.
    """

    watched: ClassVar[str] = "forward"  # the method whose first argument `compared` takes

    def __init__(self, channels: int, heads: int, multi_query: bool, within: int | None = None) -> None:
        """within: how many heads attend within a block; by default half of them."""
        super().__init__(channels, channels, heads, multi_query)
        self.within = heads // 2 if within is None else within

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, M, T, C] -> [B, M, T, C]."""
        q, k, v = self.projected(x, x)
        parts = []
        if self.within > 0:
            heads = slice(self.within)
            parts.append(attend(q[..., heads, :], self._of(k, heads), self._of(v, heads)))
        if self.within < self.heads:
            heads = slice(self.within, None)
            q, k, v = (y.transpose(1, 2) for y in (q[..., heads, :], self._of(k, heads), self._of(v, heads)))
            parts.append(attend(q, k, v).transpose(1, 2))
        return self.proj(torch.cat(parts, dim=3).flatten(3))

    def partitions(self, size: int, side: int) -> tuple[Partition, ...]:
        """What the heads see on a grid of `size` that is cut into blocks of `side`."""
        both = (
            partition("within a block", 0, self.within, windows(size, side)),
            partition("across blocks", self.within, self.heads, strides(size, side)),
        )
        return tuple(part for part in both if part.num_heads)

    def compared(self, x: torch.Tensor, size: int) -> Compared:
        """[B, M, T, C] of a grid of `size` -> what the weights of `forward` are made of, as a grid."""
        side = math.isqrt(x.shape[2])  # blocks are square
        q, k = (from_blocks(layer(x), side, size) for layer in (self.query, self.key))
        q, k = q.unflatten(-1, (self.heads, -1)), k.unflatten(-1, (self.shared, -1))
        return Compared(q, k.expand_as(q), (None, None))

    def _of(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """What these heads see of the keys or values [..., K, D]."""
        return x if self.shared == 1 else x[..., heads, :]


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between them (the paper says ReLU).

    Without gradients the GELU overwrites what `fc1` returned (unless a hook may have kept it): fresh memory
    costs a CPU more than the GELU.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = linear(channels, channels * ratio)
        self.fc2 = linear(channels * ratio, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., C]."""
        hidden = self.fc1(x)
        kept = torch.is_grad_enabled() or self.fc1._forward_hooks
        return self.fc2(F.gelu(hidden) if kept else torch.ops.aten.gelu_(hidden))


class MLPBlock(nn.Module):
    """The block of high resolution: an MLP after a norm and around a skip connection."""

    def __init__(self, config: StagesConfig, channels: int) -> None:
        super().__init__()
        self.norm = make_norm(config, channels)
        self.mlp = MLP(channels, config.mlp_ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ..., C] -> [B, ..., C]."""
        return x + self.mlp(self.norm(x))


class AttentionBlock(nn.Module):
    """Attention, then MLP, each after a norm and around a skip connection."""

    def __init__(self, config: StagesConfig, channels: int, attention: Attention) -> None:
        super().__init__()
        self.norm1 = make_norm(config, channels)
        self.attn = attention
        self.norm2 = make_norm(config, channels)
        self.mlp = MLP(channels, config.mlp_ratio)

    def forward(self, x: torch.Tensor, *embedding: torch.Tensor) -> torch.Tensor:
        """[B, ..., C] -> [B, ..., C]. embedding: what cross-attention reads, as it is; self-attention has
        none."""
        x = x + self.attn(self.norm1(x), *embedding)
        return x + self.mlp(self.norm2(x))

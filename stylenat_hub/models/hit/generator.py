"""The HiT generator (arXiv 2106.07631): self-attention in blocks where the picture is small, none where it
is large, and cross-attention to the latent at every stage.

Legend: B batch, H,W tokens of a stage, M blocks of tokens, T tokens of a block, S tokens attended to, C
channels, N heads, K heads of keys and values (1, or N), D head dim, R output resolution.
Read it as data flows: stages from 8 to R px, and the picture growing beside the last of them. Tokens are
[B, H, W, C], or [B, M, T, C] inside a stage that is cut into blocks: everything but self-attention treats
tokens one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.errors import InputError
from stylenat_hub.models.base import MEAN_LATENTS, MEAN_SEED, Generator
from stylenat_hub.models.hit.config import FIRST, HiTConfig, StagesConfig
from stylenat_hub.models.hit.norm import BatchNorm, OnceCounted

EMBEDDING = 16  # tokens that the latent becomes, which every stage's cross-attention reads


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


def depth_to_space(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] -> [B, 2H, 2W, C/4]: a quarter of the channels for each of the four new tokens, row by row
    (TensorFlow's order; torch's pixel_shuffle has the new tokens innermost)."""
    x = x.unflatten(3, (2, 2, -1))  # [B, H, W, 2, 2, C/4]
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


class MultiAxisAttention(Attention):
    """The first heads attend within a block, the others across blocks, to the tokens of the same place.

    This is the order of the released code; Algorithm 2 of the paper has the other one.
    """

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

    def _of(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """What these heads see of the keys or values [..., K, D]."""
        return x if self.shared == 1 else x[..., heads, :]


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between them (the paper says ReLU)."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = linear(channels, channels * ratio)
        self.fc2 = linear(channels * ratio, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(F.gelu(self.fc1(x)))


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


class ToRGB(nn.Module):
    """Tokens to RGB, added to the picture so far with each of its pixels doubled."""

    def __init__(self, config: StagesConfig, channels: int) -> None:
        super().__init__()
        self.norm = make_norm(config, channels)
        self.proj = linear(channels, 3)

    def forward(self, x: torch.Tensor, rgb: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, H, W, C], rgb [B, H/2, W/2, 3] -> [B, H, W, 3]."""
        new = self.proj(self.norm(x))
        if rgb is None:
            return new
        return new + rgb.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


class Upsample(nn.Module):
    """Four tokens for each, and the next stage's channels; no projection where a quarter is what it needs."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        quarter = in_channels // 4
        self.proj = nn.Identity() if quarter == out_channels else linear(quarter, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> [B, 2H, 2W, C']."""
        return self.proj(depth_to_space(x))


class Stage(nn.Module):
    """One resolution: learned positions, cross-attention, blocks; RGB where it is high; all but the last
    double the resolution."""

    def __init__(self, config: StagesConfig, stage: int) -> None:
        super().__init__()
        channels, heads, self.side = (
            config.channels[stage],
            config.num_heads[stage],
            config.block_sizes[stage],
        )
        self.size = size = config.stage_size(stage)
        self.position = learned(size, size, channels)
        self.cross = AttentionBlock(
            config, channels, CrossAttention(channels, config.channels[0], heads, config.multi_query)
        )
        blocked = self.side is not None
        self.blocks = nn.ModuleList(
            AttentionBlock(config, channels, MultiAxisAttention(channels, heads, config.multi_query))
            if blocked
            else MLPBlock(config, channels)
            for _ in range(config.depths[stage])
        )
        self.to_rgb = None if blocked else ToRGB(config, channels)
        last = stage == config.num_stages - 1
        self.upsample = None if last else Upsample(channels, config.channels[stage + 1])

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> the same with positions, cut into blocks [B, M, T, C] where there are any."""
        x = x + self.position
        return x if self.side is None else to_blocks(x, self.side)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """What `enter` made -> [B, H, W, C]."""
        return x if self.side is None else from_blocks(x, self.side, self.size)


class Embedding(nn.Module):
    """The latent as tokens, which is all that cross-attention sees of it."""

    def __init__(self, config: HiTConfig) -> None:
        super().__init__()
        channels = config.channels[0]
        self.proj = linear(config.z_dim, EMBEDDING * channels)
        self.position = learned(EMBEDDING, channels)
        self.norm = make_norm(config, channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[B, z_dim] -> [B, 16, C]."""
        return self.norm(self.proj(z).unflatten(1, (EMBEDDING, -1)) + self.position)


def through_stages(
    stages: Iterable[Stage], x: torch.Tensor, embedding: torch.Tensor, run: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """x [B, H, W, C] of the first stage, embedding [B, S, C] -> images [B, 3, R, R].

    run: calls a block with its arguments; a model that keeps less for gradients does so there.
    """
    rgb = None
    for stage in stages:
        x = run(stage.cross, stage.enter(x), embedding)
        for block in stage.blocks:
            x = run(block, x)
        x = stage.leave(x)
        if stage.to_rgb is not None:
            rgb = stage.to_rgb(x, rgb)
        if stage.upsample is not None:
            x = stage.upsample(x)
    return rgb.permute(0, 3, 1, 2).contiguous()


def statistics_of(model: nn.Module) -> list[torch.Tensor]:
    """What the model's batch norms keep; see `Generator.statistics`."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [kept for norm in norms for kept in (norm.running_mean, norm.running_var)]


class HiTGenerator(Generator):
    """HiT: z [B, z_dim] -> images [B, 3, R, R] in [-1, 1] and a little beyond; `Generator` documents the
    methods.

    There is no mapping network: the style is z itself, its mean is 0, and truncation scales z. With batch
    norm the training mode looks at the whole batch (and, with `sync_batch_norm`, at those of all processes)
    and moves the statistics that the eval mode uses.
    Source: arXiv 2106.07631; checked against tensors recorded from the authors' code (tests/goldens/hit).
    """

    config_class = HiTConfig
    num_ws = 1
    _no_split_modules = ["AttentionBlock", "MLPBlock"]  # noqa: RUF012  diffusers' name for "on one device"

    def __init__(self, config: HiTConfig) -> None:
        super().__init__(config)
        self.w_avg.zero_()  # known without an estimate
        self.stem = linear(config.z_dim, FIRST * FIRST * config.channels[0])
        self.embedding = Embedding(config)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(config.num_stages))

    def estimate_w_avg(self, latents: int = MEAN_LATENTS, seed: int = MEAN_SEED) -> None:
        """Set `w_avg` to 0, the mean of z; nothing is drawn."""
        with torch.no_grad():
            self.w_avg.zero_()

    def statistics(self) -> list[torch.Tensor]:
        return statistics_of(self)

    def level_rows(self) -> list[dict[str, Any]]:
        config = self.typed_config
        first = sum(p.numel() for part in (self.stem, self.embedding) for p in part.parameters())
        return [
            {
                "px": stage.size,
                "channels": config.channels[i],
                "heads": config.num_heads[i],
                "block": stage.side or "-",
                "depth": config.depths[i],
                "parameters": sum(p.numel() for p in stage.parameters()) + (first if i == 0 else 0),
            }
            for i, stage in enumerate(self.stages)
        ]

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        self.check_latents(z)
        return z.unsqueeze(1)

    def synthesis(self, ws: torch.Tensor) -> torch.Tensor:
        if ws.dim() != 3 or ws.shape[1:] != (1, self.w_dim):
            raise InputError(f"ws has the shape {tuple(ws.shape)}; this model needs [batch, 1, {self.w_dim}]")
        z = ws[:, 0]
        x = self.stem(z).unflatten(1, (FIRST, FIRST, -1))
        return through_stages(self.stages, x, self.embedding(z), self.run_block)

    def run_block(self, block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        return super().run_block(OnceCounted(block) if self.gradient_checkpointing else block, *args)

"""The HiT generator (arXiv 2106.07631): self-attention in blocks where the picture is small, none where it
is large, and cross-attention to the latent at every stage.

Legend: B batch, H,W tokens of a stage, M blocks of tokens, T tokens of a block, S tokens attended to, C
channels, R output resolution.
Read it as data flows: stages from 8 to R px, and the picture growing beside the last of them; what a stage
consists of is in `blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.layers.partitions import AttentionSite, CrossSite
from stylenat_hub.models.base import MEAN_LATENTS, MEAN_SEED, Generator
from stylenat_hub.models.hit.blocks import (
    AttentionBlock,
    CrossAttention,
    MLPBlock,
    MultiAxisAttention,
    from_blocks,
    learned,
    linear,
    make_norm,
    to_blocks,
)
from stylenat_hub.models.hit.config import FIRST, HiTConfig, StagesConfig
from stylenat_hub.models.hit.norm import BatchNorm, OnceCounted

STRIP_BYTES = 4 << 20  # of the widest layer; so much at a time stays in a CPU's cache
EMBEDDING = 16  # tokens that the latent becomes, which every stage's cross-attention reads


def depth_to_space(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] -> [B, 2H, 2W, C/4]: a quarter of the channels for each of the four new tokens, row by row
    (TensorFlow's order; torch's pixel_shuffle has the new tokens innermost)."""
    x = x.unflatten(3, (2, 2, -1))  # [B, H, W, 2, 2, C/4]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


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

    def enter(self, x: torch.Tensor, top: int = 0) -> torch.Tensor:
        """Rows [B, h, W, C] from row `top` on -> the same with positions; cut into blocks [B, M, T, C] where
        there are any, which takes all rows."""
        x = x + self.position[top : top + x.shape[1]]
        return x if self.side is None else to_blocks(x, self.side)

    def process(
        self, x: torch.Tensor, embedding: torch.Tensor, run: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """What `enter` made -> the same, after every block; `run` calls each with its arguments."""
        x = run(self.cross, x, embedding)
        for block in self.blocks:
            x = run(block, x)
        return x

    def attention_sites(self) -> list[AttentionSite]:
        """Its self-attentions; none in a stage without blocks."""
        if self.side is None:
            return []
        modules = [block.attn for block in self.blocks]
        return [
            AttentionSite(self.size, number + 1, module, module.partitions(self.size, self.side))
            for number, module in enumerate(modules)
        ]

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
    stages: Sequence[Stage], x: torch.Tensor, embedding: torch.Tensor, run: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """x [B, H, W, C] of the first stage, embedding [B, S, C] -> images [B, 3, R, R].

    run: calls a block with its arguments; a model that keeps less for gradients does so there.
    """
    blocked = sum(stage.side is not None for stage in stages)
    for stage in stages[:blocked]:
        x = stage.upsample(stage.leave(stage.process(stage.enter(x), embedding, run)))
    rgb = (_in_strips if _strips_pay(stages[blocked:], x) else _paint)(stages[blocked:], x, embedding, run)
    return rgb.permute(0, 3, 1, 2).contiguous()


def _paint(
    stages: Sequence[Stage],
    x: torch.Tensor,
    embedding: torch.Tensor,
    run: Callable[..., torch.Tensor],
    top: int = 0,
) -> torch.Tensor:
    """x [B, h, W, C], rows of the first of the `stages` without blocks from row `top` on -> RGB of all that
    these rows become, [B, h', R, 3]."""
    rgb = None
    for stage in stages:
        x = stage.process(stage.enter(x, top), embedding, run)
        rgb = stage.to_rgb(x, rgb)
        if stage.upsample is not None:
            x, top = stage.upsample(x), 2 * top
    return rgb


def _in_strips(
    stages: Sequence[Stage], x: torch.Tensor, embedding: torch.Tensor, run: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """`_paint` for a few rows at a time, through all stages while they lie in the cache: no stage without
    blocks looks beyond a token. Hooks on the layers see the strips."""
    height, growth = x.shape[1], stages[-1].size // stages[0].size
    widest = max(stage.cross.mlp.fc1.out_features * stage.size**2 for stage in stages)
    rows = max(1, STRIP_BYTES * height // (widest * x.element_size()))
    samples = max(1, rows // height)
    rgb = x.new_empty(len(x), height * growth, stages[-1].size, 3)
    for b in range(0, len(x), samples):
        some = slice(b, b + samples)
        for top in range(0, height, rows):
            strip = _paint(stages, x[some, top : top + rows], embedding[some], run, top)
            rgb[some, top * growth : (top + rows) * growth] = strip
    return rgb


def _strips_pay(stages: Sequence[Stage], x: torch.Tensor) -> bool:
    """Is it worth its calls, and can it be? In training mode any one batch norm needs all tokens at once."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    norms = (m for stage in stages for m in stage.modules() if isinstance(m, BatchNorm))
    return not any(norm.training for norm in norms)


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
    styles_are_latents = True
    token_upsampling = "nearest"
    num_ws = 1
    _no_split_modules = ["AttentionBlock", "MLPBlock"]  # noqa: RUF012  diffusers' name for "on one device"

    def __init__(self, config: HiTConfig) -> None:
        super().__init__(config)
        self.stem = linear(config.z_dim, FIRST * FIRST * config.channels[0])
        self.embedding = Embedding(config)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(config.num_stages))

    @torch.no_grad()
    def estimate_w_avg(self, latents: int = MEAN_LATENTS, seed: int = MEAN_SEED) -> int:
        """Set `w_avg` to 0, the mean of z; nothing is drawn."""
        self.w_avg.zero_()
        return 0

    def statistics(self) -> list[torch.Tensor]:
        return statistics_of(self)

    def style_layers(self) -> list[tuple[int, torch.Tensor]]:
        return [(0, self.stem.weight), (0, self.embedding.proj.weight)]

    def attention_sites(self) -> list[AttentionSite]:
        return [site for stage in self.stages for site in stage.attention_sites()]

    def cross_attentions(self) -> list[CrossSite]:
        return [CrossSite(stage.size, stage.cross.attn, stage.leave) for stage in self.stages]

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
        return self.preview(ws, self.resolution)

    def preview(self, ws: torch.Tensor, px: int) -> torch.Tensor:
        self.check_styles(ws)
        px = self.check_preview(px)
        z = ws[:, 0]
        x = self.stem(z).unflatten(1, (FIRST, FIRST, -1))
        painting = (i for i, stage in enumerate(self.stages) if stage.to_rgb is not None and stage.size >= px)
        return through_stages(self.stages[: next(painting) + 1], x, self.embedding(z), self.run_block)

    def run_block(self, block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        return super().run_block(OnceCounted(block) if self.gradient_checkpointing else block, *args)

"""HiT as a decoder (arXiv 2106.07631, section 4.3): from a grid of features to a picture.

Legend: B batch, h side of the grid, C channels, R side of the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from torch import nn

from stylenat_hub.errors import InputError
from stylenat_hub.models.base import ZooModel
from stylenat_hub.models.hit.blocks import learned, linear, make_norm
from stylenat_hub.models.hit.config import HiTDecoderConfig
from stylenat_hub.models.hit.generator import EMBEDDING, Stage, statistics_of, through_stages

SIDE = 4  # of the grid that the features are averaged to: as many tokens as a latent becomes


class FeatureEmbedding(nn.Module):
    """The features as the 16 tokens that cross-attention reads in place of the latent's: averages over a
    4 x 4 grid, each projected; position and norm as the latent's have."""

    def __init__(self, config: HiTDecoderConfig) -> None:
        super().__init__()
        channels = config.channels[0]
        self.proj = linear(config.feature_dim, channels)
        self.position = learned(EMBEDDING, channels)
        self.norm = make_norm(config, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, C, h, h] -> [B, 16, C']."""
        tokens = F.adaptive_avg_pool2d(features, SIDE).flatten(2).mT
        return self.norm(self.proj(tokens) + self.position)


class HiTDecoder(ZooModel):
    """Features [B, C, h, h] -> images [B, 3, R, R] in [-1, 1] and a little beyond: HiT's own stages, the
    first of them at the features' side.

    The features take the latent's place twice: each one, projected, is the token at its place (the generator
    makes all of these from z at once), and their averages are what cross-attention reads. The paper says that
    HiT can be a decoder; how its appendix A.5 feeds it was not at hand, and the released code has no decoder,
    so this way in is this zoo's own and no figure of the paper belongs to it.
    """

    config_class = HiTDecoderConfig
    component = "decoder"
    _no_split_modules = ["AttentionBlock", "MLPBlock"]  # noqa: RUF012  diffusers' name for "on one device"

    def __init__(self, config: HiTDecoderConfig) -> None:
        super().__init__(config)
        self.stem = linear(config.feature_dim, config.channels[0])
        self.embedding = FeatureEmbedding(config)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(config.num_stages))

    def statistics(self) -> list[torch.Tensor]:
        """As a generator's: what an average of the weights averages too."""
        return statistics_of(self)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Raises `InputError` for features of another shape or type."""
        wanted = (self.config["feature_dim"], self.config["grid"], self.config["grid"])
        fits = features.dim() == 4 and features.shape[1:] == wanted and len(features) > 0
        if not fits or not features.is_floating_point():
            raise InputError(
                f"features have the shape {tuple(features.shape)} and the type {features.dtype}; this model "
                f"needs [batch, {', '.join(map(str, wanted))}] of real numbers, at least one"
            )
        x = self.stem(features.permute(0, 2, 3, 1))  # [B, h, h, C']
        return through_stages(self.stages, x, self.embedding(features), _run)


def _run(block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    return block(*args)

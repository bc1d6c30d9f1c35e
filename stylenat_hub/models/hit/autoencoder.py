"""VQ-HiT (arXiv 2106.07631, section 4.3): an autoencoder through a codebook, whose decoder is HiT.

Legend: B batch, h side of the grid of codes, C channels of a code, R side of the pictures.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from diffusers import ModelMixin  # noqa: F401  a pipeline that loads this class looks for it here
from diffusers.models.autoencoders.vae import Encoder, VectorQuantizer

from stylenat_hub.errors import InputError
from stylenat_hub.models.base import ZooModel
from stylenat_hub.models.hit.config import VQHiTConfig
from stylenat_hub.models.hit.decoder import HiTDecoder


class Reconstruction(NamedTuple):
    """images [B, 3, R, R]; loss: a scalar, how far codes and encoder are apart; indices [B, h, h]."""

    images: torch.Tensor
    loss: torch.Tensor
    indices: torch.Tensor


class VQHiT(ZooModel):
    """Pictures to a grid of codes and back: diffusers' convolutional encoder and `VectorQuantizer`, then
    `HiTDecoder`.

    Pictures are [B, 3, R, R], normalised to [-1, 1]. Gradients pass the quantiser as if it were not there
    (straight through, arXiv 1711.00937), and move the codes by its loss alone. The encoder is a small one and
    not the paper's; see `HiTDecoder` for what is this zoo's own.
    """

    config_class = VQHiTConfig
    component = "autoencoder"
    _no_split_modules = ["AttentionBlock", "MLPBlock"]  # noqa: RUF012  diffusers' name for "on one device"

    def __init__(self, config: VQHiTConfig) -> None:
        super().__init__(config)
        widths = config.encoder_channels
        self.encoder = Encoder(
            out_channels=config.feature_dim,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=1,
            norm_num_groups=gcd(32, *widths),
            double_z=False,
            mid_block_add_attention=False,
        )
        # legacy=False: the weight is on the encoder's way, as published, and not on the codes'.
        self.quantize = VectorQuantizer(
            config.codes, config.feature_dim, config.commitment, sane_index_shape=True, legacy=False
        )
        self.decoder = HiTDecoder(config.decoder)

    def statistics(self) -> list[torch.Tensor]:
        """As a generator's: what an average of the weights averages too."""
        return self.decoder.statistics()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, R, R] -> what the encoder says of them [B, C, h, h], not yet codes."""
        side = self.resolution
        fits = images.dim() == 4 and images.shape[1:] == (3, side, side) and len(images) > 0
        if not fits or not images.is_floating_point():
            raise InputError(
                f"images have the shape {tuple(images.shape)} and the type {images.dtype}; this model needs "
                f"[batch, 3, {side}, {side}] of real numbers, at least one"
            )
        return self.encoder(images)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, R, R] -> indices [B, h, h] of the nearest codes."""
        return self.quantize(self.features(images))[2][2]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Indices [B, h, h], whole numbers, or features [B, C, h, h], taken as they are -> images
        [B, 3, R, R]. Raises `InputError`."""
        return self.decoder(codes if codes.is_floating_point() else self.lookup(codes))

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices [B, h, h] -> their codes [B, C, h, h]. Raises `InputError` for others."""
        side, count = self.config["grid"], self.config["codes"]
        whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
        if not whole or indices.dim() != 3 or indices.shape[1:] != (side, side) or len(indices) == 0:
            raise InputError(
                f"indices have the shape {tuple(indices.shape)} and the type {indices.dtype}; this model "
                f"needs [batch, {side}, {side}] of whole numbers, at least one"
            )
        if not 0 <= int(indices.min()) <= int(indices.max()) < count:
            raise InputError(
                f"indices run from {int(indices.min())} to {int(indices.max())}; the codebook has 0 to "
                f"{count - 1}"
            )
        return self.quantize.embedding(indices.long()).permute(0, 3, 1, 2).contiguous()

    def forward(self, images: torch.Tensor) -> Reconstruction:
        """Images [B, 3, R, R] -> what is left of them after the codes. Raises `InputError`."""
        codes, loss, (_, _, indices) = self.quantize(self.features(images))
        return Reconstruction(self.decoder(codes), loss, indices)

    @torch.no_grad()
    def seed_codebook(self, images: torch.Tensor, *, unused: bool = False) -> None:
        """Place the codes, or those that these pictures leave unused, on what the encoder says of them,
        spread evenly over all places.

        For the training: the quantiser's own codes lie so close to 0 that a few of them win every place, and
        an unused one gets no gradient, so it would never be found again (restarts: arXiv 2005.00341).
        Raises `InputError`, for pictures that are not finite too: all codes would be lost to one of them.
        """
        features = self.features(images)
        if not torch.isfinite(images).all():
            raise InputError("the images hold NaN or infinite values; codes need finite ones: leave them out")
        said = features.permute(0, 2, 3, 1).flatten(0, 2)  # [B * h * h, C]
        codes = self.quantize.embedding.weight
        moved = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        if unused:
            moved[self.quantize(features)[2][2].flatten()] = False
        count = int(moved.sum())
        places = torch.linspace(0, len(said) - 1, count, device=said.device).round().long()
        codes[moved] = said[places]

"""Transformer GANs that run: pretrained generators, exact conversions of the originals, and pictures.

from stylenat_hub import GANPipeline
pipeline = GANPipeline.from_pretrained("path/or/hub-id")
images = pipeline(seeds=range(8), truncation_psi=0.7).images
"""

import importlib
from typing import TYPE_CHECKING

from stylenat_hub import diffusers_plugin

__version__ = "0.1.0"

# Public names and where they live. They are imported on first use: diffusers imports transformers wherever
# that is installed, which takes seconds that `stylenat --help` or a data-loading worker need not wait for.
_PUBLIC = {
    "GANPipeline": "stylenat_hub.pipeline",
    "HiTConfig": "stylenat_hub.models.hit.config",
    "HiTDecoder": "stylenat_hub.models.hit.decoder",
    "HiTDecoderConfig": "stylenat_hub.models.hit.config",
    "HiTDiscriminator": "stylenat_hub.models.hit.discriminator",
    "HiTDiscriminatorConfig": "stylenat_hub.models.hit.config",
    "HiTGenerator": "stylenat_hub.models.hit.generator",
    "StyleNATConfig": "stylenat_hub.models.stylenat.config",
    "StyleNATGenerator": "stylenat_hub.models.stylenat.generator",
    "StyleSwinConfig": "stylenat_hub.models.styleswin.config",
    "StyleSwinGenerator": "stylenat_hub.models.styleswin.generator",
    "VQHiT": "stylenat_hub.models.hit.autoencoder",
    "VQHiTConfig": "stylenat_hub.models.hit.config",
    "WaveletDiscriminator": "stylenat_hub.models.discriminator",
    "WaveletDiscriminatorConfig": "stylenat_hub.models.discriminator",
    "create_model": "stylenat_hub.registry",
    "list_models": "stylenat_hub.registry",
    "neighborhood_attention": "stylenat_hub.attention",
}

__all__ = [
    "GANPipeline",
    "HiTConfig",
    "HiTDecoder",
    "HiTDecoderConfig",
    "HiTDiscriminator",
    "HiTDiscriminatorConfig",
    "HiTGenerator",
    "StyleNATConfig",
    "StyleNATGenerator",
    "StyleSwinConfig",
    "StyleSwinGenerator",
    "VQHiT",
    "VQHiTConfig",
    "WaveletDiscriminator",
    "WaveletDiscriminatorConfig",
    "create_model",
    "list_models",
    "neighborhood_attention",
]

if TYPE_CHECKING:
    from stylenat_hub.attention import neighborhood_attention
    from stylenat_hub.models.discriminator import WaveletDiscriminator, WaveletDiscriminatorConfig
    from stylenat_hub.models.hit.autoencoder import VQHiT
    from stylenat_hub.models.hit.config import (
        HiTConfig,
        HiTDecoderConfig,
        HiTDiscriminatorConfig,
        VQHiTConfig,
    )
    from stylenat_hub.models.hit.decoder import HiTDecoder
    from stylenat_hub.models.hit.discriminator import HiTDiscriminator
    from stylenat_hub.models.hit.generator import HiTGenerator
    from stylenat_hub.models.stylenat.config import StyleNATConfig
    from stylenat_hub.models.stylenat.generator import StyleNATGenerator
    from stylenat_hub.models.styleswin.config import StyleSwinConfig
    from stylenat_hub.models.styleswin.generator import StyleSwinGenerator
    from stylenat_hub.pipeline import GANPipeline
    from stylenat_hub.registry import create_model, list_models


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# So that diffusers.DiffusionPipeline.from_pretrained knows our pipelines. Last: it may need all of the above.
diffusers_plugin.import_after_diffusers("stylenat_hub.pipeline")

"""What every generator of the zoo offers, whatever its family: the public contract of the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from stylenat_hub.errors import InputError
from stylenat_hub.models.config import ModelConfig

if TYPE_CHECKING:
    from typing_extensions import Self


class Generator(ModelMixin, ConfigMixin):
    """Base of all generators: latents in, images out, and diffusers' loading and saving around it.

    A family sets `config_class`, builds its modules in `__init__(config)` after `super().__init__(config)`,
    and implements `mapping` and `synthesis`.
    """

    config_class: ClassVar[type[ModelConfig]]
    config_name = "config.json"
    _supports_gradient_checkpointing = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_to_config(**config.to_dict())
        self.gradient_checkpointing = False
        # NaN stands for "not known yet": conversion and training fill it, truncation without it raises.
        self.register_buffer("w_avg", torch.full((config.w_dim,), torch.nan))

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build from a config object or a plain dict. Raises `ConfigError` on unknown keys and values."""
        if isinstance(config, Mapping):
            config = cls.config_class.from_dict(config)
        model = cls(config)
        return (model, kwargs) if return_unused_kwargs else model

    @classmethod
    def from_pretrained(cls, source: Any, **kwargs: Any) -> Self:
        """Load from a zoo name, a local folder or a Hub id; see `stylenat_hub.hub.load_model`."""
        from stylenat_hub import hub  # late: the hub knows all families, which are built on this module

        return hub.load_model(cls, source, **kwargs)

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as safetensors and `config.json`, whole or not at all; arguments as diffusers': `hub.save`."""
        from stylenat_hub import hub  # late: the hub knows all families, which are built on this module

        # The names stand in the signature because a diffusers pipeline looks there for what it may pass on.
        kwargs |= {
            "safe_serialization": safe_serialization,
            "variant": variant,
            "max_shard_size": max_shard_size,
        }
        hub.save(super().save_pretrained, save_directory, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast, as every torch module does."""
        # diffusers' own `to` is for models with quantised or float32-only parts; for all others it only
        # warns, at every cast, of a list of such parts that is empty.
        return nn.Module.to(self, *args, **kwargs)

    @property
    def typed_config(self) -> ModelConfig:
        """The hyper-parameters as the family's config class (`config` is diffusers' dict of the same)."""
        return self.config_class.from_dict(self.config)

    @property
    def z_dim(self) -> int:
        return self.config["z_dim"]

    @property
    def w_dim(self) -> int:
        return self.config["w_dim"]

    @property
    def resolution(self) -> int:
        return self.config["resolution"]

    @property
    def num_ws(self) -> int:
        raise NotImplementedError

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [B, z_dim] -> styles [B, num_ws, w_dim]."""
        raise NotImplementedError

    def synthesis(self, ws: torch.Tensor) -> torch.Tensor:
        """Styles [B, num_ws, w_dim] -> images [B, 3, R, R], normalised as the network was trained."""
        raise NotImplementedError

    def forward(
        self, z: torch.Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
    ) -> torch.Tensor:
        """Latents [B, z_dim] -> images [B, 3, R, R], normalised as the network was trained (see `to_rgb01`).

        truncation_psi: how far styles may lie from their mean; 1 changes nothing, 0 gives the mean image.
        truncation_cutoff: truncate only the first so many of the `num_ws` styles (the coarse ones); None
            means all.

        Raises:
            InputError: z of another shape, a cutoff out of range, or truncation where `w_avg` is not known.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise InputError(f"z has the shape {tuple(z.shape)}; this model needs [batch, {self.z_dim}]")
        return self.synthesis(self.truncate(self.mapping(z), truncation_psi, truncation_cutoff))

    def truncate(self, ws: torch.Tensor, psi: float, cutoff: int | None = None) -> torch.Tensor:
        """Pull styles [B, num_ws, w_dim] towards `w_avg`; arguments and errors as in `forward`."""
        if cutoff is not None and not 0 <= cutoff <= self.num_ws:
            raise InputError(f"truncation_cutoff is {cutoff}; allowed: 0 to {self.num_ws}, or None for all")
        if psi == 1:
            return ws
        if not torch.isfinite(self.w_avg).all():
            raise InputError(
                f"truncation_psi is {psi}, but this model does not know its mean style (w_avg); "
                "use truncation_psi=1, or load a converted or trained model"
            )
        cutoff = self.num_ws if cutoff is None else cutoff
        truncated = torch.lerp(self.w_avg.expand_as(ws[:, :cutoff]), ws[:, :cutoff], psi)
        return torch.cat([truncated, ws[:, cutoff:]], dim=1)

    def to_rgb01(self, images: torch.Tensor) -> torch.Tensor:
        """The network's images [B, 3, H, W] as RGB in [0, 1], out of place."""
        mean = images.new_tensor(self.config["image_mean"]).view(3, 1, 1)
        std = images.new_tensor(self.config["image_std"]).view(3, 1, 1)
        return (images * std + mean).clamp(0, 1)

    def run_block(self, block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        """Call a block; under gradient checkpointing keep only its inputs and run it again for gradients."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

"""What every generator of the zoo offers, whatever its family: the public contract of the models."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from stylenat_hub.errors import ConfigError, InputError
from stylenat_hub.layers.partitions import AttentionSite, CrossSite
from stylenat_hub.models.config import ModelConfig

if TYPE_CHECKING:
    from typing_extensions import Self


MEAN_LATENTS = 10_000
MEAN_SEED = 0
_MEAN_BATCH = 1_000
TOKEN_UPSAMPLINGS = ("bilinear", "nearest")


class ZooModel(ModelMixin, ConfigMixin):
    """diffusers' loading and saving around one config object: the base of generators and discriminators.

    A subclass sets `config_class` and builds its modules in `__init__(config)` after
    `super().__init__(config)`.
    """

    config_class: ClassVar[type[ModelConfig]]
    component: ClassVar[str]  # the model's folder in a pipeline
    config_name = "config.json"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, not from a "
                f"{type(config).__name__}; use {self.config_class.__name__}.preset(...) or .from_dict(...)"
            )
        self.register_to_config(**config.to_dict())
        self._records: dict[str, Any] = {}
        self._remembered: tuple[int | None, ...] = ()

    @classmethod
    def from_config(
        cls, config: ModelConfig | Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """Build from a config object or a plain dict; keyword arguments replace single fields.

        Raises `ConfigError` on unknown keys and on values that are not allowed.
        """
        values = config.to_dict() if isinstance(config, ModelConfig) else config
        if not isinstance(values, Mapping):
            raise ConfigError(f"the config is a {type(config).__name__}; allowed: a config object or a dict")
        model = cls(cls.config_class.from_dict({**values, **overrides}))
        return (model, {}) if return_unused_kwargs else model

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
        options = {"safe_serialization": safe_serialization, "variant": variant}
        hub.save(super().save_pretrained, save_directory, max_shard_size=max_shard_size, **options, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> Any:
        """Publish it as one commit with a card, after checking that it reloads; returns the commit.

        options: license, max_shard_size, revision (a branch), tag, commit_description. More and errors:
        `stylenat_hub.publish.push_model`.
        """
        from stylenat_hub import publish  # late: it knows all families, which are built on this module

        return publish.push_model(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            create_pr=create_pr,
            safe_serialization=safe_serialization,
            variant=variant,
            subfolder=subfolder,
            **options,
        )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast, as every torch module does."""
        # diffusers' own `to` is for models with quantised or float32-only parts; for all others it only
        # warns, at every cast, of a list of such parts that is empty.
        return nn.Module.to(self, *args, **kwargs)

    def remember(self, records: Mapping[str, Any]) -> None:
        """Keep what is recorded of how these very weights were made; see `records`."""
        self._records, self._remembered = dict(records), self._versions()

    @property
    def records(self) -> dict[str, Any]:
        """How the weights were made, as far as the folder said from which they were loaded (`training`,
        `conversion`); nothing once one of them was changed."""
        return dict(self._records) if self._versions() == self._remembered else {}

    def _versions(self) -> tuple[int | None, ...]:
        """torch's count of the changes in place of every tensor."""
        tensors = (*self.parameters(), *self.buffers())
        return tuple(None if tensor.is_inference() else tensor._version for tensor in tensors)

    @property
    def typed_config(self) -> ModelConfig:
        """The hyper-parameters as the family's config class (`config` is diffusers' dict of the same)."""
        return self.config_class.from_dict(self.config)

    @property
    def resolution(self) -> int:
        return self.config["resolution"]


class Discriminator(ZooModel):
    """Base of all discriminators: images [B, 3, R, R] -> logits [B, 1]. Its presets have the names of the
    generator's, and their resolutions."""

    component = "discriminator"

    @property
    def stddev_group(self) -> int:
        """How many samples are compared with each other (row i of n groups is in group i mod n); 1: none."""
        return 1

    def finest_parts(self, count: int) -> list[nn.Module]:
        """What reads the `count` finest scales: the layers that Freeze-D keeps (arXiv 2002.10964).

        Raises `InputError` if there are not so many.
        """
        raise NotImplementedError

    def check_finest(self, count: int, scales: int) -> None:
        """Raise `InputError` unless `count` of the `scales` can be kept; for `finest_parts` to call."""
        if not 0 <= count <= scales:
            raise InputError(f"freeze_d is {count}; this discriminator has {scales} scales")

    def check_images(self, images: torch.Tensor) -> None:
        """Raise `InputError` unless images are [B, 3, R, R]; for `forward` to call."""
        side = self.resolution
        if images.dim() != 4 or images.shape[1:] != (3, side, side):
            raise InputError(
                f"images have the shape {tuple(images.shape)}; allowed: [batch, 3, {side}, {side}]"
            )

    def group_of(self, batch: int) -> int:
        """How many samples of a batch are compared with each other: `stddev_group`, or all of fewer.

        Raises `InputError` for a batch that such groups do not divide.
        """
        group = min(batch, self.stddev_group)
        if group == 0 or batch % group:
            raise InputError(f"the batch has {batch} images; allowed: a multiple of {group or 1}")
        return group


class Generator(ZooModel):
    """Base of all generators: latents in, images out. A family implements `mapping` and `synthesis`."""

    component = "generator"
    styles_are_latents: ClassVar[bool] = False  # no mapping network: there is no w space apart from z
    token_upsampling: ClassVar[str] = "bilinear"  # one of these; "nearest": a token becomes four
    _supports_gradient_checkpointing = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        # NaN stands for "not known yet": conversion and training fill it, truncation without it raises.
        self.register_buffer("w_avg", torch.full((config.w_dim,), torch.nan))

    @property
    def z_dim(self) -> int:
        return self.config["z_dim"]

    @property
    def w_dim(self) -> int:
        return self.config["w_dim"]

    @property
    def num_ws(self) -> int:
        raise NotImplementedError

    @property
    def style_levels(self) -> tuple[int, ...]:
        """For each of the `num_ws` styles the side in px of the level that it acts in, ascending; empty where
        styles have no levels of their own, because there is one for the whole picture."""
        return ()

    def style_layers(self) -> list[tuple[int, torch.Tensor]]:
        """Every layer that reads a style: the style's number, the layer's weights [outputs, w_dim]; each of
        the `num_ws` styles is read by one at least. Raises `InputError` in a family that does not say."""
        raise InputError(
            f"a {type(self).__name__} does not say which layers read its styles (style_layers), which the "
            "method sefa (closed_form) needs; use the method pca"
        )

    def attention_sites(self) -> list[AttentionSite]:
        """Every self-attention in the order of its work, with what its heads can see; none in a family that
        cannot say.

        What can be said (see `Partition`): queries and keys are the tokens of one square grid, and a head
        sees the same keys along both axes. Levels double from one to the next, with `token_upsampling`
        between them. The partitions of a site cover its heads, each once, in order.
        """
        return []

    def cross_attentions(self) -> list[CrossSite]:
        """Every attention to the latent's own tokens, whose module has `heads` and `weights(x, tokens)`, the
        first two arguments of its `forward`; none in most families."""
        return []

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [B, z_dim] -> styles [B, num_ws, w_dim]."""
        raise NotImplementedError

    def synthesis(self, ws: torch.Tensor) -> torch.Tensor:
        """Styles [B, num_ws, w_dim] -> images [B, 3, R, R], normalised as the network was trained."""
        raise NotImplementedError

    def preview(self, ws: torch.Tensor, px: int) -> torch.Tensor:
        """Styles [B, num_ws, w_dim] -> the picture as it is after the first levels, quicker than `synthesis`.

        [B, 3, P, P], normalised alike; P is the smallest side from `px` on at which the network paints. At
        the model's resolution it is what `synthesis` returns. Raises `InputError`: px out of its range.
        """
        self.check_preview(px)
        return self.synthesis(ws)  # of a family that paints nothing on the way

    def forward(
        self,
        z: torch.Tensor,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        truncation_centers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents [B, z_dim] -> images [B, 3, R, R], normalised as the network was trained (see `to_rgb01`).

        truncation_psi: how far styles may lie from their mean; 1 changes nothing, 0 gives the mean image.
        truncation_cutoff: truncate only the first so many of the `num_ws` styles (the coarse ones); None
            means all.
        truncation_centers: [k, w_dim], to pull each style towards the nearest of these instead of the mean
            (multi-modal truncation, arXiv 2202.12211); see `latents.style_centers`.

        Raises:
            InputError: z of another shape, a cutoff out of range, or truncation where `w_avg` is not known.
        """
        ws = self.truncate(self.mapping(z), truncation_psi, truncation_cutoff, truncation_centers)
        return self.synthesis(ws)

    def check_latents(self, z: torch.Tensor) -> None:
        """Raise `InputError` unless z is [B, z_dim], and B not 0; for `mapping` to call."""
        if z.dim() != 2 or z.shape[1] != self.z_dim or len(z) == 0:
            raise InputError(
                f"z has the shape {tuple(z.shape)}; this model needs [batch, {self.z_dim}], at least one"
            )

    def check_styles(self, ws: torch.Tensor) -> None:
        """Raise `InputError` unless ws is [B, num_ws, w_dim], and B not 0; for `synthesis` to call."""
        if ws.dim() != 3 or ws.shape[1:] != (self.num_ws, self.w_dim) or len(ws) == 0:
            raise InputError(
                f"ws has the shape {tuple(ws.shape)}; this model needs [batch, {self.num_ws}, {self.w_dim}], "
                "at least one"
            )

    def check_preview(self, px: int) -> int:
        """px, if it is from 1 to the resolution; for `preview` to call. Raises `InputError`."""
        if isinstance(px, bool) or not isinstance(px, int) or not 1 <= px <= self.resolution:
            raise InputError(f"px is {px!r}; allowed: a whole number from 1 to {self.resolution}")
        return px

    def truncate(
        self,
        ws: torch.Tensor,
        psi: float,
        cutoff: int | None = None,
        centers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pull styles [B, num_ws, w_dim] towards `w_avg`, or each towards the nearest of `centers`; arguments
        and errors as in `forward`."""
        if isinstance(psi, bool) or not isinstance(psi, numbers.Real) or not abs(psi) <= 1e6:
            raise InputError(f"truncation_psi is {psi!r}; allowed: a finite number, usually from 0 to 1")
        whole = cutoff is None or (isinstance(cutoff, int) and not isinstance(cutoff, bool))
        if not whole or not 0 <= (cutoff or 0) <= self.num_ws:
            raise InputError(
                f"truncation_cutoff is {cutoff!r}; allowed: a whole number from 0 to {self.num_ws}, or "
                "None for all"
            )
        if centers is not None:
            self._check_centers(centers)
        if psi == 1:
            return ws
        if centers is None and not torch.isfinite(self.w_avg).all():
            raise InputError(
                f"truncation_psi is {psi}, but this model does not know its mean style (w_avg); "
                "use truncation_psi=1, or load a converted or trained model"
            )
        some = ws[:, : self.num_ws if cutoff is None else cutoff]
        # under autocast styles come in another type than the buffer
        goal = self.w_avg.to(ws.dtype).expand_as(some) if centers is None else _nearest(some, centers)
        return torch.cat([torch.lerp(goal, some, float(psi)), ws[:, some.shape[1] :]], dim=1)

    def _check_centers(self, centers: torch.Tensor) -> None:
        shape = tuple(centers.shape) if isinstance(centers, torch.Tensor) else type(centers).__name__
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != self.w_dim or shape[0] == 0:
            raise InputError(f"truncation_centers is {shape}; allowed: a tensor [centers, {self.w_dim}]")
        if not torch.isfinite(centers).all():
            raise InputError("truncation_centers holds NaN or infinity; allowed: finite numbers")

    def to_rgb01(self, images: torch.Tensor) -> torch.Tensor:
        """The network's images [B, 3, H, W] as RGB in [0, 1], out of place."""
        return self.unclamped_rgb(images).clamp(0, 1)

    def unclamped_rgb(self, images: torch.Tensor) -> torch.Tensor:
        """As `to_rgb01`, but not cut off: values below 0 and above 1 stay."""
        mean = images.new_tensor(self.config["image_mean"]).view(3, 1, 1)
        std = images.new_tensor(self.config["image_std"]).view(3, 1, 1)
        return images * std + mean

    def statistics(self) -> list[torch.Tensor]:
        """The buffers that a pass in training mode moves and eval mode uses: those of batch norm; here none.

        An average of the weights needs the average of these too.
        """
        return []

    @torch.no_grad()
    def estimate_w_avg(self, latents: int = MEAN_LATENTS, seed: int = MEAN_SEED) -> int:
        """Fill `w_avg` with the mean style of `latents` latents of one seed, summed in float64; returns how
        many were drawn (none by a family that knows its mean)."""
        total = torch.zeros(self.w_dim, dtype=torch.float64)
        for styles in mapped_seed(self, latents, seed):
            total += styles.sum(0)
        self.w_avg.copy_(total / latents)
        return latents

    def level_rows(self) -> list[dict[str, Any]]:
        """What `info` and conversion show of the network: a row per level, all with the same keys.

        Each has `parameters`; a family adds what tells its levels apart. Here, a row per part of the network.
        """
        return [
            {"part": name, "parameters": sum(p.numel() for p in part.parameters())}
            for name, part in self.named_children()
        ]

    def run_block(self, block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        """Call a block; under gradient checkpointing keep only its inputs and run it again for gradients."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


@torch.no_grad()
def mapped_seed(generator: Generator, latents: int, seed: int) -> Iterator[torch.Tensor]:
    """The styles of latents of one seed, in batches [some, w_dim] of float64 on the CPU: others lack it."""
    source = torch.Generator().manual_seed(seed)
    for start in range(0, latents, _MEAN_BATCH):
        z = torch.randn(min(_MEAN_BATCH, latents - start), generator.z_dim, generator=source)
        styles = generator.mapping(z.to(generator.w_avg.device, generator.w_avg.dtype))
        yield styles[:, 0].cpu().double()


def _nearest(ws: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """For each style [B, n, w_dim] the nearest of the centers [k, w_dim]."""
    centers = centers.to(ws.device)
    place = torch.cdist(ws.float(), centers.float()[None]).argmin(dim=-1)  # half precision has no cdist
    return centers.to(ws.dtype)[place]

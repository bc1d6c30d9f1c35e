"""Seeds in, pictures out: `GANPipeline.from_pretrained(id)(seeds=range(8), truncation_psi=0.7).images`."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

from stylenat_hub import hub
from stylenat_hub.diffusers_plugin import register
from stylenat_hub.errors import InputError
from stylenat_hub.models.base import Discriminator, Generator
from stylenat_hub.registry import FAMILIES

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from typing_extensions import Self

OUTPUT_TYPES = ("pil", "np", "pt")
TRUNCATION = ("truncation_psi", "truncation_cutoff", "truncation_centers")
Edit = Callable[[torch.Tensor], torch.Tensor]  # styles [n, num_ws, w_dim] -> the same
MAX_SEED = 2**32 - 1  # torch's generator on the CPU drops higher bits, so larger seeds would repeat pictures


@dataclass
class GANPipelineOutput(BaseOutput):
    """Pictures and their seeds, in the same order.

    images: a list of PIL images, or float32 in [0, 1] as numpy [n, H, W, 3] or torch [n, 3, H, W] on the CPU.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    seeds: list[int]


class GANPipeline(DiffusionPipeline):
    """Pictures from a generator of any family.

    A seed's picture does not depend on the batch it is drawn in. Rounding in matrix products depends on their
    size, so on the CPU the network runs one picture at a time and this holds to the bit (at 256 px that costs
    nothing: batches are no faster). Other devices run whole batches, where rounding may move single pixels by
    a step; `batch_size=1` rules that out. Latents are drawn on the CPU, so a seed means the same picture on
    every device, up to rounding.
    """

    model_cpu_offload_seq = "generator"

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.register_modules(generator=generator)
        self.model_name: str | None = None  # what pictures are labelled with

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load from a zoo name, a pipeline or model folder, or a Hub id; see `hub.load_model`."""
        if kwargs.pop("output_loading_info", False):
            raise InputError(
                "output_loading_info is about one model; leave it out, or load the generator by its own class"
            )
        pipeline = cls(generator=hub.load_generator(source, **kwargs))
        pipeline.model_name = label(source)
        return pipeline

    def register_to_config(self, **kwargs: Any) -> None:
        """diffusers' method, through which `DiffusionPipeline.from_pretrained` says what it loaded from.

        That becomes the label. In the config it would be saved, and tell where somebody keeps their files.
        """
        source = kwargs.pop("_name_or_path", None)
        if source is not None:
            self.model_name = label(source)
        super().register_to_config(**kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write `model_index.json` and `generator/`, whole or not at all; arguments: `hub.save`."""
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
        *,
        discriminator: Discriminator | None = None,
        license: str | None = None,
        bundle_code: bool = False,
        **options: Any,
    ) -> CommitInfo:
        """Publish it as one commit with a card and a grid of pictures, after checking that it reloads.

        repo_id: without a slash in your own namespace. discriminator: what it was trained against, for who
        fine-tunes. license: as the Hub's list calls it. bundle_code: add this project's code for diffusers'
        `trust_remote_code=True`. options: max_shard_size, revision (a branch), tag, commit_description.
        Returns the commit. More and errors: `publish.push_pipeline`.
        """
        try:
            from stylenat_hub import publish  # late: it draws the grid with a pipeline
        except ImportError as error:  # this is the code that a repository carries, which is not all of it
            raise InputError("publishing needs the whole package; install stylenat_hub") from error
        return publish.push_pipeline(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            create_pr=create_pr,
            safe_serialization=safe_serialization,
            variant=variant,
            discriminator=discriminator,
            license=license,
            bundle_code=bundle_code,
            **options,
        )

    def __call__(
        self,
        seeds: Iterable[int] | int,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        truncation_centers: torch.Tensor | None = None,
        edit: Edit | None = None,
        batch_size: int = 8,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> GANPipelineOutput | tuple[Any, list[int]]:
        """The pictures of these seeds, all at once (see `iterate` for more than fit into memory).

        seeds: whole numbers from 0 to 2**32 - 1, at least one. truncation_psi, truncation_cutoff,
        truncation_centers: as in `Generator.forward`. edit: changes the truncated styles [n, num_ws, w_dim],
        as `latents.Directions.edit` does. batch_size: pictures per step. output_type: "pil", "np" or "pt",
        see `GANPipelineOutput`. return_dict: False gives the tuple (images, seeds).

        Raises:
            InputError: an argument out of its range; truncation of a model without `w_avg`; or the network's
                output is not finite, as may happen in float16 or far from the mean style.
        """
        seeds = check_seeds(seeds)
        options = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
        options |= {"truncation_centers": truncation_centers, "edit": edit}
        batches = self.iterate(seeds, batch_size=batch_size, output_type=output_type, **options)
        images = _joined([batch.images for batch in batches])
        output = GANPipelineOutput(images=images, seeds=list(seeds))
        return output if return_dict else (output.images, output.seeds)

    def iterate(
        self,
        seeds: Iterable[int] | int,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        truncation_centers: torch.Tensor | None = None,
        edit: Edit | None = None,
        batch_size: int = 8,
        output_type: str = "pil",
        progress: bool = True,
    ) -> Iterator[GANPipelineOutput]:
        """Yield the pictures batch by batch, so that never more than `batch_size` are in memory.

        progress: show the pipeline's progress bar. The other arguments and errors as in `__call__`; they are
        checked at once, before the first batch.
        """
        seeds = check_seeds(seeds)
        check_drawing(batch_size, output_type)
        truncation = (truncation_psi, truncation_cutoff, truncation_centers)
        self.generator.truncate(self._probe(), *truncation)
        batches = self._batches(seeds, truncation, edit, batch_size, output_type)
        return self._shown(batches, len(seeds)) if progress else batches

    @torch.no_grad()
    def styles(
        self,
        seeds: Iterable[int] | int,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        truncation_centers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The styles [n, num_ws, w_dim] of these seeds, in the generator's type and on its device: what
        `draw` makes the same pictures of. Arguments and errors as in `__call__`."""
        device, dtype = self._execution_device, self.generator.dtype
        z = latents(check_seeds(seeds), self.generator.z_dim).to(device=device, dtype=dtype)
        parts = z.split(1) if device.type == "cpu" else [z]
        truncation = (truncation_psi, truncation_cutoff, truncation_centers)
        return torch.cat([self.generator.truncate(self.generator.mapping(p), *truncation) for p in parts])

    def draw(
        self, ws: torch.Tensor, *, batch_size: int = 8, output_type: str = "pil", px: int | None = None
    ) -> Any:
        """The pictures of styles [n, num_ws, w_dim], as `output_type` says (see `GANPipelineOutput`).

        px: smaller ones, sooner, see `Generator.preview`; default: at full size.
        Raises `InputError`: styles of another shape or with values that are not finite; see `__call__`.
        """
        check_drawing(batch_size, output_type)
        self.generator.check_styles(ws)
        if not torch.isfinite(ws).all():
            raise InputError("the styles hold NaN or infinity; allowed: finite numbers")
        return _joined([_converted(self._paint(part, px), output_type) for part in ws.split(batch_size)])

    def _probe(self) -> torch.Tensor:
        """Any styles at all, to have truncation's arguments checked before work starts."""
        generator = self.generator
        return generator.w_avg.new_zeros(1, generator.num_ws, generator.w_dim)

    def _batches(
        self,
        seeds: Sequence[int],
        truncation: tuple[float, int | None, torch.Tensor | None],
        edit: Edit | None,
        batch_size: int,
        output_type: str,
    ) -> Iterator[GANPipelineOutput]:
        for start in range(0, len(seeds), batch_size):
            batch = list(seeds[start : start + batch_size])
            images = self._draw(batch, truncation, edit)
            yield GANPipelineOutput(images=_converted(images, output_type), seeds=batch)

    def _shown(self, batches: Iterator[GANPipelineOutput], total: int) -> Iterator[GANPipelineOutput]:
        with self.progress_bar(total=total) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch.seeds))

    def _draw(
        self,
        seeds: list[int],
        truncation: tuple[float, int | None, torch.Tensor | None],
        edit: Edit | None = None,
    ) -> torch.Tensor:
        """Pictures [n, 3, H, W] of a batch of seeds, float32 in [0, 1] on the CPU."""
        options = dict(zip(TRUNCATION, truncation, strict=True))
        ws = self.styles(seeds, **options)
        if edit is not None:
            ws = edit(ws)
        return self._paint(ws)

    @torch.no_grad()
    def _paint(self, ws: torch.Tensor, px: int | None = None) -> torch.Tensor:
        """The same of a batch of styles; px: see `draw`."""
        device, dtype = self._execution_device, self.generator.dtype
        ws = ws.to(device=device, dtype=dtype)
        parts = ws.split(1) if device.type == "cpu" else [ws]
        paint = self.generator.synthesis if px is None else lambda part: self.generator.preview(part, px)
        images = torch.cat([paint(part) for part in parts])
        if not torch.isfinite(images).all():
            other = "use styles, strengths or a truncation closer to 0"  # bfloat16 reaches as far as float32
            helps = "use dtype float32 or bfloat16" if dtype == torch.float16 else other
            raise InputError(f"the network's output in {dtype} holds NaN or infinity; {helps}")
        return self.generator.to_rgb01(images.float()).cpu()


def label(source: str | os.PathLike[str]) -> str:
    """What to call a model that was loaded from here: its name in the zoo or on the Hub, and of a folder only
    the last name, because pictures should not tell where somebody keeps their files."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return os.fspath(source)
    path = path.resolve()
    if path.parent.name == "snapshots":  # in the download cache: models--ORG--NAME/snapshots/COMMIT
        kind, *repository = path.parts[-3].split("--")
        return "/".join(repository) if kind == "models" and repository else path.name
    return path.name


def latents(seeds: Sequence[int], z_dim: int) -> torch.Tensor:
    """The latents [n, z_dim] of seeds, float32 on the CPU: each from its own fresh torch generator."""
    rows = [
        torch.randn(
            1, z_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu"
        )
        for seed in seeds
    ]
    return torch.cat(rows)


def check_drawing(batch_size: int, output_type: str = "pil") -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; allowed: a whole number, 1 or more")
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type is {output_type!r}; allowed: {', '.join(map(repr, OUTPUT_TYPES))}")


def check_seeds(seeds: Iterable[int] | int) -> Sequence[int]:
    """The seeds as a sequence of int (a range stays one). Raises `InputError`, naming the bad one."""
    if isinstance(seeds, str) or not isinstance(seeds, (int, Iterable)):
        raise InputError(f"seeds is {seeds!r}; allowed: a whole number or several, such as range(8)")
    # A long range is checked by its ends: it may be longer than a list could be.
    checked = (
        seeds
        if isinstance(seeds, range)
        else [_seed(s) for s in (seeds if isinstance(seeds, Iterable) else [seeds])]
    )
    if not checked:
        raise InputError("seeds is empty; give at least one, such as range(8)")
    for seed in (checked[0], checked[-1]) if isinstance(checked, range) else checked:
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"the seed {seed} is out of range; allowed: 0 to 2**32 - 1")
    return checked


def _seed(value: Any) -> int:
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise InputError(f"the seed {value!r} is no whole number; allowed: 0 to 2**32 - 1")


def _converted(images: torch.Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    if output_type == "np":
        return array
    return [PIL.Image.fromarray(picture) for picture in (array * 255).round().astype(np.uint8)]


def _joined(batches: list[Any]) -> Any:
    if isinstance(batches[0], list):
        return [image for batch in batches for image in batch]
    return torch.cat(batches) if isinstance(batches[0], torch.Tensor) else np.concatenate(batches)


# Last, because diffusers gets the whole class: see diffusers_plugin.
register(GANPipeline, [model for f in FAMILIES.values() for model in (f.generator, f.discriminator)])

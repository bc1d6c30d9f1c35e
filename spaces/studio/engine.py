"""What the page does, without a page: models, pictures, previews, files. Tabs call this, nothing below."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from studio import cards, checks, previews, snippet, zero
from studio.catalog import Catalog
from studio.pool import LIMIT, Loaded, Pool
from studio.scratch import Scratch
from stylenat_hub.cli_models import software
from stylenat_hub.errors import InputError
from stylenat_hub.options import choose_device
from stylenat_hub.pictures import drawn_by, picture_name, write_picture
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

Told = Callable[[int, int, str], None]  # progress: how many of how many, and of what
PREVIEW_PATIENCE = 1.5  # seconds that a preview waits for the model; then a newer one is on its way
PIXELATED = 64  # px up to which pictures are enlarged pixel by pixel


def nobody(done: int, of: int, what: str) -> None:
    """For who does not want to be told of progress."""


def has_preview(loaded: Loaded) -> bool:
    """Does a picture of this model, be it an early one, follow a slider?"""
    return loaded.preview_px is not None


@dataclass(frozen=True)
class Drawn:
    """What a request for pictures gave. files: PNG files with text chunks, one per seed. bundle: the file to
    download: the picture, or a ZIP of several. code: the Python that repeats them. seconds: drawing took."""

    model: str
    seeds: Sequence[int]
    files: list[Path]
    bundle: Path
    code: str
    seconds: float


class Engine:
    """One per process. model, allow_any: as `Catalog`. device: as `choose_device`. memory: bytes of weights
    that stay loaded. Raises what `Catalog` and `choose_device` do."""

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str = "auto",
        allow_any: bool = False,
        memory: int = LIMIT,
        scratch: Scratch | None = None,
    ) -> None:
        self.device = torch.device("cuda") if zero.LENDER else choose_device(device)
        self.catalog = Catalog(model, allow_any)
        self.scratch = scratch or Scratch()
        self._truncations: dict[str, float] = {}
        self.pool = Pool(self._load, self._prepare, memory)
        self._compute_lent = zero.on_gpu(self._compute_by_name)

    # -- models

    def _load(self, name: str) -> GANPipeline:
        pipeline = GANPipeline.from_pretrained(self.catalog.find(name).source)
        pipeline.model_name = self.catalog.find(name).name
        pipeline.set_progress_bar_config(disable=True)
        # before it goes to a GPU that may not be there outside of `compute`
        self._truncations[name] = best_truncation(pipeline)
        return pipeline if self.device.type == "cpu" else pipeline.to(self.device)

    def _prepare(self, loaded: Loaded) -> None:
        if not zero.LENDER:
            previews.choose(loaded)

    def use(self, name: Any, told: Told = nobody) -> Loaded:
        """The model of this name, loaded if need be. Raises `UnknownModelError` and what loading raises; the
        models that were loaded before stay."""
        entry = self.catalog.find(name)
        if self.pool.find(name) is None:
            told(0, 1, f"Loading {entry.name}")
        return self.pool.get(name)

    def default_truncation(self, name: Any) -> float:
        """What this model's pictures are best shown with: its family's value, or 1 without a mean style."""
        self.use(name)
        return self._truncations[name]

    def card(self, name: Any) -> str:
        """The model's card as Markdown; see `cards.shown`."""
        return cards.shown(self.catalog.find(name))

    # -- computing

    def compute(self, loaded: Loaded, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(pipeline, *arguments)` while the model is held, so keep it short: others get their turn
        between two calls.

        On a ZeroGPU Space it runs in another process with a GPU: there the function must be one of a module,
        and what goes in and comes out is pickled, so tensors come back on the CPU.
        """
        with loaded.at_work() as pipeline:
            if zero.LENDER:
                return self._compute_lent(loaded.name, function, arguments)
            return function(pipeline, *arguments)

    def _compute_by_name(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """In another process, which has a copy of the pool: no model can be sent there, and no lock taken."""
        loaded = self.pool.peek(name)
        if loaded is None:
            raise InputError(f"{name} was dropped from memory meanwhile; try again")
        return function(loaded.pipeline, *arguments)

    def truncation(self, loaded: Loaded, psi: Any, cutoff: Any = None, centers: Any = None) -> dict[str, Any]:
        """A visitor's numbers as arguments of `GANPipeline.styles`; 0 and None: no cutoff, no centres."""
        most = loaded.generator.num_ws
        cutoff = None if cutoff in (None, 0) else checks.whole("the cutoff", cutoff, 1, most)
        count = (
            0 if centers is None else checks.whole("the number of centres", centers, 0, checks.MAX_CENTERS)
        )
        return {
            "truncation_psi": checks.truncation(psi),
            "truncation_cutoff": cutoff,
            "truncation_centers": self._centers(loaded, count) if count else None,
        }

    def _centers(self, loaded: Loaded, count: int) -> torch.Tensor:
        """Found once per model and count: it takes a moment."""
        key = ("centers", count)
        if key not in loaded.kept:
            loaded.kept[key] = self.compute(loaded, find_centers, count)
        return loaded.kept[key]

    @contextlib.contextmanager
    def quickly(self, model: Any, enough: Callable[[Loaded], bool] = has_preview) -> Iterator[Loaded | None]:
        """The model, held for one preview; None where it is not loaded, busy or too slow to follow a slider.
        enough: is it quick enough?"""
        self.catalog.find(model)
        loaded = self.pool.find(model)
        if loaded is None or not enough(loaded) or not loaded.lock.acquire(timeout=PREVIEW_PATIENCE):
            yield None
            return
        try:
            yield loaded
        finally:
            loaded.lock.release()

    # -- what the tab Generate asks for

    def generate(
        self,
        model: Any,
        seed: Any,
        count: Any = 1,
        psi: Any = 1.0,
        cutoff: Any = None,
        centers: Any = None,
        told: Told = nobody,
    ) -> Drawn:
        """Pictures of `count` seeds from `seed` on, as files. Raises `InputError`, naming what is wrong."""
        seeds = checks.seed_range(seed, count)
        psi = checks.truncation(psi)
        loaded = self.use(model, told)
        options = self.truncation(loaded, psi, cutoff, centers)
        start = time.perf_counter()
        label = {name: options[name] for name in ("truncation_psi", "truncation_cutoff")}
        about = {**drawn_by(loaded.pipeline, label), "version": software()}
        if centers:
            about["truncation_centers"] = str(int(centers))
        folder, files = self.scratch.folder(), []
        for number, one in enumerate(seeds):
            told(number, len(seeds), "Drawing")
            image = self.compute(loaded, picture_of, one, options)
            files.append(folder / picture_name(one))
            write_picture(image, files[-1], {**about, "seed": str(one)})
        seconds = time.perf_counter() - start
        code = snippet.drawing(
            loaded.pipeline.model_name, seeds, psi, options["truncation_cutoff"], int(centers or 0) or None
        )
        return Drawn(str(model), seeds, files, bundle(files), code, seconds)

    def preview(
        self,
        model: Any,
        seed: Any,
        count: Any = 1,
        psi: Any = 1.0,
        cutoff: Any = None,
        centers: Any = None,
    ) -> list[PIL.Image.Image]:
        """The first of the same pictures, as many and as large as can follow a slider; none if the model is
        not loaded, busy or slow."""
        seeds = checks.seed_range(seed, count)
        with self.quickly(model) as loaded:
            if loaded is None:
                return []
            options = self.truncation(loaded, psi, cutoff, centers)
            end, pictures = time.perf_counter() + previews.BUDGET, []
            for one in seeds:
                pictures.append(self.compute(loaded, picture_of, one, options, loaded.preview_px))
                if time.perf_counter() > end:
                    break
            return pictures

    def pixelated(self, name: Any) -> bool:
        """Is this model so small that its pictures should be enlarged pixel by pixel?"""
        return self.use(name).generator.resolution <= PIXELATED


def best_truncation(pipeline: GANPipeline) -> float:
    """The truncation of the family's pictures for show, or 1 where the mean style is not known."""
    generator = pipeline.generator
    if not bool(torch.isfinite(generator.w_avg).all()):
        return 1.0
    return next(f.truncation for f in FAMILIES.values() if isinstance(generator, f.generator))


def picture_of(
    pipeline: GANPipeline, seed: int, options: dict[str, Any], px: int | None = None
) -> PIL.Image.Image:
    """One seed's picture, for `Engine.compute`. options: as `Engine.truncation` returns; px: as in `draw`."""
    return pipeline.draw(pipeline.styles([seed], **options), px=px)[0]


def find_centers(pipeline: GANPipeline, count: int) -> torch.Tensor:
    """Centres [count, w_dim] of the styles, on the CPU."""
    from stylenat_hub.latents.clusters import style_centers

    return style_centers(pipeline.generator, count).cpu()


def bundle(files: Sequence[Path]) -> Path:
    """The one file, or a ZIP of several beside them (stored: PNG files do not shrink further)."""
    if not files:
        raise InputError("there is nothing to download yet; draw a picture first")
    if len(files) == 1:
        return files[0]
    path = files[0].parent / f"{files[0].stem}-{files[-1].stem.removeprefix('seed')}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, os.path.basename(file))
    return path

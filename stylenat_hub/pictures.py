"""Pictures as PNG files: one per seed and a grid, written whole and labelled with how they were made."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from stylenat_hub.errors import InputError
from stylenat_hub.files import check_writable, user_path, whole_file
from stylenat_hub.pipeline import GANPipeline, check_seeds
from stylenat_hub.signals import Interrupted

GRID_SIDE = 8192  # px; larger grids shrink their cells, so that thousands of pictures still fit into memory


@dataclass(frozen=True)
class Written:
    """What `write_pictures` wrote: the folder, how many pictures, and the grid's file if there is one."""

    folder: Path
    count: int
    grid: Path | None


def picture_name(seed: int) -> str:
    """`seed0000000007.png`: as many digits as the largest seed has, so that names sort as seeds do."""
    return f"seed{seed:010d}.png"


def write_pictures(
    pipeline: GANPipeline,
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    batch_size: int = 8,
    grid: bool = False,
    label: Mapping[str, str] | None = None,
) -> Written:
    """Draw one PNG per seed into `folder`, and with `grid` also `grid.png`; pictures there of the same name
    are replaced.

    Each PNG has the text chunks model, seed (the grid: seeds), truncation_psi, truncation_cutoff, and those
    in `label`.

    Raises:
        InputError: an argument out of its range (see `GANPipeline`), or a folder that cannot be written.
        Interrupted: Ctrl-C; what is written is whole, and there is no grid.
    """
    seeds, folder = check_seeds(seeds), user_path(folder)
    count = 0
    check_writable(folder)
    _check_names(folder, seeds)
    options = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
    about = {**drawn_by(pipeline, options), **(label or {})}
    sheet = Grid(len(seeds), pipeline.generator.resolution) if grid else None
    try:
        for batch in pipeline.iterate(seeds, batch_size=batch_size, **options):
            for image, seed in zip(batch.images, batch.seeds, strict=True):
                write_picture(image, folder / picture_name(seed), {**about, "seed": str(seed)})
                if sheet:
                    sheet.add(image)
                count += 1
        if sheet:
            write_picture(sheet.image, folder / "grid.png", {**about, "seeds": ",".join(map(str, seeds))})
    except KeyboardInterrupt:
        kept = f"{count} of {len(seeds)} pictures are in {folder}" if count else "no picture was written"
        raise Interrupted(kept) from None
    return Written(folder, count, folder / "grid.png" if sheet else None)


def write_picture(image: PIL.Image.Image, path: str | os.PathLike[str], about: Mapping[str, str]) -> None:
    """Write a PNG, whole or not at all, with `about` as its text chunks. Raises `InputError`."""
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text_chunks(about))


def drawn_by(pipeline: GANPipeline, options: Mapping[str, object]) -> dict[str, str]:
    """The label of a picture: its model, and the options (such as truncation_psi) as text."""
    return {
        "model": pipeline.model_name or "unnamed",
        **{name: str(value) for name, value in options.items()},
    }


def text_chunks(about: Mapping[str, str]) -> PngInfo:
    """What Pillow writes into a PNG as its text chunks."""
    chunks = PngInfo()
    for name, value in about.items():
        chunks.add_text(name, value)
    return chunks


def _check_names(folder: Path, seeds: Sequence[int]) -> None:
    """Raise `InputError` if a folder has the name of a picture, before anything is drawn."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r"seed(\d{10})\.png", path.name)
        taken = path.name == "grid.png" or (match and int(match[1]) in seeds)
        if taken and path.is_dir():
            raise InputError(
                f"cannot write {str(path)!r}: a folder of that name is there; name another output"
            )


class Grid:
    """A near-square picture of `count` cells in reading order, each `resolution` px wide."""

    def __init__(self, count: int, resolution: int) -> None:
        self.columns = math.ceil(math.sqrt(count))
        self.rows = math.ceil(count / self.columns)
        self.cell = min(resolution, GRID_SIDE // self.columns)
        if self.cell < 1:
            raise InputError(
                f"a grid of {count} pictures has cells below one pixel; ask for at most {GRID_SIDE**2}"
            )
        self.image = PIL.Image.new("RGB", (self.columns * self.cell, self.rows * self.cell))
        self.filled = 0

    def add(self, picture: PIL.Image.Image) -> None:
        """Put a picture into the next cell."""
        if picture.width != self.cell:
            picture = picture.resize((self.cell, self.cell), PIL.Image.Resampling.LANCZOS)
        row, column = divmod(self.filled, self.columns)
        self.image.paste(picture, (column * self.cell, row * self.cell))
        self.filled += 1

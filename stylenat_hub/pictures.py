"""Pictures as PNG files: one per seed and a grid, written whole and labelled with how they were made."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from stylenat_hub.errors import InputError
from stylenat_hub.files import check_writable, user_path, whole_file
from stylenat_hub.pipeline import Edit, GANPipeline, check_drawing, check_seeds
from stylenat_hub.sheet import SMALLEST, Sheet, cell_side, fitted
from stylenat_hub.signals import Interrupted

if TYPE_CHECKING:
    import torch

GRID = "grid.png"
MAX_CHECKED = 1_000_000
_ENLARGED = 4096  # px; no grid of enlarged pictures is larger
GRID_SIDE = 8192  # px; larger grids shrink their cells, so that thousands of pictures still fit into memory


@dataclass(frozen=True)
class Written:
    """What `write_pictures` wrote: the folder, how many pictures, and the grid's file if there is one."""

    folder: Path
    count: int
    grid: Path | None


def picture_name(seed: int, psi: float | None = None) -> str:
    """`seed0000000007.png`: as many digits as the largest seed has, so that names sort as seeds do. psi: the
    truncation, where one seed has several pictures: `seed0000000007-psi0.7.png`."""
    return f"seed{seed:010d}{'' if psi is None else f'-psi{_digits(psi)}'}.png"


def _digits(psi: float) -> str:
    """All digits of a number, so that no two have one name; 1 without `.0`."""
    return repr(float(psi)).removesuffix(".0")


def style_name(number: int) -> str:
    """`style000007.png`: the picture of a style in a file."""
    return f"style{number:06d}.png"


def write_pictures(
    pipeline: GANPipeline,
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    truncation_psi: float | Sequence[float] = 1.0,
    truncation_cutoff: int | None = None,
    truncation_centers: torch.Tensor | None = None,
    edit: Edit | None = None,
    batch_size: int = 8,
    grid: bool = False,
    label: Mapping[str, str] | None = None,
) -> Written:
    """Draw one PNG per seed into `folder`, and with `grid` also `grid.png`; pictures there of the same name
    are replaced.

    truncation_psi: several make a sweep: a PNG per seed and value, and a grid with a row per seed. Each PNG
    has the text chunks model, seed (the grid: seeds), truncation_psi, truncation_cutoff, and those in
    `label`. Other arguments: `GANPipeline.__call__`.

    Raises:
        InputError: an argument out of its range (see `GANPipeline`), or a folder that cannot be written.
        Interrupted: Ctrl-C; what is written is whole, and there is no grid.
    """
    seeds, folder = check_seeds(seeds), user_path(folder)
    values, total = _values(truncation_psi), len(seeds)
    sweep = len(values) > 1
    names = {picture_name(seed, psi if sweep else None) for psi in values for seed in _few(seeds)}
    steering = {"truncation_cutoff": truncation_cutoff, "truncation_centers": truncation_centers}
    sheet = _sheet_of(pipeline, seeds, values, truncation_centers) if grid else None
    with writing(folder, names, total * len(values)) as written:
        for psi in values:  # all arguments are checked before anything is drawn
            pipeline.iterate(seeds, truncation_psi=psi, batch_size=batch_size, **steering)
        with pipeline.progress_bar(total=total * len(values)) as bar:
            for column, psi in enumerate(values):
                options = {"truncation_psi": psi, "truncation_cutoff": truncation_cutoff}
                about = {**drawn_by(pipeline, options), **(label or {})}
                steered = {**steering, "truncation_psi": psi, "edit": edit, "progress": False}
                for batch in pipeline.iterate(seeds, batch_size=batch_size, **steered):
                    for image, seed in zip(batch.images, batch.seeds, strict=True):
                        name = picture_name(seed, psi if sweep else None)
                        row = written.count - column * total
                        written.add(image, name, {**about, "seed": str(seed)})
                        _show(sheet, row, column, image)
                    bar.update(len(batch.seeds))
        if sheet:
            about |= {"seeds": ",".join(map(str, seeds)), "truncation_psi": ",".join(map(str, values))}
            written.finish(sheet.image, about)
    return Written(folder, written.count, folder / GRID if sheet else None)


def write_styles(
    pipeline: GANPipeline,
    ws: torch.Tensor,
    folder: str | os.PathLike[str],
    *,
    truncation_psi: float | Sequence[float] = 1.0,
    truncation_cutoff: int | None = None,
    truncation_centers: torch.Tensor | None = None,
    edit: Edit | None = None,
    batch_size: int = 8,
    grid: bool = False,
    label: Mapping[str, str] | None = None,
) -> Written:
    """Draw one PNG per style of ws [n, num_ws, w_dim]: `style000000.png`. Arguments and errors as in
    `write_pictures`, but for a sweep of truncations, which is refused."""
    folder = user_path(folder)
    check_drawing(batch_size)
    values = _values(truncation_psi)
    if len(values) > 1:
        raise InputError(f"styles are drawn at one truncation, not at {len(values)}; name one, or give seeds")
    options = {"truncation_psi": values[0], "truncation_cutoff": truncation_cutoff}
    about = {**drawn_by(pipeline, options), **(label or {})}
    generator, names = pipeline.generator, {style_name(number) for number in range(len(ws))}
    sheet = Grid(len(ws), generator.resolution, SMALLEST) if grid else None
    with writing(folder, names, len(ws)) as written:
        generator.check_styles(ws)
        ws = ws.to(generator.w_avg)  # the type and the device that `GANPipeline.styles` gives
        ws = generator.truncate(ws, values[0], truncation_cutoff, truncation_centers)
        ws = ws if edit is None else edit(ws)
        with pipeline.progress_bar(total=len(ws)) as bar:
            for part in ws.split(batch_size):
                for image in pipeline.draw(part, batch_size=batch_size):
                    number = written.count
                    written.add(image, style_name(number), {**about, "style": str(number)})
                    _show(sheet, number, 0, image)
                bar.update(len(part))
        if sheet:
            written.finish(sheet.image, about)
    return Written(folder, written.count, folder / GRID if sheet else None)


def _values(psi: float | Sequence[float]) -> list[float]:
    """The truncations of a sweep, each once, or the one there is."""
    if not isinstance(psi, Sequence) or isinstance(psi, str):
        return [psi]
    values = list(dict.fromkeys(psi))
    if not values or not all(isinstance(value, numbers.Real) for value in values):
        raise InputError(f"truncation_psi is {psi!r:.100}; allowed: a finite number, or several as a sweep")
    return values


class Writing:
    """The pictures of one command, as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def add(self, image: PIL.Image.Image, name: str, about: Mapping[str, str]) -> None:
        write_picture(image, self.folder / name, about)
        self.count += 1

    def finish(self, sheet: PIL.Image.Image, about: Mapping[str, str]) -> None:
        write_picture(sheet, self.folder / GRID, about)


@contextlib.contextmanager
def writing(folder: Path, names: Collection[str], total: int) -> Iterator[Writing]:
    """Check the folder; Ctrl-C becomes `Interrupted`, which says how many pictures are there."""
    check_writable(folder)
    _check_names(folder, names)
    so_far = Writing(folder)
    try:
        yield so_far
    except KeyboardInterrupt:
        count = so_far.count
        kept = f"{count} of {total} pictures are in {folder}" if count else "no picture was written"
        raise Interrupted(kept) from None


def _sheet_of(
    pipeline: GANPipeline, seeds: Sequence[int], values: Sequence[float], centers: torch.Tensor | None
) -> Grid | Sheet:
    side = pipeline.generator.resolution
    if len(values) == 1:
        return Grid(len(seeds), side, SMALLEST)
    cell = cell_side(side, len(values), len(seeds))
    goal = "the mean style" if centers is None else f"the nearest of {len(centers)} centres"
    labels = [f"seed {seed}" for seed in seeds], [f"psi {_digits(psi)}" for psi in values]
    title = f"truncated to {goal}"
    return Sheet(len(seeds), len(values), cell, title=title, row_labels=labels[0], column_labels=labels[1])


def _show(sheet: Grid | Sheet | None, row: int, column: int, image: PIL.Image.Image) -> None:
    if isinstance(sheet, Grid):
        sheet.add(image)
    elif sheet:
        sheet.put(row, column, image)


def check_png(path: str | os.PathLike[str]) -> Path:
    """Can a PNG be written there? To be asked before the work. Returns the path with `~` expanded.

    Raises `InputError`: another format's suffix, a folder of that name, or a place without permission.
    """
    place = user_path(path)
    if place.suffix.lower() != ".png":
        raise InputError(f"the output {str(path)!r} is no name of a PNG; name a file that ends in .png")
    if place.is_dir():
        raise InputError(f"the output {str(path)!r} is a folder; name a file")
    check_writable(place.parent)
    return place


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
    """What Pillow writes into a PNG as its text chunks; `?` stands for what is no Unicode, as a file's name
    may hold."""
    chunks = PngInfo()
    for name, value in about.items():
        chunks.add_text(name, value.encode("utf-8", "replace").decode())
    return chunks


def _few(seeds: Sequence[int]) -> Sequence[int]:
    """Seeds whose files' names are looked for beforehand; a longer list would take longer than drawing."""
    return seeds[:MAX_CHECKED]


def _check_names(folder: Path, names: Collection[str]) -> None:
    """Raise `InputError` if a folder has the name of a picture, before anything is drawn."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (GRID, *names) and path.is_dir():
            raise InputError(
                f"cannot write {str(path)!r}: a folder of that name is there; name another output"
            )


class Grid:
    """A near-square picture of `count` cells in reading order, each `resolution` px wide.

    smallest: px; a few smaller pictures are enlarged by a whole factor to at least this, many by less.
    """

    def __init__(self, count: int, resolution: int, smallest: int = 1) -> None:
        self.columns = math.ceil(math.sqrt(count))
        self.rows = math.ceil(count / self.columns)
        factor = min(math.ceil(smallest / resolution), _ENLARGED // (self.columns * resolution))
        self.cell = min(resolution * max(1, factor), GRID_SIDE // self.columns)
        if self.cell < 1:
            raise InputError(
                f"a grid of {count} pictures has cells below one pixel; ask for at most {GRID_SIDE**2}"
            )
        self.image = PIL.Image.new("RGB", (self.columns * self.cell, self.rows * self.cell))
        self.filled = 0

    def add(self, picture: PIL.Image.Image) -> None:
        """Put a picture into the next cell."""
        row, column = divmod(self.filled, self.columns)
        self.image.paste(fitted(picture, self.cell), (column * self.cell, row * self.cell))
        self.filled += 1

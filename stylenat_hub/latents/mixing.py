"""Style mixing: the coarse styles of one picture with the fine ones of another (arXiv 1812.04948).

Legend: R rows, C columns. As in StyleGAN's figures, columns provide the levels that are chosen and rows all
others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import PIL.Image
import torch

from stylenat_hub import pictures
from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.latents.levels import check_levels, styles_at
from stylenat_hub.pipeline import GANPipeline, check_seeds
from stylenat_hub.sheet import Sheet, cell_side

Seen = Callable[[int, int, PIL.Image.Image], None]  # called with a row's seed, a column's, their picture


def mix(rows: torch.Tensor, columns: torch.Tensor, styles: Iterable[int]) -> torch.Tensor:
    """Every row with every column: styles [R, C, num_ws, w_dim] in the type of rows and on its device.

    rows [R, num_ws, w_dim], columns [C, num_ws, w_dim]: what `GANPipeline.styles` gives. styles: the numbers
    of those that come from the columns, as `levels.styles_at` gives them; all others come from the rows.

    Raises `InputError`: shapes that do not fit, or a number that is no style.
    """
    shapes = [tuple(ws.shape) for ws in (rows, columns)]
    if any(len(shape) != 3 for shape in shapes) or shapes[0][1:] != shapes[1][1:]:
        raise InputError(
            f"the rows' styles are {shapes[0]} and the columns' {shapes[1]}; allowed: [n, num_ws, w_dim], "
            "both of one model"
        )
    numbers, there = list(styles), rows.shape[1]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < there:
            raise InputError(f"{number!r} is no style; allowed: whole numbers from 0 to {there - 1}")
    mixed = rows[:, None].expand(-1, len(columns), -1, -1).clone()
    mixed[:, :, numbers] = columns.to(rows)[None, :, numbers]
    return mixed


def mixing_sheet(
    pipeline: GANPipeline,
    row_seeds: Iterable[int] | int,
    column_seeds: Iterable[int] | int,
    levels: str = "coarse",
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    truncation_centers: torch.Tensor | None = None,
    batch_size: int = 8,
    seen: Seen | None = None,
) -> PIL.Image.Image:
    """A sheet of mixed pictures: the rows' own at the left, the columns' own at the top, and where they cross
    the row's picture with the column's `levels` (see `levels.styles_at`).

    The sources are truncated, see `GANPipeline.__call__`, and then mixed. seen: called with each mixed
    picture in full size. Each picture is drawn once; one batch is in memory beside the sheet.

    Raises `InputError`: levels that the model does not have, a model without levels (HiT), more pictures than
    fit on a sheet, or see `GANPipeline.__call__`.
    """
    seeds = list(check_seeds(row_seeds)), list(check_seeds(column_seeds))
    numbers = _checked(pipeline, *seeds, levels)
    truncation = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
    truncation["truncation_centers"] = truncation_centers
    pipeline.iterate(seeds[0], batch_size=batch_size, **truncation)  # checks all that, and draws nothing
    sheet = _empty(pipeline, *seeds, _title(pipeline, numbers, truncation_psi))
    rows, columns = (pipeline.styles(some, **truncation) for some in seeds)
    count = (len(rows) + 1) * (len(columns) + 1) - 1
    with pipeline.progress_bar(total=count) as bar:

        def draw(ws: torch.Tensor, places: Sequence[tuple[int, int]]) -> None:
            for start in range(0, len(ws), batch_size):
                images = pipeline.draw(ws[start : start + batch_size], batch_size=batch_size)
                for (row, column), image in zip(places[start:], images, strict=False):
                    sheet.put(row, column, image)
                    if seen and row and column:
                        seen(seeds[0][row - 1], seeds[1][column - 1], image)
                bar.update(len(images))

        draw(columns, [(0, column + 1) for column in range(len(columns))])
        draw(rows, [(row + 1, 0) for row in range(len(rows))])
        for row in range(len(rows)):  # by rows, because the styles of all may not fit into memory
            mixed = mix(rows[row : row + 1], columns, numbers)[0]
            draw(mixed, [(row + 1, column + 1) for column in range(len(columns))])
    return sheet.image


def _checked(pipeline: GANPipeline, rows: Sequence[int], columns: Sequence[int], levels: str) -> list[int]:
    """The numbers of the styles of these levels, once it is known that a sheet has room for all."""
    check_levels(pipeline.generator, "style mixing")
    cell_side(pipeline.generator.resolution, len(columns) + 1, len(rows) + 1)
    return styles_at(pipeline.generator, levels)


def _empty(pipeline: GANPipeline, rows: Sequence[int], columns: Sequence[int], title: str) -> Sheet:
    size = len(rows) + 1, len(columns) + 1
    cell = cell_side(pipeline.generator.resolution, size[1], size[0])
    labels = [["", *(f"seed {seed}" for seed in seeds)] for seeds in (rows, columns)]
    return Sheet(*size, cell, title=title, row_labels=labels[0], column_labels=labels[1], headers=True)


def _title(pipeline: GANPipeline, numbers: Sequence[int], psi: float) -> str:
    levels = pipeline.generator.style_levels
    sizes = ", ".join(map(str, dict.fromkeys(levels[number] for number in numbers)))
    rest = "nothing" if len(numbers) == len(levels) else "all others"
    return f"columns give the levels of {sizes} px, rows {rest}" + (f"; psi {psi:g}" if psi != 1 else "")


def cell_name(row: int, column: int) -> str:
    """`row0000000000-col0000000004.png`: the picture of a row's seed with the levels of a column's."""
    return f"row{row:010d}-col{column:010d}.png"


def write_mixing(
    pipeline: GANPipeline,
    row_seeds: Iterable[int] | int,
    column_seeds: Iterable[int] | int,
    output: str | os.PathLike[str],
    levels: str = "coarse",
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    truncation_centers: torch.Tensor | None = None,
    batch_size: int = 8,
    cells: str | os.PathLike[str] | None = None,
    label: Mapping[str, str] | None = None,
) -> Path:
    """Write the sheet of `mixing_sheet` as a PNG, whole or not at all; returns its path.

    cells: a folder for each mixed picture as its own PNG in full size too (`cell_name`). All have the text
    chunks model, rows, cols (of a cell row and col), levels, truncation_psi, truncation_cutoff, and those in
    `label`. Other arguments: `mixing_sheet`.

    Raises:
        InputError: see `mixing_sheet`; or an output that cannot be written, or whose name ends in another
            format's suffix.
        Interrupted: Ctrl-C; the cells that are written are whole, and there is no sheet.
    """
    output = pictures.check_png(output)
    rows, columns = list(check_seeds(row_seeds)), list(check_seeds(column_seeds))
    _checked(pipeline, rows, columns, levels)  # before there is a name for each of their pairs
    options = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
    about = {**pictures.drawn_by(pipeline, {"levels": levels, **options}), **(label or {})}
    options |= {"truncation_centers": truncation_centers, "batch_size": batch_size}
    with whole_file(output) as temporary, contextlib.ExitStack() as stack:
        if cells is not None:
            names = {cell_name(row, column) for row in rows for column in columns}
            cells = user_path(cells)
            written = stack.enter_context(pictures.writing(cells, names, len(rows) * len(columns)))

        def keep(row: int, column: int, image: PIL.Image.Image) -> None:
            name, where = cell_name(row, column), {"row": str(row), "col": str(column)}
            written.add(image, name, {**about, **where})

        seen = None if cells is None else keep
        sheet = mixing_sheet(pipeline, rows, columns, levels, seen=seen, **options)
        about |= {"rows": ",".join(map(str, rows)), "cols": ",".join(map(str, columns))}
        sheet.save(temporary, format="PNG", pnginfo=pictures.text_chunks(about))
    return output

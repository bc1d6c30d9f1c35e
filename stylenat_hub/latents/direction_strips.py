"""A strip of pictures for each direction: rows are seeds, columns how far one goes along it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stylenat_hub.errors import InputError, StyleNATHubError
from stylenat_hub.files import check_folder, user_path, whole_folder
from stylenat_hub.latents.direction_files import FILE, load_directions
from stylenat_hub.latents.directions import Directions
from stylenat_hub.models.base import Generator
from stylenat_hub.pictures import drawn_by, write_picture
from stylenat_hub.pipeline import GANPipeline, check_seeds
from stylenat_hub.sheet import Sheet, cell_side

# In standard deviations: what changes pictures without breaking most of them. One goes further along SeFa's,
# because styles vary less in these than in their principal directions.
STRENGTHS = {"sefa": (-3.0, -1.5, 0.0, 1.5, 3.0), "pca": (-2.0, -1.0, 0.0, 1.0, 2.0)}
MAX_STRENGTHS = 100  # columns


@dataclass(frozen=True)
class Strips:
    """What was written: into which folder, and the picture of each direction."""

    folder: Path
    pictures: tuple[Path, ...]


def write_strips(
    pipeline: GANPipeline,
    directions: Directions,
    folder: str | os.PathLike[str],
    *,
    seeds: Iterable[int] | int = range(4),
    strengths: Sequence[float] | None = None,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    label: Mapping[str, str] | None = None,
) -> Strips:
    """Write `directions.safetensors` and a strip `NAME.png` for each direction: a folder that is whole or not
    there at all. Shows the pipeline's progress bar.

    strengths: in standard deviations, see `Directions.edit`; default: `STRENGTHS`. overwrite: replace an
    earlier result. label: more for the text chunks of the PNG files. Other arguments as `GANPipeline`'s.

    Raises `InputError`: directions of another model, an argument out of its range, a folder that holds
    something else; nothing is written then.
    """
    seeds, strengths = check_seeds(seeds), _checked(strengths, directions)
    cell = cell_side(pipeline.generator.resolution, len(strengths), len(seeds))
    directions.check(pipeline.generator)
    edits = {name: [directions.edit({name: value}) for value in strengths] for name in directions.names}
    truncation = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
    ws = pipeline.styles(seeds, **truncation)
    about = {**drawn_by(pipeline, truncation), **(label or {})}
    about |= {"seeds": ",".join(map(str, seeds)), "strengths": ",".join(f"{s:g}" for s in strengths)}
    target = user_path(folder)
    total = len(edits) * len(strengths) * len(seeds)
    replaced = strip_files(target, directions.names) if overwrite else None
    with whole_folder(target, overwrite=replaced) as temporary, pipeline.progress_bar(total=total) as bar:
        directions.save(temporary / FILE)
        for name, moves in edits.items():
            title = f"{name}: {told(directions, name, pipeline.generator)}, psi {truncation_psi:g}"
            sheet = _sheet(seeds, strengths, cell, title)
            for column, move in enumerate(moves):
                for row, picture in enumerate(pipeline.draw(move(ws), batch_size=batch_size)):
                    sheet.put(row, column, picture)
                bar.update(len(seeds))
            write_picture(sheet.image, temporary / f"{name}.png", {**about, "direction": name})
    return Strips(target, tuple(target / f"{name}.png" for name in directions.names))


def _sheet(seeds: Sequence[int], strengths: Sequence[float], cell: int, title: str) -> Sheet:
    columns = [f"{strength:+g}" if strength else "0" for strength in strengths]
    labels = {"row_labels": [f"seed {seed}" for seed in seeds], "column_labels": columns}
    return Sheet(len(seeds), len(strengths), cell, title=title, **labels)


def check_output(folder: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise `InputError` if no strips can be written there, before a model is loaded."""
    check_folder(folder, overwrite=strip_files(user_path(folder), ()) if overwrite else None)


def strip_files(folder: Path, names: Sequence[str]) -> list[str]:
    """The files that an earlier result in a folder may consist of, this one's names among them."""
    earlier: tuple[str, ...] = ()
    with contextlib.suppress(StyleNATHubError):  # there is none, or nobody can read it
        earlier = load_directions(folder / FILE).names if (folder / FILE).is_file() else ()
    return [FILE, *(f"{name}.png" for name in dict.fromkeys((*names, *earlier)))]


def told(directions: Directions, name: str, generator: Generator) -> str:
    """Where a direction acts, and how much of the styles' variance it carries: `4-16 px, 12% of variance`."""
    place = directions.index(name)
    share = f"{100 * float(directions.shares[place]):.2g}% of variance"
    if not generator.style_levels:
        return share
    sizes = sorted({generator.style_levels[number] for number in directions.styles[place]})
    where = f"{sizes[0]}-{sizes[-1]} px" if len(sizes) > 1 else f"{sizes[0]} px"
    return f"{where}, {share}"


def _checked(strengths: Sequence[float] | None, directions: Directions) -> list[float]:
    method = directions.about.get("method", "")
    strengths = list(STRENGTHS.get(method, STRENGTHS["pca"]) if strengths is None else strengths)
    if not 1 <= len(strengths) <= MAX_STRENGTHS:
        raise InputError(f"there are {len(strengths)} strengths; allowed: 1 to {MAX_STRENGTHS}, as -3,0,3")
    return strengths

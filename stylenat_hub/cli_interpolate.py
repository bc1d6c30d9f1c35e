"""`stylenat interpolate`: the words on the command line, around `latents.paths` and `video`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.cli_models import Model, load_pipeline, software, steered
from stylenat_hub.options import (
    MAX_SEEDS,
    BatchSize,
    Centers,
    Cutoff,
    Device,
    Dtype,
    DtypeOption,
    Namespace,
    Revision,
    Truncation,
    Variant,
    parse_path,
    parse_seeds,
)


class PathKind(str, Enum):
    """What paths can be, as `latents.paths.KINDS` has them."""

    smooth = "smooth"
    lerp = "lerp"
    slerp = "slerp"


def parse_keys(text: str) -> list[int]:
    """`1,5,1-3` -> [1, 5, 1, 2, 3]: as `parse_seeds`, but a path may come back to a seed."""
    keys: list[int] = []
    for part in text.split(","):
        keys += parse_seeds(part)
        if len(keys) > MAX_SEEDS:
            raise typer.BadParameter(f"{text!r:.60} is more than {MAX_SEEDS:,} seeds; ask for fewer")
    return keys


def parse_grid(text: str) -> tuple[int, int]:
    """`3x2` -> (3, 2): columns, rows. Raises `typer.BadParameter`."""
    match = re.fullmatch(r"\s*([1-9][0-9]{0,2})\s*[xX]\s*([1-9][0-9]{0,2})\s*", text)
    if not match:
        raise typer.BadParameter(f"{text!r} is no COLUMNSxROWS, each from 1 to 999; example: 3x2")
    return int(match[1]), int(match[2])


def interpolate(
    model: Model = None,
    seeds: Annotated[
        Any,
        typer.Option(
            parser=parse_keys,
            metavar="SEEDS",
            help="The pictures to pass, in this order.",
            show_default="0-3",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Of the whole video.")] = 120,
    output: Annotated[
        Path, typer.Option(parser=parse_path, metavar="FILE", help="Ends in .mp4, .gif or .webp.")
    ] = Path("loop.mp4"),
    path: Annotated[
        PathKind | None,
        typer.Option(
            help="smooth: a spline through styles; lerp: straight lines; slerp: the sphere of latents.",
            show_default="smooth; HiT: slerp",
        ),
    ] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="End at the last seed instead of going back to the first.")
    ] = False,
    fps: Annotated[float, typer.Option(help="Frames per second, 1 to 120 (GIF: 50, WebP: 90).")] = 30,
    grid: Annotated[
        Any,
        typer.Option(
            parser=parse_grid,
            metavar="COLUMNSxROWS",
            help="Several paths side by side, which share the seeds out in order: two or more each, all "
            "equally many.",
            show_default="1x1",
        ),
    ] = None,
    truncation: Truncation = 1.0,
    cutoff: Cutoff = None,
    centers: Centers = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Of a .webp: exact, and larger.")] = False,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DtypeOption = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
) -> None:
    """Write a video that moves from seed to seed, by default a loop."""
    from stylenat_hub import video

    video.check_video(output, fps, lossless=lossless)
    from stylenat_hub.latents import paths

    seeds = parse_keys("0-3") if seeds is None else seeds
    columns, rows = (1, 1) if grid is None else grid
    cells = paths.check_cells(seeds, columns, rows)
    pipeline = load_pipeline(
        model, device, dtype.value, variant=variant, revision=revision, namespace=namespace
    )
    # before thousands of paths are made
    video.check_length(output, paths.frame_size(pipeline.generator.resolution, columns, rows), frames)
    steering, label = steered(pipeline, centers, None, None)
    steering |= {"truncation_psi": truncation, "truncation_cutoff": cutoff, "closed": not open_}
    ways = [paths.StylePath(pipeline, keys, frames, path and path.value, **steering) for keys in cells]
    drawn = paths.draw_paths(pipeline, ways, columns=columns, batch_size=batch_size)
    about = _about(pipeline, seeds, ways[0].kind, {**steering, **label})
    written = video.write_video(_counted(drawn, frames), output, fps, lossless=lossless, about=about)
    width, height = written.size
    what = f"{written.frames} frames of {width} x {height} pixels, {written.frames / fps:.3g} s"
    typer.echo(f"wrote {what}, to {written.path}")


def _about(pipeline: Any, seeds: list[int], kind: str, options: dict[str, Any]) -> dict[str, str]:
    """What the video says of itself."""
    from stylenat_hub.pictures import drawn_by

    names = ("truncation_psi", "truncation_cutoff")
    about = drawn_by(pipeline, {name: options[name] for name in names})
    if "truncation_centers" in options:
        about["truncation_centers"] = options["truncation_centers"]
    about |= {"path": kind, "seeds": ",".join(map(str, seeds)), "version": software()}
    return {"title": f"{about['model']}: {kind} path", **about}


def _counted(frames: Iterable[Any], total: int) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(frames, total=total, desc="frames", unit="", leave=False, file=sys.stderr))

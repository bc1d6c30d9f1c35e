"""The tab Travel: a video that passes through the pictures of some seeds and comes back to the first."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from studio import checks, snippet, steering
from studio.engine import Engine, Told, nobody, picture_of
from studio.pool import Loaded
from stylenat_hub import video
from stylenat_hub.cli_models import software
from stylenat_hub.errors import InputError, shown
from stylenat_hub.latents.paths import KINDS, StylePath
from stylenat_hub.pictures import drawn_by
from stylenat_hub.pipeline import MAX_SEED, GANPipeline

KEYS = (2, 12)
FRAMES = (24, 240)
SPEED = (5, 60)  # frames per second
LONGEST_TEXT = 200  # characters of the key seeds
LONGEST = 300.0  # seconds of drawing for one visitor
FEWER_PIXELS = 100_000_000  # of all frames where there is no MP4 and they are held in memory
_BATCH = 8  # frames at a time on a GPU, as `draw_paths` has them
_SEEDS = re.compile(r"[ ,;]*\d{1,10}([ ,;]+\d{1,10})*[ ,;]*", re.ASCII)


@dataclass(frozen=True)
class Travelled:
    """What a request gave so far. keys: seeds with their pictures. video: the file, at the end."""

    model: str
    keys: list[tuple[int, PIL.Image.Image]]
    video: Path | None = None
    code: str = ""
    frames: int = 0
    seconds: float = 0.0


def key_seeds(text: Any) -> list[int]:
    """`1, 5, 9` as numbers. Raises `InputError` for anything else, and for too few or too many."""
    allowed = (
        f"allowed: {KEYS[0]} to {KEYS[1]} whole numbers up to {MAX_SEED:,}, with commas between them, "
        "such as 1, 5, 9"
    )
    if not isinstance(text, str) or len(text) > LONGEST_TEXT or not _SEEDS.fullmatch(text):
        raise InputError(f"the key seeds are {shown(repr(text))}; {allowed}")
    seeds = [int(word) for word in re.findall(r"\d+", text)]
    if not KEYS[0] <= len(seeds) <= KEYS[1] or max(seeds) > MAX_SEED:
        there = f"{len(seeds)} of them" if max(seeds) <= MAX_SEED else f"{max(seeds)} among them"
        raise InputError(f"the key seeds are {shown(text)}: {there}; {allowed}")
    return seeds


def kinds(engine: Engine, model: Any) -> list[str]:
    """The kinds of path that this model can go, its best one first."""
    latent = engine.use(model).generator.styles_are_latents
    return ["slerp"] if latent else list(KINDS)


def keys(
    engine: Engine, model: Any, text: Any, psi: Any, told: Told = nobody
) -> list[tuple[int, PIL.Image.Image]]:
    """Seeds with their pictures. Raises `InputError`, naming what is wrong."""
    seeds = key_seeds(text)
    loaded = engine.use(model)
    options = engine.truncation(loaded, psi)
    drawn: dict[int, PIL.Image.Image] = {}
    for seed in dict.fromkeys(seeds):
        told(len(drawn), len(set(seeds)), "Drawing the key pictures")
        drawn[seed] = engine.compute(loaded, picture_of, seed, options)
    return [(seed, drawn[seed]) for seed in seeds]


def travel(
    engine: Engine,
    model: Any,
    text: Any,
    frames: Any,
    kind: Any,
    fps: Any,
    psi: Any,
    told: Told = nobody,
) -> Iterator[Travelled | None]:
    """Yields the key pictures, None after each frame, so that who listens can stop, and at the end the video:
    an MP4, or an animated WebP where imageio-ffmpeg is missing.

    Raises `InputError`, naming what is wrong; also if the model is too slow for so many frames.
    """
    seeds = key_seeds(text)
    frames = checks.whole("the number of frames", frames, *FRAMES)
    fps = checks.whole("the speed", fps, *SPEED)
    loaded = engine.use(model, told)
    kind = steering.one_of("the path", kind, kinds(engine, model))
    options = engine.truncation(loaded, psi)
    name = _file_name()
    _check_memory(loaded, name, frames)
    start = time.perf_counter()
    found = Travelled(loaded.pipeline.model_name, keys(engine, model, text, psi, told))
    yield found
    folder = engine.scratch.folder()
    files: list[Path] = []
    try:
        ws = engine.compute(loaded, path_styles, seeds, frames, kind, options)
        for part in ws.split(1 if engine.device.type == "cpu" else _BATCH):
            told(len(files), frames, f"Frame {len(files) + 1} of {frames}")
            pictures, took = engine.compute(loaded, drawn_in, part)
            _check_time(took / len(part), frames, time.perf_counter() - start)
            for picture in pictures:
                files.append(folder / f"{len(files):04d}.png")
                picture.save(files[-1], compress_level=1)
            yield None
        told(frames, frames, "Writing the video")
        label = drawn_by(
            loaded.pipeline, {"seeds": ", ".join(map(str, seeds)), "kind": kind, **_said(options)}
        )
        about = {"title": f"{label['model']}, seeds {label['seeds']}", **label, "version": software()}
        written = video.write_video(map(_read, files), folder / name, fps, about=about)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    psi = options["truncation_psi"]
    code = snippet.travelling(loaded.pipeline.model_name, seeds, frames, kind, fps, psi, name)
    seconds = time.perf_counter() - start
    yield Travelled(loaded.pipeline.model_name, found.keys, written.path, code, frames, seconds)


def path_styles(
    pipeline: GANPipeline, seeds: Sequence[int], frames: int, kind: str, options: Mapping[str, Any]
) -> torch.Tensor:
    """The styles [frames, num_ws, w_dim] of the way on the CPU, for `Engine.compute`."""
    return StylePath(pipeline, seeds, frames, kind, **options).styles().cpu()


def drawn_in(pipeline: GANPipeline, ws: torch.Tensor) -> tuple[list[PIL.Image.Image], float]:
    """The pictures of styles, and the seconds that took without waiting for others; for `Engine.compute`."""
    start = time.perf_counter()
    return pipeline.draw(ws), time.perf_counter() - start


def _read(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as picture:
        picture.load()
        return picture


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("truncation_psi", "truncation_cutoff")}


def _file_name() -> str:
    """An MP4 if one can be written here."""
    try:
        video.check_video("travel.mp4")
    except InputError:
        return "travel.webp"
    return "travel.mp4"


def _check_memory(loaded: Loaded, name: str, frames: int) -> None:
    side = max(loaded.generator.resolution, video.SMALLEST)
    most = FEWER_PIXELS // side**2
    if name.endswith(".webp") and frames > most:
        raise InputError(
            f"{frames} frames of {side} x {side} pixels are too many here, where no MP4 can be written; "
            f"allowed: up to {most}"
        )


def _check_time(each: float, frames: int, elapsed: float) -> None:
    """each: seconds per frame. elapsed: seconds since the start, others' turns included."""
    if each * frames <= LONGEST and elapsed <= LONGEST:
        return
    most = int(LONGEST // max(each, elapsed / frames))
    wanted = f"{frames} frames take about {max(each * frames, elapsed) / 60:.1f} minutes here"
    if most < FRAMES[0]:
        raise InputError(
            f"{wanted}, and at most {LONGEST / 60:.0f} are allowed; choose a smaller model, or run "
            "`stylenat interpolate` on your own machine"
        )
    raise InputError(f"{wanted}, and at most {LONGEST / 60:.0f} are allowed; ask for up to {most} frames")

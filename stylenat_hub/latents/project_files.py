"""A projection of a photo as files: styles, pictures that compare the two, frames and a video of the way."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from stylenat_hub import photos, video
from stylenat_hub.errors import InputError
from stylenat_hub.files import check_folder, user_path, whole_folder
from stylenat_hub.latents.checks import whole
from stylenat_hub.latents.comparison import Way, beside, comparison, to_tensor
from stylenat_hub.latents.losses import check_features
from stylenat_hub.latents.pictured import psnr
from stylenat_hub.latents.projection import MAX_STEPS, SPACES, STEPS, Progress, default_space, project
from stylenat_hub.latents.styles import save_styles
from stylenat_hub.latents.tuning import MAX_TUNING, tune
from stylenat_hub.pictures import write_picture
from stylenat_hub.pipeline import GANPipeline

WRITTEN = ("w.safetensors", "comparison.png", "projected.png", "target.png", "frames", "tuned")
MAX_SHOWN = 10_000  # frames
VIDEO_FRAMES, VIDEO_END, FPS = 90, 30, 30  # of the way, of its end, per second


@dataclass(frozen=True)
class Written:
    """What `write_projection` wrote. psnr, tuned_psnr: in dB, of the model's picture and, where it was tuned,
    of the tuned model's. folder, video: paths, the video's None without one."""

    folder: Path
    psnr: float
    tuned_psnr: float | None
    video: Path | None


@dataclass(frozen=True)
class _Drawing:
    name: str
    picture: PIL.Image.Image
    psnr: float


def check_projection(
    photo: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    space: str | None = None,
    steps: int = STEPS,
    features: str = "random-conv",
    seed: int = 0,
    tuning: int = 0,
    frames: int = 0,
    video_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Could `write_projection` do this with some model? To be asked before one is loaded.

    Raises `InputError`: an argument out of its range, a folder or video that cannot be written, a photo that
    cannot be one, or a video that would replace the photo or lie in the folder.
    """
    check_folder(folder, overwrite=WRITTEN if overwrite else None, inputs=[user_path(photo)])
    photos.check_photo(photo)
    if video_file is not None:
        _check_video(video.check_video(video_file, FPS), user_path(photo), user_path(folder))
    if space is not None and space not in SPACES:
        raise InputError(f"space is {space!r}; allowed: {', '.join(SPACES)}")
    check_features(features)
    whole("steps", steps, 1, MAX_STEPS)
    whole("seed", seed, 0, 2**32 - 1)
    whole("tuning", tuning, 0, MAX_TUNING)
    whole("frames", frames, 0, MAX_SHOWN)


def _check_video(file: Path, photo: Path, folder: Path) -> None:
    """Raise `InputError` if the video would replace the photo, or lie where the folder does."""
    place, target = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    if _same(place, Path(os.path.realpath(photo))):
        raise InputError(f"the video {str(file)!r} would replace the photo itself; name another video file")
    if any(_same(parent, target) for parent in (place, *place.parents)):
        raise InputError(
            f"the video {str(file)!r} would lie in the output folder {str(folder)!r}, which --overwrite "
            f"could then no longer replace; name one beside it, such as {folder.name + file.suffix}"
        )
    if place in target.parents:
        raise InputError(
            f"the output folder {str(folder)!r} would lie in the video {str(file)!r}; rename one"
        )


def _same(one: Path, other: Path) -> bool:
    """Also where the disk takes `A` and `a` for one name."""
    if one == other:
        return True
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False


def write_projection(
    pipeline: GANPipeline,
    photo: str | os.PathLike[str],
    folder: str | os.PathLike[str] = "projection",
    *,
    space: str | None = None,
    steps: int = STEPS,
    features: str = "random-conv",
    seed: int = 0,
    tuning: int = 0,
    frames: int = 0,
    video_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    label: Mapping[str, str] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Written:
    """Project a photo, and write what is found into a folder, whole or not at all: `w.safetensors` (see
    `latents.save_styles`), `projected.png`, `target.png`, `comparison.png`. Progress is shown on stderr.

    photo: any picture file, see `photos.open_photo`; notice is called with what was done to it. space, steps,
    features, seed: see `project`. tuning: steps of pivotal tuning (see `tune`); if any, the tuned pipeline is
    the folder `tuned` in it. frames: so many pictures of the way, in `frames`. video_file: the way as a video
    of four seconds, target and picture side by side, which is written last. overwrite: replace an earlier
    result. label: further text for the files' descriptions, which say model, photo, space, steps, features,
    seed and PSNR.

    Raises:
        InputError: see `check_projection`, `photos.open_photo`, `project` and `tune`.
        WeightsError: the features' weights are missing or damaged.
        Interrupted: Ctrl-C came too late to stop it: the folder is whole.
    """
    asked = {"space": space, "steps": steps, "features": features, "seed": seed}
    files = {"tuning": tuning, "frames": frames, "video_file": video_file, "overwrite": overwrite}
    check_projection(photo, folder, **asked, **files)
    photo, folder = user_path(photo), user_path(folder)
    target, notices = photos.open_photo(photo, pipeline.generator.resolution)
    for text in notices if notice else ():
        notice(f"{photo.name}: {text}")
    asked["space"] = default_space(pipeline.generator) if space is None else space
    way = Way(steps, [frames, VIDEO_FRAMES if video_file else 0])
    ws = _projected(pipeline, target, way, **asked)
    tuned = _tuned(pipeline, ws, target, tuning, features=features, seed=seed) if tuning else None
    drawn = [_drawn("projection", pipeline, ws, target)]
    drawn += [_drawn("tuned", tuned, ws, target)] if tuned else []
    about = {"model": pipeline.model_name or "unnamed", "photo": photo.name, **(label or {})}
    about |= {name: str(value) for name, value in asked.items()} | {"psnr": f"{drawn[0].psnr:.2f}"}
    with whole_folder(folder, overwrite=WRITTEN if overwrite else None, inputs=[photo]) as temporary:
        generators = [each.generator for each in (pipeline, tuned) if each]
        save_styles(temporary / "w.safetensors", ws, about, generators)
        _write_pictures(temporary, target, drawn, about)
        _write_frames(temporary / "frames", pipeline, way, frames, about)
        if tuned:
            tuned.save_pretrained(temporary / "tuned")
    if video_file is not None:
        video_file = _write_video(user_path(video_file), folder, pipeline, target, way, drawn[0], about)
    return Written(folder, drawn[0].psnr, drawn[1].psnr if tuned else None, video_file)


def _projected(pipeline: GANPipeline, target: PIL.Image.Image, way: Way, **options: object) -> torch.Tensor:
    """The styles [1, num_ws, w_dim]."""
    with _bar("projection", way.steps) as show:

        def told(progress: Progress) -> None:
            way(progress)
            show(progress.step, progress.losses[0].item(), f"{progress.psnr[0].item():.1f} dB")

        return project(pipeline.generator, to_tensor(target), callback=told, **options).ws


def _tuned(
    pipeline: GANPipeline, ws: torch.Tensor, target: PIL.Image.Image, steps: int, **options: object
) -> GANPipeline:
    """A pipeline with a tuned copy of the generator."""
    with _bar("tuning", steps) as show:
        generator = tune(pipeline.generator, ws, to_tensor(target), steps, callback=show, **options)
    tuned = GANPipeline(generator=generator)
    tuned.model_name = f"{pipeline.model_name or 'unnamed'}, tuned"
    return tuned


@contextlib.contextmanager
def _bar(what: str, steps: int) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, as a function of the step, the loss and further words."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=what, unit="step", leave=False, file=sys.stderr) as bar:

        def show(step: int, loss: float, words: str = "") -> None:
            bar.set_postfix_str(f"loss {loss:.5f}{words and ', '}{words}", refresh=False)
            bar.update(step - bar.n)

        yield show


def _drawn(name: str, pipeline: GANPipeline, ws: torch.Tensor, target: PIL.Image.Image) -> _Drawing:
    picture = pipeline.draw(ws)[0]
    return _Drawing(name, picture, psnr(to_tensor(picture)[None], to_tensor(target)[None]).item())


def _write_pictures(
    folder: Path, target: PIL.Image.Image, drawn: list[_Drawing], about: dict[str, str]
) -> None:
    write_picture(target, folder / "target.png", {"photo": about["photo"]})
    write_picture(drawn[0].picture, folder / "projected.png", about)
    title = f"{about['photo']}, {about['model']}, {about['space']}, {about['steps']} steps"
    shown = [(one.name, one.picture, one.psnr) for one in drawn]
    write_picture(comparison(target, shown, title), folder / "comparison.png", about)


def _write_frames(folder: Path, pipeline: GANPipeline, way: Way, count: int, about: dict[str, str]) -> None:
    digits = max(3, len(str(count - 1)))
    for number, (step, ws) in enumerate(way.styles(count)):
        picture = pipeline.draw(ws)[0]
        write_picture(picture, folder / f"{number:0{digits}d}.png", {**about, "step": str(step)})


def _write_video(
    path: Path,
    folder: Path,
    pipeline: GANPipeline,
    target: PIL.Image.Image,
    way: Way,
    found: _Drawing,
    about: dict[str, str],
) -> Path:
    """The target at the left; at the right the way, and then for a second what was found."""

    def pictures() -> Iterator[PIL.Image.Image]:
        shown, before = None, -1
        for step, styles in way.styles(VIDEO_FRAMES):
            if step != before:  # with few steps some are there more than once
                shown, before = beside(target, pipeline.draw(styles)[0]), step
            yield shown
        last = beside(target, found.picture)
        for _ in range(VIDEO_END):
            yield last

    title = {"title": f"{about['model']}: projection of {about['photo']}"}
    try:
        return video.write_video(pictures(), path, FPS, about={**title, **about}).path
    except InputError as error:
        raise InputError(f"{error}; the other files are in {str(folder)!r}") from error

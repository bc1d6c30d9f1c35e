"""`stylenat project`: the words on the command line, around `photos` and `latents`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.cli_models import Model, builtin_model, load_pipeline, software
from stylenat_hub.options import Device, Namespace, Revision, Variant, parse_path

WRITTEN = ("w.safetensors", "comparison.png", "projected.png", "target.png", "frames", "tuned")
FAR = 15.0  # dB; below, it is another picture
VIDEO_FRAMES, VIDEO_END, FPS = 90, 30, 30  # of the way, of its end, per second


def project(
    photo: Annotated[Path, typer.Argument(parser=parse_path, metavar="PHOTO", help="Any picture file.")],
    model: Model = None,
    space: Annotated[str, typer.Option(help="w: one style; w+: one per level, which comes nearer.")] = "w+",
    steps: Annotated[int, typer.Option(min=1, help="Of the optimisation.")] = 500,
    features: Annotated[
        str, typer.Option(help="pixels, random-conv, inception, dinov2, lpips, or module:attr.")
    ] = "random-conv",
    seed: Annotated[int, typer.Option(min=0, help="Of the random styles that it learns from.")] = 0,
    tune: Annotated[
        int, typer.Option(min=0, help="Steps of pivotal tuning: also write a model that draws it better.")
    ] = 0,
    frames: Annotated[int, typer.Option(min=0, max=10_000, help="So many pictures of the way.")] = 0,
    video: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="FILE", help="The way as .mp4, .gif or .webp."),
    ] = None,
    output: Annotated[
        Path, typer.Option(parser=parse_path, metavar="DIR", help="Folder for what is found.")
    ] = Path("projection"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    device: Device = "auto",
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
) -> None:
    """Find the styles that draw a picture: w.safetensors, for `generate --styles`."""
    from stylenat_hub import photos
    from stylenat_hub.files import check_folder, whole_folder
    from stylenat_hub.latents.comparison import Way

    replaced = WRITTEN if overwrite else None
    check_folder(output, overwrite=replaced, inputs=[photo])
    photos.check_photo(photo)
    if video is not None:
        from stylenat_hub.video import check_video

        check_video(video, FPS)
    name = model or builtin_model()
    source = {"variant": variant, "revision": revision, "namespace": namespace}
    pipeline = load_pipeline(name, device, "float32", **source)
    target, notices = photos.open_photo(photo, pipeline.generator.resolution)
    for notice in notices:
        typer.echo(f"notice: {photo.name}: {notice}", err=True)
    options = {"features": features, "seed": seed}
    way = Way(steps, [frames, VIDEO_FRAMES if video else 0])
    found = _projected(pipeline, target, way, space=space, steps=steps, **options)
    tuned = _tuned(pipeline, found.ws, target, tune, options) if tune else None
    decibels = found.psnr[0].item()
    about = {"model": pipeline.model_name or "unnamed", "photo": photo.name, "version": software()}
    about |= {"space": space, "steps": str(steps), "features": features, "seed": str(seed)}
    about |= {"psnr": f"{decibels:.2f}"}
    with whole_folder(output, overwrite=replaced, inputs=[photo]) as folder:
        _write(folder, pipeline, target, found.ws, tuned, about)
        _write_frames(folder / "frames", pipeline, way, frames, about)
    typer.echo(f"{photo.name}: PSNR {decibels:.1f} dB, in {output}")
    if decibels < FAR:
        typer.echo(f"this model cannot draw it: below {FAR:.0f} dB it is another picture")
    for drawn_by, where in [(name, output)] + ([(str(output / "tuned"), output)] if tuned else []):
        typer.echo(f"to draw it again: stylenat generate {drawn_by} --styles {where / 'w.safetensors'}")
    if video is not None:
        _write_video(video, pipeline, target, way, found.ws, about)


def _projected(pipeline: Any, target: Any, way: Callable[[Any], None], *, steps: int, **options: Any) -> Any:
    from stylenat_hub.latents.comparison import to_tensor
    from stylenat_hub.latents.projection import project

    with _bar("projection", steps) as show:

        def told(progress: Any) -> None:
            way(progress)
            show(progress.step, progress.losses[0].item(), f"{progress.psnr[0].item():.1f} dB")

        return project(pipeline.generator, to_tensor(target), steps=steps, callback=told, **options)


def _tuned(pipeline: Any, ws: Any, target: Any, steps: int, options: dict[str, Any]) -> Any:
    """A pipeline with a tuned copy of the generator."""
    from stylenat_hub.latents.comparison import to_tensor
    from stylenat_hub.latents.tuning import tune
    from stylenat_hub.pipeline import GANPipeline

    with _bar("tuning", steps) as show:
        generator = tune(pipeline.generator, ws, to_tensor(target), steps, callback=show, **options)
    tuned = GANPipeline(generator=generator)
    tuned.model_name = f"{pipeline.model_name or 'unnamed'}, tuned"
    return tuned


@contextmanager
def _bar(what: str, steps: int) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, as a function of the step, the loss and further words."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=what, unit="step", leave=False, file=sys.stderr) as bar:

        def show(step: int, loss: float, words: str = "") -> None:
            bar.set_postfix_str(f"loss {loss:.5f}{words and ', '}{words}", refresh=False)
            bar.update(step - bar.n)

        yield show


def _write(folder: Path, pipeline: Any, target: Any, ws: Any, tuned: Any, about: dict[str, str]) -> None:
    """Styles, pictures, and if there is one the tuned pipeline."""
    from stylenat_hub.latents.comparison import comparison, to_tensor
    from stylenat_hub.latents.projection import psnr
    from stylenat_hub.latents.styles import save_styles
    from stylenat_hub.pictures import write_picture

    save_styles(folder / "w.safetensors", ws, about)
    shown = []
    for name, drawing in [("projection", pipeline)] + ([("tuned", tuned)] if tuned else []):
        picture = drawing.draw(ws)[0]
        near = psnr(to_tensor(picture)[None], to_tensor(target)[None]).item()
        shown.append((name, picture, near))
    if tuned:
        tuned.save_pretrained(folder / "tuned")
    write_picture(target, folder / "target.png", {"photo": about["photo"]})
    write_picture(shown[0][1], folder / "projected.png", about)
    title = f"{about['photo']}, {about['model']}, {about['space']}, {about['steps']} steps"
    write_picture(comparison(target, shown, title), folder / "comparison.png", about)


def _write_frames(folder: Path, pipeline: Any, way: Any, count: int, about: dict[str, str]) -> None:
    from stylenat_hub.pictures import write_picture

    digits = max(3, len(str(count - 1)))
    for number, (step, ws) in enumerate(way.styles(count)):
        picture = pipeline.draw(ws)[0]
        write_picture(picture, folder / f"{number:0{digits}d}.png", {**about, "step": str(step)})


def _write_video(path: Path, pipeline: Any, target: Any, way: Any, ws: Any, about: dict[str, str]) -> None:
    """The target at the left; at the right the way, and then for a second what was found."""
    from stylenat_hub.latents.comparison import beside
    from stylenat_hub.video import write_video

    def pictures() -> Iterator[Any]:
        shown, before = None, -1
        for step, styles in way.styles(VIDEO_FRAMES):
            if step != before:  # with few steps some are there more than once
                shown, before = beside(target, pipeline.draw(styles)[0]), step
            yield shown
        for _ in range(VIDEO_END):
            yield last

    last = beside(target, pipeline.draw(ws)[0])
    write_video(pictures(), path, FPS)
    typer.echo(f"wrote {path}")

"""`stylenat project`: the words on the command line, around `photos` and `latents`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stylenat_hub.cli_models import Model, builtin_model, load_pipeline, software
from stylenat_hub.errors import shown
from stylenat_hub.options import Device, Namespace, Revision, Variant, parse_path

FAR = 15.0  # dB; below, it is another picture


class Space(str, Enum):
    """Where styles are sought, as `latents.projection.SPACES` has it."""

    w = "w"
    w_plus = "w+"


def project(
    photo: Annotated[Path, typer.Argument(parser=parse_path, metavar="PHOTO", help="Any picture file.")],
    model: Model = None,
    space: Annotated[
        Space | None,
        typer.Option(
            case_sensitive=False,
            help="w: one style; w+: one per level, which comes nearer.",
            show_default="w+; HiT: w",
        ),
    ] = None,
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
    from stylenat_hub.latents.project_files import check_projection, write_projection

    options = {"space": space and space.value, "steps": steps, "features": features, "seed": seed}
    options |= {"tuning": tune, "frames": frames, "video_file": video, "overwrite": overwrite}
    check_projection(photo, output, **options)
    name = model or builtin_model()
    source = {"variant": variant, "revision": revision, "namespace": namespace}
    pipeline = load_pipeline(name, device, "float32", **source)

    def notice(text: str) -> None:
        typer.echo(f"notice: {text}", err=True)

    label = {"version": software()}
    written = write_projection(pipeline, photo, output, label=label, notice=notice, **options)
    tuned = "" if written.tuned_psnr is None else f", tuned {written.tuned_psnr:.1f} dB"
    typer.echo(f"{shown(photo.name)}: PSNR {written.psnr:.1f} dB{tuned}, in {output}")
    if written.psnr < FAR:
        typer.echo(
            f"below {FAR:.0f} dB it is another picture: more --steps may help, or the model cannot draw it"
        )
    styles = output / "w.safetensors"
    typer.echo(f"to draw it again: stylenat generate {name} --styles {styles}")
    if tuned:
        typer.echo(f"with the tuned model: stylenat generate {output / 'tuned'} --styles {styles}")
    if written.video:
        typer.echo(f"wrote {written.video}")

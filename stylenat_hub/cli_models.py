"""What the commands that draw share: which model is meant, loading it, and how it is steered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.errors import InputError
from stylenat_hub.options import choose_device

Model = Annotated[
    str | None,
    typer.Argument(help="Zoo name, folder or Hub id; default: the built-in model.", show_default=False),
]


def builtin_model() -> str:
    """The model to use where none is named. Raises `InputError` while this version ships none."""
    from stylenat_hub.hub import builtin_models

    names = builtin_models()
    if not names:
        raise InputError(
            "this version ships no trained model yet, so name one: a folder that python -m "
            "conversion.convert wrote, or a Hub id (`stylenat list` shows the zoo)"
        )
    return names[0]


def load_pipeline(model: str | None, device: str, dtype: str, **source: Any) -> Any:
    """A `GANPipeline` on a device (see `choose_device`), in a type named as torch names it.

    model: None for the built-in one. source: further arguments of `GANPipeline.from_pretrained`.
    """
    import torch

    from stylenat_hub.pipeline import GANPipeline

    chosen = choose_device(device)
    pipeline = GANPipeline.from_pretrained(model or builtin_model(), dtype=getattr(torch, dtype), **source)
    if chosen.type != "cpu":  # where it is; diffusers would warn that float16 cannot run there, and it can
        pipeline.to(chosen)
    pipeline.set_progress_bar_config(desc="pictures", unit="", leave=False, file=sys.stderr)
    return pipeline


def steered(
    pipeline: Any, centers: int | None, directions: str | None, edit: dict[str, float] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What these options mean: arguments of `write_pictures`, and what its pictures are labelled with."""
    options: dict[str, Any] = {}
    label: dict[str, str] = {}
    if centers is not None:
        from stylenat_hub.latents.clusters import style_centers

        options["truncation_centers"] = style_centers(pipeline.generator, centers)
        label["truncation_centers"] = str(centers)
    if directions is not None:
        from stylenat_hub.latents.direction_files import load_directions

        options["edit"] = load_directions(directions, pipeline.generator).edit(edit)
        label["directions"] = Path(directions).name if Path(directions).exists() else directions
        label["edit"] = ",".join(f"{name}={strength:g}" for name, strength in edit.items())
    return options, label


def software() -> str:
    from stylenat_hub import __version__

    return f"stylenat_hub {__version__}"

"""What the commands that draw share: which model is meant, and loading it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylenat_hub.errors import InputError
from stylenat_hub.options import choose_device

if TYPE_CHECKING:
    pass

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


def load_pipeline(model: str, device: str, dtype: str, **source: Any) -> Any:
    """A `GANPipeline` on a device (see `choose_device`), in a type named as torch names it.

    source: further arguments of `GANPipeline.from_pretrained`.
    """
    import torch

    from stylenat_hub.pipeline import GANPipeline

    chosen = choose_device(device)
    pipeline = GANPipeline.from_pretrained(model, dtype=getattr(torch, dtype), **source)
    if chosen.type != "cpu":  # where it is; diffusers would warn that float16 cannot run there, and it can
        pipeline.to(chosen)
    pipeline.set_progress_bar_config(desc="pictures", unit="", leave=False, file=sys.stderr)
    return pipeline


def software() -> str:
    from stylenat_hub import __version__

    return f"stylenat_hub {__version__}"

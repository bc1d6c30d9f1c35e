"""Styles in files: `w.safetensors`, what projection finds and `generate --styles` draws.

The tensor `ws` is [n, num_ws, w_dim] in float32; the header says of which model it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from stylenat_hub.errors import InputError, WeightsError
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.models.base import Generator

KEY = "ws"
MAX_STYLES = 100_000  # in a file: a guard against damaged headers


def save_styles(path: str | os.PathLike[str], ws: torch.Tensor, about: Mapping[str, Any]) -> None:
    """Write styles [n, num_ws, w_dim], whole or not at all. about: plain JSON data, such as the model's name
    and how they were found."""
    with whole_file(path) as temporary:
        metadata = {"about": json.dumps(dict(about))}
        save_file({KEY: ws.detach().float().cpu().contiguous()}, temporary, metadata=metadata)


def load_styles(path: str | os.PathLike[str], generator: Generator) -> tuple[torch.Tensor, dict[str, Any]]:
    """Styles [n, num_ws, w_dim] on the CPU, float32, and what was recorded of them.

    Raises:
        InputError: no such file, or of another model: the shapes do not fit.
        WeightsError: it is no file of styles, or is damaged.
    """
    place = user_path(path)
    if not place.is_file():
        raise InputError(f"there is no file {str(path)!r}; name one that `stylenat project` wrote")
    try:
        with safetensors.safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in file.keys():  # noqa: SIM118  not a dict
                raise WeightsError(f"{str(path)!r} has no tensor {KEY!r}; name a file of styles")
            shape = file.get_slice(KEY).get_shape()
            _check_shape(path, shape, generator)
            ws = file.get_tensor(KEY).float()
        about = json.loads(metadata.get("about", "{}"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, (InputError, WeightsError)):
            raise
        raise WeightsError(f"{str(path)!r} is no file of styles, or is damaged ({error})") from error
    if not torch.isfinite(ws).all():
        raise WeightsError(f"the styles in {str(path)!r} hold NaN or infinity; make the file anew")
    return ws, about if isinstance(about, dict) else {}


def _check_shape(path: str | os.PathLike[str], shape: list[int], generator: Generator) -> None:
    wanted = [generator.num_ws, generator.w_dim]
    if len(shape) != 3 or shape[1:] != wanted or not 1 <= shape[0] <= MAX_STYLES:
        raise InputError(
            f"the styles in {str(path)!r} are {shape}; this model needs [n, {wanted[0]}, {wanted[1]}], n "
            f"from 1 to {MAX_STYLES:,}: use the model that they were made with"
        )

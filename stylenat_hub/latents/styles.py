"""Styles in files: `w.safetensors`, what projection finds and `generate --styles` draws.

The tensor `ws` is [n, num_ws, w_dim] in float32; the header says of which model it is, by its name and, if
that is recorded, by its weights.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from stylenat_hub.errors import InputError, OtherModelWarning, WeightsError, shown
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.latents.direction_files import check_header, header_json
from stylenat_hub.latents.directions import weights_of
from stylenat_hub.models.base import Generator

FILE = "w.safetensors"
KEY = "ws"
MAX_STYLES = 100_000  # in a file: a guard against damaged headers


def save_styles(
    path: str | os.PathLike[str],
    ws: torch.Tensor,
    about: Mapping[str, Any],
    generators: Sequence[Generator] = (),
) -> None:
    """Write styles [n, num_ws, w_dim], whole or not at all. about: plain JSON data, such as the model's name
    and how they were found. generators: whose styles they are, such as a model and its tuned copy, all of one
    type; `load_styles` then warns for any other, by the fingerprints (`weights_of`) recorded here."""
    about = dict(about)
    if generators:
        prints = [weights_of(generator) for generator in generators]
        about |= {"weights": [one["weights"] for one in prints], "dtype": prints[0]["dtype"]}
    with whole_file(path) as temporary:
        metadata = {"about": json.dumps(about)}
        save_file({KEY: ws.detach().float().cpu().contiguous()}, temporary, metadata=metadata)


def load_styles(path: str | os.PathLike[str], generator: Generator) -> tuple[torch.Tensor, dict[str, Any]]:
    """Styles [n, num_ws, w_dim] on the CPU, float32, and what was recorded of them.

    path: a file, or a folder with `w.safetensors` in it. Warns (`OtherModelWarning`) where other weights are
    recorded than the generator's; of weights in another type nobody can tell.

    Raises:
        InputError: no such file, or of another model: the shapes do not fit.
        WeightsError: it is no file of styles, or is damaged.
    """
    place = user_path(path)
    place = place / FILE if place.is_dir() else place
    if not place.is_file():
        what = f"{FILE!r} in the folder" if place.parent == user_path(path) else "file"
        raise InputError(f"there is no {what} {str(path)!r}; name what `stylenat project` wrote")
    try:
        check_header(place)
        with safetensors.safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in file.keys():  # noqa: SIM118  not a dict
                raise WeightsError(f"{str(path)!r} has no tensor {KEY!r}; name a file of styles")
            shape = file.get_slice(KEY).get_shape()
            _check_shape(path, shape, generator)
            ws = file.get_tensor(KEY).float()
        about = header_json(metadata.get("about", "{}"), "about")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, (InputError, WeightsError)):
            raise
        raise WeightsError(f"{str(path)!r} is no file of styles, or is damaged ({error})") from error
    if not torch.isfinite(ws).all():
        raise WeightsError(f"the styles in {str(path)!r} hold NaN or infinity; make the file anew")
    about = about if isinstance(about, dict) else {}
    _check_weights(path, about, generator)
    return ws, about


def _check_weights(path: str | os.PathLike[str], about: dict[str, Any], generator: Generator) -> None:
    """Warn if other weights are recorded than the generator has."""
    known = about.get("weights")
    if not isinstance(known, list):
        return
    mine = weights_of(generator)
    if about.get("dtype") == mine["dtype"] and mine["weights"] not in known:
        warnings.warn(
            f"the styles in {str(path)!r} were made with other weights than this model has "
            f"({shown(str(about.get('model', 'another model')))}); it draws something else of them",
            OtherModelWarning,
            stacklevel=3,
        )


def _check_shape(path: str | os.PathLike[str], shape: list[int], generator: Generator) -> None:
    wanted = [generator.num_ws, generator.w_dim]
    if len(shape) != 3 or shape[1:] != wanted or not 1 <= shape[0] <= MAX_STYLES:
        raise InputError(
            f"the styles in {str(path)!r} are {shape}; this model needs [n, {wanted[0]}, {wanted[1]}], n "
            f"from 1 to {MAX_STYLES:,}: use the model that they were made with"
        )

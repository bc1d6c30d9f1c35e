"""What the tabs Mix, Travel and Edit share: pictures as labelled files, and what a visitor asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from studio import checks
from studio.engine import Engine, picture_of
from studio.pool import Loaded
from stylenat_hub.cli_models import software
from stylenat_hub.errors import InputError, shown
from stylenat_hub.pictures import drawn_by, write_picture
from stylenat_hub.pipeline import MAX_SEED


@dataclass(frozen=True)
class Steered:
    """A picture and what goes with it. file: a PNG with text chunks. code: the Python that repeats it.
    seconds: drawing took."""

    model: str
    image: PIL.Image.Image
    file: Path
    code: str
    seconds: float


def seed(value: Any, what: str = "the seed") -> int:
    """A visitor's seed. Raises `InputError`."""
    return checks.whole(what, value, 0, MAX_SEED)


def one_of(what: str, value: Any, allowed: Sequence[str]) -> str:
    """One of these words. Raises `InputError`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{what} is {shown(repr(value))}; allowed: {', '.join(allowed)}")
    return value


def source(engine: Engine, model: Any, number: Any, psi: Any) -> PIL.Image.Image:
    """The picture of one seed as it is, to be shown beside what is made of it."""
    number = seed(number)
    loaded = engine.use(model)
    return engine.compute(loaded, picture_of, number, engine.truncation(loaded, psi))


def save(
    engine: Engine,
    loaded: Loaded,
    image: PIL.Image.Image,
    name: str,
    options: Mapping[str, Any],
    about: Mapping[str, str],
) -> Path:
    """Write it as a PNG that says how it was made, as the commands' pictures do. options: as
    `Engine.truncation` returns them."""
    label = {key: options[key] for key in ("truncation_psi", "truncation_cutoff")}
    path = engine.scratch.folder() / name
    write_picture(image, path, {**drawn_by(loaded.pipeline, label), "version": software(), **about})
    return path

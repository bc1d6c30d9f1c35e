"""Pictures of visitors: whatever they send, as a square of a model's size, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image

from stylenat_hub.errors import InputError, shown
from stylenat_hub.photos import open_photo

MAX_BYTES = 16 << 20  # as much as the page takes; see MAX_UPLOAD in app.py


def photo(value: Any, resolution: int, folder: Path) -> tuple[PIL.Image.Image, list[str]]:
    """The picture at the model's size, and notices of what was changed; see `photos.open_photo`.

    value: what gradio hands on of an uploaded file, {"path": ..., ...}. folder: where uploads lie, and what
    they must be in: gradio looks at paths only if they come with the mark of its own clients. Raises
    `InputError`, which does not say where on this machine.
    """
    if value is None:
        raise InputError("there is no photo yet; upload one, or take one with the camera")
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise InputError(f"the photo is {shown(repr(value))}; allowed: an uploaded picture file")
    place = _uploaded(path, folder)
    try:
        if place.is_file() and place.stat().st_size > MAX_BYTES:
            raise InputError(f"the file {str(place)!r} has more than {MAX_BYTES:,} bytes; save it smaller")
        return open_photo(place, resolution)
    except (InputError, OSError) as error:
        raise InputError(str(error).replace(repr(str(place)), repr(shown(place.name)))) from None


def _uploaded(path: str, folder: Path) -> Path:
    try:
        place = Path(path).resolve()
    except (ValueError, OSError):  # a null byte, a circle of links, ...
        place = Path("/")
    if not place.is_relative_to(folder.resolve()):
        raise InputError(f"{shown(repr(path))} was not uploaded here; upload the picture")
    return place

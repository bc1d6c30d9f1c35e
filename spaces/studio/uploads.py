"""Pictures of visitors: whatever they send, as a square of a model's size, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image

from stylenat_hub.errors import InputError, shown
from stylenat_hub.photos import open_photo

MAX_BYTES = 16_000_000  # as much as the page takes; see MAX_UPLOAD in app.py


def photo(value: Any, resolution: int) -> tuple[PIL.Image.Image, list[str]]:
    """The picture at the model's size, and notices of what was changed; see `photos.open_photo`.

    value: what gradio hands on of an uploaded file, {"path": ..., ...}, once it has made sure that the file
    is one of those that were uploaded here. Raises `InputError`, which does not say where on this machine.
    """
    if value is None:
        raise InputError("there is no photo yet; upload one, or take one with the camera")
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise InputError(f"the photo is {shown(repr(value))}; allowed: an uploaded picture file")
    place = Path(path)
    try:
        if place.is_file() and place.stat().st_size > MAX_BYTES:
            raise InputError(f"the file {path!r} has more than {MAX_BYTES:,} bytes; save it smaller")
        return open_photo(place, resolution)
    except (InputError, ValueError, OSError) as error:
        words = str(error).replace(repr(path), repr(shown(place.name))).replace(str(place.parent), "")
        raise InputError(words) from None

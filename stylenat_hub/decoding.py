"""From the bytes of an image file, in any format and mode that Pillow decodes, to a square RGB picture."""

from __future__ import annotations

import contextlib
import functools
import io
import struct

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from stylenat_hub.errors import InputError

# What Pillow names but cannot decode alone: EPS would start Ghostscript, the others need a handler.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooSmall(InputError):
    """A picture that would have to be enlarged. `.label` and `.reason` say which, and how small it is."""

    def __init__(self, label: str, size: tuple[int, int], resolution: int) -> None:
        super().__init__(label, size, resolution)  # all three, so that it can be pickled
        self.label = label
        self.reason = f"it is {size[0]} x {size[1]} pixels, below the resolution of {resolution}"

    def __str__(self) -> str:
        return f"{self.label!r}: {self.reason}; remove it, choose a smaller size, or add --allow-upscaling"


def decode(data: bytes) -> Image.Image:
    """An encoded picture of any format and mode as RGB, upright; of an animation the first frame. An alpha
    channel is dropped, 16 bits become 8. Raises whatever Pillow raises for damaged data.
    """
    if not data:
        raise ValueError("it is empty")
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        image.load()  # TIFFs are turned here, and lose the tag by it
        turn = turn_upright(image)
        image = with_alpha(image).convert("RGB")
    return image.transpose(turn) if turn is not None else image


@functools.cache
def formats() -> tuple[str, ...]:
    """What Pillow decodes alone, by its names, for `Image.open`."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_DECODED))


@functools.cache
def extensions() -> frozenset[str]:
    """The file name endings that count as pictures, in lower case: `.png`."""
    known = {*formats(), "MPO"}  # MPO is read by the reader of JPEG
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """How a decoded picture is to be transposed, as its EXIF tag says, or None."""
    return _TURNS.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    # ImageOps.exif_transpose rewrites the whole EXIF block, and fails where any of it is damaged.
    damaged = (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error)
    with contextlib.suppress(*damaged):
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def with_alpha(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as one that converts to RGB well: 16 bits become 8, and what is
    transparent by a colour or has multiplied colours becomes RGBA. Raises `ValueError` for floating point."""
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, whose range is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would cut off everything above 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "RGBa" or "transparency" in image.info:
        return image.convert("RGBA")  # the colours themselves; Pillow warns about the direct way
    return image


def reason(error: Exception) -> str:
    """In a few words, the same on every run: Pillow's own would name an address in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture in a format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if str(error).startswith("decoder error"):  # a number of libtiff's, which has said more on its own
        return "it is cut short or damaged"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def square(image: Image.Image, resolution: int, label: str, allow_upscaling: bool = False) -> Image.Image:
    """The largest square in the middle of a picture, resized to `resolution` x `resolution` pixels.

    Shrunk by Lanczos, enlarged by a bicubic filter; a square that fits stays as it is. Raises `TooSmall`,
    naming the picture, if it would have to be enlarged and that is not allowed.
    """
    width, height = image.size
    side = min(width, height)
    if side < resolution and not allow_upscaling:
        raise TooSmall(label, (width, height), resolution)
    left, top = (width - side) // 2, (height - side) // 2
    if width != height:
        image = image.crop((left, top, left + side, top + side))
    if side == resolution:
        return image
    kind = Image.Resampling.LANCZOS if side > resolution else Image.Resampling.BICUBIC
    return image.resize((resolution, resolution), kind)

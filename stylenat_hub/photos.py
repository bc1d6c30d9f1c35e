"""Any picture file as a square RGB picture of a model's size, with notices of what was changed.

For files of strangers: what they are is checked before they are decoded, and memory is bounded. The file is
decoded once, as it is; everything after that goes in bands of rows into a picture of a few times the wanted
size.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, TiffImagePlugin

from stylenat_hub.decoding import formats, reason, square, turn_upright, with_alpha
from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path

MAX_PIXELS = 100_000_000  # decoded they take 400 MB, and a JPEG up to 1 GB while it is read
_HEAVY = {  # their decoders take over 13 bytes per pixel, or 12
    **dict.fromkeys(("AVIF", "JPEG2000", "WEBP"), 40_000_000),
    **dict.fromkeys(("JPEG CMYK", "MPO CMYK"), 60_000_000),
}
_MAX_PART = 300_000_000  # bytes of a strip or tile of a TIFF, which is decoded beside the picture
MAX_BYTES = 2**28  # of a file; some formats are read whole before they are decoded
_WIDTH, _HEIGHT, _BITS, _COLOURS, _SAMPLES, _ROWS_PER_STRIP = 256, 257, 258, 262, 277, 278  # tags of a TIFF
_TILE_WIDTH, _TILE_HEIGHT, _YCBCR = 322, 323, 6
_GAP = 2  # a picture is averaged down to so many times the wanted size, and only then filtered
_BAND = 2**21  # pixels that are converted at a time


def open_photo(path: str | os.PathLike[str], resolution: int) -> tuple[Image.Image, list[str]]:
    """A picture file of any format and mode that Pillow decodes, as RGB of `resolution` x `resolution` px;
    and notices of what was changed, in the order in which it was.

    It is turned upright as its EXIF tag says; of an animation it is the first frame; 16 bits become 8;
    transparent parts are put on white; the largest square in the middle is taken, and shrunk by Lanczos or
    enlarged by a bicubic filter.

    Raises `InputError`: no such file, a folder, empty, more than `MAX_BYTES`, more than `MAX_PIXELS` pixels
    (AVIF, JPEG 2000 and WebP: 40 million; JPEG in CMYK: 60 million) or a TIFF with a strip or tile of more
    than 300 MB, which is seen before it is decoded; not a picture, or damaged. At most about 1 GB of memory
    is needed.
    """
    place = check_photo(path)
    notices: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            warnings.simplefilter("always", Image.DecompressionBombWarning)
            warnings.showwarning = _refuse  # an icon is decoded as it is opened
            with Image.open(place, formats=formats()) as image:
                _check_size(path, image)
                picture = _taken(image, resolution, notices)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, f"{_pixels(error):,}", MAX_PIXELS) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise InputError(f"cannot read the picture {str(path)!r}: {reason(error)}") from error
    return picture, notices


def check_photo(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded. Raises `InputError` for what cannot be a picture file, without reading it:
    see `open_photo`."""
    place, name = user_path(path), repr(str(path))
    if place.is_dir():
        raise InputError(f"{name} is a folder; name a picture file")
    if not place.exists():
        raise InputError(f"there is no file {name}; name a picture file")
    if not place.is_file():
        raise InputError(f"{name} is a device or a pipe; name a picture file")
    size = place.stat().st_size
    if size == 0:
        raise InputError(f"the file {name} is empty; name a picture file")
    if size > MAX_BYTES:
        raise InputError(
            f"the file {name} has {size:,} bytes; allowed: up to {MAX_BYTES:,}; save it smaller, or as JPEG"
        )
    return place


def _check_size(path: str | os.PathLike[str], image: Image.Image) -> None:
    width, height = image.size
    kinds = (image.format, f"{image.format} {image.mode}")
    limit = min(_HEAVY.get(kind, MAX_PIXELS) for kind in kinds)
    if width * height > limit:
        raise _too_large(path, f"{width:,} x {height:,} = {width * height:,}", limit)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_part(path, image)


def _check_part(path: str | os.PathLike[str], image: TiffImagePlugin.TiffImageFile) -> None:
    """Is a strip or tile of a TIFF small enough? A tile may be far larger than the picture."""
    tags = image.tag_v2
    width, height = tags[_WIDTH], tags[_HEIGHT]
    if _TILE_WIDTH in tags or _TILE_HEIGHT in tags:
        width, height = tags.get(_TILE_WIDTH, width), tags.get(_TILE_HEIGHT, height)
    else:
        height = min(height, tags.get(_ROWS_PER_STRIP, height))
    if _repeats_tags(image.fp):  # Pillow takes the last one, its decoder the first
        raise ValueError("it names one property twice")
    if not isinstance(width, int) or not isinstance(height, int):
        raise ValueError("the size of its parts is no whole number")
    if "jpeg" in image.info["compression"] or tags.get(_COLOURS) == _YCBCR:
        bits = 64  # they are decoded by way of more than what they hold
    else:
        bits = max(tags.get(_BITS, (1,))) * tags.get(_SAMPLES, 1)
    if width * height * bits > 8 * _MAX_PART:
        raise InputError(
            f"the picture {str(path)!r} is stored in parts of {width:,} x {height:,} pixels, which take "
            f"{width * height * bits // 8:,} bytes each; allowed: up to {_MAX_PART:,}; save it as PNG"
        )


def _repeats_tags(file: IO[bytes]) -> bool:
    """Does the first directory of a TIFF or BigTIFF have a tag twice?"""
    place = file.tell()
    file.seek(0)
    header = file.read(16)
    order, big = "<" if header[:2] == b"II" else ">", 43 in header[2:4]
    first, count, entry = ("8xQ", "Q", 20) if big else ("4xI", "H", 12)
    file.seek(struct.unpack_from(order + first, header)[0])
    entries = struct.unpack(order + count, file.read(struct.calcsize(order + count)))[0]
    data = file.read(min(entries, 2**16) * entry)
    file.seek(place)
    tags = [struct.unpack_from(order + "H", data, start)[0] for start in range(0, len(data) - 1, entry)]
    return len(set(tags)) < len(tags)


def _refuse(message: Warning | str, *about: object) -> None:
    """Raise Pillow's warning of a large picture where it is beyond our limit, which is above Pillow's."""
    if isinstance(message, Image.DecompressionBombWarning) and _pixels(message) > MAX_PIXELS:
        raise message


def _pixels(error: Exception) -> int:
    """How many pixels Pillow found too many."""
    return int(re.search(r"\d+", str(error))[0])


def _too_large(path: str | os.PathLike[str], pixels: str, limit: int) -> InputError:
    return InputError(
        f"the picture {str(path)!r} has {pixels} pixels; allowed: up to {limit:,}; shrink it first"
    )


def _taken(image: Image.Image, resolution: int, notices: list[str]) -> Image.Image:
    """The square of an opened picture."""
    if getattr(image, "is_animated", False):
        notices.append("it holds several pictures, as an animation does; the first one is used")
    width, height = image.size
    image.draft(None, (_GAP * resolution, _GAP * resolution))  # a JPEG is decoded smaller, to save memory
    image.load()  # TIFFs are turned here, and lose the tag by it
    turn = turn_upright(image)
    middle, transparent = _middle(image, resolution)
    if transparent:
        notices.append("its transparent parts are put on white")
    if turn is not None:
        middle = middle.transpose(turn)
    side = min(width, height)
    if width != height:
        turned = turn is not None and turn.name in ("ROTATE_90", "ROTATE_270", "TRANSPOSE", "TRANSVERSE")
        shape = (height, width) if turned else (width, height)
        notices.append(f"cropped to the square in its middle: {side} x {side} of {shape[0]} x {shape[1]} px")
    if side != resolution:
        verb = "shrunk" if side > resolution else "enlarged, so it is less sharp than the model's pictures:"
        notices.append(f"{verb} from {side} to {resolution} px")
    return square(middle, resolution, "", allow_upscaling=True)


def _middle(image: Image.Image, resolution: int) -> tuple[Image.Image, bool]:
    """The square in the middle of a decoded picture in RGB, averaged down by a whole factor to not much over
    `_GAP` times the resolution; and had it transparent parts?"""
    side = min(image.size)
    factor = max(1, side // (_GAP * resolution))
    side -= side % factor  # less than half a pixel of the result
    left, top = (image.width - side) // 2, (image.height - side) // 2
    middle = Image.new("RGB", (side // factor, side // factor))
    transparent = False
    for start, stop in _bands(side, factor):
        band = with_alpha(image.crop((left, top + start, left + side, top + stop)))
        if band.has_transparency_data:
            band, seen = _on_white(band.convert("RGBA"))
            transparent = transparent or seen
        band = band.convert("RGB")
        middle.paste(band.reduce(factor) if factor > 1 else band, (0, start // factor))
    return middle, transparent


def _bands(side: int, factor: int) -> Iterator[tuple[int, int]]:
    """The rows of a square in parts, each but the last a multiple of the factor."""
    rows = max(1, _BAND // (side * factor)) * factor
    for start in range(0, side, rows):
        yield start, min(start + rows, side)


def _on_white(band: Image.Image) -> tuple[Image.Image, bool]:
    alpha = band.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return band, False
    white = Image.new("RGB", band.size, "white")
    white.paste(band.convert("RGB"), mask=alpha)
    return white, True

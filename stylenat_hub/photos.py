"""Any picture file as a square RGB picture of a model's size, with notices of what was changed.

For files of strangers: what they are is checked before they are decoded, and memory is bounded. The file is
decoded once, as it is; everything after that goes in bands of rows into a picture of a few times the wanted
size.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from stylenat_hub.decoding import formats, reason, square, turn_upright, with_alpha
from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path

MAX_PIXELS = 100_000_000  # decoded they take 400 MB, and a JPEG up to 820 MB while it is read
_HEAVY = {"JPEG2000": 40_000_000, "WEBP": 40_000_000}  # their decoders take over 15 bytes per pixel
MAX_BYTES = 2**28  # of a file; some formats are read whole before they are decoded
_GAP = 2  # a picture is averaged down to so many times the wanted size, and only then filtered
_BAND = 2**21  # pixels that are converted at a time


def open_photo(path: str | os.PathLike[str], resolution: int) -> tuple[Image.Image, list[str]]:
    """A picture file of any format and mode that Pillow decodes, as RGB of `resolution` x `resolution` px;
    and notices of what was changed, in the order in which it was.

    It is turned upright as its EXIF tag says; of an animation it is the first frame; 16 bits become 8;
    transparent parts are put on white; the largest square in the middle is taken, and shrunk by Lanczos or
    enlarged by a bicubic filter.

    Raises `InputError`: no such file, a folder, empty, more than `MAX_BYTES`, more than `MAX_PIXELS` pixels
    (WebP and JPEG 2000: 40 million), which is seen before it is decoded; not a picture, or damaged. Less than
    1 GB of memory is needed.
    """
    place = check_photo(path)
    notices: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's limit, which is not ours, and of damaged metadata
            with Image.open(place, formats=formats()) as image:
                _check_size(path, image)
                warnings.simplefilter("error", Image.DecompressionBombWarning)  # of what an icon has in it
                picture = _taken(image, resolution, notices)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(path, f"{int(count[0]):,}" if count else "too many", MAX_PIXELS) from error
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
    limit = _HEAVY.get(image.format or "", MAX_PIXELS)
    if width * height > limit:
        raise _too_large(path, f"{width:,} x {height:,} = {width * height:,}", limit)


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

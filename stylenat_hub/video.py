"""Pictures as videos: MP4 by ffmpeg, frame by frame; GIF and WebP by Pillow, within a limit.

A file is written whole or not at all. H.264 wants even sides, GIF counts hundredths of a second, and browsers
slow down what is faster than they expect: each kind has its limits here.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image
from PIL import features

from stylenat_hub.errors import InputError, cut
from stylenat_hub.files import check_writable, user_path, whole_file
from stylenat_hub.signals import held

SMALLEST = 256  # px; smaller pictures are enlarged pixel by pixel, so that players show more than a stamp
MAX_SIDE = 8192  # px; far beyond what players show
MAX_PIXELS = 300_000_000  # of all frames of a GIF or WebP, which Pillow holds in memory: 3 bytes each
_QUALITY = 90  # of a lossy WebP
# Each lossy frame by itself: in changes to the one before errors gather, and every few frames all jump back.
_EACH_WHOLE = {"kmin": 0, "kmax": 1}
# Players guess the colours of what does not say by its size, and not alike.
_COLOURS = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
LONGEST_TEXT = 8_000  # characters about an MP4; the system bounds what a command may say
_RATE_FACTOR = 17  # of x264: not to be told from the pictures by eye
_SAMPLE_SIDE = 128  # px of what a GIF's colours are chosen from
_DESCRIPTION = 0x010E  # the number of ImageDescription in EXIF


@dataclass(frozen=True)
class Kind:
    """A kind of video. fastest: pictures per second at most; browsers slow down faster ones. pixels: of all
    frames at most, where they are held in memory. tick: ms that a picture stays, or a multiple of it."""

    fastest: int
    pixels: int | None = None
    tick: int = 1


KINDS = {
    ".mp4": Kind(120),
    ".gif": Kind(50, MAX_PIXELS, tick=10),
    ".webp": Kind(90, MAX_PIXELS),
}


@dataclass(frozen=True)
class Video:
    """What `write_video` wrote: the file, how many frames, and their width and height in px."""

    path: Path
    frames: int
    size: tuple[int, int]


def check_video(path: str | os.PathLike[str], fps: float = 30, *, lossless: bool = False) -> Path:
    """Can such a video be written there? To be asked before the work. Returns the path with `~` expanded.

    Raises `InputError`: an ending other than .mp4, .gif, .webp; fps out of range (1 to 120, GIF 50, WebP 90);
    lossless, and no .webp; a folder that cannot be written; for .mp4, imageio-ffmpeg is not installed.
    """
    path = user_path(path)
    ending = path.suffix.lower()
    if ending not in KINDS:
        raise InputError(
            f"{path.name!r} does not say what kind of video it is; allowed endings: {', '.join(KINDS)}"
        )
    fastest = KINDS[ending].fastest
    if isinstance(fps, bool) or not isinstance(fps, numbers.Real) or not 1 <= fps <= fastest:
        raise InputError(f"fps is {fps!r}; allowed for {ending}: from 1 to {fastest} pictures per second")
    if lossless and ending != ".webp":
        raise InputError(f"only a .webp can be lossless, not a {ending}; name a .webp, or leave lossless out")
    if path.is_dir():
        raise InputError(f"cannot write the file {str(path)!r}: a folder is there; name another output")
    check_writable(path.parent)
    if ending == ".mp4":
        _ffmpeg()
    elif ending == ".webp" and not features.check("webp"):
        raise InputError("this Pillow was built without WebP; name a .gif or .mp4, or install Pillow anew")
    return path


def check_length(
    path: str | os.PathLike[str], size: tuple[int, int], frames: int, smallest: int = SMALLEST
) -> tuple[int, int]:
    """Is a video of so many frames of this size within the limits? Returns its width and height in px, after
    enlarging and, for .mp4, made even. Raises `InputError`."""
    kind = KINDS[Path(path).suffix.lower()]
    factor = _factor(size, smallest)
    width, height = (side * factor for side in size)
    if Path(path).suffix.lower() == ".mp4":
        width, height = width + width % 2, height + height % 2
    if max(width, height) > MAX_SIDE:
        raise InputError(f"the frames are {width} x {height} pixels; allowed: sides up to {MAX_SIDE}")
    if kind.pixels is not None and width * height * frames > kind.pixels:
        most = kind.pixels // (width * height)
        raise InputError(
            f"{frames} frames of {width} x {height} pixels are too many for a GIF or WebP, which is held in "
            f"memory; allowed: {most} of this size; ask for fewer, or name a .mp4"
        )
    return width, height


def write_video(
    frames: Iterable[PIL.Image.Image],
    path: str | os.PathLike[str],
    fps: float = 30,
    *,
    smallest: int = SMALLEST,
    lossless: bool = False,
    about: Mapping[str, str] | None = None,
) -> Video:
    """Write pictures of one size as a video; the kind is the path's ending.

    .mp4: H.264, 4:2:0, BT.709, readable while it loads; an odd side gets its last row or column twice.
    .gif: repeated for ever, 256 colours in each frame. .webp: repeated for ever, quality 90 or `lossless`.
    Equal pictures in a row may become one that stays longer in the latter two, which need no ffmpeg.

    frames: drawn as they are needed; of a .mp4 only one is in memory, of the others all. fps: see
    `check_video`; the pictures of a GIF stay a hundredth of a second more or less, so that the sum is right.
    smallest: px; pictures with a smaller side are enlarged by a whole factor. about: text for the file, such
    as the model and the seeds; `title` has its own place in a .mp4.

    Raises `InputError`: see `check_video` and `check_length`; no pictures, or of different sizes; ffmpeg
    fails. Whatever the error, Ctrl-C among them, no file and no process is left.
    """
    path = check_video(path, fps, lossless=lossless)
    ending = path.suffix.lower()
    drawn = _alike(frames, path, smallest)
    first = next(drawn, None)
    if first is None:
        raise InputError("there are no pictures to make a video of; give at least one")
    size, factor = check_length(path, first.size, 1, smallest), _factor(first.size, smallest)
    with whole_file(path) as temporary:
        if ending == ".mp4":
            count = _write_mp4(_again(first, drawn), temporary, fps, size, factor, about or {})
        else:
            write = _write_gif if ending == ".gif" else partial(_write_webp, lossless=lossless)
            text = "\n".join(f"{name}: {value}" for name, value in (about or {}).items())
            shown, timing = partial(_enlarged, factor=factor), partial(_timing, fps, KINDS[ending].tick)
            count = write(_again(first, drawn), shown, temporary, text, timing)
    return Video(path, count, size)


def _alike(frames: Iterable[PIL.Image.Image], path: Path, smallest: int) -> Iterator[PIL.Image.Image]:
    """The frames in RGB, as long as they are of one size and within the limits."""
    size = None
    for number, frame in enumerate(frames, start=1):
        size = size or frame.size
        if frame.size != size:
            raise InputError(
                f"frame {number} is {frame.width} x {frame.height} pixels and the first is {size[0]} x "
                f"{size[1]}; allowed: pictures of one size"
            )
        check_length(path, size, number, smallest)
        yield frame.convert("RGB")


def _again(first: PIL.Image.Image, rest: Iterator[PIL.Image.Image]) -> Iterator[PIL.Image.Image]:
    yield first
    yield from rest


def _factor(size: tuple[int, int], smallest: int) -> int:
    return max(1, math.ceil(smallest / min(size)))


def _enlarged(frame: PIL.Image.Image, factor: int) -> PIL.Image.Image:
    size = (frame.width * factor, frame.height * factor)
    return frame if factor == 1 else frame.resize(size, PIL.Image.Resampling.NEAREST)


def _timing(fps: float, tick: int, count: int) -> dict[str, object]:
    """Pillow's options for so many frames, for ever again; how many ms each stays are multiples of `tick`, so
    that the whole takes the right time."""
    ends = [tick * round(1000 * number / (fps * tick)) for number in range(count + 1)]
    stays = [after - before for before, after in pairwise(ends)]
    return {"save_all": True, "loop": 0, "duration": stays}


def _write_gif(
    frames: Iterable[PIL.Image.Image],
    shown: Callable[[PIL.Image.Image], PIL.Image.Image],
    path: Path,
    text: str,
    timing: Callable[[int], dict[str, object]],
) -> int:
    """Returns how many frames there were."""
    few = [_in_256_colours(frame) for frame in frames]
    rest = (shown(frame) for frame in few[1:])
    options = {"comment": text.encode("ascii", "replace"), "optimize": False, **timing(len(few))}
    shown(few[0]).save(path, format="GIF", append_images=rest, **options)
    return len(few)


def _in_256_colours(frame: PIL.Image.Image) -> PIL.Image.Image:
    """Each frame has colours of its own, and no dots in between: measured on loops of the built-in model,
    that is nearer to the pictures than 256 colours for all, by 4 dB, and flickers less."""
    sample = frame
    if max(frame.size) > _SAMPLE_SIDE:
        share = _SAMPLE_SIDE / max(frame.size)
        size = tuple(max(1, round(side * share)) for side in frame.size)
        sample = frame.resize(size, PIL.Image.Resampling.NEAREST)
    palette = sample.quantize(256, PIL.Image.Quantize.MEDIANCUT, kmeans=1)
    return frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE)


def _write_webp(
    frames: Iterable[PIL.Image.Image],
    shown: Callable[[PIL.Image.Image], PIL.Image.Image],
    path: Path,
    text: str,
    timing: Callable[[int], dict[str, object]],
    lossless: bool,
) -> int:
    """Returns how many frames there were."""
    first, *rest = [shown(frame) for frame in frames]
    exif = PIL.Image.Exif()
    exif[_DESCRIPTION] = text.encode("ascii", "replace").decode()
    options = {"quality": _QUALITY, "lossless": lossless, "exif": exif, **timing(1 + len(rest))}
    options |= {} if lossless else _EACH_WHOLE
    first.save(path, format="WEBP", append_images=rest, **options)
    return 1 + len(rest)


def _write_mp4(
    frames: Iterable[PIL.Image.Image],
    path: Path,
    fps: float,
    size: tuple[int, int],
    factor: int,
    about: Mapping[str, str],
) -> int:
    """Returns how many frames there were."""
    count = 0
    with _encoder(_command(path, fps, size, about)) as pixels:
        for frame in frames:
            pixels.write(_even(_enlarged(frame, factor)).tobytes())
            count += 1
    return count


def _command(path: Path, fps: float, size: tuple[int, int], about: Mapping[str, str]) -> list[str]:
    width, height = size
    comment = "; ".join(f"{name}: {value}" for name, value in about.items() if name != "title")
    texts = {"title": about.get("title", ""), "comment": comment}
    texts = {name: cut(text, LONGEST_TEXT) for name, text in texts.items() if text}
    metadata = [word for name, text in texts.items() for word in ("-metadata", f"{name}={text}")]
    return [
        *(_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", f"{fps}"),
        *("-i", "pipe:0", "-vf", _COLOURS),
        *("-c:v", "libx264", "-crf", f"{_RATE_FACTOR}", "-pix_fmt", "yuv420p", "-movflags", "+faststart"),
        *(*metadata, "-f", "mp4", str(path)),
    ]


def _even(frame: PIL.Image.Image) -> np.ndarray:
    """A picture as uint8 [H, W, 3] with even sides; the last row or column of an odd one is there twice."""
    extra = [(0, frame.height % 2), (0, frame.width % 2), (0, 0)]
    return np.pad(np.asarray(frame), extra, mode="edge")


@contextlib.contextmanager
def _encoder(command: list[str]) -> Iterator[IO[bytes]]:
    """ffmpeg at work, as what its pixels are written to. At the end it has ended, whatever happened.

    Raises `InputError` with ffmpeg's own words if it fails.
    """
    process = None
    with tempfile.TemporaryFile() as words:
        try:
            with held():
                # A session of its own: Ctrl-C reaches this process alone, which then ends the other.
                streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": words}
                process = subprocess.Popen(command, start_new_session=True, **streams)
            complete = False
            with contextlib.suppress(BrokenPipeError):  # it ends before all is written, and says why
                yield process.stdin
                process.stdin.close()
                complete = True
            if process.wait() != 0 or not complete:
                words.seek(0)
                said = cut(" ".join(words.read().decode(errors="replace").split()), 500) or "no details"
                raise InputError(f"ffmpeg could not write the video: {said}; a .gif or .webp needs no ffmpeg")
        finally:
            with held():
                if process:
                    _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    with contextlib.suppress(OSError):  # what was not written yet has nobody to read it
        process.stdin.close()


def _ffmpeg() -> str:
    """Where the program is. Raises `InputError` if imageio-ffmpeg, or the program in it, is missing."""
    missing = 'a .mp4 needs imageio-ffmpeg: pip install "stylenat-hub[video]"; .gif and .webp go without it'
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # or there is none for this system
        raise InputError(missing) from error

"""Any pictures to one zip of square PNGs, which trains faster and travels better than what it was made of.

    python -m training.prepare photos/ --output photos-256.zip --size 256

The zip is laid out as StyleGAN's data sets are (00000/img00000000.png, ...), so that their tools read it too.
Pictures that cannot be read or are too small are left out and named at the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from tqdm.auto import tqdm

from stylenat_hub import signals
from stylenat_hub.decoding import TooSmall, square
from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.options import one_sentence
from stylenat_hub.sources import BrokenImage, Source, open_source

LOOK_AHEAD = 4  # pictures per worker that are encoded and wait for their turn
Encoded = bytes | BrokenImage | TooSmall


@dataclass(frozen=True)
class Report:
    """What `prepare` wrote: how many pictures, and (name, reason) of each that it left out."""

    written: int
    skipped: tuple[tuple[str, str], ...]


def prepare(
    source: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    size: int,
    *,
    limit: int | None = None,
    split: str = "train",
    strict: bool = False,
    workers: int | None = None,
    allow_upscaling: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Write the pictures of a source, cropped and resized to `size` x `size` pixels, into a zip of PNGs:
    whole or not at all, and equal bytes for equal pictures (and versions of Pillow).

    source: see `open_source`. limit: write only the first so many. workers: threads; None is one per CPU.
    strict: raise for a picture that cannot be read or is too small, instead of leaving it out.

    Raises `InputError`: a bad argument, a source or output that cannot be used, no picture that can be
    written, or, if `strict`, the first that is left out.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    target = user_path(output)
    if target.suffix != ".zip" or min(size, workers, 1 if limit is None else limit) < 1:
        raise InputError(
            f"the output is {str(output)!r}, size {size}, workers {workers} and limit {limit}; allowed: a "
            f".zip, and numbers from 1"
        )
    source = source if isinstance(source, Source) else open_source(os.fspath(source), split)
    _check_not_the_source(source, target)
    if target.exists() and not overwrite:
        raise InputError(f"{str(target)!r} exists; name another output, or add --overwrite")
    total = min(len(source), limit or len(source))
    encoded = _encoded(source, size, allow_upscaling, workers)
    with (
        whole_file(target) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        contextlib.closing(encoded),
        tqdm(total=total, desc="pictures", disable=not progress) as bar,
    ):
        return _write(archive, encoded, limit, strict, bar)


def _write(
    archive: zipfile.ZipFile, encoded: Iterator[Encoded], limit: int | None, strict: bool, bar: tqdm
) -> Report:
    skipped: list[BrokenImage | TooSmall] = []
    written = 0
    for result in encoded:
        if isinstance(result, bytes):
            archive.writestr(_member(written), result)
            written += 1
            bar.update()
        elif strict:
            raise result
        else:
            skipped.append(result)
        if written == limit:
            break
    if not written:
        raise InputError(f"none of {len(skipped)} pictures can be written; the first one: {skipped[0]}")
    return Report(written, tuple((error.label, error.reason) for error in skipped))


def _check_not_the_source(source: Source, target: Path) -> None:
    with contextlib.suppress(OSError):
        if os.path.samefile(user_path(source.name), target):
            raise InputError(f"the output {str(target)!r} is the source itself; name another output")


def _encoded(source: Source, size: int, allow_upscaling: bool, workers: int) -> Iterator[Encoded]:
    """All pictures in order as PNGs, or why there is none; Pillow works outside the interpreter's lock."""
    waiting: deque[Future[Encoded]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for index in range(len(source)):
            if len(waiting) == LOOK_AHEAD * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_encode, source, index, size, allow_upscaling))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(source: Source, index: int, size: int, allow_upscaling: bool) -> Encoded:
    try:
        image = square(source.image(index), size, source.label(index), allow_upscaling)
    except (BrokenImage, TooSmall) as error:
        return error
    buffer = io.BytesIO()
    # Pixels alone: an image carries its profile, comments and resolution along, and Pillow writes them.
    Image.fromarray(np.asarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def _member(number: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(f"{number // 1000:05d}/img{number:08d}.png")  # its date is fixed: 1980
    member.create_system = 3  # Unix, wherever it is written
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    return member


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="Folder, zip, LMDB, saved data set, or hf:org/name.")],
    output: Annotated[Path, typer.Option(help="Zip file to write.")],
    size: Annotated[int, typer.Option(min=1, help="Side in pixels.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Write only the first so many.")] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a picture that cannot be used.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; one per CPU if not given.")] = None,
    allow_upscaling: Annotated[
        bool, typer.Option("--allow-upscaling", help="Enlarge pictures that are too small.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Crop and resize pictures into a zip file to train from."""
    with one_sentence(debug, "interrupted: nothing is written"):
        report = prepare(
            source,
            output,
            size,
            limit=limit,
            split=split,
            strict=strict,
            workers=workers,
            allow_upscaling=allow_upscaling,
            overwrite=overwrite,
        )
        if report.skipped:
            typer.echo(f"left out {len(report.skipped)} pictures:", err=True)
            for label, reason in report.skipped:
                typer.echo(f"  {label}: {reason}", err=True)
        typer.echo(f"wrote {report.written} pictures to {output}")


if __name__ == "__main__":
    with signals.caught():
        app(prog_name="python -m training.prepare")

"""Whether the pictures of a source are the ones that they were, without reading them.

A source's `fingerprint` knows names and lengths, and moves with the data; pictures without compression (BMP,
PPM) have equal lengths whatever is on them. What is kept for a data set needs more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import singledispatch
from pathlib import Path

from stylenat_hub.sources import FolderSource, LMDBSource, Source, ZipSource


def content(source: Source) -> str:
    """SHA-256 (hexadecimal) over what changes with each picture: a zip's checksums, else lengths and, of
    files, the time of the last change. Of a copied folder it may differ though the pictures are the same."""
    digest = hashlib.sha256()
    for name, mark in _marks(source):
        digest.update(f"{name} {mark}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@singledispatch
def _marks(source: Source) -> Iterator[tuple[str, object]]:
    return source.sizes()


@_marks.register
def _(source: ZipSource) -> Iterator[tuple[str, object]]:
    return ((member.filename, (member.file_size, member.CRC)) for member in source.members)


@_marks.register
def _(source: FolderSource) -> Iterator[tuple[str, object]]:
    return ((label, (size, _changed(source.folder / label))) for label, size in source.sizes())


@_marks.register
def _(source: LMDBSource) -> Iterator[tuple[str, object]]:
    changed = _changed(source.folder / "data.mdb")
    return ((label, (size, changed)) for label, size in source.sizes())


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None

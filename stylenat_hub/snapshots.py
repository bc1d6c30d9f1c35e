"""A repository's folder in the download cache: are its files what they should be, and removing those that are
not.

What a file should be is told by the Hub, by its listing in the cache, or by the name of the blob that the
client has linked it to. Where the system knows no links (Windows, as it is set up) there is no such name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylenat_hub.errors import WeightsError, shown

_CHUNK = 1 << 20
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Stated:
    """What is said of a file, None where nothing is. digest: the SHA-256 of a large file, of others git's
    SHA-1, hexadecimal."""

    size: int | None = None
    digest: str | None = None


def stated_by(siblings: Iterable[Any], repository: str) -> dict[str, Stated]:
    """What the Hub's answer says of a repository's files, by their names.

    Raises `WeightsError` for a name that would lead out of the repository's folder.
    """
    files = {}
    for file in siblings:
        _check_name(file.rfilename, repository)
        large = getattr(file, "lfs", None)
        files[file.rfilename] = _stated(file.size, large.sha256 if large else file.blob_id)
    return files


def _check_name(name: str, repository: str) -> None:
    bad = {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name or Path(name).drive
    if bad:
        raise WeightsError(
            f"{repository!r} lists a file of the name {shown(repr(name))}, which would lead out of its "
            "folder; nothing of it is used: take another repository"
        )


def _stated(size: Any, digest: Any) -> Stated:
    """Only what makes sense: of anything else there is nothing said."""
    is_hash = isinstance(digest, str) and _HASH.fullmatch(digest)
    return Stated(size if isinstance(size, int) else None, digest if is_hash else None)


def cached_listing(folder: Path) -> dict[str, Stated]:
    """What newer clients have noted of a snapshot's files; nothing if there is no note or it is damaged.

    Only of files that are no links: a blob's own name is there as long as the blob.
    """
    try:
        note = folder.parent.parent / "trees" / f"{folder.name}.json"
        listing = json.loads(note.read_text(encoding="utf-8"))["files"]
        return {
            name: _stated(file.get("size"), file.get("lfs_sha256") or file.get("blob_id"))
            for name, file in listing.items()
            if not (folder / name).is_symlink()
        }
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return {}


def file_names(folder: Path) -> tuple[str, ...]:
    """The files of a snapshot, links to nothing among them."""
    return tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def damaged_files(folder: Path, names: Iterable[str], stated: Mapping[str, Stated]) -> list[str]:
    """Those of the files that are missing, or not what is said of them; sorted."""
    return [name for name in sorted(names) if not _is_whole(folder / name, stated.get(name, Stated()))]


def _is_whole(path: Path, stated: Stated) -> bool:
    blob = path.resolve()
    if not blob.is_file() or stated.size not in (None, blob.stat().st_size):
        return False
    digest = stated.digest or (blob.name if _HASH.fullmatch(blob.name) else None)
    if digest is None:  # only the checks of the file's own format are left
        return True
    return _hash(blob, hashlib.sha256() if len(digest) == 64 else _git_hash(blob)) == digest


def _git_hash(path: Path) -> Any:
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size)


def _hash(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove(folder: Path, name: str, stated: Stated | None = None) -> None:
    """Remove a file of a snapshot and what it leads to; also the blob that it should lead to, from which the
    client would make it again."""
    storage, path = folder.parent.parent, folder / name
    unlink(path.resolve(), storage)
    unlink(path, storage)
    if stated and stated.digest:
        unlink(storage / "blobs" / stated.digest, storage)


def unlink(path: Path, storage: Path) -> None:
    """Remove a file if it is there and lies inside of a repository's own folder, whoever has named it."""
    if storage.resolve() in (path.parent.resolve() / path.name).parents:
        path.unlink(missing_ok=True)

"""A Hub repository -> a folder in the download cache, every file of it verified.

huggingface_hub names cached files by their hashes and trusts that they are what their names say; a file that
a crash, a full disk or a proxy has damaged would stay damaged for ever. Here each file is hashed before it is
used, and fetched again if it is not what the Hub has.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, list_repo_files, snapshot_download
from huggingface_hub.utils import filter_repo_objects

from stylenat_hub.errors import OldCopyWarning, WeightsError
from stylenat_hub.remote import Failures, no_network, passes, pulling, reason, retried
from stylenat_hub.weights import fingerprint

_CHUNK = 1 << 20


def fetch(
    name: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder of a Hub repository's snapshot, with all files that match one of the patterns.

    If the Hub cannot be reached, a copy in the cache is used, with an `OldCopyWarning`. local_files_only: ask
    for nothing. force_download: fetch again what is in the cache.

    Raises:
        UnknownModelError: no such repository or revision, or it is neither reachable nor in the cache.
        WeightsError: a file arrives damaged again and again, or a cached one is damaged and the Hub is off.
    """
    offline = local_files_only or constants.HF_HUB_OFFLINE
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "allow_patterns": list(patterns)}
    with pulling(name, revision, offline):
        if not offline and not _reachable(name, revision, token):
            offline = True
        if offline:
            folder = Path(snapshot_download(name, local_files_only=True, **options))
        else:
            folder = Path(retried(lambda: snapshot_download(name, force_download=force_download, **options)))
        damaged = _damaged(folder, patterns)
        if damaged and not offline:
            # Removed in any case: the client would never look at them again.
            for path in damaged:
                _remove(path)
            folder = Path(retried(lambda: snapshot_download(name, **options)))
            damaged = _damaged(folder, patterns)
    if damaged:
        raise WeightsError(_damage(name, damaged, offline))
    return folder


def _reachable(name: str, revision: str | None, token: str | bool | None) -> bool:
    """Does the Hub answer? If it does not, say so: what is in the cache may be old.

    Raises the client's errors for a repository that is not there, private or gated.
    """
    try:
        retried(lambda: HfApi().model_info(name, revision=revision, token=token))
    except Failures as error:
        if not passes(error) and not no_network(error):
            raise
        text = (
            f"the Hub cannot be asked for {name!r} ({reason(error)}); looking in the download cache, whose "
        )
        warnings.warn(f"{text}copy may be older than the Hub's", OldCopyWarning, stacklevel=2)
        return False
    return True


def _damaged(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a snapshot that are not what the names of their blobs say, removed ones among them."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    wanted = filter_repo_objects(names, allow_patterns=list(patterns))
    return [folder / name for name in wanted if not _as_named(folder / name)]


def _as_named(path: Path) -> bool:
    """Has the blob that a snapshot's link leads to the hash that is its name?

    Large files are named by their SHA-256, others by git's SHA-1. Where the system knows no links there is no
    such name, and only the checks of the files' own format are left.
    """
    blob = path.resolve()
    if not blob.is_file():
        return False
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return fingerprint(blob)["sha256"] == blob.name
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        return _git_hash(blob) == blob.name
    return True


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    """Remove a file of a snapshot, and the blob that it leads to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _damage(name: str, damaged: Sequence[Path], offline: bool) -> str:
    file = damaged[0].name
    if offline:
        return (
            f"{file!r} of {name!r} is damaged in the download cache ({str(damaged[0])!r}), and the Hub is "
            "switched off or not reachable; load it once while online, and it is fetched again"
        )
    return (
        f"{file!r} of {name!r} arrived damaged twice: its hash is not the one that the Hub states; try again "
        "later, or over another network"
    )


def check_known(name: str, folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare the files that are there with the hashes that the zoo has recorded for them.

    Raises `WeightsError` for a file that is another one.
    """
    for file, expected in hashes.items():
        path = folder / file
        if path.is_file() and (found := fingerprint(path)["sha256"]) != expected:
            raise WeightsError(
                f"{file!r} of {name!r} is not the file that the zoo knows by this name (its SHA-256 is "
                f"{found[:12]}..., not {expected[:12]}...); if you want it all the same, load {name!r} by "
                "that id or from a folder"
            )


def list_files(name: str, revision: str | None, token: str | bool | None) -> list[str]:
    """All files of a repository. Raises `UnknownModelError`."""
    with pulling(name, revision, offline=False):
        return retried(lambda: list_repo_files(name, revision=revision, token=token))

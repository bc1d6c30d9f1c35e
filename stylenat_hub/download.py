"""A Hub repository -> a folder in the download cache, every file of it verified.

huggingface_hub names cached files by their hashes and trusts that they are what their names say; a file that
a crash, a full disk or a proxy has damaged would stay damaged for ever. Here each file is hashed before it is
used, and fetched again if it is not what the Hub has.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, filter_repo_objects, validate_hf_hub_args

from stylenat_hub.errors import InputError, OldCopyWarning, WeightsError
from stylenat_hub.remote import (
    LONGEST_WAIT,
    Failures,
    NotTheHubError,
    no_network,
    passes,
    patience,
    pulling,
    reason,
    retried,
)
from stylenat_hub.weights import fingerprint

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine. names: of all files that it has on the Hub; where that could not
    be asked, of those that are here."""

    folder: Path
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Wanted:
    """What of which repository; see `pull`."""

    name: str
    patterns: tuple[str, ...]
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None

    def download(self, **options: Any) -> Path:
        folder = snapshot_download(
            self.name,
            revision=self.revision,
            token=self.token,
            cache_dir=self.cache_dir,
            allow_patterns=list(self.patterns),
            **options,
        )
        return Path(folder)

    def among(self, names: Iterable[str]) -> list[str]:
        return list(filter_repo_objects(names, allow_patterns=list(self.patterns)))


def fetch(name: str, patterns: Sequence[str], **options: Any) -> Path:
    """The folder of `pull`, whose arguments these are."""
    return pull(name, patterns, **options).folder


def pull(
    name: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Snapshot:
    """A Hub repository's snapshot, with all files that match one of the patterns.

    If the Hub cannot be reached, a copy in the cache is used, with an `OldCopyWarning`. local_files_only: ask
    for nothing. force_download: fetch again what is in the cache.

    Raises:
        UnknownModelError: no such repository or revision, or it is neither reachable nor in the cache.
        WeightsError: a file arrives damaged again and again, or a cached one is damaged and the Hub is off.
        InputError: a bad argument, or a cache that cannot be written to.
    """
    _check_arguments(revision, token, cache_dir)
    wanted = _Wanted(name, tuple(patterns), revision, token, cache_dir)
    offline = bool(local_files_only or constants.HF_HUB_OFFLINE)
    with pulling(name, revision, offline):
        if offline:
            return _cached(wanted)
        try:
            return _pulled(wanted, force_download)
        except Failures as error:
            if not passes(error) and not no_network(error):
                raise
            return _old_copy(wanted, error)


def _check_arguments(revision: Any, token: Any, cache_dir: Any) -> None:
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise InputError(f"revision is {revision!r}; allowed: a branch, a tag, a commit, or None for main")
    if cache_dir is not None and (not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir)):
        raise InputError(f"cache_dir is {cache_dir!r}; allowed: a folder, or None for the usual one")
    # Never shown, not even a bad one.
    whole = isinstance(token, str) and re.fullmatch(r"[!-~]+", token)
    if not (token is None or isinstance(token, bool) or whole):
        raise InputError(
            "token is no token of the Hub: it is empty, or has spaces, line breaks or other letters in it; "
            "allowed: what the Hub shows as hf_..., True, False, or None for the one that you logged in with"
        )


def _pulled(wanted: _Wanted, force_download: bool) -> Snapshot:
    """The Hub's newest, with what is damaged fetched a second time."""
    snapshot = retried(lambda: _asked_for(wanted, force_download))
    if not _damaged(snapshot.folder, wanted, snapshot.names):
        return snapshot
    with _alone(snapshot.folder):
        # Looked at again, because another process may have mended it meanwhile, and may be reading it.
        for path in _damaged(snapshot.folder, wanted, snapshot.names):
            _remove(path)
        snapshot = retried(lambda: _asked_for(wanted, False))
        damaged = _damaged(snapshot.folder, wanted, snapshot.names)
        for path in damaged:
            _remove(path)  # in any case: the client would never look at it again
    if damaged:
        _forget(wanted)
        raise WeightsError(
            f"{damaged[0].name!r} of {wanted.name!r} arrived damaged twice: its hash is not the one that the "
            "Hub states; try again later, or over another network"
        )
    return snapshot


def _asked_for(wanted: _Wanted, force_download: bool) -> Snapshot:
    """One attempt to bring the cache up to what the Hub has."""
    with patience():
        with _sense(lambda: None):
            info = HfApi().model_info(
                wanted.name, revision=wanted.revision, token=wanted.token, timeout=LONGEST_WAIT
            )
        with _sense(lambda: _forget(wanted)):
            folder = wanted.download(force_download=force_download)
    if folder.name != info.sha:
        # The client asks, too, and if that fails it says nothing and takes what it has.
        raise NotTheHubError("two different answers")
    return Snapshot(folder, tuple(file.rfilename for file in info.siblings or ()))


@contextlib.contextmanager
def _sense(mend: Callable[[], None]) -> Iterator[None]:
    """Call `mend` where the client stumbles over what it reads: an answer that is no JSON, or what the cache
    has noted. Raises `NotTheHubError`, which says what it stumbled over."""
    try:
        yield
    except (*Failures, hub_errors.HFValidationError):
        raise
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error.__cause__, Failures):  # "force download failed due to the above error"
            raise error.__cause__ from None
        if _called_wrongly(error):
            raise
        mend()
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise NotTheHubError(f"an answer that is not the Hub's, {what}") from error


def _called_wrongly(error: BaseException) -> bool:
    """Has the client refused our call itself? That is a mistake here, or a new version of it, and no answer's
    fault."""
    if not isinstance(error, TypeError) or error.__traceback__ is None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    # Its functions are called through one that checks their arguments.
    return frame.f_code.co_filename in (__file__, inspect.getfile(validate_hf_hub_args))


def _old_copy(wanted: _Wanted, failure: BaseException) -> Snapshot:
    """What the cache has; if it has nothing, the failure to reach the Hub is what to tell."""
    try:
        snapshot = _cached(wanted)
    except hub_errors.LocalEntryNotFoundError:
        raise failure from failure.__cause__
    warnings.warn(
        f"the Hub cannot be asked for {wanted.name!r} ({reason(failure)}); the copy in the download cache is "
        "used, which may be older than the Hub's",
        OldCopyWarning,
        stacklevel=2,
    )
    return snapshot


def _cached(wanted: _Wanted) -> Snapshot:
    """What the cache has, with nothing asked of the Hub."""
    try:
        folder = wanted.download(local_files_only=True)
    except hub_errors.LocalEntryNotFoundError as error:
        # Newer clients know which files there should be; a link to nothing still has a name to tell.
        if (partial := getattr(error, "snapshot_path", None)) and (found := _damaged(Path(partial), wanted)):
            raise WeightsError(_damage(wanted, found[0])) from error
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(_damage(wanted, _storage(wanted))) from error
    if not re.fullmatch("[0-9a-f]{40}", folder.name):  # the client believes what it reads, be it nothing
        raise WeightsError(_damage(wanted, _storage(wanted) / "refs" / (wanted.revision or "main")))
    if found := _damaged(folder, wanted):
        raise WeightsError(_damage(wanted, found[0]))
    names = _names(folder)
    asked, found = ({Path(name).suffix for name in some} for some in (wanted.patterns, wanted.among(names)))
    if asked - found - {""}:  # no configs or no weights at all, and the client did not know
        raise hub_errors.LocalEntryNotFoundError("the snapshot in the cache is not whole")
    return Snapshot(folder, names)


def _storage(wanted: _Wanted, *parts: str) -> Path:
    """Where the cache keeps a repository."""
    cache = Path(wanted.cache_dir or constants.HF_HUB_CACHE).expanduser()
    return cache.joinpath(repo_folder_name(repo_id=wanted.name, repo_type="model"), *parts)


def _forget(wanted: _Wanted) -> None:
    """Remove what the cache has noted about a repository; the files themselves stay."""
    _storage(wanted, "refs", wanted.revision or "main").unlink(missing_ok=True)
    for path in _storage(wanted, "trees").glob("*.json"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes that mend the same repository waiting."""
    storage = folder.parent.parent
    lock = storage.parent / ".locks" / storage.name / "stylenat_hub.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        yield


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _damaged(folder: Path, wanted: _Wanted, there: Iterable[str] = ()) -> list[Path]:
    """The files of a snapshot that are not what the names of their blobs say, and those of `there` that it
    has not."""
    names = wanted.among({*_names(folder), *there})
    return [folder / name for name in sorted(names) if not _as_named(folder / name)]


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


def _damage(wanted: _Wanted, path: Path) -> str:
    return (
        f"{path.name!r} of {wanted.name!r} is damaged in the download cache ({str(path)!r}), and the Hub is "
        "switched off or not reachable; load it once while online, and it is fetched again"
    )


def check_known(name: str, path: Path, expected: str) -> None:
    """Raises `WeightsError` if the weights are not those of which the zoo has recorded the SHA-256."""
    found = fingerprint(path)["sha256"] if path.is_file() else None
    if found != expected:
        what = (
            f"its SHA-256 is {found[:12]}..., not {expected[:12]}..."
            if found
            else "there is none, only shards"
        )
        raise WeightsError(
            f"{path.name!r} of {name!r} is not the file that the zoo knows by this name ({what}); if you "
            f"want it all the same, load {name!r} by that id or from a folder"
        )

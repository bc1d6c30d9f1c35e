"""A Hub repository -> a folder in the download cache, every file of it verified.

huggingface_hub names cached files by their hashes and trusts that they are what their names say; a file that
a crash, a full disk or a proxy has damaged would stay damaged for ever. Here each file is hashed before it is
used, and fetched again if it is not what the Hub has.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, filter_repo_objects, validate_hf_hub_args

from stylenat_hub.errors import InputError, OldCopyWarning, StyleNATHubError, WeightsError
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
from stylenat_hub.snapshots import (
    Stated,
    cached_listing,
    damaged_files,
    file_names,
    remove,
    stated_by,
    unlink,
)
from stylenat_hub.weights import fingerprint

_NO_TOKEN = "is no token of the Hub: it is empty, or has spaces, line breaks or other letters in it"


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine. names: of all files that it has on the Hub; where that could not
    be asked, of those that are here. stated: what is said of them."""

    folder: Path
    names: tuple[str, ...]
    stated: Mapping[str, Stated] = field(default_factory=dict)


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
    for nothing. force_download: fetch again what is in the cache, and fail if that cannot be done.

    Raises:
        UnknownModelError: no such repository or revision, or it is neither reachable nor in the cache.
        WeightsError: a file arrives damaged again and again, or a cached one is damaged and the Hub is off;
            or the Hub lists a file of a name that would lead out of the folder.
        InputError: a bad argument, or a cache that cannot be written to.
    """
    _check_arguments(revision, token, cache_dir)
    wanted = _Wanted(name, tuple(patterns), revision, token, cache_dir)
    offline = bool(local_files_only or constants.HF_HUB_OFFLINE)
    with pulling(name, revision, offline):
        if offline:
            return _cached(wanted)
        _check_own_token(token)
        try:
            return _pulled(wanted, force_download)
        except Failures as error:
            # Who asks for a new copy would take an old one for it.
            if force_download or not (passes(error) or no_network(error)):
                raise
            return _old_copy(wanted, error)


def _check_arguments(revision: Any, token: Any, cache_dir: Any) -> None:
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise InputError(f"revision is {revision!r}; allowed: a branch, a tag, a commit, or None for main")
    try:
        named = cache_dir is None or _is_path(os.fspath(cache_dir))
    except TypeError:
        named = False
    if not named:
        raise InputError(f"cache_dir is {cache_dir!r}; allowed: a folder, or None for the usual one")
    # Never shown, not even a bad one.
    if not (token is None or isinstance(token, bool) or _can_be_sent(token)):
        raise InputError(
            f"token {_NO_TOKEN}; allowed: what the Hub shows as hf_..., True, False, or None for "
            "the one that you logged in with"
        )


def _is_path(text: Any) -> bool:
    return isinstance(text, str) and bool(text) and "\0" not in text


def _can_be_sent(token: Any) -> bool:
    return isinstance(token, str) and re.fullmatch(r"[!-~]+", token) is not None


def _check_own_token(token: str | bool | None) -> None:
    """Raises `InputError` if the client would find a token on this machine that it cannot send: its own words
    for that are those of a network that fails."""
    unused = token is None and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
    if unused or isinstance(token, str) or token is False:
        return
    if (own := get_token()) is None or _can_be_sent(own):
        return
    raise InputError(
        f"the token in HF_TOKEN, or the one that you logged in with, {_NO_TOKEN}; set it to what the Hub "
        "shows as hf_..., log in again with `hf auth login`, or pass token=False to go without"
    )


def _pulled(wanted: _Wanted, force_download: bool) -> Snapshot:
    """The Hub's newest, with what is damaged fetched a second time."""
    snapshot = retried(lambda: _asked_for(wanted, force_download))
    if not _damaged(snapshot, wanted):
        return snapshot
    with _alone(snapshot.folder):
        # Looked at again, because another process may have mended it meanwhile, and may be reading it.
        for name in _damaged(snapshot, wanted):
            remove(snapshot.folder, name, snapshot.stated.get(name))
        snapshot = retried(lambda: _asked_for(wanted, False))
        damaged = _damaged(snapshot, wanted)
        for name in damaged:  # in any case: the client would never look at it again
            remove(snapshot.folder, name, snapshot.stated.get(name))
    if damaged:
        _forget(wanted)
        raise WeightsError(
            f"{Path(damaged[0]).name!r} of {wanted.name!r} arrived damaged twice: its hash is "
            "not the one that the Hub states; try again later, or over another network"
        )
    return snapshot


def _asked_for(wanted: _Wanted, force_download: bool) -> Snapshot:
    """One attempt to bring the cache up to what the Hub has."""
    with patience():
        with _sense(lambda: None):
            asked = {"revision": wanted.revision, "token": wanted.token, "timeout": LONGEST_WAIT}
            info = HfApi().model_info(wanted.name, files_metadata=True, **asked)
            stated = stated_by(info.siblings or (), wanted.name)
        with _sense(lambda: _forget(wanted)):
            folder = wanted.download(force_download=force_download)
    if folder.name != info.sha:
        # The client asks, too, and if that fails it says nothing and takes what it has.
        raise NotTheHubError("two different answers")
    return Snapshot(folder, tuple(stated), stated)


@contextlib.contextmanager
def _sense(mend: Callable[[], None]) -> Iterator[None]:
    """Call `mend` where the client stumbles over what it reads: an answer that is no JSON, or what the cache
    has noted. Raises `NotTheHubError`, which says what it stumbled over."""
    try:
        yield
    except (*Failures, StyleNATHubError, hub_errors.HFValidationError):
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
        if partial := getattr(error, "snapshot_path", None):
            _check_whole(_here(Path(partial)), wanted, error)
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(_damage(wanted, _storage(wanted))) from error
    if not re.fullmatch("[0-9a-f]{40}", folder.name):  # the client believes what it reads, be it nothing
        raise WeightsError(_damage(wanted, _storage(wanted) / "refs" / (wanted.revision or "main")))
    snapshot = _here(folder)
    _check_whole(snapshot, wanted)
    asked, found = (
        {Path(name).suffix for name in some} for some in (wanted.patterns, wanted.among(snapshot.names))
    )
    if asked - found - {""}:  # no configs or no weights at all, and the client did not know
        raise hub_errors.LocalEntryNotFoundError("the snapshot in the cache is not whole")
    return snapshot


def _here(folder: Path) -> Snapshot:
    """A snapshot as the cache has it."""
    return Snapshot(folder, file_names(folder), cached_listing(folder))


def _check_whole(snapshot: Snapshot, wanted: _Wanted, cause: BaseException | None = None) -> None:
    if found := _damaged(snapshot, wanted):
        raise WeightsError(_damage(wanted, snapshot.folder / found[0])) from cause


def _damaged(snapshot: Snapshot, wanted: _Wanted) -> list[str]:
    """The wanted files of a snapshot that are missing or are not what they should be."""
    names = wanted.among({*file_names(snapshot.folder), *snapshot.names})
    return damaged_files(snapshot.folder, names, snapshot.stated)


def _storage(wanted: _Wanted, *parts: str) -> Path:
    """Where the cache keeps a repository."""
    cache = Path(wanted.cache_dir or constants.HF_HUB_CACHE).expanduser()
    return cache.joinpath(repo_folder_name(repo_id=wanted.name, repo_type="model"), *parts)


def _forget(wanted: _Wanted) -> None:
    """Remove what the cache has noted about a repository; the files themselves stay."""
    storage = _storage(wanted)
    for path in (storage / "refs" / (wanted.revision or "main"), *(storage / "trees").glob("*.json")):
        unlink(path, storage)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes that mend the same repository waiting."""
    storage = folder.parent.parent
    lock = storage.parent / ".locks" / storage.name / "stylenat_hub.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        yield


def _damage(wanted: _Wanted, path: Path) -> str:
    return (
        f"{path.name!r} of {wanted.name!r} is damaged in the download cache ({str(path)!r}), and the Hub is "
        "switched off or not reachable; load it once while online, and it is fetched again"
    )


def check_cached(folder: Path) -> None:
    """Verify a folder that lies in the download cache, where somebody else has brought it, as diffusers does.

    Raises `WeightsError` for a file that is damaged, which is removed: who fetched it will fetch it again.
    """
    root = next((path for path in (folder, *folder.parents) if path.parent.name == "snapshots"), None)
    if root is None or not root.parent.parent.name.startswith("models--"):
        return
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    names = [name for name in file_names(root) if name.startswith(prefix)]
    damaged = damaged_files(root, names, cached_listing(root))
    for name in damaged:
        remove(root, name)
    if damaged:
        raise WeightsError(
            f"{damaged[0]!r} in the download cache was damaged ({str(root)!r}), and is removed; load it "
            "again while online"
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

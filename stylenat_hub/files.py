"""Files and folders that are written whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stylenat_hub.errors import InputError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` on success and vanishes on any error, Ctrl-C
    included.

    Raises `InputError` in one sentence when the folder cannot be written or the disk is full.
    """
    target = Path(path)
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path` on success and vanishes on any error, Ctrl-C
    included.

    Raises `InputError` if `path` is a file, or a folder with something in it and `overwrite` is not set.
    """
    target = Path(os.path.abspath(path))
    if target.exists() and not target.is_dir():
        raise InputError(f"the output {str(target)!r} is a file; name a folder that does not exist yet")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise InputError(
            f"the output folder {str(target)!r} is not empty; name another one, or add --overwrite"
        )
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            _swap(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of `target`; the old folder is dropped only after the new one stands."""
    if not target.exists():
        os.replace(temporary, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence that names the output."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space or name an output on another disk",
            errno.EDQUOT: "the disk quota is used up; free some space or name an output on another disk",
            errno.EROFS: "the file system is read-only; name an output elsewhere",
            errno.EACCES: "permission denied; name an output that you may write",
            errno.EPERM: "permission denied; name an output that you may write",
            errno.ENOTDIR: "a part of the path is a file, not a folder; name another output",
            errno.EEXIST: "a part of the path is a file, not a folder; name another output",
            errno.ENAMETOOLONG: "the name is too long; name a shorter output",
        }
        if error.errno not in reasons:
            raise
        raise InputError(f"cannot write {str(target)!r}: {reasons[error.errno]}") from error

"""Files and folders that are written whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stylenat_hub.errors import InputError
from stylenat_hub.signals import Interrupted, held

_HIDDEN = ".stylenat-"
_HARMLESS = frozenset({".DS_Store"})  # what a file browser leaves in a folder that it has shown
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or name an output on another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or name an output on another disk",
    errno.EFBIG: "a file would be larger than the system allows; name an output on another disk",
    errno.EROFS: "the file system is read-only; name an output elsewhere",
    errno.EACCES: "permission denied; name an output that you may write",
    errno.EPERM: "permission denied; name an output that you may write",
    errno.ENOTDIR: "a part of the path is a file, not a folder; name another output",
    errno.EEXIST: "a part of the path is a file, not a folder; name another output",
    errno.EISDIR: "a folder stands where a file would go; name another output, or move that folder away",
    errno.ENOTEMPTY: "something else has written there meanwhile; name another output",
    errno.EBUSY: "it is in use by the system, as a mount point is; name a folder inside it",
    errno.EXDEV: "a part of it lies on another disk; name an output that does not cross disks",
    errno.ENAMETOOLONG: "the name is too long; name a shorter output",
    errno.ENOENT: "no folder can be made there; name another output",
    errno.ELOOP: "its symbolic links lead in a circle; name another output",
}


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded. Raises `InputError` if it is empty or names a user that is not known."""
    text = os.fspath(path)
    if not text:
        raise InputError("a path is empty; name a file or a folder ('.' is the current folder)")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(
            f"the home folder in {text!r} is not known; write the path without '~', or './~...' for a name"
        ) from None


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` on success and vanishes on any error, Ctrl-C
    included.

    Raises `InputError` in one sentence when the folder cannot be written, the disk is full, or `path` is a
    folder or a device.
    """
    target = Path(os.path.realpath(user_path(path)))
    temporary = None
    # Not the whole name: with what is added to it, it might be too long.
    names = {"prefix": f".{target.stem[:40]}-", "suffix": target.suffix[-20:]}
    with explained(target), _parents(target):
        if target.exists() and not target.is_file():
            kind = "folder" if target.is_dir() else "device"
            raise InputError(
                f"cannot write the file {str(target)!r}: a {kind} of that name is there; name another output"
            )
        try:
            with held():
                handle, name = tempfile.mkstemp(dir=target.parent, **names)
                os.close(handle)
                temporary = Path(name)
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, target)
        finally:
            with held():
                if temporary:
                    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: Sequence[str] | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path` on success and vanishes on any error, Ctrl-C
    included. A folder that exists stays the same folder, and what was made moves into it.

    overwrite, inputs: see `check_folder`.

    Raises:
        InputError: see `check_folder`; or the folder cannot be written.
        Interrupted: Ctrl-C came too late to stop it: the folder is whole.
    """
    target = check_folder(path, overwrite=overwrite, inputs=inputs)
    published = False
    try:
        with staging(target) as temporary:
            yield temporary
            set_modes(temporary)
            with held():
                _publish(temporary, target, overwrite, inputs)
                published = True
    except KeyboardInterrupt:
        if published:
            raise Interrupted(f"{target} is written, and whole") from None
        raise KeyboardInterrupt from None  # not one that speaks of what was written into the temporary folder


def check_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: Sequence[str] | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Can a folder be written there? To be asked before the work. Returns it with symbolic links resolved.

    overwrite: None, or the files (`generator/config.json`) and whole folders that an earlier result consists
    of, the first of them in every one: a folder with that and nothing else in it may be replaced. inputs:
    files that must not be lost by that.

    Raises `InputError`: a file is there; the folder has something in it that may not be replaced; it has
    content and is, or holds, the current folder, the home folder, a mount point or an input; no permission.
    """
    target = Path(os.path.realpath(user_path(path)))
    check_writable(target)
    with explained(target):
        if target.is_dir():
            _check_replaceable(target, sorted(target.iterdir()), overwrite, inputs)
    return target


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise `InputError` if no folder can be written there, before minutes are spent on its content."""
    folder = Path(os.path.realpath(user_path(folder)))
    name = repr(str(folder))
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"the output {name} is a file; name a folder")
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(
                f"cannot write {name}: {str(nearest)!r} is a file, not a folder; name another output"
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {name}: {_REASONS[errno.EACCES]}")


def _check_replaceable(
    target: Path,
    entries: Sequence[Path],
    overwrite: Sequence[str] | None,
    inputs: Sequence[str | os.PathLike[str]],
) -> None:
    entries = [entry for entry in entries if entry.name not in _HARMLESS]
    if not entries:
        return
    name = repr(str(target))
    if overwrite is None:
        raise InputError(f"the output folder {name} is not empty; name another one, or add --overwrite")
    if reason := _precious(target, inputs):
        raise InputError(
            f"the output folder {name} {reason}, so it is not overwritten; name a folder that does not exist"
        )
    # After that, because it walks through all of the folder, which would be long for the root.
    found = [name for entry in entries for name in _files(entry)]
    foreign = [name for name in found if name not in overwrite and name.partition("/")[0] not in overwrite]
    if foreign or overwrite[0] not in found:
        why = f"holds {foreign[0]!r}" if foreign else f"has no {overwrite[0]!r}"
        raise InputError(
            f"the output folder {name} {why}, so it is not just an earlier result and is not overwritten; "
            "name another folder, or move away what is in it"
        )


def _files(entry: Path) -> list[str]:
    """An entry of a folder, or if it is a folder with files all of them: `generator/config.json`."""
    if entry.is_symlink() or not entry.is_dir():
        return [entry.name]
    inside = (path for path in sorted(entry.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(entry.parent).as_posix() for path in inside if path.name not in _HARMLESS]
    return names or [entry.name]


def _precious(target: Path, inputs: Sequence[str | os.PathLike[str]]) -> str | None:
    """Why a folder is never replaced, whatever is in it, or None."""
    if os.path.ismount(target):
        return "is a mount point"
    places = []
    with contextlib.suppress(OSError):  # the current folder may have been removed
        places.append(("the current folder", Path.cwd()))
    with contextlib.suppress(RuntimeError):
        places.append(("your home folder", Path(os.path.realpath(Path.home()))))
    for path in map(Path, inputs):
        # Both the file and, where it is a link to elsewhere, the link.
        places.append((f"the input {str(path)!r}", Path(os.path.realpath(path.parent)) / path.name))
        places.append((f"the input {str(path)!r}", Path(os.path.realpath(path))))
    for what, place in places:
        if _same(place, target):
            return f"is {what}"
        if any(_same(parent, target) for parent in place.parents):
            return f"holds {what}"
    return None


def _same(one: Path, other: Path) -> bool:
    """By what the system says, because on some disks `A` and `a` are one folder."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the disk of `target`: inside it where it exists, otherwise beside it. It is
    removed at the end. Raises `InputError` for the system's refusals, naming `target`."""
    temporary = None
    with explained(target), _parents(target):
        try:
            with held():
                place = target if target.is_dir() else target.parent
                temporary = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=place))
            yield temporary
        finally:
            with held():
                if temporary:
                    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above `target`; on an error those that were made and stayed empty go again."""
    made = [path for path in target.parents if not path.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _publish(
    temporary: Path,
    target: Path,
    overwrite: Sequence[str] | None,
    inputs: Sequence[str | os.PathLike[str]],
) -> None:
    if not target.is_dir():
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, target)
        return
    old = sorted(path for path in target.iterdir() if path != temporary)
    _check_replaceable(target, old, overwrite, inputs)  # again: it took a while to make the new content
    new = sorted(temporary.iterdir(), key=lambda path: (path.suffix == ".json", path.name))
    names = {path.name for path in new}
    moves = [(path, target / path.name) for path in new]
    replace_all(moves, [path for path in old if path.name not in names | _HARMLESS], target)


def replace_all(moves: Sequence[tuple[Path, Path]], dropped: Iterable[Path], target: Path) -> None:
    """Rename every (new, final) inside the folder `target`, in this order, and remove `dropped`: all of it or
    nothing. What stood in the places is kept until the last rename, and put back if one fails.

    Raises `OSError`; `InputError` if not even putting back worked: it says where the old files are.
    """
    spare = Path(tempfile.mkdtemp(prefix=f"{_HIDDEN}replaced-", dir=target))
    done: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        with held():
            for new, final in moves:
                made[:0] = [path for path in final.parents if not path.exists()]
                final.parent.mkdir(parents=True, exist_ok=True)
                if final.is_dir() and not new.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
                if os.path.lexists(final):
                    _rename(final, spare / str(len(done)), done)
                _rename(new, final, done)
            for old in dropped:
                _rename(old, spare / str(len(done)), done)
    except BaseException:
        with held():
            _put_back(done, made, spare)
        raise
    with held():
        shutil.rmtree(spare, ignore_errors=True)


def _rename(old: Path, new: Path, done: list[tuple[Path, Path]]) -> None:
    done.append((old, new))  # before, so that whatever comes between the two is undone too
    os.rename(old, new)


def _put_back(done: list[tuple[Path, Path]], made: list[Path], spare: Path) -> None:
    try:
        for old, new in reversed(done):
            if not os.path.lexists(old):  # otherwise this rename was the one that failed
                os.rename(new, old)
    except OSError as error:
        raise InputError(
            f"the new files could not replace the old ones, nor could these be put back ({error.strerror}); "
            f"what is missing is in {str(spare)!r}"
        ) from error
    _remove_empty(made)
    shutil.rmtree(spare, ignore_errors=True)


def link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a file a second name; where the disk knows no links, or `target` is on another, copy it."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def set_modes(folder: Path) -> None:
    """Give everything in `folder` the modes of newly made files: safetensors leaves its own to one user."""
    mask = _umask()
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _CannotWriteError(InputError):
    def __init__(self, target: Path, reason: str) -> None:
        super().__init__(f"cannot write {str(target)!r}: {reason}")
        self.target, self.reason = target, reason


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals into `InputError`, one sentence that names the output.

    Errors of files elsewhere, such as an input, pass as they are.
    """
    try:
        yield
    except _CannotWriteError as error:
        if error.target == target or not _concerns(error.target, target):
            raise
        # It was said about a temporary folder, into which another function wrote its own folder.
        raise _CannotWriteError(target, error.reason) from error.__cause__
    except OSError as error:
        if error.errno is None or not _concerns(error.filename, target):
            raise
        reason = _REASONS.get(error.errno) or f"{error.strerror}; name another output"
        raise _CannotWriteError(target, reason) from error


def _concerns(name: object, target: Path) -> bool:
    """Is an error with this file name about the output? Writing to an open file names none."""
    if not isinstance(name, (str, os.PathLike)):
        return name is None
    path = Path(os.path.abspath(name))
    if path in (target, *target.parents) or target in path.parents:
        return True
    beside = target.parent in path.parents and path.relative_to(target.parent).parts[0]
    return bool(beside) and beside.startswith(".")  # a temporary name, of which the user knows nothing

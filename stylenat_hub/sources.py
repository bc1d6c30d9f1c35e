"""Where training pictures come from: a folder, a zip, an LMDB, or a Hugging Face data set, all read alike.

    source = open_source("photos.zip")
    source.image(0)       # a PIL picture, RGB, upright
    source.label(0)       # its own name: 00000/img00000000.png
    source.fingerprint    # changes with the data, not with where it lies

A source can be pickled and used in the workers of a DataLoader: nothing is open before the first picture is
read, and each process opens its own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import threading
import weakref
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from stylenat_hub.decoding import decode, extensions, reason
from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path

KINDS = (
    "a folder of images, a zip of images, an LMDB folder as StyleGAN2-pytorch writes it, a folder that "
    "datasets.save_to_disk wrote, or hf:org/name for a data set on the Hugging Face Hub"
)


class BrokenImage(InputError):
    """A picture that cannot be read. `.source`, `.label` and `.reason` say where, which and why."""

    def __init__(self, source: str, label: str, reason: str) -> None:
        super().__init__(source, label, reason)  # all three, so that it can be pickled
        self.source, self.label, self.reason = source, label, reason

    def __str__(self) -> str:
        return f"cannot read {self.label!r} of {self.source!r}: {self.reason}"


class Source(ABC):
    """Numbered pictures under a name. Indices go from 0 to `len(source) - 1`, in the order of the labels."""

    name: str  # as the user wrote it

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> str:
        """The picture's own name: a relative path, a member of a zip, an LMDB key, or `row N`."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded picture. Any error means that it cannot be read, but `InputError` that none can."""

    @abstractmethod
    def sizes(self) -> Iterator[tuple[str, int]]:
        """(name, length in bytes; -1 if unknown) of every picture, without reading any."""

    def image(self, index: int) -> Image.Image:
        """The picture: RGB, upright, at its own size. Raises `BrokenImage` if it cannot be read, `InputError`
        if the source itself is gone."""
        try:
            return decode(self.read(index))
        except InputError:  # not about this picture, but about all
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            raise BrokenImage(self.name, self.label(index), reason(error)) from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the number, names and sizes of the pictures; equal wherever the data lies."""
        digest = hashlib.sha256(f"{len(self)} pictures\n".encode())
        for name, size in self.sizes():
            text = name.encode("utf-8", "surrogateescape")
            digest.update(b"%d %d " % (len(text), size) + text + b"\n")
        return digest.hexdigest()


def open_source(path: str, split: str = "train", *, resolution: int | None = None) -> Source:
    """The pictures under a path (see `KINDS`) or a Hugging Face id, `hf:org/name` or `hf:org/name:config`.

    split: of a Hugging Face data set; others have none. resolution: which pictures of an LMDB that holds
    several sizes, in pixels; None is the largest.

    Raises `InputError`: nothing is there, it is none of these, it holds no picture, or a package is missing.
    """
    path = os.fspath(path)
    if path.startswith("hf:") and path != "hf:":
        return HuggingFaceSource(path, _load_dataset(path, split))
    place = user_path(path)
    if not place.exists():
        hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path)
        hint = f" (the Hugging Face data set of that name is hf:{path})" if hub else ""
        raise InputError(f"no file or folder {path!r}{hint}; name {KINDS}")
    if not place.is_dir():
        return ZipSource(path, place)
    if (place / "data.mdb").is_file():
        return LMDBSource(path, place, resolution)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return HuggingFaceSource(path, _load_dataset(path, split))
    return FolderSource(path, place)


# What is a picture, by its name.


def _picture_name(path: str) -> bool:
    """Does a relative path name a picture? Not if any part is hidden, or an archive's `__MACOSX`."""
    parts = path.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in extensions()


def _no_pictures(what: str) -> InputError:
    allowed = " ".join(sorted(extensions()))
    return InputError(f"{what} holds no images; read are files that end in {allowed}; name {KINDS}")


# What is opened once per process.

_OPENING = threading.Lock()


class _PerProcess:
    """Calling it gives `opener(path)`, made at the first call in each process: a handle that a fork
    duplicates would share its place in the file."""

    def __init__(self, opener: Callable[[Path], Any], path: Path) -> None:
        self.opener, self.path, self.process, self.handle = opener, path, 0, None

    def __call__(self) -> Any:
        if self.process != os.getpid():
            with _OPENING:
                if self.process != os.getpid():
                    self.handle = self.opener(self.path)
                    self.process = os.getpid()
        return self.handle

    def __reduce__(self) -> tuple[Any, ...]:
        return _PerProcess, (self.opener, self.path)


# Folders.


class FolderSource(Source):
    """A folder of pictures, at any depth, in the order of their relative paths."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        try:
            self.labels = sorted(_walk(folder, "", ()))
        except OSError as error:
            said = f"cannot read the folder {error.filename!r}: {reason(error)}"
            raise InputError(f"{said}; make it readable, or name {KINDS}") from error
        if not self.labels:
            raise _no_pictures(f"the folder {name!r}")

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> str:
        return self.labels[index]

    def read(self, index: int) -> bytes:
        try:
            return (self.folder / self.labels[index]).read_bytes()
        except FileNotFoundError:
            if self.folder.is_dir():
                raise
            raise InputError(f"the folder {self.name!r} is gone; bring it back and start again") from None

    def sizes(self) -> Iterator[tuple[str, int]]:
        return ((label, _size(self.folder / label)) for label in self.labels)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Relative paths of the pictures. Links are followed, except to a folder that holds the link."""
    status = folder.stat()
    above = (*above, (status.st_dev, status.st_ino))
    if above[-1] in above[:-1]:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            if entry.is_dir():
                if not entry.name.startswith(".") and entry.name != "__MACOSX":
                    yield from _walk(folder / entry.name, path + "/", above)
            # A link to nowhere counts, so that it is reported instead of missed.
            elif _picture_name(path) and (entry.is_file() or entry.is_symlink()):
                yield path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# Zips.


class ZipSource(Source):
    """A zip of pictures, at any depth, in the order of their names; a `dataset.json` is not looked at."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.archive = _PerProcess(_open_zip, path.absolute())
        with _open_zip(path) as archive:
            members = archive.infolist()
        chosen = (member for member in members if not member.is_dir() and _picture_name(member.filename))
        self.members = sorted(chosen, key=lambda member: member.filename)
        if not self.members:
            raise _no_pictures(f"the zip {name!r}")

    def __len__(self) -> int:
        return len(self.members)

    def label(self, index: int) -> str:
        return self.members[index].filename

    def read(self, index: int) -> bytes:
        return self.archive().read(self.members[index])

    def sizes(self) -> Iterator[tuple[str, int]]:
        return ((member.filename, member.file_size) for member in self.members)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        said = f"the file {str(path)!r} is not a zip, or is damaged ({error})"
        raise InputError(f"{said}; name {KINDS}") from error
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {reason(error)}; name {KINDS}") from error


# LMDBs.

_ENVIRONMENTS: weakref.WeakValueDictionary[tuple[int, str], Any] = weakref.WeakValueDictionary()


class LMDBSource(Source):
    """An LMDB with the keys `length` and `256-00000`, `256-00001`, ...: resolution and number."""

    def __init__(self, name: str, folder: Path, resolution: int | None = None) -> None:
        self.name = name
        self.environment = _PerProcess(_open_lmdb, folder.absolute())
        with self.environment().begin() as transaction:
            length = transaction.get(b"length", b"")
            found = sorted(set(_resolutions(transaction))) if length.isdigit() else []
        if not found or not int(length):
            raise InputError(
                f"the LMDB {name!r} has no key 'length' with a number and keys like '256-00000', as "
                f"StyleGAN2-pytorch's prepare_data.py writes them; export its pictures, or name {KINDS}"
            )
        if resolution not in (None, *found):
            sizes = ", ".join(map(str, found))
            raise InputError(f"the LMDB {name!r} has no pictures of {resolution} px; it has: {sizes}")
        self.resolution, self.length = resolution or found[-1], int(length)
        if self.length >= (entries := self.environment().stat()["entries"]):
            raise InputError(f"the LMDB {name!r} says length {self.length}, but has {entries} entries")

    def __len__(self) -> int:
        return self.length

    def label(self, index: int) -> str:
        return f"{self.resolution}-{index:05d}"

    def read(self, index: int) -> bytes:
        with self.environment().begin() as transaction:
            value = transaction.get(self.label(index).encode())
        if value is None:
            raise KeyError("no such key")
        return value

    def sizes(self) -> Iterator[tuple[str, int]]:
        with self.environment().begin(buffers=True) as transaction:
            for label in map(self.label, range(self.length)):
                value = transaction.get(label.encode())
                yield label, -1 if value is None else len(value)


def _resolutions(transaction: Any) -> Iterator[int]:
    cursor = transaction.cursor()
    more = cursor.first()
    while more:
        head, _, number = cursor.key().partition(b"-")
        if head.isdigit() and number.isdigit():
            yield int(head)
            more = cursor.set_range(head + b".")  # past all keys of this resolution: "." follows "-"
        else:
            more = cursor.next()


def _open_lmdb(folder: Path) -> Any:
    lmdb = _package("lmdb", "an LMDB")
    path = os.path.realpath(folder)
    if (known := _ENVIRONMENTS.get((os.getpid(), path))) is not None:
        return known  # lmdb opens a folder only once per process
    for (_, other), inherited in list(_ENVIRONMENTS.items()):
        if other == path:
            inherited.close()  # what a fork left here; the parent's own stays open
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise InputError(f"cannot open the LMDB {str(folder)!r} ({error}); name {KINDS}") from error
    page, size = environment.stat()["psize"], os.path.getsize(os.path.join(path, "data.mdb"))
    # Reading behind the end would kill the process. A few pages at the end may be unused and unwritten.
    if size < (environment.info()["last_pgno"] - 64) * page:
        raise InputError(f"the LMDB {str(folder)!r} is cut short at {size} bytes; copy it again")
    _ENVIRONMENTS[os.getpid(), path] = environment
    return environment


# Hugging Face data sets.


class HuggingFaceSource(Source):
    """The rows of a Hugging Face data set: its column `image`, or else the first column of images."""

    def __init__(self, name: str, data: Any) -> None:
        image = _package("datasets", "a Hugging Face data set").Image
        columns = [column for column, kind in data.features.items() if isinstance(kind, image)]
        if not columns or not len(data):
            kinds = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in data.features.items())
            raise InputError(
                f"the data set {name!r} has {len(data)} rows of {kinds or 'nothing'}; needed is a column of "
                f"the type Image; make one by datasets' cast_column, or name {KINDS}"
            )
        self.name, self.column = name, "image" if "image" in columns else columns[0]
        # Undecoded, so that these pictures are decoded as all others.
        self.rows = data.select_columns(self.column).cast_column(self.column, image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> str:
        return f"row {index}"

    def read(self, index: int) -> bytes:
        value = self.rows[int(index)][self.column] or {}
        if value.get("bytes") is None and not value.get("path"):
            raise ValueError("the row holds no picture")
        return Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]

    def sizes(self) -> Iterator[tuple[str, int]]:
        compute = importlib.import_module("pyarrow.compute")  # datasets stands on it
        number = 0
        for table in self.rows.with_format("arrow").iter(batch_size=1000):
            fields = (compute.struct_field(table[self.column], field) for field in ("bytes", "path"))
            data, paths = fields
            for size, path in zip(compute.binary_length(data).to_pylist(), paths.to_pylist(), strict=True):
                size = (_size(Path(path)) if path else -1) if size is None else size
                yield f"row {number} {os.path.basename(path or '')}", size
                number += 1


def _load_dataset(path: str, split: str) -> Any:
    datasets = _package("datasets", "a Hugging Face data set")
    try:
        if path.startswith("hf:"):
            name, _, config = path.removeprefix("hf:").partition(":")
            return datasets.load_dataset(name, config or None, split=split)
        found = datasets.load_from_disk(str(user_path(path)))
    except Exception as error:  # its own, the Hub client's, pyarrow's, those of a data set's script
        raise InputError(
            f"cannot load the data set {path!r}, split {split!r}: {reason(error).rstrip('.')}; check the "
            f"name, the split and the connection, or name {KINDS}"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"the data set {path!r} has no split {split!r}; it has: {', '.join(found)}")
        return found[split]
    return found


def _package(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"reading {what} needs the package {name}; run: pip install {name}") from error

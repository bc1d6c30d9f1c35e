"""The outside of a checkpoint file: which container it is, and that a zip file holds just what it seems to.

PyTorch reads zip files with a library of its own, which finds names whatever their case and may see another
directory than Python's `zipfile` does. A file is accepted only if both see the same records at the same
places, so that what is checked is what is loaded.
"""

from __future__ import annotations

import errno
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from stylenat_hub.errors import UnsafeCheckpointError, WeightsError

_PICKLE = "data.pkl"
_STORAGES = "data/"
_LOCAL_HEADER = b"PK\x03\x04"
# What Python's and PyTorch's zip readers raise on damaged or hostile input.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    ValueError,
    struct.error,
    OverflowError,
    RuntimeError,
    LookupError,
    MemoryError,
)


@dataclass(frozen=True)
class Archive:
    """A zip checkpoint.

    pickle: the bytes of its pickle, as PyTorch reads them. sizes: the bytes of each storage, by its key.
    """

    pickle: bytes
    sizes: dict[str, int]


def check_container(path: Path) -> Archive | None:
    """The records of a zip file (PyTorch 1.6 and later), or None for the older bare pickles.

    Raises `WeightsError` or `UnsafeCheckpointError` if the file is damaged, ambiguous or neither of them.
    """
    if not path.exists():
        raise WeightsError(
            f"there is no file {str(path)!r}; name an original checkpoint (.pt, .pth, or TensorFlow's ckpt-N)"
        )
    if path.is_dir():
        raise WeightsError(f"{str(path)!r} is a folder; name an original checkpoint file (.pt, .pth)")
    if not path.is_file():  # a pipe or a device may never end
        raise WeightsError(
            f"{str(path)!r} is not a file, but a pipe or a device; copy what it gives to a file, and name it"
        )
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise WeightsError(f"{path.name!r} is empty; download or copy it again")
    if head[8:9] == b"{" and head[:2] != b"PK":
        raise WeightsError(
            f"{path.name!r} is a safetensors file, not an original checkpoint; load it without conversion"
        )
    if path.name.endswith(".safetensors"):
        # PyTorch would go by the name and hand the file to another reader.
        raise WeightsError(f"{path.name!r} is no safetensors file; rename it to .pt if it is a checkpoint")
    return _read_zip(path) if head[:2] == b"PK" else None


def _read_zip(path: Path) -> Archive:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = archive.infolist()
            _check_sizes(path, entries)
            broken = archive.testzip()
            if broken is not None:
                raise WeightsError(
                    f"{path.name!r} is damaged (the checksum of {broken!r} is wrong); download or copy it "
                    "again"
                )
            return _agreed(path, file, archive, _top_folder(path, entries))
    except (WeightsError, UnsafeCheckpointError):
        raise
    except (*_ZIP_ERRORS, OSError) as error:
        # A directory that points before the file's beginning; the system's other errors are not the file's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise WeightsError(f"{path.name!r} is truncated or damaged; download or copy it again") from error


def _check_sizes(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(
            f"{path.name!r} is a compressed zip file, which PyTorch never writes; unpack it first"
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UnsafeCheckpointError(f"{path.name!r} claims to hold more bytes than it has; it was refused")


def _top_folder(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """The one folder that PyTorch puts all records in, without a slash."""
    names = [entry.filename for entry in entries]
    folded = [name.casefold() for name in names]
    if not any(name.rpartition("/")[2] == _PICKLE for name in folded):
        raise WeightsError(
            f"{path.name!r} is a zip file, but not one that PyTorch wrote; name an original checkpoint"
        )
    top = names[0].partition("/")[0]
    if len(set(folded)) < len(folded):
        strange = "two entries have one name"
    elif any(not name.startswith(top + "/") for name in names):
        strange = "not all entries are in one folder"
    elif top == "" or any("\\" in name or not {".", ".."}.isdisjoint(name.split("/")) for name in names):
        strange = "an entry's name leads out of its folder"
    elif [name for name in folded if name.rpartition("/")[2] == _PICKLE] != [f"{top}/{_PICKLE}".casefold()]:
        strange = f"there is another {_PICKLE!r} than its own"
    elif f"{top}/{_PICKLE}" not in names:
        strange = f"it holds no {_PICKLE!r} under just that name"
    elif min(entry.header_offset for entry in entries) != 0:
        strange = "other bytes come before its first entry"
    else:
        return top
    raise UnsafeCheckpointError(
        f"{path.name!r} is not a zip file as PyTorch writes it ({strange}); it was refused"
    )


def _agreed(path: Path, file: BinaryIO, archive: zipfile.ZipFile, top: str) -> Archive:
    """The archive's records, where PyTorch's own reader sees the same ones."""
    # `torch.load` hands its reader an open file too, not a name.
    reader = torch._C.PyTorchFileReader(file)
    records = {entry.filename[len(top) + 1 :]: entry for entry in archive.infolist()}
    same = sorted(reader.get_all_records()) == sorted(records)
    records = {name: entry for name, entry in records.items() if not entry.is_dir()}
    with path.open("rb") as again:
        for name, entry in records.items():
            # Of a storage PyTorch takes the place alone: the pickle tells its size.
            same = same and (
                reader.get_record_offset(name) == _data_offset(again, entry)
                if name.startswith(_STORAGES)
                else reader.get_record(name) == archive.read(entry)
            )
    if not same:
        raise UnsafeCheckpointError(
            f"{path.name!r} has a directory that can be read in two ways, which PyTorch never writes; it was "
            "refused"
        )
    return Archive(
        pickle=archive.read(records[_PICKLE]),
        sizes={
            name.removeprefix(_STORAGES): entry.file_size
            for name, entry in records.items()
            if name.startswith(_STORAGES)
        },
    )


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin, behind a header of 30 bytes, its name and padding."""
    file.seek(entry.header_offset)
    name_length, padding = struct.unpack("<26x2H", file.read(30))
    return entry.header_offset + 30 + name_length + padding

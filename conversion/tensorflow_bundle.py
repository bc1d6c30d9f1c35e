"""TensorFlow's checkpoints (TensorBundle, version 2), read without TensorFlow.

`NAME.index` is a sorted table (`conversion.tables`): under the empty key a header, under every other the
type, shape, place and checksum of one variable, whose bytes are in `NAME.data-00000-of-00001` and so on. The
entries are protocol buffers. All sizes and places in the files are taken for hostile; no name in them is
opened.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from conversion.checksums import crc32c, unmasked
from conversion.tables import DamagedError, read_table, varint
from stylenat_hub.errors import WeightsError, shown

_STRING, _BFLOAT16 = 7, 14
# TensorFlow's number of a type -> how its values lie in the file.
_TYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    9: "<i8",
    10: "|u1",  # truth values
    _BFLOAT16: "<u2",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
_MOST_DIMENSIONS = 32
_MOST_TEXTS = 65_536  # in one variable; checkpoints have one, the object graph
_MOST_SHARDS = 99_999  # five digits in a file's name
_LARGEST = 4 << 30  # bytes of one variable, thirty times the largest of any model here
_PIECE = 1 << 22
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Bundle:
    """What a checkpoint holds.

    variables: array of each wanted numeric variable, by its key; bfloat16 as float32. left: keys of the
    others, whose checksums were verified too: unwanted ones and texts. files: the index, then the data.
    """

    variables: dict[str, NDArray[Any]]
    left: tuple[str, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Entry:
    """One variable. kind: TensorFlow's number of its type. offset, size: in bytes, in the data file `shard`.
    checksum: as stored."""

    key: str
    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def read_bundle(index: Path, wanted: Callable[[str], bool] = lambda key: True) -> Bundle:
    """Read the checkpoint of an index file, and verify the checksum of everything in it.

    wanted: is this key's variable to be kept? The others are only verified.

    Raises `WeightsError`: a file is missing, truncated, damaged or of no such kind; it names file and key.
    """
    shards, entries = _read_index(index)
    files = {shard: _data_file(index, shard, shards) for shard in sorted({e.shard for e in entries})}
    _check_places(entries, files)
    variables, left = {}, []
    for shard, path in files.items():
        with path.open("rb") as file:
            for entry in entries:
                if entry.shard != shard:
                    continue
                if entry.kind != _STRING and wanted(entry.key):
                    variables[entry.key] = _read_array(file, entry, path.name)
                else:
                    _verify(file, entry, path.name)
                    left.append(entry.key)
    return Bundle(variables, tuple(left), (index, *files.values()))


def _read_index(path: Path) -> tuple[int, list[Entry]]:
    """The number of data files, and all variables by their places."""
    table = read_table(path)
    try:
        shards = _header(table.pop(b"", None))
        entries = []
        for key, value in table.items():
            try:
                entries.append(_entry(key, value, shards))
            except DamagedError as error:
                raise DamagedError(f"has an entry {shown(repr(key))[1:]} that {error}") from error
    except DamagedError as error:
        raise WeightsError(f"{path.name!r} {error}") from error
    return shards, sorted(entries, key=lambda entry: (entry.shard, entry.offset, entry.size))


def _header(value: bytes | None) -> int:
    """The number of data files. Raises `DamagedError`."""
    if value is None:
        raise DamagedError("is a sorted table, but not a TensorFlow checkpoint's index: it has no header")
    fields = dict(_fields(value))
    shards = _number(fields, 1)
    if _number(fields, 2):
        raise DamagedError("was written on a big-endian machine, whose numbers are not read")
    if not 0 < shards <= _MOST_SHARDS:
        raise DamagedError(f"says that its variables are in {shards} files; 1 to {_MOST_SHARDS:,} can be")
    return shards


def _entry(key: bytes, value: bytes, shards: int) -> Entry:
    fields = list(_fields(value))
    if any(number == 7 for number, _ in fields):
        raise DamagedError("is stored in slices, which are not read: save it unpartitioned")
    last = dict(fields)
    kind, shard = _number(last, 1), _number(last, 3)
    shape = _shape(last.get(2, b""))
    offset, size = _number(last, 4), _number(last, 5)
    if kind not in _TYPES and kind != _STRING:
        raise DamagedError(
            f"has the type number {kind}, which no weights have; real and whole numbers and texts are read"
        )
    if shard >= shards:
        raise DamagedError(f"is in the data file {shard}; they count from 0 to {shards - 1}")
    if kind in _TYPES and math.prod(shape) * np.dtype(_TYPES[kind]).itemsize != size:
        raise DamagedError(f"has the shape {list(shape)}, which does not fill its {size} bytes")
    if size > _LARGEST:
        raise DamagedError(f"claims to hold {size:,} bytes; {_LARGEST:,} at most can be")
    if kind == _STRING and math.prod(shape) > _MOST_TEXTS:
        raise DamagedError(f"claims to hold {math.prod(shape):,} texts; {_MOST_TEXTS:,} can be")
    checksum = last.get(6, 0)
    if not isinstance(checksum, int) or checksum >> 32:
        raise DamagedError("has a damaged checksum")
    return Entry(_text(key), kind, shape, shard, offset, size, checksum)


def _text(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise DamagedError("has a name that is no text") from None


def _shape(message: Any) -> tuple[int, ...]:
    fields = list(_fields(message))
    sizes = [_number(dict(_fields(value)), 1) for number, value in fields if number == 2]
    if _number(dict(fields), 3) or len(sizes) > _MOST_DIMENSIONS:
        raise DamagedError(f"has no known shape, or more than {_MOST_DIMENSIONS} dimensions")
    return tuple(sizes)


def _fields(message: Any) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer: whole numbers, and bytes of anything longer."""
    if not isinstance(message, bytes):
        raise DamagedError("is damaged (a field of it is of another type)")
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise DamagedError(f"is damaged (a field of it has the unknown wire type {wire})")
        if at + length > len(message):
            raise DamagedError("is damaged (a field of it is longer than all of it)")
        part = message[at : at + length]
        yield number, part if wire == 2 else int.from_bytes(part, "little")
        at += length


def _number(fields: dict[int, int | bytes], number: int) -> int:
    """A whole number from 0 to 2^63 - 1; what is not there is 0. Negative ones are stored as 2^64 less."""
    value = fields.get(number, 0)
    if not isinstance(value, int) or value >> 63:
        negative = f"{value - (1 << 64)}, below zero" if isinstance(value, int) else "no number"
        raise DamagedError(f"is damaged (its field {number} is {negative})")
    return value


def is_file(path: Path) -> bool:
    """Is there such a file? There is none under a name that what was added to it made too long."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _data_file(index: Path, shard: int, shards: int) -> Path:
    path = index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{shards:05d}")
    if not is_file(path):
        raise WeightsError(
            f"the checkpoint's file {path.name!r} is missing beside {index.name!r}; copy it there too"
        )
    return path


def _check_places(entries: Sequence[Entry], files: dict[int, Path]) -> None:
    """Every variable is in its file, and has its bytes for itself: all are at most as large as the files."""
    sizes = {shard: path.stat().st_size for shard, path in files.items()}
    before = None
    for entry in entries:
        name = files[entry.shard].name
        if entry.end > sizes[entry.shard]:
            raise WeightsError(
                f"{name!r} has {sizes[entry.shard]:,} bytes, but the variable {shown(repr(entry.key))} ends "
                f"at {entry.end:,}; the file is truncated: {_AGAIN}"
            )
        if before and before.shard == entry.shard and entry.offset < before.end:
            raise WeightsError(
                f"the variables {shown(repr(before.key))} and {shown(repr(entry.key))} share bytes of "
                f"{name!r}; the index is damaged or not TensorFlow's, and was refused"
            )
        before = entry


def _read_array(file: BinaryIO, entry: Entry, name: str) -> NDArray[Any]:
    data = np.empty(entry.size, np.uint8)
    file.seek(entry.offset)
    if file.readinto(data.data) != entry.size or crc32c(data) != unmasked(entry.checksum):
        raise _damaged(entry, name)
    values = data.view(_TYPES[entry.kind])
    if entry.kind == _BFLOAT16:  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    try:
        return values.reshape(entry.shape)
    except ValueError:  # no values, but sizes beyond any memory beside the one of 0
        raise _damaged(entry, name) from None


def _verify(file: BinaryIO, entry: Entry, name: str) -> None:
    file.seek(entry.offset)
    of_text = entry.kind == _STRING
    checksum = _text_checksum(file, entry, name) if of_text else _checksum(file, entry.size)
    if checksum != unmasked(entry.checksum):
        raise _damaged(entry, name)


def _checksum(file: BinaryIO, size: int, before: int = 0) -> int:
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        before = crc32c(piece, before)
        size -= len(piece)
    return before


def _text_checksum(file: BinaryIO, entry: Entry, name: str) -> int:
    """Of texts: their lengths lie first, as varints, then the checksum of these, then the texts.

    The checksum is that of lengths of 4 bytes (8 where they need them), the stored checksum, and the texts.
    """
    count = math.prod(entry.shape)
    head = file.read(min(entry.size, 10 * count + 4))
    try:
        lengths, at = [], 0
        for _ in range(count):
            length, at = varint(head, at)
            lengths.append(length)
    except DamagedError:
        raise _damaged(entry, name) from None
    packed = b"".join(struct.pack("<Q" if length >> 32 else "<I", length) for length in lengths)
    stored, checksum = head[at : at + 4], crc32c(packed)
    whole = at + 4 + sum(lengths) == entry.size
    if not whole or checksum != unmasked(int.from_bytes(stored, "little")):
        raise _damaged(entry, name)
    file.seek(entry.offset + at + 4)
    return _checksum(file, sum(lengths), crc32c(stored, checksum))


def _damaged(entry: Entry, name: str) -> WeightsError:
    return WeightsError(
        f"{name!r} is damaged: the checksum of the variable {shown(repr(entry.key))} is wrong; {_AGAIN}"
    )

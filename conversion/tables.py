"""Sorted tables of keys and values, as LevelDB and TensorFlow write them, from files that may be hostile.

A table is blocks, an index of them, and a footer of 48 bytes. A block is followed by a byte that says how it
is compressed (0 not, 1 snappy) and a checksum of both. In a block each key states how many bytes it shares
with the one before it. Every byte is in a block or in the footer, so one that changed is always found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from conversion.checksums import crc32c, unmasked
from stylenat_hub.errors import WeightsError, shown

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # bytes behind a block: compression, checksum
_LARGEST = 1 << 26  # bytes of a table; those of the largest models have less than a megabyte
_LONGEST_KEY = 1_024  # bytes; keys share theirs, so a short file could hold many long ones
_OVERHEAD = 256  # bytes that an entry takes in memory beside its own
_EXPANSION = 32  # more than what snappy can pack into a byte: 64 bytes become 3


class DamagedError(ValueError):
    """What is wrong with some bytes, in the words that complete 'the file ...'."""


def read_table(path: Path) -> dict[bytes, bytes]:
    """All keys and values. Raises `WeightsError`, which names the file and the place of what is wrong."""
    size = path.stat().st_size
    if size > _LARGEST:
        raise WeightsError(f"{path.name!r} has {size:,} bytes; a checkpoint's index has {_LARGEST:,} at most")
    data = path.read_bytes()
    try:
        return dict(_entries(data))
    except DamagedError as error:
        raise WeightsError(f"{path.name!r} {error}; copy or download it again") from error


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number below 2^64 of seven bits per byte, and the place behind it. Raises `DamagedError`."""
    value = 0
    for place in range(at, min(at + 10, len(data))):
        value |= (data[place] & 0x7F) << 7 * (place - at)
        if data[place] < 0x80:
            # An upper zero adds nothing and is never written; a flipped bit could bring one in, unseen.
            if value >> 64 or (data[place] == 0 and place > at):
                break
            return value, place + 1
    raise DamagedError("is damaged (a number in it does not end as it must)")


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    meta, index = _footer(data)
    covered, room = _FOOTER + meta[1] + index[1] + 2 * _TRAILER, _LARGEST
    _block(data, *meta)  # says nothing, but its bytes are checked too
    last = None
    for _, handle in _block_entries(_block(data, *index)):
        place = _handle(handle, 0)[0]
        covered += place[1] + _TRAILER
        if covered > len(data):
            raise DamagedError("is damaged (its blocks have more bytes than the file)")
        for key, value in _block_entries(_block(data, *place)):
            room -= len(key) + len(value) + _OVERHEAD
            if (last is not None and key <= last) or room < 0:
                what = "its keys are not sorted" if room >= 0 else "it unpacks to more than it may hold"
                raise DamagedError(f"is damaged ({what} at {shown(repr(key))})")
            last = key
            yield key, value
    if covered != len(data):
        raise DamagedError("is damaged (some of its bytes belong to no block)")


def _footer(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """The places of the two last blocks."""
    if not data:
        raise DamagedError("is empty")
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise DamagedError("does not end as a checkpoint's index does: it is truncated, or another file")
    footer = data[-_FOOTER:-8]
    meta, at = _handle(footer, 0)
    index, at = _handle(footer, at)
    if any(footer[at:]):
        raise DamagedError("is damaged (its footer has bytes that must be zero)")
    return meta, index


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The content of a block, checked and unpacked."""
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise DamagedError(f"is truncated or damaged (a block would go from byte {offset} to {end})")
    kind, stored = struct.unpack_from("<BI", data, end)
    if crc32c(data[offset : end + 1]) != unmasked(stored):
        raise DamagedError(f"is damaged (the checksum of its block at byte {offset} is wrong)")
    if kind > 1:
        raise DamagedError(f"has a block with the compression {kind}; 0 (none) and 1 (snappy) are known")
    content = data[offset:end]
    return unsnapped(content) if kind else content


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = len(block) - 4
    restarts = struct.unpack_from("<I", block, end)[0] if end >= 0 else 0
    end -= 4 * restarts
    if end < 0:
        raise DamagedError("is damaged (a block is shorter than its list of restarts)")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > end or shared + own > _LONGEST_KEY:
            raise DamagedError(f"is damaged (the key behind {shown(repr(key))} reaches beyond its block)")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def unsnapped(data: bytes) -> bytes:
    """Unpack snappy's format without a frame. Raises `DamagedError`."""
    size, at = varint(data, 0)
    if size > min(_EXPANSION * len(data), _LARGEST):
        raise DamagedError(f"is damaged (a compressed block of {len(data)} bytes claims to hold {size})")
    out = bytearray()
    while at < len(data):
        literal, length, value, at = _element(data, at)
        if len(out) + length > size or (at + length > len(data) if literal else not 0 < value <= len(out)):
            raise DamagedError("is damaged (a compressed block leads outside of itself)")
        if literal:
            out += data[at : at + length]
            at += length
        else:  # what is copied may reach into what the copy adds: then it repeats
            piece = bytes(out[-value:][:length])
            out += (piece * -(-length // len(piece)))[:length]
    if len(out) != size:
        raise DamagedError("is damaged (a compressed block is shorter than it says)")
    return bytes(out)


def _element(data: bytes, at: int) -> tuple[bool, int, int, int]:
    """(is it literal, how many bytes it adds, how far back a copy begins, the place behind it)."""
    tag, at = data[at], at + 1
    kind, value = tag & 3, tag >> 2
    extra = (max(value - 59, 0), 1, 2, 4)[kind]
    number = int.from_bytes(data[at : at + extra], "little")
    if at + extra > len(data):
        raise DamagedError("is damaged (a compressed block ends too early)")
    at += extra
    if kind == 0:
        return True, (number if extra else value) + 1, 0, at
    if kind == 1:
        return False, 4 + (value & 7), (value >> 3) << 8 | number, at
    return False, value + 1, number, at

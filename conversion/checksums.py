"""CRC-32C (Castagnoli), which TensorFlow's files check themselves with, at the speed of numpy.

Without its two inversions a CRC is linear: it can be taken of many short rows at once, and the results put
together in pairs by the map that appends zero bytes. Zeros before the first byte of all change nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed
_ONES = 0xFFFFFFFF
_ROW = 256  # bytes that one column of the arithmetic goes through
_CHUNK = 1 << 22  # bytes taken at once, so that memory stays small whatever the length
_SHORT = 2_048  # bytes up to which a plain loop is quicker


def crc32c(data: bytes | bytearray | memoryview | NDArray[np.uint8], before: int = 0) -> int:
    """The checksum of the bytes. before: that of the bytes in front of them."""
    values = np.frombuffer(data, np.uint8)
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        before = (_plain if len(chunk) <= _SHORT else _in_rows)(chunk, before ^ _ONES) ^ _ONES
    return before


def unmasked(stored: int) -> int:
    """The checksum behind the form in which it is stored: rotated by 15 bits, and a constant added."""
    rotated = (stored - 0xA282EAD8) & _ONES
    return ((rotated >> 17) | (rotated << 15)) & _ONES


def _plain(chunk: NDArray[np.uint8], state: int) -> int:
    table = _byte_table()
    for byte in chunk.tobytes():
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def _in_rows(chunk: NDArray[np.uint8], state: int) -> int:
    rows = 1 << (-(-len(chunk) // _ROW) - 1).bit_length()
    padded = np.zeros(rows * _ROW, np.uint8)
    padded[-len(chunk) :] = chunk
    # What came before acts on the next four bytes as if it were added to them.
    start = len(padded) - len(chunk)
    padded[start : start + 4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    states = np.zeros(rows, np.uint32)
    for words in np.ascontiguousarray(padded.view("<u4").reshape(rows, -1).T):
        states = _appended(states ^ words, 4)
    length = _ROW
    while len(states) > 1:
        states = _appended(states[0::2], length) ^ states[1::2]
        length *= 2
    return int(states[0])


def _appended(states: Words, zeros: int) -> Words:
    """What the states become by so many zero bytes."""
    low, high = _tables(zeros)
    return low[states & 0xFFFF] ^ high[states >> 16]


@functools.cache
def _tables(zeros: int) -> tuple[Words, Words]:
    """The map of `_appended` for the lower and for the upper half of a state. zeros: 4, or a power of 2."""
    if zeros == 4:
        columns = [_plain(np.zeros(4, np.uint8), 1 << bit) for bit in range(32)]
    else:
        half = zeros // 2 if zeros > _ROW else 4
        images = np.array([1 << bit for bit in range(32)], np.uint32)
        for _ in range(zeros // half):
            images = _appended(images, half)
        columns = images.tolist()
    return _sums(columns[:16]), _sums(columns[16:])


def _sums(columns: Sequence[int]) -> Words:
    """Entry v is the sum of the columns whose bits are set in v."""
    sums = np.zeros(1, np.uint32)
    for column in columns:
        sums = np.concatenate([sums, sums ^ np.uint32(column)])
    return sums


@functools.cache
def _byte_table() -> tuple[int, ...]:
    table = []
    for state in range(256):
        for _ in range(8):
            state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
        table.append(state)
    return tuple(table)

"""Writes what TensorFlow would: sorted tables, snappy, checkpoints; and anything else that tests ask for."""

from __future__ import annotations

import struct

import numpy as np

from conversion.checksums import crc32c

MAGIC = 0xDB4775248B80FB57
KINDS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def masked(checksum):
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value):
    value &= (1 << 64) - 1  # negative numbers as protocol buffers have them
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    """A field of a protocol buffer: a whole number, or the bytes of a text or a message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def snappy(data):
    """Literals and copies of all three kinds; copies reach into themselves where the data repeats."""
    out, at, seen, pending = varint(len(data)), 0, {}, b""
    kind = 0
    while at < len(data):
        found = seen.get(data[at : at + 4])
        seen[data[at : at + 4]] = at
        length = 0
        while found is not None and at + length < len(data) and length < 64:
            if data[found + length] != data[at + length]:
                break
            length += 1
        if length < 4:
            pending += data[at : at + 1]
            at += 1
            continue
        out, pending = out + _literal(pending), b""
        back, kind = at - found, kind + 1
        if length < 12 and back < 2048:
            out += bytes([1 | length - 4 << 2 | back >> 8 << 5, back & 0xFF])
        elif back < 65536 and kind % 2:
            out += bytes([2 | length - 1 << 2]) + struct.pack("<H", back)
        else:
            out += bytes([3 | length - 1 << 2]) + struct.pack("<I", back)
        at += length
    return out + _literal(pending)


def _literal(data):
    if not data:
        return b""
    size = len(data) - 1
    if size < 60:
        return bytes([size << 2]) + data
    extra = (size.bit_length() + 7) // 8
    return bytes([59 + extra << 2]) + size.to_bytes(extra, "little") + data


def block(entries, restart=16):
    out, restarts, before = b"", [0], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i and i % restart == 0:
            restarts.append(len(out))
        elif i:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def sealed(content, compress=False, kind=None):
    """A block with its trailer. kind: the compression to state instead."""
    content = snappy(content) if compress else content
    content += bytes([int(compress) if kind is None else kind])
    return content + struct.pack("<I", masked(crc32c(content)))


def handle(offset, size):
    return varint(offset) + varint(size)


def table(blocks, compress=False, magic=MAGIC):
    """blocks: the entries of each."""
    out, index = b"", []
    for entries in blocks:
        content = sealed(block(entries), compress)
        index.append((entries[-1][0], handle(len(out), len(content) - 5)))
        out += content
    return ended(out, block(index), compress, magic)


def ended(out, index, compress=False, magic=MAGIC):
    """What comes behind the blocks of entries: two more, and the footer."""
    places = b""
    for content in (block([]), index):
        content = sealed(content, compress)
        places += handle(len(out), len(content) - 5)
        out += content
    return out + places.ljust(40, b"\0") + struct.pack("<Q", magic)


def header(shards=1, endian=0):
    return field(1, shards) + (field(2, endian) if endian else b"") + field(3, field(1, 1))


def entry(kind=1, shape=(), shard=0, offset=0, size=4, checksum=0, more=b""):
    dims = b"".join(field(2, field(1, dim)) for dim in shape)
    out = field(1, kind) + field(2, dims) + (field(3, shard) if shard else b"")
    return out + field(4, offset) + field(5, size) + varint(6 << 3 | 5) + struct.pack("<I", checksum) + more


def text(values):
    """(bytes in the data file, checksum) of texts."""
    sizes = b"".join(struct.pack("<I", len(value)) for value in values)
    stored = struct.pack("<I", masked(crc32c(sizes)))
    checksum = crc32c(b"".join(values), crc32c(stored, crc32c(sizes)))
    return b"".join(varint(len(value)) for value in values) + stored + b"".join(values), checksum


def write(folder, variables, name="ckpt-1", shards=1, per_block=5, compress=False, change=None):
    """A checkpoint of arrays and lists of bytes; gives the index. change: `(key, entry) -> entry`."""
    folder.mkdir(exist_ok=True, parents=True)
    data, entries = [b""] * shards, {b"": header(shards)}
    for i, (key, value) in enumerate(sorted(variables.items())):
        shard = i % shards
        if isinstance(value, list):
            content, checksum = text(value)
            kind, shape = 7, (len(value),)
        else:
            content, kind, shape = value.tobytes(), KINDS[str(value.dtype)], value.shape
            checksum = crc32c(content)
        place = {"shard": shard, "offset": len(data[shard]), "size": len(content)}
        made = entry(kind, shape, checksum=masked(checksum), **place)
        entries[key.encode()] = change(key, made) if change else made
        data[shard] += content
    for shard, content in enumerate(data):
        (folder / f"{name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return write_index(folder / f"{name}.index", entries, per_block, compress)


def write_index(path, entries, per_block=5, compress=False):
    rows = sorted(entries.items())
    blocks = [rows[i : i + per_block] for i in range(0, len(rows), per_block)]
    path.write_bytes(table(blocks, compress))
    return path


def some_variables():
    """Arrays of every type that is read, scalars, an empty one, and texts."""
    draw = np.random.default_rng(0)
    network = {f"net/layer-{i}/kernel{SUFFIX}": draw.normal(size=(i, 3)).astype("f4") for i in range(1, 30)}
    return {
        **network,
        "double": draw.normal(size=(2, 2)),
        "half": draw.normal(size=5).astype("f2"),
        "truth": np.array([True, False]),
        "step": np.array(7),
        "small": np.array([-3], "i4"),
        "empty": np.zeros((0, 4), "f4"),
        "texts": [b"one", b"", b"x" * 300],
        "unicode-\u00fc": np.ones(1, "f4"),
    }

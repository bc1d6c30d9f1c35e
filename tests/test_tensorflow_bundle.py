"""TensorFlow's checkpoint files without TensorFlow: all of them read, nothing of a hostile or damaged one."""

import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hit_recordings import GOLDENS, recorded
from tensorflow_files import (
    SUFFIX,
    block,
    ended,
    entry,
    field,
    handle,
    header,
    masked,
    sealed,
    snappy,
    some_variables,
    table,
    text,
    varint,
    write,
    write_index,
)

from conversion.checksums import crc32c, unmasked
from conversion.tables import DamagedError, read_table, unsnapped
from conversion.tensorflow_bundle import _read_index, read_bundle
from stylenat_hub.errors import WeightsError

INDEX = GOLDENS / "ckpt" / "ckpt-9.index"
DATA = "ckpt-9.data-00000-of-00001"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def refused(index, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_bundle(index)
    assert "\n" not in str(caught.value)


def copied(folder, name, change):
    """The recorded checkpoint in another folder, one file of it changed."""
    for file in INDEX.parent.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(change(content) if file.name == name else content)
    return folder / INDEX.name


def flipped(place, bit=0):
    return lambda content: content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def by_definition(data):
    """A CRC as a division, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 3, 2_047, 2_048, 2_049, 4_097, 65_536, 100_001])
def test_the_checksum_is_that_of_its_definition(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert crc32c(data) == by_definition(data)
    assert crc32c(data[size // 3 :], crc32c(data[: size // 3])) == crc32c(data)


def test_known_checksums():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert unmasked(0xA282EAD8) == 0
    # Beyond one chunk: zeros before and behind, because they move every bit.
    data = bytes(5_000_000) + b"123456789" + bytes(4_000_000)
    assert crc32c(data) == crc32c(data[6_000_000:], crc32c(data[:6_000_000]))


def test_a_recorded_checkpoint_is_read_to_the_bit():
    bundle = read_bundle(INDEX)
    wanted = recorded("weights_step9")
    assert len(wanted) > 200
    for path, tensor in wanted.items():
        values = bundle.variables[path + SUFFIX]
        assert values.dtype == np.float32
        assert values.shape == tuple(tensor.shape) and values.tobytes() == tensor.numpy().tobytes(), path
    assert bundle.variables["global_step" + SUFFIX] == 9
    assert bundle.left == (GRAPH,)
    assert [path.name for path in bundle.files] == [INDEX.name, DATA]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("shards", "per_block"), [(1, 100), (1, 1), (3, 4)])
def test_what_was_written_is_read(tmp_path, compress, shards, per_block):
    variables = some_variables()
    index = write(tmp_path, variables, shards=shards, per_block=per_block, compress=compress)
    bundle = read_bundle(index)
    assert bundle.left == ("texts",)
    assert len(bundle.files) == 1 + shards
    assert bundle.variables.keys() == variables.keys() - {"texts"}
    for key, values in bundle.variables.items():
        assert values.shape == variables[key].shape and values.tobytes() == variables[key].tobytes(), key
        assert values.dtype == (np.uint8 if key == "truth" else variables[key].dtype)


def test_bfloat16_becomes_float32(tmp_path):
    stored = np.array([1.0, -2.5, 3e38, 0.0], "f4")
    upper = (stored.view("u4") >> 16).astype("u2")
    data = tmp_path / "ckpt-1.data-00000-of-00001"
    data.write_bytes(upper.tobytes())
    checksum = struct.unpack("<I", sealed(upper.tobytes())[-4:])[0]  # of other bytes: it must be seen
    made = {b"": header(), b"x": entry(14, (4,), size=8, checksum=checksum)}
    refused(write_index(tmp_path / "ckpt-1.index", made), "checksum of the variable 'x'")
    made[b"x"] = entry(14, (4,), size=8, checksum=masked(crc32c(upper.tobytes())))
    values = read_bundle(write_index(tmp_path / "ckpt-1.index", made)).variables["x"]
    assert values.dtype == np.float32
    assert np.array_equal(values, (upper.astype("u4") << 16).view("f4"))


def test_only_what_is_wanted_is_kept_and_all_of_it_is_verified(tmp_path):
    index = copied(tmp_path, DATA, flipped(5))
    first = min(_entries(INDEX), key=lambda found: found[1])[0]
    with pytest.raises(WeightsError, match=f"checksum of the variable '{first}'"):
        read_bundle(index, lambda key: False)
    bundle = read_bundle(INDEX, lambda key: key.startswith("generator/"))
    assert all(key.startswith("generator/") for key in bundle.variables)
    assert len(bundle.variables) + len(bundle.left) == len(_entries(INDEX))


def _entries(index):
    """(key, offset, size) of all variables of the recorded checkpoint."""
    return [(found.key, found.offset, found.size) for found in _read_index(index)[1]]


def test_a_flipped_bit_of_the_data_is_found_and_the_variable_named(tmp_path):
    size = (INDEX.parent / DATA).stat().st_size
    entries = _entries(INDEX)
    for place in [*range(0, size, size // 40), size - 1]:
        # Those without bytes lie at the same place as their neighbours.
        (key,) = [key for key, offset, length in entries if offset <= place < offset + length]
        index = copied(tmp_path, DATA, flipped(place, place % 8))
        refused(index, f"'{DATA}' is damaged: the checksum of the variable '{key}' is wrong; copy")


def test_a_flipped_bit_of_any_text_is_found(tmp_path):
    index = write(tmp_path, {"texts": [b"one", b"two" * 50], "z": np.ones(2, "f4")})
    data = tmp_path / "ckpt-1.data-00000-of-00001"
    content = data.read_bytes()
    for place in range(len(content) - 8):
        data.write_bytes(flipped(place, place % 8)(content))
        refused(index, "checksum of the variable 'texts'")


def test_bytes_behind_the_texts_of_a_variable_are_refused(tmp_path):
    content, checksum = text([b"one"])
    (tmp_path / "ckpt-1.data-00000-of-00001").write_bytes(content + b"more")
    for size in (len(content) + 4, len(content)):
        made = {b"": header(), b"x": entry(7, size=size, checksum=masked(checksum))}
        index = write_index(tmp_path / "ckpt-1.index", made)
        if size > len(content):
            refused(index, "checksum of the variable 'x'")
    assert read_bundle(index).left == ("x",)


@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_bit_of_the_index_is_found_wherever_it_is(tmp_path, compress):
    variables = {f"net/{i}": np.full(2, i, "f4") for i in range(9)}
    index = write(tmp_path, variables, per_block=4, compress=compress)
    content = index.read_bytes()
    for place in range(len(content)):
        for bit in (0, 7):
            index.write_bytes(flipped(place, bit)(content))
            refused(index, r"'ckpt-1\.index' .*(damaged|truncated)")


def test_a_flipped_bit_of_the_recorded_index_is_found(tmp_path):
    size = INDEX.stat().st_size
    for place in [*range(0, size, size // 60), *range(size - 60, size)]:
        refused(
            copied(tmp_path, INDEX.name, flipped(place, place % 8)), r"'ckpt-9\.index' .*(damaged|truncated)"
        )


def test_files_that_were_cut(tmp_path):
    size = INDEX.stat().st_size
    for left in (0, 1, 47, 48, 100, size // 2, size - 49, size - 1):
        refused(copied(tmp_path, INDEX.name, lambda c, n=left: c[:n]), r"'ckpt-9\.index' .*(empty|truncated)")
    for left in (0, 1, 500_000):
        index = copied(tmp_path, DATA, lambda c, n=left: c[:n])
        refused(index, rf"'{DATA}' has {left:,} bytes, but the variable '.*' ends at .* truncated")
    (tmp_path / DATA).unlink()
    refused(tmp_path / INDEX.name, f"'{DATA}' is missing beside 'ckpt-9.index'")


def test_other_files(tmp_path):
    path = tmp_path / "ckpt-1.index"
    path.write_bytes(b"hello" * 100)
    refused(path, "does not end as a checkpoint's index does")
    path.write_bytes(table([[(b"", header())]], magic=0xDB4775248B80FB58))
    refused(path, "does not end as a checkpoint's index does")
    path.write_bytes(table([[(b"a", b"1")]]))
    refused(path, "not a TensorFlow checkpoint's index: it has no header")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole on the disk, which is not read
    refused(path, "a checkpoint's index has")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (header(0), "are in 0 files"),
        (header(-1), "field 1 is -1, below zero"),
        (header(1 << 40), "are in 1099511627776 files"),
        (header(endian=1), "big-endian"),
        (field(1, b"x"), "field 1 is no number"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\xff\xff\xff\xff\x0f", "longer than all of it"),
        (b"\x08" + b"\xff" * 11, "does not end as it must"),
    ],
)
def test_hostile_headers(value, message, tmp_path):
    refused(write_index(tmp_path / "ckpt-1.index", {b"": value}), message)


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            entry(size=HUGE, shape=(HUGE // 4,)),
            "'x' that claims to hold 4,611,686,018,427,387,904 bytes; 4,2",
        ),
        (entry(size=(4 << 30) + 4, shape=((1 << 30) + 1,)), "4,294,967,300 bytes; 4,294,967,296 at most"),
        (entry(size=4 << 30, shape=(1 << 30,)), "truncated"),
        (entry(offset=HUGE), "truncated"),
        (entry(offset=(1 << 63) - 1), "truncated"),
        (entry(size=-4), "field 5 is -4, below zero"),
        (entry(offset=-4), "field 4 is -4, below zero"),
        (entry(shape=(-1,)), "field 1 is -1, below zero"),
        (entry(shape=(3,)), "does not fill its 4 bytes"),
        (entry(shape=(HUGE, HUGE)), "does not fill its 4 bytes"),
        (entry(shape=(0, HUGE, HUGE, HUGE), size=0, checksum=masked(0)), "checksum of the variable 'x'"),
        (entry(shape=(1,) * 33), "more than 32 dimensions"),
        (entry(shard=1), "is in the data file 1; they count from 0 to 0"),
        (entry(shard=-1), "below zero"),
        (entry(kind=21), "the type number 21"),
        (entry(kind=7, shape=(HUGE,)), "claims to hold 4,611,686,018,427,387,904 texts"),
        (entry(kind=7, shape=(2,)), "checksum of the variable 'x'"),
        (entry(more=field(7, b"")), "'x' that is stored in slices"),
        (entry(more=field(2, field(3, 1))), "no known shape"),
        (entry(more=field(6, 1 << 40)), "damaged checksum"),
        (field(2, 5), "of another type"),
        (b"\x12\x05", "longer than all of it"),
    ],
)
def test_hostile_entries(value, message, tmp_path):
    """Each is refused in one sentence, without memory for what it claims."""
    (tmp_path / "ckpt-1.data-00000-of-00001").write_bytes(bytes(16))
    index = write_index(tmp_path / "ckpt-1.index", {b"": header(), b"x": value})
    tracemalloc.start()
    refused(index, message)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_entries_that_share_bytes_or_have_no_text_as_name(tmp_path):
    (tmp_path / "ckpt-1.data-00000-of-00001").write_bytes(bytes(16))
    pair = {b"": header(), b"x": entry(shape=(2,), size=8), b"y": entry(offset=4)}
    refused(write_index(tmp_path / "ckpt-1.index", pair), "'x' and 'y' share bytes")
    refused(
        write_index(tmp_path / "ckpt-1.index", {b"": header(), b"\xff": entry()}), "a name that is no text"
    )


def bare(*contents, index, kind=0):
    """A table of these blocks, and an index block of these handles."""
    out = b"".join(sealed(content, kind=kind) for content in contents)
    return ended(out, block([(b"k%03d" % i, place) for i, place in enumerate(index)]))


ROWS = block([(b"", header())])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bare(ROWS, index=[handle(0, len(ROWS))] * 2), "more bytes than the file"),
        (bare(ROWS, ROWS, index=[handle(0, len(ROWS))] * 2), "keys are not sorted"),
        (bare(ROWS, ROWS, index=[handle(0, len(ROWS))]), "belong to no block"),
        (bare(ROWS, index=[handle(HUGE, HUGE)]), "more bytes than the file"),
        (bare(ROWS, index=[handle(HUGE, 5)]), "a block would go from byte"),
        (bare(ROWS, index=[b"\xff" * 11]), "does not end as it must"),
        (bare(ROWS, index=[b""]), "does not end as it must"),
        (bare(block([(b"b", b""), (b"a", b"")]), index=[handle(0, 16)]), "keys are not sorted"),
        (bare(b"", index=[handle(0, 0)]), "shorter than its list"),
        (bare(b"\xff" * 8, index=[handle(0, 8)]), "shorter than its list"),
        (bare(varint(5) + b"\1\0a" + b"\0\0\0\0\1\0\0\0", index=[handle(0, 12)]), "beyond its block"),
        (
            bare(b"\0" + varint(HUGE) + b"\0a" + b"\0\0\0\0\1\0\0\0", index=[handle(0, 20)]),
            "beyond its block",
        ),
        (
            bare(b"\0\1" + varint(HUGE) + b"a" + b"\0\0\0\0\1\0\0\0", index=[handle(0, 20)]),
            "beyond its block",
        ),
        (bare(block([(b"x" * 1025, b"")]), index=[handle(0, 1037)]), "beyond its block"),
        (bare(ROWS, index=[handle(0, len(ROWS))], kind=2), "the compression 2"),
        (bare(ROWS, index=[handle(0, len(ROWS))], kind=1), "compressed block"),
    ],
)
def test_hostile_tables(content, message, tmp_path):
    path = tmp_path / "ckpt-1.index"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_table(path)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "much.index"
    path.write_bytes(table([[(b"k" * 1000 + b"%03d" % i, b"") for i in range(1000)]], compress=True))
    size = path.stat().st_size
    assert size < 10_000 and len(read_table(path)) == 1000  # the default bound is for no test to reach
    monkeypatch.setattr("conversion.tables._LARGEST", 1 << 20)
    with pytest.raises(WeightsError, match="unpacks to more than it may hold at b'kkk"):
        read_table(path)


@pytest.mark.parametrize("size", [0, 1, 59, 60, 61, 255, 256, 257, 70_000])
def test_snappy(size):
    draw = np.random.default_rng(size)
    for data in (
        draw.integers(0, 256, size, np.uint8).tobytes(),  # literals
        draw.integers(0, 3, size, np.uint8).tobytes(),  # short copies
        (b"abc" * size)[:size],  # copies that reach into themselves
        (draw.integers(0, 256, size // 2 + 1, np.uint8).tobytes() * 2)[:size],  # far ones
    ):
        assert unsnapped(snappy(data)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not end"),
        (b"\xff\xff\xff\xff\xff\x0f", "claims to hold"),  # terabytes
        (varint(1 << 25) + bytes(3), "claims to hold"),
        (b"\x05\x10abc", "leads outside"),  # a literal of 5 that is cut
        (b"\x08\x04ab" + b"\x01\x00", "leads outside"),  # a copy from 0 bytes back
        (b"\x08\x04ab" + b"\x01\x03", "leads outside"),  # a copy from before the beginning
        (b"\x04\x04ab" + b"\x09\x01" + b"\xff", "leads outside"),  # longer than stated
        (b"\x09\x04ab" + b"\x01\x01", "is shorter"),
        (b"\x02\xf0", "ends too early"),  # the size of a literal is missing
        (b"\x02\x04ab\x02\x01", "ends too early"),  # half of an offset
    ],
)
def test_damaged_snappy(data, message):
    with pytest.raises(DamagedError, match=message):
        unsnapped(data)


def test_nothing_imports_tensorflow():
    assert not {"tensorflow", "snappy", "google_crc32c"} & set(sys.modules)

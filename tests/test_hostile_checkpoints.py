"""Checkpoint files that lie: about their storages, their directory, their names, or what objects are."""

import argparse
import collections
import contextlib
import io
import pickle
import pickletools
import struct
import warnings
import zipfile

import pytest
import torch
from test_containers import ARGS, STATE, crafted, saved

from conversion.containers import read_checkpoint
from stylenat_hub.errors import UnsafeCheckpointError, WeightsError


def rezipped(path, change):
    """The same zip file with other entries: `change` gets them as (name, bytes) and returns them."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicates that a test writes
        for name, data in change(entries):
            archive.writestr(name, data)
    return path


def parts(path):
    """A legacy file's first four pickles, its list of keys, and the bytes of its storages."""
    data = path.read_bytes()
    file = io.BytesIO(data)
    ends = []
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    return data[: ends[3]], pickle.loads(data[ends[3] : ends[4]]), data[ends[4] :]


def one_sentence(caught):
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


TWO = {"g_ema": {"a": torch.full((5,), 2.0), "b": torch.full((5,), 3.0)}}
FIVE = 8 + 5 * 4  # a legacy storage: its number of values, and the values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys, data: ([], b""), "lists 0 storages and its tensors need 2"),
        (lambda keys, data: (keys[:1], data[:FIVE]), "lists 1 storages and its tensors need 2"),
        (lambda keys, data: (keys[:1] * 2, data), "lists 2 storages"),
        (lambda keys, data: ([keys[0], "1"], data), "lists 2 storages"),
        (lambda keys, data: ({}, data), "list of its storages is missing"),
        (lambda keys, data: (keys, data[:-1]), "need .* bytes and it has"),
        (lambda keys, data: (keys, data + b"\0"), "need .* bytes and it has"),
        (lambda keys, data: (keys, b"\6" + data[1:]), "has another size than its tensors need"),
    ],
)
def test_a_legacy_file_without_all_its_storages_is_refused(change, message, tmp_path):
    # PyTorch would leave uninitialised memory in the place of a storage that is not listed.
    path = saved(tmp_path / "short.pt", TWO, zipped=False)
    head, keys, data = parts(path)
    keys, data = change(keys, data)
    path.write_bytes(head + pickle.dumps(keys, 2) + data)
    with pytest.raises(WeightsError, match=rf"'short\.pt' is truncated or damaged.*{message}") as caught:
        read_checkpoint(path)
    one_sentence(caught)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_tensor_cannot_make_its_storage_grow(zipped, tmp_path):
    # One value in the file; PyTorch would enlarge the storage to 4 x 5,000,000 bytes that come from nowhere.
    path = saved(tmp_path / "grows.pt", {"g_ema": {"a": torch.ones(1)}}, zipped)
    size, larger = b"K\x01\x85q", b"J" + struct.pack("<i", 5_000_000) + b"\x85q"
    if zipped:
        rezipped(path, lambda entries: [(name, data.replace(size, larger, 1)) for name, data in entries])
    else:
        path.write_bytes(path.read_bytes().replace(size, larger, 1))
    with pytest.raises(UnsafeCheckpointError, match="a tensor of more values than its storage") as caught:
        read_checkpoint(path)
    one_sentence(caught)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_storage_that_claims_more_than_the_file_has_is_refused_before_it_is_allocated(zipped, tmp_path):
    path = saved(tmp_path / "claims.pt", {"g_ema": {"a": torch.ones(1)}}, zipped)
    with zipfile.ZipFile(path) if zipped else contextlib.nullcontext() as archive:
        content = archive.read("claims/data.pkl") if zipped else path.read_bytes()
    device = content.index(b"cpu")
    larger = content[:device] + content[device:].replace(b"K\x01", b"\x8a\x06" + bytes(5) + b"\x40", 1)
    if zipped:
        rezipped(path, lambda old: [(name, larger if name.endswith(".pkl") else data) for name, data in old])
    else:
        path.write_bytes(larger)
    with pytest.raises(WeightsError, match=r"truncated or damaged \(.*need") as caught:
        read_checkpoint(path)
    one_sentence(caught)


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
BUILT = TENSOR + b"(" + STORAGE + b"K\0K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"


@pytest.mark.parametrize(
    "body",
    [
        BUILT + b")b",  # set_() would give it a storage that no file holds
        b"ctorch._utils\n_rebuild_parameter\nN\x89}\x87R",
        TENSOR + b"(" + BUILT + b"K\0K\x01\x85K\x01\x85\x89}tR",
        TENSOR + b"]" + STORAGE + b"aR",
        TENSOR + b"(" + STORAGE + b"K\0J\xff\xff\xff\xff\x85K\x01\x85\x89}tR",
        STORAGE.replace(b"X\x01\0\0\x000", b"X\x04\0\0\x00../0"),
        STORAGE.replace(b"K\x01t", b"J\xff\xff\xff\xfft"),
        STORAGE + STORAGE.replace(b"Float", b"Int") + b"\x86",
        b"K\1Q",
        b"ctorch\nFloatStorage\nK\1\x85R",
    ],
)
def test_a_tensor_that_is_built_in_another_way_than_pytorch_writes_is_refused(body, tmp_path):
    with pytest.raises(UnsafeCheckpointError, match="more than hold tensors and plain data") as caught:
        read_checkpoint(crafted(tmp_path / "odd.pt", body))
    one_sentence(caught)


EVIL = b"\x80\x02}N" + b"\x85" * 3 + b"Ns."
NOT_AS_WRITTEN = {
    "duplicate": lambda old: [*old, ("odd/data.pkl", EVIL)],
    "other case": lambda old: [*old, ("odd/DATA.PKL", EVIL)],
    "other case first": lambda old: [("odd/DATA.PKL", EVIL), *old],
    "other case alone": lambda old: [(name.replace("data.pkl", "Data.pkl"), data) for name, data in old],
    "other case of a storage": lambda old: [*old, ("odd/DATA/0", b"\0" * 20)],
    "other folder": lambda old: [*old, ("odd2/data.pkl", EVIL)],
    "other folder first": lambda old: [("ODD/data.pkl", EVIL), *old],
    "deeper": lambda old: [*old, ("odd/deep/data.pkl", EVIL)],
    "absolute": lambda old: [("/" + name, data) for name, data in old],
    "leads out": lambda old: [*old, ("odd/../../x", b"")],
    "leads out on Windows": lambda old: [*old, ("odd/..\\x", b"")],
}


@pytest.mark.parametrize("change", NOT_AS_WRITTEN.values(), ids=NOT_AS_WRITTEN)
def test_a_zip_file_that_two_readers_could_read_in_two_ways_is_refused(change, tmp_path):
    path = rezipped(saved(tmp_path / "odd.pt", TWO), change)
    with pytest.raises(UnsafeCheckpointError, match="not a zip file as PyTorch writes it") as caught:
        read_checkpoint(path)
    one_sentence(caught)


@pytest.mark.parametrize("tensors", [3, 4])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_pickle_that_only_pytorch_would_find_cannot_crash_python(tensors, first, tmp_path):
    # Asked for data.pkl, PyTorch finds DATA.PKL, depending on the order and number of the entries; a pickle
    # nested this deep overflows the C stack.
    deep = [("odd/DATA.PKL", b"\x80\x02}N" + b"\x85" * 3_000_000 + b"Ns.")]
    path = saved(tmp_path / "odd.pt", {"g_ema": {str(i): torch.ones(1) for i in range(tensors)}})
    rezipped(path, lambda old: deep + old if first else old + deep)
    with pytest.raises(UnsafeCheckpointError, match="not a zip file as PyTorch writes it"):
        read_checkpoint(path)


def test_bytes_before_a_zip_file_are_refused(tmp_path):
    path = saved(tmp_path / "odd.pt", TWO)
    path.write_bytes(b"PK\3\4" + bytes(60) + path.read_bytes())
    with pytest.raises((UnsafeCheckpointError, WeightsError)) as caught:
        read_checkpoint(path)
    one_sentence(caught)


def test_a_second_directory_behind_the_first_is_not_read_in_two_ways(tmp_path):
    # A whole other archive in the comment of this one: both readers may take either, but must take the same.
    first, second = saved(tmp_path / "a.pt", TWO), saved(tmp_path / "b.pt", {"g_ema": STATE})
    comment = second.read_bytes()
    data = first.read_bytes()
    end = struct.pack("<H", len(comment))
    first.write_bytes(data[:-2] + end + comment)
    with pytest.raises((UnsafeCheckpointError, WeightsError)) as caught:
        read_checkpoint(first)
    one_sentence(caught)


def test_a_zip_file_with_bytes_missing_in_its_middle_is_one_sentence(tmp_path):
    # Its directory then points before the beginning of the file, where no file can be read.
    path = saved(tmp_path / "cut.pt", TWO)
    data = path.read_bytes()
    path.write_bytes(data[:200] + data[240:])
    with pytest.raises(WeightsError, match="truncated or damaged") as caught:
        read_checkpoint(path)
    one_sentence(caught)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 0x01, "truncated or damaged"),  # flag bits: encrypted
        (46, 0xBF, "truncated or damaged"),  # the name: no UTF-8, with the flag that says so below
        (10, 0x63, "compressed"),
        (20, 0xFF, "truncated|more bytes"),
        (42, 0xFF, "truncated|damaged"),
    ],
)
def test_a_damaged_zip_directory_is_one_sentence(offset, value, message, tmp_path):
    path = saved(tmp_path / "bad.pt", TWO)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    if offset == 46:
        data[entry + 9] |= 0x08
    data[entry + offset] = value
    path.write_bytes(data)
    with pytest.raises((UnsafeCheckpointError, WeightsError), match=message) as caught:
        read_checkpoint(path)
    one_sentence(caught)


@pytest.mark.parametrize("body", [b"}%bNs", b"}X\x05\0\0\0g_ema}%bNss"])
def test_a_key_too_deep_to_be_written_out_is_one_sentence(body, tmp_path):
    path = crafted(tmp_path / "key.pt", body % (b"N" + b"\x85" * 30_000))
    with pytest.raises(WeightsError, match="a tuple") as caught:
        read_checkpoint(path)
    one_sentence(caught)


class OwnMethods:
    """Pickled as an ordered dict with attributes over its methods, which PyTorch's loader sets as given."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        methods = dict.fromkeys(("get", "items", "keys", "values"), torch.device("cpu"))
        return collections.OrderedDict, (), methods, None, iter(self.content.items())


def test_methods_that_a_pickle_replaced_are_never_called(tmp_path):
    namespace = argparse.Namespace(runs=OwnMethods({"dilations": [[1]]}))
    states = OwnMethods({"g_ema": OwnMethods(STATE)})
    content = OwnMethods({"state_dicts": states, "args": namespace, "iter": 3})
    container = read_checkpoint(saved(tmp_path / "own.pt", content))
    assert container.args == {"runs": {"dilations": [[1]]}}
    assert container.facts == {"iter": 3}
    assert torch.equal(container.network("g_ema")["input.input"], STATE["input.input"])
    assert read_checkpoint(saved(tmp_path / "bare.pt", OwnMethods(STATE))).layout == "bare state dict"


@pytest.mark.parametrize("attribute", ["X\x1b]0;title\x07", "\\x00", "a b", "X" * 100_000])
def test_a_name_is_printed_so_that_no_terminal_obeys_it(attribute, tmp_path):
    foreign = b"cmetadata\n" + attribute.encode() + b"\n)\x81"
    body = b"}(X\x05\0\0\0g_ema}X\x01\0\0\0a" + BUILT + b"s" + ARGS[2:] + foreign + b"u"
    path = crafted(tmp_path / "name.pt", body)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("name/data/0", bytes(4))
    with pytest.raises(UnsafeCheckpointError, match="its pickle names 'metadata") as caught:
        read_checkpoint(path)
    one_sentence(caught)
    assert len(str(caught.value)) < 600
    try:
        ignored = read_checkpoint(path, ignore_metadata=True).ignored
    except UnsafeCheckpointError as error:
        ignored = (str(error),)
    assert len(ignored) == 1
    assert ignored[0].isascii() and ignored[0].isprintable() and len(ignored[0]) < 400


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_that_share_or_leave_parts_of_a_storage_are_read(zipped, tmp_path):
    base = torch.arange(24.0)
    state = {
        "part": base[2:8].view(2, 3),
        "step": base[::4],
        "turned": base.view(4, 6).t(),
        "none": base[:0],
        "one": base[23],
        "half": torch.ones(3).half(),
        "number": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.empty(0, 3),
    }
    read = read_checkpoint(saved(tmp_path / "a.pt", {"g_ema": state}, zipped)).network("g_ema")
    assert all(
        torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in state.items()
    )

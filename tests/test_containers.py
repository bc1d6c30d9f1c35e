"""Reading original checkpoint files: every layout, and nothing that a hostile or damaged file could do."""

import argparse
import collections
import io
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conversion.containers import read_checkpoint
from stylenat_hub.errors import UnsafeCheckpointError, WeightsError

GOLDENS = Path(__file__).parent / "goldens"
LEGACY = GOLDENS / "stylenat_legacy_ffhq_style_64.pt"
STATE = {"input.input": torch.ones(1, 2, 4, 4)}


class Runs:
    """Pickled, it calls a function when it is read freely."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class EasyDict(dict):
    """A foreign dict, filled item by item."""


class EasyList(list):
    """A foreign list, filled item by item."""


def payload(kind, marker):
    import os

    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch {marker}"),
        "exec": Runs(exec, code),
        "eval": Runs(eval, code),
        "open": Runs(open, str(marker), "w"),
    }[kind]


NAMES = {"os.system": "system", "exec": "builtins.exec", "eval": "builtins.eval", "open": "io.open"}


def saved(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def crafted(path, body):
    """A checkpoint file whose pickle has this body (protocol 2, without its first and last opcode)."""
    saved(path, {})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, b"\x80\x02" + body + b"." if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("kind", NAMES)
def test_the_payloads_of_this_file_would_create_a_file_if_unpickled(kind, tmp_path):
    marker = tmp_path / "created"
    pickle.loads(pickle.dumps(payload(kind, marker)))
    assert marker.exists()


@pytest.mark.parametrize("ignore_metadata", [False, True])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_pickle_that_would_create_a_file_creates_none(kind, zipped, ignore_metadata, tmp_path):
    marker = tmp_path / "created"
    path = saved(tmp_path / "evil.pt", {"g_ema": STATE, "args": payload(kind, marker)}, zipped)
    if ignore_metadata and kind != "os.system":
        assert read_checkpoint(path, ignore_metadata=True).ignored == (NAMES[kind],)
    else:
        with pytest.raises(
            UnsafeCheckpointError, match=f"evil.pt.*nothing in it was executed.*{NAMES[kind]}"
        ):
            read_checkpoint(path, ignore_metadata=ignore_metadata)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_any_protocol_is_refused_and_runs_nothing(protocol, tmp_path):
    marker, path = tmp_path / "created", tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps(payload("open", marker), protocol))
    with pytest.raises(UnsafeCheckpointError, match=r"io\.open"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_zip_checkpoint_of_a_newer_pickle_protocol_runs_nothing(protocol, tmp_path):
    marker = tmp_path / "created"
    content = {"g_ema": STATE, "args": payload("exec", marker)}
    torch.save(content, tmp_path / "new.pt", pickle_protocol=protocol)
    with pytest.raises(UnsafeCheckpointError, match=r"builtins\.exec"):
        read_checkpoint(tmp_path / "new.pt")
    assert not marker.exists()


def test_more_of_torch_than_tensors_need_is_refused_by_name(tmp_path):
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(UnsafeCheckpointError, match=r"torch\._utils\._rebuild_sparse_tensor"):
        read_checkpoint(saved(tmp_path / "sparse.pt", {"g_ema": {"x": sparse}}))


def test_what_others_have_allowed_is_not_allowed_here_and_stays_allowed_for_them(tmp_path):
    path = saved(tmp_path / "foreign.pt", {"g_ema": STATE, "args": EasyDict(a=1)})
    with torch.serialization.safe_globals([EasyDict]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(UnsafeCheckpointError, match="EasyDict"):
            read_checkpoint(path)
        read_checkpoint(LEGACY)
        assert EasyDict in before
        assert set(torch.serialization.get_safe_globals()) == before


def test_a_class_that_others_have_allowed_does_not_run_in_place_of_its_stand_in(tmp_path, monkeypatch):
    marker = tmp_path / "created"
    kinds = []
    for number in range(8):
        touch = {"__module__": __name__, "__setstate__": lambda self, state: marker.touch()}
        kinds.append(type(f"Allowed{number}", (), touch))
        monkeypatch.setattr(sys.modules[__name__], f"Allowed{number}", kinds[-1], raising=False)
    values = [kind() for kind in kinds]
    for value in values:
        value.field = 1
    path = saved(tmp_path / "foreign.pt", {"g_ema": STATE, "args": values})
    with torch.serialization.safe_globals(kinds):
        assert len(read_checkpoint(path, ignore_metadata=True).ignored) == 8
    assert not marker.exists()


def test_a_state_cannot_replace_what_its_stand_in_is(tmp_path):
    fields = {
        "foreign_name": "omegaconf.dictconfig.DictConfig",
        "_content": {"stolen": 1},
        "state": 2,
        "kernels": [3],
    }
    args = argparse.Namespace(**fields)
    assert read_checkpoint(saved(tmp_path / "a.pt", {"g_ema": STATE, "args": args})).args == fields


def test_a_defaultdict_keeps_its_items_and_forgets_its_factory(tmp_path):
    args = collections.defaultdict(list, kernels=[[3], [7]])
    assert read_checkpoint(saved(tmp_path / "a.pt", {"g_ema": STATE, "args": args})).args == {
        "kernels": [[3], [7]]
    }


ARGS = b"}(X\x04\x00\x00\x00args"  # a dict with the key "args"; the value and `u` follow


def test_metadata_nested_without_end_is_refused_in_one_sentence(tmp_path):
    state = b"X\x05\x00\x00\x00g_ema}X\x01\x00\x00\x00xcollections\nOrderedDict\n)Rsu"
    deep = crafted(tmp_path / "deep.pt", ARGS + b"]" * 200_000 + b"a" * 199_999 + state)
    with pytest.raises((UnsafeCheckpointError, WeightsError)):
        read_checkpoint(deep)


def test_lists_of_lists_that_expand_to_millions_are_refused(tmp_path):
    laughs = [0] * 10
    for _ in range(9):
        laughs = [laughs] * 10
    with pytest.raises(UnsafeCheckpointError, match="nested or repeated without end"):
        read_checkpoint(saved(tmp_path / "laughs.pt", {"g_ema": STATE, "args": {"x": laughs}}))


def test_tuples_nested_deep_enough_to_crash_python_are_refused(tmp_path):
    # Without the limit, hashing this as a key overflows the C stack and kills the process.
    path = crafted(tmp_path / "tuples.pt", b"}N" + b"\x85" * 1_000_000 + b"Ns")
    with pytest.raises(UnsafeCheckpointError, match="nested or split beyond"):
        read_checkpoint(path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)
    with pytest.raises(UnsafeCheckpointError, match=r"'bomb'.*claims more values"):
        read_checkpoint(saved(tmp_path / "bomb.pt", {"g_ema": {"bomb": huge}}))


def test_a_zip_bomb_is_refused_before_it_expands(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(50_000_000))
    with pytest.raises(WeightsError, match="compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("part", [0.0001, 0.1, 0.5, 0.99, 0.99999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_one_sentence(part, zipped, tmp_path):
    path = saved(
        tmp_path / "cut.pt", {"g_ema": {"x": torch.ones(20_000)}, "args": argparse.Namespace(a=1)}, zipped
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(
        WeightsError, match=r"'cut\.pt' is (truncated|empty|not a PyTorch checkpoint)"
    ) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found(tmp_path):
    data = bytearray(LEGACY.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(WeightsError, match=r"'flipped\.pt' is damaged .*checksum"):
        read_checkpoint(tmp_path / "flipped.pt")


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("<html>not found</html>\n"), "is not a PyTorch checkpoint"),
        (lambda path: path.write_text("config\nvalue\n"), "is not a PyTorch checkpoint"),
        (lambda path: path.write_bytes(b"\x80\x02"), "is not a PyTorch checkpoint"),
        (lambda path: save_file(STATE, path), "is a safetensors file"),
        (other_zip, "is a zip file, but not one that PyTorch wrote"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (lambda path: torch.save({"model": {}, "epoch": 3}, path), "top-level keys are 'model', 'epoch'"),
        (lambda path: torch.save({"g_ema": {"x": 1}}, path), "maps names to tensors"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(write, message, tmp_path):
    path = tmp_path / "given.pt"
    write(path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_unknown_metadata_is_refused_by_name_and_readable_on_request(tmp_path):
    content = {
        "g_ema": STATE,
        "args": EasyDict(
            runs=EasyDict(generator={"kernels": EasyList([[3], [7]]), "dilations": [[1], [1, 2]]})
        ),
        "eval_info": {"fid": np.float64(2.05), "when": Path("x"), "best": 940_000, "array": np.ones(3)},
    }
    path = saved(tmp_path / "odd.pt", content)
    with pytest.raises(UnsafeCheckpointError, match=r"numpy.*EasyDict.*--ignore-metadata"):
        read_checkpoint(path)
    container = read_checkpoint(path, ignore_metadata=True)
    assert container.args == {"runs": {"generator": {"kernels": [[3], [7]], "dilations": [[1], [1, 2]]}}}
    assert container.facts["eval_info"]["best"] == 940_000
    assert torch.equal(container.network("g_ema")["input.input"], STATE["input.input"])
    assert any("EasyDict" in name for name in container.ignored)


def test_torch_types_that_torch_does_not_load_itself_are_metadata_too(tmp_path):
    content = {
        "g_ema": STATE,
        "args": {"version": torch.torch_version.TorchVersion("1.12"), "act": torch.nn.GELU()},
    }
    path = saved(tmp_path / "typed.pt", content)
    with pytest.raises(UnsafeCheckpointError, match=r"--ignore-metadata reads them"):
        read_checkpoint(path)
    container = read_checkpoint(path, ignore_metadata=True)
    assert torch.equal(container.network("g_ema")["input.input"], STATE["input.input"])


@pytest.mark.parametrize(
    "name", ["torch._utils._rebuild_qtensor", "posix.system", "torch.distributed.tensor.DTensor"]
)
def test_a_flag_that_would_not_help_is_not_advised(name, tmp_path):
    module, _, attribute = name.rpartition(".")
    (tmp_path / "bare.pt").write_bytes(f"c{module}\n{attribute}\n.".encode())
    for ignore in (False, True):
        with pytest.raises(UnsafeCheckpointError, match="save the checkpoint again without it") as caught:
            read_checkpoint(tmp_path / "bare.pt", ignore_metadata=ignore)
        assert "--ignore-metadata" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "layout", "networks"),
    [
        ({"g_ema": STATE}, "without recorded arguments", {"g_ema"}),
        ({"g": STATE, "args": argparse.Namespace()}, "legacy", {"g"}),
        ({"state_dicts": {"g": STATE, "d": STATE, "g_ema": STATE}}, "current", {"g", "d", "g_ema"}),
        (STATE, "bare state dict", {"g", "g_ema"}),
        ({f"module.{name}": value for name, value in STATE.items()}, "bare state dict", {"g", "g_ema"}),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_layout_is_read(content, layout, networks, zipped, tmp_path):
    container = read_checkpoint(saved(tmp_path / "a.pt", content, zipped))
    assert layout in container.layout
    assert set(container.networks) == networks
    assert all(list(state) == ["input.input"] for state in container.networks.values())


@pytest.mark.parametrize(
    ("name", "layout", "where"),
    [
        ("stylenat_legacy_ffhq_style_64", "legacy", ()),
        ("stylenat_hydra_church_style_64", "current", ("runs", "generator")),
        ("stylenat_mixed_first_public_32", "first public", ("runs", "generator")),
    ],
)
def test_the_recorded_checkpoints_give_weights_and_dilations(name, layout, where, tmp_path):
    container = read_checkpoint(GOLDENS / f"{name}.pt")
    args = container.args
    for key in where:
        args = args[key]
    assert layout in container.layout
    assert set(container.networks) == {"g", "d", "g_ema"}
    assert args["dilations"][:3] == [[1], [1], [1, 2]]
    assert container.ignored == ()
    with pytest.raises(WeightsError, match=r"no 'missing' weights \(it has 'g_ema', 'g', 'd'\)"):
        container.network("missing")


def test_no_foreign_class_is_imported_for_the_recorded_omegaconf_checkpoint():
    read_checkpoint(GOLDENS / "stylenat_mixed_first_public_32.pt")
    assert "omegaconf" not in sys.modules


def test_the_crafted_pickles_of_this_file_are_what_they_claim():
    body = b"\x80\x02}N" + b"\x85" * 3 + b"Ns."
    assert [code.name for code, _, _ in pickletools.genops(io.BytesIO(body))].count("TUPLE1") == 3

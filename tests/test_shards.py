"""Shards of pictures: what is in the files, that they are whole, and that another run is never mixed in."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch

from stylenat_hub import __version__
from stylenat_hub.errors import InputError
from stylenat_hub.locks import locked
from stylenat_hub.metrics import shards
from stylenat_hub.metrics.sampling import weights_hash, write_shards
from stylenat_hub.sources import open_source

OPTIONS = {"num": 7, "first_seed": 2**32 - 7, "shard_size": 3, "truncation_psi": 0.7, "progress": False}
SEEDS = range(2**32 - 7, 2**32)


def contents(folder):
    """Every file below a folder, by its path: its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def same(png, image):
    with PIL.Image.open(io.BytesIO(png)) as picture:
        return picture.mode == "RGB" and np.array_equal(np.asarray(picture), np.asarray(image))


@pytest.fixture(scope="module")
def expected(pipeline):
    return dict(zip(SEEDS, pipeline(SEEDS, truncation_psi=0.7).images, strict=True))


def write(pipeline, folder, **options):
    return write_shards(pipeline, folder, **{**OPTIONS, **options})


def test_folders_of_png(pipeline, expected, tmp_path):
    written = write(pipeline, tmp_path)
    assert (written.pictures, written.shards, written.before) == (7, 3, 0)
    files = contents(tmp_path)
    assert files.pop(".lock") == b"" and "manifest.json" in files
    names = [f"shard-{i // 3:06d}/seed{seed}.png" for i, seed in enumerate(SEEDS)]
    assert sorted(files) == ["manifest.json", *names]
    assert all(same(files[name], expected[seed]) for name, seed in zip(names, SEEDS, strict=True))
    with PIL.Image.open(tmp_path / names[1]) as picture:
        assert picture.text["seed"] == str(SEEDS[1]) and picture.text["model"] == "tiny"
        assert picture.text["truncation_psi"] == "0.7"


def test_zips_are_stored_and_training_reads_them(pipeline, expected, tmp_path):
    write(pipeline, tmp_path, format="zip")
    seen = []
    for path in sorted(tmp_path.glob("*.zip")):
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                assert member.compress_type == zipfile.ZIP_STORED and member.date_time[0] == 1980
                seen.append(member.filename)
                assert same(file.read(member), expected[int(member.filename[4:14])])
    assert seen == [f"seed{seed}.png" for seed in SEEDS]
    assert len(open_source(str(tmp_path / "shard-000000.zip"))) == 3


def test_webdataset_has_a_png_and_its_label_per_sample(pipeline, expected, tmp_path):
    write(pipeline, tmp_path, format="webdataset", num=4, first_seed=2**32 - 7)
    names = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                names.append(member.name)
                content = file.extractfile(member).read()
                seed = int(member.name[:10])
                if member.name.endswith(".png"):
                    assert same(content, expected[seed])
                else:
                    label = {"seed": seed, "model": "tiny", "truncation_psi": 0.7, "truncation_cutoff": None}
                    assert json.loads(content) == {**label, "version": f"stylenat_hub {__version__}"}
                assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)
    assert names == [f"{seed}.{kind}" for seed in list(SEEDS)[:4] for kind in ("png", "json")]
    write(pipeline, tmp_path / "small", format="webdataset", num=1, first_seed=1234)
    with tarfile.open(tmp_path / "small" / "shard-000000.tar") as file:
        assert file.getnames() == ["0000001234.png", "0000001234.json"]


def test_parquet_has_seeds_and_png(pipeline, expected, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(shards, "ROW_GROUP", 2)  # of a shard of 3
    write(pipeline, tmp_path, format="parquet")
    tables = [parquet.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))]
    assert [len(table) for table in tables] == [3, 3, 1]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["seed"] for row in rows] == list(SEEDS)
    assert all(same(row["image"], expected[row["seed"]]) for row in rows)
    metadata = tables[0].schema.metadata
    assert metadata[b"model"] == b"tiny" and metadata[b"truncation_psi"] == b"0.7"


def test_parquet_without_pyarrow(pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed: `pip install pyarrow`"):
        write(pipeline, tmp_path / "out", format="parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", shards.FORMATS)
def test_bytes_follow_from_the_manifest_alone(pipeline, tmp_path, format):
    """Neither the size of the batches nor an interruption changes one."""
    if format == "parquet":
        pytest.importorskip("pyarrow")
    write(pipeline, tmp_path / "whole", format=format, batch_size=8)
    write(pipeline, tmp_path / "again", format=format, batch_size=2)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "again") == whole
    (shard,) = (tmp_path / "again").glob("shard-000001*")
    shard.rename(tmp_path / "moved")
    written = write(pipeline, tmp_path / "again", format=format, batch_size=1)
    assert (written.shards, written.before) == (3, 2) and contents(tmp_path / "again") == whole


def test_the_manifest_says_what_run_it_is(pipeline, tmp_path):
    write(pipeline, tmp_path, format="zip", truncation_cutoff=2)
    stored = json.loads((tmp_path / "manifest.json").read_text())
    software = stored.pop("software")
    assert software["torch"] == torch.__version__ and software["stylenat_hub"] == __version__
    assert set(software) == {"stylenat_hub", "torch", "pillow", "zlib"}
    assert stored == {
        "model": "tiny",
        "weights": weights_hash(pipeline.generator),
        "truncation_psi": 0.7,
        "truncation_cutoff": 2,
        "dtype": "float32",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": None,
        "resolution": 32,
        "first_seed": 2**32 - 7,
        "num": 7,
        "format": "zip",
        "shard_size": 3,
        "version": 1,
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num": 6}, "num is 7 there and 6 now"),
        ({"first_seed": 0}, "first_seed is 4294967289 there and 0 now"),
        ({"shard_size": 4}, "shard_size is 3 there and 4 now"),
        ({"format": "webdataset"}, "format is 'zip' there and 'webdataset' now"),
        ({"truncation_psi": 0.5}, "truncation_psi is 0.7 there and 0.5 now"),
        ({"truncation_cutoff": 3}, "truncation_cutoff is None there and 3 now"),
    ],
)
def test_going_on_with_other_settings_is_refused(pipeline, tmp_path, change, says):
    write(pipeline, tmp_path, format="zip")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds another run: ") as caught:
        write(pipeline, tmp_path, **{"format": "zip", **change})
    assert says in str(caught.value) and contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("weights", "0" * 64, "weights is '0000"),
        ("model", "other", "model is 'other' there and 'tiny' now"),
        ("dtype", "bfloat16", "dtype is 'bfloat16' there"),
        ("threads", 99, r"go on with it (set OMP_NUM_THREADS=99 for every process)"),
        ("software", {"torch": "1.0"}, "software is {'torch': '1.0'} there"),
        ("added_later", 1, "added_later is 1 there and None now"),
    ],
)
def test_a_manifest_of_another_run(pipeline, tmp_path, name, value, says):
    write(pipeline, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(InputError, match="holds another run: ") as caught:
        write(pipeline, tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_manifest(pipeline, tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json' (cannot be read|is no manifest)"):
        write(pipeline, tmp_path)


def test_a_folder_with_other_things_is_left_alone(pipeline, tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds 'holiday\.png' and no manifest\.json"):
        write(pipeline, tmp_path)
    assert contents(tmp_path) == {"holiday.png": b"mine"}


def test_two_runs_at_once_are_refused(pipeline, tmp_path):
    pytest.importorskip("fcntl")
    with locked(tmp_path / "out"), pytest.raises(InputError, match="another run is writing into"):
        write(pipeline, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num": 0}, "num is 0; allowed: a whole number, 1 or more"),
        ({"num": 8}, "the seed 4294967296 is out of range"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"shard_size": 2.0}, "shard_size is 2.0"),
        ({"first_seed": -1}, "the seed -1 is out of range"),
        ({"format": "jpg"}, "format is 'jpg'; allowed: png, zip, parquet, webdataset"),
        ({"truncation_psi": float("nan")}, "truncation_psi is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_arguments_write_nothing(pipeline, tmp_path, change, says):
    with pytest.raises(InputError) as caught:
        write(pipeline, tmp_path / "out", **change)
    assert says in str(caught.value) and not (tmp_path / "out").exists()


def test_a_full_disk_keeps_whole_shards(pipeline, tmp_path, monkeypatch):
    add = tarfile.TarFile.addfile

    def full(file, member, *rest):
        if member.name == f"{SEEDS[4]}.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(file, member, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", full)
        with pytest.raises(InputError, match=f"cannot write {str(tmp_path)!r}: the disk is full"):
            write(pipeline, tmp_path, format="webdataset")
    assert sorted(contents(tmp_path)) == [".lock", "manifest.json", "shard-000000.tar"]
    assert not (tmp_path / ".unfinished").exists()
    assert write(pipeline, tmp_path, format="webdataset").before == 1


def test_a_folder_that_cannot_be_written(pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    for output, says in ((tmp_path / "file", "is a file; name a folder"), ("", "a path is empty")):
        with pytest.raises(InputError, match=says):
            write(pipeline, output)

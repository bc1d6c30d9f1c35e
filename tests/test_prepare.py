"""The zip of square pictures that `python -m training.prepare` writes."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import pytest
from drawings import (
    COUNT,
    drawing,
    encoded,
    files,
    originals,
    pictures,
    pngs,
    seen,
    write_folder,
    write_zip,
)
from typer.testing import CliRunner

import training.prepare
from stylenat_hub.errors import InputError
from training.data import open_source
from training.prepare import Report, app, prepare


@pytest.fixture
def folder(tmp_path) -> str:
    return write_folder(tmp_path / "photos", files())


def test_prepare_writes_what_training_reads(folder, tmp_path):
    report = prepare(folder, tmp_path / "a.zip", 8, workers=3, progress=False)
    assert report == Report(COUNT, ())
    source = open_source(str(tmp_path / "a.zip"))
    assert [source.label(i) for i in range(2)] == ["00000/img00000000.png", "00000/img00000001.png"]
    assert [np.asarray(source.image(i)).transpose(2, 0, 1).tobytes() for i in range(COUNT)] == originals()
    assert seen(pictures(str(tmp_path / "a.zip")), range(COUNT)) == seen(pictures(folder), range(COUNT))


def test_equal_pictures_give_equal_bytes(tmp_path):
    """Whatever they lie in, whatever they carry beside their pixels, and however many threads there are."""
    bare, rich = tmp_path / "bare", tmp_path / "rich"
    write_folder(bare, files())
    about = {"dpi": (300, 300), "icc_profile": b"profile"}
    rich_files = {name: encoded(drawing(i), **about) for i, name in enumerate(files())}
    write_folder(rich, rich_files)
    prepare(str(bare), tmp_path / "a.zip", 8, workers=1, progress=False)
    prepare(write_zip(tmp_path / "x", rich_files), tmp_path / "b.zip", 8, workers=3, progress=False)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_what_is_left_out_is_reported_by_name(tmp_path):
    extra = {"a/broken.png": b"", "a/small.png": pngs(1, (7, 9))[0]}
    place = write_folder(tmp_path / "photos", files() | extra)
    arguments = [place, "--output", str(tmp_path / "a.zip"), "--size", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and f"wrote {COUNT} pictures" in result.stdout
    assert "left out 2 pictures:\n  a/broken.png: it is empty\n  a/small.png: it is 7 x 9" in result.stderr
    assert len(open_source(str(tmp_path / "a.zip"))) == COUNT
    os.remove(tmp_path / "a.zip")
    result = CliRunner().invoke(app, [*arguments, "--strict"])
    assert result.exit_code == 1 and "a/broken.png" in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["photos"]
    report = prepare(place, tmp_path / "b.zip", 8, allow_upscaling=True, progress=False)
    assert report == Report(COUNT + 1, (("a/broken.png", "it is empty"),))


def test_a_limit(tmp_path):
    place = write_folder(tmp_path / "photos", files() | {"a/broken.png": b""})
    assert prepare(place, tmp_path / "a.zip", 8, limit=3, progress=False).written == 3
    assert len(open_source(str(tmp_path / "a.zip"))) == 3


def test_nothing_is_written_on_an_error(tmp_path, folder, monkeypatch):
    output = tmp_path / "a.zip"
    output.write_bytes(b"before")
    with pytest.raises(InputError, match="exists; name another output, or add --overwrite"):
        prepare(folder, output, 8, progress=False)
    with pytest.raises(InputError, match=f"none of {COUNT} pictures can be written; .*below"):
        prepare(folder, output, 64, overwrite=True, progress=False)
    monkeypatch.setattr(training.prepare, "_member", interrupted_at(3))
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, output, 8, overwrite=True, progress=False)
    assert output.read_bytes() == b"before" and sorted(os.listdir(tmp_path)) == ["a.zip", "photos"]


def interrupted_at(number: int):
    def member(asked: int) -> zipfile.ZipInfo:
        if asked == number:
            raise KeyboardInterrupt
        return zipfile.ZipInfo(str(asked))

    return member


def test_bad_arguments_of_prepare(tmp_path, folder):
    for options in ({"size": 0}, {"limit": 0}, {"workers": 0}, {"output": tmp_path / "folder"}):
        with pytest.raises(InputError, match=r"allowed: a \.zip, and numbers from 1"):
            prepare(folder, **{"output": tmp_path / "a.zip", "size": 8, **options})
    source = write_zip(tmp_path / "a.zip", files())
    with pytest.raises(InputError, match="is the source itself"):
        prepare(source, tmp_path / "a.zip", 8)
    assert len(open_source(source)) == COUNT

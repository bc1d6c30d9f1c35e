"""The drawn data set: equal numbers give equal scenes, different ones different scenes."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stylenat_hub.errors import InputError
from training.toy_churches import app, draw_church, write_churches


def test_a_scene_follows_from_its_number():
    first, again, other = (np.asarray(draw_church(number)) for number in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8


def test_a_size_is_the_same_scene():
    small, large = draw_church(7, 32), draw_church(7, 128).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(large)).mean() < 6


def test_the_second_style_is_a_dark_one():
    days = np.mean([np.asarray(draw_church(i, 32)).mean() for i in range(20)])
    nights = np.mean([np.asarray(draw_church(i, 32, "snow-night")).mean() for i in range(20)])
    assert nights < 0.7 * days


def test_scenes_vary():
    """Not one scene with small changes: pictures are far from their mean."""
    pictures = np.stack([np.asarray(draw_church(i, 32)) for i in range(64)]).astype(float)
    assert (pictures - pictures.mean(0)).std() > 30


def test_the_command_writes_a_zip(tmp_path):
    arguments = ["--output", str(tmp_path / "a.zip"), "--count", "5", "--size", "16", "--start", "10"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "wrote 5 pictures" in result.output
    write_churches(tmp_path / "b.zip", 5, 16, start=10, progress=False)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"00000/church{n:08d}.png" for n in range(10, 15)]
        picture = Image.open(io.BytesIO(archive.read("00000/church00000012.png")))
        assert np.array_equal(np.asarray(picture), np.asarray(draw_church(12, 16)))


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="style is 'rain'; allowed: day, snow-night"):
        draw_church(0, style="rain")
    with pytest.raises(InputError, match="size is 4"):
        draw_church(0, size=4)
    with pytest.raises(InputError, match=r"a \.zip"):
        write_churches(tmp_path / "folder", 1)
    result = CliRunner().invoke(app, ["--output", str(tmp_path / "x.zip"), "--style", "rain"])
    assert result.exit_code == 1 and result.output.count("\n") <= 2 and not list(tmp_path.iterdir())

"""`stylenat project`: what a user gets, sees and is told."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import PIL.Image
import pytest
from drawings import drawing
from safetensors import safe_open
from typer.testing import CliRunner

from stylenat_hub import cli
from stylenat_hub.errors import InputError
from stylenat_hub.latents import projection
from stylenat_hub.pipeline import GANPipeline

QUICK = ("--steps", "2", "--features", "pixels", "--device", "cpu")
WRITTEN = ["comparison.png", "projected.png", "target.png", "w.safetensors"]


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def pixels(path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def photo(tiny, tmp_path_factory):
    """What the model draws, wider than it is high and with an alpha channel."""
    picture = GANPipeline.from_pretrained(tiny)([3]).images[0]
    wide = PIL.Image.new("RGBA", (44, 32), (0, 0, 0, 0))
    wide.paste(picture, (6, 0))
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    wide.save(path)
    return path


def test_what_is_written_draws_the_picture_again(photo, tiny, tmp_path):
    folder = tmp_path / "out"
    done = run("project", photo, tiny, *QUICK, "--tune", 2, "--frames", 3, "--output", folder)
    assert done.exit_code == 0, done.output
    assert names(folder) == sorted([*WRITTEN, "frames", "tuned"])
    assert names(folder / "frames") == ["000.png", "001.png", "002.png"]
    assert done.stderr.count("notice: photo.png: ") == 1 and "32 x 32 of 44 x 32 px" in done.stderr
    assert done.stdout.startswith("photo.png: PSNR ") and f"in {folder}" in done.stdout

    again = [line.partition(": stylenat ")[2].split() for line in done.stdout.splitlines() if "again" in line]
    pictures = []
    for number, line in enumerate(again):
        drawn = tmp_path / f"again{number}"
        assert run(*line, "--output", drawn, "--device", "cpu").exit_code == 0
        pictures.append(pixels(drawn / "style000000.png"))
    assert len(pictures) == 2  # of the model, and of the tuned one
    assert np.array_equal(pictures[0], pixels(folder / "projected.png"))
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pixels(folder / "frames" / "000.png"), pictures[0])
    assert np.array_equal(pixels(folder / "frames" / "002.png"), pictures[0])

    target = pixels(photo)[:, 6:38]
    assert np.array_equal(pixels(folder / "target.png"), target)
    error = np.square(pictures[0].astype(float) - target).mean()
    assert f"PSNR {10 * np.log10(255**2 / error):.1f} dB" in done.stdout
    with safe_open(folder / "w.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["photo"] == "photo.png" and about["space"] == "w+" and about["steps"] == "2"
    with PIL.Image.open(folder / "projected.png") as image:
        assert image.text == about


def test_an_earlier_result_is_replaced_only_if_asked(photo, tiny, tmp_path):
    (tmp_path / "w.safetensors").write_text("earlier")
    refused = run("project", photo, tiny, *QUICK, "--output", tmp_path)
    assert refused.exit_code == 1 and "add --overwrite" in refused.stderr
    assert (tmp_path / "w.safetensors").read_text() == "earlier"
    done = run("project", photo, tiny, *QUICK, "--output", tmp_path, "--overwrite", "--space", "w")
    assert done.exit_code == 0 and names(tmp_path) == WRITTEN


def test_what_the_model_cannot_draw_is_said(tiny, tmp_path):
    drawing(0, (32, 32)).save(tmp_path / "noise.png")
    done = run("project", tmp_path / "noise.png", tiny, *QUICK, "--output", tmp_path / "out")
    assert done.exit_code == 0 and "cannot draw it" in done.stdout and names(tmp_path / "out") == WRITTEN


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--space", "z"), "allowed: w, w+"),
        (("--features", "vgg"), "there are no features 'vgg'"),
        (("--video", "way.avi"), "allowed endings"),
    ],
)
def test_a_wrong_option_writes_nothing(options, says, photo, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stylenat_hub.video", video := types.SimpleNamespace())
    video.check_video = lambda path, fps: (_ for _ in ()).throw(InputError("allowed endings: .mp4"))
    done = run("project", photo, tiny, *QUICK, *options, "--output", tmp_path / "out")
    assert done.exit_code == 1 and says in done.stderr and not (tmp_path / "out").exists()


def test_a_photo_that_is_none_writes_nothing(tiny, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name, says in (("text.png", "not a picture"), ("nothing.png", "there is no file")):
        done = run("project", tmp_path / name, tiny, *QUICK, "--output", tmp_path / "out")
        assert done.exit_code == 1 and says in done.stderr and not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(photo, tiny, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(projection._Search, "_descend", stop)
    done = run("project", photo, tiny, *QUICK, "--output", tmp_path / "out")
    assert done.exit_code == 130 or done.exit_code == 1
    assert "interrupted" in done.stderr and names(tmp_path) == []


def test_the_video_shows_the_target_and_the_way(photo, tiny, tmp_path, monkeypatch):
    written = []

    def write_video(frames, path, fps):
        written.append((list(frames), path, fps))

    stub = types.SimpleNamespace(check_video=lambda path, fps: path, write_video=write_video)
    monkeypatch.setitem(sys.modules, "stylenat_hub.video", stub)
    folder = tmp_path / "out"
    done = run("project", photo, tiny, *QUICK, "--output", folder, "--video", tmp_path / "way.mp4")
    assert done.exit_code == 0 and f"wrote {tmp_path / 'way.mp4'}" in done.stdout
    ((frames, path, fps),) = written
    assert len(frames) == 120 and frames[0].size == (64, 32) and fps == 30 and path.name == "way.mp4"
    target, last = np.split(np.asarray(frames[-1]), 2, axis=1)
    assert np.array_equal(target, pixels(folder / "target.png"))
    assert np.array_equal(last, pixels(folder / "projected.png"))
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[-1]))

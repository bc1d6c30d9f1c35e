"""`stylenat project`: what a user gets, sees and is told."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
from drawings import drawing
from safetensors import safe_open
from small_models import tiny_generator
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

    again = [
        line.partition(": stylenat ")[2].split() for line in done.stdout.splitlines() if "--styles" in line
    ]
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
    near = [f"{10 * np.log10(255**2 / np.square(p.astype(float) - target).mean()):.1f} dB" for p in pictures]
    assert f"photo.png: PSNR {near[0]}, tuned {near[1]}, in {folder}" in done.stdout
    assert f"with the tuned model: stylenat generate {folder / 'tuned'} --styles" in done.stdout
    with safe_open(folder / "w.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["photo"] == "photo.png" and about["space"] == "w+" and about["steps"] == "2"
    with PIL.Image.open(folder / "projected.png") as image:
        assert image.text == {name: about[name] for name in about if name not in ("weights", "dtype")}
    assert len(about["weights"]) == 2  # of the model, and of the tuned one


def test_an_earlier_result_is_replaced_only_if_asked(photo, tiny, tmp_path):
    (tmp_path / "w.safetensors").write_text("earlier")
    refused = run("project", photo, tiny, *QUICK, "--output", tmp_path)
    assert refused.exit_code == 1 and "add --overwrite" in refused.stderr
    assert (tmp_path / "w.safetensors").read_text() == "earlier"
    done = run("project", photo, tiny, *QUICK, "--output", tmp_path, "--overwrite", "--space", "w")
    assert done.exit_code == 0 and names(tmp_path) == WRITTEN


def test_another_picture_is_called_one(tiny, tmp_path):
    drawing(0, (32, 32)).save(tmp_path / "noise.png")
    done = run("project", tmp_path / "noise.png", tiny, *QUICK, "--output", tmp_path / "out")
    assert done.exit_code == 0 and names(tmp_path / "out") == WRITTEN
    says = "below 15 dB it is another picture: more --steps may help, or the model cannot draw it"
    assert says in done.stdout.splitlines()


def test_a_model_with_one_style_is_projected_into_w(photo, tmp_path):
    GANPipeline(tiny_generator("hit")).save_pretrained(tmp_path / "hit")
    done = run("project", photo, tmp_path / "hit", *QUICK, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    with safe_open(tmp_path / "out" / "w.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["space"] == "w"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--space", "z"), "is not one of 'w', 'w+'"),
        (("--features", "vgg"), "there are no features 'vgg'"),
        (("--steps", "2000000"), "steps is 2000000; allowed: a whole number from 1 to 1,000,000"),
        (("--video", "way.avi"), "allowed endings"),
    ],
)
def test_a_wrong_option_writes_nothing_and_loads_no_model(options, says, photo, tmp_path):
    done = run("project", photo, tmp_path / "no model", *QUICK, *options, "--output", tmp_path / "out")
    assert done.exit_code in (1, 2) and says in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_video_never_replaces_the_photo(linked, tmp_path):
    photo = tmp_path / "p.gif"
    drawing(0, (32, 32)).save(photo)
    before, video = photo.read_bytes(), tmp_path / "link.gif" if linked else photo
    if linked:
        video.symlink_to(photo)
    done = run("project", photo, *QUICK, "--video", video, "--output", tmp_path / "out")
    assert done.exit_code == 1 and "would replace the photo itself; name another" in done.stderr
    assert photo.read_bytes() == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "video", "says"),
    [
        ("out", "out/way.gif", "name one beside it, such as out.gif"),
        ("out", "out/videos/way.gif", "name one beside it, such as out.gif"),
        ("way.gif", "way.gif", "would lie in the output folder"),
        ("way.gif/out", "way.gif", "would lie in the video"),
    ],
)
def test_a_video_lies_beside_the_folder(output, video, says, photo, tmp_path):
    """In it, it would be what `--overwrite` takes for something else than an earlier result."""
    done = run("project", photo, *QUICK, "--output", tmp_path / output, "--video", tmp_path / video)
    assert done.exit_code == 1 and says in done.stderr and names(tmp_path) == []


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


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_the_video_shows_the_target_and_the_way(ending, photo, tiny, tmp_path):
    folder, video = tmp_path / "out", tmp_path / f"way{ending}"
    done = run("project", photo, tiny, *QUICK, "--output", folder, "--video", video)
    assert done.exit_code == 0 and f"wrote {video}" in done.stdout, done.output
    with PIL.Image.open(video) as image:
        assert image.size == (512, 256)  # 64 x 32, eight times as large
        label = image.info["comment"].decode() if ending == ".gif" else image.getexif()[0x010E]
        frames, lasting = [], 0
        for frame in PIL.ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB"), float))
            lasting += frame.info["duration"]
    assert "photo: photo.png" in label and "space: w+" in label and "psnr: " in label
    assert lasting == pytest.approx(4000, abs=20)
    target, last = np.split(frames[-1][4::8, 4::8], 2, axis=1)
    for shown, name in ((target, "target.png"), (last, "projected.png")):
        assert np.abs(shown - pixels(folder / name)).mean() < 8  # few colours, or lossy
    assert np.abs(frames[0] - frames[-1]).mean() > 0.5


def test_a_video_that_fails_leaves_the_rest(photo, tiny, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise InputError("the disk is full")

    monkeypatch.setattr("stylenat_hub.video.write_video", fail)
    folder = tmp_path / "out"
    done = run("project", photo, tiny, *QUICK, "--output", folder, "--video", tmp_path / "way.gif")
    assert done.exit_code == 1 and f"the disk is full; the other files are in '{folder}'" in done.stderr
    assert names(folder) == WRITTEN

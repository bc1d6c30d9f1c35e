"""Videos: what comes back out of a file, what is refused, and that a failure leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import weakref

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest

from stylenat_hub import video
from stylenat_hub.errors import InputError

ENDINGS = (".mp4", ".gif", ".webp")


def frames(count=7, size=(32, 32)):
    """A bright square that moves over a gradient: each frame differs from every other."""
    width, height = size
    for number in range(count):
        array = np.zeros((height, width, 3), np.uint8)
        array[..., 0] = np.linspace(30, 200, width)
        array[..., 2] = np.linspace(200, 30, height)[:, None]
        array[8:16, 2 * number : 2 * number + 8] = (240, 200, 40)
        yield PIL.Image.fromarray(array)


def decoded(path):
    """The frames [n, H, W, 3] and what ffmpeg says of the file."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]), about


def reopened(path):
    """The frames [n, H, W, 3], how many ms each stays, and the image."""
    found, stays = [], []
    with PIL.Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            found.append(np.asarray(image.convert("RGB")))
            stays.append(image.info["duration"])
    return np.stack(found), stays, image


def enlarged(count, size=(32, 32), factor=8):
    return np.stack([np.asarray(f).repeat(factor, 0).repeat(factor, 1) for f in frames(count, size)])


def error(found, wanted):
    """How far pictures are from those wanted, on average, in steps of 255."""
    return np.abs(found.astype(float) - wanted).mean()


@pytest.fixture
def processes(monkeypatch):
    """What was started."""
    started, real = [], subprocess.Popen

    def popen(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(video.subprocess, "Popen", popen)
    return started


def test_an_mp4_has_the_pictures_their_rate_and_its_label(tmp_path):
    about = {"title": "a square = moves", "model": "none", "seeds": "1,2"}
    written = video.write_video(frames(), tmp_path / "a.mp4", 12.5, about=about)
    assert (written.frames, written.size) == (7, (256, 256))
    found, said = decoded(tmp_path / "a.mp4")
    assert found.shape == (7, 256, 256, 3)
    assert said["fps"] == 12.5
    assert said["codec"] == "h264"
    assert said["pix_fmt"].startswith("yuv420p(tv, bt709")
    assert error(found, enlarged(7)) < 4
    assert all(error(found[k], enlarged(7)[k]) < 0.5 * error(found[k], enlarged(7)[k - 1]) for k in range(7))
    content = (tmp_path / "a.mp4").read_bytes()
    assert b"a square = moves" in content and b"model: none; seeds: 1,2" in content
    assert content.index(b"moov") < content.index(b"mdat")  # so that it plays while it loads


def test_colours_of_an_mp4_are_those_of_the_pictures(tmp_path):
    wanted = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    video.write_video([PIL.Image.new("RGB", (256, 256), colour) for colour in wanted], tmp_path / "a.mp4")
    found, _ = decoded(tmp_path / "a.mp4")
    assert np.abs(found[:, 128, 128].astype(int) - np.array(wanted)).max() <= 6


def test_odd_sides_are_made_even_for_an_mp4_alone(tmp_path):
    wanted = enlarged(2, (301, 299), 1)
    sizes = [video.write_video(frames(2, (301, 299)), tmp_path / f"a{e}").size for e in ENDINGS]
    assert sizes == [(302, 300), (301, 299), (301, 299)]
    found, _ = decoded(tmp_path / "a.mp4")
    assert found.shape == (2, 300, 302, 3)
    assert error(found[:, :299, :301], wanted) < 4
    assert error(found[:, 299, :301], wanted[:, 298]) < 6  # not black


@pytest.mark.parametrize(("ending", "near"), [(".gif", 2.0), (".webp", 3.0)])
def test_a_gif_and_a_webp_have_the_pictures_for_ever(tmp_path, ending, near):
    written = video.write_video(frames(), tmp_path / f"a{ending}", 30, about={"model": "none"})
    found, stays, image = reopened(tmp_path / f"a{ending}")
    assert (written.frames, written.size, found.shape) == (7, (256, 256), (7, 256, 256, 3))
    assert image.info["loop"] == 0
    assert sum(stays) == pytest.approx(7000 / 30, abs=5)
    assert max(stays) - min(stays) <= (10 if ending == ".gif" else 1)
    assert error(found, enlarged(7)) < near
    assert b"model: none" in (tmp_path / f"a{ending}").read_bytes()


def test_a_lossless_webp_has_the_pictures_to_the_bit(tmp_path):
    video.write_video(frames(), tmp_path / "a.WebP", lossless=True)
    assert (reopened(tmp_path / "a.WebP")[0] == enlarged(7)).all()


def drifting(count=24):
    """Two textures that pass slowly into each other: each step is as large as its neighbours."""
    first, second = np.random.default_rng(0).uniform(-60, 60, (2, 32, 32, 3))
    for turn in np.linspace(0, 2 * np.pi / 5, count):
        texture = 128 + np.cos(turn) * first + np.sin(turn) * second
        yield PIL.Image.fromarray(texture.clip(0, 255).astype(np.uint8))


def steps(path):
    """How much changes from each frame to the next."""
    found = reopened(path)[0].astype(float)
    return np.abs(np.diff(found, axis=0)).mean(axis=(1, 2, 3))


def test_a_lossy_webp_moves_as_evenly_as_the_pictures(tmp_path):
    """Without frames that jump, as those do that begin anew after errors have gathered."""
    for name, lossless in (("exact", True), ("lossy", False)):
        video.write_video(drifting(), tmp_path / f"{name}.webp", lossless=lossless)
    wanted, found = steps(tmp_path / "exact.webp"), steps(tmp_path / "lossy.webp")
    assert wanted.max() < 1.2 * np.median(wanted)
    assert found.max() < 1.2 * np.median(found), found.round(2)


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_picture_and_small_ones_as_they_are(tmp_path, ending):
    written = video.write_video(frames(1), tmp_path / f"a{ending}", smallest=1)
    assert (written.frames, written.size) == (1, (32, 32))
    found = decoded(tmp_path / "a.mp4")[0][0] if ending == ".mp4" else PIL.Image.open(written.path)
    assert np.asarray(found).shape[:2] == (32, 32)


def test_an_mp4_is_written_while_it_is_drawn(tmp_path):
    """A frame is gone when the next one is asked for: any number of them fits into memory."""
    alive = []

    def watched():
        for frame in frames(6):
            alive.append(weakref.ref(frame))
            assert sum(one() is not None for one in alive) <= 3
            yield frame

    assert video.write_video(watched(), tmp_path / "a.mp4").frames == 6


def failing(what):
    yield from frames(3)
    raise what


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("what", [ValueError("drawing failed"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_failure_leaves_the_old_file_and_no_process(tmp_path, processes, ending, what):
    (tmp_path / f"a{ending}").write_text("old")
    with pytest.raises(type(what)):
        video.write_video(failing(what), tmp_path / f"a{ending}")
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]
    assert (tmp_path / f"a{ending}").read_text() == "old"
    assert len(processes) == (ending == ".mp4")
    assert all(process.returncode is not None for process in processes)


def test_what_ffmpeg_says_is_told(tmp_path, processes, monkeypatch):
    """A stand-in that reads a little, complains and ends, while pictures still come."""
    code = "import sys; sys.stdin.buffer.read(9); sys.exit('No space left\\non device')"
    monkeypatch.setattr(video, "_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(InputError, match="ffmpeg could not write the video: No space left on device"):
        video.write_video(frames(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
    assert [process.returncode for process in processes] == [1]


def test_ffmpeg_that_ends_early_without_a_word_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_command", lambda *_: [sys.executable, "-c", ""])
    with pytest.raises(InputError, match="no details"):
        video.write_video(frames(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_without_imageio_ffmpeg_only_an_mp4_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r'pip install "stylenat-hub\[video\]"; \.gif and \.webp go without'):
        video.check_video(tmp_path / "a.mp4")
    assert video.write_video(frames(2), tmp_path / "a.gif").frames == 2
    assert video.write_video(frames(2), tmp_path / "a.webp").frames == 2


@pytest.mark.parametrize("name", ["a.avi", "a", "mp4", ".mp4", "a.mp4.png"])
def test_other_endings_are_refused_with_those_allowed(tmp_path, name):
    with pytest.raises(InputError, match=r"allowed endings: \.mp4, \.gif, \.webp"):
        video.check_video(tmp_path / name)


@pytest.mark.parametrize(("ending", "most"), [(".mp4", 120), (".gif", 50), (".webp", 90)])
def test_fps_has_bounds(tmp_path, ending, most):
    for fps in (1, 29.97, most):
        video.check_video(tmp_path / f"a{ending}", fps)
    for fps in (0, 0.5, most + 1, -1, float("nan"), float("inf"), True, "30"):
        with pytest.raises(InputError, match=f"from 1 to {most} pictures per second"):
            video.check_video(tmp_path / f"a{ending}", fps)


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "a.gif").mkdir()
    with pytest.raises(InputError, match="a folder is there"):
        video.check_video(tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name a folder"):
        video.check_video(tmp_path / "file" / "a.gif")


def test_more_than_fits_into_memory_is_refused_but_not_as_an_mp4(tmp_path):
    for ending in (".gif", ".webp"):
        assert video.check_length(f"a{ending}", (1024, 1024), 286) == (1024, 1024)
        with pytest.raises(InputError, match=r"allowed: 286 of this size; ask for fewer, or name a \.mp4"):
            video.check_length(f"a{ending}", (1024, 1024), 287)
    assert video.check_length("a.mp4", (1024, 1024), 10**6) == (1024, 1024)
    with pytest.raises(InputError, match="allowed: sides up to 8192"):
        video.check_length("a.mp4", (8194, 256), 1)


def test_pictures_stop_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(video.KINDS, ".gif", video.Kind(50, 5 * 256 * 256, tick=10))
    with pytest.raises(InputError, match="6 frames of 256 x 256 pixels are too many"):
        video.write_video(frames(9), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_pictures_must_be_there_and_of_one_size(tmp_path, ending):
    with pytest.raises(InputError, match="no pictures"):
        video.write_video([], tmp_path / f"a{ending}")
    mixed = [PIL.Image.new("RGB", (32, 32)), PIL.Image.new("RGB", (32, 34))]
    with pytest.raises(InputError, match="frame 2 is 32 x 34 pixels and the first is 32 x 32"):
        video.write_video(mixed, tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []


def test_an_mp4_of_many_seeds_says_as_much_as_fits(tmp_path):
    seeds = ",".join(map(str, range(100_000)))
    written = video.write_video(frames(2), tmp_path / "a.mp4", 30, about={"model": "tiny", "seeds": seeds})
    data = written.path.read_bytes()
    assert b"seeds: 0,1,2," in data and b"99998,99999" in data and len(seeds) > 500_000 > len(data)

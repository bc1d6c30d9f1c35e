"""Travel without a page: the video is the package's path, is bounded, can be stopped, and leaves nothing."""

from __future__ import annotations

import os

import PIL.Image
import pytest
from small_space import TOY, run, same, small_engine, toy_pipeline

from studio import steering, travel
from stylenat_hub import video
from stylenat_hub.errors import InputError, StyleNATHubError
from stylenat_hub.latents import StylePath, draw_paths
from stylenat_hub.pipeline import MAX_SEED
from stylenat_hub.registry import FAMILIES


@pytest.fixture(scope="module")
def engine():
    made = small_engine()
    yield made
    made.scratch.close()


@pytest.fixture(scope="module")
def toy():
    return toy_pipeline()


def film(engine, *arguments, **options):
    *before, found = travel.travel(engine, *arguments, **options)
    return before, found


def frames_of(path):
    with PIL.Image.open(path) as moving:
        for number in range(moving.n_frames):
            moving.seek(number)
            yield moving.convert("RGB")


@pytest.fixture
def captured(monkeypatch):
    """The frames that were given to be written, video by video."""
    seen, write = [], video.write_video

    def keep(frames, *arguments, **options):
        seen.append([frame.copy() for frame in frames])
        return write(seen[-1], *arguments, **options)

    monkeypatch.setattr(video, "write_video", keep)
    return seen


@pytest.mark.parametrize("kind", ["smooth", "slerp"])
def test_a_video_is_the_path_and_its_code_repeats_it(engine, toy, captured, tmp_path, monkeypatch, kind):
    pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    heard = []
    before, found = film(engine, TOY, "1, 5;9", 24, kind, 12, 0.7, told=lambda *what: heard.append(what))
    path = StylePath(toy, [1, 5, 9], 24, kind, truncation_psi=0.7)
    assert all(map(same, captured[0], draw_paths(toy, [path]))) and len(captured[0]) == found.frames == 24
    run(found.code, tmp_path, monkeypatch)
    assert all(map(same, *captured)) and os.listdir(tmp_path) == [found.video.name]
    assert found.video.suffix == ".mp4" and found.video.stat().st_size > 5000
    assert [one.name for one in found.video.parent.iterdir()] == [found.video.name]  # the frames are gone
    assert [seed for seed, _ in found.keys] == [1, 5, 9]
    for place, (seed, picture) in zip((0, 8, 16), found.keys, strict=True):
        assert same(picture, captured[0][place]) and same(picture, steering.source(engine, TOY, seed, 0.7))
    assert before[0].keys == found.keys and before[1:] == [None] * 24
    done = [count for count, of, _ in heard if of == 24]
    assert done == list(range(25))


def test_without_ffmpeg_it_is_a_webp(engine, monkeypatch):
    def missing():
        raise InputError("no ffmpeg")

    monkeypatch.setattr(video, "_ffmpeg", missing)
    _, found = film(engine, TOY, "1 5", 24, "lerp", 12, 0.7)
    assert found.video.suffix == ".webp" and len(list(frames_of(found.video))) == 24
    assert 'travel.webp", fps=12' in found.code
    monkeypatch.setattr(travel, "FEWER_PIXELS", 30 * video.SMALLEST**2)
    with pytest.raises(InputError, match="allowed: up to 30"):
        film(engine, TOY, "1 5", 31, "lerp", 12, 0.7)


def test_who_stops_leaves_nothing(engine):
    before = set(engine.scratch.root.rglob("*.*"))
    going = travel.travel(engine, TOY, "1, 2", 24, "lerp", 12, 0.7)
    for _ in range(5):
        next(going)
    assert set(engine.scratch.root.rglob("*.png")) - before  # it was at work
    going.close()
    assert set(engine.scratch.root.rglob("*.*")) == before


def test_what_takes_too_long_is_refused_after_one_frame(engine, monkeypatch):
    drawn = []

    def slow(pipeline, ws):
        drawn.append(len(ws))
        return pipeline.draw(ws), 2.0

    monkeypatch.setattr(travel, "drawn_in", slow)
    monkeypatch.setattr(travel, "LONGEST", 120.0)
    with pytest.raises(InputError, match=r"240 frames take about 8\.0 minutes.*up to 60 frames"):
        film(engine, TOY, "1, 2", 240, "lerp", 12, 0.7)
    assert drawn == [1]
    monkeypatch.setattr(travel, "LONGEST", 20.0)
    with pytest.raises(InputError, match="smaller model"):
        film(engine, TOY, "1, 2", 24, "lerp", 12, 0.7)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_travels(engine, family):
    kinds = travel.kinds(engine, family)
    assert "slerp" in kinds and (len(kinds) == 3) == (not engine.use(family).generator.styles_are_latents)
    _, found = film(engine, family, "0,1", 24, kinds[0], 30, 1.0)
    assert found.video.is_file()
    for kind in {"smooth", "lerp", "slerp"} - {*kinds}:
        with pytest.raises(InputError, match="the path is"):
            film(engine, family, "0,1", 24, kind, 30, 1.0)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1, 5, 9", [1, 5, 9]), (" 1 5,9, ", [1, 5, 9]), ("3,3", [3, 3]), (f"0,{MAX_SEED}", [0, MAX_SEED])],
)
def test_key_seeds(text, seeds):
    assert travel.key_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1,,", "1,-2", "1,2.5", "one,two", f"1,{MAX_SEED + 1}", "1,99999999999", "1-9", "1,٣"),
        *(",".join("1" * 13), "1," * 400, None, 5, ["1", "2"], "1,<script>alert(1)</script>", "1\x00,2"),
    ],
)
def test_other_key_seeds_are_refused(text):
    with pytest.raises(InputError, match="the key seeds are"):
        travel.key_seeds(text)


GOOD = [TOY, "1,2", 24, "lerp", 12, 0.7]
WRONG = [
    (0, "nobody/nothing", "does not offer"),
    (2, 23, "the number of frames is 23"),
    (2, 1e9, "the number of frames is"),
    (2, 30.5, "the number of frames is 30.5"),
    (3, "warp", "the path is 'warp'"),
    (3, None, "the path is None"),
    (4, 0, "the speed is 0"),
    (4, float("inf"), "the speed is inf"),
    (5, 9, "the truncation is 9"),
]


@pytest.mark.parametrize(("place", "value", "says"), WRONG, ids=[w[2] for w in WRONG])
def test_other_input_is_refused(engine, place, value, says):
    files = set(engine.scratch.root.rglob("*"))
    with pytest.raises(StyleNATHubError, match=says):
        next(travel.travel(engine, *GOOD[:place], value, *GOOD[place + 1 :]))
    assert set(engine.scratch.root.rglob("*")) == files

"""Paths through seeds: their keys, their ends, how evenly they go, for every family; and `interpolate`."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest
import torch
from commands import ONE_THREAD, ROOT, here, wait_for
from small_models import tiny_generator

from stylenat_hub import cli
from stylenat_hub.errors import InputError
from stylenat_hub.latents.paths import KINDS, StylePath, check_cells, draw_paths, frame_size, lerp, slerp
from stylenat_hub.pipeline import GANPipeline, latents
from stylenat_hub.registry import FAMILIES

CENTRES = 3


@cache
def small(family):
    """A family's tiny pipeline. Tests must not change it."""
    return GANPipeline(tiny_generator(family))


def kinds(family):
    return ("slerp",) if FAMILIES[family].generator.styles_are_latents else KINDS


ALL = [(family, kind) for family in FAMILIES for kind in kinds(family)]
STYLED = [family for family in FAMILIES if len(kinds(family)) > 1]


def steps(ws):
    """How far each frame of a loop is from the next, the last one from the first."""
    return (torch.roll(ws, -1, 0) - ws).flatten(1).norm(dim=1)


def test_slerp_changes_angle_and_length_evenly_and_ends_exactly():
    chance = torch.Generator().manual_seed(0)
    a, b = (length * torch.randn(4, 512, generator=chance) for length in (3, 1))
    t = torch.linspace(0, 1, 9)[:, None, None]
    path = slerp(a, b, t)
    assert path.dtype == torch.float32
    for dtype in (torch.float16, torch.float32, torch.float64):
        ends = slerp(a.to(dtype), b.to(dtype), t)
        assert torch.equal(ends[0], a.to(dtype)) and torch.equal(ends[-1], b.to(dtype))
    unit = torch.nn.functional.normalize(path.double(), dim=-1)
    angles = (unit[1:] * unit[:-1]).sum(-1).acos()
    assert torch.allclose(angles, angles[:1].expand_as(angles), rtol=1e-4)
    assert torch.allclose(path.norm(dim=-1), torch.lerp(a.norm(dim=-1), b.norm(dim=-1), t[..., 0]), rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, -2.5, 1 + 1e-7, -1 - 1e-7, 0.0])
def test_slerp_of_parallel_and_opposite_latents_is_finite_and_keeps_its_length(factor):
    a = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 11)[:, None, None]
    path = slerp(a, factor * a, t)
    assert path.isfinite().all() and slerp(factor * a, a, t).isfinite().all()
    if factor:
        wanted = torch.lerp(a.norm(dim=-1), abs(factor) * a.norm(dim=-1), t[..., 0])
        assert torch.allclose(path.norm(dim=-1), wanted, rtol=1e-5)
    if factor < 0:  # half way it is at a right angle to both
        assert (path[5] * a).sum(-1).abs().max() < 1e-3


def test_lerp_ends_exactly_in_every_type():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a, b = torch.randn(5, dtype=dtype), 1e3 * torch.randn(5, dtype=dtype)
        assert torch.equal(lerp(a, b, 0), a) and torch.equal(lerp(a, b, 1.0), b)


@pytest.mark.parametrize(("family", "kind"), ALL)
@pytest.mark.parametrize("closed", [True, False], ids=["loop", "open"])
@pytest.mark.parametrize("psi", [1.0, 0.6])
def test_frames_on_keys_are_the_seeds_pictures_to_the_bit(family, kind, closed, psi):
    seeds, pipeline = [7, 1, 4], small(family)
    centres = pipeline.styles(range(90, 90 + CENTRES))[:, 0]
    for options in ({}, {"truncation_cutoff": 1}, {"truncation_centers": centres}):
        options["truncation_psi"] = psi
        path = StylePath(pipeline, seeds, 12 if closed else 9, kind, closed=closed, **options)
        ws = path.styles()
        assert ws.shape == (len(path), pipeline.generator.num_ws, pipeline.generator.w_dim)
        assert torch.equal(ws[::4], pipeline.styles(seeds, **options))
        assert ws.isfinite().all()
    drawn = list(draw_paths(pipeline, [StylePath(pipeline, seeds, 3, kind, truncation_psi=psi)]))
    wanted = pipeline(seeds, truncation_psi=psi).images
    assert all(np.array_equal(one, other) for one, other in zip(drawn, wanted, strict=True))


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_the_last_frame_of_a_loop_continues_into_the_first(family, kind):
    """As far as any other frame, and all frames differ; an open path ends far from where it began."""
    ws = StylePath(small(family), [7, 1, 4], 30, kind, truncation_psi=0.7).styles()
    far = steps(ws)
    assert far.min() > 0
    assert far[-1] < 1.5 * far[-4:-1].max()
    assert far[-1] > 0.5 * far[-4:-1].min()
    apart = steps(StylePath(small(family), [7, 1, 4], 30, kind, closed=False).styles())
    assert apart[-1] > 2 * apart[:-1].max()


@pytest.mark.parametrize("family", STYLED)
@pytest.mark.parametrize("closed", [True, False], ids=["loop", "open"])
def test_a_smooth_path_has_no_kinks_and_a_straight_one_has(family, closed):
    """The direction at each key, and where the last frame meets the first: a loop may begin anywhere."""

    def turns(kind):
        ws = StylePath(small(family), [7, 1, 4, 2], 400, kind, closed=closed).styles().flatten(1).double()
        way = torch.roll(ws, -1, 0) - ws
        turn = torch.cosine_similarity(way, torch.roll(way, 1, 0), dim=1)
        return turn if closed else turn[1:-1]

    assert turns("smooth").min() > 0.97
    assert turns("lerp").min() < 0.5


@pytest.mark.parametrize("family", STYLED)
def test_the_smooth_path_is_catmull_and_roms(family):
    """Half-way between two keys: 9/16 of each, less 1/16 of their neighbours, as in their paper of 1974."""
    pipeline = small(family)
    keys = pipeline.styles([1, 2, 3, 4, 5]).double()
    ws = StylePath(pipeline, [1, 2, 3, 4, 5], 10, "smooth").styles().double()
    near, far = keys + torch.roll(keys, -1, 0), torch.roll(keys, 1, 0) + torch.roll(keys, -2, 0)
    assert torch.allclose(ws[1::2], (9 * near - far) / 16, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_frames_do_not_depend_on_how_many_are_asked_for(family, kind):
    path = StylePath(small(family), [1, 2, 3], 8, kind, truncation_psi=0.5)
    parts = [path.styles(first, 3) for first in (0, 3, 6)]
    assert [len(part) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat(parts), path.styles())
    for first in (-1, 8):
        with pytest.raises(InputError, match="allowed: 0 to 7"):
            path.styles(first)


@pytest.mark.parametrize("family", STYLED)
def test_frames_are_shared_out_evenly_where_they_are_no_multiple_of_the_keys(family):
    """10 frames for 3 keys: a third of the way apart in tenths of the whole loop."""
    pipeline = small(family)
    keys, ws = (
        pipeline.styles([1, 2, 3]).double(),
        StylePath(pipeline, [1, 2, 3], 10, "lerp").styles().double(),
    )
    for frame in range(10):
        key, t = math.floor(frame * 3 / 10), frame * 3 / 10 % 1
        wanted = keys[key] + t * (keys[(key + 1) % 3] - keys[key])
        assert torch.allclose(ws[frame], wanted, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_truncation_is_that_of_each_frame(family, kind):
    """psi = 0 is one picture throughout; between, each frame goes as its own untruncated one would."""
    generator, seeds = small(family).generator, [1, 2]
    whole = StylePath(small(family), seeds, 6, kind).styles()
    for psi, cutoff in ((0.5, None), (0.0, None), (0.3, 1)):
        options = {"truncation_psi": psi, "truncation_cutoff": cutoff}
        ws = StylePath(small(family), seeds, 6, kind, **options).styles()
        assert torch.allclose(ws, generator.truncate(whole, psi, cutoff), atol=1e-5)
    assert torch.equal(StylePath(small(family), seeds, 6, kind, truncation_psi=1.0).styles(), whole)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_truncation_to_centres_does_not_jump(family, kind):
    """Each key has another centre, and no step is much longer than with the mean."""
    pipeline = small(family)
    far = 5 * pipeline.styles([7, 1])[:, 0]
    options = {"truncation_psi": 0.2, "truncation_centers": far}
    ws = StylePath(pipeline, [7, 1], 60, kind, **options).styles()
    assert steps(ws).max() < 0.1 * (ws[0] - ws[30]).norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_kind_is_one_that_the_family_has(family):
    path = StylePath(small(family), [1, 2], 4)
    assert path.kind == ("smooth" if family in STYLED else "slerp")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in STYLED])
@pytest.mark.parametrize("kind", ["lerp", "smooth"])
def test_a_family_without_styles_says_so(family, kind):
    with pytest.raises(InputError, match=f"{kind!r} goes through styles, and a .* has none .*; use slerp"):
        StylePath(small(family), [1, 2], 4, kind)


def test_slerp_goes_through_the_latents():
    """Where styles are latents, as HiT's, each keeps the length of a latent; a straight line would not."""
    z = latents([1, 2], small("hit").generator.z_dim)
    ws = StylePath(small("hit"), [1, 2], 9, "slerp", closed=False).styles()[:, 0]
    assert torch.allclose(ws.norm(dim=1), torch.lerp(*z.norm(dim=1), torch.linspace(0, 1, 9)), rtol=1e-5)


@pytest.mark.parametrize(
    ("seeds", "options", "says"),
    [
        ([3], {"frames": 9}, "there is 1; give two or more"),
        ([], {"frames": 9}, "seeds is empty"),
        ([1, 2, 3], {"frames": 2}, "frames is 2; allowed: a whole number from 3, one per seed"),
        ([1, 2], {"frames": 10**9}, "to 1,000,000"),
        ([1, 2], {"frames": 2.5}, "frames is 2.5"),
        ([1, 2], {"frames": True}, "frames is True"),
        ([1, 2], {"frames": 9, "kind": "cubic"}, "'cubic'; allowed: smooth, lerp, slerp"),
        ([1, 2], {"frames": 9, "truncation_cutoff": 99}, "truncation_cutoff is 99"),
        ([1, 2], {"frames": 9, "kind": "slerp", "truncation_psi": math.nan}, "truncation_psi is nan"),
        ([1, -2], {"frames": 9}, "the seed -2 is out of range"),
    ],
)
def test_what_no_path_can_be_made_of_is_refused(seeds, options, says):
    with pytest.raises(InputError, match=says):
        StylePath(small("stylenat"), seeds, **options)


def test_a_grid_has_a_path_in_every_cell():
    pipeline = small("stylenat")
    cells = check_cells(range(8), 2, 2)
    assert cells == [[0, 1], [2, 3], [4, 5], [6, 7]]
    paths = [StylePath(pipeline, seeds, 2) for seeds in cells]
    first, second = draw_paths(pipeline, paths, columns=2, batch_size=1)
    assert first.size == second.size == frame_size(32, 2, 2)
    for picture, place in ((first, 0), (second, 1)):
        array = np.asarray(picture)
        for number, seeds in enumerate(cells):
            y, x = (4 + 100 * part for part in divmod(number, 2))
            wanted = np.asarray(pipeline([seeds[place]]).images[0]).repeat(3, 0).repeat(3, 1)
            assert np.array_equal(array[y : y + 96, x : x + 96], wanted)


@pytest.mark.parametrize(
    ("count", "grid", "says"),
    [
        (3, (2, 1), "a multiple of 2, 4 or more"),
        (2, (2, 1), "allowed: a multiple of 2"),
        (1, (1, 1), "2 or more"),
    ],
)
def test_seeds_that_do_not_fill_a_grid_are_refused(count, grid, says):
    with pytest.raises(InputError, match=says):
        check_cells(range(count), *grid)


def test_grids_are_of_paths_of_one_length():
    pipeline = small("stylenat")
    two = [StylePath(pipeline, [1, 2], frames) for frames in (4, 5)]
    with pytest.raises(InputError, match="paths of one length that fill the rows"):
        draw_paths(pipeline, two, columns=2)
    with pytest.raises(InputError, match="that fill the rows"):
        draw_paths(pipeline, [two[0]] * 3, columns=2)
    for wrong in ({"columns": 0}, {"columns": 1.5}, {"batch_size": 0}):
        with pytest.raises(InputError, match="allowed: a whole number, 1 or more"):
            draw_paths(pipeline, two[:1], **wrong)


def test_grids_of_large_pictures_shrink_to_what_players_show():
    assert frame_size(1024, 1, 1) == (1024, 1024)
    assert frame_size(1024, 2, 2) == (524, 524)
    assert max(frame_size(256, 40, 2)) <= 4100


def command(*arguments):
    return here("interpolate", *arguments, command=cli.app)


def test_interpolate_writes_a_loop_that_begins_with_the_first_seed(tiny, tmp_path):
    """And says what it is of; a seed may come back."""
    done = command(tiny, "--seeds", "5,3,5,9", "--frames", 8, "--output", tmp_path / "a.mp4", "--fps", 25)
    assert done.exit_code == 0, done.output
    assert "wrote 8 frames of 256 x 256 pixels, 0.32 s, to" in done.output
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    assert next(reader)["fps"] == 25
    found = [np.frombuffer(frame, np.uint8).reshape(256, 256, 3) for frame in reader]
    pipeline = GANPipeline.from_pretrained(tiny)
    for place, seed in ((0, 5), (2, 3), (4, 5), (6, 9)):
        wanted = np.asarray(pipeline([seed]).images[0]).repeat(8, 0).repeat(8, 1).astype(float)
        errors = [np.abs(frame - wanted).mean() for frame in found]
        assert errors[place] == min(errors) or errors[place] < errors[place - 1]
    assert b"seeds: 5,3,5,9" in (tmp_path / "a.mp4").read_bytes()


def test_interpolate_takes_grids_kinds_and_truncation(tiny, tmp_path):
    options = ["--grid", "2x1", "--path", "slerp", "--truncation", 0.5, "--cutoff", 2, "--open", "--lossless"]
    done = command(tiny, "--seeds", "1-4", "--frames", 3, *options, "--output", tmp_path / "new" / "a.webp")
    assert done.exit_code == 0, done.output
    with PIL.Image.open(tmp_path / "new" / "a.webp") as image:
        image.seek(2)
        last = np.asarray(image.convert("RGB"))
    pipeline = GANPipeline.from_pretrained(tiny)
    wanted = pipeline([2, 4], truncation_psi=0.5, truncation_cutoff=2).images
    factor = last.shape[0] // 104
    for x, picture in zip((4, 104), wanted, strict=True):
        cell = last[4 * factor : 100 * factor, x * factor : (x + 96) * factor]
        assert np.array_equal(cell, np.asarray(picture).repeat(3 * factor, 0).repeat(3 * factor, 1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "a.avi"], "allowed endings: .mp4, .gif, .webp"),
        (["--output", "a.gif", "--fps", "60"], "from 1 to 50"),
        (["--output", "a.gif", "--lossless"], "only a .webp can be lossless"),
        (["--seeds", "3"], "there is 1; allowed: 2 or more"),
        (["--seeds", "1-3", "--grid", "2x1"], "a multiple of 2, 4 or more"),
    ],
)
def test_interpolate_refuses_before_it_looks_for_the_model(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    done = command("no/such-model", *arguments)
    assert done.exit_code == 1
    assert says in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("grid", ["2", "0x2", "2x", "2x2x2", "-1x1"])
def test_a_grid_is_columns_and_rows(grid):
    assert command(f"--grid={grid}").exit_code == 2


def test_interpolate_refuses_too_long_a_gif_before_it_draws(tiny, tmp_path):
    done = command(tiny, "--frames", 100_000, "--output", tmp_path / "a.gif")
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "100000 frames of 256 x 256 pixels are too many" in done.output


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_leaves_no_file_and_no_ffmpeg(tiny, tmp_path):
    words = ["-m", "stylenat_hub.cli", "interpolate", str(tiny), "--frames", "100000"]
    output = ["--output", str(tmp_path / "a.mp4")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = subprocess.Popen([sys.executable, *words, *output], cwd=ROOT, env=ONE_THREAD, **streams)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    try:
        wait_for(lambda: children.read_text().split())
        (encoder,) = children.read_text().split()
        started.send_signal(signal.SIGINT)
        said, _ = started.communicate(timeout=60)
    finally:
        started.kill()
        started.wait()
    assert started.returncode == 1
    assert said.rstrip().endswith("interrupted")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(encoder), 0)

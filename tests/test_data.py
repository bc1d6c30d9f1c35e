"""The order of the training samples, in one process or several, and what is left out of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings import (
    COUNT,
    KINDS,
    NAMES,
    encoded,
    files,
    pictures,
    pngs,
    seen,
    write_folder,
)
from PIL import Image

from stylenat_hub.errors import InputError
from training.data import (
    BrokenImage,
    ShardSampler,
    TooSmall,
    check_source,
    loader,
    open_source,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path) -> str:
    return write_folder(tmp_path / "photos", files())


def test_an_epoch_has_every_picture_once_in_its_own_order(folder):
    samples = pictures(folder)
    epochs = [tuple(seen(samples, range(COUNT * e, COUNT * (e + 1)))) for e in range(6)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(epochs)) == 6
    assert tuple(seen(pictures(folder, seed=2), range(COUNT))) not in epochs
    assert len(samples) == COUNT


def test_the_order_is_that_of_earlier_versions(folder):
    """A run that goes on after an update must not change its order."""
    assert seen(pictures(folder), range(COUNT)) == [2, 0, 1, 4, 5, 6, 3]
    flips = [pictures(folder, flip=True)[n].equal(pictures(folder)[n]) for n in range(16)]
    assert "".join("-M"[not same] for same in flips) == "MMMM-----MMMMM-M"


def test_half_of_the_samples_are_mirrored(folder):
    plain, flipped = pictures(folder), pictures(folder, flip=True)
    mirrored = [not plain[n].equal(flipped[n]) for n in range(300)]
    assert all(plain[n].flip(-1).equal(flipped[n]) for n in range(300) if mirrored[n])
    assert 110 < sum(mirrored) < 190
    # Not one fate per picture: each picture comes both ways.
    assert len({(i, m) for i, m in zip(seen(flipped, range(300)), mirrored, strict=True)}) == 2 * COUNT


def test_the_same_number_is_the_same_picture_in_another_process(folder):
    code = (
        "import sys; from training.data import Pictures, open_source; "
        "p = Pictures(open_source(sys.argv[1]), 8, flip=True, seed=1); "
        "print(*[p[n].numpy().tobytes().hex() for n in (40, 3, 1000)])"
    )
    command = [sys.executable, "-c", code, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    here = pictures(folder, flip=True)
    for number in range(20):
        _ = here[number]  # another history
    assert done.stdout.split() == [here[n].numpy().tobytes().hex() for n in (40, 3, 1000)]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_change_nothing(kind, tmp_path):
    samples = pictures(KINDS[kind](tmp_path / "data"), flip=True)
    before = torch.get_rng_state()
    batches = []
    for workers in (0, 2):
        batches.append(
            list(itertools.islice(loader(samples, ShardSampler(4, 6, [1, 3, 5]), workers, False), 4))
        )
    assert torch.get_rng_state().equal(before)  # of which the training makes its latents
    for step, (one, two) in enumerate(zip(*batches, strict=True)):
        expected = torch.stack([samples[4 + 6 * step + row] for row in (1, 3, 5)])
        assert one.dtype == torch.uint8 and one.shape == (3, 3, 8, 8)
        assert one.equal(expected) and two.equal(expected)


def test_workers_ignore_requests_to_end_but_the_parents(folder):
    """A scheduler sends SIGTERM to all processes; the main one still needs its batches to get to its end."""
    code = (
        "import itertools, os, signal, subprocess, sys; from training.data import *\n"
        "p = Pictures(open_source(sys.argv[1]), 8, flip=True, seed=1)\n"
        "batches = iter(loader(p, ShardSampler(0, 4, range(4)), 2, False))\n"
        "next(batches), next(batches)  # one of each worker\n"
        "import multiprocessing as m; pids = [c.pid for c in m.active_children()]; assert len(pids) == 2\n"
        "for name in ('INT', 'HUP', 'TERM'):\n"
        "    subprocess.run(['kill', '-' + name, *map(str, pids)], check=True)\n"
        "for _ in range(20): next(batches)\n"
        "os.kill(pids[0], signal.SIGTERM)\n"
        "[c.join(20) for c in m.active_children() if c.pid == pids[0]]\n"
        "print('alive', len(m.active_children()), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "alive 1\n"), done.stderr


def test_rows_of_all_processes_are_the_samples_in_order():
    shards = [ShardSampler(100, 6, rows) for rows in ([0, 1, 2], [3, 4], [5])]
    drawn = [list(itertools.islice(shard, 3)) for shard in shards]
    assert drawn[1] == [[103, 104], [109, 110], [115, 116]]
    assert sorted(n for shard in drawn for step in shard for n in step) == list(range(100, 118))
    for start, rows in ((-1, [0]), (0, []), (0, [6]), (0, [-1])):
        with pytest.raises(InputError, match="each from 0 to batch - 1 = 5"):
            ShardSampler(start, 6, rows)


def test_pictures_are_cropped_in_the_middle_and_shrunk_smoothly(tmp_path):
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, 16:80:2] = 255  # every second column of the middle square
    stripes[:, :16] = stripes[:, 80:] = (255, 0, 0)
    place = write_folder(tmp_path, {"a.png": encoded(Image.fromarray(stripes))})
    sample = pictures(place, resolution=16)[0]
    assert sample.shape == (3, 16, 16)
    # The nearest pixels alone would be all black or all white; and no red of the sides comes in.
    assert (sample.int() - 127).abs().max() < 30 and sample[0].equal(sample[1])


def test_a_broken_picture_is_named_once_and_the_next_one_taken(tmp_path, capfd):
    place = write_folder(tmp_path, files() | {"b/deep/1.png": b"", "b/deep/3.png": b"junk"})
    good = [i for i, name in enumerate(sorted(NAMES)) if name not in ("b/deep/1.png", "b/deep/3.png")]
    samples = pictures(place)
    epochs = [seen(samples, range(COUNT * e, COUNT * (e + 1))) for e in range(2)]
    # 1 and 3 stand one after the other, and 5 comes after them.
    assert all(sorted(epoch) == sorted([*good, good[4], good[4]]) for epoch in epochs)
    assert sorted(capfd.readouterr().err.splitlines()) == [
        "warning: skipped b/deep/1.png: it is empty",
        "warning: skipped b/deep/3.png: it is not a picture in a format that Pillow reads",
    ]
    with pytest.raises(BrokenImage, match="b/deep/"):
        [pictures(place, strict=True)[n] for n in range(COUNT)]


def test_only_broken_pictures_are_an_error(tmp_path):
    place = write_folder(tmp_path, {"a.png": b"", "b.png": b""})
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of 2 pictures .* the first is 'a\.png'"):
            pictures(place)[0]


def test_small_pictures_are_refused_unless_allowed(tmp_path):
    place = write_folder(tmp_path, {"a/small.png": pngs(1)[0]})
    with pytest.raises(TooSmall, match=r"'a/small.png': it is 12 x 8 .* of 9; .*--allow-upscaling"):
        pictures(place, resolution=9)[0]
    assert pictures(place, resolution=8)[0].shape == (3, 8, 8)
    assert pictures(place, resolution=9, allow_upscaling=True)[0].shape == (3, 9, 9)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_one_sentence(workers, folder):
    batches = iter(loader(pictures(folder, resolution=9), ShardSampler(0, 2, [0, 1]), workers, False))
    with pytest.raises(TooSmall, match="below the resolution of 9") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_check_source_looks_at_pictures_from_all_over(tmp_path):
    check_source(
        open_source(write_folder(tmp_path / "good", files() | {NAMES[0]: b"", NAMES[2]: b""})), 8, False
    )
    small = open_source(write_folder(tmp_path / "small", files() | {"z.png": pngs(1, (6, 6))[0]}))
    with pytest.raises(TooSmall, match=r"'z.png': it is 6 x 6 pixels"):
        check_source(small, 8, False)
    check_source(small, 8, True)
    many = {f"{i:03}.png": b"" for i in range(100)}
    with pytest.raises(BrokenImage, match=r"000\.png"):
        check_source(open_source(write_folder(tmp_path / "broken", many)), 8, False)
    opened = []
    source = open_source(write_folder(tmp_path / "many", {name: pngs(1)[0] for name in many}))
    source.read, read = (lambda index: opened.append(index) or read(index)), source.read
    check_source(source, 8, False)
    assert len(opened) == 16 and (opened[0], opened[-1]) == (0, 99)


def test_arguments_out_of_range(folder):
    for options in ({"resolution": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="allowed: from 1, from 0"):
            pictures(folder, **options)

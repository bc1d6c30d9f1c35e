"""`stylenat generate` with several truncations, centres, styles from a file; and `pictures` beneath it."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import __version__, cli, pictures
from stylenat_hub.errors import InputError
from stylenat_hub.latents.clusters import style_centers
from stylenat_hub.latents.styles import load_styles, save_styles
from stylenat_hub.pictures import check_png, picture_name, write_pictures, write_styles
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES
from stylenat_hub.sheet import fitted
from stylenat_hub.signals import Interrupted


def run(*arguments):
    return CliRunner().invoke(cli.app, ["generate", *(str(argument) for argument in arguments)])


def fails(*arguments, code=1):
    result = run(*arguments)
    assert result.exit_code == code and result.stdout == "" and "Traceback" not in result.output
    return " ".join(result.stderr.split())


def read(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")), image.text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def drawing(request):
    pipeline = GANPipeline(tiny_generator(request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_label_may_name_a_file_whose_name_is_no_unicode(tmp_path):
    about = {"photo": "Größe \udcff.png", "model": "two\nlines"}
    pictures.write_picture(PIL.Image.new("RGB", (8, 8)), tmp_path / "a.png", about)
    assert read(tmp_path / "a.png")[1] == {"photo": "Größe ?.png", "model": "two\nlines"}


def test_a_sweep_is_its_single_commands(tiny, tmp_path):
    common = (tiny, "--seeds", "7,2", "--cutoff", 5)
    result = run(*common, "--truncation", "1,0.5,-0.25", "--output", tmp_path / "sweep", "--grid")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"wrote 6 pictures and grid.png to {tmp_path / 'sweep'}"
    expected = [f"seed000000000{seed}-psi{psi}.png" for seed in (2, 7) for psi in ("-0.25", "0.5", "1")]
    assert names(tmp_path / "sweep") == ["grid.png", *expected]
    for psi in ("1", "0.5", "-0.25"):
        alone = tmp_path / psi
        assert run(*common, "--truncation", psi, "--output", alone).exit_code == 0
        for seed in (7, 2):
            single = alone / picture_name(seed)
            assert single.read_bytes() == (tmp_path / "sweep" / picture_name(seed, float(psi))).read_bytes()
            assert read(single)[1] == {
                "model": "tiny",
                "seed": str(seed),
                "truncation_psi": str(float(psi)),
                "truncation_cutoff": "5",
                "version": f"stylenat_hub {__version__}",
            }
    _, text = read(tmp_path / "sweep" / "grid.png")
    assert text["seeds"] == "7,2" and text["truncation_psi"] == "1.0,0.5,-0.25" and "seed" not in text


def test_the_grid_of_a_sweep_has_a_row_per_seed(drawing, tmp_path):
    seeds, values = [4, 0, 9], [0.0, 0.7]
    written = write_pictures(drawing, seeds, tmp_path, truncation_psi=values, grid=True)
    assert written.count == 6 and written.grid == tmp_path / "grid.png"
    grid, _ = read(written.grid)
    for row, seed in enumerate(seeds):
        for column, psi in enumerate(values):
            image = drawing([seed], truncation_psi=psi).images[0]
            lower, right = grid.shape[0] - (2 - row) * 100, grid.shape[1] - (1 - column) * 100
            shown = grid[lower - 100 : lower - 4, right - 100 : right - 4]
            assert np.array_equal(shown, np.asarray(fitted(image, 96)))
            assert np.array_equal(read(tmp_path / picture_name(seed, psi))[0], np.asarray(image))


@pytest.mark.parametrize(
    ("centers", "title"),
    [(None, "truncated to the mean style"), (3, "truncated to the nearest of 3 centres")],
)
def test_the_grid_of_a_sweep_says_what_it_shows(pipeline, tmp_path, monkeypatch, centers, title):
    words, sheet = {}, pictures.Sheet
    monkeypatch.setattr(pictures, "Sheet", lambda *size, **options: (words.update(options), sheet(*size))[1])
    if centers:
        centers = style_centers(pipeline.generator, centers, latents=100)
    options = {"truncation_psi": [0.5, 1, 1e-7], "truncation_centers": centers, "grid": True}
    write_pictures(pipeline, [2**32 - 1, 0], tmp_path, **options)
    assert words["title"] == title and words["row_labels"] == ["seed 4294967295", "seed 0"]
    assert words["column_labels"] == ["psi 0.5", "psi 1", "psi 1e-07"]


def test_one_value_is_no_sweep(pipeline, tmp_path):
    for number, psi in enumerate((0.5, [0.5], (0.5, 0.5))):
        write_pictures(pipeline, [1], tmp_path / str(number), truncation_psi=psi)
        assert names(tmp_path / str(number)) == ["seed0000000001.png"]


def test_near_values_have_names_of_their_own(pipeline, tmp_path):
    values = [0.1234567, 0.12345671, 1e-7, 0.0]
    assert write_pictures(pipeline, [1], tmp_path, truncation_psi=values).count == 4
    assert len(names(tmp_path)) == 4 and "seed0000000001-psi0.12345671.png" in names(tmp_path)


@pytest.mark.parametrize(
    "psi", ["0.5", [], [0.5, "1"], [0.5, None], [0.5, float("nan")], [0.5, 1e9], [True, 0.5]]
)
def test_what_is_no_sweep_writes_nothing(pipeline, tmp_path, psi):
    with pytest.raises(InputError, match=r"truncation_psi is .*; allowed: a finite number"):
        write_pictures(pipeline, [1], tmp_path / "new", truncation_psi=psi, grid=True)
    assert not (tmp_path / "new").exists()


def test_a_sweep_that_is_interrupted_says_how_far_it_came(pipeline, tmp_path, monkeypatch):
    write, written = pictures.write_picture, []

    def interrupted(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(*arguments))

    monkeypatch.setattr(pictures, "write_picture", interrupted)
    with pytest.raises(Interrupted, match="3 of 4 pictures are in"):
        write_pictures(pipeline, [1, 2], tmp_path, truncation_psi=[0.5, 1], grid=True)
    assert len(names(tmp_path)) == 3 and "grid.png" not in names(tmp_path)


def test_one_bar_counts_all_pictures(pipeline, tmp_path, monkeypatch):
    totals, bar = [], GANPipeline.progress_bar
    monkeypatch.setattr(
        GANPipeline, "progress_bar", lambda self, total: (totals.append(total), bar(self, total=total))[1]
    )
    write_pictures(pipeline, [1, 2, 3], tmp_path, truncation_psi=[0.5, 1])
    assert totals == [6]


def test_centers_pull_to_a_few_pictures(tiny, pipeline, tmp_path):
    result = run(tiny, "--seeds", "0-7", "--truncation", "0,1", "--centers", 3, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    centers = style_centers(pipeline.generator, 3)
    expected = pipeline(range(8), truncation_psi=0, truncation_centers=centers).images
    seen = set()
    for seed, image in enumerate(expected):
        pixels, text = read(tmp_path / picture_name(seed, 0.0))
        assert np.array_equal(pixels, np.asarray(image)) and text["truncation_centers"] == "3"
        seen.add(pixels.tobytes())
    assert 1 < len(seen) <= 3
    for seed, image in enumerate(pipeline(range(8)).images):
        assert np.array_equal(read(tmp_path / picture_name(seed, 1.0))[0], np.asarray(image))


def test_centers_of_latents_are_refused(tmp_path):
    GANPipeline(tiny_generator("hit")).save_pretrained(tmp_path / "hit")
    line = fails(tmp_path / "hit", "--centers", 3, "--truncation", 0.5, "--output", tmp_path / "out")
    assert "a HiTGenerator has none: its styles are the latents" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--truncation", "0.5,x"], 2, "'x' in '0.5,x' is no number; example: 0.5,0.7,1"),
        (["--truncation", "0.5,,1"], 2, "'' in '0.5,,1' is no number"),
        (["--truncation", "0.5,nan"], 2, "not a finite number"),
        (["--truncation", "0.5,1e9"], 2, "out of range"),
        (["--truncation", ",".join(map(str, range(101)))], 2, "are 101 truncations; allowed: up to 100"),
        (["--truncation", "0.5,0.7", "--cutoff", "9"], 1, "truncation_cutoff is 9"),
        (["--centers", "0"], 2, "Invalid value for '--centers'"),
        (["--centers", "1025"], 1, "allowed: a whole number from 1 to 1,024"),
        (["--truncation", "0.5,1", "--num", "4"], 1, "--num goes without several truncations"),
        (["--centers", "2", "--num", "4"], 1, "--num goes without --centers"),
        (["--styles", "no.safetensors"], 1, "there is no file 'no.safetensors'"),
        (["--styles", "no.safetensors", "--seeds", "1"], 1, "--styles and --seeds both say what to draw"),
        (["--truncation", "0,1", "--seeds", "0-999", "--grid"], 1, "cells below 8 pixels"),
    ],
)
def test_wrong_options_write_nothing(tiny, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    assert says in fails(tiny, *arguments, code=code)
    assert names(tmp_path) == []


def test_a_file_of_styles_is_drawn_as_its_seeds_are(drawing, tmp_path):
    ws, options = drawing.styles([5, 6, 7]), {"truncation_psi": 0.6, "grid": True, "batch_size": 2}
    save_styles(tmp_path / "w.safetensors", ws, {})
    loaded, _ = load_styles(tmp_path / "w.safetensors", drawing.generator)
    assert torch.equal(loaded, ws)
    written = write_styles(drawing, loaded, tmp_path / "out", **options, label={"styles": "w.safetensors"})
    assert written.count == 3 and names(tmp_path / "out")[1:] == [f"style00000{n}.png" for n in range(3)]
    for number, image in enumerate(drawing([5, 6, 7], truncation_psi=0.6).images):
        pixels, text = read(tmp_path / "out" / f"style00000{number}.png")
        assert np.array_equal(pixels, np.asarray(image))
        assert text["style"] == str(number) and text["styles"] == "w.safetensors"
        place = (
            slice(96 * (number // 2), 96 * (number // 2) + 96, 3),
            slice(96 * (number % 2), 96 * (number % 2) + 96, 3),
        )
        assert np.array_equal(read(written.grid)[0][place], pixels)


def test_styles_come_in_the_models_type(tmp_path):
    """A file holds float32; a model in half precision truncates, edits and draws as it does for seeds."""
    types = []
    pipeline = GANPipeline(tiny_generator().to(torch.bfloat16))
    pipeline.set_progress_bar_config(disable=True)
    options = {"truncation_psi": 0.37, "edit": lambda ws: (types.append(ws.dtype), ws)[1]}
    write_styles(pipeline, pipeline.styles(range(4)).float(), tmp_path, **options)
    assert types == [torch.bfloat16]
    for number, image in enumerate(pipeline(range(4), truncation_psi=0.37).images):
        assert np.array_equal(read(tmp_path / f"style00000{number}.png")[0], np.asarray(image))


def test_styles_of_another_model_are_refused(pipeline, tmp_path):
    for shape in ((2, 3, 32), (2, 8, 31)):
        says = rf"ws has the shape \({', '.join(map(str, shape))}\); this model needs \[batch, 8, 32\]"
        with pytest.raises(InputError, match=says):
            write_styles(pipeline, torch.zeros(shape), tmp_path / "new", truncation_psi=0.5)
    with pytest.raises(InputError, match="styles are drawn at one truncation, not at 2"):
        write_styles(pipeline, torch.zeros(2, 8, 32), tmp_path / "new", truncation_psi=[0.5, 1])
    with pytest.raises(InputError, match="batch_size is 0; allowed: a whole number, 1 or more"):
        write_styles(pipeline, torch.zeros(2, 8, 32), tmp_path / "new", batch_size=0)
    assert not (tmp_path / "new").exists()


def test_the_command_draws_styles(tiny, pipeline, tmp_path):
    save_styles(tmp_path / "w.safetensors", pipeline.styles([5, 6]), {})
    out = tmp_path / "out"
    result = run(tiny, "--styles", tmp_path / "w.safetensors", "--output", out)
    assert result.exit_code == 0 and result.stdout.strip() == f"wrote 2 pictures to {out}", result.output
    pixels, text = read(out / "style000001.png")
    assert np.array_equal(pixels, np.asarray(pipeline([6]).images[0]))
    assert text["model"] == "tiny" and text["styles"] == "w.safetensors"
    line = fails(tiny, "--styles", tmp_path / "w.safetensors", "--truncation", "0.5,1", "--output", out)
    assert "styles are drawn at one truncation, not at 2" in line


def test_a_png_says_what_its_name_must_be(tmp_path):
    assert check_png(tmp_path / "new" / "a.PNG") == tmp_path / "new" / "a.PNG"
    for name in ("a.jpg", "a", "a.png.txt"):
        with pytest.raises(InputError, match="is no name of a PNG"):
            check_png(tmp_path / name)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_png(tmp_path / "b.png")
    assert names(tmp_path) == ["b.png"]

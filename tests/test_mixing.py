"""Style mixing: which levels come from where, on sheets, as files, and as `stylenat mix`."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import __version__, cli
from stylenat_hub.errors import InputError
from stylenat_hub.latents import mixing
from stylenat_hub.latents.levels import styles_at
from stylenat_hub.latents.mixing import mix, mixing_sheet, write_mixing
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES
from stylenat_hub.signals import Interrupted

LEVELLED = [family for family in sorted(FAMILIES) if tiny_generator(family).style_levels]
ROWS, COLUMNS = [3, 0], [10, 11, 12]


@pytest.fixture(scope="module", params=LEVELLED)
def drawing(request):
    pipeline = GANPipeline(tiny_generator(request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def hit():
    return GANPipeline(tiny_generator("hit"))


def run(*arguments):
    return CliRunner().invoke(cli.app, ["mix", *(str(argument) for argument in arguments)])


def mixed_pictures(pipeline, levels, **options):
    """{(row's seed, column's): its pixels} of a sheet."""
    found = {}

    def seen(row, column, image):
        found[row, column] = np.asarray(image)

    mixing_sheet(pipeline, ROWS, COLUMNS, levels, seen=seen, **options)
    return found


def cell(image, row, column, rows=2, columns=3, side=96):
    """A cell of a sheet, row 0 and column 0 being the headers, counted from its right and lower ends."""
    right = image.width - (columns - column) * (side + 4) - 4
    lower = image.height - (rows - row) * (side + 4) - 4
    right, lower = right - (0 if column else 8), lower - (0 if row else 8)
    return np.asarray(image.crop((right - side, lower - side, right, lower)))


def enlarged(image):
    return np.asarray(image).repeat(3, 0).repeat(3, 1)


def test_columns_give_the_chosen_styles():
    rows, columns = torch.randn(2, 8, 5), torch.randn(3, 8, 5)
    for numbers in ([], [0], [2, 3, 7], [7, 2, 2], range(8)):
        ws = mix(rows, columns, numbers)
        assert ws.shape == (2, 3, 8, 5)
        for row in range(2):
            for column in range(3):
                for number in range(8):
                    source = columns[column] if number in numbers else rows[row]
                    assert torch.equal(ws[row, column, number], source[number])


def test_mixing_leaves_its_sources_alone():
    rows, columns = torch.zeros(2, 4, 3), torch.ones(2, 4, 3, dtype=torch.float64)
    ws = mix(rows, columns, [1])
    assert ws.dtype == torch.float32 and ws[:, :, 1].eq(1).all()
    ws.fill_(9)
    assert rows.eq(0).all() and columns.eq(1).all()


@pytest.mark.parametrize(
    ("rows", "columns", "numbers", "says"),
    [
        ((2, 8, 5), (3, 8, 4), [0], r"the rows' styles are \(2, 8, 5\) and the columns' \(3, 8, 4\)"),
        ((2, 8, 5), (3, 1, 5), [0], "both of one model"),
        ((8, 5), (8, 5), [0], r"allowed: \[n, num_ws, w_dim\]"),
        ((2, 8, 5), (3, 8, 5), [8], "8 is no style; allowed: whole numbers from 0 to 7"),
        ((2, 8, 5), (3, 8, 5), [-1], "-1 is no style"),
        ((2, 8, 5), (3, 8, 5), [True], "True is no style"),
        ((2, 8, 5), (3, 8, 5), "0", "'0' is no style"),
    ],
)
def test_styles_that_do_not_fit(rows, columns, numbers, says):
    with pytest.raises(InputError, match=says):
        mix(torch.zeros(rows), torch.zeros(columns), numbers)


def test_all_levels_are_the_columns_and_none_the_rows(drawing):
    own = {seed: np.asarray(image) for seed, image in zip(COLUMNS, drawing(COLUMNS).images, strict=True)}
    for (_, column), image in mixed_pictures(drawing, "all").items():
        assert np.array_equal(image, own[column])
    rows, columns = drawing.styles(ROWS), drawing.styles(COLUMNS)
    unmixed = drawing.draw(mix(rows, columns, [])[:, 0], output_type="pt")
    assert torch.equal(unmixed, drawing(ROWS, output_type="pt").images)


@pytest.mark.parametrize("levels", ["coarse", "fine", "8-16"])
def test_every_mixed_picture_is_of_the_mixed_styles(drawing, levels):
    truncation = {"truncation_psi": 0.7, "truncation_cutoff": 6}
    rows, columns = (drawing.styles(seeds, **truncation) for seeds in (ROWS, COLUMNS))
    ws = mix(rows, columns, styles_at(drawing.generator, levels))
    found = mixed_pictures(drawing, levels, batch_size=2, **truncation)
    assert list(found) == [(row, column) for row in ROWS for column in COLUMNS]
    for i, row in enumerate(ROWS):
        for j, column in enumerate(COLUMNS):
            assert np.array_equal(found[row, column], np.asarray(drawing.draw(ws[i, j : j + 1])[0]))


def test_the_sheet_shows_sources_and_mixed(drawing):
    found = {}
    options = {"truncation_psi": 0.5, "truncation_centers": drawing.styles(range(20, 23))[:, 0]}
    sheet = mixing_sheet(
        drawing, ROWS, COLUMNS, "fine", seen=lambda r, c, image: found.update({(r, c): image}), **options
    )
    for row, image in enumerate(drawing(ROWS, **options).images):
        assert np.array_equal(cell(sheet, row + 1, 0), enlarged(image))
        for column, seed in enumerate(COLUMNS):
            shown = cell(sheet, row + 1, column + 1)
            assert np.array_equal(shown, enlarged(found[ROWS[row], seed]))
    for column, image in enumerate(drawing(COLUMNS, **options).images):
        assert np.array_equal(cell(sheet, 0, column + 1), enlarged(image))
    assert (cell(sheet, 0, 0) == 255).all()


def test_every_picture_is_drawn_once(drawing, monkeypatch):
    drawn, draw = [], drawing.draw
    monkeypatch.setattr(
        drawing, "draw", lambda ws, **options: (drawn.append(len(ws)), draw(ws, **options))[1]
    )
    mixing_sheet(drawing, ROWS, COLUMNS, "coarse", batch_size=2)
    assert sum(drawn) == 2 + 3 + 2 * 3 and max(drawn) == 2


@pytest.mark.parametrize(
    ("levels", "psi", "title"),
    [
        ("coarse", 1.0, "columns give the levels of 4, 8 px, rows all others"),
        ("8-32", 0.7, "columns give the levels of 8, 16, 32 px, rows all others; psi 0.7"),
        ("all", 1, "columns give the levels of 4, 8, 16, 32 px, rows nothing"),
    ],
)
def test_the_title_says_what_comes_from_where(drawing, monkeypatch, levels, psi, title):
    words, sheet = {}, mixing.Sheet
    monkeypatch.setattr(mixing, "Sheet", lambda *size, **options: (words.update(options), sheet(*size))[1])
    mixing_sheet(drawing, ROWS, COLUMNS, levels, truncation_psi=psi)
    assert words["title"] == title
    assert words["row_labels"] == ["", "seed 3", "seed 0"]
    assert words["column_labels"] == ["", "seed 10", "seed 11", "seed 12"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": "64"}, "has no level of 64 px"),
        ({"row_seeds": []}, "seeds is empty"),
        ({"column_seeds": [2**32]}, "out of range"),
        ({"column_seeds": range(500)}, "a sheet of 501 x 3 pictures has cells below 8 pixels"),
        ({"truncation_psi": float("nan")}, "truncation_psi is nan"),
        ({"truncation_cutoff": 9}, "truncation_cutoff is 9"),
        ({"truncation_centers": torch.zeros(2, 3)}, "truncation_centers is"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_arguments_draw_nothing(drawing, monkeypatch, options, says):
    monkeypatch.setattr(drawing, "draw", None)
    with pytest.raises(InputError, match=says):
        mixing_sheet(drawing, **{"row_seeds": ROWS, "column_seeds": COLUMNS, **options})


def test_one_style_cannot_be_mixed(hit, tmp_path):
    says = "style mixing needs styles that act level by level, and a HiTGenerator has one"
    for levels in ("coarse", "all"):
        with pytest.raises(InputError, match=says):
            mixing_sheet(hit, ROWS, COLUMNS, levels)
    hit.save_pretrained(tmp_path / "hit")
    result = run(tmp_path / "hit", "--output", tmp_path / "mix.png")
    assert result.exit_code == 1 and says in result.stderr and not (tmp_path / "mix.png").exists()


def test_the_command_writes_a_sheet_and_its_cells(tiny, pipeline, tmp_path):
    seeds = ("--rows", "3,0", "--cols", "10-12", "--levels", "8-16", "--truncation", 0.7, "--cutoff", 5)
    output, cells = tmp_path / "a.png", tmp_path / "cells"
    result = run(tiny, *seeds, "--centers", 2, "--output", output, "--cells", cells)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"wrote {output} and 6 pictures to {cells}"
    labels = {
        "model": "tiny",
        "levels": "8-16",
        "truncation_psi": "0.7",
        "truncation_cutoff": "5",
        "truncation_centers": "2",
        "version": f"stylenat_hub {__version__}",
    }
    with PIL.Image.open(output) as sheet:
        assert sheet.format == "PNG" and sheet.text == {**labels, "rows": "3,0", "cols": "10,11,12"}
        names = sorted(path.name for path in cells.iterdir())
        assert names[0] == "row0000000000-col0000000010.png" and len(names) == 6
        for i, row in enumerate(ROWS):
            for j, column in enumerate(COLUMNS):
                with PIL.Image.open(cells / mixing.cell_name(row, column)) as image:
                    assert image.text == {**labels, "row": str(row), "col": str(column)}
                    assert np.array_equal(cell(sheet, i + 1, j + 1), enlarged(image))


def test_the_command_alone_mixes_the_built_in_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--rows", "0", "--cols", "1")
    assert result.exit_code == 0 and result.stdout.strip() == "wrote mix.png"
    with PIL.Image.open("mix.png") as sheet:
        assert sheet.text["levels"] == "coarse" and sheet.text["model"] == "toy-church"
    assert [path.name for path in tmp_path.iterdir()] == ["mix.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["--levels", "coarsest"],
            1,
            "'coarsest' in the levels 'coarsest' is no level; allowed: all, coarse",
        ),
        (["--rows", "x"], 2, "neither a seed nor a range"),
        (["--truncation", "nan"], 2, "not a finite number"),
        (["--cutoff", "9"], 1, "truncation_cutoff is 9; allowed: a whole number from 0 to 8"),
        (["--centers", "5000"], 1, "the number of centres is 5000; allowed: a whole number from 1 to 1,024"),
        (["--cols", "0-999"], 1, "has cells below 8 pixels"),
        (["--output", "mix.jpg"], 1, "is no name of a PNG; name a file that ends in .png"),
        (["--output", "taken.png"], 1, "is a folder; name a file"),
        (["--output", "old.png/mix.png"], 1, "is a file"),
        (["--cells", "old.png"], 1, "is a file; name a folder"),
    ],
)
def test_errors_leave_nothing_and_lose_nothing(tiny, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "old.png").write_text("mine")
    result = run(tiny, "--output", "old.png", *arguments)
    assert result.exit_code == code and says in " ".join(result.stderr.split()), result.output
    assert "Traceback" not in result.output and result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.png", "taken.png"]
    assert (tmp_path / "old.png").read_text() == "mine"


def test_a_sheet_is_a_png(drawing, tmp_path):
    with pytest.raises(InputError, match="is no name of a PNG"):
        write_mixing(drawing, ROWS, COLUMNS, tmp_path / "mix.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "levels", "says"),
    [(range(2000), "coarse", "has cells below 8 pixels"), ([0], "64", "no level of")],
)
def test_a_sheet_that_cannot_be_names_no_cells(drawing, monkeypatch, tmp_path, rows, levels, says):
    monkeypatch.setattr(mixing, "cell_name", None)
    with pytest.raises(InputError, match=says):
        write_mixing(drawing, rows, COLUMNS, tmp_path / "mix.png", levels, cells=tmp_path / "cells")
    assert not list(tmp_path.iterdir())


def test_an_interruption_keeps_whole_cells_and_says_how_many(drawing, monkeypatch, tmp_path):
    drawn, draw = [], drawing.draw

    def interrupted(ws, **options):
        drawn.append(ws)
        if len(drawn) == 6:  # after the columns (2 batches), the rows (1), and a row of mixed ones (2)
            raise KeyboardInterrupt
        return draw(ws, **options)

    monkeypatch.setattr(drawing, "draw", interrupted)
    options = {"batch_size": 2, "cells": tmp_path / "cells"}
    with pytest.raises(Interrupted, match=r"^3 of 6 pictures are in .*cells$"):
        write_mixing(drawing, ROWS, COLUMNS, tmp_path / "mix.png", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
    kept = sorted((tmp_path / "cells").iterdir())
    assert [path.name for path in kept] == [mixing.cell_name(3, column) for column in COLUMNS]
    for path in kept:
        with PIL.Image.open(path) as image:
            assert image.convert("RGB").size == (32, 32)

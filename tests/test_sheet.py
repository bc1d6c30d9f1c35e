"""Sheets: where pictures lie, what is written beside them, how large they are."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from stylenat_hub import sheet
from stylenat_hub.errors import InputError
from stylenat_hub.sheet import SHEET_SIDE, Sheet, cell_side, fitted


def picture(color, side=32):
    return PIL.Image.new("RGB", (side, side), color)


def boxes(image, color):
    """Left, top, right, bottom of all that has this colour."""
    found = (np.asarray(image) == PIL.ImageColor.getrgb(color)).all(-1)
    (rows,), (columns,) = found.any(1).nonzero(), found.any(0).nonzero()
    assert found.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)  # one whole rectangle
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def ink(image, box):
    """How many pixels of a part are not white."""
    return int((np.asarray(image.crop(box)) != 255).any(-1).sum())


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_pictures_lie_whole_in_rows_and_columns(headers, labelled):
    words = {"title": "a title", "row_labels": ["0", "10"], "column_labels": ["x", "y", "z"]}
    made = Sheet(2, 3, 64, headers=headers, cell_labels=labelled, **(words if labelled else {}))
    colors = [["red", "lime", "blue"], ["cyan", "magenta", "yellow"]]
    for row in range(2):
        for column in range(3):
            made.put(row, column, picture(colors[row][column]), "label" if labelled else "")
    found = [[boxes(made.image, color) for color in line] for line in colors]
    for left, top, right, bottom in (box for line in found for box in line):
        assert (right - left, bottom - top) == (64, 64)
        assert right <= made.image.width and bottom <= made.image.height
    assert len({box[1] for box in found[0]}) == 1 and len({line[0][0] for line in found}) == 1
    steps = [found[0][i + 1][0] - found[0][i][0] for i in range(2)]
    assert steps[0] - steps[1] == (8 if headers else 0)  # headers stand apart from the rest
    assert found[1][0][1] - found[0][0][3] >= (8 if headers else 0) + (12 if labelled else 0)


def test_labels_are_where_they_belong():
    words = {"title": "title", "row_labels": ["seed 0", ""], "column_labels": ["", "psi 1"]}
    made = Sheet(2, 2, 64, cell_labels=True, **words)
    for place, color in enumerate(("red", "lime", "blue", "cyan")):
        made.put(*divmod(place, 2), picture(color), "" if place else "mine")
    first, last = boxes(made.image, "red"), boxes(made.image, "cyan")
    assert ink(made.image, (0, first[1], first[0], first[3])) > 20  # left of the first row
    assert ink(made.image, (0, last[1], first[0], last[3])) == 0
    assert ink(made.image, (last[0], 20, last[2], first[1] - 16)) > 20  # above the second column
    assert ink(made.image, (first[0], 20, first[2], first[1] - 16)) == 0
    assert ink(made.image, (first[0], first[1] - 16, first[2], first[1])) > 20  # the label of a cell
    assert ink(made.image, (0, 0, made.image.width, 20)) > 20


def test_a_long_title_widens_the_sheet():
    made = Sheet(1, 1, 32, title="every word of this title can be read " * 3)
    assert made.image.width > 500 and ink(made.image, (made.image.width - 40, 0, made.image.width, 20)) > 10
    assert ink(made.image, (made.image.width - 4, 0, made.image.width, 20)) == 0
    assert Sheet(1, 1, 64, title="short").image.width == Sheet(1, 1, 64).image.width


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("psi 0.5", "psi 0.5"),
        ("seed 4294967295", "seed 4294967295"),  # the longest there is, in smaller letters
        ("a direction with quite a long name", "a direction with…"),
    ],
)
def test_labels_fit_over_their_cells(monkeypatch, text, written):
    made, seen = Sheet(1, 2, 96, cell_labels=True), []
    write = made.pen.text
    monkeypatch.setattr(made.pen, "text", lambda at, *a, **kw: (seen.append(a[0]), write(at, *a, **kw)))
    made.put(0, 0, picture("white"), text)
    assert len(seen) == 1 and seen[0].startswith(written.rstrip("…")) and len(seen[0]) <= len(text)
    assert seen[0].endswith("…") == written.endswith("…")
    assert ink(made.image, (0, 0, 102, 20)) > 20 and ink(made.image, (102, 0, 204, 20)) == 0


def test_a_name_that_is_no_unicode_or_has_two_lines_is_written_with_question_marks():
    def made(name):
        sheet = Sheet(1, 1, 96, title=name, row_labels=[name], column_labels=[name], cell_labels=True)
        sheet.put(0, 0, picture("red"), name)
        return sheet.image.tobytes()

    assert made("bad\udcff\n.png") == made("bad??.png") != made("bad.png")


def test_labels_over_the_smallest_cells():
    made = Sheet(1, 3, 8, column_labels=["1234567890"] * 3, cell_labels=True)
    made.put(0, 1, picture("red"), "label")
    assert boxes(made.image, "red")[2] - boxes(made.image, "red")[0] == 8


@pytest.mark.parametrize(
    ("resolution", "columns", "rows", "side"),
    [
        (32, 4, 4, 96),  # enlarged by a whole factor
        (64, 4, 4, 128),
        (48, 1, 1, 96),
        (128, 4, 4, 128),
        (256, 4, 4, 256),
        (1024, 4, 4, 256),  # at most so large
    ],
)
def test_cells_are_of_a_size_to_look_at(resolution, columns, rows, side):
    assert cell_side(resolution, columns, rows) == side


@pytest.mark.parametrize("count", [30, 100, 280])
def test_large_sheets_shrink_their_cells(count):
    cell = cell_side(256, count, count)
    words = [f"seed {2**32 - 1 - i}" for i in range(count)]
    options = {"title": "a title", "headers": True, "cell_labels": True}
    made = Sheet(2, count, cell, row_labels=words[:2], column_labels=words, **options)
    tall = Sheet(count, 2, cell, row_labels=words, column_labels=words[:2], **options)
    assert 8 <= cell < 256 and made.image.width <= SHEET_SIDE and tall.image.height <= SHEET_SIDE


def test_too_many_cells_are_refused():
    with pytest.raises(InputError, match="a sheet of 2 x 2000 pictures has cells below 8 pixels; ask for"):
        cell_side(32, 2, 2000)


def test_enlarging_keeps_pixels_and_shrinking_smooths():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    assert np.array_equal(np.asarray(fitted(image, 96)), pixels.repeat(3, 0).repeat(3, 1))
    assert fitted(image, 32) is image
    small = np.asarray(fitted(image, 8)).astype(int)
    assert small.shape == (8, 8, 3) and small.std() < pixels.std() / 2
    assert sheet.SHEET_SIDE == 8192

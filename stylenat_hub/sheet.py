"""Sheets: labelled pictures in rows and columns, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
from PIL import ImageDraw, ImageFont

from stylenat_hub.errors import InputError

SHEET_SIDE = 8192  # px; larger sheets shrink their cells
_TITLE = 20  # px above all
_MARGIN = 200  # px kept for the title and the labels beside the cells
_GAP = 4
_HEADER = 8  # px more beside a first row and column of headers
SMALLEST = 96  # px of a cell; smaller pictures are enlarged without smoothing
_LARGEST = 256  # px of a cell unless asked otherwise
_FONT = 12
_SMALL_FONT = 8  # for labels that do not fit over their cell


def cell_side(resolution: int, columns: int, rows: int, largest: int = _LARGEST) -> int:
    """How large a sheet shows pictures of this resolution: small ones enlarged by a whole factor, large ones
    at most `largest` px, and all within `SHEET_SIDE`. Raises `InputError` if no cell is left."""
    side = resolution * max(1, -(-SMALLEST // resolution))
    room = (SHEET_SIDE - _MARGIN) // max(columns, rows, 1) - 2 * _GAP - _FONT
    side = min(side, max(largest, SMALLEST), room)
    if side < 8:
        raise InputError(
            f"a sheet of {columns} x {rows} pictures has cells below 8 pixels; ask for fewer rows or columns"
        )
    return side


class Sheet:
    """A white sheet of `rows` x `columns` cells, each with room for a label above it.

    row_labels, column_labels: at the left and at the top, or none. headers: set the first row and column
    apart. A title that is longer than the sheet widens it. In all texts `?` stands for line breaks and for
    what is no Unicode, as the name of a file may hold. The picture so far is `image`.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        cell: int,
        *,
        title: str = "",
        row_labels: Sequence[str] = (),
        column_labels: Sequence[str] = (),
        cell_labels: bool = False,
        headers: bool = False,
    ) -> None:
        self.rows, self.columns, self.cell = rows, columns, cell
        self.font = ImageFont.load_default(_FONT)
        title, row_labels = _one_line(title), [_one_line(text) for text in row_labels]
        self.left = _GAP + (max((self._width(t) for t in row_labels), default=0) + _GAP if row_labels else 0)
        self.top = _GAP + (_TITLE if title else 0) + (_FONT + _GAP if column_labels else 0)
        self.label = _FONT + _GAP if cell_labels else 0
        self.apart = _HEADER if headers else 0
        right, bottom = self._corner(rows, columns)
        right = max(right, self._width(title) + 2 * _GAP)
        self.image = PIL.Image.new("RGB", (right, bottom - self.label), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.pen.text((_GAP, _GAP), title, fill="black", font=self.font)
        for row, text in enumerate(row_labels):
            middle = self._corner(row, 0)[1] + cell // 2
            self.pen.text((_GAP, middle), text, fill="black", font=self.font, anchor="lm")
        for column, text in enumerate(column_labels):
            x = self._corner(0, column)[0] + cell // 2
            self._write_over(x, self.top - _GAP, text, "mb")

    def put(self, row: int, column: int, picture: PIL.Image.Image, label: str = "") -> None:
        """Show a picture in a cell, resized to it."""
        x, y = self._corner(row, column)
        self._write_over(x, y - self.label, label, "la")
        self.image.paste(fitted(picture, self.cell), (x, y))

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        """Where the picture of a cell begins, below its label."""
        x = self.left + column * (self.cell + _GAP) + (self.apart if column else 0)
        y = self.top + row * (self.cell + self.label + _GAP) + (self.apart if row else 0)
        return x, y + self.label

    def _width(self, text: str) -> int:
        return int(self.font.getlength(text)) + 1

    def _write_over(self, x: int, y: int, text: str, anchor: str) -> None:
        """A label over a cell: smaller where it does not fit, then cut, with a mark for the rest."""
        room, text = self.cell + _GAP // 2, _one_line(text)
        sizes = range(_FONT, _SMALL_FONT - 1, -1)
        fonts = (self.font if size == _FONT else ImageFont.load_default(size) for size in sizes)
        font = next((font for font in fonts if font.getlength(text) <= room), None)
        font, whole, kept = font or ImageFont.load_default(_SMALL_FONT), text, len(text)
        while kept and font.getlength(text) > room:
            kept -= 1
            text = f"{whole[:kept]}…"
        self.pen.text((x, y), text, fill="black", font=font, anchor=anchor)


def _one_line(text: str) -> str:
    """A text that a font can write in one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def fitted(picture: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """A square picture at `side` px: enlarged pixel by pixel where that goes evenly, else smoothly."""
    if picture.width == side:
        return picture
    even = side > picture.width and side % picture.width == 0
    return picture.resize(
        (side, side), PIL.Image.Resampling.NEAREST if even else PIL.Image.Resampling.LANCZOS
    )

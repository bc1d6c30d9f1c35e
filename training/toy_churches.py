"""Drawn church scenes: a small data set that needs no download. They are drawings, not LSUN Church.

    python -m training.toy_churches --count 10000 --size 64 --output churches.zip

A scene follows from its number alone (and Pillow's version): sky, light, clouds, hills, a church with a tower
left, right or in the middle, roofs, windows, a door, trees. `--style snow-night` draws the same scenes by
night in snow, as a second domain for fine-tuning.
"""

from __future__ import annotations

import colorsys
import io
import math
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from stylenat_hub import signals
from stylenat_hub.errors import InputError
from stylenat_hub.files import whole_file
from stylenat_hub.options import one_sentence

STYLES = ("day", "snow-night")
LARGEST = 2048  # px; four times that is drawn
OVERSAMPLING = 4  # drawn so many times larger and shrunk, which smooths the edges
Color = tuple[int, int, int]


def draw_church(number: int, size: int = 64, style: str = "day") -> Image.Image:
    """The scene of a number as an RGB picture of `size` x `size` pixels.

    Raises `InputError` for a size below 8, a negative number, or an unknown style.
    """
    if style not in STYLES:
        raise InputError(f"style is {style!r}; allowed: {', '.join(STYLES)}")
    if not 8 <= size <= LARGEST or number < 0:
        raise InputError(
            f"size is {size} and number is {number}; allowed: sizes from 8 to {LARGEST}, numbers from 0"
        )
    scene = _Scene(random.Random(number), size * OVERSAMPLING, style)
    scene.sky()
    scene.hills()
    scene.church()
    scene.trees()
    if style == "snow-night":
        scene.snow()
    return scene.image.resize((size, size), Image.Resampling.BOX)


class _Scene:
    """A picture in progress. Lengths are fractions of its side; y grows downwards."""

    def __init__(self, chance: random.Random, side: int, style: str) -> None:
        self.chance, self.side, self.night = chance, side, style == "snow-night"
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        self.horizon = chance.uniform(0.72, 0.82)
        self.warmth = chance.random()  # 0: noon, 1: evening
        self.light = chance.choice((-1, 1))  # from the left or from the right

    def paint(self, hue: float, saturation: float, value: float) -> Color:
        """A colour under this scene's light."""
        if self.night:
            hue, saturation, value = 0.62, 0.35 + 0.3 * saturation, 0.45 * value
        value *= 1 - 0.18 * self.warmth
        return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1)))

    def shape(self, points: list[tuple[float, float]], color: Color) -> None:
        self.pen.polygon([(x * self.side, y * self.side) for x, y in points], fill=color)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        self.pen.rectangle([v * self.side for v in (left, top, right, bottom)], fill=color)

    def disc(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        self.pen.ellipse([v * self.side for v in (x - rx, y - ry, x + rx, y + ry)], fill=color)

    def sky(self) -> None:
        evening = self.warmth > 0.5
        high = self.paint(self.chance.uniform(0.55, 0.63), 0.75, 0.8)
        low = self.paint(self.chance.uniform(0.02, 0.11) if evening else 0.56, 0.45 if evening else 0.15, 1)
        rows = round(self.horizon * self.side) + 2
        for row in range(rows):
            t = row / rows
            color = tuple(round(a + (b - a) * t) for a, b in zip(high, low, strict=True))
            self.pen.line([(0, row), (self.side, row)], fill=color)
        x, y = self.chance.uniform(0.05, 0.95), self.chance.uniform(0.05, 0.25)
        self.disc(x, y, 0.045, 0.045, (235, 235, 215) if self.night else (255, 244, 200))
        for _ in range(self.chance.randint(0, 4)):
            x, y, w = (
                self.chance.uniform(0, 1),
                self.chance.uniform(0.06, 0.4),
                self.chance.uniform(0.06, 0.14),
            )
            for step in (-0.6, 0.0, 0.6):
                self.disc(x + step * w, y, 0.7 * w, 0.28 * w, self.paint(0.6, 0.05, 0.98))

    def hills(self) -> None:
        hue = self.chance.uniform(0.22, 0.36)
        for depth in (0.0, 1.0):
            base = self.horizon - 0.06 * (1 - depth)
            a, b, f = self.chance.uniform(0.01, 0.05), self.chance.uniform(0, 6.3), self.chance.uniform(2, 6)
            line = [(i / 32, base + a * math.sin(f * i / 32 + b)) for i in range(33)]
            color = self.paint(hue, 0.35 + 0.3 * depth, 0.62 + 0.05 * depth)
            if self.night:  # snow in moonlight
                color = (150, 160, 185) if depth else (105, 115, 145)
            self.shape([*line, (1, 1), (0, 1)], color)

    def church(self) -> None:
        chance = self.chance
        middle, width, height = chance.uniform(0.4, 0.6), chance.uniform(0.34, 0.5), chance.uniform(0.2, 0.3)
        ground = self.horizon + 0.05
        left, right, top = middle - width / 2, middle + width / 2, ground - height
        wall = (chance.uniform(0.05, 0.14), chance.uniform(0.05, 0.3), chance.uniform(0.75, 0.98))
        roof = (chance.choice((0.02, 0.04, 0.07, 0.6)), chance.uniform(0.35, 0.7), chance.uniform(0.4, 0.65))
        roof_height = chance.uniform(0.08, 0.15)
        self.box(left, top, right, ground, self.paint(*wall))
        inset = 0.15 * width
        self.shape(
            [
                (left - 0.02, top),
                (left + inset, top - roof_height),
                (right - inset, top - roof_height),
                (right + 0.02, top),
            ],
            self.paint(*roof),
        )
        self.windows(left, right, top, height, chance.randint(2, 5))
        place = chance.choice((left + 0.06, middle, right - 0.06))
        self.tower(place, top, ground, wall, roof)

    def tower(
        self, x: float, top: float, ground: float, wall: tuple[float, ...], roof: tuple[float, ...]
    ) -> None:
        chance = self.chance
        half, rise = chance.uniform(0.055, 0.08), chance.uniform(0.14, 0.24)
        head = top - rise
        shade = (wall[0], wall[1], wall[2] * 0.8)
        self.box(x - half, head, x + half, ground, self.paint(*wall))
        dark = (x, x + half) if self.light < 0 else (x - half, x)
        self.box(dark[0], head, dark[1], ground, self.paint(*shade))
        peak = head - chance.uniform(0.1, 0.2)
        self.shape([(x - 1.25 * half, head), (x, peak), (x + 1.25 * half, head)], self.paint(*roof))
        gold = self.paint(0.13, 0.5, 0.9)
        self.box(x - 0.006, peak - 0.06, x + 0.006, peak + 0.01, gold)
        self.box(x - 0.022, peak - 0.045, x + 0.022, peak - 0.033, gold)
        self.arch(x, head + 0.3 * rise, 0.4 * half, 0.3 * rise, self.glass())
        self.arch(x, ground - 0.1, 0.45 * half, 0.1, self.paint(0.07, 0.6, 0.35))

    def windows(self, left: float, right: float, top: float, height: float, count: int) -> None:
        color = self.glass()
        for i in range(count):
            x = left + (right - left) * (i + 0.5) / count
            self.arch(x, top + 0.25 * height, 0.02, 0.45 * height, color)

    def glass(self) -> Color:
        return (255, 214, 120) if self.night else self.paint(0.58, 0.5, 0.42)

    def arch(self, x: float, top: float, half: float, height: float, color: Color) -> None:
        self.disc(x, top + half, half, half, color)
        self.box(x - half, top + half, x + half, top + height, color)

    def trees(self) -> None:
        chance = self.chance
        for _ in range(chance.randint(1, 4)):
            x = chance.choice((chance.uniform(0.0, 0.22), chance.uniform(0.78, 1.0)))
            base, tall = self.horizon + chance.uniform(0.04, 0.14), chance.uniform(0.16, 0.34)
            green = self.paint(chance.uniform(0.2, 0.4), chance.uniform(0.45, 0.7), chance.uniform(0.35, 0.6))
            self.box(x - 0.01, base - 0.3 * tall, x + 0.01, base, self.paint(0.07, 0.5, 0.35))
            if chance.random() < 0.5:
                for k in range(3):
                    y, w = base - (0.2 + 0.27 * k) * tall, 0.09 * (1 - 0.25 * k)
                    self.shape([(x - w, y), (x, y - 0.42 * tall), (x + w, y)], green)
            else:
                self.disc(x, base - 0.65 * tall, 0.32 * tall, 0.38 * tall, green)

    def snow(self) -> None:
        for _ in range(self.chance.randint(60, 120)):
            r = self.chance.uniform(0.003, 0.008)
            self.disc(self.chance.random(), self.chance.random(), r, r, (235, 240, 250))
        self.image = self.image.filter(ImageFilter.GaussianBlur(0.002 * self.side))


def write_churches(
    output: Path, count: int, size: int = 64, style: str = "day", start: int = 0, progress: bool = True
) -> None:
    """Write the scenes `start` to `start + count - 1` as PNGs into a zip file, whole or not at all.

    Equal arguments give equal bytes. Raises `InputError` for bad arguments or an output that cannot be
    written.
    """
    if count < 1 or start < 0 or output.suffix != ".zip":
        raise InputError(
            f"count is {count}, start {start} and the output {str(output)!r}; allowed: 1 or more, 0 or "
            f"more, a .zip"
        )
    with whole_file(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for number, data in tqdm(
            _encoded(start, count, size, style), total=count, desc="churches", disable=not progress
        ):
            # A fixed date, because a zip file would otherwise differ from run to run.
            archive.writestr(zipfile.ZipInfo(f"{number // 1000:05d}/church{number:08d}.png"), data)


def _encoded(start: int, count: int, size: int, style: str) -> Iterator[tuple[int, bytes]]:
    for number in range(start, start + count):
        buffer = io.BytesIO()
        draw_church(number, size, style).save(buffer, format="PNG")
        yield number, buffer.getvalue()


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Zip file to write.")],
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 10_000,
    size: Annotated[int, typer.Option(min=8, help="Side in pixels.")] = 64,
    style: Annotated[str, typer.Option(help="day or snow-night.")] = "day",
    start: Annotated[int, typer.Option(min=0, help="Number of the first scene.")] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw church scenes (drawings, not LSUN) into a zip file."""
    with one_sentence(debug):
        write_churches(output, count, size, style, start)
        typer.echo(f"wrote {count} pictures to {output}")


if __name__ == "__main__":
    with signals.caught():
        app(prog_name="python -m training.toy_churches")

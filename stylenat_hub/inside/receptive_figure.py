"""The receptive field of a schedule as a figure: a row per level, a column per partition of its heads."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stylenat_hub.files import whole_file
from stylenat_hub.inside.places import CENTRE
from stylenat_hub.inside.receptive import (
    Field,
    LevelFields,
    Schedule,
    percent,
    receptive_fields,
    resolve,
)
from stylenat_hub.metrics.sheets import figure_class
from stylenat_hub.pictures import check_png

CELLS = 128  # a panel has at most so many cells a side; of larger levels each cell is the largest of several
WEAKEST = 1e-3  # of a panel's largest weight; what is less has the same colour
_COLOURS = (2e-4, 2.5)  # where the colour map begins and ends: neither white nor black is used
_DPI = 200
_PANEL, _ACROSS, _DOWN = 1.28, 1.56, 2.0  # inches: side of a panel, 2 px a cell; from one to the next
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.8, 0.3, 0.95, 1.15
_GAP = 0.3  # between the partitions and what they are together
_MAP, _QUERY, _GREY = "magma_r", "#0080ff", "0.4"

_CAPTION = (
    "Colour: weight of each token for the output token in the middle of the blue lines, relative to the "
    "panel's largest; white: not seen. All keys that a head can see have the same weight: this is the "
    "schedule, not what a trained model uses. Skip connections, and normalisation over the picture, are left "
    "out. From an output pixel: through this and all later levels. Reach: from the first to the last token "
    "seen, in tokens and of the picture's side."
)
_POOLED = " Levels over {cells} px are drawn as {cells} x {cells} cells, each the largest weight in it."


def draw_receptive_field(
    name: str | os.PathLike[str],
    path: str | os.PathLike[str],
    query: tuple[float, float] = CENTRE,
    *,
    revision: str | None = None,
    namespace: str | None = None,
) -> None:
    """Write the receptive fields of a schedule as a PNG, whole or not at all.

    A row per level; in it each partition's field, those of one block and of all the level's blocks, and what
    an output pixel depends on there through all later levels (see `receptive.LevelFields`).
    name, revision, namespace, errors: as `receptive.resolve`. query: (x, y) in [0, 1], the place whose fields
    are drawn. Raises `InputError` too, before the work, if matplotlib is missing or no PNG can be written
    there.
    """
    new_figure = figure_class()
    path = check_png(path)
    schedule = resolve(name, revision, namespace)
    levels = receptive_fields(schedule.generator, query)
    figure = _figure(new_figure, schedule, levels)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi="figure", facecolor="white")


def _figure(new_figure: Any, schedule: Schedule, levels: Sequence[LevelFields]) -> Any:
    page = _Page(new_figure, max(len(level.runs) for level in levels), len(levels))
    page.say(page.width / 2, 0.2, f"Receptive field of {schedule.title}", 11, ha="center")
    page.say(_LEFT, 0.6, "each partition of the heads alone", 8, color=_GREY)
    page.say(page.left(page.runs), 0.6, "all heads together", 8, color=_GREY)
    for row, level in enumerate(levels):
        middle = page.top(row) + _PANEL / 2
        page.say(_LEFT - 0.12, middle, f"{level.size} px", 10, ha="right", va="center", weight="bold")
        for column, run in enumerate(level.runs):
            about = f"{run.heads} of {run.of} heads\n{_tokens(run.field)}"
            _panel(page.axes(row, column), run.field, run.label, about)
        if level.blocks < 2:
            _note(page, middle, level.blocks)
        for column, title, field in _sums(level):
            image = _panel(page.axes(row, page.runs + column), field, title, _weight(field))
    _legend(page, image, levels[-1].size > CELLS)
    return page.figure


def _note(page: _Page, middle: float, blocks: int) -> None:
    """Why panels of this row are missing."""
    style = {"va": "center", "color": _GREY}
    if blocks:
        page.say(page.left(page.runs + 1) + _PANEL / 2, middle, "one block is all", 7, ha="center", **style)
    else:
        page.say(_LEFT, middle, "no self-attention here:\ntokens see only the latent", 7, **style)


class _Page:
    """A figure that is measured in inches from its top left corner."""

    def __init__(self, new_figure: Any, runs: int, rows: int) -> None:
        self.runs = runs
        self.width = _LEFT + (runs + 3) * _ACROSS - (_ACROSS - _PANEL) + _GAP + _RIGHT
        self.height = _TOP + rows * _DOWN + _BOTTOM
        self.figure = new_figure(figsize=(self.width, self.height), dpi=_DPI)

    def left(self, column: int) -> float:
        """Of a panel; the first `runs` columns are for the partitions."""
        return _LEFT + column * _ACROSS + _GAP * (column >= self.runs)

    def top(self, row: int) -> float:
        return _TOP + row * _DOWN

    def axes(self, row: int, column: int) -> Any:
        return self.frame(self.left(column), self.top(row), _PANEL, _PANEL)

    def frame(self, left: float, top: float, width: float, height: float) -> Any:
        bottom = self.height - top - height
        inches = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(inches, facecolor="white")

    def say(self, left: float, top: float, words: str, size: float, **style: Any) -> None:
        style = {"va": "top", **style}
        self.figure.text(left / self.width, 1 - top / self.height, words, fontsize=size, **style)


def _sums(level: LevelFields) -> list[tuple[int, str, Field]]:
    """The panels after the partitions': column, title, field."""
    found = [(0, "one block", level.block)] if level.blocks else []
    found += [(1, f"{level.blocks} blocks", level.level)] if level.blocks > 1 else []
    return [*found, (2, "from an output pixel", level.picture)]


def _panel(axes: Any, field: Field, title: str, below: str) -> Any:
    image = axes.imshow(cells(field), cmap=_MAP, norm="log", interpolation="nearest", extent=(0, 1, 1, 0))
    image.set_clim(*_COLOURS)
    row, column = ((place + 0.5) / field.size for place in field.query)
    for near, far in ((0.07, 0.13), (-0.07, -0.13)):  # around the query, not over it
        axes.plot([column + near, column + far], [row, row], color=_QUERY, lw=1)
        axes.plot([column, column], [row + near, row + far], color=_QUERY, lw=1)
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    for side in axes.spines.values():
        side.set(linewidth=0.5, color="0.5")
    axes.set_title(title, fontsize=7, pad=3, y=1)
    axes.text(
        0.5, -0.03, below, transform=axes.transAxes, ha="center", va="top", fontsize=6, linespacing=1.25
    )
    return image


def cells(field: Field) -> np.ndarray:
    """The weights over their largest, [C, C] with C at most `CELLS`; NaN where nothing is seen."""
    weights = field.weights / field.weights.max()
    if field.size > CELLS:
        weights = F.max_pool2d(weights[None], field.size // CELLS)[0]
    return torch.where(weights > 0, weights.clamp(min=WEAKEST), torch.nan).numpy()


def _tokens(field: Field) -> str:
    plural = "s" * (field.tokens != 1)
    return (
        f"reach {field.reach} ({percent(field.reach / field.size)})\n"
        f"{field.tokens:,} token{plural} ({percent(field.coverage)})"
    )


def _weight(field: Field) -> str:
    return f"{_tokens(field)}\n90 % within {field.radius:.1f} ({percent(field.radius / field.size)})"


def _legend(page: _Page, image: Any, pooled: bool) -> None:
    """The colour bar, and what the figure shows and does not."""
    top = page.height - _BOTTOM + 0.1
    axes = page.frame(_LEFT, top, 2 * _ACROSS, 0.1)
    bar = page.figure.colorbar(image, cax=axes, orientation="horizontal")
    bar.set_ticks([1e-3, 1e-2, 1e-1, 1], labels=["0.001 or less", "0.01", "0.1", "1"])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=6, length=2)
    bar.ax.set_xlim(WEAKEST, 1)
    words = _CAPTION + (_POOLED.format(cells=CELLS) if pooled else "")
    lines = textwrap.wrap(words, width=int(22 * (page.width - _LEFT - _RIGHT)))
    page.say(_LEFT, top + 0.32, "\n".join(lines), 6.5)

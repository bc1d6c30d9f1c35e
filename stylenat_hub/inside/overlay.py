"""Figures of attention: a panel for each head, the partitions one after another, as a PNG.

The drawing is matplotlib's; what is in a panel is `panels`'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylenat_hub.errors import InputError
from stylenat_hub.files import whole_file
from stylenat_hub.inside.cross import CrossMaps
from stylenat_hub.inside.maps import AttentionAverages, AttentionMaps
from stylenat_hub.inside.panels import PANEL, Colours, offsets_panel, overlay, picture_panel
from stylenat_hub.layers.partitions import Partition
from stylenat_hub.metrics.sheets import figure_class

COLUMNS = 6  # panels in a row, beside the picture
_DPI = 128
_HIGHEST = 32_768  # px of a figure; matplotlib draws up to twice that
_LINE, _GAP, _HEAD, _FOOT = 12, 10, 44, 62  # px of a line of words, between panels, above all, below all


@dataclass(frozen=True, eq=False)
class _Panel:
    """The lines above a square [P, P, 3], and where its mark is: (x, y) in [0, 1], or nowhere."""

    title: str
    picture: np.ndarray
    mark: tuple[float, float] | None = None
    cross: bool = False


def draw_attention(
    maps: AttentionMaps,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    about: Mapping[str, str] | None = None,
) -> None:
    """What the heads look at from each query, as a PNG: the picture with the query, then for each partition
    the mean of its heads and each head. A ring marks the query.

    Colours go from 0 to the largest weight of the panel, which stands above it; where a head cannot look the
    picture is pale grey. title: of the figure. about: the PNG's text chunks.

    Raises `InputError` if matplotlib is missing, the figure would be too high or the file cannot be written.
    """
    new_figure, colours = figure_class(), Colours.load()
    rows = []
    for query, (x, y) in enumerate(maps.queries):
        first = _Panel(f"the query\nx {x:g}, y {y:g}", picture_panel(maps.image), (x, y), cross=True)
        rows += _rows(first, list(_heads(maps, query, colours)))
    _write(new_figure, colours, rows, path, title, about, "weight")


def draw_averages(
    averages: AttentionAverages,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    about: Mapping[str, str] | None = None,
) -> None:
    """What the heads look at on average over all places, as a PNG: first by offset from the query, which is
    the middle, then by place in the picture. Colours, arguments and errors as in `draw_attention`."""
    new_figure, colours = figure_class(), Colours.load()
    first = _Panel("the picture", picture_panel(averages.image))
    rows = _rows(first, list(_by_offset(averages, colours)))
    rows += _rows(first, list(_received(averages, colours)))
    _write(new_figure, colours, rows, path, title, about, "mean weight", "; even: if all places got the same")


def draw_cross(
    maps: CrossMaps,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    about: Mapping[str, str] | None = None,
) -> None:
    """How much each place attends to each of the latent's tokens, as a PNG: a panel for each token. Colours,
    arguments and errors as in `draw_attention`."""
    new_figure, colours = figure_class(), Colours.load()
    everywhere = torch.ones(maps.level, maps.level, dtype=torch.bool)
    panels = [
        _Panel(
            f"token {number + 1} of the latent's {len(maps.weights)}\n"
            f"mean of {maps.heads} heads; largest {weights.max():.2g}",
            overlay(maps.image, weights.float(), everywhere, 1, colours)[0],
        )
        for number, weights in enumerate(maps.weights)
    ]
    _write(
        new_figure,
        colours,
        _rows(_Panel("the picture", picture_panel(maps.image)), [panels]),
        path,
        title,
        about,
        "weight",
    )


def _heads(maps: AttentionMaps, query: int, colours: Colours) -> Iterator[list]:
    """The panels of each partition, for one query."""
    for number, part in enumerate(maps.partitions):
        seen, step = maps.seen(query, number), _step(part)
        yield [
            _Panel(
                f"{_name(number, maps.partitions)}\n{heads}; largest {weights.max():.2g}",
                *overlay(maps.image, weights.float(), seen, step, colours, maps.tokens[query]),
            )
            for heads, weights in _with_mean(part, maps.map(query, number))
        ]


def _by_offset(averages: AttentionAverages, colours: Colours) -> Iterator[list]:
    for number, part in enumerate(averages.partitions):
        reach = (part.keys.shape[1] - 1) * _step(part)
        yield [
            _Panel(
                f"{_name(number, averages.partitions)}\n{heads}; largest {weights.max():.2g}\n"
                f"by offset, {-reach} to {reach} tokens",
                offsets_panel(weights.float(), colours),
                (0.5, 0.5),
            )
            for heads, weights in _with_mean(part, averages.by_offset[number])
        ]


def _received(averages: AttentionAverages, colours: Colours) -> Iterator[list]:
    everywhere = torch.ones(averages.level, averages.level, dtype=torch.bool)
    for number, part in enumerate(averages.partitions):
        yield [
            _Panel(
                f"{_name(number, averages.partitions)}\n"
                f"{heads}; largest {weights.max() * averages.level**2:.3g} x even\nby place looked at",
                overlay(averages.image, weights.float(), everywhere, 1, colours)[0],
            )
            for heads, weights in _with_mean(part, averages.received[number])
        ]


def _with_mean(part: Partition, weights: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The heads' weights [n, ...] with what to call them; before several heads their mean."""
    first = part.heads.start + 1
    heads = [(f"head {first + i}", one) for i, one in enumerate(weights)]
    mean = (f"mean of heads {first} to {part.heads.stop}", weights.mean(dim=0))
    return [mean, *heads] if len(heads) > 1 else heads


def _name(number: int, partitions: tuple[Partition, ...]) -> str:
    return f"partition {number + 1} of {len(partitions)}: {partitions[number].label}"


def _step(part: Partition) -> int:
    """Tokens from one key to the next (the least of them, where a window continues at the other border)."""
    if part.keys.shape[1] == 1:
        return 1
    return int(part.keys.diff(dim=1).abs().min())


def _rows(first: _Panel, groups: list[list[_Panel]]) -> list[list[_Panel | None]]:
    """One partition's panels after another, a new row where one would not fit into the row begun; the first
    row begins with the picture."""
    rows: list[list[_Panel]] = [[]]
    for group in groups:
        if rows[-1] and len(rows[-1]) + len(group) > COLUMNS:
            rows.append([])
        for panel in group:
            if len(rows[-1]) == COLUMNS:
                rows.append([])
            rows[-1].append(panel)
    return [[None if number else first, *row] for number, row in enumerate(rows)]


def _write(
    new_figure: Any,
    colours: Colours,
    rows: list[list[_Panel | None]],
    path: str | os.PathLike[str],
    title: str,
    about: Mapping[str, str] | None,
    what: str,
    more: str = "",
) -> None:
    """Panels at whole pixels, so that each of their pixels is one of the figure's."""
    width = _GAP + max(3, *map(len, rows)) * (PANEL + _GAP)
    words = _LINE * (1 + max(panel.title.count("\n") + 1 for row in rows for panel in row if panel))
    height = _HEAD + len(rows) * (PANEL + words + _GAP) + _FOOT
    if height > _HIGHEST:
        raise InputError(f"the figure would be {height:,} pixels high; ask for fewer queries at a time")
    figure = new_figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    figure.text(_GAP / width, 1 - 26 / height, title, fontsize=11, va="center")
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            if panel is not None:
                left, top = _GAP + x * (PANEL + _GAP), _HEAD + y * (PANEL + words + _GAP) + words
                _show(
                    figure, panel, (left / width, 1 - (top + PANEL) / height, PANEL / width, PANEL / height)
                )
    _scale(
        figure,
        colours,
        f"{what}, from 0 to the largest of the panel, which stands above it{more}",
        width,
        height,
    )
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata=dict(about or {}))


def _show(figure: Any, panel: _Panel, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    axes.imshow(np.clip(panel.picture, 0, 1), interpolation="nearest", extent=(0, 1, 1, 0))
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    axes.set_title(panel.title, fontsize=6.5, loc="left", pad=3, linespacing=1.15)
    if panel.mark is not None:
        kind, size = ("+", 15) if panel.cross else ("o", 13)
        for colour, line in (("black", 3.2), ("white", 1.4)):  # to be seen on dark and on light
            style = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": line}
            axes.plot(*panel.mark, kind, markersize=size, clip_on=False, **style)


def _scale(figure: Any, colours: Colours, note: str, width: int, height: int) -> None:
    """The bar of colours below all."""
    axes = figure.add_axes((_GAP / width, 36 / height, PANEL / width, 12 / height))
    axes.imshow(colours.table[None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xticks=[0, 1], yticks=[])
    axes.set_xticklabels(["0", "the panel's largest"], fontsize=7)
    axes.get_xticklabels()[1].set_horizontalalignment("right")
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    figure.text((2 * _GAP + PANEL) / width, 42 / height, f"colour: {note}", fontsize=7, va="center")

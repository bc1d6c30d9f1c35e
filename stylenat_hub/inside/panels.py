"""Panels of attention: weights over a picture, as squares of colour [P, P, 3] in [0, 1] that are drawn as
they are, one value for one pixel.

Legend: L tokens of an axis, P pixels of a panel's side, K keys that one query sees along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

PANEL = 256  # px; a power of two, as the levels are
_SPOT = 7  # px that a token of a sparse pattern has at least, if that leaves its neighbours apart
_SMALL = PANEL // 5  # px; what looks at less gets an enlargement in a corner
_INSET = 104  # px of that
_FRAME = (0.0, 0.75, 0.75)
_PALE, _OPAQUE = 0.55, 0.75  # how white the picture is made where nobody looks; how much hides it elsewhere


@dataclass(frozen=True, eq=False)
class Colours:
    """matplotlib's perceptually uniform map `magma`: 0 is black, 1 is pale yellow."""

    table: np.ndarray

    @classmethod
    def load(cls) -> Colours:
        from matplotlib import colormaps

        return cls(colormaps["magma"](np.linspace(0, 1, 256))[:, :3])

    def of(self, values: np.ndarray) -> np.ndarray:
        """[...] in [0, 1] -> [..., 3]."""
        return self.table[(np.clip(values, 0, 1) * 255).round().astype(int)]


def enlarged(square: np.ndarray, side: int) -> np.ndarray:
    """[A, A, ...] -> [side, side, ...], each entry a block of pixels, unsmoothed."""
    place = np.arange(side) * len(square) // side
    return square[place][:, place]


def picture_panel(image: torch.Tensor) -> np.ndarray:
    """RGB [3, R, R] in [0, 1] -> [P, P, 3]: unsmoothed if it is smaller, means of pixels if it is larger."""
    if image.shape[-1] > PANEL:
        image = F.adaptive_avg_pool2d(image, PANEL)
    return enlarged(image.permute(1, 2, 0).numpy(), PANEL)


def overlay(
    image: torch.Tensor,
    weights: torch.Tensor,
    seen: torch.Tensor,
    step: int,
    colours: Colours,
    token: tuple[int, int] | None = None,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Weights [L, L] in colour over a picture [3, R, R] in pale grey: [P, P, 3], and where in it the token
    (row, column) is to be marked, as (x, y) in [0, 1].

    Colours go from 0 to the largest weight. seen: [L, L] bool, where the head can look; elsewhere the
    picture shows. step: tokens from one of these to the next. A finer level shows the largest weight in each
    pixel, a sparse pattern's tokens are drawn as spots, and one that is small is enlarged in a corner, its
    place in a frame.
    """
    length = len(seen)
    values = weights / weights.max().clamp(min=1e-30)
    panel = _coloured(_grey(picture_panel(image)), values, seen, step, colours)
    extent = _extent(seen)
    if token is None or extent[2] * PANEL >= _SMALL * length:
        return panel, token and _middle(token, length)
    top, left, side = extent
    part = (slice(top, top + side), slice(left, left + side))
    grid = F.interpolate(image[None], size=(length, length), mode="area")[0].permute(1, 2, 0)
    grey = _grey(enlarged(grid[part].numpy(), _INSET))
    inset = _coloured(grey, values[part], seen[part], step, colours)
    corner = _put_inset(panel, inset, extent, length)
    x, y = _middle((token[0] - top, token[1] - left), side)
    return panel, ((corner[1] + x * _INSET) / PANEL, (corner[0] + y * _INSET) / PANEL)


def offsets_panel(weights: torch.Tensor, colours: Colours) -> np.ndarray:
    """Mean weights by offset [2K-1, 2K-1] as they are, from 0 to the largest."""
    values = weights / weights.max().clamp(min=1e-30)
    return colours.of(enlarged(values.numpy(), PANEL))


def _coloured(
    grey: np.ndarray, values: torch.Tensor, seen: torch.Tensor, step: int, colours: Colours
) -> np.ndarray:
    """A picture [p, p, 3] under the colours of the values [A, A] where they are seen."""
    side = len(grey)
    opacity = _OPAQUE * (_fitted(seen.float(), step, side) > 0)[..., None]
    return grey * (1 - opacity) + colours.of(_fitted(values, step, side)) * opacity


def _grey(picture: np.ndarray) -> np.ndarray:
    """A picture [P, P, 3] in pale grey."""
    grey = picture @ np.array([0.299, 0.587, 0.114])
    return np.repeat((grey * (1 - _PALE) + _PALE)[..., None], 3, axis=2)


def _fitted(values: torch.Tensor, step: int, side: int) -> np.ndarray:
    """[A, A] -> [side, side] by the largest in each pixel, single tokens grown to spots where that fits."""
    length = len(values)
    if length > side:
        values = F.adaptive_max_pool2d(values[None, None], side)[0, 0]
    panel = enlarged(values.numpy(), side)
    apart, token = step * side // length, max(1, side // length)
    grow = min(_SPOT, apart // 2) - token
    if grow < 2:
        return panel
    odd = 2 * (grow // 2) + 1
    return F.max_pool2d(torch.from_numpy(panel)[None, None], odd, stride=1, padding=odd // 2)[0, 0].numpy()


def _middle(token: tuple[int, int], length: int) -> tuple[float, float]:
    """A token (row, column) as (x, y) in [0, 1]."""
    return (token[1] + 0.5) / length, (token[0] + 0.5) / length


def _extent(seen: torch.Tensor) -> tuple[int, int, int]:
    """The first row, the first column and the side of the smallest square that holds all that is seen."""
    rows, columns = (torch.nonzero(seen.any(dim=axis)).flatten().tolist() for axis in (1, 0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    return min(rows[0], len(seen) - side), min(columns[0], len(seen) - side), side


def _put_inset(
    panel: np.ndarray, inset: np.ndarray, extent: tuple[int, int, int], length: int
) -> tuple[int, int]:
    """Frame the extent (row, column, side in tokens) in the panel and put the inset into the corner farthest
    from it; returns where that begins."""
    *edges, side = extent
    scale = PANEL / length
    _frame(panel, *(int(edge * scale) - 2 for edge in edges), int(np.ceil(side * scale)) + 4)
    top, left = (2 if 2 * edge + side > length else PANEL - _INSET - 2 for edge in edges)
    panel[top : top + _INSET, left : left + _INSET] = inset
    _frame(panel, top - 2, left - 2, _INSET + 4)
    return top, left


def _frame(panel: np.ndarray, top: int, left: int, side: int, width: int = 2) -> None:
    """Draw the outline of a square, as much of it as lies inside the panel."""
    rows, columns = (np.clip([edge, edge + side], 0, PANEL) for edge in (top, left))
    inside = np.zeros(panel.shape[:2], dtype=bool)
    inside[rows[0] : rows[1], columns[0] : columns[1]] = True
    inner_rows, inner_columns = (slice(max(edge + width, 0), edge + side - width) for edge in (top, left))
    inside[inner_rows, inner_columns] = False
    panel[inside] = _FRAME

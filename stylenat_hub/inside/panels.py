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
_SPOT = 5  # px that a token of a sparse pattern has at least, if that leaves its neighbours apart
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
    image: torch.Tensor, weights: torch.Tensor, seen: torch.Tensor, step: int, colours: Colours
) -> np.ndarray:
    """Weights [L, L] in colour over a picture [3, R, R] in pale grey, [P, P, 3].

    Colours go from 0 to the largest weight. seen: [L, L] bool, where the head can look; elsewhere the
    picture shows. step: tokens from one of these to the next. A finer level shows the largest weight in each
    pixel, a sparse pattern's tokens are drawn as spots, and one that is small is enlarged in a corner, its
    place in a frame.
    """
    grey = _grey(picture_panel(image))
    values = _fitted(weights / weights.max().clamp(min=1e-30), step)
    shown = _fitted(seen.float(), step) > 0
    panel = _blend(grey, values, shown, colours)
    top, left, side = _extent(seen)
    if side * PANEL >= _SMALL * len(seen):
        return panel
    return _with_inset(panel, image, weights, seen, (top, left, side), colours)


def offsets_panel(weights: torch.Tensor, colours: Colours) -> np.ndarray:
    """Mean weights by offset [2K-1, 2K-1] as they are, from 0 to the largest."""
    values = weights / weights.max().clamp(min=1e-30)
    return colours.of(enlarged(values.numpy(), PANEL))


def _blend(grey: np.ndarray, values: np.ndarray, shown: np.ndarray, colours: Colours) -> np.ndarray:
    opacity = _OPAQUE * shown[..., None]
    return grey * (1 - opacity) + colours.of(values) * opacity


def _grey(picture: np.ndarray) -> np.ndarray:
    """A picture [P, P, 3] in pale grey."""
    grey = picture @ np.array([0.299, 0.587, 0.114])
    return np.repeat((grey * (1 - _PALE) + _PALE)[..., None], 3, axis=2)


def _fitted(values: torch.Tensor, step: int) -> np.ndarray:
    """[L, L] -> [P, P] by the largest in each pixel, single tokens grown to spots where that fits."""
    length = len(values)
    if length > PANEL:
        values = F.max_pool2d(values[None, None], length // PANEL)[0, 0]
    panel = enlarged(values.numpy(), PANEL)
    apart, token = step * PANEL // length, max(1, PANEL // length)
    grow = min(_SPOT, apart // 2) - token
    if grow < 2:
        return panel
    odd = 2 * (grow // 2) + 1
    return F.max_pool2d(torch.from_numpy(panel)[None, None], odd, stride=1, padding=odd // 2)[0, 0].numpy()


def _extent(seen: torch.Tensor) -> tuple[int, int, int]:
    """The first row, the first column and the side of the smallest square that holds all that is seen."""
    rows, columns = (torch.nonzero(seen.any(dim=axis)).flatten().tolist() for axis in (1, 0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    return min(rows[0], len(seen) - side), min(columns[0], len(seen) - side), side


def _with_inset(
    panel: np.ndarray,
    image: torch.Tensor,
    weights: torch.Tensor,
    seen: torch.Tensor,
    extent: tuple[int, int, int],
    colours: Colours,
) -> np.ndarray:
    """The panel with what lies in the extent enlarged, in the corner farthest from it."""
    top, left, side = extent
    length = len(seen)
    part = (slice(top, top + side), slice(left, left + side))
    grid = F.interpolate(image[None], size=(length, length), mode="area")[0].permute(1, 2, 0)
    values = weights[part] / weights.max().clamp(min=1e-30)
    inset = _blend(
        _grey(enlarged(grid[part].numpy(), _INSET)),
        enlarged(values.numpy(), _INSET),
        enlarged(seen[part].numpy(), _INSET),
        colours,
    )
    panel = panel.copy()
    scale = PANEL / length
    first = [int(edge * scale) - 2 for edge in (top, left)]
    _frame(panel, first[0], first[1], int(np.ceil(side * scale)) + 4)
    middle = length / 2 - side / 2
    corner = [2 if edge > middle else PANEL - _INSET - 2 for edge in (top, left)]
    panel[corner[0] : corner[0] + _INSET, corner[1] : corner[1] + _INSET] = inset
    _frame(panel, corner[0] - 2, corner[1] - 2, _INSET + 4)
    return panel


def _frame(panel: np.ndarray, top: int, left: int, side: int, width: int = 2) -> None:
    """Draw the outline of a square, as much of it as lies inside the panel."""
    rows, columns = (np.clip([edge, edge + side], 0, PANEL) for edge in (top, left))
    inside = np.zeros(panel.shape[:2], dtype=bool)
    inside[rows[0] : rows[1], columns[0] : columns[1]] = True
    inner_rows, inner_columns = (slice(max(edge + width, 0), edge + side - width) for edge in (top, left))
    inside[inner_rows, inner_columns] = False
    panel[inside] = _FRAME

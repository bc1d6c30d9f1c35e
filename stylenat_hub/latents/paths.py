"""Paths through the styles of seeds, frame by frame: what `stylenat interpolate` makes videos of.

Three kinds: `slerp` goes along the sphere between latents z, as they are spread; `lerp` in straight lines
between styles w; `smooth` along a Catmull-Rom spline through them, which passes key styles without a kink.
Legend: n keys, t from 0 (a) to 1 (b).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence

import PIL.Image
import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.path_length import along_sphere
from stylenat_hub.models.base import Generator
from stylenat_hub.pipeline import GANPipeline, check_drawing, check_seeds, latents
from stylenat_hub.sheet import Sheet, cell_side

KINDS = ("smooth", "lerp", "slerp")
MAX_FRAMES = 1_000_000  # a guard against typing mistakes
_WIDEST = 4096  # px of a grid's longer side: what players of videos still show
_CELL = 256  # px of a grid's cell at most


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """From a to b [..., z_dim] along the sphere: the angle and the length change evenly with t [..., 1].

    Computed in float64; the type is that of a. t = 0 is a and t = 1 is b, to the bit. Between opposite
    latents, which every direction leads to, it goes by the axis that a has least of. Source: Shoemake,
    "Animating rotation with quaternion curves", 1985; for latents: White, arXiv 1609.04468.
    """
    place = torch.as_tensor(t, dtype=torch.float64, device=a.device)
    between = along_sphere(a.double(), b.double(), place).to(a.dtype)
    return torch.where(place == 0, a, torch.where(place == 1, b, between))


def lerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """From a to b in a straight line, in the type of a. t: one number, or a tensor that fits a's shape."""
    return torch.lerp(a.double(), b.double(), torch.as_tensor(t, dtype=torch.float64)).to(a.dtype)


def default_kind(generator: Generator) -> str:
    """`smooth`, or `slerp` where there are no styles apart from the latents, as in HiT."""
    return "slerp" if generator.styles_are_latents else "smooth"


class StylePath:
    """A path through the styles of `seeds` in `frames` steps, `len(path)`; `styles` gives any of them.

    seeds: the keys, at least two; a seed may come back. frames: at least one per key; keys are `frames / n`
    frames apart, also where that is no whole number. kind: one of `KINDS`, None for `default_kind`. closed: a
    loop, whose last frame is followed by the first; otherwise the first and the last frame are the first and
    the last key. truncation_...: as in `GANPipeline.__call__`. A frame that lies on a key is what the
    pipeline draws of that seed, on the CPU to the bit.

    With `truncation_centers` each key goes to its own nearest centre and the frames between two keys to what
    lies between their centres, so that no picture jumps where another centre becomes the nearest.

    Raises `InputError`: an argument out of range, or a kind that the model has no styles for.
    """

    def __init__(
        self,
        pipeline: GANPipeline,
        seeds: Iterable[int],
        frames: int,
        kind: str | None = None,
        *,
        closed: bool = True,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        truncation_centers: torch.Tensor | None = None,
    ) -> None:
        self.generator, self.closed = pipeline.generator, closed
        self.seeds = list(check_seeds(seeds))
        self.kind = _checked_kind(self.generator, kind)
        self.frames = _checked_frames(frames, len(self.seeds))
        self._truncation = (truncation_psi, truncation_cutoff)
        options = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
        # On the CPU, because not every device computes in float64.
        self._keys = pipeline.styles(self.seeds, **options, truncation_centers=truncation_centers).cpu()
        self._goals = None
        if self.kind == "slerp":
            self._keys = latents(self.seeds, self.generator.z_dim)
            if truncation_centers is not None:
                nearest = {"truncation_psi": 0.0, "truncation_centers": truncation_centers}
                self._goals = pipeline.styles(self.seeds, **nearest)[:, 0].cpu()

    def __len__(self) -> int:
        return self.frames

    @torch.no_grad()
    def styles(self, first: int = 0, count: int | None = None) -> torch.Tensor:
        """The styles [count, num_ws, w_dim] of the frames from `first` on, as many as there are (None: all),
        in the generator's type, truncated. Raises `InputError` for a first frame that is not there."""
        if not 0 <= first < self.frames:
            raise InputError(f"the frame {first} is not on this path; allowed: 0 to {self.frames - 1}")
        last = self.frames if count is None else min(first + count, self.frames)
        at = self._latent_styles if self.kind == "slerp" else self._between_styles
        # One by one, so that a frame does not depend on how many are asked for at a time.
        return torch.cat([at(*self._place(frame)) for frame in range(first, last)])

    def _place(self, frame: int) -> tuple[int, float]:
        """The key before a frame, and how far the frame is on the way to the next one; whole numbers decide,
        so that rounding moves no frame off a key."""
        parts = (len(self.seeds), self.frames) if self.closed else (len(self.seeds) - 1, self.frames - 1)
        key, rest = divmod(frame * parts[0], parts[1])
        return key, rest / parts[1]

    def _key(self, number: int, of: torch.Tensor) -> torch.Tensor:
        """One key, as a batch; beyond the ends the other end's of a loop, else the last one again."""
        last = len(self.seeds) - 1
        return of[[number % (last + 1) if self.closed else min(max(number, 0), last)]]

    def _latent_styles(self, key: int, t: float) -> torch.Tensor:
        z = slerp(self._key(key, self._keys), self._key(key + 1, self._keys), t)
        weights = self.generator.w_avg
        ws = self.generator.mapping(z.to(weights.device, weights.dtype))
        goal = None
        if self._goals is not None:
            goal = lerp(self._key(key, self._goals), self._key(key + 1, self._goals), t)
        return self.generator.truncate(ws, *self._truncation, goal)

    def _between_styles(self, key: int, t: float) -> torch.Tensor:
        """Keys are truncated already: what lies between them then is, too, because truncation is linear."""
        a, b = self._key(key, self._keys), self._key(key + 1, self._keys)
        return lerp(a, b, t) if self.kind == "lerp" else _hermite(a, b, *self._slopes(key), t)

    def _slopes(self, key: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The path's velocities at a key and at the next, per key: half of what lies between a key's
        neighbours (Catmull-Rom), at the ends of an open path all of it."""
        found = []
        for number in (key, key + 1):
            end = not self.closed and (number <= 0 or number >= len(self.seeds) - 1)
            after, before = (self._key(number + step, self._keys).double() for step in (1, -1))
            found.append((after - before) * (1.0 if end else 0.5))
        return found[0], found[1]


def _hermite(a: torch.Tensor, b: torch.Tensor, from_a: torch.Tensor, to_b: torch.Tensor, t: float):
    """The cubic from a to b that leaves and arrives with these velocities; t = 0 is a to the bit."""
    share = t * t * (3 - 2 * t)
    path = (1 - share) * a.double() + share * b.double()
    return (path + t * (1 - t) ** 2 * from_a - t * t * (1 - t) * to_b).to(a.dtype)


def check_cells(seeds: Sequence[int], columns: int, rows: int) -> list[list[int]]:
    """The seeds shared out among the cells of a grid, in order. Raises `InputError` unless every cell gets
    equally many, at least two."""
    cells = columns * rows
    if len(seeds) % cells or len(seeds) < 2 * cells:
        grid = f"a grid of {columns} x {rows}" if cells > 1 else "a path"
        several = f"a multiple of {cells}, {2 * cells} or more" if cells > 1 else "2 or more"
        raise InputError(
            f"{grid} moves between the seeds of each cell, and there {'are' if len(seeds) > 1 else 'is'} "
            f"{len(seeds)}; allowed: {several}"
        )
    share = len(seeds) // cells
    return [list(seeds[start : start + share]) for start in range(0, len(seeds), share)]


def frame_size(resolution: int, columns: int, rows: int) -> tuple[int, int]:
    """Width and height in px of the frames that `draw_paths` gives."""
    return (resolution,) * 2 if columns * rows == 1 else _sheet(resolution, columns, rows).image.size


def draw_paths(
    pipeline: GANPipeline, paths: Sequence[StylePath], *, columns: int = 1, batch_size: int = 8
) -> Iterator[PIL.Image.Image]:
    """The frames of one path, or of several side by side in so many columns, drawn as they are asked for.

    Raises `InputError` if the paths differ in length or do not fill the rows, or columns or batch_size are
    below 1.
    """
    check_drawing(batch_size)
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise InputError(f"columns is {columns!r}; allowed: a whole number, 1 or more")
    rows = len(paths) // columns
    if len({len(path) for path in paths}) != 1 or rows * columns != len(paths):
        raise InputError(
            f"{len(paths)} paths of {sorted({len(path) for path in paths})} frames in {columns} columns; "
            "allowed: paths of one length that fill the rows"
        )
    return _frames(pipeline, paths, _sheet(pipeline.generator.resolution, columns, rows), batch_size)


def _sheet(resolution: int, columns: int, rows: int) -> Sheet:
    largest = min(_CELL, _WIDEST // max(columns, rows) - 4)
    return Sheet(rows, columns, cell_side(resolution, columns, rows, largest))


def _frames(
    pipeline: GANPipeline, paths: Sequence[StylePath], sheet: Sheet, batch_size: int
) -> Iterator[PIL.Image.Image]:
    for first in range(0, len(paths[0]), batch_size):
        drawn = [pipeline.draw(path.styles(first, batch_size), batch_size=batch_size) for path in paths]
        for pictures in zip(*drawn, strict=True):
            if len(pictures) == 1:
                yield pictures[0]
                continue
            for number, picture in enumerate(pictures):
                sheet.put(*divmod(number, sheet.columns), picture)
            yield sheet.image.copy()


def _checked_kind(generator: Generator, kind: str | None) -> str:
    kind = default_kind(generator) if kind is None else kind
    if kind not in KINDS:
        raise InputError(f"the kind of path is {kind!r}; allowed: {', '.join(KINDS)}")
    if generator.styles_are_latents and kind != "slerp":
        raise InputError(
            f"a path of the kind {kind!r} goes through styles, and a {type(generator).__name__} has none "
            "apart from its latents, whose sphere it would leave; use slerp"
        )
    return kind


def _checked_frames(frames: int, keys: int) -> int:
    if keys < 2:
        raise InputError("a path goes between seeds, and there is 1; give two or more, such as 1,5,9")
    try:
        number = -1 if isinstance(frames, bool) else operator.index(frames)
    except TypeError:
        number = -1
    if not keys <= number <= MAX_FRAMES:
        raise InputError(
            f"frames is {frames!r}; allowed: a whole number from {keys}, one per seed, to {MAX_FRAMES:,}"
        )
    return number

"""What a model shows while a slider moves: its picture if that is quick, or one after fewer levels."""

from __future__ import annotations

import time

import numpy as np
import PIL.Image

from studio.pool import Loaded

BUDGET = 0.25  # seconds for a picture that follows a slider
SMALLEST = 32  # px
ALIKE = 0.8  # correlation with the whole picture below which an early one would mislead


def choose(loaded: Loaded) -> None:
    """Set `loaded.preview_px`, by measuring.

    Levels are tried from the smallest side on while they are quick enough. A network is free to paint nothing
    before its last levels (the built-in one does so), so an early picture counts only if it looks like the
    whole one.
    """
    pipeline = loaded.pipeline
    ws = pipeline.styles([0])
    side, resolution = min(SMALLEST, loaded.generator.resolution), loaded.generator.resolution
    tried: dict[int, PIL.Image.Image] = {}
    pipeline.draw(ws, px=side)  # the first call sets things up
    while side <= resolution:
        start = time.perf_counter()
        picture = pipeline.draw(ws, px=side)[0]
        if time.perf_counter() - start > BUDGET and tried:
            break
        tried[picture.width] = picture
        side = 2 * picture.width
    if resolution not in tried:
        whole = pipeline.draw(ws)[0]
        tried = {px: picture for px, picture in tried.items() if alike(picture, whole) >= ALIKE}
    loaded.preview_px = max(tried, default=None)


def alike(small: PIL.Image.Image, whole: PIL.Image.Image) -> float:
    """The correlation of a small picture with a large one shrunk to its size, from -1 to 1; 0 for a flat
    one."""
    shrunk = whole.convert("RGB").resize(small.size, PIL.Image.Resampling.BOX)
    one, other = (np.asarray(p.convert("RGB"), dtype=np.float64).ravel() for p in (small, shrunk))
    one, other = one - one.mean(), other - other.mean()
    spread = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / spread if spread else 0.0

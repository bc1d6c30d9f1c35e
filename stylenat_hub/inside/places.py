"""Places of a picture that somebody asks about, and the tokens that they lie in."""

from __future__ import annotations

import math
from typing import Any

from stylenat_hub.errors import InputError

CENTRE = (0.5, 0.5)


def check_place(place: Any) -> tuple[float, float]:
    """(x, y) as floats, from (0, 0) at the top left to (1, 1) at the bottom right.

    Raises `InputError`: something else than two numbers from 0 to 1.
    """
    try:
        x, y = map(float, place)
    except (TypeError, ValueError):
        x = y = math.nan
    if not (0 <= x <= 1 and 0 <= y <= 1):  # NaN neither
        raise InputError(
            f"the query {place!r:.100} is no place in the picture; allowed: (x, y), two numbers from 0 "
            "(left, top) to 1, such as (0.5, 0.4)"
        )
    return x, y


def token_at(position: float, length: int) -> int:
    """The token of an axis of so many that a position in [0, 1] lies in; 1 lies in the last."""
    return min(int(position * length), length - 1)

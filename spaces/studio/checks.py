"""Everything that comes from a visitor is checked here, whatever the page's own controls would allow.

Each function returns the value in the type the package wants, or raises `InputError` with one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stylenat_hub.errors import InputError, shown
from stylenat_hub.pipeline import MAX_SEED

MAX_COUNT = 16  # pictures of one request
MAX_CENTERS = 8
TRUNCATION = (0.0, 1.5)


def whole(what: str, value: Any, least: int, most: int) -> int:
    """A whole number from `least` to `most`; a float such as 3.0, which browsers send, counts as one."""
    if not _between(value, least, most) or value != int(value):
        raise InputError(
            f"{what} is {shown(repr(value))}; allowed: a whole number from {least:,} to {most:,}"
        )
    return int(value)


def real(what: str, value: Any, least: float, most: float) -> float:
    """A finite number from `least` to `most`."""
    if not _between(value, least, most):
        raise InputError(f"{what} is {shown(repr(value))}; allowed: a number from {least:g} to {most:g}")
    return float(value)


def _between(value: Any, least: float, most: float) -> bool:
    """Is it a number in this range? NaN compares as False, and a huge whole number without overflow."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def text(what: str, value: Any, longest: int = 200) -> str:
    """A text of some characters, all of them printable."""
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise InputError(
            f"{what} is {shown(repr(value))}; allowed: a text of up to {longest} printable characters"
        )
    return value


def seed_range(seed: Any, count: Any = 1) -> range:
    """`count` seeds from `seed` on."""
    count = whole("the number of pictures", count, 1, MAX_COUNT)
    first = whole("the seed", seed, 0, MAX_SEED)
    if first + count - 1 > MAX_SEED:
        raise InputError(
            f"{count} pictures from the seed {first:,} on need seeds beyond {MAX_SEED:,}, the last one; "
            "begin earlier or ask for fewer"
        )
    return range(first, first + count)


def truncation(value: Any) -> float:
    return real("the truncation", value, *TRUNCATION)


def one_of(what: str, value: Any, allowed: Sequence[Any]) -> Any:
    """One of these values, given as it is or, a whole number, as text, which is what lists of a page send."""
    for one in allowed:
        if type(value) in (int, float, str) and str(value) in (str(one), f"{one}.0"):
            return one
    raise InputError(f"{what} is {shown(repr(value))}; allowed: {', '.join(map(str, allowed)) or 'nothing'}")

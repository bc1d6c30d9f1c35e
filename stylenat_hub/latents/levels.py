"""Which of a model's styles are meant: `coarse`, `middle`, `fine`, `all`, or levels by their size in px.

Karras et al. (arXiv 1812.04948, section 3.1) call levels up to 8 px coarse, 16 and 32 px middle, and those
from 64 px on fine. In a model of less than 64 px the last level is the fine one, so that each name means
something in the smallest, too.
"""

from __future__ import annotations

import re

from stylenat_hub.errors import InputError
from stylenat_hub.models.base import Generator

NAMES = ("all", "coarse", "middle", "fine")
_COARSE, _FINE = 8, 64  # px


def check_levels(generator: Generator, what: str) -> None:
    """Raise `InputError` where styles have no levels of their own; what: that asks, for the message."""
    if not generator.style_levels:
        raise InputError(
            f"{what} needs styles that act level by level, and a {type(generator).__name__} has one style "
            "for the whole picture; use a StyleNAT or StyleSwin model"
        )


def level_sizes(generator: Generator) -> list[int]:
    """The sides in px of the levels that styles act in, ascending, each once."""
    return sorted(set(generator.style_levels))


def styles_at(generator: Generator, levels: str = "all") -> list[int]:
    """The numbers of the styles that act in these levels, ascending.

    levels: names, in any case, and sizes in px with commas between them: `coarse`, `16`, `8-32`, `coarse,64`;
    `all` is also allowed where there is one style for the whole picture.

    Raises `InputError`: an unknown name, a level that the model does not have, none at all, or a model whose
    styles have no levels.
    """
    if not isinstance(levels, str):
        raise InputError(f"levels is {levels!r}; allowed: text, such as 'coarse' or '8-32'")
    if levels.strip().lower() == "all":
        return list(range(generator.num_ws))
    check_levels(generator, f"choosing levels ({levels!r})")
    chosen = {size for part in levels.split(",") for size in _sizes(generator, part.strip(), levels)}
    return [number for number, size in enumerate(generator.style_levels) if size in chosen]


def _sizes(generator: Generator, part: str, levels: str) -> list[int]:
    """The levels that one name, size or range means."""
    there = level_sizes(generator)
    names = ["all", *dict.fromkeys(name_of(generator, size) for size in there)]
    allowed = f"{', '.join(names)}, or levels of this model in px: {', '.join(map(str, there))}, such as "
    allowed += f"{there[0]}-{there[-1]}"
    if (name := part.lower()) in NAMES:
        found = [size for size in there if name in ("all", name_of(generator, size))]
        if not found:
            raise InputError(
                f"this model of {generator.resolution} px has no {name} levels; allowed: {allowed}"
            )
        return found
    match = re.fullmatch(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", part)
    if not match:
        raise InputError(f"{part!r} in the levels {levels!r} is no level; allowed: {allowed}")
    first, last = int(match[1]), int(match[2] or match[1])
    missing = [size for size in (first, last) if size not in there]
    if last < first:
        raise InputError(f"the range {part!r} in the levels {levels!r} runs backwards; write {last}-{first}")
    if missing:
        raise InputError(
            f"{part!r} in the levels {levels!r}: this model has no level of {missing[0]} px; allowed: "
            f"{allowed}"
        )
    return [size for size in there if first <= size <= last]


def name_of(generator: Generator, size: int) -> str:
    """`coarse`, `middle` or `fine`: what a level of this size in px is called in this model."""
    if size >= min(_FINE, generator.resolution):
        return "fine"
    return "coarse" if size <= _COARSE else "middle"

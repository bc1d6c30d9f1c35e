"""What the tab Inside shows: what one place of a picture takes from the others, partition by partition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from studio import checks
from studio.engine import Engine, Told, nobody
from studio.pool import Loaded
from stylenat_hub.errors import InputError
from stylenat_hub.inside.maps import AttentionMaps, attention_maps
from stylenat_hub.inside.panels import Colours, overlay
from stylenat_hub.layers.partitions import Partition
from stylenat_hub.pipeline import MAX_SEED, GANPipeline

# px of the picture to click on, at least, enlarged by a whole factor: more than the page ever gives it, since
# gradio misses the place of a click on a picture that is shown larger than it is
SIDE = 768
RING = 0.03  # radius of the mark, of a picture's side
# matplotlib's maps need matplotlib, which a Space has not: from nearly black through red to pale yellow, each
# lighter than the one before
_ANCHORS = (
    (6, 4, 24),
    (58, 21, 104),
    (122, 34, 118),
    (190, 52, 92),
    (238, 96, 62),
    (252, 164, 78),
    (252, 242, 196),
)


@dataclass(frozen=True)
class Panel:
    """The weights of some heads over the picture, and words about them."""

    picture: PIL.Image.Image
    title: str
    words: str


@dataclass(frozen=True)
class Seen:
    """picture: with the place (x, y) in [0, 1] marked; at least `SIDE` px. sentence: what the panels are."""

    picture: PIL.Image.Image
    panels: list[Panel]
    sentence: str
    x: float
    y: float


def levels(engine: Engine, model: Any) -> dict[int, list[int]]:
    """The levels with self-attention, in px, and the numbers of the blocks that have it; none if no level
    has."""
    found: dict[int, list[int]] = {}
    for site in engine.use(model).generator.attention_sites():
        found.setdefault(site.level, []).append(site.block)
    return dict(sorted(found.items()))


def look(
    engine: Engine,
    model: Any,
    seed: Any,
    psi: Any,
    level: Any,
    block: Any,
    x: Any,
    y: Any,
    every_head: Any = False,
    told: Told = nobody,
) -> Seen:
    """What the heads of one attention take, seen from (x, y) in a seed's picture, (0, 0) being the top left.

    level, block: one of `levels`; 0, None: the finest, and the last of it. every_head: a panel for each head
    instead of one for each partition's mean. Raises `InputError`.
    """
    seed = checks.whole("the seed", seed, 0, MAX_SEED)
    place = checks.real("x", x, 0, 1), checks.real("y", y, 0, 1)
    if not isinstance(every_head, bool):
        raise InputError(f"every_head is {every_head!r:.50}; allowed: true or false")
    loaded = engine.use(model, told)
    there = levels(engine, model)
    if not there:
        raise InputError(f"{loaded.name} has no self-attention to look into; choose another model")
    level = max(there) if level in (None, 0) else checks.one_of("the level", level, list(there))
    block = there[level][-1] if block in (None, 0) else checks.one_of("the block", block, there[level])
    options = engine.truncation(loaded, psi)
    maps = engine.compute(loaded, maps_of, seed, options, level, block, place)
    return _shown(maps, place, len(there[level]), every_head)


def preview(engine: Engine, model: Any, *arguments: Any) -> Seen | None:
    """The same while a slider moves: nothing if the model is not loaded, busy, or too slow to follow."""
    with engine.quickly(model, quick) as loaded:
        return None if loaded is None else look(engine, model, *arguments)


def quick(loaded: Loaded) -> bool:
    """Does a whole picture of this model follow a slider?"""
    return loaded.preview_px == loaded.generator.resolution


def side(resolution: int) -> int:
    """px of the picture to click on: the model's, or a multiple of it that is not below `SIDE`."""
    return resolution * -(-SIDE // resolution)


def clicked(engine: Engine, model: Any, index: Any) -> tuple[float, float]:
    """A pixel [column, row] of `Seen.picture` as (x, y) in [0, 1]: its middle."""
    width = side(engine.use(model).generator.resolution)
    if not isinstance(index, (list, tuple)) or len(index) != 2:
        raise InputError(f"the click is {index!r:.50}; allowed: the column and row of a pixel")
    # gradio rounds to whole pixels, so the last one may be the width itself
    x, y = (checks.real("the click", value, 0, width) for value in index)
    return tuple(min(1.0, (value + 0.5) / width) for value in (x, y))


def maps_of(
    pipeline: GANPipeline,
    seed: int,
    options: dict[str, Any],
    level: int,
    block: int,
    place: tuple[float, float],
) -> AttentionMaps:
    """For `Engine.compute`."""
    ws = pipeline.styles([seed], **options)
    return attention_maps(pipeline.generator, ws, level, block=block, queries=[place])


def _shown(maps: AttentionMaps, place: tuple[float, float], blocks: int, every_head: bool) -> Seen:
    pixels = (maps.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    picture = PIL.Image.fromarray(pixels)
    picture = picture.resize((side(picture.width),) * 2, PIL.Image.Resampling.NEAREST)
    panels = [panel for number in range(len(maps.partitions)) for panel in _panels(maps, number, every_head)]
    what = "each head of" if every_head and maps.heads > 1 else "each partition of the heads of"
    sentence = (
        f"How much the marked place takes from every other place, for {what} block {maps.block} of {blocks} "
        f"at the level of {maps.level} px: dark is nothing, bright is most, and in the pale grey parts of "
        "the picture these heads cannot look."
    )
    return Seen(marked(picture, *place), panels, sentence, *place)


def _panels(maps: AttentionMaps, number: int, every_head: bool) -> list[Panel]:
    part, weights = maps.partitions[number], maps.map(0, number).float()
    heads = list(range(part.heads.start + 1, part.heads.stop + 1))
    if every_head:
        shown = [(f"head {head}", one) for head, one in zip(heads, weights, strict=True)]
    else:
        shown = [(_named(heads), weights.mean(dim=0))]
    found = []
    for name, one in shown:
        square, mark = overlay(maps.image, one, maps.seen(0, number), _step(part), _colours(), maps.tokens[0])
        picture = PIL.Image.fromarray((np.clip(square, 0, 1) * 255).round().astype(np.uint8))
        words = f"{name}; up to {100 * one.max():.1f} %"
        found.append(Panel(marked(picture, *mark) if mark else picture, part.label, words))
    return found


def _named(heads: Sequence[int]) -> str:
    return f"head {heads[0]}" if len(heads) == 1 else f"mean of heads {heads[0]} to {heads[-1]}"


def _step(part: Partition) -> int:
    """Tokens from one key to the next."""
    return int(part.keys.diff(dim=1).abs().min()) if part.keys.shape[1] > 1 else 1


def _colours() -> Colours:
    """256 colours through the anchors."""
    anchors = np.array(_ANCHORS) / 255
    at = np.linspace(0, 1, len(anchors))
    return Colours(
        np.stack([np.interp(np.linspace(0, 1, 256), at, channel) for channel in anchors.T], axis=1)
    )


def marked(picture: PIL.Image.Image, x: float, y: float) -> PIL.Image.Image:
    """A copy of a square picture with a ring around (x, y) in [0, 1], white in black: seen on anything."""
    width, scale = picture.width, 4  # drawn larger and shrunk, for smooth edges
    radius, thick = max(5.0, RING * width), max(1.5, width / 190)
    reach = math.ceil(radius + 3 * thick)
    left, top = round(x * width) - reach, round(y * width) - reach
    layer = PIL.Image.new("RGBA", (2 * reach * scale,) * 2)
    pen = PIL.ImageDraw.Draw(layer)
    across, down = x * width - left, y * width - top
    for colour, line, apart in (("black", 2.4 * thick, 0.7 * thick), ("white", thick, 0.0)):
        far = radius + apart
        corners = (across - far, down - far, across + far, down + far)
        pen.ellipse([scale * at for at in corners], outline=colour, width=round(scale * line))
    layer = layer.resize((2 * reach,) * 2, PIL.Image.Resampling.LANCZOS)
    copy = picture.convert("RGB")
    copy.paste(layer, (left, top), layer)
    return copy

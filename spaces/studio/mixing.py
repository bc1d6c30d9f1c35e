"""The tab Mix: one seed's picture with some levels of another's, each as much as its slider says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from studio import checks, snippet, steering
from studio.engine import Engine, Told, nobody
from studio.pool import Loaded
from studio.steering import Steered
from stylenat_hub.errors import InputError
from stylenat_hub.latents.levels import check_levels, level_sizes, name_of, styles_at
from stylenat_hub.latents.mixing import cell_name
from stylenat_hub.latents.paths import lerp
from stylenat_hub.pipeline import GANPipeline

MOST_LEVELS = 10  # sliders: from 4 to 2,048 px
LONGEST = 200  # characters of levels in words
GROUPS = ("coarse", "middle", "fine")

Shares = Mapping[int, float]  # how much of each level, by its side in px, comes from the second seed


def why_not(engine: Engine, model: Any) -> str | None:
    """The sentence that says why this model's pictures cannot be mixed, or None."""
    try:
        check_levels(engine.use(model).generator, "mixing pictures")
    except InputError as error:
        return str(error)
    return None


def levels(engine: Engine, model: Any) -> list[tuple[int, str]]:
    """(side in px, coarse or middle or fine) of each level; none in a model without levels."""
    generator = engine.use(model).generator
    return [(size, name_of(generator, size)) for size in level_sizes(generator)]


def shares_of_group(engine: Engine, model: Any, group: str) -> list[float]:
    """The sliders' values that take one group of levels from the second picture, all others from the
    first."""
    return [float(name == group) for _, name in levels(engine, model)]


def shares_of_sliders(loaded: Loaded, values: Sequence[Any]) -> Shares:
    """What the sliders, the coarsest level's first, say; those beyond the model's levels count nothing."""
    check_levels(loaded.generator, "mixing pictures")
    sizes = level_sizes(loaded.generator)
    return {
        size: checks.real(f"the share of {size} px", value, 0, 1)
        for size, value in zip(sizes, values, strict=False)
    }


def shares_of_text(loaded: Loaded, text: Any) -> Shares:
    """`coarse`, `4,8`, or with shares `coarse:0.5,16`; levels as `levels.styles_at` takes them."""
    check_levels(loaded.generator, "mixing pictures")
    chosen: dict[int, float] = {}
    for part in checks.text("the list of levels", text, LONGEST).split(","):
        where, _, share = part.partition(":")
        numbers = styles_at(loaded.generator, where.strip())
        value = checks.real(f"the share in {part.strip()!r}", _number(share) if share else 1.0, 0, 1)
        chosen |= {loaded.generator.style_levels[number]: value for number in numbers}
    return chosen


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # which the check then refuses by name


def mix(
    engine: Engine,
    model: Any,
    first: Any,
    second: Any,
    psi: Any,
    wanted: Sequence[Any] | str,
    told: Told = nobody,
) -> Steered:
    """The first seed's picture with the levels of the second's that are wanted: the sliders' values, or
    words, see `shares_of_text`. Raises `InputError`, naming what is wrong; a model without levels is."""
    seeds = [steering.seed(first, "seed A"), steering.seed(second, "seed B")]
    loaded = engine.use(model, told)
    shares, options = _shares(loaded, wanted), engine.truncation(loaded, psi)
    told(0, 1, "Drawing")
    start = time.perf_counter()
    image = engine.compute(loaded, mixed, seeds, options, shares)
    seconds = time.perf_counter() - start
    about = {"row": str(seeds[0]), "col": str(seeds[1]), "levels": in_words(shares)}  # as `stylenat mix` says
    file = steering.save(engine, loaded, image, cell_name(*seeds), options, about)
    code = snippet.mixing(loaded.pipeline.model_name, seeds, options["truncation_psi"], shares, file.name)
    return Steered(loaded.pipeline.model_name, image, file, code, seconds)


def preview(
    engine: Engine, model: Any, first: Any, second: Any, psi: Any, wanted: Sequence[Any] | str
) -> PIL.Image.Image | None:
    """The same, as large as can follow a slider; None if nothing can."""
    seeds = [steering.seed(first, "seed A"), steering.seed(second, "seed B")]
    with engine.quickly(model) as loaded:
        if loaded is None:
            return None
        shares, options = _shares(loaded, wanted), engine.truncation(loaded, psi)
        return engine.compute(loaded, mixed, seeds, options, shares, loaded.preview_px)


def _shares(loaded: Loaded, wanted: Sequence[Any] | str) -> Shares:
    found = shares_of_text if isinstance(wanted, str) else shares_of_sliders
    return {size: share for size, share in found(loaded, wanted).items() if share}


def in_words(shares: Shares) -> str:
    """`4,8:0.5`: what `shares_of_text` reads; empty for none."""
    return ",".join(f"{size}" if share == 1 else f"{size}:{share:g}" for size, share in shares.items())


def mixed(
    pipeline: GANPipeline,
    seeds: Sequence[int],
    options: Mapping[str, Any],
    shares: Shares,
    px: int | None = None,
) -> PIL.Image.Image:
    """The picture, for `Engine.compute`. Styles are mixed on the CPU: not every device has float64."""
    a, b = pipeline.styles(seeds, **options).cpu().split(1)
    ws = a.clone()
    for size, share in shares.items():
        numbers = styles_at(pipeline.generator, str(size))
        ws[:, numbers] = lerp(a[:, numbers], b[:, numbers], share)
    return pipeline.draw(ws, px=px)[0]

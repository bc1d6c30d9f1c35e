"""The tab Edit: a seed's picture moved along directions that the model itself is found to have."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import PIL.Image

from studio import checks, snippet, steering
from studio.engine import Engine, Told, nobody
from studio.pool import Loaded
from studio.steering import Steered
from stylenat_hub.errors import InputError
from stylenat_hub.latents.directions import Directions
from stylenat_hub.latents.factorise import closed_form, principal
from stylenat_hub.latents.levels import NAMES, level_sizes, name_of
from stylenat_hub.pipeline import GANPipeline

COUNT = 6  # directions, the strongest ones
STRONGEST = 6.0  # standard deviations
METHODS: dict[str, Callable[..., Directions]] = {"sefa": closed_form, "pca": principal}


def methods(engine: Engine, model: Any) -> list[str]:
    """How directions of this model can be found: PCA needs styles apart from the latents."""
    return ["sefa"] if engine.use(model).generator.styles_are_latents else list(METHODS)


def levels(engine: Engine, model: Any) -> dict[str, list[int]]:
    """`all`, `coarse` and so on with the sides in px of what they mean; only `all` without levels."""
    generator = engine.use(model).generator
    sizes = level_sizes(generator)
    groups = {name: [size for size in sizes if name_of(generator, size) == name] for name in NAMES[1:]}
    return {"all": sizes} | {name: found for name, found in groups.items() if found}


def count(engine: Engine, model: Any) -> int:
    """How many directions there are to choose from."""
    return min(COUNT, engine.use(model).generator.w_dim)


def edit(
    engine: Engine,
    model: Any,
    seed: Any,
    psi: Any,
    method: Any,
    where: Any,
    strengths: Sequence[Any],
    told: Told = nobody,
) -> Steered:
    """The seed's picture, moved. method: "sefa" or "pca"; where: which levels; strengths: of the first
    directions, in standard deviations. Raises `InputError`, naming what is wrong."""
    seed = steering.seed(seed)
    loaded = engine.use(model, told)
    found = _directions(engine, loaded, model, method, where, told)
    moves, options = _moves(found, strengths), engine.truncation(loaded, psi)
    told(0, 1, "Drawing")
    start = time.perf_counter()
    image = engine.compute(loaded, edited, seed, options, found, moves)
    seconds = time.perf_counter() - start
    words = ",".join(f"{name}={value:g}" for name, value in moves.items())
    about = {"seed": str(seed), **({"edit": words} if moves else {})}
    file = steering.save(engine, loaded, image, f"seed{seed:010d}-edited.png", options, about)
    psi = options["truncation_psi"]
    code = snippet.editing(
        loaded.pipeline.model_name, seed, psi, (method, where, len(found)), moves, file.name
    )
    return Steered(loaded.pipeline.model_name, image, file, code, seconds)


def preview(
    engine: Engine, model: Any, seed: Any, psi: Any, method: Any, where: Any, strengths: Sequence[Any]
) -> PIL.Image.Image | None:
    """The same, as large as can follow a slider; None if nothing can."""
    seed = steering.seed(seed)
    with engine.quickly(model) as loaded:
        if loaded is None:
            return None
        found = _directions(engine, loaded, model, method, where)
        options = engine.truncation(loaded, psi)
        return engine.compute(
            loaded, edited, seed, options, found, _moves(found, strengths), loaded.preview_px
        )


def _directions(
    engine: Engine, loaded: Loaded, model: Any, method: Any, where: Any, told: Told = nobody
) -> Directions:
    """Found once per model, method and levels, of which there are eight, and kept as long as the model is."""
    method = steering.one_of("the method", method, methods(engine, model))
    where = steering.one_of("the level", where, list(levels(engine, model)))
    key = ("directions", method, where)
    if key not in loaded.kept:
        told(0, 1, "Finding directions")
        loaded.kept[key] = engine.compute(loaded, find, method, count(engine, model), where)
    return loaded.kept[key]


def find(pipeline: GANPipeline, method: str, count: int, where: str) -> Directions:
    """For `Engine.compute`."""
    return METHODS[method](pipeline.generator, count, where)


def _moves(found: Directions, strengths: Any) -> dict[str, float]:
    """The strengths by their directions' names; those of 0 are left out."""
    if not isinstance(strengths, (list, tuple)) or len(strengths) > len(found):
        raise InputError(
            f"the strengths are {strengths!r:.100}; allowed: a list of up to {len(found)} numbers"
        )
    values = [
        checks.real(f"the strength of direction {number}", value, -STRONGEST, STRONGEST)
        for number, value in enumerate(strengths, start=1)
    ]
    return {name: value for name, value in zip(found.names, values, strict=False) if value}


def edited(
    pipeline: GANPipeline,
    seed: int,
    options: Mapping[str, Any],
    found: Directions,
    moves: Mapping[str, float],
    px: int | None = None,
) -> PIL.Image.Image:
    """The picture, for `Engine.compute`."""
    return pipeline.draw(found.edit(moves)(pipeline.styles([seed], **options)), px=px)[0]

"""From a generator and a picture's styles to a figure of its attention, in one step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from stylenat_hub.inside.cross import cross_maps
from stylenat_hub.inside.maps import AttentionAverages, AttentionMaps, attention_averages, attention_maps
from stylenat_hub.inside.overlay import draw_attention, draw_averages, draw_cross
from stylenat_hub.inside.places import CENTRE
from stylenat_hub.metrics.sheets import figure_class
from stylenat_hub.models.base import Generator
from stylenat_hub.pictures import check_png


def check_drawable(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` if no figure could be drawn to this file, which must be a PNG, before anything is
    computed."""
    figure_class()
    check_png(path)


def write_maps(
    generator: Generator,
    ws: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    level: int | None = None,
    block: int | None = None,
    queries: Sequence[tuple[float, float]] = (CENTRE,),
    about: Mapping[str, str] | None = None,
) -> str:
    """`attention_maps` as a figure; returns what is in it, in words. about: text of the label, such as model
    and seed, which the title names. Errors: those two functions', and before the work `check_drawable`'s."""
    check_drawable(path)
    maps = attention_maps(generator, ws, level, block=block, queries=queries)
    places = " ".join(f"{x:g},{y:g}" for x, y in maps.queries)
    label = {**(about or {}), **_where(maps), "queries": places}
    draw_attention(maps, path, title=_title(label), about=label)
    return f"{_words(maps)}, from {places}"


def write_averages(
    generator: Generator,
    ws: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    level: int | None = None,
    block: int | None = None,
    about: Mapping[str, str] | None = None,
) -> str:
    """The same for `attention_averages`, with a progress bar."""
    check_drawable(path)
    averages = attention_averages(generator, ws, level, block=block, progress=True)
    label = {**(about or {}), **_where(averages), "queries": "all"}
    draw_averages(averages, path, title=_title(label), about=label)
    return f"{_words(averages)}, averaged over all places"


def write_cross(
    generator: Generator,
    ws: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    level: int | None = None,
    about: Mapping[str, str] | None = None,
) -> str:
    """The same for `cross_maps`."""
    check_drawable(path)
    maps = cross_maps(generator, ws, level)
    label = {**(about or {}), "level": str(maps.level), "attention": "cross"}
    draw_cross(maps, path, title=f"{_title(label)}, attention to the latent", about=label)
    return f"level {maps.level} px, attention to the latent's {len(maps.weights)} tokens"


def _where(found: AttentionMaps | AttentionAverages) -> dict[str, str]:
    return {"level": str(found.level), "block": str(found.block)}


def _words(found: AttentionMaps | AttentionAverages) -> str:
    heads, parts = found.partitions[-1].heads.stop, len(found.partitions)
    return (
        f"level {found.level} px, block {found.block}, {heads} head{'s' * (heads != 1)} in {parts} "
        f"partition{'s' * (parts != 1)}"
    )


def _title(label: Mapping[str, str]) -> str:
    named = [label.get("model", ""), *(f"{key} {label[key]}" for key in ("seed", "styles") if key in label)]
    block = [f"block {label['block']}"] if "block" in label else []
    return ", ".join([*filter(None, named), f"level {label['level']} px", *block])

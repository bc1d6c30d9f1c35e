"""Reading original generators' state dicts: what StyleNAT and StyleSwin, of one lineage, have in common.

A family's `keys.py` adds the names and the constants that only its own original has; `original` has what is
needed for any.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylenat_hub.errors import ConfigError
from stylenat_hub.models.original import State, check_constant, numbered, patterns, shape_of

COMMON = patterns(
    (r"input\.input", "constant"),
    # `style.0` is the pixel norm, which has no tensors, so the layers count from 1.
    (r"style\.([1-9]\d?)\.(weight|bias)", lambda m: f"mapping_network.layers.{int(m[1]) - 1}.{m[2]}"),
    (r"layers\.(\d+)\.(blocks\.\d+\.norm[12]\.style\.(?:weight|bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.(blocks\.\d+\.mlp\.fc[12]\.(?:weight|bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.(upsample\.(?:alpha|norm\.weight|norm\.bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.upsample\.reduction\.weight", r"levels.\1.upsample.proj.weight"),
    (r"to_rgbs\.(\d+)\.(conv\.(?:weight|bias)|bias)", r"to_rgb.\1.\2"),
)
_MOST_LEVELS = 11  # 4 to 4096 px, the largest picture that a config allows
_MOST_LAYERS = 64  # as a config allows
_KERNEL = re.compile(r"to_rgbs\.\d+\.upsample\.kernel")
# Memory that the original code never initialises: it has no influence and nothing to be checked against.
_UNINITIALISED = re.compile(r"layers\.\d+\.upsample\.sin_pos_embed\._float_tensor")


def at_level(level: int) -> str:
    """How errors name a level."""
    return f"level {level} ({4 * 2**level} px)"


def is_common_buffer(name: str, tensor: Tensor, title: str) -> bool:
    """Is this a constant that every original has, with the values it must have? Other values raise."""
    if _UNINITIALISED.fullmatch(name):
        return True
    if not _KERNEL.fullmatch(name):
        return False
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    check_constant(name, tensor, torch.outer(taps, taps) / 16, title)
    return True


def tensor_facts(state: State, level_facts: Callable[[State, int], dict[str, Any]]) -> dict[str, Any]:
    """Every config field that names and shapes alone decide.

    level_facts: the family's reading of one level, `mlp_ratio` and `qkv_bias` among it.
    Raises `ConfigError` if levels differ in these two, `WeightsError` for tensors that are missing.
    """
    levels = numbered(state, r"layers\.(\d+)\..*", "level", first=0, most=_MOST_LEVELS)
    layers = numbered(state, r"style\.(\d+)\.weight", "mapping layer", first=1, most=_MOST_LAYERS)
    facts = [level_facts(state, level) for level in range(levels)]
    for level, fact in enumerate(facts):
        for field in ("mlp_ratio", "qkv_bias"):
            if fact[field] != facts[0][field]:
                raise ConfigError(
                    f"{at_level(level)}: the tensors say {field} {fact[field]}, and {facts[0][field]} at "
                    "level 0; the generator has one value for all levels, so this checkpoint is of another "
                    "variant"
                )
    return {
        "resolution": 4 * 2 ** (levels - 1),
        **{field: tuple(fact[field] for fact in facts) for field in facts[0]},
        "z_dim": shape_of(state, "style.1.weight", 2)[1],
        "w_dim": shape_of(state, f"style.{layers}.weight", 2)[0],
        "mapping_layers": layers,
        "mlp_ratio": facts[0]["mlp_ratio"],
        "qkv_bias": facts[0]["qkv_bias"],
    }


def mlp_ratio(state: State, level: int) -> float:
    """Hidden channels of a level's first MLP, per channel."""
    hidden, width = shape_of(state, f"layers.{level}.blocks.0.mlp.fc1.weight", 2)
    return hidden // width if hidden % width == 0 else hidden / width

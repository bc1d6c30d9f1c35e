"""StyleNAT's original state dicts: recognising them, reading a config off them, renaming them to ours.

Almost everything that fixes a generator can be read off its tensors. Only the dilations cannot: they come
from the checkpoint's recorded arguments, from a preset or from an explicit config, and whatever such a source
says beyond them is checked against the tensors and against the other sources.

The position biases come in three layouts, told apart per attention layer, never per file: `rpb` (one table:
the 4 px level of every version), `rpb0` and `rpb1` (two partitions, the first public code) and `rpb.N` (any
number).

The layouts were read off recordings of the original code (github.com/SHI-Labs/StyleNAT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.lineage import COMMON, at_level, is_common_buffer, mlp_ratio, tensor_facts
from stylenat_hub.models.original import State, check_constant, patterns, renamed, shape_of, taken
from stylenat_hub.models.stylenat.config import StyleNATConfig, partition_heads
from stylenat_hub.models.stylenat.sources import agree

_RENAMES = patterns(
    (r"layers\.(\d+)\.(blocks\.\d+\.attn\.(?:qkv|proj)\.(?:weight|bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.rpb", r"levels.\1.\2.rpb.0"),
    (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.rpb([01])", r"levels.\1.\2.rpb.\3"),
    (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.rpb\.(\d+)", r"levels.\1.\2.rpb.\3"),
)
_TITLE = "StyleNAT"
_TABLE = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.rpb(?:\.?(\d+))?")
_INDEX = re.compile(r"layers\.0\.blocks\.\d+\.attn\.relative_position_index")


def recognise(state: Mapping[str, Any]) -> bool:
    """Is this the state dict of an original StyleNAT generator (any layout)? Looks at names only."""
    return "input.input" in state and "style.1.weight" in state and any(map(_TABLE.fullmatch, state))


def convert_state_dict(state: State) -> dict[str, Tensor]:
    """The same weights, float32, under this package's names, without the original's constant buffers.

    Raises:
        WeightsError: a tensor that StyleNAT does not have, that two names claim, that is not finite, or a
            constant buffer with other values than the original code computes; always by its name.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _is_verified_buffer(name, tensor):
            continue
        new = renamed(name, (*_RENAMES, *COMMON), f"{_TITLE} generator")
        if new in converted:
            raise WeightsError(
                f"two tensors of the checkpoint claim {new!r}, one of them {name!r}; it mixes two layouts in "
                "one layer and cannot be converted"
            )
        converted[new] = taken(name, tensor)
    return converted


def infer_config(
    state: State,
    *,
    args: Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: StyleNATConfig | Mapping[str, Any] | None = None,
) -> StyleNATConfig:
    """The config of an original generator state dict.

    args: the arguments recorded in the checkpoint, as plain data; `kernels` and `dilations` are looked for at
    any depth (flat, or under `runs.generator`). preset: a name in `StyleNATConfig.presets`. config: a whole
    config, or a mapping with some of its fields. A level that lists one value and has several partitions
    repeats it.

    Raises:
        ConfigError: a source contradicts the tensors or another source, or nothing states the dilations; it
            names the level.
        WeightsError: a tensor that the config must be read from is missing or has a wrong shape.
    """
    return agree(tensor_facts(state, _level_facts), args=args, preset=preset, config=config)


def _is_verified_buffer(name: str, tensor: Tensor) -> bool:
    """Is this a constant of the original code, with the values it must have? Other values raise."""
    if not _INDEX.fullmatch(name):
        return is_common_buffer(name, tensor, _TITLE)
    check_constant(name, tensor, _relative_position_index(), _TITLE)
    return True


def _relative_position_index() -> Tensor:
    """[16, 16] entry of the flattened 7 x 7 table for (query, key) on the 4 px grid: key - query + 3."""
    rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
    return (rows[None] - rows[:, None] + 3) * 7 + (columns[None] - columns[:, None] + 3)


def _level_facts(state: State, level: int) -> dict[str, Any]:
    block = f"layers.{level}.blocks.0"
    width = shape_of(state, f"{block}.attn.qkv.weight", 2)[1]
    tables = [_tables(state, level, number) for number in (0, 1)]
    if tables[0] != tables[1]:
        raise ConfigError(
            f"{at_level(level)}: the position-bias tables of its two blocks differ ({tables[0]} and "
            f"{tables[1]}, as heads and kernel per partition); both blocks of a level share one setting, so "
            "this is another variant"
        )
    heads = tuple(head for head, _ in tables[0])
    expected = partition_heads(sum(heads), len(heads))
    if heads != expected:
        raise ConfigError(
            f"{at_level(level)}: the tensors cut {sum(heads)} heads into {heads}, StyleNAT cuts them into "
            f"{expected} (the last partitions get one more); this checkpoint is of another variant"
        )
    return {
        "channels": width,
        "num_heads": sum(heads),
        "kernel_sizes": tuple(kernel for _, kernel in tables[0]),
        "mlp_ratio": mlp_ratio(state, level),
        "qkv_bias": f"{block}.attn.qkv.bias" in state,
    }


def _tables(state: State, level: int, block: int) -> tuple[tuple[int, int], ...]:
    """(heads, kernel) of each partition of one attention layer, from whichever layout this layer has."""
    prefix = f"layers.{level}.blocks.{block}.attn."
    single, pair = f"{prefix}rpb", [f"{prefix}rpb{number}" for number in (0, 1)]
    listed = [
        f"{prefix}rpb.{number}" for number in range(sum(name.startswith(f"{prefix}rpb.") for name in state))
    ]
    layouts = [names for names in ([single], pair, listed) if names and any(name in state for name in names)]
    if len(layouts) != 1:
        found = "none" if not layouts else "several layouts at once"
        raise WeightsError(
            f"{at_level(level)}: block {block} must have its position bias as {single!r}, as 'rpb0' and "
            f"'rpb1' or as 'rpb.0', 'rpb.1', ...; found {found}"
        )
    if level == 0 and layouts[0] != [single]:
        raise WeightsError(
            f"{at_level(level)}: block {block} attends to all tokens and must have one table {single!r}"
        )
    return tuple(_table(state, name, level) for name in layouts[0])


def _table(state: State, name: str, level: int) -> tuple[int, int]:
    heads, height, width = shape_of(state, name, 3)
    kernel = (height + 1) // 2
    if height != width or height % 2 == 0 or heads < 1 or (level == 0 and height != 7):
        needed = "[heads, 7, 7]" if level == 0 else "[heads, 2k-1, 2k-1]"
        raise WeightsError(
            f"{at_level(level)}: {name!r} has the shape {[heads, height, width]}; it must be {needed}"
        )
    return heads, kernel

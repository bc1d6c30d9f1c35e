"""StyleSwin's original state dicts: recognising them, reading a config off them, renaming them to ours.

All that fixes a generator can be read off its tensors. What the checkpoint records, a preset or a config say
beside them is checked against them. The bias tables are stored as [(2s-1)^2, heads] by query minus key; here
they are [heads, 2s-1, 2s-1] by key minus query, as in all families. The index of a bias and the mask of
shifted windows are constants, which are checked and dropped.

The layout was read off recordings of the original code (github.com/microsoft/StyleSwin).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.lineage import COMMON, at_level, is_common_buffer, mlp_ratio, tensor_facts
from stylenat_hub.models.original import (
    State,
    check_constant,
    other_values,
    patterns,
    renamed,
    shape_of,
    taken,
)
from stylenat_hub.models.styleswin.config import LARGEST_WINDOW, StyleSwinConfig
from stylenat_hub.models.styleswin.generator import seam

_TITLE = "StyleSwin"
_RENAMES = patterns(
    (r"layers\.(\d+)\.(blocks\.\d+)\.((?:qkv|proj)\.(?:weight|bias))", r"levels.\1.\2.attn.\3"),
    (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.([01])\.relative_position_bias_table", r"levels.\1.\2.rpb.\3"),
)
_TABLE = re.compile(r"layers\.\d+\.blocks\.\d+\.attn\.[01]\.relative_position_bias_table")
_INDEX = re.compile(r"layers\.\d+\.blocks\.\d+\.attn\.[01]\.relative_position_index")
_MASK = re.compile(r"layers\.(\d+)\.blocks\.\d+\.attn_mask2")


def recognise(state: Mapping[str, Any]) -> bool:
    """Is this the state dict of an original StyleSwin generator? Looks at names only."""
    return "input.input" in state and "style.1.weight" in state and any(map(_TABLE.fullmatch, state))


def convert_state_dict(state: State) -> dict[str, Tensor]:
    """The same weights, float32, under this package's names, without the original's constant buffers.

    Raises:
        WeightsError: a tensor that StyleSwin does not have, that is not finite, or a constant buffer with
            other values than the original code computes; always by its name.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _is_verified_buffer(name, tensor, state):
            continue
        new, weight = renamed(name, (*_RENAMES, *COMMON), f"{_TITLE} generator"), taken(name, tensor)
        converted[new] = _our_table(weight, name) if _TABLE.fullmatch(name) else weight
    return converted


def infer_config(
    state: State,
    *,
    args: Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: StyleSwinConfig | Mapping[str, Any] | None = None,
) -> StyleSwinConfig:
    """The config of an original generator state dict.

    args: the arguments recorded in the checkpoint, as plain data. preset: a name in
    `StyleSwinConfig.presets`. config: a whole config, or a mapping with some of its fields.

    Raises:
        ConfigError: a source contradicts the tensors or another source; it names the level.
        WeightsError: a tensor that the config must be read from is missing or has a wrong shape.
    """
    facts = tensor_facts(state, _level_facts)
    said: dict[str, tuple[str, Any]] = {field: ("the tensors", value) for field, value in facts.items()}
    for label, source in _sources(args or {}, preset, config):
        for field, value in source.items():
            value = tuple(value) if isinstance(value, list) else value
            first, known = said.setdefault(field, (label, value))
            if value is not known and value != known:  # NaN is not itself, and the config refuses it
                raise _contradiction(field, (first, known), (label, value))
    return StyleSwinConfig(**{field: value for field, (_, value) in said.items()})


def _sources(
    args: Mapping[str, Any], preset: str | None, config: StyleSwinConfig | Mapping[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, config fields) of each source that is given."""
    if args.get("lr_mlp") is not None:
        yield "the checkpoint's own record", {"mapping_lr_mul": args["lr_mlp"]}
    if preset is not None:
        yield f"the preset {preset!r}", dataclasses.asdict(StyleSwinConfig.preset(preset))
    if config is None:
        return
    fields = dataclasses.asdict(config) if isinstance(config, StyleSwinConfig) else dict(config)
    fields = {key: value for key, value in fields.items() if not key.startswith("_")}
    known = [field.name for field in dataclasses.fields(StyleSwinConfig)]
    if unknown := sorted(set(fields) - set(known)):
        raise ConfigError(
            f"the config does not know the key(s) {', '.join(map(repr, unknown))}; allowed: "
            f"{', '.join(known)}"
        )
    yield "the config", fields


def _contradiction(field: str, one: tuple[str, Any], other: tuple[str, Any]) -> ConfigError:
    """The error about two sources, at the first level in which they differ."""
    where, said = "", [one[1], other[1]]
    if field in ("channels", "num_heads", "window_sizes") and isinstance(other[1], tuple):
        if len(one[1]) != len(other[1]):
            said = [f"for {len(value)} levels" for value in said]
        else:
            level = next(i for i, (a, b) in enumerate(zip(*said, strict=True)) if a != b)
            where, said = f"{at_level(level)}: ", [value[level] for value in said]
    verb = "say" if one[0] == "the tensors" else "says"
    return ConfigError(
        f"{where}{one[0]} {verb} {field} {said[0]}, but {other[0]} says {said[1]}; leave out the one that is "
        "wrong, or name the preset or config that this checkpoint was trained with"
    )


def _level_facts(state: State, level: int) -> dict[str, Any]:
    block = f"layers.{level}.blocks.0"
    tables = [_table(state, f"layers.{level}.blocks.{i}.attn.{half}") for i in (0, 1) for half in (0, 1)]
    if len(set(tables)) > 1:
        raise ConfigError(
            f"{at_level(level)}: the position-bias tables of its blocks differ ({tables}, as heads and "
            "window); all of a level share one setting, so this is another variant"
        )
    heads, window = tables[0]
    return {
        "channels": shape_of(state, f"{block}.qkv.weight", 2)[1],
        "num_heads": 2 * heads,
        "window_sizes": window,
        "mlp_ratio": mlp_ratio(state, level),
        "qkv_bias": f"{block}.qkv.bias" in state,
    }


def _table(state: State, prefix: str) -> tuple[int, int]:
    """(heads, window) of one half of an attention layer."""
    name = f"{prefix}.relative_position_bias_table"
    offsets, heads = shape_of(state, name, 2)
    return heads, (_side(offsets, name) + 1) // 2


def _side(offsets: int, name: str) -> int:
    side = math.isqrt(offsets)
    if side * side != offsets or side % 2 == 0:
        raise WeightsError(f"{name!r} has {offsets} rows; it must have (2 * window - 1)^2, one per offset")
    return side


def _our_table(table: Tensor, name: str) -> Tensor:
    """[(2s-1)^2, heads] by query - key -> [heads, 2s-1, 2s-1] by key - query."""
    side = _side(len(table), name)
    return table.t().unflatten(1, (side, side)).flip(1, 2).contiguous()


def _is_verified_buffer(name: str, tensor: Tensor, state: State) -> bool:
    """Is this a constant of the original code, with the values it must have? Other values raise."""
    if _INDEX.fullmatch(name):
        _, window = _table(state, name.removesuffix(".relative_position_index"))
        # What it must be is as large as it is, so nothing larger than the file is made.
        if window > LARGEST_WINDOW or tensor.shape != (window**2, window**2):
            raise other_values(name, _TITLE)
        check_constant(name, tensor, _relative_position_index(window), _TITLE)
    elif match := _MASK.fullmatch(name):
        _, window = _table(state, name.replace("attn_mask2", "attn.1"))
        _check_mask(name, tensor, window, 4 * 2 ** int(match[1]))
    else:
        return is_common_buffer(name, tensor, _TITLE)
    return True


def _relative_position_index(window: int) -> Tensor:
    """[S, S] row of the table for (query, key) of a window: query - key, plus s - 1."""
    rows, columns = torch.arange(window**2) // window, torch.arange(window**2) % window
    step = window - 1
    return (rows[:, None] - rows + step) * (2 * window - 1) + (columns[:, None] - columns + step)


def _check_mask(name: str, mask: Tensor, window: int, size: int) -> None:
    """Is the mask [windows, S, S] of a level of `size` px the seam of windows shifted by half their side?

    Compared kind by kind, because at 1024 px another tensor of this size would be 268 MB.
    """
    across, tokens = size // window, window**2
    if size % window or mask.shape != (across**2, tokens, tokens):
        raise other_values(name, _TITLE)
    grid = mask.unflatten(0, (across, across))
    inner, last = slice(None, -1), slice(-1, None)
    for row in (inner, last):
        for column in (inner, last):
            expected = seam(window, window // 2, row == last, column == last, mask)
            if not (grid[row, column] == expected).all():
                raise other_values(name, _TITLE)

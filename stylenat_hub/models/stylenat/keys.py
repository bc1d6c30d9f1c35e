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
from stylenat_hub.models.stylenat.config import StyleNATConfig, partition_heads
from stylenat_hub.models.stylenat.sources import agree, at_level

State = Mapping[str, Tensor]

# Original name -> ours. `style.0` is the pixel norm, which has no tensors, so the layers count from 1.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"input\.input", "constant"),
        (r"layers\.(\d+)\.(blocks\.\d+\.norm[12]\.style\.(?:weight|bias))", r"levels.\1.\2"),
        (r"layers\.(\d+)\.(blocks\.\d+\.attn\.(?:qkv|proj)\.(?:weight|bias))", r"levels.\1.\2"),
        (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.rpb", r"levels.\1.\2.rpb.0"),
        (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.rpb([01])", r"levels.\1.\2.rpb.\3"),
        (r"layers\.(\d+)\.(blocks\.\d+\.attn)\.rpb\.(\d+)", r"levels.\1.\2.rpb.\3"),
        (r"layers\.(\d+)\.(blocks\.\d+\.mlp\.fc[12]\.(?:weight|bias))", r"levels.\1.\2"),
        (r"layers\.(\d+)\.(upsample\.(?:alpha|norm\.weight|norm\.bias))", r"levels.\1.\2"),
        (r"layers\.(\d+)\.upsample\.reduction\.weight", r"levels.\1.upsample.proj.weight"),
        (r"to_rgbs\.(\d+)\.(conv\.(?:weight|bias)|bias)", r"to_rgb.\1.\2"),
    )
)
_STYLE = re.compile(r"style\.(\d+)\.(weight|bias)")
_TABLE = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.rpb(?:\.?(\d+))?")
_INDEX = re.compile(r"layers\.0\.blocks\.\d+\.attn\.relative_position_index")
_KERNEL = re.compile(r"to_rgbs\.\d+\.upsample\.kernel")
# Memory that the original code never initialises: it has no influence and nothing to be checked against.
_UNINITIALISED = re.compile(r"layers\.\d+\.upsample\.sin_pos_embed\._float_tensor")


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
        new = _renamed(name)
        if new in converted:
            raise WeightsError(
                f"two tensors of the checkpoint claim {new!r}, one of them {name!r}; it mixes two layouts in "
                "one layer and cannot be converted"
            )
        if not tensor.is_floating_point():
            raise WeightsError(
                f"the tensor {name!r} has the type {tensor.dtype}, a weight is a floating-point number"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"the tensor {name!r} holds NaN or infinite values; this training run had diverged or the "
                "file is damaged: take an earlier checkpoint"
            )
        converted[new] = tensor.detach().to(torch.float32).contiguous().clone()
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
    return agree(_tensor_facts(state), args=args, preset=preset, config=config)


def _renamed(name: str) -> str:
    style = _STYLE.fullmatch(name)
    if style and int(style[1]) > 0:
        return f"mapping_network.layers.{int(style[1]) - 1}.{style[2]}"
    for pattern, new in _RENAMES:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(new)
    raise WeightsError(
        f"the checkpoint has a tensor {name!r} that a StyleNAT generator does not have; it belongs to "
        "another project or to a variant that is not supported, and nothing is dropped silently"
    )


def _is_verified_buffer(name: str, tensor: Tensor) -> bool:
    """Is this a constant of the original code, with the values it must have? Other values raise."""
    if _UNINITIALISED.fullmatch(name):
        return True
    if _INDEX.fullmatch(name):
        expected = _relative_position_index()
    elif _KERNEL.fullmatch(name):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        expected = torch.outer(taps, taps) / 16
    else:
        return False
    if tensor.shape != expected.shape or not torch.allclose(
        tensor.double(), expected.double(), atol=1e-6, rtol=0
    ):
        raise WeightsError(
            f"the constant buffer {name!r} has other values than StyleNAT's own code computes; the "
            "checkpoint comes from a variant that is not supported, and its pictures would be wrong"
        )
    return True


def _relative_position_index() -> Tensor:
    """[16, 16] entry of the flattened 7 x 7 table for (query, key) on the 4 px grid: key - query + 3."""
    rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
    return (rows[None] - rows[:, None] + 3) * 7 + (columns[None] - columns[:, None] + 3)


def _tensor_facts(state: State) -> dict[str, Any]:
    """Every config field that names and shapes alone decide; of the 4 px kernel they say nothing."""
    levels = _numbered(state, r"layers\.(\d+)\..*", "level", first=0)
    layers = _numbered(state, r"style\.(\d+)\.weight", "mapping layer", first=1)
    facts = [_level_facts(state, level) for level in range(levels)]
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
        **{
            field: tuple(fact[field] for fact in facts) for field in ("channels", "num_heads", "kernel_sizes")
        },
        "z_dim": _shape(state, "style.1.weight", 2)[1],
        "w_dim": _shape(state, f"style.{layers}.weight", 2)[0],
        "mapping_layers": layers,
        "mlp_ratio": facts[0]["mlp_ratio"],
        "qkv_bias": facts[0]["qkv_bias"],
    }


def _level_facts(state: State, level: int) -> dict[str, Any]:
    block = f"layers.{level}.blocks.0"
    width = _shape(state, f"{block}.attn.qkv.weight", 2)[1]
    hidden = _shape(state, f"{block}.mlp.fc1.weight", 2)[0]
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
        "mlp_ratio": hidden // width if hidden % width == 0 else hidden / width,
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
    heads, height, width = _shape(state, name, 3)
    kernel = (height + 1) // 2
    if height != width or height % 2 == 0 or heads < 1 or (level == 0 and height != 7):
        needed = "[heads, 7, 7]" if level == 0 else "[heads, 2k-1, 2k-1]"
        raise WeightsError(
            f"{at_level(level)}: {name!r} has the shape {[heads, height, width]}; it must be {needed}"
        )
    return heads, kernel


def _numbered(state: State, pattern: str, what: str, first: int) -> int:
    """How many `what` there are; their numbers must run from `first` without a gap."""
    matches = (re.fullmatch(pattern, name) for name in state)
    numbers = sorted({int(match[1]) for match in matches if match})
    if not numbers or numbers != list(range(first, first + len(numbers))):
        raise WeightsError(
            f"the checkpoint numbers its {what}s {numbers or 'not at all'}; they must run from {first} "
            "without a gap, so tensors are missing or it belongs to another project"
        )
    return len(numbers)


def _shape(state: State, name: str, dims: int) -> tuple[int, ...]:
    if name not in state:
        raise WeightsError(f"the checkpoint has no tensor {name!r}; it is incomplete or of another project")
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise WeightsError(
            f"the tensor {name!r} has the shape {list(shape)}; {dims} dimensions above 0 are needed"
        )
    return shape

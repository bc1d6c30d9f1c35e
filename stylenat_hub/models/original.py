"""Reading original generators' state dicts: what StyleNAT and StyleSwin, of one lineage, have in common.

A family's `keys.py` adds the names and the constants that only its own original has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from stylenat_hub.errors import ConfigError, WeightsError

State = Mapping[str, Tensor]
Renames = tuple[tuple[re.Pattern[str], str], ...]


def patterns(*pairs: tuple[str, str]) -> Renames:
    """(regular expression of a whole original name, our name with its groups), compiled."""
    return tuple((re.compile(old), new) for old, new in pairs)


COMMON = patterns(
    (r"input\.input", "constant"),
    (r"layers\.(\d+)\.(blocks\.\d+\.norm[12]\.style\.(?:weight|bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.(blocks\.\d+\.mlp\.fc[12]\.(?:weight|bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.(upsample\.(?:alpha|norm\.weight|norm\.bias))", r"levels.\1.\2"),
    (r"layers\.(\d+)\.upsample\.reduction\.weight", r"levels.\1.upsample.proj.weight"),
    (r"to_rgbs\.(\d+)\.(conv\.(?:weight|bias)|bias)", r"to_rgb.\1.\2"),
)
# `style.0` is the pixel norm, which has no tensors, so the layers count from 1.
_STYLE = re.compile(r"style\.(\d+)\.(weight|bias)")
_KERNEL = re.compile(r"to_rgbs\.\d+\.upsample\.kernel")
# Memory that the original code never initialises: it has no influence and nothing to be checked against.
_UNINITIALISED = re.compile(r"layers\.\d+\.upsample\.sin_pos_embed\._float_tensor")


def at_level(level: int) -> str:
    """How errors name a level."""
    return f"level {level} ({4 * 2**level} px)"


def renamed(name: str, renames: Iterable[tuple[re.Pattern[str], str]], title: str) -> str:
    """Our name of an original tensor, by the family's `renames` and those in common.

    Raises `WeightsError` for a name that the original code of `title` does not have.
    """
    style = _STYLE.fullmatch(name)
    if style and int(style[1]) > 0:
        return f"mapping_network.layers.{int(style[1]) - 1}.{style[2]}"
    for pattern, new in (*renames, *COMMON):
        match = pattern.fullmatch(name)
        if match:
            return match.expand(new)
    raise WeightsError(
        f"the checkpoint has a tensor {name!r} that a {title} generator does not have; it belongs to "
        "another project or to a variant that is not supported, and nothing is dropped silently"
    )


def taken(name: str, tensor: Tensor) -> Tensor:
    """A weight in float32, of its own memory. Raises `WeightsError` if it is not made of finite numbers."""
    if not tensor.is_floating_point():
        raise WeightsError(
            f"the tensor {name!r} has the type {tensor.dtype}, a weight is a floating-point number"
        )
    if not torch.isfinite(tensor).all():
        raise WeightsError(
            f"the tensor {name!r} holds NaN or infinite values; this training run had diverged or the "
            "file is damaged: take an earlier checkpoint"
        )
    return tensor.detach().to(torch.float32).contiguous().clone()


def is_common_buffer(name: str, tensor: Tensor, title: str) -> bool:
    """Is this a constant that every original has, with the values it must have? Other values raise."""
    if _UNINITIALISED.fullmatch(name):
        return True
    if not _KERNEL.fullmatch(name):
        return False
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    check_constant(name, tensor, torch.outer(taps, taps) / 16, title)
    return True


def check_constant(name: str, tensor: Tensor, expected: Tensor, title: str) -> None:
    """Raise `WeightsError` if a constant buffer has other values than the original code computes."""
    same = tensor.shape == expected.shape
    if not same or not torch.allclose(tensor.double(), expected.double(), atol=1e-6, rtol=0):
        raise other_values(name, title)


def other_values(name: str, title: str) -> WeightsError:
    """The error about a constant buffer with other values."""
    return WeightsError(
        f"the constant buffer {name!r} has other values than {title}'s own code computes; the "
        "checkpoint comes from a variant that is not supported, and its pictures would be wrong"
    )


def tensor_facts(state: State, level_facts: Callable[[State, int], dict[str, Any]]) -> dict[str, Any]:
    """Every config field that names and shapes alone decide.

    level_facts: the family's reading of one level, `mlp_ratio` and `qkv_bias` among it.
    Raises `ConfigError` if levels differ in these two, `WeightsError` for tensors that are missing.
    """
    levels = numbered(state, r"layers\.(\d+)\..*", "level", first=0)
    layers = numbered(state, r"style\.(\d+)\.weight", "mapping layer", first=1)
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


def numbered(state: State, pattern: str, what: str, first: int) -> int:
    """How many `what` there are; their numbers must run from `first` without a gap."""
    matches = (re.fullmatch(pattern, name) for name in state)
    numbers = sorted({int(match[1]) for match in matches if match})
    if not numbers or numbers != list(range(first, first + len(numbers))):
        raise WeightsError(
            f"the checkpoint numbers its {what}s {numbers or 'not at all'}; they must run from {first} "
            "without a gap, so tensors are missing or it belongs to another project"
        )
    return len(numbers)


def shape_of(state: State, name: str, dims: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there and have so many dimensions."""
    if name not in state:
        raise WeightsError(f"the checkpoint has no tensor {name!r}; it is incomplete or of another project")
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise WeightsError(
            f"the tensor {name!r} has the shape {list(shape)}; {dims} dimensions above 0 are needed"
        )
    return shape

"""The layouts in which the originals' code has saved checkpoints, read into tensors and plain data.

PyTorch's files are read here, TensorFlow's by `conversion.variables`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.pickles import StandIn, load_inert, printable
from conversion.variables import DISCRIMINATOR, GENERATORS, find_index, read_networks
from stylenat_hub.errors import UnsafeCheckpointError, WeightsError

_GENERATORS = ("g_ema", "g")
_NETWORKS = (*_GENERATORS, "d")
# What `--weights` takes: of PyTorch's and of TensorFlow's files, the averaged one first.
WEIGHTS = (*_GENERATORS, *GENERATORS)
_FACTS = ("eval_info", "iter", "iteration", "step")
_DEEPEST = 64
_MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Container:
    """One checkpoint.

    layout: which of the known layouts it has, in words. networks: state dicts, as far as present, under
    `g_ema`, `g` and `d`, or in TensorFlow's under `ema_generator`, `generator` and `discriminator`; a bare
    state dict stands under both `g_ema` and `g`. args: the recorded arguments as plain data, or None. facts:
    other plain data that is recorded (`eval_info`, an iteration). files: those it consists of. ignored: names
    of types that were read as inert stand-ins. left: top-level keys of PyTorch's files that nobody is handed,
    such as an optimizer's state. default: the generator to take unless told otherwise.
    discriminator: the name of that network.
    """

    layout: str
    networks: dict[str, dict[str, Tensor]]
    args: dict[str, Any] | None
    facts: dict[str, Any]
    files: tuple[Path, ...]
    ignored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    default: str = "g_ema"
    discriminator: str = "d"

    def network(self, name: str) -> dict[str, Tensor]:
        """The state dict under `name`, one of `WEIGHTS`. Raises `WeightsError` saying which there are."""
        if name not in self.networks:
            there = ", ".join(map(repr, self.networks)) or "none"
            others = " or ".join(key for key in WEIGHTS if key in self.networks)
            hint = f"; pass --weights {others}" if others else "; it holds no generator"
            raise WeightsError(f"the checkpoint has no {name!r} weights (it has {there}){hint}")
        return self.networks[name]


def read_checkpoint(path: str | Path, *, ignore_metadata: bool = False) -> Container:
    """Read an original checkpoint of any known layout. Executes nothing that the file carries.

    path: the file; of a TensorFlow checkpoint also its prefix or folder, see `variables.find_index`.

    Raises:
        UnsafeCheckpointError: the file carries something other than tensors and plain data, by name.
        WeightsError: no such file, or it is empty, truncated, damaged, or of no known layout.
    """
    path = Path(path)
    if index := find_index(path):
        return _read_tensorflow(index)
    content, ignored = load_inert(path, ignore_metadata=ignore_metadata)
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path.name!r} holds a {_kind(content)}, not a checkpoint; name an original checkpoint"
        )
    content = _entries(content)
    found = _find_networks(content)
    if not found:
        raise WeightsError(
            f"{path.name!r} is not a checkpoint of a known layout; its top-level keys are {_keys(content)}, "
            "and 'g_ema', 'state_dicts' or the tensors of one generator are needed"
        )
    args = plain(content.get("args"))
    facts = {key: plain(content[key]) for key in _FACTS if key in content}
    return Container(
        layout=_layout(content),
        networks={name: _state_dict(name, state) for name, state in found.items()},
        args=args if isinstance(args, dict) else None,
        facts=facts,
        files=(path,),
        ignored=ignored,
        left=_left(content),
    )


def _read_tensorflow(index: Path) -> Container:
    found = read_networks(index)
    return Container(
        layout="TensorFlow bundle",
        networks=found.networks,
        args=None,
        facts=found.facts,
        files=found.files,
        # Their trainer keeps an average only if it is told to.
        default=next((name for name in GENERATORS if name in found.networks), GENERATORS[0]),
        discriminator=DISCRIMINATOR,
    )


def plain(value: Any) -> Any:
    """Metadata as dicts, lists and scalars; stand-ins give up their recorded values, others are None.

    Raises `UnsafeCheckpointError` if it is nested without end or expands beyond any metadata.
    """
    return _plain(value, _DEEPEST, [_MOST_VALUES])


def _plain(value: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if depth == 0 or budget[0] < 0:
        raise UnsafeCheckpointError(
            "the checkpoint's metadata is nested or repeated without end; it was refused"
        )
    if isinstance(value, StandIn):
        return _plain(_recorded(value), depth - 1, budget)
    if isinstance(value, dict):
        return {
            str(_plain(key, depth - 1, budget)): _plain(item, depth - 1, budget)
            for key, item in dict.items(value)
        }
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, depth - 1, budget) for item in value]
    if isinstance(value, bytes):
        return value[:1000].decode("utf-8", "replace")
    return value if isinstance(value, (str, int, float, bool)) else None


def _recorded(stand_in: StandIn) -> Any:
    """The value behind a stand-in: a namespace's fields, or the content of a configuration library's node."""
    state = stand_in.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
        state = state[0]
    if not isinstance(state, dict):
        return None
    state = _entries(state)
    if stand_in.foreign_name.startswith("omegaconf."):
        # `_parent` leads back up and `_metadata` says nothing about values.
        return state.get("_content", state.get("_val"))
    return state


def _entries(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """A plain dict. A pickle can hang a `get`, `items` or `keys` of its own on an ordered one."""
    return dict(dict.items(mapping))


def _find_networks(content: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    inner = content.get("state_dicts")
    holder = _entries(inner) if isinstance(inner, dict) else content
    found = {name: _entries(holder[name]) for name in _NETWORKS if isinstance(holder.get(name), dict)}
    if not found and content and all(isinstance(value, Tensor) for value in content.values()):
        return {"g_ema": content, "g": content}
    return found


def _left(content: dict[Any, Any]) -> tuple[str, ...]:
    """The keys beside networks and records, sorted; of a bare state dict none, because each is a tensor."""
    if all(isinstance(value, Tensor) for value in content.values()):
        return ()
    inner = content.get("state_dicts")
    keys = [*content, *(_entries(inner) if isinstance(inner, dict) else ())]
    known = (*_NETWORKS, *_FACTS, "args", "state_dicts")
    return tuple(
        sorted(printable(key) if isinstance(key, str) else _shown(key) for key in keys if key not in known)
    )


def _layout(content: dict[Any, Any]) -> str:
    if isinstance(content.get("state_dicts"), dict):
        return "current (state_dicts)"
    if all(isinstance(value, Tensor) for value in content.values()):
        return "bare state dict"
    args = content.get("args")
    if isinstance(args, StandIn) and args.foreign_name.startswith("omegaconf."):
        return "first public version (g, d, g_ema; args of OmegaConf)"
    return "legacy (g, d, g_ema)" if "args" in content else "legacy without recorded arguments"


def _state_dict(name: str, state: dict[Any, Any]) -> dict[str, Tensor]:
    """Strip data-parallel training's `module.` from all names; check that tensors are what they claim."""
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise WeightsError(
                f"the checkpoint's {name!r} holds {_shown(key)}, a {_kind(tensor)}; a state dict maps names "
                "to tensors"
            )
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise WeightsError(f"the tensor {key!r} in {name!r} is not an ordinary dense tensor")
        # A tiny storage can pose as a tensor of terabytes by a stride of 0.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UnsafeCheckpointError(
                f"the tensor {key!r} in {name!r} claims more values than the file holds"
            )
    strip = "module." if state and all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(strip): tensor.detach() for key, tensor in state.items()}


def _keys(content: dict[Any, Any]) -> str:
    keys = [_shown(key) for key in list(content)[:8]]
    return ", ".join(keys) + (f" and {len(content) - 8} more" if len(content) > 8 else "") if keys else "none"


def _shown(key: Any) -> str:
    # Only of plain values: the text of tuples in tuples has no end that Python's stack would reach.
    return repr(key)[:60] if isinstance(key, (str, int, float, bytes)) else f"a {_kind(key)}"


def _kind(value: Any) -> str:
    return printable(value.foreign_name) if isinstance(value, StandIn) else type(value).__name__

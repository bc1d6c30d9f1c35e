"""TensorFlow's training checkpoints: which one of a folder is meant, and the networks in it.

The object graph names a variable by its path, such as `generator/.../kernel/.ATTRIBUTES/VARIABLE_VALUE`; the
first part is the network. What an optimizer keeps is not read.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.tensorflow_bundle import is_file, read_bundle
from stylenat_hub.errors import WeightsError, listed, shown

GENERATORS = ("ema_generator", "generator")
DISCRIMINATOR = "discriminator"
_NETWORKS = (*GENERATORS, DISCRIMINATOR)
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_STATE = "checkpoint"  # the file in which TensorFlow notes which checkpoint is the latest
_LATEST = re.compile(r'^\s*model_checkpoint_path:\s*"([^"\n]*)"', re.MULTILINE)
_NUMBERED = re.compile(r".*?(\d+)\.index")
_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_LONGEST_STATE = 1 << 20


@dataclass(frozen=True)
class Variables:
    """networks: path below it -> variable, of each network. facts: single numbers beside them, such as
    `global_step`. files: the index and the data files."""

    networks: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    files: tuple[Path, ...]


def find_index(path: Path) -> Path | None:
    """The index file of the TensorFlow checkpoint that a folder, a prefix (`ckpt-12`), an index or a data
    file means; None for any other file, or none at all.

    Of a folder it is the checkpoint that its file `checkpoint` names, of which only the last part counts and
    must be in the folder; without such a file the one with the highest number.

    Raises `WeightsError` for a folder that has none, or where it is not clear which one is meant, for a data
    file without its index, and for a name that no file can have.
    """
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise WeightsError(
            f"there is no file {shown(repr(str(path)))}, because no file's name can be so long; name an "
            "original checkpoint (.pt, .pth, or TensorFlow's ckpt-N)"
        ) from None
    if folder:
        return _latest(path)
    if file:
        data = _DATA.fullmatch(path.name)
        index = path.with_name(f"{data[1]}.index") if data else path
        if not is_file(index):
            raise WeightsError(f"{path.name!r} cannot be read without {index.name!r}; copy that beside it")
        return index if index.suffix == ".index" else None
    index = path.with_name(f"{path.name}.index") if path.name else path
    return index if is_file(index) else None


def read_networks(index: Path) -> Variables:
    """The networks of a checkpoint, every byte of it verified. Raises `WeightsError`."""
    bundle = read_bundle(index, _wanted)
    networks: dict[str, dict[str, Tensor]] = {}
    facts = {}
    for key, values in bundle.variables.items():
        network, _, path = key.removesuffix(_SUFFIX).partition("/")
        if path:
            networks.setdefault(network, {})[path] = torch.from_numpy(values)
        elif values.size == 1:
            facts[network] = values.item()
    found = {name: networks[name] for name in _NETWORKS if name in networks}
    if not found:
        some = listed([repr(key) for key in (*bundle.variables, *bundle.left)])
        raise WeightsError(
            f"{index.name!r} is a TensorFlow checkpoint of another project: it has {some or 'no variables'}; "
            f"allowed are those with the networks {', '.join(map(repr, _NETWORKS))}"
        )
    return Variables(found, dict(sorted(facts.items())), bundle.files)


def _wanted(key: str) -> bool:
    """Is it a variable of a network, or one beside them?"""
    network, _, path = key.removesuffix(_SUFFIX).partition("/")
    return key.endswith(_SUFFIX) and _SLOT not in key and (network in _NETWORKS or not path)


def _latest(folder: Path) -> Path:
    found = {path.name: path for path in sorted(folder.glob("*.index")) if path.is_file()}
    if not found:
        raise WeightsError(
            f"{str(folder)!r} is a folder without a TensorFlow checkpoint (ckpt-N.index); name an original "
            "checkpoint file (.pt, .pth), or the folder of a TensorFlow checkpoint"
        )
    there = listed([repr(name.removesuffix(".index")) for name in found])
    named = _named(folder / _STATE)
    if named is None:
        return _highest(found, folder, there)
    if f"{named}.index" not in found:
        raise WeightsError(
            f"the file {_STATE!r} in {str(folder)!r} names {shown(repr(named))}, which is not in it; name "
            f"one of those that are, by its path: {there}"
        )
    return found[f"{named}.index"]


def _named(state: Path) -> str | None:
    """The last part of the path that TensorFlow noted: the folder before it may be another machine's."""
    if not state.is_file() or state.stat().st_size > _LONGEST_STATE:
        return None
    match = _LATEST.search(state.read_text(encoding="utf-8", errors="replace"))
    return re.split(r"[/\\]", match[1])[-1] if match else None


def _highest(found: Mapping[str, Path], folder: Path, there: str) -> Path:
    numbers = {name: int(match[1]) for name in found if (match := _NUMBERED.fullmatch(name))}
    best = [name for name in numbers if numbers[name] == max(numbers.values())] or list(found)
    if len(best) > 1:
        raise WeightsError(
            f"{str(folder)!r} has no file {_STATE!r} that says which of its checkpoints is the latest "
            f"({there}); name one of them by its path"
        )
    return found[best[0]]

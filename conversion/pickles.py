"""Checkpoint files opened without trusting them: a pickle's names are listed first, and nothing in it is
called.

Four walls stand behind each other. (1) The file's container is checked (`conversion.archives`). (2) The
pickle's opcodes are read as text (`pickletools`, which executes nothing), and every global that it names must
be on a short list: the few that PyTorch needs to rebuild tensors, and names of harmless metadata types.
(3) What it says about tensors must be what the file holds (`conversion.storages`). (4) Then
`torch.load(weights_only=True)` reads the file, and every metadata type, known or not, is an inert stand-in
class registered under the foreign name: it records what the pickle hands to it and does nothing. The real
classes are never imported, not even `argparse.Namespace`, so no constructor, `__setstate__` or factory of
theirs can run.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from conversion.archives import check_container
from conversion.storages import STORAGE_TYPES, check_storages, python3_name, resolved_by_torch
from stylenat_hub.errors import UnsafeCheckpointError, WeightsError

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
# What PyTorch itself rebuilds tensors with; its loader allows more, which no checkpoint of ours needs.
TORCH_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.device",
        *STORAGE_TYPES,
        *(f"torch.{kind}" for kind in _DTYPES),
    }
)
# With --ignore-metadata, arrays and numbers of NumPy arrive with bytes; this is how Python 3 pickles those.
_HARMLESS_EXTRAS = frozenset({"_codecs.encode"})

_NODES = ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Bytes", "Path")
_BUILTINS = ("dict", "list", "tuple", "int", "float", "str", "bool")
METADATA_TYPES = frozenset(
    {
        "argparse.Namespace",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        *(f"omegaconf.nodes.{kind}Node" for kind in _NODES),
        "typing.Any",
        "collections.defaultdict",
        *(f"builtins.{kind}" for kind in _BUILTINS),
    }
)
# Modules that PyTorch's loader refuses whatever is registered under their names.
_BLOCKED_MODULES = frozenset({"sys", "os", "posix", "nt"})
# Each tensor takes four tuples; nesting far beyond that would overflow the C stack when a tuple is hashed.
_MOST_TUPLES = 40_000
_MOST_ATTEMPTS = 16
_MOST_NAMES = 12
_LONGEST_NAME = 120

# What PyTorch's loader raises on damaged or hostile input.
_LOADER_ERRORS = (
    UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    ArithmeticError,
    zipfile.BadZipFile,
)


class StandIn:
    """In the place of a foreign class, one subclass per name: keeps what the pickle passes, runs nothing."""

    foreign_name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        instance = object.__new__(cls)
        instance.state = None
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments are dropped."""

    def __setstate__(self, state: Any) -> None:
        # Never `__dict__.update`: a pickle could then replace attributes of this object.
        self.state = state


def load_inert(path: Path, *, ignore_metadata: bool = False) -> tuple[Any, tuple[str, ...]]:
    """The content of a checkpoint file, tensors on the CPU, foreign objects as `StandIn`s, and unknown names.

    ignore_metadata: read types that are not on the list as stand-ins too, instead of refusing the file.

    Raises:
        UnsafeCheckpointError: the pickle names something that is neither a tensor nor harmless metadata.
        WeightsError: the file is empty, truncated, damaged, or no PyTorch checkpoint at all.

    Unknown names come as `printable` text.
    """
    archive = check_container(path)
    names = _legacy_globals(path) if archive is None else _globals(io.BytesIO(archive.pickle), path)
    unknown = names - TORCH_GLOBALS - METADATA_TYPES
    if ignore_metadata:
        unknown -= _HARMLESS_EXTRAS
    _refuse(path, unknown, ignore_metadata)
    check_storages(path, archive)
    content = _load(path, (names & METADATA_TYPES) | unknown, mmap=archive is not None)
    return content, tuple(printable(name) for name in sorted(unknown))


def printable(text: str) -> str:
    """Text of a file, short and fit for a terminal: anything but plain ASCII is written as its escape."""
    short = text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "..."
    return short if short.isascii() and short.isprintable() else ascii(short)


def _listed(names: list[str]) -> str:
    """Names for one sentence."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(ascii(name[:_LONGEST_NAME]) for name in names[:_MOST_NAMES]) + more


def _refuse(path: Path, unknown: set[str], ignore_metadata: bool) -> None:
    if not unknown:
        return
    # Under these names PyTorch's loader refuses, or has objects of its own, whatever is registered for them.
    never = sorted(
        name
        for name in unknown - _HARMLESS_EXTRAS
        if name.rpartition(".")[0] in {*_BLOCKED_MODULES, "_codecs"} or resolved_by_torch(name)
    )
    if not ignore_metadata or never:
        hint = (
            "save the checkpoint again without it"
            if never
            else ("if these are only metadata, --ignore-metadata reads them as inert stand-ins")
        )
        raise UnsafeCheckpointError(
            f"{path.name!r} was refused and nothing in it was executed: besides tensors and plain data its "
            f"pickle names {_listed(never or sorted(unknown))}; {hint}"
        )


def _legacy_globals(path: Path) -> set[str]:
    """The old layout is five pickles: magic number, protocol, system, the object, the storages' keys."""
    names: set[str] = set()
    with path.open("rb") as file:
        for number in range(5):
            try:
                names |= _globals(file, path)
            except WeightsError:
                # A pickle that names something else is refused by that name even if it is no checkpoint.
                if number == 0 or not names - TORCH_GLOBALS - METADATA_TYPES:
                    raise
                break
    return names


def _globals(file: BinaryIO, path: Path) -> set[str]:
    """Every global that the next pickle in `file` names, as `module.attribute`; executes nothing."""
    names: set[str] = set()
    strings: list[str] = []
    tuples = 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
            if isinstance(argument, str) and opcode.name not in ("GLOBAL", "INST"):
                strings.append(argument)
            if opcode.name in ("GLOBAL", "INST"):
                names.add(python3_name(argument))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]) or "a hidden name")
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                names.add(f"the extension {argument}")
    except (ValueError, UnicodeError, IndexError, EOFError, OverflowError, MemoryError) as error:
        raise WeightsError(
            f"{path.name!r} is not a PyTorch checkpoint, or it is truncated or damaged; name an original "
            "checkpoint (.pt, .pth), or download it again"
        ) from error
    if tuples > _MOST_TUPLES:
        raise UnsafeCheckpointError(
            f"{path.name!r} was refused: its pickle is nested or split beyond any checkpoint"
        )
    return names


def _load(path: Path, names: set[str], *, mmap: bool) -> Any:
    kinds: dict[str, type] = dict.fromkeys(names, StandIn)
    for _ in range(_MOST_ATTEMPTS):
        stand_ins = {name: _stand_in(_class_name(kinds, name), name, kind) for name, kind in kinds.items()}
        try:
            with _only(stand_ins), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except _LOADER_ERRORS as error:
            if not _adapt(kinds, str(error)):
                raise _explained(path, error) from error
    raise WeightsError(f"{path.name!r} holds metadata that cannot be read")


def _class_name(kinds: dict[str, type], name: str) -> str:
    """The name of a stand-in class: of letters that Python takes in it, and no two alike."""
    return f"StandIn{list(kinds).index(name)}_" + re.sub(r"[^A-Za-z0-9]", "_", name[:_LONGEST_NAME])


def _stand_in(class_name: str, foreign_name: str, kind: type) -> type:
    """A fresh class for one foreign name; of kind dict or list, its instances are plain dicts or lists."""
    if kind is StandIn:
        return type(class_name, (StandIn,), {"foreign_name": foreign_name})
    return type(class_name, (), {"__new__": lambda cls, *args: kind()})


def _adapt(kinds: dict[str, type], message: str) -> bool:
    """Hand a foreign dict or list out as the plain type: only that may be filled item by item."""
    kind = (
        OrderedDict if "SETITEM" in message else list if "append" in message or "extend" in message else None
    )
    for name, current in kinds.items():
        if kind and current is StandIn and f".{_class_name(kinds, name)}'" in message:
            kinds[name] = kind
            return True
    return False


@contextlib.contextmanager
def _only(stand_ins: dict[str, type]) -> Iterator[None]:
    """Allow these names and no others: what other libraries have registered is set aside for the while."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _explained(path: Path, error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, UnpicklingError) and (
        "nsupported" in text or "Can only" in text or "Trying to" in text
    ):
        reason = text.split("WeightsUnpickler error:")[-1].strip().split("\n")[0].split(". ")[0].rstrip(".")
        return UnsafeCheckpointError(
            f"{path.name!r} was refused and nothing in it was executed: its pickle does more than hold "
            f"tensors and plain data ({printable(reason)}); save it again with a current PyTorch from the "
            "code that it belongs to"
        )
    return WeightsError(
        f"{path.name!r} is truncated, damaged or no PyTorch checkpoint; download or copy it again"
    )

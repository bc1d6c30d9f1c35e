"""What a checkpoint's pickle claims about its tensors, held against the bytes that the file has.

PyTorch believes the pickle: a storage that the file does not hold stays uninitialised memory, and a tensor
that is larger than its storage makes the storage grow. So the pickle is followed here first, opcode by
opcode, with placeholders in the place of all objects: nothing is called and no tensor memory is taken. Only
the opcodes that PyTorch's restricted loader knows are followed, and tensors only come out of storages.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from torch._weights_only_unpickler import _get_allowed_globals

from conversion.archives import Archive
from stylenat_hub.errors import UnsafeCheckpointError, WeightsError

_ITEM_SIZES = {
    f"torch.{kind}Storage": dtype.itemsize
    for kind, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
STORAGE_TYPES = frozenset(_ITEM_SIZES)

_SCALARS = frozenset({"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"})
_CONSTANTS = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DAMAGED = (ValueError, LookupError, EOFError, OverflowError, MemoryError, struct.error)


@dataclass(frozen=True)
class _Name:
    """A global, `module.attribute`."""

    text: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * _ITEM_SIZES[self.kind]


class _Tensor:
    """In the place of a tensor."""


class _Object:
    """In the place of anything whose content tells nothing about tensors."""


class _Refused(Exception):
    """The pickle does what no checkpoint does; the text says what."""


def check_storages(path: Path, archive: Archive | None) -> None:
    """Raise unless the file holds each storage that its pickle names, in full, and nothing is left over.

    archive: the records of a zip file; None for bare pickles.

    Raises:
        UnsafeCheckpointError: the pickle builds tensors in another way than PyTorch writes, or beyond their
            storages.
        WeightsError: bytes are missing or left over; the file is truncated or damaged.
    """
    try:
        if archive is None:
            _check_bare(path)
        else:
            _check_records(path, archive)
    except _Refused as error:
        raise UnsafeCheckpointError(
            f"{path.name!r} was refused and nothing in it was executed: its pickle does more than hold "
            f"tensors and plain data ({error}); save it again with a current PyTorch from the code that it "
            "belongs to"
        ) from error
    except (WeightsError, UnsafeCheckpointError):
        raise
    except _DAMAGED as error:
        raise _damaged(path, "its pickle breaks off or makes no sense") from error


def python3_name(argument: str) -> str:
    """A GLOBAL opcode's `module attribute`, Python 2's names as Python 3's, as PyTorch's loader reads it."""
    module, name = argument.split(" ", 1)
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[(module, name)])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def resolved_by_torch(name: str) -> bool:
    """Does PyTorch's loader put one of PyTorch's objects under this name, whatever is registered for it?"""
    own = ("torch.nested.", "torch.distributed.", "torch._dynamo.", "torch._utils.", "torch.storage.")
    return name.startswith(own) or (name.startswith("torch.") and name in _get_allowed_globals())


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path.name!r} is truncated or damaged ({reason}); download or copy it again")


def _check_records(path: Path, archive: Archive) -> None:
    survey = _Survey()
    survey.follow(io.BytesIO(archive.pickle))
    for key, storage in survey.storages.items():
        if archive.sizes.get(key) != storage.nbytes:
            there = f"{archive.sizes[key]} bytes are" if key in archive.sizes else "nothing is"
            raise _damaged(path, f"storage {key} needs {storage.nbytes} bytes and {there} there")


def _check_bare(path: Path) -> None:
    """Five pickles (magic number, protocol, system, the object, the storages' keys), then the storages:
    each its number of values in 8 bytes, and the values."""
    with path.open("rb") as file:
        for _ in range(3):
            _Survey().follow(file)
        survey = _Survey()
        survey.follow(file)
        storages = survey.storages
        keys = _Survey().follow(file)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise _damaged(path, "the list of its storages is missing")
        if sorted(keys) != sorted(storages):
            raise _damaged(path, f"it lists {len(keys)} storages and its tensors need {len(storages)}")
        needed = file.tell() + sum(8 + storage.nbytes for storage in storages.values())
        if needed != path.stat().st_size:
            raise _damaged(path, f"its tensors need {needed} bytes and it has {path.stat().st_size}")
        for key in keys:
            if struct.unpack("<q", file.read(8)) != (storages[key].numel,):
                raise _damaged(path, f"storage {key} has another size than its tensors need")
            file.seek(storages[key].nbytes, io.SEEK_CUR)


class _Survey:
    """One pickle followed with placeholders. storages: what its persistent ids name, by key."""

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def follow(self, file: BinaryIO) -> Any:
        """The placeholder of the pickled object; `file` then stands behind the pickle."""
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise EOFError

    def _step(self, name: str, argument: Any) -> None:
        if name in _SCALARS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self._stack.append(_Name(python3_name(argument)))
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name == "TUPLE" or name in _TUPLES:
            items = self._since_mark() if name == "TUPLE" else self._pop(_TUPLES[name])
            self._stack.append(tuple(items))
        elif name != "PROTO":
            self._step_on_objects(name)

    def _step_on_objects(self, name: str) -> None:
        if name == "EMPTY_LIST":
            self._stack.append([])
        elif name in ("EMPTY_DICT", "EMPTY_SET"):
            self._stack.append(_Object())
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._since_mark()
            if isinstance(self._stack[-1], list):
                self._stack[-1].extend(items)
        elif name == "SETITEM":
            self._pop(2)
        elif name == "SETITEMS":
            self._since_mark()
        elif name == "BINPERSID":
            self._stack.append(self._storage(self._stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            self._stack.append(_called(function, arguments, new=name == "NEWOBJ"))
        elif name == "BUILD":
            self._pop(1)
            if not isinstance(self._stack[-1], _Object):
                raise _Refused("it changes something other than a plain object")
        else:
            raise _Refused(f"unsupported opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise IndexError
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _storage(self, claim: Any) -> _Storage:
        """(storage, its type, key, device, number of values), and None in the older layout."""
        if not isinstance(claim, tuple) or len(claim) not in (5, 6) or claim[5:] not in ((), (None,)):
            raise _Refused("a persistent id that names no storage")
        what, kind, key, location, numel = claim[:5]
        known = isinstance(kind, _Name) and kind.text in _ITEM_SIZES
        # Keys are numbers in every file that PyTorch writes; no other text can then pose as one.
        numbered = isinstance(key, str) and key.isascii() and key.isdigit()
        if what != "storage" or not known or not numbered or not isinstance(location, str):
            raise _Refused("a persistent id that names no storage")
        if not _are_sizes([numel]):
            raise _Refused("a storage of an impossible size")
        storage = _Storage(kind.text, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise _Refused(f"storage {key} has two sizes or types")
        return storage


def _called(function: Any, arguments: Any, *, new: bool) -> Any:
    """The placeholder of what a call gives. Those that make tensors get nothing but what PyTorch writes."""
    if not isinstance(function, _Name):
        raise _Refused("it calls something that has no name")
    if not resolved_by_torch(function.text):
        return _Object()
    if new or not isinstance(arguments, tuple):
        raise _Refused(f"it calls {function.text!r} in an unusual way")
    if function.text in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        if len(arguments) < 4:
            raise _Refused("a tensor without a shape")
        return _rebuilt(*arguments[:4])
    if function.text == "torch._utils._rebuild_parameter":
        if not arguments or not isinstance(arguments[0], _Tensor):
            raise _Refused("a parameter without a tensor")
        return _Tensor()
    if function.text in ("torch.Size", "torch.device"):
        return _Object()
    raise _Refused(f"it calls {function.text!r}")


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not _are_sizes([offset]):
        raise _Refused("a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise _Refused("a tensor without a shape")
    if not _are_sizes(size) or not _are_sizes(stride):
        raise _Refused("a tensor of an impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel:
        raise _Refused(f"a tensor of more values than its storage {storage.key} has")
    return _Tensor()


def _are_sizes(values: Iterable[Any]) -> bool:
    # `type`, because True and False are integers too; and an address has 63 bits.
    return all(type(value) is int and 0 <= value < 2**63 for value in values)

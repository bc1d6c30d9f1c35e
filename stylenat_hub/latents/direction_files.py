"""Directions in files: one `directions.safetensors`, by itself, in a folder or in a repository of the Hub.

Tensors in float32: `vectors` [n, w_dim], `deviations` [n], `shares` [n]. The header's `directions` is JSON:
{"format": 1, "names": [n], "styles": [n lists of numbers], "about": {texts}}.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file

from stylenat_hub import download
from stylenat_hub.errors import InputError, WeightsError, shown
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.latents.directions import MAX_DIRECTIONS, Directions
from stylenat_hub.models.base import Generator
from stylenat_hub.weights import system_errors

FILE = "directions.safetensors"
FORMAT = 1
KEY = "directions"
_TENSORS = ("vectors", "deviations", "shares")
_MAX_HEADER = 4 << 20  # bytes; a full set with long names and 32 styles each has a quarter of it
_MAX_WIDTH = 4_096  # w_dim
_HUB_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*?)(?:@([\w][\w./-]*))?")


def save_directions(path: str | os.PathLike[str], directions: Directions) -> None:
    """Write one safetensors file, whole or not at all. Raises `InputError` if it cannot be written."""
    header = {
        "format": FORMAT,
        "names": directions.names,
        "styles": directions.styles,
        "about": directions.about,
    }
    tensors = {name: getattr(directions, name).contiguous() for name in _TENSORS}
    with whole_file(path) as temporary, system_errors():
        save_file(tensors, temporary, metadata={KEY: json.dumps(header)})


def load_directions(
    source: str | os.PathLike[str],
    generator: Generator | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Directions:
    """Directions from a file, a folder with `directions.safetensors`, or a Hub id: `me/church-directions`, or
    with a branch, tag or commit `me/church-directions@v1`.

    generator: to check that they fit it; of other weights than they were found in, `OtherModelWarning` warns.
    Other arguments: of a Hub repository, see `download.pull`; downloads are verified, and kept in the cache.

    Raises:
        InputError: nothing of that name; they do not fit the generator.
        UnknownModelError: the Hub has no such repository or revision, or cannot be asked.
        WeightsError: it is no file of directions, or is damaged.
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    path = _find(source, revision, {**hub, "force_download": force_download})
    directions = _read(path, os.fspath(source))
    if generator is not None:
        directions.check(generator)
    return directions


def _find(source: Any, revision: str | None, hub: dict[str, Any]) -> Path:
    """The file on this machine, downloaded if it is on the Hub."""
    if not isinstance(source, (str, os.PathLike)) or not isinstance(os.fspath(source), str):
        raise InputError(f"the directions are {source!r:.60}; give a file, a folder or a Hub id")
    path = user_path(source)
    try:
        found = path / FILE if path.is_dir() else path
        there, exists = found.is_file(), os.path.lexists(path)
    except (OSError, ValueError):  # longer than names may be, or with a NUL in it
        there, exists = False, False
    if there:
        _check_no_revision(revision, source)
        return found
    if exists:
        raise InputError(
            f"{str(source)!r} has no {FILE!r} in it; name a file or a folder that `stylenat directions` wrote"
        )
    name = _HUB_ID.fullmatch(os.fspath(source))
    if not name:
        raise InputError(
            f"there is no file or folder {shown(str(source))!r}; name what `stylenat directions` wrote, or a "
            "Hub id (me/church-directions)"
        )
    if name[2]:
        _check_no_revision(revision, source)
    return _pulled(name[1], {**hub, "revision": name[2] or revision})


def _check_no_revision(revision: str | None, source: Any) -> None:
    if revision is not None:
        raise InputError(f"revision is {revision!r} beside {str(source)!r}; give it with a Hub id, and once")


def _pulled(name: str, hub: dict[str, Any]) -> Path:
    snapshot = download.pull(name, [FILE], **hub)
    path = snapshot.folder / FILE
    if not path.is_file():
        raise InputError(
            f"the Hub repository {name!r} has no {FILE!r}; name one that `stylenat directions --push-to-hub` "
            "wrote"
        )
    return path


def _read(path: Path, source: str) -> Directions:
    """Raises `WeightsError`, whatever is in the file."""
    name = repr(shown(source))
    try:
        check_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            said = _json((file.metadata() or {}).get(KEY, ""))
            for key in _TENSORS:
                _check_tensor(file, key)
            tensors = {key: file.get_tensor(key) for key in _TENSORS}
        return Directions(said["names"], styles=said["styles"], about=said["about"], **tensors)
    except (OSError, ValueError, LookupError, TypeError, safetensors.SafetensorError) as error:
        why = " ".join(str(error).split())
        raise WeightsError(
            f"{name} is no file of directions, or is damaged ({shown(why)}); write or download it again"
        ) from error


def check_header(path: Path) -> None:
    """Raise `ValueError` for a header so large that reading it would take memory, before it is read."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"its header is said to have {size:,} bytes; allowed: up to {_MAX_HEADER:,}")


def header_json(text: str, key: str) -> Any:
    """What a file's header has under a key, as JSON. Raises `ValueError`, whatever the text is."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"its header has no {key!r} that can be read") from error


def _json(text: str) -> dict[str, Any]:
    """What the header says. Raises `ValueError`, `LookupError`."""
    said = header_json(text, KEY)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        known = said.get("format") if isinstance(said, dict) else None
        raise ValueError(f"its format is {shown(str(known))}, and this version reads {FORMAT}")
    lists = all(isinstance(said.get(key), list) for key in ("names", "styles"))
    if not (lists and isinstance(said.get("about"), dict)):
        raise ValueError("its header has no lists of names and styles, or no about")
    return said


def _check_tensor(file: Any, name: str) -> None:
    """Raise `ValueError` for a tensor of another type or size, before it is read."""
    if name not in file.keys():  # noqa: SIM118  not a dict
        raise ValueError(f"it has no tensor {name!r}")
    part = file.get_slice(name)
    shape, kind = part.get_shape(), part.get_dtype()
    sides = [MAX_DIRECTIONS, _MAX_WIDTH][: 2 if name == "vectors" else 1]
    fits = len(shape) == len(sides) and all(1 <= n <= most for n, most in zip(shape, sides, strict=True))
    if kind != "F32" or not fits:
        raise ValueError(f"its tensor {name!r} is {kind} {shape}; allowed: F32, up to {sides}")

"""What a push is asked to do: every argument is checked before anything is saved, made or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path
from stylenat_hub.models.base import Discriminator

UPLOAD = ("token", "private", "create_pr", "revision", "tag", "commit_message", "commit_description")
FOLDER = (*UPLOAD, "variant", "license", "bundle_code", "samples", "checkpoint")
SAVED = (*(name for name in FOLDER if name != "checkpoint"), "max_shard_size")

_REF = re.compile(r"(?!.*(\.\.|//|\.lock$|[./]$))\w[\w./+-]*")  # what git allows, and a little less
COMMIT = re.compile(r"[0-9a-f]{40}")
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _switch(value: Any) -> bool:
    return isinstance(value, bool)


def _variant(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value) is not None)


def _shards(value: Any) -> bool:
    if isinstance(value, str):
        return _SIZE.fullmatch(value) is not None
    return value is None or (type(value) is int and value > 0)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "token": (lambda value: _text(value) or _switch(value), "a token, True, False or None"),
    "private": (lambda value: value is None or _switch(value), "True, False or None"),
    "commit_message": (_text, "a text, or None"),
    "commit_description": (_text, "a text, or None"),
    "license": (_text, "a name of the Hub's list such as 'mit', or None"),
    "variant": (_variant, "a short name such as 'bf16', or None"),
    "max_shard_size": (_shards, "a size such as '2GB', a number of bytes, or None"),
    "discriminator": (
        lambda value: value is None or isinstance(value, Discriminator),
        "a discriminator of the zoo, or None",
    ),
    "checkpoint": (
        lambda value: value is None or isinstance(value, (str, os.PathLike)),
        "the folder of a training's checkpoint, or None",
    ),
    **dict.fromkeys(("create_pr", "bundle_code", "samples"), (_switch, "True or False")),
}


def check_options(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `InputError` for an argument that nobody knows, and for a value that it cannot have."""
    if unknown := sorted(set(given) - set(known)):
        raise InputError(
            f"a push does not know the argument(s) {', '.join(map(repr, unknown))}; it knows "
            f"{', '.join(sorted(known))}"
        )
    for name, value in given.items():
        fits, allowed = _ALLOWED.get(name, (None, ""))
        if fits is not None and not fits(value):
            shown = " ".join(repr(value).split())  # of a model it is a page
            raise InputError(f"{name} is {shown:.60}; allowed: {allowed}")
    _check_ref(given.get("tag"), "tag")
    _check_ref(given.get("revision"), "branch")
    if given.get("create_pr") and given.get("tag") is not None:
        raise InputError("a pull request cannot be tagged; leave out tag, or create_pr")


def _check_ref(ref: Any, what: str) -> None:
    if ref is None:
        return
    good = isinstance(ref, str) and _REF.fullmatch(ref)
    # The Hub would read a tag of such a name as something else. Of a branch the repository is asked.
    if not good or (what == "tag" and (ref.startswith("refs/") or COMMIT.fullmatch(ref))):
        raise InputError(f"{ref!r:.60} cannot be the name of a {what}; give one such as v1 or my-{what}")


def folder_path(folder: Any) -> Path:
    """A folder that is to be pushed. Raises `InputError` if it is none."""
    if not isinstance(folder, (str, os.PathLike)) or not isinstance(os.fspath(folder), str):
        raise InputError(f"the folder to push is {folder!r:.60}; give the path of a folder")
    path = user_path(folder)
    try:
        found = path.is_dir()
    except (OSError, ValueError):  # longer than names may be, or with a NUL in it
        found = False
    if not found:
        shown = str(path) if len(str(path)) < 400 else f"{str(path)[:60]}..."
        raise InputError(f"there is no folder {shown!r} to push; name one that exists")
    return path

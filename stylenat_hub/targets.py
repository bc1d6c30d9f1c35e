"""The repository that a push goes to: what is in it, and what of that may be replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from stylenat_hub import cards
from stylenat_hub.bundle import CODE_CLASS, PIPELINE_CLASS
from stylenat_hub.errors import InputError
from stylenat_hub.latents.direction_files import FILE as DIRECTIONS
from stylenat_hub.locations import RECORDS
from stylenat_hub.registry import find_class
from stylenat_hub.weights import shown, weights_kind

STATE = "checkpoint/state.json"
INDEX = "model_index.json"
_CONFIGS = ("config.json", "generator/config.json", "discriminator/config.json")


@dataclass(frozen=True)
class Target:
    """A repository at its newest commit. read: the content of a file of it, downloaded."""

    where: str
    commit: str | None
    names: frozenset[str]
    read: Callable[[str], bytes]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of it; an empty one for anything else."""
        try:
            values = json.loads(self.read(name).decode("utf-8")) if name in self.names else {}
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def own_card(self) -> bytes | None:
        """Its card, if that is somebody's own."""
        card = self.read("README.md") if "README.md" in self.names else None
        return None if card is None or cards.MARK.encode() in card else card


def look(api: HfApi, where: str, revision: str | None, repo_type: str) -> Target:
    """What is there now."""
    info = api.repo_info(where, revision=revision, repo_type=repo_type)

    def read(name: str) -> bytes:
        options = {"revision": info.sha, "repo_type": repo_type, "token": api.token}
        return Path(hf_hub_download(where, name, **options)).read_bytes()

    return Target(where, info.sha, frozenset(file.rfilename for file in info.siblings or ()), read)


def check_ours(target: Target, new: Collection[str]) -> None:
    """Raise `InputError` if a model would be pushed over one that is not of this package."""
    if not any(name in (INDEX, *_CONFIGS) or weights_kind(name) for name in new):
        return
    for name in (INDEX, *_CONFIGS):
        if name in target.names and (other := _not_ours(name, target.json(name))):
            raise InputError(
                f"{target.where!r} holds {other} ({name}), which is no model of this package and would be "
                "overwritten; push to another repository"
            )


def _not_ours(name: str, config: dict[str, Any]) -> str | None:
    """What a config is of, unless it is of a class of this package."""
    cls, said = config.get("_class_name"), config.get("architectures")
    if name == INDEX:
        parts = [entry for key, entry in config.items() if not key.startswith("_")]
        known = all(isinstance(entry, list) and entry and find_class(entry[-1]) for entry in parts)
        ours = cls in (PIPELINE_CLASS, CODE_CLASS) and known
    else:
        ours = find_class(cls) is not None
    if ours:
        return None
    kinds = (cls, said[0] if isinstance(said, list) and said else said, config.get("model_type"))
    kind = next((kind for kind in kinds if isinstance(kind, str) and kind), None)
    return f"a {shown(kind):.60}" if kind else "something else"


def check_kind(target: Target, new: Collection[str]) -> None:
    """Raise `InputError` for a model by itself where a pipeline is, because nobody would ever load it; for
    directions where a model is, and a model where directions are."""
    _check_apart(target, new)
    if "config.json" in new and INDEX in target.names - set(new):
        raise InputError(
            f"{target.where!r} holds a pipeline, in which a model by itself is not found; push it into its "
            "place by subfolder='generator' (or 'discriminator'), or to another repository"
        )


def _check_apart(target: Target, new: Collection[str]) -> None:
    """Raise `InputError` if directions would come to a model, or a model to directions: the card is about one
    of them. A repository that has both already is somebody's own arrangement."""
    model, theirs = (
        any(name in (INDEX, *_CONFIGS) or weights_kind(name) for name in names)
        for names in (new, target.names)
    )
    if DIRECTIONS in new and theirs:
        raise InputError(
            f"{target.where!r} holds a model; push directions to a repository of their own, such as "
            f"{target.where}-directions"
        )
    if model and DIRECTIONS in target.names and not theirs:
        raise InputError(f"{target.where!r} holds directions; push a model to a repository of its own")


def check_fresh(target: Target) -> None:
    """Raise `InputError` if another training run was pushed there, which a new one would replace."""
    name = next((name for name in (STATE, "training.json") if name in target.names), None)
    if name is None:
        return
    images = target.json(name).get("images")
    run = f"a run of {images:,} images" if isinstance(images, int) else "a run"
    way = f"go on with it by --resume hf:{target.where}" if name == STATE else "start from it by --from"
    raise InputError(f"{target.where!r} holds {run}; {way}, or name another repository")


def strangers(target: Target, names: Collection[str]) -> set[str]:
    """Of these files of the repository those that have a name of this package's, but are not by it."""
    found = {
        name
        for name in RECORDS
        if name in names and name in target.names and cards.wrong_field(name, target.json(name))
    }
    inside = {name for name in names if name in target.names and name.startswith("checkpoint/")}
    if inside:
        listed = target.json(STATE).get("files")
        own = {STATE, *(f"checkpoint/{name}" for name in listed)} if isinstance(listed, dict) else set()
        found |= inside - own
    return found


def check_strangers(target: Target, new: Collection[str]) -> None:
    """Raise `InputError` if a push would overwrite what another program has written."""
    if found := sorted(strangers(target, new)):
        raise InputError(
            f"{target.where!r} has a {shown(found[0])!r} that this package has not written, and would be "
            "overwritten; rename it there, or push to another repository"
        )

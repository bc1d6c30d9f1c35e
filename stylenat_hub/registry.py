"""What the zoo holds. A new family is one folder under `models/` and one entry in `FAMILIES`."""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Iterable

from stylenat_hub.errors import InputError, UnknownModelError
from stylenat_hub.models import hit, stylenat, styleswin
from stylenat_hub.models.base import Generator, ZooModel
from stylenat_hub.models.family import Checkpoint, Family

__all__ = [
    "CHECKPOINTS",
    "FAMILIES",
    "NAMESPACE",
    "SHAPES",
    "Checkpoint",
    "Family",
    "chosen_namespace",
    "create_model",
    "find_checkpoint",
    "find_class",
    "hub_id",
    "list_models",
    "nearest",
]

NAMESPACE = "stylenat-hub"  # the organisation on the Hub under which the zoo's own weights are looked for
NAMESPACE_VARIABLE = "STYLENAT_HUB_NAMESPACE"

FAMILIES: dict[str, Family] = {
    family.name: family for family in (stylenat.FAMILY, styleswin.FAMILY, hit.FAMILY)
}

CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint for family in FAMILIES.values() for checkpoint in family.checkpoints
}

# every shape that `create_model` builds: a checkpoint's, or `family-preset` -> (family, preset)
SHAPES: dict[str, tuple[Family, str]] = {
    f"{family.name}-{preset}": (family, preset)
    for family in FAMILIES.values()
    for preset in family.config.presets
} | {name: (FAMILIES[checkpoint.family], checkpoint.preset) for name, checkpoint in CHECKPOINTS.items()}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo's checkpoints that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(CHECKPOINTS, pattern))


def create_model(name: str, **overrides: object) -> Generator:
    """A new generator with random weights, in the shape of a checkpoint (`stylenat-ffhq-256`) or a family's
    preset (`stylenat-tiny`); keyword arguments replace single fields of its config.

    Raises:
        UnknownModelError: no such name; the nearest ones are offered.
        ConfigError: an override that is not allowed.
    """
    if name not in SHAPES:
        raise UnknownModelError(nearest(name, SHAPES))
    family, preset = SHAPES[name]
    return family.generator(family.config.preset(preset, **overrides))


def find_checkpoint(name: str) -> Checkpoint:
    """The record of a checkpoint. Raises `UnknownModelError`, which offers the nearest names."""
    if name not in CHECKPOINTS:
        raise UnknownModelError(nearest(name, CHECKPOINTS))
    return CHECKPOINTS[name]


def chosen_namespace(namespace: str | None = None) -> str | None:
    """The user or organisation on the Hub that the caller, or else `STYLENAT_HUB_NAMESPACE`, names; None if
    neither does.

    Raises `InputError` for a name that no account can have.
    """
    chosen = namespace if namespace is not None else os.environ.get(NAMESPACE_VARIABLE) or None
    possible = isinstance(chosen, str) and re.fullmatch(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", chosen)
    if chosen is not None and not possible:
        where = "namespace" if namespace is not None else NAMESPACE_VARIABLE
        raise InputError(
            f"{where} is {chosen!r}; allowed: the name of a user or an organisation on the Hub, without a "
            "slash"
        )
    return chosen


def hub_id(name: str, namespace: str | None = None) -> str:
    """The Hub id of a checkpoint: `namespace/name`, see `chosen_namespace`; by default the zoo's own.

    Raises `UnknownModelError`, `InputError`.
    """
    return f"{chosen_namespace(namespace) or NAMESPACE}/{find_checkpoint(name).name}"


def find_class(name: object) -> tuple[type[ZooModel], tuple[Family, ...]] | None:
    """The model class of this name and the families that have it (a discriminator may be of several), or
    None."""
    found = {
        cls: [family for family in FAMILIES.values() if cls in (family.generator, family.discriminator)]
        for family in FAMILIES.values()
        for cls in (family.generator, family.discriminator)
        if cls.__name__ == name
    }
    return next(((cls, tuple(families)) for cls, families in found.items()), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence about an unknown name, with the nearest known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"
    return f"there is no model {name!r}; {hint}"

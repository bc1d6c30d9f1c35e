"""The model that a Space starts with: is it one that the Space will be able to load?"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, hf_hub_download

from stylenat_hub.errors import InputError, UnknownModelError
from stylenat_hub.locations import RECORDS, builtin_models, without_weights
from stylenat_hub.registry import CHECKPOINTS, FAMILIES, SHAPES, chosen_namespace, hub_id, nearest
from stylenat_hub.remote import pulling, retried
from stylenat_hub.weights import weights_kind


@dataclass(frozen=True)
class Found:
    """A public model on the Hub. id: its Hub id. files: those that drawing with it needs."""

    id: str
    files: tuple[str, ...]


def find_model(name: str | None, token: str | bool | None = None) -> Found | None:
    """A zoo name or Hub id -> the model on the Hub; None for the built-in one.

    Raises `InputError`, `UnknownModelError`: what a Space could not load.
    """
    if name is None or name in builtin_models():
        return None
    where = _id(name)
    with pulling(where, None, False):
        info = retried(lambda: HfApi(token=token).model_info(where))
    if info.private or info.gated:
        kind = "private" if info.private else "gated"
        raise InputError(
            f"{where!r} is {kind}, so that a Space cannot load it; make it public, or name another"
        )
    return Found(where, _files(info, token))


def _id(name: str) -> str:
    if os.path.isdir(name):
        raise InputError(
            f"{name!r} is a folder of this machine, which a Space does not have; publish it by `stylenat "
            f"push {name} ORG/NAME` and name that"
        )
    if name in CHECKPOINTS:
        if not (CHECKPOINTS[name].published or chosen_namespace()):
            raise UnknownModelError(without_weights(name))
        return hub_id(name)
    if name.count("/") != 1:
        raise UnknownModelError(f"{nearest(name, SHAPES)}; on the Hub models have an id such as me/my-church")
    return name


def _files(info: ModelInfo, token: str | bool | None) -> tuple[str, ...]:
    """Config, weights, and what says how these came to be; not a discriminator or a checkpoint.

    Raises `InputError` if it is no generator of this package.
    """
    names = {file.rfilename for file in info.siblings or ()}
    folder = "generator/" if "model_index.json" in names else ""
    config = f"{folder}config.json"
    weights = [name for name in names if weights_kind(name) == (folder.rstrip("/"), None)]
    if config not in names or not weights or not _is_ours(info, config, token):
        raise InputError(
            f"{info.id!r} holds no generator of this package; name a model that it can draw with"
        )
    return tuple(sorted({config, *weights, *(names & {"model_index.json", *RECORDS})}))


def _is_ours(info: ModelInfo, config: str, token: str | bool | None) -> bool:
    with pulling(info.id, None, False):
        path = retried(lambda: hf_hub_download(info.id, config, revision=info.sha, token=token))
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    known = {family.generator.__name__ for family in FAMILIES.values()}
    return isinstance(values, dict) and values.get("_class_name") in known

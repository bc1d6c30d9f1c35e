"""What a checkpoint may say of itself.

It may come from somebody else's repository, where hashes that agree prove only that its parts belong
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from stylenat_hub.errors import ConfigError, WeightsError, listed, shown
from stylenat_hub.models.config import is_number, is_whole
from stylenat_hub.registry import FAMILIES

PARTS = ("generator", "average", "discriminator", "g_optimizer", "d_optimizer", "rng")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")

Tensors = Mapping[str, torch.Tensor]


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_data(value: Any) -> bool:
    return (
        _is_table(value)
        and _is_name(value.get("fingerprint"))
        and is_whole(value.get("pictures"), 0, 1 << 50)
    )


def _are_scalers(value: Any) -> bool:
    return _is_table(value) and all(_is_scaler(value.get(name)) for name in ("g", "d"))


def _is_scaler(value: Any) -> bool:
    """What is written is empty where the precision needs none."""
    whole = _is_table(value) and all(is_number(value.get(name), -1, 1e38) for name in _SCALER)
    return value == {} or whole


# field -> is it right?, what is allowed
Fields = Mapping[str, tuple[Callable[[Any], bool], str]]
_OF_ALL: Fields = {
    "recipe": (_is_table, "a recipe's fields"),
    "seconds": (lambda value: is_number(value, -1e-300, 1e12), "a number from 0"),
    "ada_strength": (lambda value: is_number(value, -1e-300, 1), "a number from 0 to 1"),
    "processes": (lambda value: is_whole(value, 1, 1 << 20), "a whole number from 1"),
    "scalers": (_are_scalers, "those of g and d, each empty or whole"),
    "data": (_is_data, "a fingerprint and a number of pictures"),
    "versions": (_is_table, "names and versions"),
}
_OF_GENERATORS: Fields = {
    "family": (_is_name, "the name of a family"),
    "generator": (_is_table, "a config"),
    "discriminator": (_is_table, "a config"),
    "started_from": (lambda value: value is None or _is_name(value), "a name, or null"),
}
_OF_AUTOENCODERS: Fields = {
    "autoencoder": (_is_table, "a config"),
    "adversarial": (lambda value: is_number(value, -1e-300, 1e9), "a number from 0"),
}


def check_files(where: str, state: Mapping[str, Any]) -> None:
    """Raise `WeightsError` unless the state lists just the files of a checkpoint, none of them elsewhere."""
    expected = {f"{part}.safetensors" for part in PARTS}
    if found := sorted(state["files"].keys() ^ expected):
        raise WeightsError(
            f"{where} lists other files than a checkpoint has ({listed(list(map(repr, found)))}); allowed: "
            f"{', '.join(sorted(expected))}; take another checkpoint"
        )
    _check(where, state, "images", lambda value: is_whole(value, 0, 1 << 50), "a whole number from 0")


def check_state(where: str, state: Mapping[str, Any], tensors: Mapping[str, Tensors]) -> None:
    """Is a checkpoint of a generator's training one to go on from: has its state all fields, do its tensors
    fit the networks that it asks for? They are not built for that: it may ask for more than the memory has.

    where: what to call it. Raises `WeightsError`, `ConfigError`: one sentence.
    """
    if "autoencoder" in state and "family" not in state:
        raise ConfigError(
            f"{where} is of VQ-HiT, not of a generator; go on with it by training.reconstruct --resume, or "
            "take its model from autoencoder/ in the run's folder"
        )
    _check_fields(where, state, {**_OF_GENERATORS, **_OF_ALL})
    if (family := FAMILIES.get(state["family"])) is None:
        raise ConfigError(
            f"{where} is of the family {shown(repr(state['family']))}, which is not in this version"
        )
    with torch.device("meta"):
        generator = family.generator.from_config(state["generator"])
        judge = family.discriminator.from_config(state["discriminator"])
    _check_tensors(where, tensors, generator, judge)


def check_autoencoder(
    where: str,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensors],
    build: Callable[[Mapping[str, Any]], tuple[nn.Module, nn.Module]],
) -> None:
    """The same of one of VQ-HiT's. build: from the autoencoder's config to it and its discriminator."""
    _check_fields(where, state, {**_OF_AUTOENCODERS, **_OF_ALL})
    with torch.device("meta"):
        model, judge = build(state["autoencoder"])
    _check_tensors(where, tensors, model, judge)


def _check_fields(where: str, state: Mapping[str, Any], fields: Fields) -> None:
    for field, (is_right, allowed) in fields.items():
        _check(where, state, field, is_right, allowed)


def _check(
    where: str, state: Mapping[str, Any], field: str, is_right: Callable[[Any], bool], allowed: str
) -> None:
    if field not in state:
        raise WeightsError(f"{where} has no {field!r}; allowed: {allowed}; take another checkpoint")
    if not is_right(state[field]):
        raise WeightsError(
            f"{where} has {field} = {shown(repr(state[field]))}; allowed: {allowed}; take another checkpoint"
        )


def _check_tensors(
    where: str, tensors: Mapping[str, Tensors], generator: nn.Module, judge: nn.Module
) -> None:
    for part, model in (("generator", generator), ("average", generator), ("discriminator", judge)):
        _check_shapes(where, part, tensors[part], {n: t.shape for n, t in model.state_dict().items()})
        missing = sorted(model.state_dict().keys() - tensors[part].keys())
        if missing:
            raise WeightsError(
                f"{where}: {part}.safetensors does not fit its config: {missing[0]!r} is missing"
            )
    for part, model in (("g_optimizer", generator), ("d_optimizer", judge)):
        shapes = {}
        for name, parameter in model.named_parameters():
            shapes |= {f"{moment}/{name}": parameter.shape for moment in _MOMENTS}
            shapes[f"step/{name}"] = torch.Size()
        _check_shapes(where, part, tensors[part], shapes)
        _check_moments(where, part, tensors[part])
    _check_generators(where, tensors["rng"])


def _check_shapes(where: str, part: str, tensors: Tensors, expected: Mapping[str, torch.Size]) -> None:
    for name, tensor in tensors.items():
        if name not in expected or tensor.shape != expected[name]:
            shape = list(expected.get(name, ()))
            what = f"has the shape {list(tensor.shape)}, not {shape}" if name in expected else "is unexpected"
            raise WeightsError(
                f"{where}: {part}.safetensors does not fit its config: {shown(repr(name))} {what}; take "
                "another checkpoint"
            )


def _check_moments(where: str, part: str, tensors: Tensors) -> None:
    """Adam has all of a parameter's, or none yet."""
    known = {name.partition("/")[2] for name in tensors}
    missing = sorted(
        f"{m}/{name}" for name in known for m in ("step", *_MOMENTS) if f"{m}/{name}" not in tensors
    )
    if missing:
        raise WeightsError(f"{where}: {part}.safetensors is not whole: {missing[0]!r} is missing")


def _check_generators(where: str, states: Tensors) -> None:
    for name, state in states.items():
        try:
            if name.startswith("cpu"):
                torch.Generator().set_state(state)
            whole = state.dtype == torch.uint8 and state.dim() == 1
        except (RuntimeError, TypeError):
            whole = False
        if not whole:
            raise WeightsError(
                f"{where}: rng.safetensors has no state of a generator in {shown(repr(name))}; take another "
                "checkpoint"
            )

"""Finding, strictly loading and saving models: zoo names, local folders and Hub repositories.

Two layouts are read: a model folder (`config.json` and weights, see `weights.py`), and a pipeline folder
(`model_index.json` and model folders in it, the generator's among them). Loading and saving themselves are
diffusers' (`ModelMixin`); what is added is that nothing is guessed: what does not fit raises and names the
file, the key or the tensor, pickles are never read, and saves are whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict

from stylenat_hub.errors import ConfigError, InputError, WeightsError
from stylenat_hub.locations import Location, builtin_models, locate, without_weights
from stylenat_hub.registry import FAMILIES, find_class
from stylenat_hub.weights import (
    check_finite,
    check_headers,
    check_saving,
    read_headers,
    read_json,
    saving,
    shown,
    weight_files,
)

__all__ = [
    "builtin_models",
    "generator_class",
    "load_generator",
    "load_model",
    "locate",
    "save",
    "without_weights",
]

_LOCATE_ARGUMENTS = frozenset(
    ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download", "namespace")
)
# What diffusers' loaders pass on or document; anything else is a typing mistake, which diffusers ignores.
_DIFFUSERS_ARGUMENTS = frozenset(
    (
        *("device_map", "disable_mmap", "ignore_mismatched_sizes", "low_cpu_mem_usage", "max_memory"),
        *("offload_folder", "offload_state_dict", "output_loading_info", "parallel_config", "provider"),
        *("provider_options", "proxies", "quantization_config", "sess_options", "torch_dtype"),
        *("use_flashpack", "use_safetensors", "user_agent"),
    )
)


def load_model(
    cls: type,
    source: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    namespace: str | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model of the class `cls`, in eval mode, with every tensor as it was saved, cast to `dtype`.

    source: a zoo name (`stylenat-ffhq-256`), a local folder or a Hub id (`org/name`), each either a model
    folder or a pipeline folder; an existing local folder wins. subfolder: the model's folder inside `source`;
    by default `generator` in a pipeline. variant: read `diffusion_pytorch_model.<variant>.safetensors`.
    dtype: of the loaded model; default float32, also where bfloat16 is stored (as in diffusers).
    revision, token, cache_dir, local_files_only, force_download: as in huggingface_hub; every file of the
    download cache is verified before it is used. namespace: the user or organisation on the Hub whose copy
    of a zoo name is meant; default: `STYLENAT_HUB_NAMESPACE`, or else the zoo's own. kwargs: diffusers'
    other loading arguments (`device_map`, `low_cpu_mem_usage`, ...).

    Raises:
        UnknownModelError: no such zoo name, folder or reachable repository. ConfigError: a JSON file is
            damaged, of another class, or has a key or value that is not allowed. WeightsError: a file is
            missing, damaged or not safetensors, or a tensor is missing, unexpected, misshapen or not finite.
            InputError: a bad argument.
    """
    location = locate(
        source,
        component=cls.component,
        subfolder=subfolder,
        variant=variant,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        namespace=namespace,
    )
    return _load(cls, location, variant, dtype, kwargs)


def load_generator(source: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a generator of whichever family its `config.json` names; see `load_model`."""
    location_arguments = {name: kwargs.pop(name) for name in _LOCATE_ARGUMENTS & set(kwargs)}
    variant, dtype = kwargs.pop("variant", None), kwargs.pop("dtype", None)
    location = locate(source, variant=variant, **location_arguments)
    return _load(generator_class(location.folder), location, variant, dtype, kwargs)


def generator_class(folder: Path) -> type:
    """The class of the generator saved in a model folder. Raises `ConfigError` if no family has it."""
    name = str(read_json(folder / "config.json").get("_class_name"))
    found = find_class(name)
    if found is None or found[0].component != "generator":
        known = ", ".join(sorted(family.generator.__name__ for family in FAMILIES.values()))
        raise ConfigError(
            f"{str(folder / 'config.json')!r} is of the class {name!r}; the generators of this version are "
            f"{known}"
        )
    return found[0]


def _load(
    cls: type, location: Location, variant: str | None, dtype: torch.dtype | None, kwargs: dict[str, Any]
) -> Any:
    """Check config, names, shapes and types first; then let diffusers load, and check what it returns."""
    dtype = dtype if dtype is not None else kwargs.pop("torch_dtype", None)
    _check_arguments(dtype, kwargs)
    config, where = read_json(location.folder / "config.json"), repr(location.name)
    if config.get("_class_name", cls.__name__) != cls.__name__:
        raise ConfigError(
            f"{where} is a {shown(str(config['_class_name']))}, not a {cls.__name__}; load it with that class"
        )
    files = weight_files(location.folder, variant, location.listing)
    with torch.device("meta"):
        # Before diffusers does it: an error inside its own construction leaves torch's default dtype changed.
        blank = cls.from_config(config)
    check_headers(blank, read_headers(files), where)
    with_info = kwargs.pop("output_loading_info", False)
    kwargs |= {"use_safetensors": True, "output_loading_info": True, "local_files_only": True}
    load = ModelMixin.from_pretrained.__func__  # cls overrides it with the method that calls us
    model, info = load(cls, location.folder, variant=variant, torch_dtype=dtype, **kwargs)
    blanks = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    lost = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"], *info["error_msgs"]]
    if lost or (blanks and not kwargs.get("device_map")):  # an offloading device_map leaves blanks on purpose
        names = ", ".join(shown(str(name)) for name in lost or blanks)
        raise WeightsError(f"diffusers could not load all of {where}: {names}")
    _take_into_memory(model)
    check_finite(model, where)
    # Otherwise a later save would publish this machine's folder names in config.json.
    model._internal_dict = FrozenDict({k: v for k, v in model.config.items() if k != "_name_or_path"})
    return (model, info) if with_info else model


def _take_into_memory(model: torch.nn.Module) -> None:
    """Give every tensor on the CPU memory of its own, aligned as torch allocates it.

    Loading maps the file: its tensors lie wherever the file has them, for which matrix libraries may choose
    other kernels and round differently, and they would change with the file, for example when it is saved
    over.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _check_arguments(dtype: Any, kwargs: dict[str, Any]) -> None:
    unknown = sorted(set(kwargs) - _DIFFUSERS_ARGUMENTS)
    if unknown:
        raise InputError(f"from_pretrained does not know the argument(s) {', '.join(map(repr, unknown))}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(
            f"dtype is {dtype!r}; allowed: a floating-point type such as torch.bfloat16, or None"
        )
    if kwargs.get("use_safetensors", True) is False or kwargs.get("use_flashpack"):
        raise InputError(
            "weights are read from safetensors only; leave out use_safetensors and use_flashpack"
        )
    if kwargs.get("ignore_mismatched_sizes"):
        raise InputError("ignore_mismatched_sizes would leave random weights in the model; leave it out")


def save(
    write: Callable[..., Any],
    folder: str | os.PathLike[str],
    *,
    safe_serialization: bool = True,
    push_to_hub: bool = False,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    **kwargs: Any,
) -> None:
    """Run diffusers' own `save_pretrained` (`write`, a bound method) so that it is whole, see
    `weights.saving`.

    diffusers writes the files one after the other in place, and for a path that is a file it only logs.
    kwargs: with `push_to_hub`, the arguments of diffusers' method of that name. Raises `InputError`.
    """
    check_saving(safe_serialization)
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with saving(folder) as temporary:
        write(temporary, variant=variant, **sharding, **({} if push_to_hub else kwargs))
    if push_to_hub:
        repository = kwargs.pop("repo_id", None) or Path(os.path.abspath(folder)).name
        write.__self__.push_to_hub(repository, variant=variant, max_shard_size=max_shard_size, **kwargs)

"""Finding, strictly loading and saving models: zoo names, local folders and Hub repositories.

Two layouts are read: a model folder (`config.json` and weights, see `weights.py`), and a pipeline folder
(`model_index.json` and model folders in it, the generator's among them). Loading and saving themselves are
diffusers' (`ModelMixin`); what is added is that nothing is guessed: what does not fit raises and names the
file, the key or the tensor, pickles are never read, and saves are whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import errors as hub_errors
from huggingface_hub import list_repo_files, snapshot_download

from stylenat_hub.errors import ConfigError, InputError, UnknownModelError, WeightsError
from stylenat_hub.registry import CHECKPOINTS, FAMILIES, find_checkpoint, nearest
from stylenat_hub.weights import (
    check_finite,
    check_headers,
    check_saving,
    file_names,
    read_headers,
    read_json,
    saving,
    weight_files,
)

BUILTIN = Path(__file__).parent / "builtin"
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_LOCATE_ARGUMENTS = frozenset(
    ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")
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


@dataclass(frozen=True)
class Location:
    """A model folder on this machine.

    name: as the user gave it. folder: has `config.json`. listing: names all files of the source, which for a
    Hub repository are more than those downloaded; None if the folder is all there is.
    """

    name: str
    folder: Path
    listing: Callable[[], list[str]] | None = None


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
    **kwargs: Any,
) -> Any:
    """Load a model of the class `cls`, in eval mode, with every tensor as it was saved, cast to `dtype`.

    source: a zoo name (`stylenat-ffhq-256`), a local folder or a Hub id (`org/name`), each either a model
    folder or a pipeline folder; an existing local folder wins. subfolder: the model's folder inside `source`;
    by default `generator` in a pipeline. variant: read `diffusion_pytorch_model.<variant>.safetensors`.
    dtype: of the loaded model; default float32, also where bfloat16 is stored (as in diffusers). kwargs:
    diffusers' other loading arguments (`device_map`, `low_cpu_mem_usage`, ...).

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
    classes = {family.generator.__name__: family.generator for family in FAMILIES.values()}
    if name not in classes:
        raise ConfigError(
            f"{str(folder / 'config.json')!r} is of the class {name!r}; the generators of this version are "
            f"{', '.join(sorted(classes))}"
        )
    return classes[name]


def _load(
    cls: type, location: Location, variant: str | None, dtype: torch.dtype | None, kwargs: dict[str, Any]
) -> Any:
    """Check config, names, shapes and types first; then let diffusers load, and check what it returns."""
    dtype = dtype if dtype is not None else kwargs.pop("torch_dtype", None)
    _check_arguments(dtype, kwargs)
    config, where = read_json(location.folder / "config.json"), repr(location.name)
    if config.get("_class_name", cls.__name__) != cls.__name__:
        raise ConfigError(
            f"{where} is a {config['_class_name']}, not a {cls.__name__}; load it with that class"
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
        raise WeightsError(f"diffusers could not load all of {where}: {', '.join(map(str, lost or blanks))}")
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


def locate(
    source: str | os.PathLike[str],
    *,
    component: str = "generator",
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Location:
    """Where `source` lies on this machine, downloaded if it is a Hub id. See `load_model`.

    component: the folder that is meant where `source` is a pipeline and no subfolder is given.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InputError(f"the model is {source!r}; give a zoo name, a folder or a Hub id (org/name)")
    name = os.fspath(source)
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UnknownModelError(f"there is no folder {name!r}: no user of that name") from None
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name longer than names may be
        raise UnknownModelError(f"there is no folder {name[:60]!r}...: {error.strerror}") from None
    if is_folder:
        return Location(name, _model_folder(path, subfolder, component))
    if exists:
        raise InputError(
            f"{name!r} is a file; give the folder that it is in, or convert an original checkpoint with "
            f"`python -m conversion.convert {name} --output FOLDER` and give that folder"
        )
    if name in builtin_models():
        return Location(name, _model_folder(BUILTIN / name, subfolder, component))
    if name in CHECKPOINTS:
        raise UnknownModelError(without_weights(name))
    if not _HUB_ID.fullmatch(name):
        raise UnknownModelError(_nowhere(name))
    with _hub_sentences(name, revision, local_files_only):
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=_wanted(subfolder or component, bool(subfolder), variant),
        )
    return Location(name, _model_folder(Path(folder), subfolder, component), _lister(name, revision, token))


def _wanted(folder: str, only: bool, variant: str | None) -> list[str]:
    """The files of a Hub repository that one load needs: those in `folder`, and unless `only` the root's."""
    folders = [f"{folder}/"] if only else ["", f"{folder}/"]
    return [
        "model_index.json",
        *(f"{at}{name}" for at in folders for name in ("config.json", *file_names(variant))),
    ]


def _model_folder(root: Path, subfolder: str | None, component: str) -> Path:
    if subfolder:
        folder = root / subfolder
    elif (root / "model_index.json").is_file():
        folder = root / component
        if component == "generator" and component not in (index := read_json(root / "model_index.json")):
            raise ConfigError(
                f"{str(root)!r} is a {index.get('_class_name')}, a pipeline without a generator of ours"
            )
        if not folder.is_dir():
            raise WeightsError(
                f"the pipeline {str(root)!r} has no {component}; it was saved or converted without"
            )
    else:
        folder = root
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{str(folder)!r} is no model folder: it has no config.json; give a folder that save_pretrained "
            "or python -m conversion.convert wrote"
        )
    return folder


def builtin_models() -> list[str]:
    """Names of the trained pipelines that ship inside this package, sorted; possibly none."""
    return sorted(path.parent.name for path in BUILTIN.glob("*/model_index.json"))


def without_weights(name: str) -> str:
    """One sentence for a zoo name that is no folder here: how to get its weights, or that there are none."""
    if find_checkpoint(name).origin_url is None:
        return (
            f"the weights of {name!r} were never published; stylenat_hub.create_model({name!r}) builds the "
            "untrained network"
        )
    return (
        f"the weights of {name!r} are not on this machine; convert the authors' file, in a clone of this "
        f"project, with `python -m conversion.convert --from {name} --output {name}`, and give that folder"
    )


def _nowhere(name: str) -> str:
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        return (
            f"there is no folder {name!r}; give an existing one, a zoo name (see `stylenat list`) or a Hub id"
        )
    return f"there is no folder {name!r} here, and {nearest(name, CHECKPOINTS)}"


def _lister(name: str, revision: str | None, token: str | bool | None) -> Callable[[], list[str]]:
    def listing() -> list[str]:
        with _hub_sentences(name, revision, offline=False):
            return list_repo_files(name, revision=revision, token=token)

    return listing


@contextlib.contextmanager
def _hub_sentences(name: str, revision: str | None, offline: bool) -> Iterator[None]:
    """One sentence for each way in which the Hub can fail; its own errors span several lines."""
    no_folder = f"there is no folder {name!r} here"
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise UnknownModelError(
            f"{name!r} is gated on the Hub: accept its terms on its page, then log in with `hf auth login` "
            f"or pass token="
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UnknownModelError(
            f"the Hub repository {name!r} has no revision {revision or 'main'!r}; name a branch, a tag or a "
            f"commit of it"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(
            f"{no_folder}, and the Hub has no repository of that name, or it is private: check the "
            "spelling, or log in with `hf auth login`"
        ) from error
    except hub_errors.HFValidationError as error:
        raise UnknownModelError(f"{no_folder}, and it cannot be a Hub id: {error}") from error
    except hub_errors.LocalEntryNotFoundError as error:
        if offline or isinstance(error.__cause__, hub_errors.OfflineModeIsEnabled):
            raise UnknownModelError(
                f"{no_folder}, nor is it whole in the download cache, and the Hub is switched off "
                "(local_files_only or HF_HUB_OFFLINE): download it once while online"
            ) from error
        raise UnknownModelError(_unreachable(name, error.__cause__ or error)) from error
    except (hub_errors.HTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk is full: {name!r} cannot be downloaded; free some space or set cache_dir"
            ) from error
        raise UnknownModelError(_unreachable(name, error)) from error


def _unreachable(name: str, error: BaseException) -> str:
    response = getattr(error, "response", None)
    reason = f"HTTP {response.status_code}" if response is not None else type(error).__name__
    return (
        f"there is no folder {name!r} here, and the Hub cannot be asked for it ({reason}); check the "
        "network and try again, or give a folder"
    )


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
        write.__self__.push_to_hub(repository, variant=variant, **kwargs)

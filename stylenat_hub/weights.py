"""The files of a saved model: which there are, what is in them, and writing them whole.

A model folder holds `config.json` and `diffusion_pytorch_model[.VARIANT].safetensors`, or shards and an
index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from stylenat_hub.errors import ConfigError, InputError, WeightsError, listed, shown
from stylenat_hub.files import explained, replace_all, set_modes, staging, user_path, whole_folder
from stylenat_hub.signals import Interrupted, held

PARTS = ("generator", "discriminator")  # of a pipeline folder
_STEM = "diffusion_pytorch_model"
_WEIGHTS = re.compile(rf"{_STEM}(?:\.(?P<variant>[^/\\]+?))?(?P<shard>-\d{{5}}-of-\d{{5}})?\.safetensors")
_FLOATS = ("F64", "F32", "F16", "BF16")

Header = tuple[tuple[int, ...], str]


def file_names(variant: str | None) -> tuple[str, str, str]:
    """(single file, index of shards, pattern of shards) of a variant, as diffusers names them."""
    middle = f".{variant}" if variant else ""
    index = f"{_STEM}.safetensors.index{middle}.json"
    return f"{_STEM}{middle}.safetensors", index, f"{_STEM}{middle}-*-of-*.safetensors"


def pipeline_files(record: str) -> tuple[str, ...]:
    """The files of a pipeline folder that was made from something else. record: the one that says from what;
    it is first, because it is in every such folder."""
    return (
        record,
        "model_index.json",
        *(f"{part}/{name}" for part in PARTS for name in ("config.json", file_names(None)[0])),
    )


def fingerprint(path: Path) -> dict[str, Any]:
    """Size (`bytes`) and SHA-256 (`sha256`, hexadecimal) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ConfigError`, which names the file, if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}, which a saved model has; save it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read as JSON ({error}); it is damaged: save or download it again"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{str(path)!r} holds a {type(values).__name__}, not a JSON object; save it again")
    return values


def weight_files(
    folder: Path, variant: str | None = None, listing: Iterable[str] | None = None
) -> list[Path]:
    """The safetensors files of a model, one or several shards.

    listing: names of all files that the folder has at its source, where that is more (a Hub repository).

    Raises:
        WeightsError: there are none; it names the variants, or the pickles, that are there.
        ConfigError: a bad index.
    """
    single, index, _ = file_names(variant)
    if (folder / index).is_file():
        content = read_json(folder / index)
        shards = content.get("weight_map")
        if not isinstance(content.get("metadata"), dict):  # diffusers reads it unasked
            raise ConfigError(f"{str(folder / index)!r} has no 'metadata'; save the model again")
        if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
            raise ConfigError(
                f"{str(folder / index)!r} has no 'weight_map' of file names; save the model again"
            )
        return [_shard(folder, name) for name in sorted(set(shards.values()))]
    if (folder / single).is_file():
        return [folder / single]
    names = sorted(os.listdir(folder)) if listing is None else list(listing)
    raise WeightsError(_no_weights(folder, single, variant, names))


def _shard(folder: Path, name: str) -> Path:
    # The index is data from elsewhere: it may name neither a pickle nor a file outside of the folder.
    if not _WEIGHTS.fullmatch(name):
        raise WeightsError(
            f"the index in {str(folder)!r} names {shown(repr(name))}, which is not a safetensors shard; save "
            "again"
        )
    if not (folder / name).is_file():
        raise WeightsError(f"the shard {str(folder / name)!r} is missing; download or save the model again")
    return folder / name


def _no_weights(folder: Path, single: str, variant: str | None, names: list[str]) -> str:
    found = [match["variant"] for name in names if (match := _WEIGHTS.fullmatch(Path(name).name))]
    variants = sorted({f"variant={name!r}" if name else "the one without a variant" for name in found})
    pickles = sorted(Path(name).name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if variants:
        asked = f"no variant {variant!r}" if variant else "no weights without a variant"
        return f"{str(folder)!r} has {asked}; it has: {listed(variants)}"
    if pickles:
        return (
            f"{str(folder)!r} has no {single}, only {listed(pickles)}; pickles can run code "
            "and are never read: load them where they were made and save with safe_serialization=True, or "
            "use python -m conversion.convert"
        )
    return f"{str(folder)!r} has no weights ({single}); download or save the model again"


def read_headers(files: list[Path]) -> dict[str, Header]:
    """Tensor name -> (shape, safetensors' name of the type), tensors unread. Raises `WeightsError`."""
    headers: dict[str, Header] = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  the file is no mapping, it only has this method
                part = file.get_slice(name)
                headers[name] = (tuple(part.get_shape()), part.get_dtype())
    return headers


def read_tensor(files: list[Path], name: str) -> torch.Tensor | None:
    """One tensor by name from a model's files, or None if they do not have it. Raises `WeightsError`."""
    for path in files:
        with _opened(path) as file:
            if name in file.keys():  # noqa: SIM118  the file is no mapping, it only has this method
                return file.get_tensor(name)
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return (
                f"{str(path)!r} is a git-lfs pointer, not the weights; run `git lfs pull` in that repository"
            )
    return f"{str(path)!r} is cut off or damaged ({error}); download or save it again"


def check_headers(model: torch.nn.Module, headers: Mapping[str, Header], where: str) -> None:
    """Do these tensors fit the model, one for one?

    Raises:
        WeightsError: a tensor is missing, unexpected, misshapen or no floating-point number; it names them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unexpected = sorted(set(expected) - set(headers)), sorted(set(headers) - set(expected))
    if missing or unexpected:
        told = [
            f"{_tensors(names)} {problem}"
            for names, problem in ((missing, "is missing"), (unexpected, "is unexpected"))
            if names
        ]
        raise WeightsError(
            f"{' and '.join(told)} in {where}; its weights and its config.json do not belong together, or "
            "the save was not whole"
        )
    for name, (shape, kind) in headers.items():
        if shape != expected[name]:
            raise WeightsError(
                f"the tensor {name!r} in {where} has the shape {list(shape)}; config.json asks for "
                f"{list(expected[name])}: the two do not belong together"
            )
        if kind not in _FLOATS:
            raise WeightsError(
                f"the tensor {name!r} in {where} has the type {kind}; allowed: {', '.join(_FLOATS)}"
            )


def _tensors(names: list[str]) -> str:
    some = ", ".join([*map(shown, names[1:4]), *(["..."] if len(names) > 4 else [])])
    more = f" (and {len(names) - 1} more: {some})" if len(names) > 1 else ""
    return f"the tensor {shown(repr(names[0]))}{more}"


def check_finite(model: torch.nn.Module, where: str) -> None:
    """Raise `WeightsError` for NaN or infinity; only `w_avg` may be NaN, all of it: "not known"."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta or torch.isfinite(tensor).all():
            continue
        if name == "w_avg" and tensor.isnan().all():
            continue
        raise WeightsError(
            f"the tensor {name!r} of {where} holds NaN or infinite values in {tensor.dtype}; training had "
            "diverged, the file is damaged, or dtype= names a type with too small a range"
        )


def check_same_weights(model: torch.nn.Module, reloaded: torch.nn.Module) -> None:
    """Raise `WeightsError` if what was written came back as something else."""
    before, after = model.state_dict(), reloaded.state_dict()
    if before.keys() != after.keys() or not all(_same(before[name], after[name]) for name in before):
        raise WeightsError("what was written reloads to other weights, so it was dropped; please report this")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit; a mean style that is not known is NaN on both sides."""
    one, other = one.detach().cpu(), other.detach().cpu()
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextlib.contextmanager
def saving(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder to save into; on success its files move into `folder`, on an error none do.

    A new folder appears whole, by one rename. Into an existing one the files move one by one, each whole,
    weights before configs; what they replace is kept until the last has moved, and put back if one cannot.
    Earlier weights of the same variant go (an index and its shards would be read before a single file); other
    files there stay (another variant, a model card).

    Raises:
        InputError: it cannot be written. Interrupted: Ctrl-C came too late to stop it: all is saved.
    """
    target = Path(os.path.realpath(user_path(folder)))
    with explained(target):
        fresh = not target.is_dir() or not any(target.iterdir())
    if fresh:
        with whole_folder(target) as temporary, system_errors():
            yield temporary
        return
    saved = False
    try:
        with staging(target) as temporary:
            with system_errors():
                yield temporary
            set_modes(temporary)
            with held():
                _move_all(temporary, target)
                saved = True
    except KeyboardInterrupt:
        if saved:
            raise Interrupted(f"{target} is written, and whole") from None
        raise


def _move_all(temporary: Path, target: Path) -> None:
    files = sorted(temporary.rglob("*"), key=lambda path: (path.suffix == ".json", path))
    moves = [(path, target / path.relative_to(temporary)) for path in files if path.is_file()]
    finals = {final for _, final in moves}
    variants = {
        (final.parent, match["variant"]) for final in finals if (match := _WEIGHTS.fullmatch(final.name))
    }
    dropped = {old for folder, variant in variants for old in _saved_weights(folder, variant)}
    replace_all(moves, sorted(dropped - finals), target)


def _saved_weights(folder: Path, variant: str | None) -> list[Path]:
    """The weights of one variant that a folder has: a single file, shards, an index."""
    index = file_names(variant)[1]
    return [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name == index or ((m := _WEIGHTS.fullmatch(path.name)) and m["variant"] == variant)
    ]


def stored_variants(folder: Path) -> list[str | None]:
    """The variants that a model folder holds; None is the weights without one, and first."""
    kinds = [kind for path in folder.iterdir() if (kind := weights_kind(path.name))]
    return sorted({variant for _, variant in kinds}, key=lambda variant: variant or "")


def superseded(existing: Iterable[str], new: Collection[str]) -> set[str]:
    """Of the files of a repository those weights that would lie beside new ones of the same folder and
    variant: other shards, an index where a single file comes."""
    kinds = {kind for name in new if (kind := weights_kind(name))}
    return {name for name in existing if name not in new and weights_kind(name) in kinds}


def adds_variants(existing: Iterable[str], new: Iterable[str]) -> bool:
    """Are all new weights variants of some that are there?"""
    there, kinds = ({kind for name in names if (kind := weights_kind(name))} for names in (existing, new))
    return bool(kinds) and all(variant and (folder, None) in there for folder, variant in kinds)


def weights_kind(name: str) -> tuple[str, str | None] | None:
    """(folder, variant) of a file of weights or an index of shards, None of any other file."""
    folder, _, file = name.rpartition("/")
    if match := _WEIGHTS.fullmatch(file):
        return folder, match["variant"]
    if match := re.fullmatch(rf"{_STEM}\.safetensors\.index(?:\.(?P<variant>[^/]+))?\.json", file):
        return folder, match["variant"]
    return None


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise the operating system's errors that safetensors hides in its own as `OSError`, so that who writes
    files can explain them."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def check_saving(safe_serialization: bool) -> None:
    """Raise `InputError` where pickles are asked for."""
    if not safe_serialization:
        raise InputError(
            "safe_serialization=False would write a pickle; this package writes safetensors only"
        )

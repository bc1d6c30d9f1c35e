"""Checkpoints of a training run: everything that it needs to go on, whole or not at all.

    OUTPUT/checkpoints/images-000012800/
        generator, average, discriminator .safetensors        weights and buffers
        g_optimizer, d_optimizer .safetensors                 Adam's moments, named `moment/parameter`
        rng.safetensors                                       torch's generators of every process
        state.json                                            the rest, and size and SHA-256 of these files

A checkpoint is written beside its final name, flushed to the disk, and renamed; so whatever has the name is
whole unless the disk damaged it, which the hashes tell.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from stylenat_hub.errors import InputError, WeightsError, shown
from stylenat_hub.files import explained, set_modes, user_path
from stylenat_hub.weights import fingerprint, system_errors
from training.states import check_files, check_state

FOLDER = "checkpoints"
STATE = "state.json"
VERSION = 1
_NAME = re.compile(r"images-(\d{9,})")
_UNFINISHED = ".unfinished-"
_SUPERSEDED = "superseded-"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. state: plain data. tensors: file name without suffix -> its tensors."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, Tensors]


def checkpoint_name(images: int) -> str:
    return f"images-{images:09d}"


def list_checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest first. Unfinished ones have other names."""
    folder = output / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def save_checkpoint(output: Path, images: int, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> Path:
    """Write a checkpoint, whole or not at all; one of the same name is replaced. Returns its folder.

    Raises `InputError` for the system's refusals: no space, no permission.
    """
    folder = output / FOLDER
    final, temporary = folder / checkpoint_name(images), folder / f"{_UNFINISHED}{checkpoint_name(images)}"
    with explained(final), system_errors():
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(output)
        temporary.mkdir()
        try:
            files = {}
            for name, group in tensors.items():
                path = temporary / f"{name}.safetensors"
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
                files[path.name] = fingerprint(path)
            state = {"version": VERSION, "images": images, **state, "files": files}
            state["sha256"] = _state_hash(state)
            (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            set_modes(temporary)
            for path in (*temporary.iterdir(), temporary):
                _flush(path)
            _remove(final)
            os.rename(temporary, final)
            _flush(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def remove_unfinished(output: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    folder = output / FOLDER
    for path in folder.glob(f"{_UNFINISHED}*") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def set_aside_newer(output: Path, images: int) -> list[Path]:
    """Rename the checkpoints after `images`, from which a run does not go on, so that they are neither taken
    for its newest nor counted as its own. Returns their new names."""
    moved = []
    for path in list_checkpoints(output):
        if int(_NAME.fullmatch(path.name)[1]) > images:
            target = path.with_name(f"{_SUPERSEDED}{path.name}")
            for number in itertools.count(2):
                if not target.exists():
                    break
                target = path.with_name(f"{_SUPERSEDED}{number}-{path.name}")
            os.rename(path, target)
            moved.append(target)
    return moved


def remove_old(output: Path, limit: int | None) -> None:
    """Keep the newest `limit` checkpoints; None keeps all."""
    for path in list_checkpoints(output)[:-limit] if limit else ():
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint if it is there: first its name, so that a kill halfway leaves none with missing
    files."""
    if path.exists():
        doomed = path.with_name(f"{_UNFINISHED}old-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify it. Raises `WeightsError`, which names what is missing or damaged."""
    state = _read_state(path)
    tensors = {}
    for name, expected in state["files"].items():
        file = path / name
        if not file.is_file():
            raise WeightsError(f"the checkpoint {str(path)!r} has no {name!r}")
        if fingerprint(file) != expected:
            raise WeightsError(f"the checkpoint {str(path)!r} is damaged: {name!r} is not what was written")
        try:
            tensors[name.removesuffix(".safetensors")] = load_file(file)
        except SafetensorError as error:
            raise WeightsError(f"the checkpoint {str(path)!r} is damaged: {name!r} ({error})") from error
    return Checkpoint(path, state, tensors)


def newest_checkpoint(output: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole, or None if there is none at all. Damaged ones are named
    on standard error.

    Raises `WeightsError` if there are checkpoints and all are damaged.
    """
    paths = list_checkpoints(output)
    problems = []
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except WeightsError as error:
            problems.append(str(error))
            print(f"warning: {error}; trying the one before it", file=sys.stderr, flush=True)
    if problems:
        raise WeightsError(f"all {len(paths)} checkpoints in {str(output)!r} are damaged; {problems[0]}")
    return None


def check_output(output: Path, resumed: Path | None) -> None:
    """Raise `InputError` if the folder holds a run that this one would mix with. resumed: the checkpoint from
    which it goes on."""
    own = [path.resolve() for path in list_checkpoints(output)]
    if own and (resumed is None or resumed.resolve() not in own):
        other = "" if resumed is None else " (another one)"
        raise InputError(
            f"{str(output)!r} already holds a run{other}; go on with it by --resume latest, or name another "
            "--output"
        )


def find_checkpoint(source: Path, what: str = "latest") -> Checkpoint:
    """The checkpoint that the user means. what: "latest" in the run's folder `source`, or a path.

    Raises `InputError` if there is none, `WeightsError` or `ConfigError` if it is damaged or does not fit
    together.
    """
    path = source if what == "latest" else user_path(what)
    if (path / STATE).is_file():
        return _checked(load_checkpoint(path))
    found = newest_checkpoint(path) if path.is_dir() else None
    if found is None:
        why = "it does not exist" if not path.exists() else f"it has no {FOLDER}/images-* with a {STATE}"
        raise InputError(
            f"there is no checkpoint to go on from in {str(path)!r}: {why}; name the --output folder of a "
            "run, or one of its checkpoints"
        )
    return _checked(found)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    check_state(said_by(checkpoint.path), checkpoint.state, checkpoint.tensors)
    return checkpoint


def said_by(path: Path) -> str:
    """How errors name a checkpoint's state."""
    return f"the {STATE} of the checkpoint {str(path)!r}"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"the checkpoint {str(path)!r} has no readable {STATE}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the checkpoint {str(path)!r} is damaged: {STATE} is not JSON") from error
    if not isinstance(state, dict) or not isinstance(state.get("files"), dict):
        raise WeightsError(f"the checkpoint {str(path)!r} is damaged: {STATE} lists no files")
    if state.get("version") != VERSION:
        raise WeightsError(
            f"the checkpoint {str(path)!r} has the format {shown(repr(state.get('version')))}; this version "
            f"reads {VERSION}"
        )
    written = state.get("sha256") == _state_hash(state)
    if written:
        check_files(said_by(path), state)
    # On the Hub a checkpoint has another name.
    if not written or (_NAME.fullmatch(path.name) and path.name != checkpoint_name(state["images"])):
        raise WeightsError(f"the checkpoint {str(path)!r} is damaged: {STATE} is not what was written there")
    return state


def _state_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 of all of a checkpoint's plain data but this hash."""
    plain = json.dumps({key: value for key, value in state.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensors:
    """An optimizer's state under `moment/parameter`, without its learning rates, which follow the recipe."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{moment}/{names[parameter]}": value
        for parameter, moments in optimizer.state.items()
        for moment, value in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Tensors) -> None:
    """Put `optimizer_tensors` back. Raises `WeightsError` for a parameter that the model does not have."""
    places = {name: place for place, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        moment, _, name = key.partition("/")
        if name not in places:
            raise WeightsError(f"the checkpoint's optimizer knows {name!r}, which the model does not have")
        state.setdefault(places[name], {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_model(model: nn.Module, tensors: Tensors, name: str) -> None:
    """Copy every tensor into the model; raises `WeightsError` unless names and shapes are the model's."""
    own = model.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys()) or [
        key for key in own if own[key].shape != tensors[key].shape
    ]
    if wrong:
        raise WeightsError(
            f"the checkpoint's {name} does not fit the model: {wrong[0]!r} ({len(wrong)} tensors)"
        )
    model.load_state_dict(tensors)


def required_bytes(models: Mapping[str, nn.Module]) -> int:
    """About how large a checkpoint gets: every network's weights, and two moments of those that learn."""
    size = {
        name: sum(t.numel() * t.element_size() for t in model.state_dict().values())
        for name, model in models.items()
    }
    return sum(size.values()) + 2 * (size["generator"] + size["discriminator"]) + (1 << 20)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

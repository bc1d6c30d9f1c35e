"""What of a user's folder is pushed: copied or linked into a folder of its own, where it is checked.

The folder may come from elsewhere, such as a clone of somebody's repository: nothing in it decides that a
file from outside of it is published.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from stylenat_hub.errors import InputError, WeightsError
from stylenat_hub.files import link
from stylenat_hub.locations import RECORDS
from stylenat_hub.weights import (
    PARTS,
    fingerprint,
    read_json,
    shown,
    stored_variants,
    weight_files,
    weights_kind,
)

# What of a folder is pushed beside its models and its checkpoint; anything else that lies in it is not.
FILES = ("model_index.json", *RECORDS, "README.md", "LICENSE", "samples.png", "pictures.png")
STATE = "state.json"  # of a training's checkpoint: names the others, with size and SHA-256
CONFIGS = ("config.json", "model_index.json")
_TENSORS = re.compile(r"\w[\w.-]*\.safetensors")
_BLOB = re.compile(r"[0-9a-f]{40,64}")
_NEEDED_KEYS = ("_class_name", "_diffusers_version")


def stage(source: Path, staged: Path) -> None:
    """Link or copy what belongs to a model. Raises `InputError` if it is no such folder."""
    if not any((source / part).is_file() for part in CONFIGS):
        raise InputError(
            f"{str(source)!r} holds no model (neither model_index.json nor config.json); name a folder that "
            "save_pretrained, conversion.convert or training.export wrote"
        )
    _stage_model(source, staged, source)
    for part in PARTS:
        if (source / part).is_dir():
            _stage_model(source / part, staged / part, source)
    for name in FILES:
        if (source / name).is_file():
            _take(source / name, staged / name, source)


def _stage_model(source: Path, staged: Path, root: Path) -> None:
    """Its config and weights; whatever else lies there may be anything, such as a token.

    Raises `WeightsError` if it has none, which names what it has instead.
    """
    if (source / "config.json").is_file() and not stored_variants(source):
        weight_files(source)
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.name == "config.json" or weights_kind(path.name)):
            _take(path, staged / path.name, root)


def stage_checkpoint(source: Path, staged: Path, root: Path) -> None:
    """The files that its state lists, verified: who goes on from them gets what the training wrote.

    Raises `InputError`, `WeightsError`: a name that no checkpoint has; a file is missing or damaged.
    """
    _take(source / STATE, staged / STATE, root)
    listed = read_json(staged / STATE).get("files")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"the checkpoint {str(source)!r} lists no files in its {STATE}; push another one")
    for name, expected in listed.items():
        if not _TENSORS.fullmatch(name):
            raise InputError(
                f"the checkpoint {str(source)!r} lists {shown(name)!r:.80}; allowed: names of .safetensors "
                "files in the same folder"
            )
        if not (source / name).is_file():
            raise WeightsError(f"the checkpoint {str(source)!r} has no {name!r}, which its {STATE} lists")
        _take(source / name, staged / name, root)
        if fingerprint(staged / name) != expected:
            raise WeightsError(
                f"the checkpoint {str(source)!r} is damaged: {name!r} is not what was written; push another"
            )


def _take(source: Path, target: Path, root: Path) -> None:
    check_inside(source, root)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Weights are large and never written to, as cards and indexes here are.
        (link if source.suffix == ".safetensors" else shutil.copyfile)(source, target)
    except OSError as error:
        raise InputError(
            f"{str(source)!r} cannot be read, or not copied into the folder of temporary files "
            f"({error.strerror}); free some space there, or set TMPDIR"
        ) from error
    if source.name in CONFIGS:
        strip_private(target)


def check_inside(path: Path, root: Path) -> None:
    """Raise `InputError` for a link out of the folder `root`, unless it is one of the download cache's."""
    real, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if top in real.parents:
        return
    # The cache keeps a repository's files in `blobs`, and links to them in `snapshots/COMMIT`.
    blobs = [place.parent / "blobs" for place in (top, *top.parents) if place.name == "snapshots"]
    if real.parent in blobs and _BLOB.fullmatch(real.name):
        return
    raise InputError(
        f"{str(path)!r} is a link to a file outside of {str(root)!r}, which is not published; put a copy of "
        "the file there, or remove the link"
    )


def strip_private(path: Path) -> None:
    """Take keys such as `_name_or_path`, which tell where somebody keeps files, out of a config."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the loader says what is wrong with it
        return
    if not isinstance(values, dict):
        return
    kept = {name: value for name, value in values.items() if name[:1] != "_" or name in _NEEDED_KEYS}
    if kept != values:
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")

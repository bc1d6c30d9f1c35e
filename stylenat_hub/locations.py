"""Where a model is: a zoo name, a local folder or a Hub repository -> a folder on this machine."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from stylenat_hub import download
from stylenat_hub.errors import ConfigError, InputError, NotOnHubError, UnknownModelError, WeightsError
from stylenat_hub.registry import (
    CHECKPOINTS,
    NAMESPACE,
    SHAPES,
    chosen_namespace,
    find_checkpoint,
    hub_id,
    nearest,
)
from stylenat_hub.weights import file_names, read_json

BUILTIN = Path(__file__).parent / "builtin"
_LONGEST_PATH = 1_000  # characters; a system's own bound is met with its own words
RECORDS = ("training.json", "conversion.json")  # how the weights came to be
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Location:
    """A model folder on this machine.

    name: as the user gave it. folder: has `config.json`. listing: names of all files that the folder has at
    its source, which for a Hub repository are more than those downloaded; None if the folder is all there is.
    root: the pipeline's folder, or the model's where it is by itself.
    """

    name: str
    folder: Path
    root: Path
    listing: tuple[str, ...] | None = None


def locate(
    source: str | os.PathLike[str],
    *,
    component: str = "generator",
    subfolder: str | None = None,
    variant: str | None = None,
    namespace: str | None = None,
    **options: Any,
) -> Location:
    """Where `source` lies on this machine, downloaded if it is a Hub id. See `load_model`.

    component: the folder that is meant where `source` is a pipeline and no subfolder is given. options: those
    of `download.fetch`.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InputError(f"the model is {source!r}; give a zoo name, a folder or a Hub id (org/name)")
    name = os.fspath(source)
    subfolder = _inner(subfolder)
    if variant not in (None, "") and not _is_variant(variant):
        raise InputError(f"variant is {variant!r}; allowed: a short name such as 'bf16', or None")
    _check_namespace(namespace, name)
    if (path := _local(name)) is not None:
        folder = _model_folder(path, subfolder, component)
        download.check_cached(folder)
        return Location(name, folder, path)
    if name in builtin_models() and namespace is None:
        return Location(name, _model_folder(BUILTIN / name, subfolder, component), BUILTIN / name)
    patterns = _wanted(subfolder or component, bool(subfolder), variant)
    if name in CHECKPOINTS:
        where, snapshot = _of_the_zoo(name, patterns, namespace, options)
    elif _HUB_ID.fullmatch(name):
        where, snapshot = name, _by_id(name, patterns, options)
    else:
        raise UnknownModelError(_nowhere(name))
    folder = _model_folder(snapshot.folder, subfolder, component)
    if name in CHECKPOINTS:
        _check_known(name, where, folder, component, variant)
    prefix = folder.relative_to(snapshot.folder).as_posix() + "/" if folder != snapshot.folder else ""
    below = tuple(found.removeprefix(prefix) for found in snapshot.names if found.startswith(prefix))
    return Location(name, folder, snapshot.folder, below)


def _by_id(name: str, patterns: list[str], options: dict[str, Any]) -> download.Snapshot:
    try:
        return download.pull(name, patterns, **options)
    except NotOnHubError as error:
        namespace, _, zoo = name.partition("/")
        if namespace != NAMESPACE or zoo not in CHECKPOINTS:
            raise
        raise UnknownModelError(f"the Hub has no {name!r}; {without_weights(zoo)}") from error


def _is_variant(variant: Any) -> bool:
    return isinstance(variant, str) and re.fullmatch(r"[\w.+-]{1,100}", variant) is not None


def _check_namespace(namespace: str | None, name: str) -> None:
    """Raise `InputError` for a namespace beside what says itself whose it is: a Hub id or a folder."""
    if chosen_namespace(namespace) is None or namespace is None or name in (*CHECKPOINTS, *builtin_models()):
        return
    if _HUB_ID.fullmatch(name) or os.path.isdir(name):
        raise InputError(
            f"namespace is {namespace!r}, which goes with a name of the zoo (see `stylenat list`), and "
            f"{name!r} is none; leave namespace out"
        )


def _inner(subfolder: str | os.PathLike[str] | None) -> str | None:
    """A subfolder as its parts with slashes, None for the folder itself. Raises `InputError`."""
    if subfolder is None:
        return None
    path = PurePath(subfolder) if isinstance(subfolder, (str, os.PathLike)) else None
    possible = path is not None and "\0" not in str(path) and len(str(path)) <= _LONGEST_PATH
    if not possible or path.is_absolute() or ".." in path.parts or max(map(len, path.parts), default=0) > 255:
        raise InputError(f"subfolder is {subfolder!r}; allowed: a folder inside of the model's own")
    return path.as_posix() if path.parts else None


def _check_known(name: str, where: str, folder: Path, component: str, variant: str | None) -> None:
    """Is this model the one that the zoo has recorded? It may lie in a pipeline or by itself. Of a variant
    the zoo must have a record too, once it has one of the model."""
    known, file = CHECKPOINTS[name].sha256 or {}, file_names(variant)[0]
    if expected := known.get(f"{component}/{file}"):
        download.check_known(where, folder / file, expected)
    elif any(path.startswith(f"{component}/") for path in known):
        raise WeightsError(
            f"the zoo knows {name!r}, but no {file!r} of it; if you want that all the same, load {where!r} "
            "by that id"
        )


def _local(name: str) -> Path | None:
    """The folder of this name, or None if there is nothing of the name on this machine."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UnknownModelError(f"there is no folder {name!r}: no user of that name") from None
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name longer than names may be
        raise UnknownModelError(f"there is no folder {name[:60]!r}...: {error.strerror}") from None
    if exists and not is_folder:
        raise InputError(
            f"{name!r} is a file; give the folder that it is in, or convert an original checkpoint with "
            f"`python -m conversion.convert {name} --output FOLDER` and give that folder"
        )
    return path if is_folder else None


def _of_the_zoo(
    name: str, patterns: list[str], namespace: str | None, options: dict[str, Any]
) -> tuple[str, download.Snapshot]:
    """A zoo name's Hub id and its snapshot.

    Where nobody has published it, the Hub is asked only if a namespace was named: anybody could take the
    name.
    """
    record, chosen = CHECKPOINTS[name], chosen_namespace(namespace)
    if chosen is None and not record.published:
        raise UnknownModelError(without_weights(name))
    where = hub_id(name, namespace)
    if chosen in (None, NAMESPACE) and options.get("revision") is None:
        options = {**options, "revision": record.revision}
    try:
        return where, download.pull(where, patterns, **options)
    except NotOnHubError as error:
        raise UnknownModelError(
            f"the Hub has no {where!r}, or it is private; {without_weights(name)}"
        ) from error


def _wanted(folder: str, only: bool, variant: str | None) -> list[str]:
    """The files of a Hub repository that one load needs: those in `folder`, and unless `only` the root's."""
    folder = glob.escape(folder)
    folders = [f"{folder}/"] if only else ["", f"{folder}/"]
    names = [f"{at}{name}" for at in folders for name in ("config.json", *file_names(variant))]
    return names if only else ["model_index.json", *RECORDS, *names]


def _model_folder(root: Path, subfolder: str | None, component: str) -> Path:
    if subfolder:
        folder = root / subfolder
    elif (root / "model_index.json").is_file():
        folder = root / component
        if component == "generator" and component not in (index := read_json(root / "model_index.json")):
            raise ConfigError(
                f"{str(root)!r} is a {index.get('_class_name')!r}, a pipeline without a generator of ours"
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


def status(name: str) -> str:
    """Where the weights of a checkpoint are: "ships", "on the Hub", "convert" or "none published"."""
    record = find_checkpoint(name)
    if name in builtin_models():
        return "ships"
    if record.published:
        return "on the Hub"
    return "convert" if record.origin_url else "none published"


def without_weights(name: str) -> str:
    """One sentence for a zoo name whose weights are not to be had: how to get them, or that there are
    none."""
    where = status(name)
    if where == "ships":
        return f"{name!r} ships with this package: leave out namespace"
    if where == "on the Hub":
        return (
            f"the weights of {name!r} are published as {hub_id(name, NAMESPACE)!r}: load them while online, "
            "without a namespace"
        )
    if where == "none published":
        return (
            f"the weights of {name!r} were never published; stylenat_hub.create_model({name!r}) builds the "
            "untrained network"
        )
    page = find_checkpoint(name).origin_page
    other = f" (or, with FILE in place of --from {name}, one from their page, {page})" if page else ""
    return (
        f"nobody has put the weights of {name!r} on the Hub yet; convert the authors' file, in a clone of "
        f"this project, with `python -m conversion.convert --from {name} --output {name}`{other}, and give "
        "that folder"
    )


def _nowhere(name: str) -> str:
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        return (
            f"there is no folder {name!r}; give an existing one, a zoo name (see `stylenat list`) or a Hub id"
        )
    if name in SHAPES:
        return (
            f"{name!r} is a shape without published weights; stylenat_hub.create_model({name!r}) builds the "
            "untrained network: train it, or convert somebody's checkpoint of it, and give that folder"
        )
    return f"there is no folder {name!r} here, and {nearest(name, CHECKPOINTS)}"

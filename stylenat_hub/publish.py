"""Onto the Hub: a pipeline, a model or a folder -> one commit with its card, its pictures and its recipe.

What is pushed is first written to a temporary folder, loaded again by the strict loader and drawn from; what
fails there is never sent. Of a commit readers see all or nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
)
from huggingface_hub import errors as hub_errors

from stylenat_hub import cards
from stylenat_hub.bundle import bundle_files
from stylenat_hub.errors import ConfigError, HubError, InputError
from stylenat_hub.files import link, user_path
from stylenat_hub.models.base import Discriminator, Generator, ZooModel
from stylenat_hub.pictures import Grid, write_picture
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.remote import pushing, retried
from stylenat_hub.weights import check_same_weights, check_saving, stored_variant, superseded

GRID_CELL = 256  # px; the pictures of larger models are shown smaller
TRUNCATION = 0.7
# What of a folder is pushed; anything else that lies in it is not.
PARTS = ("model_index.json", "config.json", "generator", "discriminator", "checkpoint")
EXTRAS = ("training.json", "conversion.json", "README.md", "LICENSE", "samples.png")
CODE = re.compile(r"(generator/stylenat_hub\.[\w.]+|pipeline)\.py")  # what `bundle_code` adds


def push_pipeline(
    pipeline: GANPipeline,
    name: str,
    *,
    discriminator: Discriminator | None = None,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    **options: Any,
) -> CommitInfo:
    """Push a pipeline, and with it the discriminator that it was trained against if that is given.

    Other arguments and errors: `push_folder`, `GANPipeline.save_pretrained`.
    """
    check_saving(safe_serialization)
    saving = {"variant": variant, "max_shard_size": max_shard_size}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pipeline")
        pipeline.save_pretrained(folder, **saving)
        if discriminator is not None:
            discriminator.save_pretrained(folder / discriminator.component, **saving)
        _check_same(pipeline.generator, folder, variant)
        options["commit_message"] = options.get("commit_message") or "Upload pipeline"
        return push_folder(folder, name, variant=variant, **options)


def push_model(
    model: ZooModel,
    name: str,
    *,
    subfolder: str | None = None,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    **options: Any,
) -> CommitInfo:
    """Push a generator or a discriminator by itself. subfolder: a folder in the repository, such as
    `discriminator` of a pipeline; there the card stays as it is.

    Other arguments and errors: `push_folder`, `ZooModel.save_pretrained`.
    """
    check_saving(safe_serialization)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        model.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        _check_same(model, folder, variant)
        options["commit_message"] = options.get("commit_message") or f"Upload {model.component}"
        if subfolder is None:
            return push_folder(folder, name, variant=variant, **options)
        if options.pop("bundle_code", False) or options.pop("license", None):
            raise InputError("bundle_code and license belong to a whole repository; leave out subfolder")
        return upload(folder, name, path_in_repo=subfolder, **options)


def push_folder(
    folder: str | os.PathLike[str],
    name: str,
    *,
    variant: str | None = None,
    license: str | None = None,
    bundle_code: bool = False,
    samples: bool = True,
    **options: Any,
) -> CommitInfo:
    """Push a folder that `save_pretrained`, conversion or training's export wrote, after checking it.

    Pushed are the model's files and records (`PARTS`, `EXTRAS`), a grid of 16 pictures (`samples.png`) and a
    card, unless the folder or the repository has a card that this package has not written. name: the Hub id;
    without a slash in your own namespace. variant: which weights are checked and drawn from; default: those
    without, or the only ones. license: as the Hub's list calls it, such as "mit". bundle_code: add this
    project's code, so that diffusers can load the pipeline where this package is not installed. samples:
    False draws nothing. options: those of `upload`.

    Raises:
        InputError, ConfigError, WeightsError: the folder is not what it should be; nothing is sent.
        HubError: the Hub refuses, or the network fails; nothing has changed there.
    """
    source = user_path(folder)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        _stage(source, staged)
        grid = _check_and_draw(staged, variant, samples)
        if bundle_code:
            _add_code(staged)
        written = _write_card(staged, name, license, grid)
        return upload(staged, name, replaceable=("README.md",) if written else (), **options)


def _stage(source: Path, staged: Path) -> None:
    """Link or copy what belongs to a model. Raises `InputError` if it is no such folder."""
    if not source.is_dir():
        raise InputError(f"there is no folder {str(source)!r} to push; name one that holds a model")
    if not any((source / part).is_file() for part in ("model_index.json", "config.json")):
        raise InputError(
            f"{str(source)!r} holds no model (neither model_index.json nor config.json); name a folder that "
            "save_pretrained, conversion.convert or training.export wrote"
        )
    if not (source / "model_index.json").is_file():
        _stage_files(source, staged)
    for part in (*PARTS, *EXTRAS):
        if (source / part).is_dir():
            _stage_files(source / part, staged / part)
        elif (source / part).is_file():
            _take(source / part, staged / part)


def _stage_files(source: Path, staged: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".safetensors", ".json"):
            _take(path, staged / path.name)


def _take(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    # Weights are large and never written to, as cards and indexes here are.
    (link if source.suffix == ".safetensors" else shutil.copyfile)(source, target)


def _check_same(model: ZooModel, folder: Path, variant: str | None) -> None:
    """Raise `WeightsError` unless the folder holds this very model."""
    check_same_weights(model, type(model).from_pretrained(folder, variant=variant, dtype=model.dtype))


def _check_and_draw(folder: Path, variant: str | None, samples: bool) -> str | None:
    """Load all of a folder by the strict loader; draw a grid from its generator. Returns what it shows."""
    index = (folder / "model_index.json").is_file()
    models = [folder / part for part in ("generator", "discriminator") if index and (folder / part).is_dir()]
    grid = None
    for path in models or [folder]:
        cls, _ = cards.model_class(path)
        chosen = variant if variant is not None else stored_variant(path)
        model = cls.from_pretrained(path, variant=chosen)
        if isinstance(model, Generator):
            grid = _draw(model, folder / "samples.png") if samples else None
    if index and (folder / "generator") not in models:
        raise ConfigError(f"{str(folder)!r} is a pipeline without a generator; save it again")
    return grid


def _draw(generator: Generator, path: Path) -> str:
    """Draw 16 pictures, 4 of large models, into one PNG; in float32, which every device can compute."""
    pipeline = GANPipeline(generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    known = bool(generator.w_avg.isfinite().all())
    count, truncation = 16 if generator.resolution <= GRID_CELL else 4, TRUNCATION if known else 1.0
    sheet = Grid(count, min(generator.resolution, GRID_CELL))
    for batch in pipeline.iterate(range(count), truncation_psi=truncation):
        for picture in batch.images:
            sheet.add(picture)
    about = {"seeds": f"0-{count - 1}", "truncation_psi": str(truncation)}
    write_picture(sheet.image, path, about)
    return f"Seeds 0 to {count - 1}, truncation {truncation}"


def _add_code(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise InputError("bundle_code needs a pipeline (model_index.json); push one, or leave it out")
    for name, text in bundle_files(folder).items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_card(folder: Path, name: str, license: str | None, grid: str | None) -> bool:
    """Write the card and check that the Hub will take it; False if the folder has one that is not ours."""
    path = folder / "README.md"
    if path.is_file() and cards.MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    card = cards.pushed_card(folder, name, license=license, grid=grid)
    card.save(path)
    _check_card(card, name)  # before anything is made there
    return True


def _check_card(card: ModelCard, name: str) -> None:
    """Raise `HubError` if the Hub would not take this card."""
    with pushing(name):
        try:
            retried(card.validate)
        except ValueError as error:  # the Hub's answer, as JSON
            found = re.findall(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error)) or [str(error)]
            text = " ".join("; ".join(found).replace('\\"', "'").split())
            raise HubError(
                f"the Hub does not take the card of {name!r}: {text[:300]}{'...' * (len(text) > 300)}"
            ) from error


def upload(
    folder: str | os.PathLike[str],
    name: str,
    *,
    path_in_repo: str | None = None,
    repo_type: str = "model",
    space_sdk: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    replaceable: Sequence[str] = (),
) -> CommitInfo:
    """Send all files of a folder as one commit, and remove from the repository the weights they supersede.

    The repository is made if it is not there. private: True makes a new one private, and refuses to push
    into a public one; None leaves it to the account's settings. create_pr: propose the change instead.
    revision: a branch, made if it is not there. tag: a name for the new state. replaceable: files that keep
    the repository's own text if that lacks this package's mark. Returns the client's `CommitInfo`, which is
    also the commit's address.

    Raises `HubError`, `InputError`: one sentence; nothing has changed on the Hub then, except that a new,
    empty repository or branch may be there.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"the repository is {name!r}; give a Hub id, such as me/my-church")
    api = HfApi(token=token)
    with pushing(name):
        where = _repository(api, name, repo_type, space_sdk, private, create_pr)
        if tag is not None:
            _check_tag(api, where, repo_type, tag, create_pr)
        if revision is not None and not create_pr:
            retried(lambda: api.create_branch(where, branch=revision, repo_type=repo_type, exist_ok=True))
        there = set(retried(lambda: api.list_repo_files(where, revision=revision, repo_type=repo_type)))
        files = _named(Path(folder), path_in_repo)
        for file in replaceable:
            if file in there and not _ours(where, file, revision, repo_type, token):
                files.pop(file, None)
        operations = [
            CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=file) for file in _obsolete(there, files)]
        commit = retried(
            lambda: api.create_commit(
                where,
                operations,
                commit_message=commit_message or "Upload files",
                commit_description=commit_description,
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
            )
        )
        if tag is not None:
            retried(lambda: api.create_tag(where, tag=tag, revision=commit.oid, repo_type=repo_type))
    return commit


def make_repository(name: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
    """Make a model repository if it is not there; returns its full id. To be asked before long work.

    Raises `HubError`, `InputError`: whoever is logged in may not write there.
    """
    with pushing(name):
        return _repository(HfApi(token=token), name, "model", None, private, create_pr=False)


def _repository(
    api: HfApi, name: str, repo_type: str, space_sdk: str | None, private: bool | None, create_pr: bool
) -> str:
    """The full id of the repository, made if it is not there. Raises `InputError` for a public one that
    should be private."""
    if create_pr and "/" in name and retried(lambda: api.repo_exists(name, repo_type=repo_type)):
        return name  # somebody else's, perhaps, where one may propose but not create
    made = retried(
        lambda: api.create_repo(
            name, repo_type=repo_type, space_sdk=space_sdk, private=private, exist_ok=True
        )
    )
    if private and not retried(lambda: api.repo_info(made.repo_id, repo_type=repo_type)).private:
        raise InputError(
            f"{made.repo_id!r} exists already and is public: private=True would not hide what is pushed; "
            "make it private in its settings on the Hub, or push to another name"
        )
    return made.repo_id


def _check_tag(api: HfApi, where: str, repo_type: str, tag: str, create_pr: bool) -> None:
    if create_pr:
        raise InputError("a pull request cannot be tagged; leave out tag, or create_pr")
    if tag in {ref.name for ref in retried(lambda: api.list_repo_refs(where, repo_type=repo_type)).tags}:
        raise InputError(f"{where!r} has a tag {tag!r} already; name another, or delete it on the Hub first")


def _named(folder: Path, path_in_repo: str | None) -> dict[str, Path]:
    at = f"{path_in_repo.strip('/')}/" if path_in_repo else ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{at}{path.relative_to(folder).as_posix()}": path for path in files}


def _obsolete(there: set[str], files: dict[str, Path]) -> list[str]:
    """What the repository has and this push replaces by other names: shards by a file, an older checkpoint's
    files, code where none is bundled any more."""
    old = superseded(there, files)
    if any(file.startswith("checkpoint/") for file in files):
        old |= {file for file in there if file.startswith("checkpoint/")}
    if "model_index.json" in files and any(file.startswith("generator/stylenat_hub.") for file in there):
        old |= {file for file in there if CODE.fullmatch(file)}
    return sorted(old - set(files))


def _ours(where: str, file: str, revision: str | None, repo_type: str, token: str | bool | None) -> bool:
    """Has this package written that file of the repository?"""
    try:
        path = retried(
            lambda: hf_hub_download(where, file, revision=revision, repo_type=repo_type, token=token)
        )
    except hub_errors.EntryNotFoundError:
        return True
    return cards.MARK in Path(path).read_text(encoding="utf-8", errors="replace")


def address(commit: CommitInfo) -> str:
    """Where to look at what was pushed: the pull request, or else the repository."""
    return commit.pr_url or str(commit.repo_url)


__all__ = ["HubError", "address", "push_folder", "push_model", "push_pipeline", "upload"]

"""Onto the Hub: a pipeline, a model or a folder -> one commit with its card, its pictures and its recipe.

What is pushed is first written to a temporary folder, loaded again by the strict loader and drawn from; what
fails there is never sent. Of a commit readers see all or nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard

from stylenat_hub import cards
from stylenat_hub.bundle import bundle_files, components, plain_index
from stylenat_hub.errors import ConfigError, HubError, InputError, StyleNATHubError, WeightsError
from stylenat_hub.files import link, user_path
from stylenat_hub.models.base import Discriminator, Generator, ZooModel
from stylenat_hub.pictures import Grid, write_picture
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import find_class
from stylenat_hub.remote import pushing, retried
from stylenat_hub.signals import Interrupted
from stylenat_hub.uploads import address, full_id, make_repository, upload
from stylenat_hub.weights import (
    check_same_weights,
    check_saving,
    read_json,
    stored_variants,
    weight_files,
    weights_kind,
)

GRID_CELL = 256  # px; the pictures of larger models are shown smaller
# What of a folder is pushed beside its models and its checkpoint; anything else that lies in it is not.
FILES = (
    *("model_index.json", "training.json", "conversion.json", "README.md", "LICENSE"),
    *("samples.png", "pictures.png"),
)


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
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary, "pipeline")
        stack.enter_context(_told_as(folder, "the pipeline"))
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
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary, "model")
        stack.enter_context(_told_as(folder, f"the {model.component}"))
        model.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        _check_same(model, folder, variant)
        options["commit_message"] = options.get("commit_message") or f"Upload {model.component}"
        if subfolder is None:
            return push_folder(folder, name, variant=variant, **options)
        if options.pop("bundle_code", False) or options.pop("license", None):
            raise InputError("bundle_code and license belong to a whole repository; leave out subfolder")
        if isinstance(model, Generator):
            _check_and_draw(folder, variant, samples=False)
        return upload(folder, name, path_in_repo=subfolder, **options)


def push_folder(
    folder: str | os.PathLike[str],
    name: str,
    *,
    variant: str | None = None,
    license: str | None = None,
    bundle_code: bool = False,
    samples: bool = True,
    checkpoint: Path | None = None,
    **options: Any,
) -> CommitInfo:
    """Push a folder that `save_pretrained`, conversion or training's export wrote, after checking it.

    Pushed are the models, the checkpoint and the records (`FILES`), a grid of 16 pictures (`samples.png`) and
    a card, unless the folder or the repository has a card that this package has not written. Card and grid
    stay, too, where only a variant is added to weights that are there. name: the Hub id; without a slash in
    your own namespace. variant: which weights are drawn from; default: those without, or the only ones.
    license: as the Hub's list calls it, such as "mit", for the card. bundle_code: add this project's code, so
    that diffusers can load the pipeline where this package is not installed. samples: False makes no grid.
    checkpoint: of a training run, to lie beside the model; default: the folder's own, if it has one. options:
    those of `upload`.

    Raises:
        InputError, ConfigError, WeightsError: the folder is not what it should be; nothing is sent.
        HubError: the Hub refuses, or the network fails; nothing has changed there.
    """
    source = user_path(folder)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        staged = Path(temporary, "staged")
        staged.mkdir()
        stack.enter_context(_told_as(staged, str(source)))
        _stage(source, staged)
        _stage_checkpoint(checkpoint or source / "checkpoint", staged / "checkpoint")
        name = full_id(name, options.get("token"))  # the card names it in full
        grid = _check_and_draw(staged, variant, samples)
        _add_code(staged, bundle_code)
        written = _write_card(staged, name, license, grid)
        return upload(staged, name, replaceable=("README.md", "samples.png") if written else (), **options)


def push_written(folder: Path, name: str, **options: Any) -> CommitInfo:
    """`push_folder` for a command that has just written the folder: errors say that it is there, and how to
    push it later."""
    try:
        return push_folder(folder, name, **options)
    except HubError as error:
        command = ["stylenat", "push", str(folder), name]
        command += ["--license", options["license"]] if options.get("license") else []
        command += ["--private"] if options.get("private") else []
        later = "" if options.get("checkpoint") else f": `{shlex.join(command)}` pushes it"
        raise HubError(f"{error}; {str(folder)!r} is written{later}") from error
    except KeyboardInterrupt:
        raise Interrupted(f"{folder} is written, but not pushed") from None


@contextlib.contextmanager
def _told_as(temporary: Path, name: str) -> Iterator[None]:
    """Errors of the checks call a temporary folder, of which the user knows nothing, by this name."""
    try:
        yield
    except StyleNATHubError as error:
        text = str(error)
        if str(temporary) not in text:
            raise
        told = text.replace(str(temporary), name)
        raise type(error)(told) from error


def _stage(source: Path, staged: Path) -> None:
    """Link or copy what belongs to a model. Raises `InputError` if it is no such folder."""
    if not source.is_dir():
        raise InputError(f"there is no folder {str(source)!r} to push; name one that holds a model")
    if not any((source / part).is_file() for part in ("model_index.json", "config.json")):
        raise InputError(
            f"{str(source)!r} holds no model (neither model_index.json nor config.json); name a folder that "
            "save_pretrained, conversion.convert or training.export wrote"
        )
    _stage_model(source, staged)
    for part in ("generator", "discriminator"):
        if (source / part).is_dir():
            _stage_model(source / part, staged / part)
    for name in FILES:
        if (source / name).is_file():
            _take(source / name, staged / name)


def _stage_model(source: Path, staged: Path) -> None:
    """Its config and weights; whatever else lies there may be anything, such as a token.

    Raises `WeightsError` if it has none, which names what it has instead.
    """
    if (source / "config.json").is_file() and not stored_variants(source):
        weight_files(source)
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.name == "config.json" or weights_kind(path.name)):
            _take(path, staged / path.name)


def _stage_checkpoint(source: Path, staged: Path) -> None:
    """The files that its state lists."""
    if (source / "state.json").is_file():
        listed = read_json(source / "state.json").get("files")
        for name in ("state.json", *(listed if isinstance(listed, dict) else ())):
            if (path := source / Path(name).name).is_file():
                _take(path, staged / path.name)


def _take(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Weights are large and never written to, as cards and indexes here are.
    (link if source.suffix == ".safetensors" else shutil.copyfile)(source, target)


def _check_same(model: ZooModel, folder: Path, variant: str | None) -> None:
    """Raise `WeightsError` unless the folder holds this very model."""
    check_same_weights(model, type(model).from_pretrained(folder, variant=variant, dtype=model.dtype))


def _check_and_draw(folder: Path, variant: str | None, samples: bool) -> str | None:
    """Load all of a folder by the strict loader, and draw from its generator. Returns what the grid shows."""
    parts = {"": folder}
    if (folder / "model_index.json").is_file():
        parts = {name: folder / name for name in components(folder)}
        if "generator" not in parts:
            raise ConfigError(f"{str(folder)!r} is a pipeline without a generator; save it again")
        if (folder / "discriminator").is_dir():
            parts["discriminator"] = folder / "discriminator"
    _check_pair(folder, parts)
    grid = None
    for path in parts.values():
        cls, _ = cards.model_class(path)
        known = stored_variants(path)
        chosen = variant if variant in known or cls.component == "generator" else None
        chosen = known[0] if chosen is None and known else chosen
        for other in known:
            if other != chosen:
                cls.from_pretrained(path, variant=other)
        model = cls.from_pretrained(path, variant=chosen)
        if isinstance(model, Generator):
            grid = _draw(model, folder / "samples.png" if samples else None)
    return grid


def _check_pair(folder: Path, parts: dict[str, Path]) -> None:
    """Raise `ConfigError` if the discriminator is not of the generator's family and resolution."""
    if "discriminator" not in parts:
        return
    found = {name: cards.model_class(path) for name, path in parts.items()}
    (generator, (family, *_)), (judge, _) = found["generator"], found["discriminator"]
    sizes = [read_json(parts[name] / "config.json").get("resolution") for name in parts]
    if judge is not family.discriminator or len(set(sizes)) > 1:
        raise ConfigError(
            f"the discriminator of {str(folder)!r} is a {judge.__name__} for {sizes[-1]} px, which does not "
            f"go with a {generator.__name__} for {sizes[0]} px; push the one it was trained against, or none"
        )


def _draw(generator: Generator, path: Path | None) -> str | None:
    """Draw 16 pictures, 4 of large models, into one PNG; in float32, which every device can compute. Without
    a path one picture, to see that it does.

    Raises `WeightsError` if it does not.
    """
    pipeline = GANPipeline(generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    known = bool(generator.w_avg.isfinite().all())
    usual = find_class(type(generator).__name__)[1][0].truncation
    count, truncation = 16 if generator.resolution <= GRID_CELL else 4, usual if known else 1.0
    count = count if path else 1
    sheet = Grid(count, min(generator.resolution, GRID_CELL))
    try:
        for batch in pipeline.iterate(range(count), truncation_psi=truncation):
            for picture in batch.images:
                sheet.add(picture)
    except InputError as error:
        raise WeightsError(f"this generator draws no pictures, so it is not pushed: {error}") from error
    if path is None:
        return None
    write_picture(sheet.image, path, {"seeds": f"0-{count - 1}", "truncation_psi": str(truncation)})
    return f"Seeds 0 to {count - 1}, truncation {truncation}"


def _add_code(folder: Path, wanted: bool) -> None:
    """Add this project's code; if it is not wanted, take out of the index that there would be some."""
    index = folder / "model_index.json"
    if index.is_file():
        for name, text in (bundle_files if wanted else plain_index)(folder).items():
            (folder / name).write_text(text, encoding="utf-8")
    elif wanted:
        raise InputError("bundle_code needs a pipeline (model_index.json); push one, or leave it out")


def _write_card(folder: Path, name: str, license: str | None, grid: str | None) -> bool:
    """Write the card and check that the Hub will take it; False if the folder has one that is not ours."""
    path = folder / "README.md"
    own = path.is_file() and cards.MARK not in path.read_text(encoding="utf-8", errors="replace")
    if own and license:
        raise InputError(
            "the folder has a README.md of its own: state the licence there, and leave out license"
        )
    if not own:
        cards.pushed_card(folder, name, license=license, grid=grid).save(path)
    _check_card(ModelCard.load(path, ignore_metadata_errors=True), name)  # before anything is made there
    return not own


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


__all__ = [
    "HubError",
    "address",
    "make_repository",
    "push_folder",
    "push_model",
    "push_pipeline",
    "push_written",
    "upload",
]

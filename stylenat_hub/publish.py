"""Onto the Hub: a pipeline, a model or a folder -> one commit with its card, its pictures and its recipe.

What is pushed is first written to a temporary folder, loaded again by the strict loader and drawn from; what
fails there is never sent. Of a commit readers see all or nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from huggingface_hub import CommitInfo

from stylenat_hub import cards
from stylenat_hub.bundle import bundle_files, components, plain_index
from stylenat_hub.card_checks import check_card, licence, own_card
from stylenat_hub.errors import (
    ConfigError,
    HubError,
    InputError,
    StyleNATHubError,
    WeightsError,
)
from stylenat_hub.models.base import Discriminator, Generator, ZooModel
from stylenat_hub.pictures import Grid, write_picture
from stylenat_hub.pipeline import GANPipeline, latents
from stylenat_hub.push_options import FOLDER, SAVED, UPLOAD, check_options, folder_path
from stylenat_hub.registry import find_class
from stylenat_hub.signals import Interrupted
from stylenat_hub.staged import STATE, stage, stage_checkpoint, strip_private
from stylenat_hub.uploads import address, full_id, make_repository, report, upload
from stylenat_hub.weights import check_same_weights, check_saving, read_json, stored_variants

GRID_CELL = 256  # px; the pictures of larger models are shown smaller
SMALLEST_CELL = 128  # px; those of smaller ones larger, pixel by pixel


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
    check_options(
        {**options, "variant": variant, "max_shard_size": max_shard_size, "discriminator": discriminator},
        (*SAVED, "discriminator"),
    )
    saving = {"variant": variant, "max_shard_size": max_shard_size}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary, "pipeline")
        stack.enter_context(_told_as(folder, "the pipeline"))
        pipeline.save_pretrained(folder, **saving)
        _write_records(pipeline.generator, folder)
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
    """Push a generator or a discriminator by itself. subfolder: its place in a pipeline that is there
    (`generator` or `discriminator`); the card stays as it is then.

    Other arguments and errors: `push_folder`, `ZooModel.save_pretrained`.
    """
    check_saving(safe_serialization)
    check_options({**options, "variant": variant, "max_shard_size": max_shard_size}, SAVED)
    _check_subfolder(model, subfolder, options)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary, "model")
        stack.enter_context(_told_as(folder, f"the {model.component}"))
        model.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        if isinstance(model, Generator) and subfolder is None:
            _write_records(model, folder)
        _check_same(model, folder, variant)
        options["commit_message"] = options.get("commit_message") or f"Upload {model.component}"
        if subfolder is None:
            return push_folder(folder, name, variant=variant, **options)
        if isinstance(model, Generator):
            _check_and_draw(folder, variant, samples=False)
        strip_private(folder / "config.json")
        sent = {key: value for key, value in options.items() if key in UPLOAD}
        return upload(folder, name, path_in_repo=subfolder, **sent)


def _check_subfolder(model: ZooModel, subfolder: Any, options: dict[str, Any]) -> None:
    """Raise `InputError` unless it is the model's place in a pipeline: nobody would find it elsewhere."""
    if subfolder is None:
        return
    if not isinstance(subfolder, str) or subfolder != model.component:
        raise InputError(
            f"subfolder is {subfolder!r:.60}; allowed: {model.component!r}, the place of this model in a "
            "pipeline, or None"
        )
    if options.get("bundle_code") or options.get("license"):
        raise InputError("bundle_code and license belong to a whole repository; leave out subfolder")


def push_folder(
    folder: str | os.PathLike[str],
    name: str,
    *,
    variant: str | None = None,
    license: str | None = None,
    bundle_code: bool = False,
    samples: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> CommitInfo:
    """Push a folder that `save_pretrained`, conversion or training's export wrote, after checking it.

    Pushed are the models, the checkpoint and the records (`staged.FILES`), a grid of 16 pictures
    (`samples.png`) and a card, unless the folder or the repository has a card that this package has not
    written; with a card of its own a folder keeps its own `samples.png`, too. Card and grid of the repository
    stay where only a variant is added to weights that are there. name: the Hub id; without a slash in your
    own namespace. variant: which weights are drawn from; default: those without, or the only ones.
    license: as the Hub's list calls it, such as "mit", for the card. bundle_code: add this project's code, so
    that diffusers can load the pipeline where this package is not installed. samples: False makes no grid.
    checkpoint: of a training run, to lie beside the model; default: the folder's own, if it has one. options:
    those of `upload`.

    Raises:
        InputError, ConfigError, WeightsError: the folder is not what it should be; nothing is sent.
        HubError: the Hub refuses, or the network fails; nothing has changed there, unless it says so.
    """
    given = {"variant": variant, "license": license, "bundle_code": bundle_code, "samples": samples}
    check_options({**options, **given, "checkpoint": checkpoint}, FOLDER)
    source = folder_path(folder)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        staged = Path(temporary, "staged")
        staged.mkdir()
        stack.enter_context(_told_as(staged, str(source)))
        _stage(source, staged, checkpoint)
        name = full_id(name, options.get("token"))  # the card names it in full
        own = own_card(staged / "README.md", name, license)
        if own is None:
            license = licence(name, license, options)
        # Their card may speak of their pictures.
        shown = own is not None and (staged / "samples.png").is_file()
        grid = _check_and_draw(staged, variant, samples and not shown)
        _add_code(staged, bundle_code)
        if own is None:
            cards.pushed_card(staged, name, license=license, grid=grid).save(staged / "README.md")
        check_card(own or (staged / "README.md").read_text(encoding="utf-8"), name)
        generated = ("README.md", "samples.png") if own is None else ()
        return upload(staged, name, replaceable=generated, **options)


def _stage(source: Path, staged: Path, checkpoint: str | os.PathLike[str] | None) -> None:
    """Model, records and card of a folder, and the checkpoint that is named, or else its own."""
    stage(source, staged)
    if checkpoint is not None:
        folder = folder_path(checkpoint)
        stage_checkpoint(folder, staged / "checkpoint", folder)
    elif (source / "checkpoint" / STATE).is_file():
        stage_checkpoint(source / "checkpoint", staged / "checkpoint", source)


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
    except Interrupted as error:  # after it was sent
        raise Interrupted(f"{folder} is written; {error}") from None
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
        error.args = (text.replace(str(temporary), name),)  # some of its kind are not made from one text
        raise


def _write_records(generator: Generator, folder: Path) -> None:
    """Beside the model what is recorded of how its weights were made, if they are still those."""
    for name, record in generator.records.items():
        if "dtype" in record:  # as which it was loaded, and is written now
            record = {**record, "dtype": str(generator.dtype).removeprefix("torch.")}
        text = json.dumps(record, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _check_same(model: ZooModel, folder: Path, variant: str | None) -> None:
    """Raise `WeightsError` unless the folder holds this very model, weights and picture."""
    again = type(model).from_pretrained(folder, variant=variant, dtype=model.dtype)
    check_same_weights(model, again)
    if isinstance(model, Generator):
        _check_same_picture(model, again.to(model.device))


@torch.no_grad()
def _check_same_picture(model: Generator, again: Generator) -> None:
    """A config that was changed after the model was built gives the same weights and other pictures."""
    latent = latents([0], model.z_dim).to(model.device, model.dtype)
    training, _ = model.training, model.eval()
    try:
        one, other = model(latent).float(), again(latent).float()
    finally:
        model.train(training)
    if one.isfinite().all() and not torch.allclose(one, other, rtol=0, atol=1e-3 * one.abs().max().item()):
        raise WeightsError(
            "what was written draws another picture than the model in memory, so it is not pushed; was its "
            "config changed after it was built?"
        )


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
    factor = max(1, SMALLEST_CELL // generator.resolution)
    sheet = Grid(count, min(factor * generator.resolution, GRID_CELL))
    try:
        for batch in pipeline.iterate(range(count), truncation_psi=truncation):
            for picture in batch.images:
                size = (factor * picture.width, factor * picture.height)
                sheet.add(picture.resize(size, PIL.Image.Resampling.NEAREST))
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


__all__ = [
    "HubError",
    "address",
    "make_repository",
    "push_folder",
    "push_model",
    "push_pipeline",
    "push_written",
    "report",
    "upload",
]

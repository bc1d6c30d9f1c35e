"""Train a generator from scratch, or fine-tune one, on one CPU, one GPU or many machines.

    accelerate launch -m training.train --preset tiny --data church.zip --output runs/tiny
    accelerate launch -m training.train --preset fine-tune --from my-church --data snow.zip --output runs/s

`train` does the work and can be imported; `python -m training.train` is the same with one process.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before all other imports, so that Ctrl-C during them is one line too. It never returns.
    from stylenat_hub.signals import caught

    with caught("interrupted; nothing was written"):
        from training.cli import main

        main()

import contextlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, set_seed
from tqdm.auto import tqdm

import stylenat_hub
from stylenat_hub.download import fetch
from stylenat_hub.errors import ConfigError, InputError
from stylenat_hub.files import check_writable, user_path
from stylenat_hub.locks import locked
from stylenat_hub.publish import make_repository
from stylenat_hub.sources import open_source
from training import checkpoints, evaluate
from training.data import Pictures, ShardSampler, check_source, loader
from training.loop import Schedule, Trainer
from training.publisher import Publisher
from training.recipes import Recipe
from training.setup import facts_of, new_players, stored_players, trained_players
from training.steps import Players

CHANGEABLE = ("images", "decay_start", "d_lr", "g_lr", "r1", "r2", "clip_d")  # by --set when a run goes on
TRACKERS = ("tensorboard", "wandb", "none")


@dataclass(frozen=True)
class Options:
    """What changes how a run is computed and watched, and not what it learns.

    mixed_precision: "no", "bf16", "fp16", or None for what `accelerate launch` says. workers: processes that
    read pictures. metric: names with commas, or none. metric_extractor, metric_weights: the network of those
    that compare features. metric_images: pictures of each set that it compares; None: 1,000, or all if the
    data has fewer. eval_data: pictures that it compares with; by default the training data. split: of a
    Hugging Face data set.
    """

    schedule: Schedule = field(default_factory=Schedule)
    mixed_precision: str | None = None
    accumulate: int = 1
    gradient_checkpointing: bool = False
    compiled: bool = False
    workers: int = 2
    strict_data: bool = False
    allow_upscaling: bool = False
    accept_changed_data: bool = False
    tracker: str = "tensorboard"
    metric: str = "swd"
    metric_extractor: str = "inception"
    metric_weights: str | None = None
    metric_images: int | None = None
    eval_data: str | None = None
    split: str = "train"
    push_to_hub: str | None = None
    private: bool = False
    license: str | None = None


def train(
    recipe: Recipe | None,
    data: str,
    output: str | Path,
    *,
    source: str | None = None,
    discriminator: str | None = None,
    resume: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    options: Options | None = None,
) -> tuple[str, Path]:
    """Run the training. Returns why it ended, and its last checkpoint.

    recipe: what to learn; None takes `tiny`, or with `resume` the checkpoint's own, which counts in any case:
    there a recipe of other networks is refused, and of `overrides` (single fields that the user asked for)
    only those in `CHANGEABLE` may differ. data: see `sources.open_source`. output: the run's folder. source,
    discriminator: trained weights to start from, see `setup.trained_players`. resume: "latest", "auto"
    (latest if there is one), a checkpoint's folder, or `hf:ORG/NAME`, what `push_to_hub` has pushed.

    Raises `StyleNATHubError`s, each one sentence.
    """
    options = options or Options()
    output = user_path(output)
    if discriminator is not None and source is None:
        raise InputError("--discriminator goes with --from: name the generator to fine-tune too")
    check_writable(output)
    checkpoint = _checkpoint(output, resume)
    checkpoints.check_output(output, checkpoint.path if checkpoint else None)
    accelerator = make_accelerator(output, options)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(output))
        if checkpoint is not None:
            recipe = resumed_recipe(checkpoint, recipe, overrides or {})
            players = stored_players(recipe, checkpoint.state)
            said = f"going on from {checkpoint.path.name}"
        elif source is not None:
            recipe = _with(recipe or Recipe.preset("fine-tune"), overrides)
            players, said = trained_players(recipe, source, discriminator)
            said = f"starting from {said}"
        else:
            recipe = _with(recipe or Recipe.preset("tiny"), overrides)
            players, said = new_players(recipe), "starting from random weights"
        pictures = open_pictures(data, players.generator.resolution, recipe, options)
        trainer = _trainer(recipe, players, pictures, accelerator, output, options)
        if options.push_to_hub and accelerator.is_main_process:
            trainer.publisher = _publisher(output, options, resumed=checkpoint is not None)
        trainer.facts["started_from"] = _name_of(source)
        if checkpoint is not None:
            _take_up(trainer, checkpoint, options)
        if accelerator.is_main_process:
            clean_up(output, trainer.images)
            _print_start(said, trainer, pictures)
        return run(trainer, pictures, options)


def _trainer(
    recipe: Recipe,
    players: Players,
    pictures: Pictures,
    accelerator: Accelerator,
    output: Path,
    options: Options,
) -> Trainer:
    """The trainer, its networks on their device and equal in all processes."""
    check_space(output, players)
    metric = evaluate.for_run(options, pictures.source, players.generator.resolution, accelerator.device)
    facts = {**facts_of(players), **run_facts(pictures)}
    for model in vars(players).values():
        model.to(accelerator.device)
    _agree(players)
    if options.gradient_checkpointing:
        players.generator.enable_gradient_checkpointing()
    # For what draws outside of `randomness`: noise in training mode, of a family that has such.
    set_seed((recipe.seed + accelerator.process_index) % 2**32)
    return Trainer(
        recipe,
        players,
        accelerator,
        output,
        schedule=options.schedule,
        facts=facts,
        metric=metric,
        accumulate=options.accumulate,
        compiled=options.compiled,
    )


def run_facts(pictures: Pictures) -> dict[str, Any]:
    """What every checkpoint says of the data and of the versions that it was made with."""
    return {
        "data": {"fingerprint": pictures.source.fingerprint, "pictures": len(pictures.source)},
        "versions": {"stylenat_hub": stylenat_hub.__version__, "torch": torch.__version__},
    }


def _take_up(trainer: Trainer, checkpoint: checkpoints.Checkpoint, options: Options) -> None:
    """Continue where the checkpoint ends."""
    if not options.accept_changed_data:
        check_same_data(checkpoint, trainer.facts["data"])
    trainer.facts["started_from"] = checkpoint.state["started_from"]
    trainer.restore(checkpoint)
    if trainer.publisher is not None and trainer.output.resolve() in checkpoint.path.resolve().parents:
        trainer.publisher.add(checkpoint.path)  # the run before may have ended before it got there
    before, now = checkpoint.state.get("precision"), trainer.accelerator.mixed_precision
    if before not in (None, now):
        trainer.accelerator.print(f"the precision was {before} and is now {now}: not the same to the bit")


def clean_up(output: Path, images: int) -> None:
    """Remove what a killed process left, and set aside the checkpoints of another branch."""
    checkpoints.remove_unfinished(output)
    for path in checkpoints.set_aside_newer(output, images):
        print(f"set aside what is after {images:,} images: {path.name}", flush=True)


def run(trainer: Trainer, pictures: Pictures, options: Options) -> tuple[str, Path]:
    accelerator = trainer.accelerator
    sampler = ShardSampler(trainer.images, trainer.recipe.batch, trainer.flat_rows)
    batches = loader(pictures, sampler, options.workers, accelerator.device.type == "cuda")
    _start_tracker(accelerator, trainer.recipe, options)
    try:
        why = trainer.run(batches)
    except BaseException:
        if trainer.publisher is not None and (lost := trainer.publisher.stop()):
            print(
                f"{lost} checkpoint(s) were not pushed, because the run failed", file=sys.stderr, flush=True
            )
        raise
    finally:
        accelerator.end_training()
    accelerator.print(f"{why}; the last checkpoint is {trainer.saved}", flush=True)
    if trainer.publisher is not None:
        trainer.publisher.close()
    return why, trainer.saved


def _publisher(output: Path, options: Options, *, resumed: bool) -> Publisher:
    """What pushes the checkpoints. Raises `HubError`, `InputError` now, not after hours, if it may not."""
    run = "resumed" if resumed else "new"
    name = make_repository(options.push_to_hub, private=options.private or None, run=run)
    return Publisher(
        name,
        output,
        private=options.private,
        license=options.license,
        say=lambda text: tqdm.write(text, file=sys.stderr),
    )


def _name_of(source: str | None) -> str | None:
    """A model's name for the record: of a folder only the last part, not where somebody keeps their files."""
    return (
        Path(source).expanduser().resolve().name if source and Path(source).expanduser().is_dir() else source
    )


def make_accelerator(output: Path, options: Options) -> Accelerator:
    if options.tracker not in TRACKERS:
        raise InputError(f"the tracker is {options.tracker!r}; allowed: {', '.join(TRACKERS)}")
    _check_tracker(options.tracker)
    precision = options.mixed_precision
    if precision not in (None, "no", "bf16", "fp16"):
        raise InputError(f"mixed_precision is {precision!r}; allowed: no, bf16, fp16")
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=None if options.tracker == "none" else options.tracker,
            project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
        )
    except ValueError as error:  # a precision that the device lacks, or a second one in the same process
        raise InputError(f"accelerate cannot start: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("float16 has too small a range on a CPU; use --mixed-precision bf16 or no")
    return accelerator


def _check_tracker(name: str) -> None:
    if name == "none":
        return
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if not there[name]():
        raise InputError(
            f"the tracker {name!r} is not installed; install it (pip install {name}), or pass --tracker "
            "none: metrics.jsonl is written in any case"
        )


def _start_tracker(accelerator: Accelerator, recipe: Recipe, options: Options) -> None:
    if options.tracker != "none":
        plain = {
            name: value if isinstance(value, (int, float, str, bool)) else str(value)
            for name, value in recipe.to_dict().items()
        }
        accelerator.init_trackers("stylenat_hub", plain)


def _checkpoint(output: Path, resume: str | None) -> checkpoints.Checkpoint | None:
    if resume is None or (resume == "auto" and not checkpoints.list_checkpoints(output)):
        return None
    if resume.startswith("hf:"):
        return checkpoints.find_checkpoint(output, str(_from_hub(resume.removeprefix("hf:"))))
    return checkpoints.find_checkpoint(output, "latest" if resume == "auto" else resume)


def _from_hub(name: str) -> Path:
    """The checkpoint that a run has pushed. name: `ORG/NAME`, or `ORG/NAME@REVISION`."""
    name, _, revision = name.partition("@")
    folder = fetch(name, ["checkpoint/*"], revision=revision or None) / "checkpoint"
    if not folder.is_dir():
        raise InputError(
            f"the Hub repository {name!r} has no checkpoint to go on from; only training with --push-to-hub, "
            "or training.export with --with-checkpoint, puts one there (start from its weights by --from)"
        )
    return folder


def _with(recipe: Recipe, overrides: Mapping[str, Any] | None) -> Recipe:
    """The recipe with single fields replaced. Raises `ConfigError`."""
    return Recipe.from_dict({**recipe.to_dict(), **(overrides or {})})


def resumed_recipe(
    checkpoint: checkpoints.Checkpoint, recipe: Recipe | None, overrides: Mapping[str, Any]
) -> Recipe:
    """The checkpoint's recipe, with a new length if one is asked for."""
    own = Recipe.from_dict(checkpoint.state["recipe"])
    for name in ("family", "shape", "generator", "discriminator") if recipe else ():
        if getattr(recipe, name) != getattr(own, name):
            raise ConfigError(
                f"the run in {str(checkpoint.path)!r} is of another recipe: its {name} is "
                f"{getattr(own, name)!r}, not {getattr(recipe, name)!r}; leave out --preset to go on with it"
            )
    asked = _with(own, overrides)
    for name in overrides:
        # Lazy or not decides on Adam's beta, and with it on what its moments mean.
        allowed = name in CHANGEABLE and asked.lazy == own.lazy
        if not allowed and getattr(asked, name) != getattr(own, name):
            raise ConfigError(
                f"the run in {str(checkpoint.path)!r} has {name} = {getattr(own, name)!r}, not "
                f"{getattr(asked, name)!r}; leave it out to go on, or start a new run from an export with "
                "--from"
            )
    return asked


def open_pictures(data: str, resolution: int, recipe: Recipe, options: Options) -> Pictures:
    source = open_source(data, options.split)
    check_source(source, resolution, options.allow_upscaling)
    return Pictures(
        source,
        resolution,
        flip=recipe.flip,
        seed=recipe.seed,
        strict=options.strict_data,
        allow_upscaling=options.allow_upscaling,
    )


def check_same_data(checkpoint: checkpoints.Checkpoint, data: Mapping[str, Any]) -> None:
    before = checkpoint.state["data"]
    if before["fingerprint"] != data["fingerprint"]:
        raise InputError(
            f"the data has changed since the checkpoint ({before['pictures']} pictures then, "
            f"{data['pictures']} now, other names or sizes); give the same data, or add --accept-changed-data"
        )


def check_space(output: Path, players: Any) -> None:
    """Raise `InputError` if not even one checkpoint fits the disk, before hours are spent."""
    needed = checkpoints.required_bytes(vars(players))
    nearest = next(path for path in (output, *output.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise InputError(
            f"the disk of {str(output)!r} has {free / 2**20:,.0f} MiB free, and a checkpoint takes about "
            f"{needed / 2**20:,.0f} MiB; free some space or name another --output"
        )


@torch.no_grad()
def _agree(players: Any) -> None:
    """Give all processes the weights of the first one, which matters if machines differ."""
    for model in vars(players).values():
        for tensor in model.state_dict().values():
            tensor.copy_(broadcast(tensor))


def _print_start(said: str, trainer: Trainer, pictures: Pictures) -> None:
    recipe, players = trainer.recipe, trainer.players
    precision = trainer.accelerator.mixed_precision.replace("no", "float32")
    sizes = [
        sum(p.numel() for p in model.parameters()) for model in (players.generator, players.discriminator)
    ]
    print(
        f"{said}; {players.generator.resolution} px, generator {sizes[0]:,} and discriminator {sizes[1]:,} "
        f"parameters; {len(pictures.source):,} pictures; batch {recipe.batch} on "
        f"{trainer.accelerator.num_processes} process(es), {trainer.accelerator.device.type}, "
        f"{torch.get_num_threads()} thread(s), precision {precision}; image {trainer.images:,} of "
        f"{recipe.images:,}",
        flush=True,
    )

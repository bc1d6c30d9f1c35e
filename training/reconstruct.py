"""Train VQ-HiT to give pictures back: the loop of `training.train` with another loss, on one process.

    python -m training.reconstruct --data churches.zip --output runs/vq --images 20000

Checkpoints, logs, the average and what happens on Ctrl-C are those of the loop; so is `--resume`, to the bit
where the length stays the same.
The run's folder gets `autoencoder/`, the averaged model, for `VQHiT.from_pretrained`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from stylenat_hub import signals
from stylenat_hub.errors import ConfigError, InputError
from stylenat_hub.files import check_writable, user_path
from stylenat_hub.locks import locked
from stylenat_hub.models.config import is_number
from stylenat_hub.models.hit.autoencoder import Reconstruction, VQHiT
from stylenat_hub.models.hit.config import HiTDiscriminatorConfig, VQHiTConfig
from stylenat_hub.models.hit.discriminator import HiTDiscriminator
from stylenat_hub.options import one_sentence, parse_path
from stylenat_hub.pictures import write_picture
from training import checkpoints, evaluate, train
from training.cli import parse_set
from training.data import Pictures
from training.loop import Schedule, Trainer
from training.monitor import SAMPLES, Metric
from training.recipes import Recipe
from training.states import check_autoencoder
from training.steps import Game, Players, Scalars, Shard

# HiT's small recipe; what it does not say is the step's own, see `ReconstructionGame`.
RECIPE = {"bcr_real": 0.0, "bcr_fake": 0.0, "g_lr": 1e-3}
RESTART_EVERY = 1_000  # images; in the first half of a run, so that the codes then have time to settle
COLUMNS = 8  # of the grid
# Fields of a recipe that change nothing here: of the networks, and without a discriminator its own.
_UNUSED = ("family", "shape", "generator", "discriminator", "freeze_d", "together")
_OF_THE_DISCRIMINATOR = (
    *("d_lr", "loss", "r1", "r2", "penalty_every", "bcr_real", "bcr_fake", "bcr_policy"),
    *("augment", "ada_target", "ada_speed", "clip_d"),
)
_BATCH = 32


class ReconstructionGame(Game):
    """The generator is an autoencoder: it draws from the pictures themselves and minimises the mean absolute
    error, plus the codebook's loss, plus `adversarial` times the loss of a generator.

    adversarial: with 0 there is no discriminator's step. Source of the sum: arXiv 2012.09841, without its
    perceptual loss.
    """

    def __init__(self, recipe: Recipe, players: Players, *, adversarial: float = 0.0, **options: Any) -> None:
        super().__init__(recipe, players, **options)
        self.adversarial, self.drawn = adversarial, None
        self.draw = self._reconstruct

    def _reconstruct(self, pictures: torch.Tensor) -> torch.Tensor:
        self.drawn: Reconstruction = self.players.generator(pictures)
        return self.drawn.images

    def step(self, shards: Sequence[Shard], seen: int, *, penalise: bool) -> Scalars:
        if self.adversarial > 0:
            return super().step(shards, seen, penalise=penalise)
        self.set_rates(self.recipe.rate_factor(seen))
        scalars = self.update_generator(shards)
        self.update_average(seen)
        return scalars

    def generator_loss(self, shard: Shard, fake: torch.Tensor | None = None) -> tuple[torch.Tensor, Scalars]:
        """fake: the reconstruction of this shard that was drawn last; by default a new one."""
        with self.autocast():
            fake = self.draw(shard.z_g) if fake is None else fake
        error = (fake.float() - shard.real).abs().mean()
        loss, scalars = error + self.drawn.loss, {"l1": error.detach(), "codebook": self.drawn.loss.detach()}
        if self.adversarial > 0:
            game, more = super().generator_loss(shard, fake)
            loss, scalars = loss + self.adversarial * game, scalars | {"adversarial": more["g_loss"]}
        return loss, {**scalars, "g_loss": loss.detach()}


class ReconstructionTrainer(Trainer):
    """The loop, with pictures in the place of latents. shown: uint8 [N, 3, R, R], what the grids show."""

    def __init__(self, *args: Any, adversarial: float, shown: torch.Tensor, **options: Any) -> None:
        self.adversarial, self.shown = adversarial, shown
        super().__init__(*args, **options)

    def new_game(self, recipe: Recipe, players: Players, **options: Any) -> Game:
        return ReconstructionGame(recipe, players, adversarial=self.adversarial, **options)

    def drawn_from(self) -> dict[str, torch.Tensor]:
        return {name: torch.empty(self.recipe.batch, 0) for name in ("z_d", "z_g")}

    def shards(self, pictures: torch.Tensor) -> list[Shard]:
        return [dataclasses.replace(s, z_d=s.real, z_g=s.real) for s in super().shards(pictures)]

    def step(self, pictures: torch.Tensor) -> None:
        if self.images == 0:
            for model in (self.players.generator, self.players.average):
                model.seed_codebook(self.normalised(pictures))
        elif self.images % RESTART_EVERY < self.recipe.batch and self.images <= self.recipe.images // 2:
            self.players.generator.seed_codebook(self.normalised(pictures), unused=True)
        super().step(pictures)

    def _know_mean_style(self) -> None:
        """An autoencoder has none."""

    @torch.no_grad()
    def _sample(self) -> None:
        images = self.players.average(self.normalised(self.shown)).images
        path = self.output / SAMPLES / f"images-{self.images:09d}.png"
        again = as_bytes(images, self.mean, self.std)
        write_picture(pairs(self.shown, again), path, {"images": str(self.images)})


def as_bytes(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The network's pictures [B, 3, R, R] -> uint8, on the CPU."""
    return ((images.float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def pairs(originals: torch.Tensor, reconstructions: torch.Tensor) -> Image.Image:
    """uint8 [N, 3, R, R] each -> rows of originals, each above its reconstructions."""
    rows = []
    for start in range(0, len(originals), COLUMNS):
        for pictures in (originals, reconstructions):
            row = pictures[start : start + COLUMNS]
            blank = row.new_full((min(COLUMNS, len(originals)) - len(row), *row.shape[1:]), 255)
            rows.append(torch.cat([*row, *blank], dim=2))
    return Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy())


def reconstruction_error(pictures: Pictures, count: int, batch: int = _BATCH) -> Metric:
    """How far the first `count` pictures are from what the model makes of them: mean absolute error in the
    network's range (-1 to 1), PSNR in dB of the mean squared error over all of them as bytes would be
    (range 0 to 1, clipped), and how many of the codes they need."""

    @torch.no_grad()
    def measure(model: VQHiT) -> Mapping[str, float]:
        device = next(model.parameters()).device
        mean, std = (torch.tensor(model.config[f"image_{n}"], device=device) for n in ("mean", "std"))
        mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
        absolute, squared, used = 0.0, 0.0, set()
        for start in range(0, count, batch):
            rows = [pictures[i] for i in range(start, min(start + batch, count))]
            real = torch.stack(rows).to(device).float() / 255
            images, _, indices = model((real - mean) / std)
            absolute += (images - (real - mean) / std).abs().mean().item() * len(rows)
            squared += ((images * std + mean).clamp(0, 1) - real).square().mean().item() * len(rows)
            used.update(indices.unique().tolist())
        psnr = -10 * torch.tensor(max(squared / count, 1e-12)).log10().item()
        return {"eval_l1": absolute / count, "eval_psnr": psnr, "eval_codes": float(len(used))}

    return measure


def new_players(config: VQHiTConfig, recipe: Recipe) -> Players:
    """The networks with random weights, which follow from the recipe's seed. Raises `InputError` where no
    discriminator is known for the resolution."""
    torch.manual_seed(recipe.seed)
    model, judge = _networks(config.to_dict())
    average = copy.deepcopy(model).eval().requires_grad_(False)
    return Players(model.train(), judge.train(), average)


def _networks(config: Mapping[str, Any]) -> tuple[VQHiT, HiTDiscriminator]:
    """The autoencoder with this config, and the discriminator of its size."""
    typed, presets = VQHiTConfig.from_dict(config), HiTDiscriminatorConfig.presets
    name = next((n for n, preset in presets.items() if preset["resolution"] == typed.resolution), None)
    if name is None:
        raise InputError(f"no preset of HiT's discriminator is for {typed.resolution} px")
    return VQHiT(typed), HiTDiscriminator(HiTDiscriminatorConfig.preset(name))


def reconstruct(
    data: str,
    output: str | Path,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: str | None = None,
    adversarial: float | None = None,
    eval_data: str | None = None,
    options: train.Options | None = None,
) -> tuple[str, Path]:
    """Run the training. Returns why it ended, and its last checkpoint.

    data, output: as in `train.train`. preset: of `VQHiTConfig`, by default tiny. overrides: fields of the
    recipe, of those that count here. resume: "latest", the newest checkpoint of the folder, or "auto", that
    or none; its networks, recipe and losses count: another preset or another `adversarial` is refused.
    adversarial: weight of HiT's discriminator, by default 0, which is none. eval_data: the pictures that are
    measured and shown; by default the first ones of data.

    Raises `StyleNATHubError`s, each one sentence.
    """
    options, output = options or train.Options(), user_path(output)
    check_writable(output)
    if resume not in (None, "latest", "auto"):
        raise InputError(f"resume is {resume!r}; allowed: latest or auto")
    checkpoint = checkpoints.newest_checkpoint(output) if resume else None
    if resume == "latest" and checkpoint is None:
        raise InputError(f"there is no checkpoint to go on from in {str(output)!r}; leave out --resume")
    if adversarial is not None and not is_number(adversarial, -1e-300, 1e9):
        raise InputError(f"adversarial is {adversarial}; allowed: a finite number from 0")
    checkpoints.check_output(output, checkpoint.path if checkpoint else None)
    accelerator = train.make_accelerator(output, options)
    if accelerator.num_processes > 1:
        raise InputError("VQ-HiT trains on one process; start it with python -m training.reconstruct")
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(output))
        if checkpoint is not None:
            recipe, config, weight = _stored(checkpoint, overrides or {})
            _check_same(checkpoint, preset, config, adversarial, weight)
        else:
            preset, weight = preset or "tiny", adversarial or 0.0
            config = VQHiTConfig.preset(preset)
            recipe = _recipe(preset, weight, overrides or {})
        sources = (data, eval_data or data)
        trainer, pictures = _trainer(recipe, config, weight, sources, output, options, accelerator)
        if checkpoint is not None:
            if not options.accept_changed_data:
                train.check_same_data(checkpoint, trainer.facts["data"])
            trainer.restore(checkpoint)
        train.clean_up(output, trainer.images)
        why, saved = train.run(trainer, pictures, options)
        trainer.players.average.save_pretrained(output / VQHiT.component)
        return why, saved


def _recipe(preset: str, weight: float, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of a new run. Raises `ConfigError` for a field that would change nothing."""
    unused = (*_UNUSED, *(() if weight > 0 else _OF_THE_DISCRIMINATOR))
    for name in overrides:
        if name in unused:
            why = "without --adversarial there is no discriminator" if name not in _UNUSED else "set --preset"
            raise ConfigError(f"{name} changes nothing in this training ({why}); leave it out")
    return Recipe.preset("hit-tiny", **{**RECIPE, "shape": preset, **overrides})


def _stored(
    checkpoint: checkpoints.Checkpoint, overrides: Mapping[str, Any]
) -> tuple[Recipe, VQHiTConfig, float]:
    facts = checkpoint.state
    if "autoencoder" not in facts:
        raise InputError(
            f"{str(checkpoint.path)!r} is of a generator, not of VQ-HiT; go on with it by training.train"
        )
    check_autoencoder(checkpoints.said_by(checkpoint.path), facts, checkpoint.tensors, _networks)
    recipe = train.resumed_recipe(checkpoint, None, overrides)
    return recipe, VQHiTConfig.from_dict(facts["autoencoder"]), float(facts["adversarial"])


def _check_same(
    checkpoint: checkpoints.Checkpoint,
    preset: str | None,
    config: VQHiTConfig,
    adversarial: float | None,
    weight: float,
) -> None:
    """Raise `ConfigError` if the user asks for other networks (`preset`) or another weight (`adversarial`)
    than the checkpoint has (`config`, `weight`)."""
    if preset is not None and VQHiTConfig.preset(preset) != config:
        raise ConfigError(
            f"the run in {str(checkpoint.path)!r} has other networks than the preset {preset!r}; leave out "
            "--preset to go on with it"
        )
    if adversarial not in (None, weight):
        raise ConfigError(
            f"the run in {str(checkpoint.path)!r} has adversarial = {weight}, not {adversarial}; leave out "
            "--adversarial to go on with it"
        )


def _trainer(
    recipe: Recipe,
    config: VQHiTConfig,
    adversarial: float,
    sources: tuple[str, str],
    output: Path,
    options: train.Options,
    accelerator: Any,
) -> tuple[ReconstructionTrainer, Pictures]:
    """sources: what to learn from, and what to measure and show."""
    players = new_players(config, recipe)
    train.check_space(output, players)
    pictures = train.open_pictures(sources[0], config.resolution, recipe, options)
    still = dataclasses.replace(recipe, flip=False)
    measured = train.open_pictures(sources[1], config.resolution, still, options)
    count = min(options.metric_images or evaluate.DEFAULT_IMAGES, len(measured))
    shown = torch.stack([measured[i] for i in range(min(options.schedule.samples, len(measured)))])
    facts = {
        "autoencoder": config.to_dict(),
        "adversarial": adversarial,
        **train.run_facts(pictures),
    }
    for model in vars(players).values():
        model.to(accelerator.device)
    trainer = ReconstructionTrainer(
        recipe,
        players,
        accelerator,
        output,
        schedule=options.schedule,
        facts=facts,
        metric=reconstruction_error(measured, count),
        adversarial=adversarial,
        shown=shown,
    )
    return trainer, pictures


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[str, typer.Option(metavar="PATH", help="Pictures, as of training.train.")],
    output: Annotated[Path, typer.Option(parser=parse_path, metavar="DIR", help="The run's folder.")],
    preset: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(VQHiTConfig.presets)}. [default: tiny]")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Length of the training, in images.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, data order and flips.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the recipe; repeat.")
    ] = None,
    adversarial: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of HiT's discriminator; 0: none. [default: 0]")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="latest|auto", help="Go on; auto starts anew without a checkpoint.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Pictures that are measured and shown.")
    ] = None,
    every: Annotated[
        int, typer.Option(min=1, help="Images between checkpoints, grids and figures.")
    ] = 10_000,
    samples: Annotated[int, typer.Option(min=1, max=256, help="Pictures in a grid.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    allow_upscaling: Annotated[bool, typer.Option("--allow-upscaling", help="Enlarge small ones.")] = False,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Go on although the data is not the same.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train VQ-HiT: pictures to a grid of codes, and back through HiT's stages."""
    with one_sentence(debug, "interrupted; the checkpoints that are there are whole"):
        given = {"images": images, "batch": batch, "seed": seed}
        overrides = {name: value for name, value in given.items() if value is not None}
        schedule = Schedule(checkpoint_every=every, sample_every=every, metric_every=every, samples=samples)
        options = train.Options(
            schedule=schedule,
            mixed_precision=mixed_precision,
            workers=workers,
            allow_upscaling=allow_upscaling,
            accept_changed_data=accept_changed_data,
            tracker="none",
        )
        reconstruct(
            data,
            output,
            preset=preset,
            overrides={**overrides, **parse_set(set_ or [])},
            resume=resume,
            adversarial=adversarial,
            eval_data=eval_data,
            options=options,
        )


if __name__ == "__main__":
    with signals.caught("interrupted; the checkpoints that are there are whole"):
        app(prog_name="python -m training.reconstruct")

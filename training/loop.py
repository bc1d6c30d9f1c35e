"""The training loop: batches in, checkpoints, logs and pictures out, until done or asked to stop.

Everything random follows from the recipe's seed and the number of images seen (`randomness.py`), or from
states that checkpoints keep, so a run that was stopped and resumed is, on the same machine, the uninterrupted
run to the bit.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from stylenat_hub import attention
from stylenat_hub.errors import InputError, StyleNATHubError, TrainingError
from stylenat_hub.models.config import is_whole
from stylenat_hub.pipeline import GANPipeline
from training import checkpoints
from training.augment import adjust_ada, take
from training.monitor import Metric, Monitor
from training.publisher import Publisher
from training.randomness import shard_rows, stream
from training.recipes import Recipe
from training.steps import Game, Players, Shard, augmentations

PATIENCE = 5.0  # seconds, from one Ctrl-C to the next, after which the second is meant


@dataclass(frozen=True)
class Schedule:
    """How often things happen, in images; 0 is never. log_every: in steps.

    stop_at: images after which this call ends with a checkpoint, while the recipe's schedule stays as it is.
    checkpoints_total_limit: how many are kept, None: all. samples: pictures in a grid.
    """

    log_every: int = 20
    checkpoint_every: int = 50_000
    checkpoints_total_limit: int | None = None
    sample_every: int = 20_000
    samples: int = 64
    metric_every: int = 50_000
    stop_at: int | None = None

    def __post_init__(self) -> None:
        for name in ("log_every", "samples", "checkpoints_total_limit", "stop_at"):
            self._require(name, 1)
        for name in ("checkpoint_every", "sample_every", "metric_every"):
            self._require(name, 0)

    def _require(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if value is not None and not is_whole(value, low, 1 << 50):
            raise InputError(f"Schedule.{name} is {value!r}; allowed: a whole number from {low}")


class _Dropped(KeyboardInterrupt):
    """A signal during work that may be dropped; a KeyboardInterrupt, so that nothing else swallows it."""


class Trainer:
    """One run. Every process makes one, with the same arguments.

    players: on the accelerator's device. output: the run's folder. facts: plain data for `state.json`
    (configs, where weights came from, the data's fingerprint). metric: of the averaged generator.
    accumulate: forward and backward passes per step and process. compiled: draw through torch.compile.
    publisher: of the main process, what takes checkpoints to the Hub.
    """

    def __init__(
        self,
        recipe: Recipe,
        players: Players,
        accelerator: Accelerator,
        output: Path,
        *,
        schedule: Schedule | None = None,
        facts: dict[str, Any] | None = None,
        metric: Metric | None = None,
        accumulate: int = 1,
        compiled: bool = False,
        publisher: Publisher | None = None,
    ) -> None:
        self.recipe, self.players, self.accelerator, self.output = recipe, players, accelerator, output
        self.schedule, self.facts, self.metric = schedule or Schedule(), facts or {}, metric
        self.accumulate, self.publisher = accumulate, publisher
        self.images, self.seconds, self.strength = 0, 0.0, 0.0 if recipe.augment == "ada" else 1.0
        self.saved: Path | None = None
        config = players.generator.config
        self.mean = torch.tensor(config["image_mean"], device=accelerator.device).view(3, 1, 1)
        self.std = torch.tensor(config["image_std"], device=accelerator.device).view(3, 1, 1)
        consistency, augment = augmentations(recipe, config)
        if compiled:
            attention.keep_out_of_compilation()
        several = accelerator.num_processes > 1
        self.game = self.new_game(
            recipe,
            players,
            reduce=(lambda tensor: accelerator.reduce(tensor, "mean")) if several else None,
            autocast=accelerator.autocast,
            consistency=consistency,
            augment=augment,
            draw=torch.compile(players.generator, dynamic=False) if compiled else None,
            scaled=accelerator.mixed_precision == "fp16",
        )
        self.rows = self._my_rows()
        self.monitor: Monitor | None = None
        self._signal: int | None = None
        self._droppable = False
        self._mean_style_of: int | None = None  # images

    def new_game(self, recipe: Recipe, players: Players, **options: Any) -> Game:
        """What plays; options: those of `Game`. A run that learns something else has its own."""
        return Game(recipe, players, **options)

    @property
    def flat_rows(self) -> list[int]:
        """The rows of each batch that this process needs, in the order in which it expects them."""
        return [row for rows in self.rows for row in rows]

    def _my_rows(self) -> list[list[int]]:
        """Per forward and backward pass the rows of the batch that this process computes."""
        shards = self.accelerator.num_processes * self.accumulate
        group = self.players.discriminator.stddev_group
        first = self.accelerator.process_index * self.accumulate
        return [shard_rows(self.recipe.batch, group, shards, first + i) for i in range(self.accumulate)]

    def shards(self, pictures: torch.Tensor) -> list[Shard]:
        """The shards of the next step from this process's uint8 pictures [B', 3, R, R]."""
        recipe, device = self.recipe, self.accelerator.device
        real = self.normalised(pictures)
        drawn_from = self.drawn_from()
        draws = self.game.draws(lambda name: stream(recipe.seed, name, self.images), self.strength)
        shards = []
        for part, rows in zip(real.split([len(rows) for rows in self.rows]), self.rows, strict=True):
            own = {name: latent[rows].to(device) for name, latent in drawn_from.items()}
            shards.append(Shard(part, **own, draws={name: take(d, rows) for name, d in draws.items()}))
        return shards

    def normalised(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, R, R] -> the network's pictures, on its device."""
        device = self.accelerator.device
        return (pictures.to(device, non_blocking=True).float() / 255 - self.mean) / self.std

    def drawn_from(self) -> dict[str, torch.Tensor]:
        """The whole next batch's latents [B, z_dim] of both steps."""
        recipe, z_dim = self.recipe, self.players.generator.z_dim
        return {
            purpose: torch.randn(recipe.batch, z_dim, generator=stream(recipe.seed, purpose, self.images))
            for purpose in ("z_d", "z_g")
        }

    def run(self, batches: Iterable[torch.Tensor]) -> str:
        """Train on uint8 pictures of `flat_rows`, batch after batch, from `images` on. Returns why it ended.

        Raises:
            TrainingError: losses or weights are not finite; it names the last good checkpoint.
            InputError: the system refuses to write.
        """
        end = min(self.recipe.images, self.schedule.stop_at or self.recipe.images)
        self.monitor = Monitor(
            self.output, self.accelerator, images=self.images, total=end, seconds=self.seconds
        )
        with self._signals(), contextlib.closing(self.monitor):
            batches = iter(batches)
            if self.images == 0:  # what is there before training, or before fine-tuning
                if self.schedule.sample_every:
                    self._on_main(self._sample)
                if self.metric is not None and self.schedule.metric_every:
                    self._on_main(self._measure)
            while not (stopping := self._asked_to_stop()) and self.images < end:
                self.step(self._next(batches))
            self._finish()
        if stopping:
            return f"stopped by {signal.Signals(self._signal or signal.SIGTERM).name}"
        return "finished" if self.images >= self.recipe.images else "stopped at the asked number of images"

    def _next(self, batches: Iterator[torch.Tensor]) -> torch.Tensor:
        """The next pictures. If the data fails, what was learned so far is saved first; of several processes
        only one may have noticed, and they save together or not at all."""
        try:
            return next(batches)
        except (StyleNATHubError, RuntimeError) as error:
            if self.accelerator.num_processes == 1 and self.images > 0:
                self._finish()
            if isinstance(error, StyleNATHubError):
                raise
            raise InputError(
                f"reading pictures failed ({' '.join(str(error).split())}); if a worker was killed, memory "
                "is short: try fewer --workers"
            ) from error

    def step(self, pictures: torch.Tensor) -> None:
        """One step and whatever is due after it."""
        number = self.images // self.recipe.batch
        penalise = number % self.recipe.penalty_every == 0
        scalars = self.game.step(self.shards(pictures), self.images, penalise=penalise)
        self.images += self.recipe.batch
        if self.recipe.augment == "ada":
            sign = float(self.accelerator.reduce(scalars["d_sign"], "mean"))
            self.strength = adjust_ada(
                self.strength, sign, self.recipe.batch, self.recipe.ada_target, self.recipe.ada_speed
            )
        assert self.monitor is not None
        self.monitor.add(scalars, self.images)
        if number % self.schedule.log_every == self.schedule.log_every - 1:
            self._log()
        if self._due(self.schedule.checkpoint_every):
            self.save()  # first, because whatever goes wrong below is not worth the steps before it
        if self._due(self.schedule.sample_every):
            self._on_main(self._sample)
        if self.metric is not None and self._due(self.schedule.metric_every):
            self._on_main(self._measure)

    def _due(self, every: int) -> bool:
        """Has this step passed a multiple of `every` images?"""
        return every > 0 and self.images // every > (self.images - self.recipe.batch) // every

    def _log(self) -> None:
        assert self.monitor is not None
        extra = {"g_lr": self.game.g_optimizer.param_groups[0]["lr"]}
        extra["d_lr"] = self.game.d_optimizer.param_groups[0]["lr"]
        if self.recipe.augment == "ada":
            extra["ada_strength"] = self.strength
        row = self.monitor.flush(self.images, extra)
        if self.publisher is not None:
            self.publisher.poll()
        wrong = [name for name in ("d_loss", "g_loss", "r1", "r2") if not math.isfinite(row.get(name) or 0.0)]
        if wrong:
            raise TrainingError(self._diverged(f"{wrong[0]} is {row[wrong[0]]}"))

    def _diverged(self, what: str) -> str:
        good = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        return (
            f"the training diverged before {self.images:,} images: {what}; {good}; resume from it with "
            "lower rates (--set d_lr=... --set g_lr=...), a higher --set r1=..., or --mixed-precision no"
        )

    def _on_main(self, work: Callable[[], None]) -> None:
        """Do in the main process what may be dropped if the run is to stop: a grid, a measurement."""
        if self.accelerator.is_main_process and self._signal is None:
            self._droppable = True
            try:
                work()
            except _Dropped:
                pass
            finally:
                self._droppable = False
        self.accelerator.wait_for_everyone()

    def _know_mean_style(self) -> None:
        """Estimate the averaged generator's `w_avg`, once per state: checkpoint and grid often coincide."""
        if self._mean_style_of != self.images:
            self.players.average.estimate_w_avg()
            self._mean_style_of = self.images

    def _pipeline(self) -> GANPipeline:
        self._know_mean_style()
        pipeline = GANPipeline(generator=self.players.average)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _sample(self) -> None:
        assert self.monitor is not None
        self.monitor.grid(self._pipeline(), self.images, self.schedule.samples)

    def _measure(self) -> None:
        assert self.monitor is not None and self.metric is not None
        self.monitor.bar.set_description("measuring")
        try:
            row = dict(self.metric(self.players.average))
        finally:
            self.monitor.bar.set_description(None)
        self.monitor.write(self.images, row)
        self.monitor.say(
            f"{self.images:,} images: " + ", ".join(f"{name} {value:.2f}" for name, value in row.items())
        )

    def _finish(self) -> None:
        if self.monitor is not None and self.monitor.sums:
            self._log()
        self.save()

    def save(self) -> None:
        """Write a checkpoint, unless one of this very state is there. Called by all processes together."""
        self._check_weights()
        final = self.output / checkpoints.FOLDER / checkpoints.checkpoint_name(self.images)
        if self.saved == final:
            return
        generators = self._random_states()
        if self.accelerator.is_main_process:
            self._know_mean_style()
            checkpoints.save_checkpoint(self.output, self.images, self._tensors(generators), self._state())
            if self.publisher is not None:
                self.publisher.add(final)
            checkpoints.remove_old(self.output, self.schedule.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()
        self.saved = final

    def _check_weights(self) -> None:
        for name, model in vars(self.players).items():
            if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
                raise TrainingError(self._diverged(f"weights of the {name} are not finite"))

    def _random_states(self) -> checkpoints.Tensors:
        """The states of torch's global generators of every process: training mode's noise comes from them."""
        device = self.accelerator.device
        states = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(device)
        gathered = {kind: self.accelerator.gather(s[None].to(device)).cpu() for kind, s in states.items()}
        return {f"{kind}{i}": state for kind, rows in gathered.items() for i, state in enumerate(rows)}

    def _tensors(self, generators: checkpoints.Tensors) -> dict[str, checkpoints.Tensors]:
        players, game = self.players, self.game
        return {
            **{name: model.state_dict() for name, model in vars(players).items()},
            "g_optimizer": checkpoints.optimizer_tensors(game.g_optimizer, players.generator),
            "d_optimizer": checkpoints.optimizer_tensors(game.d_optimizer, players.discriminator),
            "rng": generators,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "seconds": self.monitor.elapsed() if self.monitor else self.seconds,
            "ada_strength": self.strength,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "scalers": {"g": self.game.g_scaler.state_dict(), "d": self.game.d_scaler.state_dict()},
            **self.facts,
        }

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint. Raises `WeightsError` if it does not fit these networks."""
        state, tensors = checkpoint.state, checkpoint.tensors
        for name, model in vars(self.players).items():
            checkpoints.restore_model(model, tensors[name], name)
        game = self.game
        checkpoints.restore_optimizer(game.g_optimizer, self.players.generator, tensors["g_optimizer"])
        checkpoints.restore_optimizer(game.d_optimizer, self.players.discriminator, tensors["d_optimizer"])
        for scaler, name in ((game.g_scaler, "g"), (game.d_scaler, "d")):
            if scaler.is_enabled() and state["scalers"][name]:
                scaler.load_state_dict(state["scalers"][name])
        # With more processes than before, the new ones keep their fresh generators.
        index, device = self.accelerator.process_index, self.accelerator.device
        if f"cpu{index}" in tensors["rng"]:
            torch.set_rng_state(tensors["rng"][f"cpu{index}"])
        if f"cuda{index}" in tensors["rng"] and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng"][f"cuda{index}"], device)
        self.images, self.seconds, self._mean_style_of = state["images"], state["seconds"], None
        self.strength, self.saved = state["ada_strength"], checkpoint.path

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the step in progress end after SIGINT or SIGTERM; a SIGINT some time later interrupts."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets only the main thread handle signals
            return

        first = 0.0

        def remember(number: int, _frame: Any) -> None:
            nonlocal first
            if self._signal is not None:
                # Launchers pass on what the terminal sends anyway, so a repetition at once means nothing.
                if number == signal.SIGINT and time.monotonic() - first > PATIENCE:
                    raise KeyboardInterrupt
                return
            self._signal, first = number, time.monotonic()
            if self.monitor is not None:
                self.monitor.say(f"{signal.Signals(number).name}: saving a checkpoint after this step")
            if self._droppable:
                raise _Dropped

        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked_to_stop(self) -> bool:
        """Did any process get a signal? All must agree, because all save together."""
        asked = self._signal is not None
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.accelerator.device)
        return float(self.accelerator.reduce(flag, "sum")) > 0

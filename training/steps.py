"""One step of the game between generator and discriminator: losses, gradients, updates. No files, no data.

Legend: B batch of this shard, R side of the pictures. Pictures are [B, 3, R, R], normalised as the
generator's. The order in which the discriminator sees pictures is the original's, because each of its calls
in training mode moves its spectral norm by one power iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from training.adam import KerasAdam
from training.augment import Augmentation, Consistency, Draws, make_augmentation
from training.ema import ema_decay, update_ema
from training.losses import LOSSES, balanced_consistency, gradient_penalty, weighted_penalty
from training.recipes import Recipe

Scalars = dict[str, torch.Tensor]  # what is logged: detached, on the device, means over the shard


@dataclass
class Players:
    """The three networks. average: the generator with averaged weights, which draws the pictures."""

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module


@dataclass
class Shard:
    """What one forward and backward pass needs.

    real [B, 3, R, R]; z_d, z_g [B, z_dim]: latents of D's step and of G's. draws: random numbers of the
    augmentations by purpose, the rows of this shard.
    """

    real: torch.Tensor
    z_d: torch.Tensor
    z_g: torch.Tensor
    draws: dict[str, Draws] = field(default_factory=dict)


class Game:
    """The updates of both players.

    players: on their device, in training mode. reduce: averages a tensor over all processes; None for one
    process. autocast: makes the context of mixed precision. consistency, augment: the augmentation of bCR,
    and the one in front of the discriminator, or None. draw: the generator as it is called, perhaps compiled.
    scaled: float16, which needs its losses scaled.
    """

    def __init__(
        self,
        recipe: Recipe,
        players: Players,
        *,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        consistency: Augmentation | None = None,
        augment: Augmentation | None = None,
        draw: Callable[[torch.Tensor], torch.Tensor] | None = None,
        scaled: bool = False,
    ) -> None:
        self.recipe, self.players = recipe, players
        self.reduce, self.autocast = reduce, autocast
        self.consistency, self.augment = consistency, augment
        self.draw = players.generator if draw is None else draw
        self.loss = LOSSES[recipe.loss]
        self.g_optimizer, self.d_optimizer = optimizers(recipe, players)
        self.learning = [p for p in players.discriminator.parameters() if p.requires_grad]
        device = next(players.generator.parameters()).device.type
        self.g_scaler = torch.amp.GradScaler(device, enabled=scaled)
        self.d_scaler = torch.amp.GradScaler(device, enabled=scaled)

    def step(self, shards: Sequence[Shard], seen: int, *, penalise: bool) -> Scalars:
        """Both updates and the average, for the batch that follows `seen` images. Returns what to log."""
        self.set_rates(self.recipe.rate_factor(seen))
        if self.recipe.together:
            scalars = self.update_together(shards, penalise=penalise)
        else:
            scalars = self.update_discriminator(shards, penalise=penalise)
            scalars |= self.update_generator(shards)
        self.update_average(seen)
        return scalars

    def draws(self, source: Callable[[str], torch.Generator], strength: float = 1.0) -> dict[str, Draws]:
        """The augmentations' random numbers for a whole batch, by purpose. source: the generator of a name.
        strength: ADA's."""
        found, batch = {}, self.recipe.batch
        if self.consistency is not None:
            for purpose in ("bcr_real", "bcr_fake"):
                found[purpose] = self.consistency.draw(batch, source(purpose))
        if self.augment is not None:
            for purpose in ("real", "fake", "generator"):
                found[purpose] = self.augment.draw(batch, source(f"augment_{purpose}"), strength)
        return found

    def set_rates(self, factor: float) -> None:
        """Set both learning rates to `factor` times the recipe's; D's is corrected for a lazy penalty."""
        for optimizer, rate in (
            (self.g_optimizer, self.recipe.g_lr),
            (self.d_optimizer, self.recipe.d_lr * self.recipe.lazy_correction),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def update_discriminator(self, shards: Sequence[Shard], *, penalise: bool) -> Scalars:
        """The main step, then if `penalise` the gradient penalty: in the same step, or lazily in its own."""
        found = [self._discriminator_pass(shard, len(shards), penalise) for shard in shards]
        return self._apply_discriminator(found, shards, penalise)

    def update_together(self, shards: Sequence[Shard], *, penalise: bool) -> Scalars:
        """Both players from the same pictures, drawn once per shard, and before either of them has moved
        (HiT, arXiv 2106.07631): a second forward pass would move batch norm's statistics again.
        """
        judged, drawn = [], []
        for shard in shards:
            with self.autocast():
                fake = self.draw(shard.z_g)
            judged.append(self._discriminator_pass(shard, len(shards), penalise, fake.detach()))
            drawn.append(self._generator_pass(shard, len(shards), fake))
        return self._apply_discriminator(judged, shards, penalise) | self._apply_generator(drawn)

    def _discriminator_pass(
        self, shard: Shard, shards: int, penalise: bool, fake: torch.Tensor | None = None
    ) -> Scalars:
        """Add this shard's part of D's gradient in its main step. shards: how many there are."""
        loss, scalars = self.discriminator_loss(shard, fake)
        if penalise and self.recipe.penalised and not self.recipe.lazy:
            penalty, more = self.penalty(shard, fake)
            loss, scalars = loss + penalty, scalars | more
        self.d_scaler.scale(loss / shards).backward()
        return scalars

    def _apply_discriminator(
        self, found: Sequence[Scalars], shards: Sequence[Shard], penalise: bool
    ) -> Scalars:
        scalars = _means(found)
        norm = self._apply(self.d_optimizer, self.d_scaler, self.learning, self.recipe.clip_d)
        scalars["d_gradient_norm"] = norm
        if penalise and self.recipe.lazy:
            scalars |= self.update_penalty(shards)
        return scalars

    def update_penalty(self, shards: Sequence[Shard]) -> Scalars:
        """The lazy penalty as a step of its own; its gradient is not clipped."""
        found = []
        for shard in shards:
            loss, scalars = self.penalty(shard)
            self.d_scaler.scale(loss / len(shards)).backward()
            found.append(scalars)
        self._apply(self.d_optimizer, self.d_scaler, self.learning, None)
        return _means(found)

    def update_generator(self, shards: Sequence[Shard]) -> Scalars:
        """One step of the generator."""
        return self._apply_generator([self._generator_pass(shard, len(shards)) for shard in shards])

    def _generator_pass(self, shard: Shard, shards: int, fake: torch.Tensor | None = None) -> Scalars:
        """Add this shard's part of G's gradient. The discriminator passes gradients on and keeps none."""
        for parameter in self.learning:
            parameter.requires_grad_(False)
        try:
            loss, scalars = self.generator_loss(shard, fake)
            self.g_scaler.scale(loss / shards).backward()
        finally:
            for parameter in self.learning:
                parameter.requires_grad_(True)
        return scalars

    def _apply_generator(self, found: Sequence[Scalars]) -> Scalars:
        scalars = _means(found)
        parameters = list(self.players.generator.parameters())
        scalars["g_gradient_norm"] = self._apply(self.g_optimizer, self.g_scaler, parameters, None)
        return scalars

    def update_average(self, seen: int) -> None:
        """Move the averaged weights, and statistics, towards the generator's; `seen`: images before this
        batch."""
        recipe, batch = self.recipe, self.recipe.batch
        decay = ema_decay(batch, recipe.ema_half_life, recipe.ema_ramp_up, seen)
        if seen + batch <= recipe.ema_start:
            decay = 0.0
        if recipe.average_buffers and self.reduce is not None:
            # Each process has its own, unless they are synchronised. How they move is linear in what they
            # were, so their mean after every step is the mean at the end.
            average_tensors(self.players.generator.statistics(), self.reduce)
        update_ema(self.players.average, self.players.generator, decay, statistics=recipe.average_buffers)

    def discriminator_loss(
        self, shard: Shard, fake: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Scalars]:
        """Logistic or relativistic loss with balanced consistency. fake: generated pictures without
        gradients; by default drawn from `z_d`."""
        recipe, judge = self.recipe, self.players.discriminator
        with self.autocast():
            if fake is None:
                with torch.no_grad():
                    fake = self.draw(shard.z_d)
            fake, real = fake.to(shard.real.dtype), shard.real
            fake_seen, real_seen = self._seen(fake, shard, "fake"), self._seen(real, shard, "real")
            fake_logits, real_logits = judge(fake_seen).float(), judge(real_seen).float()
            loss = self.loss.discriminator(real_logits, fake_logits)
            scalars = {
                "d_loss_main": loss.detach(),
                "d_real": real_logits.detach().mean(),
                "d_fake": fake_logits.detach().mean(),
                "d_sign": real_logits.detach().sign().mean(),
            }
            if self.consistency is not None:
                fake_again = judge(self.consistency(fake_seen, shard.draws["bcr_fake"])).float()
                real_again = judge(self.consistency(real_seen, shard.draws["bcr_real"])).float()
                loss = loss + balanced_consistency(
                    real_logits, fake_logits, real_again, fake_again, recipe.bcr_real, recipe.bcr_fake
                )
        return loss, {**scalars, "d_loss": loss.detach()}

    def penalty(self, shard: Shard, fake: torch.Tensor | None = None) -> tuple[torch.Tensor, Scalars]:
        """Weighted R1 on real pictures and R2 on generated ones, always in float32: its second derivative is
        too delicate for half precision. The gradient goes through the augmentation, as in StyleGAN2-ADA.
        fake: as in `discriminator_loss`.
        """
        recipe, total, scalars = self.recipe, 0.0, {}
        parts: list[tuple[str, float]] = [("r1", recipe.r1), ("r2", recipe.r2)]
        for name, weight in parts:
            if weight > 0:
                images = shard.real if name == "r1" else fake
                if images is None:
                    with torch.no_grad(), self.autocast():
                        images = self.draw(shard.z_d)
                images = images.detach().to(shard.real.dtype).requires_grad_()
                seen = self._seen(images, shard, "real" if name == "r1" else "fake")
                value = gradient_penalty(self.players.discriminator(seen), images)
                total = total + weighted_penalty(value, weight, recipe.penalty_every)
                scalars[name] = value.detach()
        return total, scalars

    def generator_loss(self, shard: Shard, fake: torch.Tensor | None = None) -> tuple[torch.Tensor, Scalars]:
        """fake: generated pictures with gradients; by default drawn from `z_g`."""
        with self.autocast():
            if fake is None:
                fake = self.draw(shard.z_g)
            fake_logits = self.players.discriminator(self._seen(fake, shard, "generator")).float()
            real_logits = None
            if self.loss.paired:
                real_logits = self.players.discriminator(self._seen(shard.real, shard, "real")).float()
            loss = self.loss.generator(real_logits, fake_logits)
        return loss, {"g_loss": loss.detach()}

    def _seen(self, images: torch.Tensor, shard: Shard, purpose: str) -> torch.Tensor:
        """Pictures as the discriminator sees them."""
        return images if self.augment is None else self.augment(images, shard.draws[purpose])

    def _apply(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        parameters: Sequence[nn.Parameter],
        clip: float | None,
    ) -> torch.Tensor:
        """Average the gradients over all processes, clip, step, forget them. Returns their norm before."""
        for parameter in parameters:
            if parameter.grad is None:
                # As the original's: the penalty does not depend on the last bias, whose moments decay by it.
                parameter.grad = torch.zeros_like(parameter)
        if self.reduce is not None:
            # scaled ones, so that all processes see an overflow
            average_tensors([parameter.grad for parameter in parameters], self.reduce)
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, float("inf") if clip is None else clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()


def augmentations(
    recipe: Recipe, config: Mapping[str, Any]
) -> tuple[Augmentation | None, Augmentation | None]:
    """The recipe's augmentation of bCR, and the one in front of the discriminator; None where it has none.
    config: the generator's, for the normalisation of its pictures."""
    consistency = Consistency(recipe.bcr_policy) if recipe.bcr_real or recipe.bcr_fake else None
    if recipe.augment == "none":
        return consistency, None
    return consistency, make_augmentation(recipe.augment, config["image_mean"], config["image_std"])


def optimizers(recipe: Recipe, players: Players) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    """Adam for both players; D's is corrected for the additional steps of a lazy penalty (1912.04958)."""
    adam = KerasAdam if recipe.keras_epsilon else torch.optim.Adam
    generator = adam(
        players.generator.parameters(), recipe.g_lr, betas=(0.0, recipe.beta2), eps=recipe.adam_eps
    )
    discriminator = adam(
        players.discriminator.parameters(),
        recipe.d_lr * recipe.lazy_correction,
        betas=(0.0, recipe.beta2**recipe.lazy_correction),
        eps=recipe.adam_eps,
    )
    return generator, discriminator


@torch.no_grad()
def average_tensors(tensors: Sequence[torch.Tensor], reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace every tensor by its mean over all processes, in one message.

    Gradients not by DistributedDataParallel: its hooks do not fit several calls of a discriminator, gradients
    of gradients and frozen parts.
    """
    if not tensors:
        return
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _means(found: Sequence[Scalars]) -> Scalars:
    return {name: torch.stack([scalars[name] for scalars in found]).mean() for name in found[0]}

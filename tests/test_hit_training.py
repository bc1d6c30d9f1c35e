"""Three training steps of the original HiT, recorded: losses, gradients, weights, Adam, statistics, average.

Tolerances are those of the recordings (tests/goldens/hit/README.md).
"""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch
from hit_recordings import channels_first, generator_of, recorded
from safetensors import safe_open

from stylenat_hub.models.hit.keys import below, convert_discriminator, convert_tensorflow, tensorflow_paths
from training.adam import KerasAdam
from training.augment import HIT_POLICY, Consistency
from training.ema import update_ema
from training.recipes import Recipe
from training.steps import Game, Players, Shard

BATCH, SIDE = 4, 64
RECIPE = Recipe(
    family="hit",
    shape="recorded",
    batch=BATCH,
    images=1_000,
    d_lr=5e-4,
    g_lr=1e-3,
    adam_eps=1e-7,
    r1=20.0,
    penalty_every=1,
    bcr_real=10.0,
    bcr_fake=10.0,
    bcr_policy=HIT_POLICY,
    clip_d=None,
    # 0.999 per step, after a copy at step 10
    ema_half_life=BATCH * 692.8005,
    ema_start=10 * BATCH,
    together=True,
    average_buffers=True,
    keras_epsilon=True,
)
PLACES = {"generator": "generator", "average": "ema_generator", "discriminator": "discriminator"}
# The last stage's batch norms take away whatever is the same for all of a channel.
SHIFTS = ("stages.2.upsample.proj.bias", "attn.value.bias", "attn.proj.bias", "mlp.fc2.bias")


def without_gradient(name):
    """Is it a bias whose true gradient is zero, so that Adam moves it by rounding alone?"""
    late = name.startswith(("stages.3.", "stages.2.upsample"))
    return name.endswith("attn.key.bias") or (late and name.endswith(SHIFTS))


def uniform(whole, low, count):
    """A number in [0, 1) from which our augmentation makes this one of `count` whole numbers from `low`."""
    return (whole.flatten().float() - low + 0.5) / count


def draws(step, kind):
    """The recorded draws as our augmentation's uniform numbers."""
    raw = {name: recorded("train_steps")[f"step{step}.aug.{kind}.{name}"] for name in RAW}
    reach = SIDE // 8
    pair = [
        [uniform(raw[f"{name}_{axis}"], *of) for axis in "hw"]
        for name, of in (("translation", (-reach, 2 * reach + 1)), ("cutout", (0, SIDE + 1)))
    ]
    colour = {name: raw[name].flatten() for name in ("brightness", "saturation", "contrast")}
    return {**colour, "translation": torch.stack(pair[0], 1), "cutout": torch.stack(pair[1], 1)}


RAW = ["brightness", "saturation", "contrast"]
RAW += [f"{name}_{axis}" for name in ("translation", "cutout") for axis in "hw"]


def shard(step):
    found = recorded("train_steps")
    z = found[f"step{step}.z"]
    real = channels_first(found[f"step{step}.real_images"]).contiguous()
    return Shard(real, z, z, {f"bcr_{kind}": draws(step, kind) for kind in ("real", "fake")})


def start():
    variables = recorded("weights_step9")
    generator = generator_of(below(variables, "generator")).train()
    judge = convert_discriminator(below(variables, "discriminator")).train()
    return Players(generator, judge, copy.deepcopy(generator).eval())


class Watched(Game):
    """Keeps the gradients of the last step."""

    def _apply(self, optimizer, scaler, parameters, clip):
        model = "generator" if optimizer is self.g_optimizer else "discriminator"
        named = getattr(self.players, model).named_parameters()
        self.gradients[model] = {name: p.grad.clone() for name, p in named if p.grad is not None}
        return super()._apply(optimizer, scaler, parameters, clip)


@functools.cache
def trained():
    """Per recorded step: the reports, and copies of the players, the gradients and the moments after it."""
    game = Watched(RECIPE, start(), consistency=Consistency(HIT_POLICY))
    game.gradients = {}
    for optimizer in (game.g_optimizer, game.d_optimizer):
        nine_steps_with_nothing_learned(optimizer)
    found = []
    for step in range(3):
        report = game.step([shard(step)], (9 + step) * BATCH, penalise=True)
        moments = {
            name: {key: optimizer.state[p] for key, p in getattr(game.players, name).named_parameters()}
            for name, optimizer in (("generator", game.g_optimizer), ("discriminator", game.d_optimizer))
        }
        found.append(copy.deepcopy((report, game.players, game.gradients, moments)))
    return found


def nine_steps_with_nothing_learned(optimizer):
    """The recording starts with a count of 9 and empty moments."""
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter] = {
            "step": torch.tensor(9.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

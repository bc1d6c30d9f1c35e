"""Training recipes as data: the papers' settings, their ablations, and the small run that ships.

A recipe is everything that changes what is learned. Whatever only changes how fast it runs (precision,
workers, compilation, number of processes) is an option of the command instead. Lengths are in images, so that
a recipe means the same at every batch size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from stylenat_hub.models.config import ModelConfig, is_number, is_whole
from training.augment import AUGMENTATIONS, CONSISTENCY_POLICY, HIT_POLICY, OPERATIONS
from training.losses import LOSSES

# StyleSwin's and StyleNAT's settings (arXiv 2211.05770, appendix, and the authors' loop): 8 GPUs; D learns at
# 2e-4, G at a quarter of it (TTUR); their decay 0.5^(32/10000) per step of `batch` images as a half-life.
_PAPER = {
    "d_lr": 2e-4,
    "g_lr": 5e-5,
    "r1": 10.0,
    "penalty_every": 16,
    "bcr_real": 10.0,
    "bcr_fake": 10.0,
    "flip": True,
}
_FFHQ_256 = {
    **_PAPER,
    "shape": "ffhq-256",
    "batch": 64,
    "images": 64_000_000,
    "decay_start": 49_600_000,
    "ema_half_life": 20_000,
}
_FFHQ_1024 = {
    **_PAPER,
    "shape": "ffhq-1024",
    "batch": 32,
    "images": 32_000_000,
    "decay_start": 16_000_000,
    "ema_half_life": 10_000,
}
# The paper states no length for Church; this is FFHQ-256's.
_CHURCH = {
    **_PAPER,
    "shape": "church-256",
    "batch": 64,
    "images": 64_000_000,
    "ema_half_life": 20_000,
}
_NO_BCR = {"bcr_real": 0.0, "bcr_fake": 0.0}


def _styleswin(shape: str, batch: int, steps: int, decay_step: int | None, **fields: Any) -> dict[str, Any]:
    """A recipe of arXiv 2112.10762, by the commands that its authors publish: `steps` of `batch` pictures."""
    return {
        **_PAPER,
        "family": "styleswin",
        "shape": shape,
        "batch": batch,
        "images": steps * batch,
        "decay_start": decay_step and decay_step * batch,
        "ema_half_life": batch * 10_000 / 32,
        "flip": False,
        **fields,
    }


# arXiv 2106.07631: R1 at every step without the half (so twice their 10 here), EMA 0.999 per step of 256
# from step 10 on, constant rates, no clipping.
_HIT = {
    "family": "hit",
    "shape": "b-256",
    # Channel multiplier 2, as their command for this data set has it: the preset `256-wide`.
    "discriminator": {"channels": [128, 256, 512, 512, 512, 512, 512]},
    "batch": 256,
    "images": 128_000_000,
    "d_lr": 5e-5,
    "g_lr": 5e-5,
    "adam_eps": 1e-7,
    "r1": 20.0,
    "penalty_every": 1,
    "bcr_real": 10.0,
    "bcr_fake": 10.0,
    "bcr_policy": HIT_POLICY,
    "flip": True,
    "clip_d": None,
    "ema_half_life": 177_357,
    "ema_start": 2_560,
    "together": True,
    "average_buffers": True,
    "keras_epsilon": True,
}


def _hit(shape: str, batch: int, steps: int, **fields: Any) -> dict[str, Any]:
    """The same for another shape: `steps` of `batch` pictures, the discriminator of that shape's preset."""
    half_life = round(batch * math.log(0.5) / math.log(0.999))
    lengths = {"images": steps * batch, "ema_half_life": half_life, "ema_start": 10 * batch}
    return {**_HIT, "shape": shape, "discriminator": {}, "batch": batch, **lengths, **fields}


_LEVELS_256 = 7  # 4 to 256 px


def _undilated() -> tuple[tuple[int, ...], ...]:
    return ((1,), *((1, 1) for _ in range(_LEVELS_256 - 1)))


def _pyramid(most: int) -> dict[str, Any]:
    """Dilations 1, 2, 4, ... up to what fits a level, `most` partitions at most, with kernel 7."""
    levels = [[2**i for i in range(min(max(level, 1), most))] for level in range(_LEVELS_256)]
    return {
        "dilations": levels,
        "kernel_sizes": [[3 if level == 0 else 7] * len(row) for level, row in enumerate(levels)],
    }


# The scenes of training/toy_churches.py: small enough to learn on two cores of a CPU.
_TOY = {
    "shape": "toy-church",
    "batch": 16,
    "images": 116_000,
    "decay_start": 94_000,
    "d_lr": 4e-4,
    "g_lr": 2e-4,
    "r1": 1.0,
    "penalty_every": 16,
    "flip": True,
    "ema_half_life": 10_000,
    "ema_ramp_up": 0.05,
}

RECIPES: dict[str, dict[str, Any]] = {
    "ffhq-256": _FFHQ_256,
    "ffhq-1024": _FFHQ_1024,
    "church-256": _CHURCH,
    # Table 3: what each step from StyleSwin to StyleNAT adds, heads in two partitions. The paper does not
    # print the dilations of its progressive row.
    "ffhq-256-na": {**_FFHQ_256, "flip": False, "generator": {"dilations": _undilated()}},
    "ffhq-256-dina": {**_FFHQ_256, "flip": False},
    "ffhq-256-progressive": {**_FFHQ_256, "generator": _pyramid(4)},
    # Table 4: fewer partitions. The paper does not print the dilations of these rows: these are the shortest
    # ones of its pyramid. The row of 6 has no recipe: the pyramid of 8 has 6 partitions at most as it is.
    "church-256-2": {**_CHURCH, "r1": 20.0, "images": 12_800_000, "generator": _pyramid(2)},
    "church-256-4": {**_CHURCH, "r1": 20.0, "images": 12_800_000, "generator": _pyramid(4)},
    # The models that StyleSwin published: 8 GPUs with 4 pictures each at 256 px, with 2 at 1024 px. Its paper
    # and commands say nothing of the average; its half-life follows from the code's decay, as above.
    "styleswin-ffhq-256": _styleswin("ffhq-256", 32, 1_000_000, 775_000),
    "styleswin-ffhq-1024": _styleswin("ffhq-1024", 16, 800_000, 600_000, **_NO_BCR),
    "styleswin-celebahq-256": _styleswin("celebahq-256", 32, 800_000, 500_000, r1=5.0),
    "styleswin-celebahq-1024": _styleswin("celebahq-1024", 16, 800_000, None, **_NO_BCR),
    "styleswin-church-256": _styleswin("church-256", 32, 1_500_000, 1_300_000, r1=5.0, flip=True, **_NO_BCR),
    "hit-ffhq-256": _HIT,
    "hit-celebahq-256": _HIT,  # the paper's length; the authors' command has half of it
    "hit-ffhq-1024": _hit("b-1024", 32, 500_000),
    "hit-imagenet-128": _hit("imagenet-128", 256, 1_000_000, d_lr=1e-4, g_lr=1e-4, **_NO_BCR),
    # The same at 32 px, to try it out; rates as of the other small runs.
    "hit-tiny": {
        **_hit("tiny", 16, 1_000),
        "d_lr": 4e-4,
        "g_lr": 4e-4,
        "r1": 1.0,
        "ema_half_life": 1_000,
    },
    "toy-church": _TOY,
    # The same without dilation, and with one dilated partition: the papers' ablation in miniature.
    "toy-church-undilated": {
        **_TOY,
        "generator": {"dilations": [[1], [1], [1], [1]], "kernel_sizes": [[3], [7], [7], [7]]},
    },
    "toy-church-single": {
        **_TOY,
        "generator": {"dilations": [[1], [1], [2], [4]], "kernel_sizes": [[3], [7], [7], [7]]},
    },
    # The other families on the same scenes, with generators of the same size: StyleSwin under the same rules
    # and judge; HiT under its own with its own judge, but with the rates and the average of the others and,
    # as they are, without bCR: with it D stays near chance at these rates, and the generator collapses.
    "toy-church-styleswin": {
        **_TOY,
        "family": "styleswin",
        "shape": "tiny",
        "generator": {"channels": [128, 128, 128, 64], "z_dim": 128, "w_dim": 128},
        "discriminator": {"channels": [64, 128, 128]},
    },
    "toy-church-hit": {
        **_hit("tiny", 16, 7_250, **_NO_BCR),
        "generator": {
            "channels": [128, 128, 64],
            "depths": [2, 2, 1],
            "num_heads": [4, 4, 2],
            "block_sizes": [4, 4, None],
            "z_dim": 64,
        },
        "discriminator": {"channels": [48, 96, 128, 128]},
        "d_lr": 4e-4,
        "g_lr": 2e-4,
        "r1": 1.0,
        "ema_half_life": 10_000,
        "ema_ramp_up": 0.05,
    },
    # From trained weights to few pictures: augmentation for both networks, and the discriminator's finest
    # scale kept as it is (Freeze-D, arXiv 2002.10964).
    "fine-tune": {
        "family": None,
        "shape": None,
        "batch": 16,
        "images": 100_000,
        "d_lr": 2e-4,
        "g_lr": 5e-5,
        "r1": 1.0,
        "penalty_every": 16,
        "flip": True,
        "augment": "diffaugment",
        "freeze_d": 1,
        "ema_half_life": 2_000,
    },
    "tiny": {
        "shape": "tiny",
        "batch": 8,
        "images": 8_000,
        "d_lr": 4e-4,
        "g_lr": 1e-4,
        "r1": 1.0,
        "penalty_every": 16,
        "bcr_real": 10.0,
        "bcr_fake": 10.0,
        "flip": True,
        "ema_half_life": 500,
    },
}


@dataclass(frozen=True)
class Recipe(ModelConfig):
    """What is learned, and how.

    family, shape: a model family and its preset, for generator and discriminator alike; without a shape the
    recipe is for trained weights of any. generator, discriminator: single fields of their configs in place of
    the preset's. batch: pictures per step over all
    processes. images: length of the training. d_lr, g_lr: Adam's rates; betas are (0, beta2). adam_eps:
    Adam's epsilon. decay_start: images after which the rates fall linearly, to 0 at `images`; None: never.

    loss: "logistic" or "relativistic" (R3GAN). r1, r2: half of these times the gradient penalty on real and
    on generated pictures is added, as in StyleGAN. penalty_every: steps from one penalty to the next; from
    2 on it is lazy, a step of its own, and D's Adam is corrected for the additional steps (arXiv 1912.04958,
    appendix B). bcr_real, bcr_fake: weights of balanced consistency, 0 for none; bcr_policy: its
    augmentation, in order. augment: "none", "diffaugment" or "ada" on whatever the discriminator sees;
    ada_target, ada_speed: ADA's wanted sign(D(real)), and the images in which its strength may go from 0 to
    1. clip_d: largest norm of D's gradient in its main step, None for any. freeze_d: the discriminator's
    finest scales that stay as they are. flip: mirror half of the pictures.

    together: update both players from the same generated pictures, before either has moved, instead of D
    first. average_buffers: average the generator's statistics of batch norm too, which a generator that has
    them needs. keras_epsilon: add Adam's epsilon outside of its bias correction. HiT was trained with these.

    ema_half_life: images after which the averaged weights have forgotten half. ema_ramp_up: while that is
    more than this fraction of the images seen, use the fraction. ema_start: images until which the average is
    a copy.

    Raises `ConfigError` on construction.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    shape: str | None
    batch: int
    images: int
    d_lr: float
    g_lr: float
    ema_half_life: float
    family: str | None = "stylenat"
    generator: Mapping[str, Any] = field(default_factory=dict)
    discriminator: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    beta2: float = 0.99
    adam_eps: float = 1e-8
    decay_start: int | None = None
    loss: str = "logistic"
    r1: float = 10.0
    r2: float = 0.0
    penalty_every: int = 16
    bcr_real: float = 0.0
    bcr_fake: float = 0.0
    bcr_policy: tuple[str, ...] = CONSISTENCY_POLICY
    augment: str = "none"
    ada_target: float = 0.6
    ada_speed: float = 500_000
    clip_d: float | None = 5.0
    freeze_d: int = 0
    flip: bool = True
    ema_ramp_up: float | None = None
    ema_start: int = 0
    together: bool = False
    average_buffers: bool = False
    keras_epsilon: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.shape, str) and isinstance(self.family, str):  # the zoo's names are taken too
            object.__setattr__(self, "shape", self.shape.removeprefix(f"{self.family}-"))
        super().__post_init__()

    def validate(self) -> None:
        for name in ("family", "shape"):
            value = getattr(self, name)
            self.require(value is None or isinstance(value, str), name, "a name, or null for any")
        both = (self.family is None) == (self.shape is None)
        self.require(both, "shape", "null exactly where the family is null")
        for name in ("generator", "discriminator"):
            self.require(isinstance(getattr(self, name), Mapping), name, "fields of the model's config")
        self.require_whole("batch", 1, 1 << 20)
        self.require_whole("images", 1, 1 << 50)
        self.require_whole("seed", 0, (1 << 32) - 1)
        for name in ("d_lr", "g_lr"):
            self.require_number(name, 0, 1)
        self.require_number("ema_half_life", 0, 1e12)
        self.require_number("adam_eps", 0, 1)
        self.require(is_number(self.beta2, 0, 1) and self.beta2 < 1, "beta2", "a number between 0 and 1")
        self.require_choice("loss", LOSSES)
        self.require_choice("augment", ("none", *AUGMENTATIONS))
        # ADA watches sign(D(real)), which means nothing where only differences of logits count.
        blind = self.augment == "ada" and LOSSES.get(self.loss, LOSSES["logistic"]).paired
        self.require(not blind, "augment", f"none or diffaugment with the loss {self.loss!r}")
        for name in ("r1", "r2", "bcr_real", "bcr_fake"):
            self.require(is_number(getattr(self, name), -1e-300, 1e9), name, "a number from 0")
        known = isinstance(self.bcr_policy, tuple) and all(
            name in tuple(OPERATIONS) for name in self.bcr_policy
        )
        self.require(known, "bcr_policy", f"a list of {', '.join(OPERATIONS)}")
        self.require_whole("penalty_every", 1, 1 << 20)
        self.require_number("ada_target", 0, 1)
        self.require_number("ada_speed", 0, 1e12)
        self.require_whole("freeze_d", 0, 64)
        for name in ("flip", "together", "average_buffers", "keras_epsilon"):
            self.require(isinstance(getattr(self, name), bool), name, "true or false")
        self.require(
            self.decay_start is None or is_whole(self.decay_start, 0, self.images - 1),
            "decay_start",
            f"null (--set decay_start=null), or a whole number below images ({self.images})",
        )
        for name in ("clip_d", "ema_ramp_up"):
            value = getattr(self, name)
            self.require(value is None or is_number(value, 0, 1e12), name, "null, or a number above 0")
        self.require_whole("ema_start", 0, 1 << 50)

    def require_choice(self, name: str, allowed: Any) -> None:
        self.require(getattr(self, name) in tuple(allowed), name, ", ".join(allowed))

    @property
    def penalised(self) -> bool:
        """Is there any gradient penalty?"""
        return self.r1 > 0 or self.r2 > 0

    @property
    def lazy(self) -> bool:
        """Is the penalty a step of its own, every few steps?"""
        return self.penalised and self.penalty_every > 1

    @property
    def lazy_correction(self) -> float:
        """What D's rate is multiplied by, and its betas raised to, for the additional steps of a lazy
        penalty."""
        return self.penalty_every / (self.penalty_every + 1) if self.lazy else 1.0

    def rate_factor(self, seen: int) -> float:
        """What both learning rates are multiplied by after `seen` images: 1, then falling to 0."""
        if self.decay_start is None or seen <= self.decay_start:
            return 1.0
        return max(0.0, (self.images - seen) / (self.images - self.decay_start))

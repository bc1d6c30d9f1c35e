"""Projection: the styles whose picture is nearest to a given one (inversion of the generator).

The styles are sought in coordinates v in which those of seeded latents have mean 0 and variance 1: w = mean
+ v A, where A is from the covariance of seeded styles. There one learning rate fits all directions, and the
prior is the mean square of v (the squared Mahalanobis distance per dimension), about 1 for styles of seeds.
Space W has one v for the whole picture (arXiv 1912.04958, appendix D, of which come the start from w_avg and
the ramped learning rate); W+ adds to it a deviation for each style (arXiv 1904.03189), which a penalty holds
small at the start. Where styles are the latents themselves (HiT), W is z, and A the identity.

Legend: B pictures, R their side, n styles of a picture (`num_ws`), d their dimension (`w_dim`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.latents.checks import not_negative, whole
from stylenat_hub.latents.losses import FEATURES, Loss, picture_loss
from stylenat_hub.latents.pictured import check_target, drawn, eight_bit, frozen, psnr, rgb
from stylenat_hub.latents.seeded import seeded_styles
from stylenat_hub.models.base import Generator

SPACES = ("w", "w+")
STEPS = 500
MAX_STEPS = 1_000_000
LEARNING_RATE = 0.1  # of Adam, in standard deviations of seeded styles
RAMP_UP, RAMP_DOWN = 0.05, 0.5  # shares of the steps in which the learning rate rises and falls
PRIOR = 1e-5  # weight of the mean square of v
TOGETHER, APART = 0.01, 0.5  # weight of the deviations' mean square, and when it has fallen to 0
NOISY = 0.75  # until when noise is added, if any
STATISTICS = 4096  # seeded latents that the mean and covariance are estimated from
SMALLEST_SPREAD = 0.03  # of the largest standard deviation: for directions that seeded styles hardly use
STARTS = 64  # seeded styles that are looked at for the second start
LOOKED_AT = 8  # of them at a time
HALF_WAY = 0.5  # how far from w_avg they are, of their distance
TRIED = 0.1  # share of the steps after which one start goes on


@dataclass(frozen=True)
class Progress:
    """What a callback is told at each step. step: from 0, the start, to `steps`. ws, losses, psnr: of what is
    nearest so far, as in `Projection`."""

    step: int
    ws: torch.Tensor
    losses: torch.Tensor
    psnr: torch.Tensor


@dataclass(frozen=True)
class Projection:
    """What was found, on the CPU.

    ws: [B, n, d], float32. losses: [steps + 1, B], the distances of the nearest pictures so far, without the
    prior. psnr: [B] in dB between pictures in 8 bits, infinite where they are equal. images: uint8 [B, 3, R,
    R], what the pipeline draws of ws.
    """

    ws: torch.Tensor
    losses: torch.Tensor
    psnr: torch.Tensor
    images: torch.Tensor


@dataclass(frozen=True)
class _Options:
    space: str
    steps: int
    seed: int
    starts: int
    noise: float
    learning_rate: float
    prior: float


def project(
    generator: Generator,
    target: torch.Tensor,
    *,
    space: str | None = None,
    steps: int = STEPS,
    seed: int = 0,
    features: Any = "random-conv",
    feature_weight: float = FEATURES,
    starts: int = STARTS,
    noise: float = 0.0,
    learning_rate: float = LEARNING_RATE,
    prior: float = PRIOR,
    callback: Callable[[Progress], None] | None = None,
) -> Projection:
    """The styles whose pictures are nearest to the targets. The generator is left as it was.

    target: [3, R, R] or [B, 3, R, R], RGB, uint8 or float in [0, 1]. space: "w", one style for all levels, or
    "w+", a style for each; None: see `default_space`. steps: of Adam. seed: of the latents that the
    statistics are estimated from and of the noise; the same seed gives the same result. features,
    feature_weight: see `latents.losses`. starts: the search begins at w_avg and, of so many seeded styles
    half-way to it, at the one with the nearest picture; after a tenth of the steps the better goes on. 0: at
    w_avg alone. noise: standard deviation of noise on v at the start, falling to 0; 0: none. prior: weight of
    the mean square of v. callback: called at each step.

    The step whose picture was nearest is what is found. Pictures are independent of each other, but for
    rounding, which many steps make larger.

    Raises:
        InputError: an argument out of its range, "w+" where there is one style (HiT), a generator not in
            float32, or a loss that is no longer finite.
        WeightsError: the features' weights are missing or damaged.
    """
    space = default_space(generator) if space is None else space
    _check(generator, space)
    options = _Options(
        space=space,
        steps=whole("steps", steps, 1, MAX_STEPS),
        seed=whole("seed", seed, 0, 2**32 - 1),
        starts=whole("starts", starts, 0, STATISTICS),
        noise=not_negative("noise", noise),
        learning_rate=not_negative("learning_rate", learning_rate),
        prior=not_negative("prior", prior),
    )
    weight = next(generator.parameters())
    goal = check_target(generator, target).to(weight.device)
    make = picture_loss(features, weight=feature_weight, device=weight.device)
    with frozen(generator), torch.enable_grad():
        coordinates = _Coordinates(generator, options.seed, options.starts)
        ws, losses = _Search(generator, coordinates, make, goal, options).run(callback)
        images = drawn(generator, ws)
    return Projection(ws.cpu(), losses.cpu(), psnr(images, eight_bit(goal).cpu()), images)


class _Coordinates:
    """w = mean + v A: `styles(v)`. starts: v [starts + 1, d] of w_avg and of seeded styles half-way to it."""

    def __init__(self, generator: Generator, seed: int, starts: int) -> None:
        weight = next(generator.parameters())
        w = torch.cat(list(seeded_styles(generator, STATISTICS, seed)))
        known, w_avg = torch.isfinite(generator.w_avg).all(), generator.w_avg.cpu().double()
        if generator.styles_are_latents:
            mean = w_avg if known else torch.zeros_like(w_avg)
            axes, v = torch.eye(generator.w_dim), w[:starts]
        else:
            mean = w_avg if known else w.mean(dim=0)
            axes, back = _whitening(w - mean)
            v = (w[:starts] - mean) @ back
        v = torch.cat([torch.zeros(1, len(mean)), HALF_WAY * v])
        self.mean, self.axes, self.starts = (x.float().to(weight.device) for x in (mean, axes, v))

    def styles(self, v: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        return self.mean + v @ self.axes


def _whitening(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A [d, d], and its inverse: v A has the covariance of w, v being standard."""
    values, vectors = torch.linalg.eigh(w.T @ w / len(w))
    spread = values.clamp(min=0).sqrt()
    spread = spread.clamp(min=float(spread.max()) * SMALLEST_SPREAD + 1e-12)
    return spread[:, None] * vectors.T, vectors / spread


class _Search:
    """The descent towards targets [B, 3, R, R]. At first each has a row of its own per start, K in all; after
    a share `TRIED` of the steps the row with the nearest picture goes on."""

    def __init__(
        self,
        generator: Generator,
        coordinates: _Coordinates,
        make: Callable[[torch.Tensor], Loss],
        goal: torch.Tensor,
        options: _Options,
    ) -> None:
        self.generator, self.coordinates, self.make = generator, coordinates, make
        self.goal, self.options = goal, options
        self.chance = torch.Generator().manual_seed(options.seed)
        shape = (len(goal), generator.num_ws, generator.w_dim)
        self.best = torch.full((len(goal),), math.inf, device=goal.device)
        self.best_ws = torch.zeros(shape, device=goal.device)
        self.best_psnr = torch.full((len(goal),), math.inf, dtype=torch.float64)  # on the CPU, as of `psnr`
        common = self._starts()
        self.rows = common.shape[1]
        deviation = torch.zeros(len(goal) * self.rows, *shape[1:], device=goal.device)
        self._begin(common.flatten(0, 1)[:, None], deviation)

    @torch.no_grad()
    def _starts(self) -> torch.Tensor:
        """v [B, K, d]: w_avg, and of the seeded styles the one with the nearest picture."""
        mean, seeded = self.coordinates.starts.split([1, len(self.coordinates.starts) - 1])
        if not len(seeded):
            return mean.expand(len(self.goal), 1, -1)
        losses = [self.make(goal) for goal in self.goal.split(1)]
        far = []  # [B, some] each
        for some in seeded.split(LOOKED_AT):
            images = self._images(self._styles(some[:, None]))
            far.append(torch.stack([loss(images) for loss in losses]))
        nearest = seeded[torch.cat(far, dim=1).argmin(dim=1)]  # [B, d]
        return torch.stack([mean.expand_as(nearest), nearest], dim=1)

    def _begin(self, common: torch.Tensor, deviation: torch.Tensor) -> None:
        """Go on from these, [rows, 1, d] and [rows, n, d]."""
        self.common = common.detach().clone().requires_grad_()
        self.deviation = deviation.detach().clone().requires_grad_(self.options.space == "w+")
        free = [v for v in (self.common, self.deviation) if v.requires_grad]
        self.adam = torch.optim.Adam(free, lr=self.options.learning_rate)
        goals = self.goal.repeat_interleave(self.rows, dim=0)
        self.loss, self.wanted = self.make(goals), eight_bit(goals)
        self.nearest = torch.full((len(goals),), math.inf, device=goals.device)

    def _choose(self) -> None:
        """Of each target's rows keep the one that came nearest."""
        place = self.nearest.view(-1, self.rows).argmin(dim=1)
        kept = torch.arange(len(place), device=place.device) * self.rows + place
        self.rows = 1
        self._begin(self.common[kept], self.deviation[kept])

    def _styles(self, v: torch.Tensor) -> torch.Tensor:
        """[rows, 1 or n, d] -> styles [rows, n, d]."""
        return self.coordinates.styles(v).expand(-1, self.generator.num_ws, -1)

    def _images(self, ws: torch.Tensor) -> torch.Tensor:
        return rgb(self.generator, self.generator.synthesis(ws))

    def run(self, tell: Callable[[Progress], None] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest pictures' styles [B, n, d], and the losses [steps + 1, B]."""
        losses, steps = [], self.options.steps
        for step in range(steps + 1):
            share = step / steps
            v = self.common + self.deviation
            ws = self._styles(v + self._noise(share))
            images = self._images(ws)
            loss = self.loss(images)
            losses.append(self._keep(step, ws, loss, images))
            if tell:
                tell(Progress(step, *(x.clone().cpu() for x in (self.best_ws, self.best, self.best_psnr))))
            if step < steps:
                together = TOGETHER * max(0.0, 1 - share / APART)
                terms = loss + self.options.prior * v.square().mean(dim=(1, 2))
                self._descend(terms + together * self.deviation.square().mean(dim=(1, 2)), share)
            if self.rows > 1 and step >= TRIED * steps:
                self._choose()
        return self.best_ws, torch.stack(losses)

    def _noise(self, share: float) -> torch.Tensor | float:
        strength = self.options.noise * max(0.0, 1 - share / NOISY) ** 2
        if not strength:
            return 0.0
        # The same for all pictures, so that none depends on the others.
        return strength * torch.randn(1, 1, self.generator.w_dim, generator=self.chance).to(self.goal.device)

    def _descend(self, loss: torch.Tensor, share: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.options.learning_rate * ramp(share)
        self.adam.zero_grad()
        loss.sum().backward()
        self.adam.step()

    @torch.no_grad()
    def _keep(self, step: int, ws: torch.Tensor, loss: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Remember what is nearer than all before; returns the lowest losses [B] so far."""
        finite = bool(torch.isfinite(loss).all())
        if not finite and step == 0:
            raise InputError(
                "pictures of this model, or their features, hold NaN or infinity; load its weights again, or "
                "use other features"
            )
        if not finite:
            raise InputError(
                f"the loss is no longer finite at step {step}; use a smaller learning rate than "
                f"{self.options.learning_rate}, or other features"
            )
        self.nearest = torch.minimum(self.nearest, loss)
        near = psnr(eight_bit(images), self.wanted)
        for picture, rows in enumerate(loss.view(-1, self.rows)):
            row = picture * self.rows + int(rows.argmin())
            if loss[row] < self.best[picture]:
                self.best[picture], self.best_psnr[picture] = loss[row], near[row]
                self.best_ws[picture] = ws[row]
        return self.best.clone()


def ramp(share: float) -> float:
    """What the learning rate is multiplied by when this share of the steps is done: it rises linearly, stays,
    and falls as a cosine (arXiv 1912.04958, appendix D, with other shares)."""
    up = min(1.0, (share + 1e-2) / RAMP_UP)
    down = min(1.0, (1 - share) / RAMP_DOWN)
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


def default_space(generator: Generator) -> str:
    """`w+`, or `w` where there is one style for the whole picture, as in HiT."""
    return "w+" if generator.num_ws > 1 else "w"


def _check(generator: Generator, space: str) -> None:
    if space not in SPACES:
        raise InputError(f"space is {space!r}; allowed: {', '.join(SPACES)}")
    if space == "w+" and generator.num_ws == 1:
        raise InputError(
            f"the space w+ has a style for each level, and a {type(generator).__name__} has one style for "
            "the whole picture; use the space w (--space w)"
        )
    if generator.dtype != torch.float32:
        raise InputError(f"the model is in {generator.dtype}; projection needs it in float32")

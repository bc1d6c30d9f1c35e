"""Perceptual path length: how much pictures change along a path between two latents, per step.

Legend: B pairs of pictures, R their side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from stylenat_hub.errors import InputError

if TYPE_CHECKING:
    from stylenat_hub.models.base import Generator

SPACES, ENDS = ("w", "z"), ("full", "end")
_ROUNDING = 1e-12  # a part at a right angle that is shorter than this, of float64, is rounding

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FeatureDistance:
    """See `feature_distance`. finest: the smallest change of a pixel that it sees, in [0, 1]; 0: any."""

    def __init__(self, extractor: Callable[[torch.Tensor], Any], eight_bit: bool) -> None:
        self.extractor, self.eight_bit = extractor, eight_bit
        self.finest = 1 / 255 if eight_bit else 0.0

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (self._unit(a) - self._unit(b)).square().sum(1)

    def _unit(self, images: torch.Tensor) -> torch.Tensor:
        images = (images * 255).round().to(torch.uint8) if self.eight_bit else images
        found = self.extractor(images)
        features = found[0] if isinstance(found, tuple) else found
        return F.normalize(
            features.to("cpu").double(), dim=1
        )  # float32 would round what a short step changes


def feature_distance(extractor: Callable[[torch.Tensor], Any], *, eight_bit: bool = True) -> FeatureDistance:
    """A distance for `perceptual_path_length`: squared, between features scaled to length 1 (features that
    are all 0 stay so). From 0 to 4.

    extractor: pictures [B, 3, R, R] -> features [B, D], or a tuple that begins with them. eight_bit: it is
    given uint8, as the extractors of this package want it, and pictures are rounded to that: then a step must
    change pixels by 1/255 or more on average, which an epsilon of 1e-4 does not. False: it is given float in
    [0, 1], not rounded, for one's own network.

    It is not LPIPS, the distance of the papers: figures compare only with figures by the same extractor and
    the same epsilon.
    """
    return FeatureDistance(extractor, eight_bit)


@torch.no_grad()
def perceptual_path_length(
    generator: Generator,
    distance: Distance,
    *,
    samples: int,
    epsilon: float = 1e-4,
    space: str = "w",
    ends: str = "full",
    seed: int = 0,
    batch: int = 16,
) -> dict[str, float]:
    """The mean of distance(picture at t, picture at t + epsilon) / epsilon^2 over paths between two latents.
    Low is smooth.

    generator: in eval mode, with weights of float32 or float64; half precision rounds steps of 1e-4 away.
    distance: of RGB pictures [B, 3, R, R] in [0, 1], clamped there: (a, b) -> [B], squared in what it
        measures, as LPIPS and `feature_distance` are. StyleGAN's figures are by LPIPS with VGG on pictures of
        at most 256 px, of faces only the middle: give a distance that does the same.
    samples: paths; 100,000 in the paper. epsilon: the step, as a share of the path.
    space: "w": straight lines between styles. "z": along the sphere between latents, their lengths changing
        evenly (StyleGAN scales all to one length, which families that normalise z, as StyleNAT, do not notice
        and HiT would). No truncation.
    ends: "full": t anywhere on the path; "end": t = 0.
    seed: of latents and t, drawn path by path, so that `batch`, the pairs drawn at a time, changes results by
        rounding only.

    Returns `mean`, over all paths, and `trimmed_mean`, what StyleGAN calls PPL: without the paths below the
    1st and above the 99th percentile (each rounded outwards to a path's value). Source: Karras et al., arXiv
    1812.04948, section 4.1; the trimming is of its code.

    Raises `InputError` for arguments out of range, a generator in training mode or of half precision, a
    distance that returns another shape or numbers that are not finite, and one whose `finest` is more than
    what a step changes in pixels, on average over the first batch: it would measure rounding.
    """
    _check_arguments(generator, samples, epsilon, space, ends, batch)
    chance = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, samples, batch):
        count = min(batch, samples - start)
        z, place = _draw(count, generator.z_dim, chance)
        place = place if ends == "full" else torch.zeros_like(place)
        near, far = _pictures(generator, z, place, epsilon, space)
        if not start:
            _check_step(near, far, distance, epsilon)
        values = distance(near, far)
        if values.shape != (count,) or not values.isfinite().all():
            raise InputError(
                f"the distance of {count} pairs is {list(values.shape)}; allowed: finite numbers [{count}], "
                f"one per pair"
            )
        found.append(values.to("cpu").double() / epsilon**2)
    lengths = torch.cat(found).sort().values
    low, high = lengths[(samples - 1) // 100], lengths[-(-99 * (samples - 1) // 100)]
    kept = lengths[(lengths >= low) & (lengths <= high)]
    return {"mean": lengths.mean().item(), "trimmed_mean": kept.mean().item()}


def _draw(count: int, z_dim: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [count, 2, z_dim] of the paths' ends and places [count, 1] from 0 to 1, float64."""
    drawn = [(torch.randn(2, z_dim, generator=chance), torch.rand(1, generator=chance)) for _ in range(count)]
    z, place = (torch.stack(parts).double() for parts in zip(*drawn, strict=True))
    return z, place


def _pictures(
    generator: Generator, z: torch.Tensor, place: torch.Tensor, epsilon: float, space: str
) -> list[torch.Tensor]:
    """RGB in [0, 1] at `place` and a step further: twice [B, 3, R, R]."""
    weights = generator.w_avg
    if space == "z":
        path = torch.cat([along_sphere(*z.unbind(1), place + step) for step in (0, epsilon)])
        ws = generator.mapping(path.to(weights.dtype).to(weights.device))
    else:
        ws = generator.mapping(z.transpose(0, 1).flatten(0, 1).to(weights.dtype).to(weights.device))
        first, last = ws.chunk(2)  # [B, num_ws, w_dim] each
        near = first + (last - first) * place[:, :, None].to(ws.dtype).to(ws.device)
        ws = torch.cat([near, near + epsilon * (last - first)])
    images = generator.to_rgb01(generator.synthesis(ws))
    return list(images.chunk(2))


def along_sphere(a: torch.Tensor, b: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """From a to b [..., z_dim] (float64), the angle and the length changing evenly with `place` [..., 1].

    Finite for all finite ones; between opposite ones it goes by the axis that a has least of.
    """
    lengths = [x.norm(dim=-1, keepdim=True) for x in (a, b)]
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    cosine = (a * b).sum(-1, keepdim=True)
    side = b - cosine * a  # at a right angle to a; where b is along a only rounding, hence another axis
    least = F.one_hot(a.abs().argmin(-1), a.shape[-1]).to(a)
    spare = least - (least * a).sum(-1, keepdim=True) * a
    sine = side.norm(dim=-1, keepdim=True)
    side = F.normalize(torch.where(sine < _ROUNDING, spare, side), dim=-1)
    angle = place * torch.atan2(sine, cosine)
    return torch.lerp(*lengths, place) * (angle.cos() * a + angle.sin() * side)


def _check_step(near: torch.Tensor, far: torch.Tensor, distance: Distance, epsilon: float) -> None:
    change = (near - far).abs().mean().item()
    finest = getattr(distance, "finest", 0.0)
    if change < finest:
        raise InputError(
            f"a step of epsilon = {epsilon} changes pixels by {change:.2g} on average, and this distance "
            f"sees no less than {finest:.2g}; allowed: steps that change more; use a larger epsilon, or a "
            f"distance on float pictures: feature_distance(network, eight_bit=False)"
        )


def _check_arguments(
    generator: Generator, samples: int, epsilon: float, space: str, ends: str, batch: int
) -> None:
    for name, value in (("samples", samples), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name} is {value}; allowed: 1 or more")
    if not (math.isfinite(epsilon) and 0 < epsilon <= 1):
        raise InputError(f"epsilon is {epsilon}; allowed: above 0, up to 1; the paper: 1e-4")
    for name, value, allowed in (("space", space, SPACES), ("ends", ends, ENDS)):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; allowed: {' or '.join(map(repr, allowed))}")
    if generator.training:
        raise InputError("the generator is in training mode; call its eval() first")
    if generator.w_avg.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the generator's weights are {generator.w_avg.dtype}, in which steps of {epsilon} are lost; "
            f"allowed: float32 or float64; load it with dtype=torch.float32"
        )

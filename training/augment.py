"""Augmentations whose random numbers belong to the sample: the same on any number of processes.

    draws = augmentation.draw(batch, generator)                 # every process: for the whole batch
    pictures = augmentation(pictures, take(draws, my_rows))     # then each process: its own rows

Drawing is on the CPU and apart from applying, so a sample is changed alike wherever it lands. Applying is
pure, never mixes samples, and is differentiable twice in the pictures (R1 through the augmentation).

Legend: B batch, H,W pixels; pictures are [B, 3, H, W] as the generator draws them, i.e. normalised by a mean
and a standard deviation per channel. A pair of numbers is (down, right).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from stylenat_hub.errors import InputError

Draws = dict[str, torch.Tensor]  # name -> [B] or [B, 2], float32
Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (images, what to do to each) -> images

DIFFAUGMENT_POLICY = ("brightness", "saturation", "contrast", "translation", "cutout")
HIT_POLICY = DIFFAUGMENT_POLICY  # HiT, arXiv 2106.07631, took it over for its bCR
CONSISTENCY_POLICY = ("flip", "translation", "brightness", "saturation", "contrast", "cutout")
TRANSLATION = 1 / 8  # of the side, at most, in each direction
CUTOUT = 1 / 2  # side of the erased square
_PAIRS = ("translation", "cutout", "shift")  # of these a sample needs a number per axis
_GRID = {"mode": "bilinear", "padding_mode": "reflection", "align_corners": False}


def take(draws: Draws, rows: Sequence[int] | torch.Tensor) -> Draws:
    """The draws of some samples: `rows` are their places in the whole batch (or a mask of it)."""
    index = rows if isinstance(rows, torch.Tensor) else torch.tensor(list(rows), dtype=torch.long)
    return {name: values[index] for name, values in draws.items()}


class Augmentation(ABC):
    """Random changes of pictures in two steps: `draw` the numbers, then apply them.

    adaptive: whether `strength` means anything; where it does not, only 1 is allowed.
    names: the draws that it needs.
    """

    adaptive = False
    names: tuple[str, ...]

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draws:
        """Numbers for a batch of `count` samples from a CPU generator, [count, ...] float32 on the CPU.

        How far this moves the generator depends on `count` alone. strength: probability of each operation.
        Raises `InputError` for a strength outside [0, 1], and for one below 1 if the augmentation has none.
        """
        if not (0 <= strength <= 1 if self.adaptive else strength == 1):
            allowed = "0 to 1" if self.adaptive else "1, as only the adaptive augmentation has a strength"
            raise InputError(f"strength is {strength}; allowed: {allowed}")
        return self._draw(count, generator, strength)

    def __call__(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """images [B, 3, H, W] of any floating dtype and device -> the same, changed as `draws` [B, ...] say.

        It computes in float32, or in float64 for such images. Raises `InputError` for other shapes and for
        draws that another augmentation made or that do not have the images' number of rows.
        """
        got = f"images are {list(images.shape)} {images.dtype}"
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(f"{got}; allowed: [B, 3, H, W], floating point")
        if set(draws) != set(self.names):
            got = f"draws are of {', '.join(draws)}"
            raise InputError(f"{got}; allowed: {', '.join(self.names)}, made by its own draw()")
        if any(len(values) != len(images) for values in draws.values()):
            raise InputError(f"{got} and draws have another number of rows; take() the images' rows")
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        return self._apply(wide, draws).to(images.dtype)

    @abstractmethod
    def _draw(self, count: int, generator: torch.Generator, strength: float) -> Draws: ...

    @abstractmethod
    def _apply(self, images: torch.Tensor, draws: Draws) -> torch.Tensor: ...


class Consistency(Augmentation):
    """The T of balanced consistency regularisation (bCR, arXiv 2002.04724) as in StyleSwin (arXiv 2112.10762)
    and StyleNAT (arXiv 2211.05770): all operations, one after another, on every sample.

    operations: names of `OPERATIONS` in the order of application, each at most once. They work on normalised
    pictures, as in the originals: erased and uncovered pixels become 0, the mean colour. The draws are
    uniform in [0, 1). Raises `InputError` for another name.
    """

    def __init__(self, operations: Sequence[str] = CONSISTENCY_POLICY) -> None:
        for name in operations:
            if name not in OPERATIONS:
                raise InputError(f"operation is {name!r}; allowed: {', '.join(OPERATIONS)}")
        if not operations or len(set(operations)) < len(operations):
            raise InputError(f"operations are {list(operations)}; allowed: at least one, each at most once")
        self.names = tuple(operations)

    def _draw(self, count: int, generator: torch.Generator, strength: float) -> Draws:
        return {name: _numbers(torch.rand, name, count, generator) for name in self.names}

    def _apply(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        for name in self.names:
            images = OPERATIONS[name](images, draws[name].to(images.device))
        return images


class DiffAugment(Consistency):
    """DiffAugment (arXiv 2006.10738): colour, translation, cutout, for all that the discriminator sees."""

    def __init__(self, operations: Sequence[str] = DIFFAUGMENT_POLICY) -> None:
        super().__init__(operations)


def _numbers(
    source: Callable[..., torch.Tensor], name: str, count: int, generator: torch.Generator
) -> torch.Tensor:
    """[count], or [count, 2] for what has two axes, from `torch.rand` or `torch.randn`."""
    shape = (count, 2) if name in _PAIRS else (count,)
    return source(shape, generator=generator, device="cpu", dtype=torch.float32)


def _flip(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return torch.where(_per_sample(uniform < 0.5), images.flip(-1), images)


def _brightness(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return images + (_per_sample(uniform) - 0.5)


def _saturation(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    gray = images.mean(1, keepdim=True)
    return (images - gray) * (2 * _per_sample(uniform)) + gray


def _contrast(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (_per_sample(uniform) + 0.5) + mean


def _translation(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """out[i, j] = in[i + down, j + right], and 0 from outside; up to 1/8 of the side, rounded half up."""
    for axis, side in enumerate(images.shape[2:]):
        reach = int(side * TRANSLATION + 0.5)
        source = _places(_integers(uniform[:, axis], 2 * reach + 1) - reach, side, axis)
        inside = (source >= 0) & (source < side)
        images = images.gather(2 + axis, source.clamp(0, side - 1).expand_as(images)) * inside
    return images


def _cutout(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A window of half the sides becomes 0. Its centre may be anywhere, so it may reach over the border."""
    hidden = []
    for axis, side in enumerate(images.shape[2:]):
        length = int(side * CUTOUT + 0.5)
        first = _integers(uniform[:, axis], side + 1 - length % 2) - length // 2
        offset = _places(-first, side, axis)
        hidden.append((offset >= 0) & (offset < length))
    return images.masked_fill(hidden[0] & hidden[1], 0)


def _integers(uniform: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform in [0, 1) -> whole numbers 0 ... count - 1; no float32 below 1 is rounded up to `count`."""
    return (uniform * count).long()


def _per_sample(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]  # [B] -> [B, 1, 1, 1]


def _places(start: torch.Tensor, side: int, axis: int) -> torch.Tensor:
    """start [B] -> start, start + 1, ... as [B, 1, H, 1] for axis 0 or [B, 1, 1, W] for axis 1."""
    places = start[:, None] + torch.arange(side, device=start.device)
    return places[:, None, :, None] if axis == 0 else places[:, None, None, :]


# each of images [B, 3, H, W] and numbers in [0, 1), [B] or [B, 2]
OPERATIONS: dict[str, Change] = {
    "flip": _flip,
    "translation": _translation,
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "cutout": _cutout,
}

# name -> (the value that changes nothing, what the others are drawn from, how), in the order of application
_ADA: dict[str, tuple[float, Callable[..., torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "flip": (0.0, torch.rand, lambda u: (2 * u).floor()),
    "quarter_turns": (0.0, torch.rand, lambda u: (4 * u).floor()),  # counterclockwise
    "translation": (0.0, torch.rand, lambda u: (2 * u - 1) * 0.125),  # of the side, rounded to pixels
    "scale": (1.0, torch.randn, lambda n: torch.exp2(0.2 * n)),
    "pre_rotation": (0.0, torch.rand, lambda u: (2 * u - 1) * math.pi),
    "stretch": (1.0, torch.randn, lambda n: torch.exp2(0.2 * n)),  # of the width; the height shrinks
    "post_rotation": (0.0, torch.rand, lambda u: (2 * u - 1) * math.pi),
    "shift": (0.0, torch.randn, lambda n: 0.125 * n),  # of the side
    "brightness": (0.0, torch.randn, lambda n: 0.2 * n),
    "contrast": (1.0, torch.randn, lambda n: torch.exp2(0.5 * n)),
    "luma_flip": (0.0, torch.rand, lambda u: (2 * u).floor()),
    "hue": (0.0, torch.rand, lambda u: (2 * u - 1) * math.pi),
    "saturation": (1.0, torch.randn, lambda n: torch.exp2(n)),
}
_ROTATIONS = ("pre_rotation", "post_rotation")


class ADA(Augmentation):
    """The "bgc" pipeline of adaptive discriminator augmentation: blits, geometry, colour (arXiv 2006.06676).

    strength p: each operation happens to a sample with probability p, by itself; the two rotations with
    1 - sqrt(1 - p) each, so that p is the probability of any. The draws are the values of the operations, the
    neutral one where an operation does not happen. A sample to which nothing happens comes back bit for bit.

    image_mean, image_std: normalisation of the pictures per RGB channel, of pictures in [0, 1]; the colour
    operations see [-1, 1]. The default means pictures in [-1, 1]. Raises `InputError` unless 3 numbers each.

    Unlike in the paper, the filters around the warp at twice the resolution are bilinear doubling and its
    4-tap inverse (the biorthogonal wavelet CDF 3/1) and not the 12-tap sym6: flips, quarter turns and
    whole-pixel shifts stay exact, half-pixel shifts are cubic. The mirrored border repeats the last pixel.
    """

    adaptive = True
    names = tuple(_ADA)

    def __init__(
        self, image_mean: Sequence[float] = (0.5,) * 3, image_std: Sequence[float] = (0.5,) * 3
    ) -> None:
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            got = f"image_mean is {list(image_mean)} and image_std {list(image_std)}"
            raise InputError(f"{got}; allowed: three numbers each, the second above 0")
        # image * std + mean is in [0, 1], so image * 2 std + 2 mean - 1 in [-1, 1]
        self._to_unit = torch.diag(2 * torch.tensor([*image_std, 0.5]))
        self._to_unit[:3, 3] = 2 * torch.tensor(image_mean) - 1
        self._from_unit = torch.linalg.inv(self._to_unit)

    def _draw(self, count: int, generator: torch.Generator, strength: float) -> Draws:
        draws = {}
        for name, (neutral, source, transform) in _ADA.items():
            chance = 1 - math.sqrt(1 - strength) if name in _ROTATIONS else strength
            # all numbers are drawn whatever the strength, so that it does not move later draws
            happens = _numbers(torch.rand, "chance", count, generator) < chance
            values = transform(_numbers(source, name, count, generator))
            draws[name] = torch.where(happens if values.ndim == 1 else happens[:, None], values, neutral)
        return draws

    def _apply(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        images = _where_changed(images, inverse_geometry(draws, *images.shape[2:]), _warp)
        return _where_changed(images, color_matrix(draws), self._recolor)

    def _recolor(self, images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        matrix = _product(self._from_unit.to(matrix), matrix, self._to_unit.to(matrix))
        matrix = matrix.to(images)[:, :3, :, None, None]  # [B, 3, 4, 1, 1]
        mixed = sum(matrix[:, :, channel] * images[:, channel : channel + 1] for channel in range(3))
        return mixed + matrix[:, :, 3]


def _where_changed(images: torch.Tensor, matrices: torch.Tensor, change: Change) -> torch.Tensor:
    """`change(images, matrices)` for samples whose matrix [B, N, N] is not the identity, else the image."""
    changed = (matrices != torch.eye(matrices.shape[-1], device=matrices.device)).any((1, 2))
    # the matrices are where the draws are: on the CPU, this does not wait for a GPU
    if not changed.any():
        return images
    return torch.where(_per_sample(changed.to(images.device)), change(images, matrices), images)


def inverse_geometry(draws: Draws, height: int, width: int) -> torch.Tensor:
    """ADA's draws -> [B, 3, 3]: from a place in the result to that in the picture, (x right, y down, 1) in
    pixels from the centre.
    """
    across, down, both = _unit(3, (0, 0)), _unit(3, (1, 1)), _unit(3, (0, 0), (1, 1))
    turn = _unit(3, (1, 0)) - _unit(3, (0, 1))
    move_x, move_y = _unit(3, (0, 2)), _unit(3, (1, 2))
    side = draws["translation"].new_tensor([height, width])
    pixels, shift = (draws["translation"] * side).round(), draws["shift"] * side
    scale, stretch, quarter = draws["scale"], draws["stretch"], draws["quarter_turns"] * (math.pi / 2)
    return _product(
        _identity_plus((-2 * draws["flip"], across)),
        _identity_plus((quarter.sin(), turn), (quarter.cos() - 1, both)),
        _identity_plus((-pixels[:, 1], move_x), (-pixels[:, 0], move_y)),
        _identity_plus((1 / scale - 1, both)),
        _identity_plus((draws["pre_rotation"].sin(), turn), (draws["pre_rotation"].cos() - 1, both)),
        _identity_plus((1 / stretch - 1, across), (stretch - 1, down)),
        _identity_plus((draws["post_rotation"].sin(), turn), (draws["post_rotation"].cos() - 1, both)),
        _identity_plus((-shift[:, 1], move_x), (-shift[:, 0], move_y)),
    )


def color_matrix(draws: Draws) -> torch.Tensor:
    """ADA's draws -> [B, 4, 4], which maps (R, G, B, 1) of a picture in [-1, 1] to the new colour."""
    white, rgb = _unit(4, (0, 3), (1, 3), (2, 3)), _unit(4, (0, 0), (1, 1), (2, 2))
    gray = F.pad(torch.full((3, 3), 1 / 3), (0, 1, 0, 1))  # projection on the luma axis (1, 1, 1) / sqrt(3)
    turn = _unit(4, (1, 0), (2, 1), (0, 2)) - _unit(4, (0, 1), (1, 2), (2, 0))
    turn = turn / math.sqrt(3)  # cross product with that axis
    hue = draws["hue"]
    return _product(
        _identity_plus((draws["saturation"] - 1, rgb - gray)),
        _identity_plus((hue.sin(), turn), (hue.cos() - 1, rgb - gray)),
        _identity_plus((-2 * draws["luma_flip"], gray)),
        _identity_plus((draws["contrast"] - 1, rgb)),
        _identity_plus((draws["brightness"], white)),
    )


def _unit(size: int, *places: tuple[int, int]) -> torch.Tensor:
    """A matrix of zeros with ones at these places."""
    matrix = torch.zeros(size, size)
    matrix[tuple(zip(*places, strict=True))] = 1
    return matrix


def _identity_plus(*terms: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """1 + sum of coefficient [B] * matrix [N, N]; coefficients of 0 give exactly the identity."""
    parts = [coefficient[:, None, None] * matrix.to(coefficient) for coefficient, matrix in terms]
    return sum(parts, torch.eye(parts[0].shape[-1]).to(parts[0]))


def _product(*matrices: torch.Tensor) -> torch.Tensor:
    """Matrix product, first times second times ...; by hand, because autocast and TF32 would round `@`."""
    total = matrices[0]
    for matrix in matrices[1:]:
        total = (total.unsqueeze(-1) * matrix.unsqueeze(-3)).sum(-2)
    return total


def _warp(images: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Pictures with `inverse` [B, 3, 3] of `inverse_geometry` applied, by way of twice the resolution."""
    height, width = images.shape[2:]
    fine = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)  # [B, 3, 2H, 2W]
    inverse = inverse.to(images)[..., None, None]  # [B, 3, 3, 1, 1]
    # half-pixel places from the centre, one more at each border for the filter
    y = (torch.arange(2 * height + 2, device=images.device) - 0.5 - height) / 2
    x = (torch.arange(2 * width + 2, device=images.device) - 0.5 - width) / 2
    places = inverse[:, :2, 0] * x + inverse[:, :2, 1] * y[:, None] + inverse[:, :2, 2]
    grid = torch.stack((places[:, 0] * (2 / width), places[:, 1] * (2 / height)), dim=-1)
    return _halved(_halved(_Sample.apply(fine, grid, None), 2), 3)  # [B, 3, 2H + 2, 2W + 2] -> [B, 3, H, W]


def _halved(images: torch.Tensor, axis: int) -> torch.Tensor:
    """Every second place of an axis by the filter (-1, 3, 3, -1) / 4, which undoes doubling exactly."""
    even, odd = images.unflatten(axis, (-1, 2)).unbind(axis + 1)
    last = even.shape[axis] - 1
    inner = odd.narrow(axis, 0, last) + even.narrow(axis, 1, last)
    outer = even.narrow(axis, 0, last) + odd.narrow(axis, 1, last)
    return 0.75 * inner - 0.25 * outer


class _Sample(torch.autograd.Function):
    """`grid_sample`, differentiable twice in the images, as R1 needs; older PyTorch's own is not (#177487).

    Sampling is linear in the images, so it and its transpose are each other's gradient. shape: None to sample
    images, or the images' shape to apply the transpose to samples.
    """

    @staticmethod
    def forward(ctx, values: torch.Tensor, grid: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = values.shape if shape is None else None
        if shape is None:
            return F.grid_sample(values, grid, **_GRID)
        with torch.enable_grad():
            images = values.new_zeros(shape).requires_grad_()
            samples = F.grid_sample(images, grid, **_GRID)
        return torch.autograd.grad(samples, images, values)[0]

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Sample.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None


def adjust_ada(strength: float, sign: float, images: int, target: float = 0.6, speed: int = 500_000) -> float:
    """The next strength of ADA: up where the discriminator is too sure of real pictures, else down.

    sign: mean of sign(D(real)) over the `images` pictures since the last call, each process's among them.
    speed: so many images take the strength from 0 to 1. Source: arXiv 2006.06676, section 3.1.
    """
    direction = (sign > target) - (sign < target)
    return min(1.0, max(0.0, strength + direction * images / speed))


# name -> (image_mean, image_std) -> augmentation of all that the discriminator sees
AUGMENTATIONS: dict[str, Callable[[Sequence[float], Sequence[float]], Augmentation]] = {
    "diffaugment": lambda image_mean, image_std: DiffAugment(),
    "ada": ADA,
}


def make_augmentation(name: str, image_mean: Sequence[float], image_std: Sequence[float]) -> Augmentation:
    """The augmentation of a name for pictures normalised by this mean and standard deviation per RGB channel.

    Raises `InputError` for a name that is not in `AUGMENTATIONS`.
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"augmentation is {name!r}; allowed: {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name](image_mean, image_std)

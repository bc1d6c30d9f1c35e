"""How far a set of pictures is from another: the sliced Wasserstein distance, which needs no network.

Legend: B pictures of one update, N pictures of a set, R their side, S the side at one level, L levels,
P patches per picture, M = N * P descriptors of a set at one level, each of D = 3 * 7 * 7 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stylenat_hub.errors import InputError

SMALLEST = 16  # pixels, the side of the coarsest level
SIDE = 7  # pixels, of a patch
DIMENSIONS = 3 * SIDE * SIDE
FLAT = 1e-5  # 1/400 of a step of 8 bits; a standard deviation below is rounding and is not blown up to 1
BLOCK = 2**12  # descriptors that are projected at a time, so that they stay in the cache
PIXELS = 2**19  # of pictures whose pyramid is built at a time, for the same reason
PROJECTED = 2**22  # projected numbers of one set that are sorted at a time: 16 MiB


class SlicedWasserstein:
    """The descriptors of one set of pictures, gathered batch by batch, for `sliced_wasserstein`.

    A picture becomes a Laplacian pyramid from R down to 16 pixels, and each level gives P patches of 7 x 7
    pixels in 3 colours at random places. The places follow from the seed and the picture's number in the set:
    neither the size of the batches nor the number of threads changes them. Source: Progressive GAN, arXiv
    1710.10196, section 5.

    resolution: R in pixels, a power of two from 16. patches_per_image: P, 128 in the paper. seed: of the
    places; as for any measurement by chance, comparable results have equal seeds.

    Memory: 588 bytes per descriptor, so N * P * L * 588 bytes in all: at 32 px (2 levels) and 128 patches
    147 KiB per picture, 144 MiB for 1000 and 1.4 GiB for 10,000; at 256 px (5 levels) 2.5 times that. They
    are not kept in half precision because it moves sets apart that are nearly the same (64 px drawings with
    noise of 1/255 added: by 3 % at 16 px).

    Raises `InputError` for a resolution that is not such a power of two, or fewer than 1 patch.
    """

    def __init__(self, resolution: int, *, patches_per_image: int = 128, seed: int = 0) -> None:
        if resolution < SMALLEST or resolution & (resolution - 1):
            raise InputError(
                f"resolution is {resolution}; allowed: powers of two from {SMALLEST}, such as 32 or 256; "
                f"resize the pictures of both sets alike"
            )
        if patches_per_image < 1:
            raise InputError(f"patches_per_image is {patches_per_image}; allowed: 1 or more (the paper: 128)")
        self.resolution, self.patches_per_image = resolution, patches_per_image
        self.count = 0  # N, the pictures so far
        self._chance = torch.Generator().manual_seed(seed)
        levels = (resolution // SMALLEST).bit_length()
        self._parts: list[list[torch.Tensor]] = [[] for _ in range(levels)]

    def update(self, images: torch.Tensor) -> None:
        """Add the pictures [B, 3, R, R] in [0, 1], of any float type and on any device.

        Raises `InputError`, with nothing added, for another shape or type, for numbers that are not finite,
        and for any outside [0, 1] by more than 0.001.
        """
        side = self.resolution
        fits = images.ndim == 4 and len(images) and images.shape[1:] == (3, side, side)
        if not fits or not images.is_floating_point():
            raise InputError(
                f"images are {list(images.shape)} of {images.dtype}; allowed: [B, 3, {side}, {side}] of a "
                f"float type in [0, 1]; divide 8-bit pictures by 255"
            )
        images = images.detach().to("cpu", torch.float32)
        low, high = (edge.item() for edge in images.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
            raise InputError(
                f"images range from {low:.4g} to {high:.4g}; allowed: finite numbers from 0 to 1; bring "
                f"pictures in [-1, 1] there by (x + 1) / 2 and clamp what a generator overshoots"
            )
        for some in images.split(max(1, PIXELS // side**2)):
            corners = zip(*(self._draw_corners() for _ in some), strict=True)
            for parts, level, own in zip(self._parts, _laplacian_pyramid(some), corners, strict=True):
                parts.append(_patches(level, torch.stack(own)))
        self.count += len(images)

    def descriptors(self) -> list[torch.Tensor]:
        """The descriptors so far, from full resolution down to 16 px: L tensors float32 [N * P, 147], picture
        by picture, each colour's 49 numbers together. They are not normalised yet and, as they are many, not
        copied: change them and the set is changed.

        Raises `InputError` before the first picture.
        """
        if not self.count:
            raise InputError("the set has no pictures; call update() first")
        for parts in self._parts:
            parts[:] = [torch.cat(parts)] if len(parts) > 1 else parts
        return [parts[0] for parts in self._parts]

    def _draw_corners(self) -> list[torch.Tensor]:
        """Row and column of the upper left pixels of one picture's patches, [2, P] per level.

        One picture's numbers are drawn before the next one's, so that batches do not matter.
        """
        sides = (self.resolution >> i for i in range(len(self._parts)))
        return [
            torch.randint(side - SIDE + 1, (2, self.patches_per_image), generator=self._chance)
            for side in sides
        ]


@torch.no_grad()
def sliced_wasserstein(
    real: SlicedWasserstein | Sequence[torch.Tensor],
    fake: SlicedWasserstein | Sequence[torch.Tensor],
    *,
    projections: int = 512,
    seed: int = 0,
) -> dict[str, float]:
    """How far apart two equally large sets are: {"swd": the mean, "swd_32": ..., "swd_16": ...}, times 1000.

    Small is near, 0 is the same set; a level's side is in its name. Fine levels compare texture and noise,
    coarse ones large shapes. At each level the descriptors of each set are normalised to mean 0 and standard
    deviation 1 per colour, by the set's own figures, so that an even change of brightness, contrast or tint
    is not seen; both sets are projected onto the same random unit vectors, sorted, and the distance is the
    mean absolute difference. Two sets of the same kind do not reach 0, and come nearer the larger they are:
    quote the number of pictures.

    real, fake: two sets, or their `descriptors()` on the CPU. projections: 512 is the paper's 4 repeats of
    128, whose mean is the mean over all of them. seed: of the projections.

    Besides the sets it takes up to 160 MiB, for 32,768 pictures of 128 patches or fewer. Source: arXiv
    1710.10196, section 5, after Rabin et al. 2011, "Wasserstein barycenter and its application to texture
    mixing".

    Raises `InputError` for sets of different sizes, levels or patches per picture, empty or malformed ones,
    or fewer than 1 projection.
    """
    if projections < 1:
        raise InputError(f"projections is {projections}; allowed: 1 or more (the paper: 512)")
    if isinstance(real, SlicedWasserstein) and isinstance(fake, SlicedWasserstein):
        _check_sets(real, fake)
    real, fake = (s.descriptors() if isinstance(s, SlicedWasserstein) else list(s) for s in (real, fake))
    _check_descriptors(real, fake)
    chance = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, DIMENSIONS, dtype=torch.float64, generator=chance)
    directions /= directions.norm(dim=1, keepdim=True)
    levels = {
        f"swd_{SMALLEST << (len(real) - 1 - i)}": 1000 * _distance(a, b, directions)
        for i, (a, b) in enumerate(zip(real, fake, strict=True))
    }
    return {"swd": sum(levels.values()) / len(levels), **levels}


def _check_sets(real: SlicedWasserstein, fake: SlicedWasserstein) -> None:
    if real.count != fake.count:
        raise InputError(
            f"the real set has {real.count} pictures and the other {fake.count}; allowed: equal numbers; "
            f"leave out what one has more"
        )
    sizes = [(s.resolution, s.patches_per_image) for s in (real, fake)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"resolution and patches per picture are {sizes[0]} in the real set and {sizes[1]} in the other; "
            f"allowed: equal ones; gather one of the sets again"
        )


def _check_descriptors(real: list[torch.Tensor], fake: list[torch.Tensor]) -> None:
    if not real or len(real) != len(fake):
        raise InputError(f"the sets have {len(real)} and {len(fake)} levels; allowed: equal numbers from 1")
    for a, b in zip(real, fake, strict=True):
        if any(x.ndim != 2 or not len(x) or x.shape[1] != DIMENSIONS for x in (a, b)):
            raise InputError(
                f"descriptors are {list(a.shape)} and {list(b.shape)}; allowed: [N * P, {DIMENSIONS}], as "
                f"descriptors() returns them"
            )
        if len(a) != len(b):
            raise InputError(
                f"the real set has {len(a)} descriptors and the other {len(b)}; allowed: equal numbers; use "
                f"as many pictures and as many patches of each"
            )


def _laplacian_pyramid(images: torch.Tensor) -> list[torch.Tensor]:
    """[B, 3, S, S] for S = R, R / 2, ..., 16: what each level has beyond the next one, and the last whole.

    Source: Burt and Adelson 1983, "The Laplacian pyramid as a compact image code".
    """
    levels = [images]
    while levels[-1].shape[-1] > SMALLEST:
        fine = levels.pop()
        coarse = _blur(fine, step=2)
        spread = torch.zeros_like(fine)
        spread[..., ::2, ::2] = 4 * coarse  # three of four pixels are zero
        levels += [fine - _blur(spread), coarse]
    return levels


def _blur(x: torch.Tensor, step: int = 1) -> torch.Tensor:
    """[B, 3, S, S] -> [B, 3, S / step, S / step], the border mirrored without repeating the outermost pixel.

    Written as sums, because they do not depend on the size of the batch, as a convolution's may.
    """
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    for _ in range(2):  # along rows, then columns: the 5 x 5 Gaussian is a product
        size = x.shape[-1] - 4
        taps = [x[..., k : k + size : step] for k in range(5)]
        x = 6 / 16 * taps[2]
        for k, weight in ((1, 4 / 16), (3, 4 / 16), (0, 1 / 16), (4, 1 / 16)):
            x.add_(taps[k], alpha=weight)
        x = x.transpose(2, 3)
    return x


def _patches(level: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """level [B, 3, S, S], corners [B, 2, P] -> [B * P, 147]."""
    windows = level.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # a view [B, 3, S - 6, S - 6, 7, 7]
    picture = torch.arange(len(level))[:, None]
    return windows[picture, :, corners[:, 0], corners[:, 1]].reshape(-1, DIMENSIONS)


def _distance(real: torch.Tensor, fake: torch.Tensor, directions: torch.Tensor) -> float:
    """The mean absolute difference of the sorted projections, of descriptors [M, 147] on rows [., 147]."""
    statistics = [_statistics(descriptors) for descriptors in (real, fake)]
    total = 0.0
    for chunk in directions.split(max(1, PROJECTED // len(real))):
        a, b = (
            _sorted_projections(descriptors, chunk, *own)
            for descriptors, own in zip((real, fake), statistics, strict=True)
        )
        total += a.sub_(b).abs_().sum(1, dtype=torch.float64).sum().item()
    return total / (len(directions) * len(real))


def _statistics(descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each colour, repeated to float64 [147] each."""
    mean = sum(block.sum(0, dtype=torch.float64) for block in descriptors.split(BLOCK)) / len(descriptors)
    mean = mean.view(3, -1).mean(1).repeat_interleave(SIDE * SIDE)
    square = sum((block - mean).square_().sum(0) for block in descriptors.split(BLOCK)) / len(descriptors)
    return mean, square.view(3, -1).mean(1).sqrt().clamp_min(FLAT).repeat_interleave(SIDE * SIDE)


def _sorted_projections(
    descriptors: torch.Tensor, directions: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
) -> torch.Tensor:
    """[M, 147] normalised, on each of the rows [K, 147]: [K, M], each row ascending."""
    mean, scaled = mean.float(), (directions / deviation).float()
    blocks = [scaled @ (block.float() - mean).T for block in descriptors.split(BLOCK)]
    projected = torch.cat(blocks, dim=1)
    projected.numpy().sort(axis=1)  # in place, on the same memory; with AVX-512 30 times as fast as torch
    return projected

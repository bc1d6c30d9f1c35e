"""Perceptual path length: of generators whose paths are known, of the zoo's, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_features import normal
from small_models import tiny_generator
from torch import nn

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import feature_distance, perceptual_path_length

SIZE = 48  # of z, w, and of a picture of 4 x 4 pixels


class Known(nn.Module):
    """A generator whose pictures are a matrix times its styles, and whose styles are its latents, or their
    directions."""

    z_dim = SIZE

    def __init__(self, matrix: torch.Tensor, normalised: bool = False) -> None:
        super().__init__()
        self.register_buffer("w_avg", torch.zeros(SIZE, dtype=torch.float64))
        self.matrix, self.normalised = matrix, normalised
        self.eval()

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        return (z / z.norm(dim=1, keepdim=True) if self.normalised else z)[:, None].expand(-1, 3, -1)

    def synthesis(self, ws: torch.Tensor) -> torch.Tensor:
        return (ws.mean(1) @ self.matrix.T).view(-1, 3, 4, 4)

    def to_rgb01(self, images: torch.Tensor) -> torch.Tensor:
        return (images + 0.5).clamp(0, 1)


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().sum((1, 2, 3))


def latents(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The ends [samples, 2, SIZE] and places [samples] that a seed stands for."""
    chance = torch.Generator().manual_seed(seed)
    drawn = [
        (torch.randn(2, SIZE, generator=chance), torch.rand(1, generator=chance)) for _ in range(samples)
    ]
    z, place = zip(*drawn, strict=True)
    return torch.stack(z).double(), torch.cat(place).double()


def trimmed(lengths: np.ndarray) -> float:
    low = np.percentile(lengths, 1, method="lower")
    high = np.percentile(lengths, 99, method="higher")
    return float(lengths[(lengths >= low) & (lengths <= high)].mean())


@pytest.mark.parametrize("ends", ["full", "end"])
def test_of_straight_lines(ends):
    """Along a line through w a linear generator changes alike everywhere: by |A (w1 - w0)|^2."""
    matrix = 0.01 * normal(SIZE, SIZE)  # so small that no pixel is clamped
    result = perceptual_path_length(Known(matrix), squared, samples=250, ends=ends, seed=3)
    z, _ = latents(250, seed=3)
    lengths = ((z[:, 1] - z[:, 0]) @ matrix.T).square().sum(1).numpy()
    # squares of differences of float64 pictures: 1e-16 of 1e-4 * 1e-1
    assert result["mean"] == pytest.approx(lengths.mean(), rel=1e-8)
    assert result["trimmed_mean"] == pytest.approx(trimmed(lengths), rel=1e-8)
    assert result["trimmed_mean"] != pytest.approx(result["mean"], rel=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 99, 100, 101, 102])
def test_percentiles(samples):
    matrix = 0.01 * normal(SIZE, SIZE)
    result = perceptual_path_length(Known(matrix), squared, samples=samples)
    z, _ = latents(samples)
    lengths = ((z[:, 1] - z[:, 0]) @ matrix.T).square().sum(1).numpy()
    assert result["trimmed_mean"] == pytest.approx(trimmed(lengths), rel=1e-8)


def test_along_the_sphere():
    """Where styles are directions and pictures are a turn of them, a step turns by epsilon of the angle."""
    turn = 0.4 * torch.linalg.qr(normal(SIZE, SIZE)).Q
    result = perceptual_path_length(Known(turn, normalised=True), squared, samples=100, space="z")
    z, _ = latents(100)
    angles = torch.cosine_similarity(z[:, 0], z[:, 1]).acos()
    # a chord is shorter than its arc, by (1e-4)^2 / 12 of its square
    assert result["mean"] == pytest.approx((0.16 * angles.square()).mean().item(), rel=1e-7)


def test_lengths_change_evenly_along_the_sphere():
    """Where z is not normalised, a step at t = 0 also grows or shrinks by epsilon times the difference."""
    matrix = 0.01 * torch.eye(SIZE, dtype=torch.float64)
    result = perceptual_path_length(Known(matrix), squared, samples=100, space="z", ends="end")
    z, _ = latents(100)
    first, last = z[:, 0].norm(dim=1), z[:, 1].norm(dim=1)
    angles = torch.cosine_similarity(z[:, 0], z[:, 1]).acos()
    right = 1e-4 * ((first * angles).square() + (last - first).square())
    assert result["mean"] == pytest.approx(right.mean().item(), rel=1e-3)  # of first order in epsilon


def test_where_on_the_path():
    """Clamped pixels do not change: all over the path or at its start only, in which case far fewer are."""
    matrix = 0.2 * normal(SIZE, SIZE, seed=1)
    z, place = latents(40)
    found = {}
    for ends, at in (("full", place), ("end", torch.zeros(40))):
        result = perceptual_path_length(Known(matrix), squared, samples=40, ends=ends, epsilon=1e-3)
        lengths = []
        for (first, last), t in zip(z, at.tolist(), strict=True):
            near, far = (
                ((first + (last - first) * (t + step)) @ matrix.T + 0.5).clamp(0, 1) for step in (0, 1e-3)
            )
            lengths.append((near - far).square().sum().item() / 1e-6)
        found[ends] = result["mean"]
        assert result["mean"] == pytest.approx(np.mean(lengths), rel=1e-8)
    assert found["full"] != pytest.approx(found["end"], rel=0.05)


@pytest.mark.parametrize("space", ["w", "z"])
@pytest.mark.parametrize("family", ["stylenat", "styleswin", "hit"])
def test_batches_do_not_matter(family, space):
    """In float64, because float32 rounds about 1e-3 of what a step of 1e-4 changes."""
    generator = tiny_generator(family).double()
    results = [
        perceptual_path_length(generator, squared, samples=5, space=space, batch=batch) for batch in (1, 2, 5)
    ]
    for result in results:
        assert math.isfinite(result["mean"]) and result["mean"] > 0
        assert result == pytest.approx(results[0], rel=1e-6)


def test_float32_agrees_with_float64():
    generator = tiny_generator()
    single = perceptual_path_length(generator, squared, samples=4, epsilon=1e-3)
    double = perceptual_path_length(generator.double(), squared, samples=4, epsilon=1e-3)
    assert single == pytest.approx(double, rel=1e-2)


def test_seeds():
    generator = Known(0.01 * normal(SIZE, SIZE))
    results = [perceptual_path_length(generator, squared, samples=5, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


# A distance by features


def colours(images: torch.Tensor) -> tuple[torch.Tensor, None]:
    """The sums of the pixels of each colour, as features without logits."""
    return images.double().sum((2, 3)), None


def test_feature_distance():
    """Between features of length 1: (1, 0, 0) and (0, 1, 0) are at 2, brightness does not matter."""
    pictures = torch.zeros(4, 3, 2, 2)
    pictures[0, 0], pictures[1, 1], pictures[2, 0] = 1, 1, 0.2
    for eight_bit in (True, False):
        distance = feature_distance(colours, eight_bit=eight_bit)
        values = distance(pictures[[0, 0, 0]], pictures[[1, 2, 3]])
        assert values.tolist() == pytest.approx([2, 0, 1], abs=1e-12)


def test_feature_distance_rounds_to_8_bits_only_if_it_says_so():
    seen = []

    def features(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1)

    pictures = torch.full((1, 3, 1, 1), 0.3)
    feature_distance(features)(pictures, pictures)
    assert seen[-1].dtype == torch.uint8 and seen[-1].flatten().tolist() == [76, 76, 76]  # 76.5: to even
    feature_distance(features, eight_bit=False)(pictures, pictures)
    assert torch.equal(seen[-1], pictures)


def test_steps_that_8_bits_do_not_show_are_refused():
    generator = Known(0.01 * normal(SIZE, SIZE))
    with pytest.raises(InputError, match=r"a step of epsilon = 0.0001 changes pixels by .*e-06 on average"):
        perceptual_path_length(generator, feature_distance(colours), samples=4)
    coarse, fine = (
        perceptual_path_length(
            generator, feature_distance(colours, eight_bit=eight_bit), samples=40, epsilon=0.5, ends="end"
        )["mean"]
        for eight_bit in (True, False)
    )
    assert coarse == pytest.approx(fine, rel=0.05)
    small = perceptual_path_length(generator, feature_distance(colours, eight_bit=False), samples=4)
    assert small["mean"] > 0


# What it refuses


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 0}, "samples is 0; allowed: 1 or more"),
        ({"batch": 0}, "batch is 0"),
        ({"epsilon": 0}, "epsilon is 0; allowed: above 0, up to 1"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": 2.0}, "epsilon is 2.0"),
        ({"space": "x"}, "space is 'x'; allowed: 'w' or 'z'"),
        ({"ends": "both"}, "ends is 'both'; allowed: 'full' or 'end'"),
    ],
)
def test_bad_arguments(options, says):
    with pytest.raises(InputError, match=says):
        perceptual_path_length(Known(normal(SIZE, SIZE)), squared, **{"samples": 2, **options})


def test_bad_generators():
    with pytest.raises(InputError, match=r"in training mode; call its eval\(\)"):
        perceptual_path_length(Known(normal(SIZE, SIZE)).train(), squared, samples=2)
    with pytest.raises(InputError, match=r"weights are torch.float16.*allowed: float32"):
        perceptual_path_length(tiny_generator().half(), squared, samples=2)


@pytest.mark.parametrize(
    "distance", [lambda a, b: (a - b).square().sum(), lambda a, b: squared(a, b) * math.nan]
)
def test_bad_distances(distance):
    with pytest.raises(InputError, match=r"the distance of 2 pairs is .*; allowed: finite numbers \[2\]"):
        perceptual_path_length(Known(normal(SIZE, SIZE)), distance, samples=2)

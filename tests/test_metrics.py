"""The sliced Wasserstein distance: against a naive one, and what it must see and must not see."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from stylenat_hub.errors import InputError
from stylenat_hub.metrics import SlicedWasserstein, sliced_wasserstein
from training.toy_churches import draw_church

SIDE = 32


def tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """[N, 3, R, R] in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def gathered(images: torch.Tensor, batch: int = 1000, **options: int) -> SlicedWasserstein:
    result = SlicedWasserstein(images.shape[-1], **options)
    for some in images.split(batch):
        result.update(some)
    return result


def random(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Of tensors this small most of the time would go into waiting for another thread on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [draw_church(number, SIDE) for number in range(48)]


@pytest.fixture(scope="module")
def churches(pictures) -> SlicedWasserstein:
    return gathered(tensor(pictures))


# What it is


def mirrored(index: int, size: int) -> int:
    """... 2 1 [0 1 2 ... size - 1] size - 2 ..."""
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


def naive_blur(plane: np.ndarray) -> np.ndarray:
    kernel, size = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256, len(plane)
    out = np.zeros_like(plane)
    for y in range(size):
        for x in range(size):
            for i in range(5):
                for j in range(5):
                    out[y, x] += kernel[i, j] * plane[mirrored(y + i - 2, size), mirrored(x + j - 2, size)]
    return out


def naive_pyramid(plane: np.ndarray) -> list[np.ndarray]:
    if len(plane) == 16:
        return [plane]
    coarse = naive_blur(plane)[::2, ::2]
    spread = np.zeros_like(plane)
    spread[::2, ::2] = coarse
    return [plane - 4 * naive_blur(spread), *naive_pyramid(coarse)]


def naive_descriptors(images: torch.Tensor, patches: int, seed: int) -> list[np.ndarray]:
    """Per level [N, P, 3, 7, 7]."""
    chance = torch.Generator().manual_seed(seed)
    levels: list[list[np.ndarray]] = []
    for picture in images.double().numpy():
        channels = zip(*(naive_pyramid(plane) for plane in picture), strict=True)
        for i, level in enumerate(np.stack(planes) for planes in channels):
            places = torch.randint(level.shape[-1] - 6, (2, patches), generator=chance)
            levels += [[]] if i == len(levels) else []
            levels[i].append(np.stack([level[:, y : y + 7, x : x + 7] for y, x in places.T.tolist()]))
    return [np.stack(level) for level in levels]


def naive_distance(real: np.ndarray, fake: np.ndarray, directions: np.ndarray) -> float:
    distances = []
    for direction in directions:
        projected = []
        for descriptors in (real, fake):
            values = 0.0
            for c in range(3):
                colour = descriptors[:, :, c]
                colour = (colour - np.mean(colour)) / np.std(colour)
                values = values + (colour * direction.reshape(3, 7, 7)[c]).sum((2, 3))
            projected.append(sorted(values.ravel().tolist()))
        distances += [abs(a - b) for a, b in zip(*projected, strict=True)]
    return sum(distances) / len(distances)


def test_agrees_with_a_naive_one():
    """In float64, by loops. Only the random numbers are drawn in the same way."""
    images = [random(2, SIDE, seed) for seed in (1, 2)]
    expected = [naive_descriptors(some, patches=9, seed=5) for some in images]
    sets = [gathered(some, patches_per_image=9, seed=5) for some in images]
    for one, naive in zip(sets, expected, strict=True):
        for level, right in zip(one.descriptors(), naive, strict=True):
            # float32 of numbers up to 1, a few sums deep
            assert np.abs(level.numpy() - right.reshape(level.shape)).max() < 1e-6
    directions = torch.randn(6, 147, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).numpy()
    directions = [direction / math.sqrt((direction**2).sum()) for direction in directions]
    fine, coarse = (1000 * naive_distance(a, b, directions) for a, b in zip(*expected, strict=True))
    result = sliced_wasserstein(*sets, projections=6, seed=3)
    # relative, of float32 sums of 147 numbers
    assert result == pytest.approx({"swd": (fine + coarse) / 2, "swd_32": fine, "swd_16": coarse}, rel=2e-6)


def test_of_two_known_distributions():
    """Halves at -1 and 1 against a quarter at -sqrt 2, a half at 0 and a quarter at sqrt 2: both have
    standard deviation 1, and sorted they are (sqrt 2 - 1 + 1) / 2 apart. All 147 numbers of a descriptor are
    equal, so a unit vector scales that by the absolute sum of its entries, on average near sqrt(2 / pi).
    """
    root = math.sqrt(2)
    real, fake = (
        torch.tensor(values)[:, None].expand(4, 147).repeat(10, 1)
        for values in ((1.0, -1.0, 1.0, -1.0), (root, 0.0, 0.0, -root))
    )
    result = sliced_wasserstein([real.requires_grad_()], [fake], projections=4096)  # no gradient is followed
    # 1 % is the standard error of a mean of 4096; four of them
    assert result["swd"] == pytest.approx(1000 * root / 2 * math.sqrt(2 / math.pi), rel=0.04)
    assert result == {"swd": result["swd"], "swd_16": result["swd"]}
    for spread in (0.01, 300.0):  # each set by its own mean and deviation
        again = sliced_wasserstein([real], [spread * fake + spread / 3], projections=4096)
        assert again["swd"] == pytest.approx(result["swd"], rel=1e-5)


def test_patches_lie_anywhere_inside():
    """In a picture of its own coordinates, at 16 px where the level is the picture itself."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    image = torch.stack([rows / 16, columns / 16, torch.zeros(16, 16)])
    (level,) = gathered(image.repeat(20, 1, 1, 1)).descriptors()
    patches = 16 * level.view(-1, 3, 7, 7)
    corners = patches[:, :2, :1, :1]
    steps = torch.stack([rows[:7, :7], columns[:7, :7]])
    assert torch.equal(patches[:, :2], corners + steps)
    # 2560 patches in 100 places: that one is missed has a probability of 1e-9
    assert {tuple(c) for c in corners.flatten(1).int().tolist()} == {
        (y, x) for y in range(10) for x in range(10)
    }


def test_levels_have_their_names():
    sets = [gathered(random(2, 64, seed)) for seed in (0, 1)]
    result = sliced_wasserstein(*sets, projections=8)
    assert list(result) == ["swd", "swd_64", "swd_32", "swd_16"]
    assert result["swd"] == pytest.approx((result["swd_64"] + result["swd_32"] + result["swd_16"]) / 3)
    assert [list(level.shape) for level in sets[0].descriptors()] == [[256, 147]] * 3
    assert sliced_wasserstein(*(s.descriptors() for s in sets), projections=8) == result


# What it sees


def test_equal_sets_are_at_zero(churches, pictures):
    zero = {"swd": 0.0, "swd_32": 0.0, "swd_16": 0.0}
    assert sliced_wasserstein(churches, churches, projections=32) == zero
    assert sliced_wasserstein(churches, gathered(tensor(pictures)), projections=32) == zero


def test_grows_with_noise(churches, pictures):
    images = tensor(pictures)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    sets = [gathered((images + a * noise).clamp(0, 1)) for a in (0.0, 0.01, 0.03, 0.1, 0.3)]
    results = [sliced_wasserstein(churches, one, projections=32) for one in sets]
    for name in ("swd", "swd_32", "swd_16"):
        values = [result[name] for result in results]
        assert all(1.1 * a < b for a, b in pairwise(values)), (name, values)
    # noise is of the fine level: there the first step is seen best
    assert results[1]["swd_32"] > 2 * results[1]["swd_16"]


def test_grows_with_blur(churches, pictures):
    radii = (0, 0.25, 0.5, 1, 2, 4)
    blurred = [[p.filter(ImageFilter.GaussianBlur(radius)) for p in pictures] for radius in radii]
    results = [sliced_wasserstein(churches, gathered(tensor(some)), projections=32) for some in blurred]
    for name in ("swd", "swd_32", "swd_16"):
        values = [result[name] for result in results]
        assert all(1.2 * a < b for a, b in pairwise(values)), (name, values)


def test_other_drawings_are_nearer_than_noise(churches, pictures):
    others = tensor([draw_church(number, SIDE) for number in range(1000, 1048)])
    near = sliced_wasserstein(churches, gathered(others), projections=64)
    far = sliced_wasserstein(churches, gathered(random(48, SIDE)), projections=64)
    assert all(0 < 3 * near[name] < far[name] for name in far), (near, far)
    # more pictures of the same kind are nearer: what is left is chance
    halves = [gathered(images[:12]) for images in (tensor(pictures), others)]
    assert near["swd"] < 0.8 * sliced_wasserstein(*halves, projections=64)["swd"]


def test_brightness_contrast_and_tint_are_not_seen(churches, pictures):
    scale, shift = torch.tensor([[0.5, 0.8, 0.7], [0.1, 0.2, 0.3]])[:, :, None, None]
    result = sliced_wasserstein(churches, gathered(scale * tensor(pictures) + shift), projections=64)
    assert result["swd"] < 0.01  # float32; a noise of 1 % gives 8


def test_flat_pictures_have_no_detail():
    """The kernel sums to 1 at the border too, and nothing is divided by a deviation of 0."""
    sets = [gathered(torch.full((3, 3, SIDE, SIDE), value)) for value in (0.25, 0.7, 0.0)]
    fine, coarse = sets[0].descriptors()
    assert torch.equal(fine, torch.zeros_like(fine)) and torch.equal(coarse, torch.full_like(coarse, 0.25))
    assert sliced_wasserstein(sets[0], sets[2], projections=8)["swd"] == 0
    # 0.7 is rounded, by up to 1e-7, which would be divided by a deviation of as little
    assert sliced_wasserstein(sets[0], sets[1], projections=8)["swd"] < 20
    assert math.isfinite(sliced_wasserstein(sets[0], gathered(random(3, SIDE)), projections=8)["swd"])


# What it does not depend on


@pytest.mark.parametrize("batch", [1, 7])
def test_batches_do_not_matter(churches, pictures, batch):
    other = gathered(tensor(pictures), batch)
    assert other.count == churches.count == len(pictures)
    for a, b in zip(churches.descriptors(), other.descriptors(), strict=True):
        assert torch.equal(a, b)


def test_large_pictures_are_taken_in_parts(monkeypatch):
    images = random(5, 64)
    whole = gathered(images).descriptors()
    monkeypatch.setattr("stylenat_hub.metrics.swd.PIXELS", 2 * 64 * 64 + 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, gathered(images).descriptors(), strict=True))


def test_a_set_can_grow(pictures):
    """Descriptors may be asked for in between, as a training loop does."""
    images = tensor(pictures)[:9]
    one = SlicedWasserstein(SIDE)
    for start in (0, 3, 6):
        one.update(images[start : start + 3])
        got, right = one.descriptors(), gathered(images[: start + 3]).descriptors()
        assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


def test_seeds(churches, pictures):
    images = tensor(pictures)
    a, b = gathered(images[:24]), gathered(images[24:])
    results = [sliced_wasserstein(a, b, projections=64, seed=seed)["swd"] for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2] == pytest.approx(results[0], rel=0.1)
    places = [gathered(images[:2], seed=seed).descriptors()[0] for seed in (0, 0, 1)]
    assert torch.equal(places[0], places[1]) and not torch.equal(places[0], places[2])


def test_threads_and_chunks_do_not_matter(churches, monkeypatch):
    other = gathered(random(48, SIDE))
    expected = sliced_wasserstein(churches, other, projections=16)
    torch.set_num_threads(2)
    try:
        again = sliced_wasserstein(churches, gathered(random(48, SIDE)), projections=16)
    finally:
        torch.set_num_threads(1)
    assert again == pytest.approx(expected, rel=1e-6)
    for name, value in (("BLOCK", 1000), ("PROJECTED", 1), ("PROJECTED", 3 * 48 * 128)):
        monkeypatch.setattr(f"stylenat_hub.metrics.swd.{name}", value)
        assert sliced_wasserstein(churches, other, projections=16) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_float_types(dtype):
    """All numbers are of 8 bits and so have one value in every type; gradients are not followed."""
    images = torch.randint(256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) / 256
    results = [gathered(x).descriptors() for x in (images, images.to(dtype).requires_grad_())]
    for a, b in zip(*results, strict=True):
        assert b.dtype == torch.float32 and not b.requires_grad and torch.equal(a, b)


# What it refuses


@pytest.mark.parametrize("resolution", [0, -32, 8, 24, 33, 48])
def test_bad_resolution(resolution):
    with pytest.raises(InputError, match=rf"resolution is {resolution}; allowed: powers of two from 16"):
        SlicedWasserstein(resolution)


def test_bad_numbers(churches):
    with pytest.raises(InputError, match="patches_per_image is 0"):
        SlicedWasserstein(32, patches_per_image=0)
    with pytest.raises(InputError, match="projections is 0"):
        sliced_wasserstein(churches, churches, projections=0)


def with_one(value: float) -> torch.Tensor:
    images = torch.full((2, 3, SIDE, SIDE), 0.5)
    images[1, 2, 3, 4] = value
    return images


BAD_IMAGES = {
    "one picture": (torch.zeros(3, SIDE, SIDE), r"images are \[3, 32, 32\]"),
    "a number": (torch.zeros(()), r"images are \[\]"),
    "none": (torch.zeros(0, 3, SIDE, SIDE), r"images are \[0, 3, 32, 32\]"),
    "another side": (torch.zeros(1, 3, 64, 64), r"allowed: \[B, 3, 32, 32\]"),
    "channels": (torch.zeros(1, 4, SIDE, SIDE), r"images are \[1, 4, 32, 32\]"),
    "8 bits": (torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), "torch.uint8.*divide 8-bit pictures by 255"),
    "NaN": (with_one(math.nan), "from nan to nan; allowed: finite"),
    "infinite": (with_one(math.inf), "from 0.5 to inf"),
    "above": (with_one(1.002), "from 0.5 to 1.002"),
    "below": (with_one(-0.002), "from -0.002 to 0.5"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name):
    """And nothing is added: the places of the next picture are as if it had not been there."""
    images, says = BAD_IMAGES[name]
    one, good = SlicedWasserstein(SIDE), random(1, SIDE)
    with pytest.raises(InputError, match=says):
        one.update(images)
    with pytest.raises(InputError, match="no pictures"):
        one.descriptors()
    one.update(good)
    assert one.count == 1
    assert all(
        torch.equal(a, b) for a, b in zip(one.descriptors(), gathered(good).descriptors(), strict=True)
    )


def test_slightly_outside_is_allowed():
    one = SlicedWasserstein(SIDE)
    one.update(with_one(1.0005))
    one.update(with_one(-0.0005))
    assert one.count == 4


def test_unequal_sets():
    images = random(3, SIDE)
    three, two = gathered(images), gathered(images[:2])
    with pytest.raises(InputError, match="has 3 pictures and the other 2; allowed: equal numbers"):
        sliced_wasserstein(three, two)
    with pytest.raises(InputError, match="has 384 descriptors and the other 256"):
        sliced_wasserstein(three, two.descriptors())
    with pytest.raises(InputError, match=r"\(32, 128\) in the real set and \(64, 128\)"):
        sliced_wasserstein(two, gathered(random(2, 64)))
    with pytest.raises(InputError, match=r"\(32, 128\) in the real set and \(32, 64\)"):
        sliced_wasserstein(two, gathered(images[:2], patches_per_image=64))
    with pytest.raises(InputError, match="2 and 1 levels"):
        sliced_wasserstein(two, two.descriptors()[1:])
    with pytest.raises(InputError, match="no pictures"):
        sliced_wasserstein(SlicedWasserstein(SIDE), SlicedWasserstein(SIDE))
    with pytest.raises(InputError, match="0 and 0 levels"):
        sliced_wasserstein([], [])
    with pytest.raises(InputError, match=r"are \[4, 147\] and \[4, 146\]"):
        sliced_wasserstein([torch.zeros(4, 147)], [torch.zeros(4, 146)])

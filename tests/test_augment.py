"""Augmentations: each operation against a loop over pixels, and what several processes rely on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stylenat_hub.errors import InputError
from training.augment import (
    ADA,
    AUGMENTATIONS,
    HIT_POLICY,
    OPERATIONS,
    Consistency,
    DiffAugment,
    adjust_ada,
    color_matrix,
    inverse_geometry,
    make_augmentation,
    take,
)

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECORDED = load_file(Path(__file__).parent / "goldens" / "hit_augment.safetensors")
ADA_IMAGENET = ADA(*IMAGENET)
ALL = {"consistency": Consistency(), "hit": Consistency(HIT_POLICY), "ada": ADA_IMAGENET}
each_augmentation = pytest.mark.parametrize("augmentation", ALL.values(), ids=ALL)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(9)).to(dtype)


def assert_close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@each_augmentation
def test_a_shard_gets_what_the_whole_batch_would(augmentation):
    images, draws = pictures(7, 3, 24, 16), augmentation.draw(7, seeded())
    whole = augmentation(images, draws)
    assert_close(augmentation(images[[0, 5]], take(draws, [0, 5])), whole[[0, 5]])
    assert_close(augmentation(images[1:5], take(draws, range(1, 5))), whole[1:5])
    mask = torch.arange(7) == 6
    assert_close(augmentation(images[mask], take(draws, mask)), whole[mask])
    assert len(augmentation(images[:0], take(draws, []))) == 0


@each_augmentation
def test_draws_follow_from_the_generator(augmentation):
    generator = seeded()
    first, second = augmentation.draw(6, generator), augmentation.draw(6, generator)
    again = augmentation.draw(6, seeded())
    assert all(values.dtype == torch.float32 and len(values) == 6 for values in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    images = pictures(1, 3, 16, 16).expand(6, 3, 16, 16)
    result = augmentation(images, first)
    assert torch.equal(result, augmentation(images, again))
    assert not torch.equal(result, augmentation(images, second))
    assert len(torch.unique(result, dim=0)) == 6  # each sample has numbers of its own


def test_the_strength_does_not_move_the_stream():
    generators = [seeded() for _ in range(3)]
    for generator, strength in zip(generators, (0.0, 0.3, 1.0), strict=True):
        ADA_IMAGENET.draw(5, generator, strength)
    assert len({tuple(generator.get_state().tolist()) for generator in generators}) == 1


@each_augmentation
def test_gradients_reach_the_pictures_twice(augmentation):
    """First derivatives train the generator, second ones are what R1 through the augmentation needs."""
    draws = augmentation.draw(2, seeded(3))
    images = pictures(2, 3, 4, 6, dtype=torch.float64).requires_grad_()
    check = {"nondet_tol": 1e-12, "fast_mode": True}
    assert torch.autograd.gradcheck(lambda x: augmentation(x, draws), images, **check)
    assert torch.autograd.gradgradcheck(lambda x: augmentation(x, draws), images, **check)
    augmentation(images.float(), draws).square().sum().backward()
    assert images.grad.flatten(1).any(1).all()


@each_augmentation
def test_half_precision_is_computed_in_single(augmentation):
    images, draws = pictures(4, 3, 16, 16, dtype=torch.bfloat16), augmentation.draw(4, seeded())
    result = augmentation(images, draws)
    assert result.dtype == torch.bfloat16
    single = augmentation(images.float(), draws)
    assert torch.equal(result, single.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation(images.float(), draws), single)


def shift(side, u):
    reach = math.floor(side / 8 + 0.5)
    return math.floor(u * (2 * reach + 1)) - reach


def covered(place, side, u):
    """The centre is uniform over 0 ... side (side - 1 for odd windows), and half of the window before it."""
    length = math.floor(side / 2 + 0.5)
    centre = math.floor(u * (side + 1 - length % 2))
    return centre - length // 2 <= place < centre - length // 2 + length


def naive(name, image, u):
    """One operation on one picture [3, H, W], pixel by pixel. u: a number or two."""
    _, height, width = image.shape
    result, mean = torch.zeros_like(image), sum(image.flatten().tolist()) / image.numel()
    for c in range(3):
        for i in range(height):
            for j in range(width):
                old, gray = image[c, i, j].item(), sum(image[:, i, j].tolist()) / 3
                if name == "flip":
                    new = image[c, i, width - 1 - j].item() if u < 0.5 else old
                elif name == "brightness":
                    new = old + u - 0.5
                elif name == "saturation":
                    new = (old - gray) * 2 * u + gray
                elif name == "contrast":
                    new = (old - mean) * (u + 0.5) + mean
                elif name == "translation":
                    y, x = i + shift(height, u[0]), j + shift(width, u[1])
                    new = image[c, y, x].item() if 0 <= y < height and 0 <= x < width else 0
                else:
                    new = 0 if covered(i, height, u[0]) and covered(j, width, u[1]) else old
                result[c, i, j] = new
    return result


@pytest.mark.parametrize("size", [(8, 8), (13, 20)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_what_a_loop_over_pixels_says(name, size):
    policy, images = Consistency((name,)), pictures(3, 3, *size)
    draws = policy.draw(3, seeded(1))
    result = policy(images, draws)
    assert not torch.equal(result, images)
    for image, u, actual in zip(images, draws[name].tolist(), result, strict=True):
        assert_close(actual, naive(name, image, u))


def test_the_default_is_the_t_of_stylenat_in_its_order():
    images, draws = pictures(2, 3, 8, 8), Consistency().draw(2, seeded(2))
    for row, actual in enumerate(Consistency()(images, draws)):
        expected = images[row]
        for name in ("flip", "translation", "brightness", "saturation", "contrast", "cutout"):
            expected = naive(name, expected, draws[name][row].tolist())
        assert_close(actual, expected)


@pytest.mark.parametrize("case", [*HIT_POLICY, "all"])
def test_hits_recorded_augmentations(case):
    """Recorded are shifts and window centres; (them - least + 1/2) / count in [0, 1) gives them back."""
    policy = Consistency(HIT_POLICY if case == "all" else (case,))
    images, expected = (RECORDED[key].permute(0, 3, 1, 2) for key in ("images", f"{case}.out"))
    draws = {name: RECORDED[f"{case}.draw.{name}"] for name in policy.names}
    whole = {"translation": ((-2, -3), (5, 7)), "cutout": ((0, 0), (17, 25))}  # of 16 x 24 pixels
    for name, (least, count) in whole.items():
        if name in draws:
            draws[name] = (draws[name] - torch.tensor(least) + 0.5) / torch.tensor(count)
    # the order of sums in a mean; moving and erasing are exact
    assert_close(policy(images, draws), expected, 0 if case in whole else 1e-6)


def test_one_half_changes_nothing():
    images = pictures(2, 3, 16, 16)
    for name in ("flip", "brightness", "saturation", "contrast", "translation"):
        half = torch.full((2, 2) if name == "translation" else (2,), 0.5)
        assert_close(Consistency((name,))(images, {name: half}), images)


def test_a_flip_only_mirrors():
    images, policy = pictures(64, 3, 4, 4), Consistency(("flip",))
    result = policy(images, policy.draw(64, seeded()))
    same = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 20 < mirrored.sum() < 44


@pytest.mark.parametrize("side", [4, 10, 12, 64])
def test_translation_reaches_an_eighth_of_the_side_and_fills_with_zeros(side):
    policy, reach = Consistency(("translation",)), math.floor(side / 8 + 0.5)
    images = torch.ones(400, 3, side, side)
    result = policy(images, policy.draw(400, seeded()))
    empty = (result == 0).all(1)
    rows, columns = empty.all(2).sum(1), empty.all(1).sum(1)
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(reach + 1))
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])  # the least and the largest float32
    first, last = policy(images[:2], {"translation": ends})[:, 0]
    assert not first[:reach].any() and first[reach:, reach:].all()
    assert not last[-reach:].any() and last[:-reach, :-reach].all()


@pytest.mark.parametrize("side", [7, 8, 30])
def test_cutout_erases_at_most_a_quarter_and_at_every_place(side):
    policy, length = Consistency(("cutout",)), math.floor(side / 2 + 0.5)
    images = torch.ones(2000, 3, side, side)
    empty = policy(images, policy.draw(2000, seeded())) == 0
    assert (empty == empty[:, :1]).all()
    area = empty[:, 0].sum((1, 2))
    assert area.max() == length**2 and area.min() == math.ceil(length / 2) ** 2  # least at a corner
    assert empty.any(0).all()


def neutral(count, **values):
    """ADA's draws at strength 0 with some replaced; a number for all samples, or a pair."""
    draws = ADA().draw(count, seeded(), 0.0)
    for name, value in values.items():
        draws[name] = torch.as_tensor(value, dtype=torch.float32).expand(draws[name].shape).clone()
    return draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_0_is_bitwise_the_identity_and_1_changes_all(dtype):
    ada, images = ADA_IMAGENET, pictures(16, 3, 12, 12, dtype=dtype)
    assert torch.equal(ada(images, ada.draw(16, seeded(), 0.0)), images)
    changes = (ada(images, ada.draw(16, seeded(), 1.0)) - images).abs().flatten(1).mean(1)
    assert (changes > 0.1).all()
    alone = neutral(16)
    alone["hue"][3] = alone["scale"][5] = 2.0
    result = ada(images, alone)
    changed = (result != images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 5]


def test_each_operation_happens_with_the_probability_of_the_strength():
    count, strength, rest = 20_000, 0.3, neutral(1)
    draws = ADA().draw(count, seeded(), strength)
    happened = {name: (draws[name] != rest[name]).reshape(count, -1).any(1) for name in draws}
    wanted = dict.fromkeys(draws, strength)
    wanted |= {"flip": 0.15, "luma_flip": 0.15, "quarter_turns": 0.3 * 3 / 4}  # the rest is drawn, but is 0
    wanted |= dict.fromkeys(("pre_rotation", "post_rotation"), 1 - math.sqrt(0.7))
    for name, share in wanted.items():
        assert happened[name].float().mean().item() == pytest.approx(share, abs=0.015), name  # 4.5 sigma
    either = happened["pre_rotation"] | happened["post_rotation"]
    assert either.float().mean().item() == pytest.approx(strength, abs=0.015)


def test_values_have_the_spread_of_the_paper():
    draws = ADA().draw(20_000, seeded(), 1.0)
    normal = {"shift": 0.125, "brightness": 0.2}
    octaves = {"scale": 0.2, "stretch": 0.2, "contrast": 0.5, "saturation": 1.0}  # lognormal, of x ln 2
    uniform = {"translation": 0.125, "pre_rotation": math.pi, "post_rotation": math.pi, "hue": math.pi}
    for name, deviation in (normal | octaves).items():
        values = draws[name].log2() if name in octaves else draws[name]
        assert values.std().item() == pytest.approx(deviation, rel=0.03), name
        assert values.mean().item() == pytest.approx(0, abs=0.04 * deviation), name
    for name, limit in uniform.items():
        assert draws[name].abs().max().item() == pytest.approx(limit, rel=1e-3), name
        assert draws[name].std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03), name
    assert set(draws["quarter_turns"].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_and_flips_are_exact(turns):
    images = pictures(2, 3, 16, 16)
    turned = torch.rot90(images, turns, (2, 3))
    # the place of a sample is a float32 number of pixels
    assert_close(ADA()(images, neutral(2, quarter_turns=turns)), turned, 1e-5)
    flipped = torch.rot90(images.flip(-1), turns, (2, 3))
    assert_close(ADA()(images, neutral(2, quarter_turns=turns, flip=1)), flipped, 1e-5)
    angle = ADA()(images, neutral(2, pre_rotation=turns * math.pi / 4, post_rotation=turns * math.pi / 4))
    assert_close(angle, turned, 1e-4)


def test_whole_pixel_translation_is_a_roll_inside_and_mirrors_at_the_border():
    images = pictures(2, 3, 16, 32)
    result = ADA()(images, neutral(2, translation=(0.12, -0.1)))  # 1.92 pixels down, 3.2 to the left
    rolled = images.roll((2, -3), (2, 3))
    assert_close(result[:, :, 2:, :-3], rolled[:, :, 2:, :-3], 1e-5)
    assert_close(result[:, :, 0, :-3], rolled[:, :, 3, :-3], 1e-5)
    assert_close(result[:, :, 2:, -1], rolled[:, :, 2:, -6], 1e-5)
    half = ADA()(images, neutral(2, shift=(0.0, 0.5 / 32)))  # half a pixel to the right: cubic interpolation
    cubic = 9 / 16 * (images[..., 1:-2] + images[..., 2:-1]) - (images[..., :-3] + images[..., 3:]) / 16
    assert_close(half[..., 2:-1], cubic, 1e-5)


def moved(x, y, draws, height, width):
    """Where a point of the picture (pixels from its centre, y down) goes, one operation after another."""

    def rotated(x, y, angle):  # counterclockwise as one looks at it
        return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)

    x = -x if draws["flip"] else x
    x, y = rotated(x, y, draws["quarter_turns"] * math.pi / 2)
    down, right = draws["translation"]
    x, y = x + round(right * width), y + round(down * height)
    x, y = x * draws["scale"], y * draws["scale"]
    x, y = rotated(x, y, draws["pre_rotation"])
    x, y = x * draws["stretch"], y / draws["stretch"]
    x, y = rotated(x, y, draws["post_rotation"])
    down, right = draws["shift"]
    return x + right * width, y + down * height


def test_the_geometry_is_the_inverse_of_the_operations_in_the_papers_order():
    draws = ADA().draw(20, seeded(4), 1.0)
    matrices = inverse_geometry(draws, 24, 40)
    for row, matrix in enumerate(matrices.double()):
        one = {name: values[row].tolist() for name, values in draws.items()}
        for x, y in ((0, 0), (7.5, -3), (-20, 11)):
            back = matrix @ torch.tensor([*moved(x, y, one, 24, 40), 1], dtype=torch.float64)
            # float32 of up to 100 pixels
            assert_close(back, torch.tensor([x, y, 1], dtype=torch.float64), 2e-4)


def test_a_smooth_picture_is_the_function_at_the_moved_places():
    def scene(x, y):
        return torch.stack([torch.sin(x / 9), torch.cos(y / 8 + 1), torch.sin((x + 2 * y) / 20)])

    height, width = 32, 48
    y, x = torch.meshgrid(torch.arange(height) - 15.5, torch.arange(width) - 23.5, indexing="ij")
    draws = neutral(1, pre_rotation=0.5, scale=1.3, stretch=1.1, shift=(0.05, -0.03), flip=1)
    matrix = inverse_geometry(draws, height, width)[0]
    places = [m[0] * x + m[1] * y + m[2] for m in matrix[:2]]
    inside = (places[0].abs() < width / 2 - 2) & (places[1].abs() < height / 2 - 2)
    result = ADA()(scene(x, y)[None], draws)[0]
    assert inside.float().mean() > 0.7
    # a place wrong by one pixel is up to 0.12
    assert_close(result[:, inside], scene(*places)[:, inside], 2e-3)


def recolored(images, **values):
    """ADA's colours on pictures in [-1, 1], by way of the normalisation of ImageNet."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    result = ADA_IMAGENET(((images + 1) / 2 - mean) / std, neutral(len(images), **values))
    return (result * std + mean) * 2 - 1


def test_colours_are_changed_one_after_another():
    images = pictures(3, 3, 4, 4)
    third = 2 * math.pi / 3  # turns red to green to blue
    assert_close(recolored(images, hue=third), images.roll(1, 1), 2e-6)
    gray = images.mean(1, keepdim=True)
    assert_close(recolored(images, saturation=0.25), gray + (images - gray) / 4, 2e-6)
    assert_close(recolored(images, luma_flip=1), images - 2 * gray, 2e-6)
    expected = (images + 0.3) * 1.5
    expected = (expected - 2 * expected.mean(1, keepdim=True)).roll(1, 1)
    gray = expected.mean(1, keepdim=True)
    expected = gray + (expected - gray) * 2
    actual = recolored(images, brightness=0.3, contrast=1.5, luma_flip=1, hue=third, saturation=2)
    assert_close(actual, expected, 1e-5)


def test_a_second_luma_flip_undoes_the_first_and_hue_keeps_luma():
    matrix = color_matrix(neutral(1, luma_flip=1))[0]
    assert_close(matrix @ matrix, torch.eye(4))
    images = pictures(3, 3, 4, 4)
    result = recolored(images, hue=[0.4, -1.3, 3.0])
    assert_close(result.mean(1), images.mean(1), 2e-6)
    assert_close(result.square().sum(1), images.square().sum(1), 2e-5)  # nor the distance from gray
    assert (result - images).abs().mean() > 0.1


def test_the_controller_of_the_strength():
    assert adjust_ada(0.5, 0.9, 5_000) == pytest.approx(0.51)  # too sure of real pictures: overfitting
    assert adjust_ada(0.5, 0.1, 5_000) == pytest.approx(0.49)
    assert adjust_ada(0.5, 0.6, 5_000) == 0.5
    assert adjust_ada(0.5, 0.5, 5_000, target=0.4, speed=50_000) == pytest.approx(0.6)
    assert adjust_ada(0.999, 1.0, 5_000) == 1.0 and adjust_ada(0.001, -1.0, 5_000) == 0.0


def test_augmentations_by_name():
    assert set(AUGMENTATIONS) == {"diffaugment", "ada"}
    assert type(make_augmentation("diffaugment", *IMAGENET)) is DiffAugment
    images = pictures(2, 3, 8, 8)
    draws = neutral(2, brightness=0.4)
    assert_close(make_augmentation("ada", *IMAGENET)(images, draws), ADA_IMAGENET(images, draws), 0)
    assert not make_augmentation("diffaugment", *IMAGENET).adaptive and ADA().adaptive


def test_mistakes_are_named():
    policy, images = Consistency(("flip",)), torch.zeros(2, 3, 8, 8)
    draws = policy.draw(2, seeded())
    mistakes = {
        r"'bgc'; allowed: diffaugment, ada": lambda: make_augmentation("bgc", *IMAGENET),
        r"'zoom'; allowed: flip, translation, bright.*cutout": lambda: Consistency(("flip", "zoom")),
        r"'flip', 'flip'.*at most once": lambda: Consistency(("flip", "flip")),
        r"at least one": lambda: Consistency(()),
        r"strength is 1.5; allowed: 0 to 1": lambda: ADA().draw(2, seeded(), 1.5),
        r"strength is 0.5; allowed: 1": lambda: policy.draw(2, seeded(), 0.5),
        r"mean is \[0.5\].*allowed: three numbers": lambda: ADA((0.5,), IMAGENET[1]),
        r"std \[1, 1, 0\]; allowed": lambda: ADA(IMAGENET[0], (1, 1, 0)),
        r"\[2, 8, 8, 3\].*allowed: \[B, 3, H, W\]": lambda: policy(images.permute(0, 2, 3, 1), draws),
        r"uint8; allowed: .*floating": lambda: policy(images.byte(), draws),
        r"\[1, 3, 8, 8\].*another number of rows; take\(\)": lambda: policy(images[:1], draws),
        r"draws are of flip; allowed: brightness, sat.*cutout": lambda: DiffAugment()(images, draws),
    }
    for message, mistake in mistakes.items():
        with pytest.raises(InputError, match=message):
            mistake()

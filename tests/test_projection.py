"""Projection finds styles again, leaves the generator as it was, and says what it cannot do."""

from __future__ import annotations

import copy
import sys
import types

import numpy as np
import pytest
import torch
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.latents import projection
from stylenat_hub.latents.comparison import Way, comparison, difference, to_tensor
from stylenat_hub.latents.losses import feature_loss, picture_loss, pixel_loss, pyramid
from stylenat_hub.latents.pictured import drawn, psnr, rgb
from stylenat_hub.latents.projection import project
from stylenat_hub.latents.tuning import tune
from stylenat_hub.metrics.dinov2 import DINOv2Extractor
from stylenat_hub.metrics.features import load_extractor
from stylenat_hub.metrics.inception import FIDInception, InceptionExtractor
from stylenat_hub.metrics.resizing import DINOV2, INCEPTION
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

QUICK = {"features": "pixels", "starts": 0}


@pytest.fixture(scope="module", params=list(FAMILIES))
def any_generator(request):
    return tiny_generator(request.param)


@pytest.fixture(scope="module")
def generator():
    return tiny_generator()


def picture_of(generator, seed: int = 3) -> torch.Tensor:
    """uint8 [1, 3, R, R]."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return drawn(generator, generator.mapping(torch.randn(1, generator.z_dim, generator=source)))


def space_of(generator) -> str:
    return "w" if generator.styles_are_latents else "w+"


def test_white_that_is_cut_off_stays_and_leads_back(generator):
    images = torch.full((1, 3, 32, 32), 9.0, requires_grad=True)
    shown = rgb(generator, images)
    assert shown.min() > 0.999 and shown.max() <= 1
    (shown - 0.5).square().sum().backward()
    assert images.grad.min() > 0


def test_every_family_comes_nearer_and_is_left_as_it_was(any_generator):
    generator = any_generator.train()
    generator.requires_grad_(True)
    frozen = next(generator.parameters()).requires_grad_(False)
    before = copy.deepcopy(generator.state_dict())
    target = picture_of(generator.eval())
    generator.train()
    told = []
    options = {"space": space_of(generator), "starts": 4, "callback": told.append}
    found = project(generator, target, steps=12, **options)
    assert found.ws.shape == (1, generator.num_ws, generator.w_dim) and found.losses.shape == (13, 1)
    assert found.losses[-1] < 0.7 * found.losses[0]
    assert [progress.step for progress in told] == list(range(13))
    assert torch.equal(told[-1].ws, found.ws) and told[-1].psnr == pytest.approx(found.psnr, abs=0.2)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert all(module.training for module in generator.modules())
    assert not frozen.requires_grad and sum(not p.requires_grad for p in generator.parameters()) == 1
    assert all(parameter.grad is None for parameter in generator.parameters())
    picture = GANPipeline(generator=generator.eval()).draw(found.ws)[0]
    assert torch.equal(to_tensor(picture), found.images[0])
    assert psnr(found.images, target) == pytest.approx(found.psnr)


def test_the_mean_picture_is_found_at_once(any_generator):
    generator = any_generator.eval()
    mean = generator.w_avg.expand(1, generator.num_ws, -1)
    found = project(generator, drawn(generator, mean), space="w", steps=1, **QUICK)
    assert found.psnr > 50 and found.losses[0] < 1e-5


def test_one_style_or_one_for_each_level(generator):
    target = picture_of(generator)
    one = project(generator, target, space="w", steps=3, **QUICK).ws
    each = project(generator, target, space="w+", steps=3, **QUICK).ws
    assert torch.equal(one, one[:, :1].expand_as(one))
    assert not torch.allclose(each, each[:, :1].expand_as(each), atol=1e-3)


def test_a_seed_gives_one_result(generator):
    target = picture_of(generator)
    options = {"steps": 2, "features": "pixels", "noise": 0.2, "starts": 2}
    one, same = (project(generator, target, seed=1, **options) for _ in range(2))
    other = project(generator, target, seed=2, **options)
    assert torch.equal(one.ws, same.ws) and torch.equal(one.losses, same.losses)
    assert not torch.equal(one.ws, other.ws)


def test_noise_is_asked_for(generator):
    target = picture_of(generator)
    noisy, still, again = (project(generator, target, steps=2, noise=n, **QUICK) for n in (0.5, 0.0, 0.0))
    assert torch.equal(still.ws, again.ws) and not torch.equal(still.ws, noisy.ws)
    of_mean = drawn(generator, generator.w_avg.expand(1, generator.num_ws, -1))
    assert still.losses[0].item() == pytest.approx(pixel_loss(target / 255)(of_mean / 255).item(), abs=1e-3)


def test_pictures_of_a_batch_are_independent(generator):
    targets = torch.cat([picture_of(generator, seed) for seed in (3, 4)])
    both = project(generator, targets, steps=3, starts=4)
    for number in (0, 1):
        alone = project(generator, targets[number], steps=3, starts=4)
        torch.testing.assert_close(both.ws[number], alone.ws[0], rtol=0, atol=1e-3)
        assert both.losses[:, number] == pytest.approx(alone.losses[:, 0], rel=1e-3)


def test_the_better_of_two_starts_goes_on(generator):
    options = {"steps": 1, "features": "pixels"}
    target = picture_of(generator)
    found = project(generator, target, starts=6, **options)
    assert found.losses[0] < project(generator, target, starts=0, **options).losses[0]
    of_mean = drawn(generator, generator.w_avg.expand(1, generator.num_ws, -1))
    found = project(generator, of_mean, starts=6, **options)
    assert found.losses[0] < 1e-5 and found.psnr > 50  # here w_avg is nearer than any of the 6


def test_the_other_start_is_given_up(generator, monkeypatch):
    rows, synthesis = [], generator.synthesis
    monkeypatch.setattr(generator, "synthesis", lambda ws: rows.append(len(ws)) or synthesis(ws))
    project(generator, torch.zeros(3, 32, 32), steps=10, starts=3, features="pixels")
    assert rows == [3, 2, 2, *[1] * 9, 1]  # the candidates, both for a tenth of the steps, one, the result


def test_the_nearest_step_is_kept(generator):
    target = picture_of(generator)
    found = project(generator, target, steps=6, learning_rate=30.0, **QUICK)
    assert found.losses[-1] <= found.losses[0]
    own = pixel_loss(target / 255)(rgb(generator, generator.synthesis(found.ws)))
    assert own.item() == pytest.approx(found.losses[-1].item(), abs=1e-5)


def test_the_prior_holds_styles_near_those_of_seeds(generator):
    target = picture_of(generator)
    far, near = (project(generator, target, steps=5, prior=p, **QUICK).ws for p in (0.0, 10.0))
    assert (near - generator.w_avg).norm() < 0.8 * (far - generator.w_avg).norm()


def test_coordinates_make_styles_of_seeds_standard(generator):
    coordinates = projection._Coordinates(generator, seed=0, starts=2000)
    v = coordinates.starts[1:] / projection.HALF_WAY
    w = coordinates.styles(v)
    z = torch.randn(projection.STATISTICS, generator.z_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(w, generator.mapping(z[:2000])[:, 0], rtol=0, atol=1e-3)
    assert v.var(dim=0).max() < 1.5 and coordinates.starts[0].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"space": "z"}, "allowed: w, w+"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"starts": 5000}, "starts is 5000"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": "a"}, "noise is 'a'; allowed: a finite number, 0 or more"),
        ({"feature_weight": None}, "feature_weight is None"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"features": "vgg"}, "no features 'vgg'; allowed: pixels, lpips"),
        ({"target": torch.zeros(3, 16, 16)}, "needs [3, 32, 32]"),
        ({"target": torch.full((3, 32, 32), 2.0)}, "outside 0 to 1"),
        ({"target": torch.full((3, 32, 32), torch.nan)}, "outside 0 to 1"),
        ({"target": np.zeros((3, 32, 32))}, "allowed: a tensor"),
    ],
)
def test_what_is_out_of_range_is_said(generator, options, says):
    with pytest.raises(InputError) as raised:
        project(generator, **{"target": torch.zeros(3, 32, 32), "steps": 1, **options})
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": -1}, "steps is -1; allowed: a whole number from 0 to 100,000"),
        ({"seed": "x"}, "seed is 'x'; allowed: a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; allowed: a finite number, 0 or more"),
        ({"locality": "much"}, "locality is 'much'"),
    ],
)
def test_what_tuning_does_not_take_is_said(generator, options, says):
    ws = generator.w_avg.expand(1, generator.num_ws, -1)
    with pytest.raises(InputError) as raised:
        tune(generator, ws, torch.zeros(3, 32, 32), **{"steps": 1, **options})
    assert says in str(raised.value)


def test_whole_numbers_of_numpy_are_whole(generator):
    one, target = np.int64(1), torch.zeros(3, 32, 32)
    found = project(generator, target, steps=one, seed=one, starts=one, features="pixels")
    same = project(generator, target, steps=1, seed=1, starts=1, features="pixels")
    assert torch.equal(found.ws, same.ws)
    assert tune(generator, found.ws, target, one, seed=one, features="pixels").num_ws == generator.num_ws


def test_hit_has_no_styles_by_level():
    hit = tiny_generator("hit")
    with pytest.raises(InputError, match="one style for the whole picture; use the space w"):
        project(hit, torch.zeros(3, 32, 32), space="w+")


def test_other_types_and_broken_weights(generator):
    with pytest.raises(InputError, match="float32"):
        project(copy.deepcopy(generator).half(), torch.zeros(3, 32, 32))
    broken = copy.deepcopy(generator)
    for parameter in broken.parameters():
        parameter.data.mul_(1e30)
    with pytest.raises(InputError, match=r"styles of this model in torch.float32 hold NaN or infinity"):
        project(broken, torch.zeros(3, 32, 32), steps=1, **QUICK)


def test_pixels_at_several_scales():
    assert [scale.shape[-1] for scale in pyramid(torch.zeros(1, 3, 64, 64))] == [64, 32, 16, 8]
    assert [scale.shape[-1] for scale in pyramid(torch.zeros(1, 3, 36, 36))] == [36, 18, 9]
    target = torch.rand(2, 3, 32, 32)
    assert pixel_loss(target)(target).tolist() == [0, 0]
    lighter = target + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    torch.testing.assert_close(pixel_loss(target)(lighter), torch.tensor([0.01, 0.04]))
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 1.0 - 0.5
    fine = pixel_loss(target)(target + checks)  # vanishes at all scales but the finest
    torch.testing.assert_close(fine, torch.full((2,), 0.25 / 3))


def test_features_know_their_target():
    images = torch.rand(2, 3, 32, 32)
    extractor = load_extractor("random-conv")
    loss = feature_loss(extractor.differentiable, images)
    assert loss(images).tolist() == [0, 0]
    other, larger = (feature_loss(lambda x, u=unit: [u * x], images) for unit in (1, 1000))
    torch.testing.assert_close(other(1 - images), larger(1 - images), rtol=1e-4, atol=0)
    assert other(0 * images).tolist() == pytest.approx([1, 1], rel=1e-4)
    moved = images.clone().requires_grad_()
    far = loss(moved.flip(0))
    far.sum().backward()
    assert (far > 0.1).all() and (moved.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_random_maps_are_those_of_the_metric_not_rounded():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    extractor = load_extractor("random-conv")
    first = extractor.differentiable(images / 255)[0].mean(dim=(2, 3)) / 128
    features, _ = extractor(images)
    torch.testing.assert_close(first, features[:, :32], rtol=0, atol=1.1 / 128)


def test_inception_maps_end_in_its_features():
    torch.manual_seed(0)
    network = FIDInception().eval()
    x = torch.rand(1, 3, 299, 299, requires_grad=True)
    maps = network.maps(x)
    shapes = [[64, 147, 147], [288, 35, 35], [768, 17, 17], [2048, 8, 8]]
    assert [list(found.shape[1:]) for found in maps] == shapes
    torch.testing.assert_close(maps[-1].mean(dim=(2, 3)), network(x)[0])
    maps[-1].sum().backward()
    assert x.grad.abs().sum() > 0


def fed(extractor_class, **parts) -> tuple[object, list[torch.Tensor]]:
    """An extractor without weights, and the list of what its network is fed."""
    given = []
    extractor = extractor_class.__new__(extractor_class)

    def network(pixel_values):
        given.append(pixel_values)
        return pixel_values, None

    def model(pixel_values):
        return types.SimpleNamespace(last_hidden_state=network(pixel_values)[0])

    network.model = model
    vars(extractor).update(device=torch.device("cpu"), network=network, **parts)
    return extractor, given


def test_networks_are_fed_what_the_metrics_feed_them():
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4), size=64, mode="bicubic").clamp(0, 1)
    images = (smooth * 255).round().to(torch.uint8)
    for name in ("pytorch-fid", "torch-fidelity"):
        parts = {"_way": INCEPTION[name], "protocol": {"preprocessing": name}}
        extractor, given = fed(InceptionExtractor, **parts)
        (features,) = extractor.differentiable((images / 255).requires_grad_())
        assert features.requires_grad
        torch.testing.assert_close(given[0], INCEPTION[name].apply(images, 299), rtol=0, atol=1e-5)
    extractor, _ = fed(InceptionExtractor, protocol={"preprocessing": "clean"})
    with pytest.raises(InputError, match="'clean' has no gradients"):
        extractor.differentiable(images / 255)
    extractor, given = fed(DINOv2Extractor)
    assert extractor.differentiable((images / 255).requires_grad_()).requires_grad
    torch.testing.assert_close(given[0], DINOV2.apply(images, 224), rtol=0, atol=0.03)


class Own:
    name, dim, protocol = "own", 2, {"resize": "none"}

    def preprocess(self, images):
        return images

    def __call__(self, images):
        return images.float().mean(dim=(2, 3))[:, :2], None


class Differentiable(Own):
    def differentiable(self, images):
        return images.mean(dim=(2, 3))


def test_ones_own_features(generator):
    target = picture_of(generator)
    found = project(generator, target, steps=3, starts=0, features=Differentiable())
    assert found.losses[-1] < found.losses[0]
    with pytest.raises(InputError, match=r"'Own' has no gradients; give it a method differentiable"):
        project(generator, target, steps=1, features=Own())


def test_lpips_where_it_is_installed(generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match="pip install lpips"):
        picture_loss("lpips")

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, one, other):
            assert one.amin() >= -1 and other.amin() < 0
            return (one - other).abs().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    target = torch.rand(2, 3, 32, 32) * 0.5
    loss = picture_loss("lpips", weight=1.0)(target)
    assert loss(target).tolist() == [0, 0]
    torch.testing.assert_close(loss(target + 0.1), torch.full((2,), 0.2 + 0.01))


def test_tuning_makes_a_copy_that_draws_it_better(any_generator):
    generator = any_generator.eval()
    before = copy.deepcopy(generator.state_dict())
    target, ws = picture_of(generator, 5), generator.w_avg.expand(1, generator.num_ws, -1)
    losses = []
    tuned = tune(generator, ws, target, 6, callback=lambda step, loss: losses.append((step, loss)))
    assert psnr(drawn(tuned, ws), target) > psnr(drawn(generator, ws), target) + 0.5
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6] and losses[-1][1] < losses[0][1]
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tuned.parameters()) and not tuned.training
    assert tuned.records == {}


def test_tuning_holds_what_is_around(generator):
    target, ws = picture_of(generator, 5), generator.w_avg.expand(1, generator.num_ws, -1)
    elsewhere = generator.mapping(torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(9)))
    there = drawn(generator, elsewhere)
    moved = []
    for locality in (0.0, 100.0):
        tuned = tune(generator, ws, target, 3, features="pixels", locality=locality)
        moved.append(psnr(drawn(tuned, elsewhere), there).mean())
    assert moved[1] > moved[0] + 1
    with pytest.raises(InputError, match="1 styles and 2 targets"):
        tune(generator, ws, target.repeat(2, 1, 1, 1), 1)


def test_the_way_and_the_comparison(generator):
    way = Way(100, [5, 0])
    assert way.chosen(5) == [0, 6, 25, 56, 100]
    for step in range(101):
        way(projection.Progress(step, torch.tensor([float(step)]), torch.zeros(1), torch.zeros(1)))
    assert [(step, ws.item()) for step, ws in way.styles(5)] == [(s, float(s)) for s in (0, 6, 25, 56, 100)]
    assert list(way.styles(0)) == []
    one, other = GANPipeline(generator=generator)([1, 2]).images
    assert difference(one, one).getextrema() == ((128, 128),) * 3
    sheet = comparison(one, [("projection", other, 12.0), ("tuned", one, float("inf"))])
    assert sheet.width > 5 * 64 and np.asarray(sheet).std() > 10


@pytest.mark.slow
def test_a_picture_of_the_shipped_model_is_found_again():
    """Others of its seeds: model_cards/toy-church/projection.json."""
    pipeline = GANPipeline.from_pretrained("toy-church")
    target = pipeline([2], output_type="pt").images
    assert project(pipeline.generator, target, steps=500).psnr > 30

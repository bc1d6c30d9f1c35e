"""What is estimated from the styles of seeds: on devices without float64, with broken weights, and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.latents import closed_form, clusters, principal, project, projection, style_centers
from stylenat_hub.models.base import Generator
from stylenat_hub.registry import FAMILIES

QUICK = {"steps": 2, "features": "pixels"}


class Elsewhere(torch.Tensor):
    """A tensor as on MPS: it refuses float64 until it is on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "double" or (name == "to" and torch.float64 in args):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.as_subclass(torch.Tensor) if name == "cpu" else out


def moved(family: str) -> Generator:
    """A generator whose styles, pictures and weights are `Elsewhere`, as far as functions here see them."""
    generator = tiny_generator(family)
    mapping, synthesis, layers = generator.mapping, generator.synthesis, generator.style_layers
    generator.mapping = lambda z: mapping(z).as_subclass(Elsewhere)
    generator.synthesis = lambda ws: synthesis(ws.as_subclass(torch.Tensor)).as_subclass(Elsewhere)
    generator.style_layers = lambda: [(n, weight.detach().as_subclass(Elsewhere)) for n, weight in layers()]
    generator.w_avg = generator.w_avg.as_subclass(Elsewhere)
    return generator


@pytest.mark.parametrize("family", list(FAMILIES))
def test_devices_without_float64_serve(family):
    generator, here = moved(family), tiny_generator(family)
    target = torch.full((3, 32, 32), 0.5)
    torch.testing.assert_close(closed_form(generator, 2).vectors, closed_form(here, 2).vectors)
    found = project(generator, target.as_subclass(Elsewhere), starts=1, **QUICK)
    torch.testing.assert_close(found.psnr, project(here, target, starts=1, **QUICK).psnr)
    generator.estimate_w_avg(100)
    if not generator.styles_are_latents:
        assert torch.isfinite(principal(generator, 2, latents=200).vectors).all()
        assert torch.isfinite(style_centers(generator, 2, latents=100)).all()


def test_weights_that_are_not_finite_are_named_alike():
    """Not the learning rate of projection, which has not begun."""
    broken = tiny_generator()
    mapping = broken.mapping
    broken.mapping = lambda z: mapping(z) * torch.nan
    target, says = torch.zeros(3, 32, 32), "styles of this model in torch.float32 hold NaN or infinity; use"
    for find in (
        lambda: closed_form(broken, 1),
        lambda: principal(broken, 1, latents=100),
        lambda: style_centers(broken, 2, latents=50),
        lambda: project(broken, target, **QUICK),
    ):
        with pytest.raises(InputError, match=says):
            find()
    broken.mapping, synthesis = mapping, broken.synthesis
    broken.synthesis = lambda ws: synthesis(ws) * torch.nan
    with pytest.raises(InputError, match="pictures of this model, or their features, hold NaN"):
        project(broken, target, starts=0, **QUICK)


def test_whole_numbers_of_numpy_are_whole():
    generator, two = tiny_generator(), np.int64(2)
    assert torch.equal(closed_form(generator, two).vectors, closed_form(generator, 2).vectors)
    some = {"latents": np.int32(100), "seed": np.uint8(3)}
    assert torch.equal(
        principal(generator, two, **some).vectors, principal(generator, 2, "all", 100, 3).vectors
    )
    assert torch.equal(
        style_centers(generator, two, **some), style_centers(generator, 2, latents=100, seed=3)
    )
    for wrong in ("x", 1.0, np.float64(1), True, np.bool_(True), np.arange(2), torch.ones(1), None):
        with pytest.raises(InputError, match=r"seed is .*allowed: a whole number from 0 to"):
            principal(generator, 1, latents=100, seed=wrong)


def test_centers_begin_by_chance_and_far_from_each_other():
    """k-means++: a style at a known one is never drawn, and others by their squared distance."""
    styles = torch.tensor([[0.0]] * 50 + [[1.0]] * 40 + [[3.0]] * 10)
    drawn = []
    for seed in range(300):
        first, second = clusters._spread(styles, 2, torch.Generator().manual_seed(seed)).flatten().tolist()
        assert first != second
        drawn += [second] if first == 0 else []
    # of 40 at distance 1 and 10 at distance 3: 40 to 90
    assert len(drawn) > 100 and np.mean([place == 3 for place in drawn]) == pytest.approx(90 / 130, abs=0.1)


def searching(generator, rows: int, **options) -> projection._Search:
    options = {"space": "w+", "starts": rows - 1, "noise": 0.0, "learning_rate": 0.1, "prior": 0.0, **options}
    options = projection._Options(steps=10, seed=0, **options)
    goal = torch.full((2, 3, 32, 32), 0.5)
    make = projection.picture_loss("pixels")
    return projection._Search(generator, projection._Coordinates(generator, 0, rows - 1), make, goal, options)


def test_the_start_that_came_nearest_goes_on():
    search = searching(tiny_generator(), rows=2)
    common = search.common.detach().clone()
    search.nearest = torch.tensor([0.3, 0.2, 0.1, 0.4])  # of two pictures, two starts each
    search._choose()
    assert torch.equal(search.common, common[[1, 2]]) and search.rows == 1


def test_styles_of_a_picture_stay_together_at_the_start():
    """In W+ they may deviate from each other, but a penalty that falls to 0 holds them."""
    generator = tiny_generator()
    target, deviated = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for together in (0.0, 100.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(projection, "TOGETHER", together)
            patch.setattr(projection, "APART", 9.0)  # it does not fall
            ws = project(generator, target, starts=0, steps=12, features="pixels").ws
        deviated.append((ws - ws.mean(dim=1, keepdim=True)).square().mean().sqrt())
    assert deviated[1] < 0.7 * deviated[0]

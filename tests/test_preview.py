"""A picture after the first levels: smaller, sooner, and at full size the picture itself."""

from __future__ import annotations

import pytest
import torch
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_at_full_size_it_is_the_picture(family):
    model = tiny_generator(family)
    ws = model.mapping(torch.randn(2, model.z_dim))
    assert torch.equal(model.preview(ws, model.resolution), model.synthesis(ws))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_the_smallest_that_is_large_enough(family):
    model = tiny_generator(family)
    ws = model.mapping(torch.randn(1, model.z_dim))
    sides = [model.preview(ws, px).shape[-1] for px in range(1, model.resolution + 1)]
    assert all(px <= side for px, side in enumerate(sides, 1)) and sides == sorted(sides)
    assert set(sides) == ({16, 32} if family == "hit" else {8, 16, 32})  # where the network paints


@pytest.mark.parametrize("family", ["stylenat", "styleswin"])
@torch.no_grad()
def test_later_styles_and_layers_do_not_matter_to_it(family):
    model = tiny_generator(family)
    ws = model.mapping(torch.randn(1, model.z_dim))
    before = model.preview(ws, 16)
    later = ws.clone()
    later[:, 4:] += 1  # the first two levels have two styles each
    assert torch.equal(model.preview(later, 16), before)
    assert not torch.equal(model.synthesis(later), model.synthesis(ws))


@pytest.mark.parametrize("px", [0, 33, 8.0, True])
def test_a_side_out_of_range_is_refused(px):
    model = tiny_generator()
    with pytest.raises(InputError, match=r"px is .* allowed: a whole number from 1 to 32"):
        model.preview(torch.zeros(1, model.num_ws, model.w_dim), px)


def test_a_pipeline_draws_it():
    pipeline = GANPipeline(tiny_generator())
    ws = pipeline.styles([3])
    assert pipeline.draw(ws, px=9)[0].size == (16, 16)
    assert pipeline.draw(ws, px=32)[0].tobytes() == pipeline([3]).images[0].tobytes()

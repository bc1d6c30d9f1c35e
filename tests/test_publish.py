"""Publishing on the Hub and loading from it again, through the real client against the Hub of the tests."""

from __future__ import annotations

import torch
from small_models import tiny_generator

from stylenat_hub import GANPipeline


def test_a_pushed_pipeline_is_pulled_as_it_was(hub):
    pipe = GANPipeline(tiny_generator())
    pipe.push_to_hub("me/church", license="mit")
    again = GANPipeline.from_pretrained("me/church")
    assert torch.equal(again([3], output_type="pt").images, pipe([3], output_type="pt").images)

"""Small models that several test files share."""

from __future__ import annotations

import pytest
import torch

from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` say that they need one where there is none, instead of failing."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def tiny_generator(family: str = "stylenat", seed: int = 0):
    """A family's `tiny` preset with seeded weights so large that seeds differ visibly, and `w_avg`."""
    family = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family.generator(family.config.preset("tiny")).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
            model.w_avg.copy_(model.mapping(torch.randn(256, model.z_dim))[:, 0].mean(0))
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A saved pipeline folder; tests that change something copy it first."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    GANPipeline(tiny_generator()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(tiny):
    """The same, loaded. Tests must not change it."""
    pipe = GANPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""Every family on the Hub: pushed with discriminator and code, or alone; pulled to the bit; zoo names."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from huggingface_hub import ModelCard
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import GANPipeline
from stylenat_hub.cli import app
from stylenat_hub.errors import ConfigError, UnknownModelError, WeightsError
from stylenat_hub.locations import status, without_weights
from stylenat_hub.registry import CHECKPOINTS, FAMILIES, SHAPES
from stylenat_hub.summary import describe
from training.evaluate import METRICS

WEIGHTS = "generator/diffusion_pytorch_model.safetensors"


def judge_of(family, **fields):
    torch.manual_seed(0)
    config = family.discriminator.config_class.preset("tiny", **fields)
    return family.discriminator(config).eval()


def same(one, other):
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_goes_to_the_hub_and_back(hub, family):
    pipe, judge = GANPipeline(tiny_generator(family.name)), judge_of(family)
    pipe.push_to_hub("me/both", discriminator=judge, license="mit", bundle_code=True)
    pipe.generator.push_to_hub("me/generator")
    judge.push_to_hub("me/judge")
    for name in ("me/both", "me/generator"):
        again = GANPipeline.from_pretrained(name)
        assert same(again.generator, pipe.generator)
        assert torch.equal(again([3], output_type="pt").images, pipe([3], output_type="pt").images)
    for name in ("me/both", "me/judge"):
        assert same(family.discriminator.from_pretrained(name), judge)
    for name in ("me/both", "me/generator", "me/judge"):
        card = ModelCard(hub.files(name)["README.md"].decode())
        card.validate()
        assert family.paper in card.text and family.name in card.data.tags
    assert f"generator/{family.generator.__module__}.py" in hub.files("me/both")
    assert describe("me/both")["class"] == family.generator.__name__


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_plain_diffusers_loads_every_family(hub, family):
    from diffusers import DiffusionPipeline

    pipe = GANPipeline(tiny_generator(family.name))
    pipe.push_to_hub("me/plain")
    again = DiffusionPipeline.from_pretrained("me/plain")
    assert type(again) is GANPipeline and same(again.generator, pipe.generator)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_without_checkpoints_can_be_pushed(hub, family, monkeypatch):
    monkeypatch.setitem(FAMILIES, family.name, dataclasses.replace(family, checkpoints=()))
    GANPipeline(tiny_generator(family.name)).push_to_hub("me/new")
    assert family.paper in hub.files("me/new")["README.md"].decode()


def test_a_discriminator_that_does_not_fit_is_not_pushed(hub):
    family = FAMILIES["stylenat"]
    other = judge_of(family, resolution=16, channels=(16, 32))
    with pytest.raises(ConfigError, match="for 16 px, which does not go with a StyleNATGenerator for 32 px"):
        GANPipeline(tiny_generator()).push_to_hub("me/both", discriminator=other)
    assert not hub.repos


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """A zoo name whose weights are on the Hub, as CONTRIBUTING says to publish one; the pipeline."""
    pipe = GANPipeline(tiny_generator())
    pipe.save_pretrained(tmp_path / "small")
    digest = hashlib.sha256((tmp_path / "small" / WEIGHTS).read_bytes()).hexdigest()
    hub.add_user("boss", "hf_boss", ["stylenat-hub"])
    commit = pipe.push_to_hub("stylenat-hub/stylenat-small", token="hf_boss", tag="v1")
    record = dataclasses.replace(
        CHECKPOINTS["stylenat-ffhq-256"],
        name="stylenat-small",
        preset="tiny",
        published=True,
        revision=commit.oid,
        sha256={WEIGHTS: digest},
    )
    monkeypatch.setitem(CHECKPOINTS, record.name, record)
    monkeypatch.setitem(SHAPES, record.name, (FAMILIES["stylenat"], "tiny"))
    GANPipeline(tiny_generator(seed=1)).push_to_hub("stylenat-hub/stylenat-small", token="hf_boss")
    return pipe


def test_a_published_name_is_pulled_at_the_recorded_commit(hub, published, monkeypatch):
    assert status("stylenat-small") == "on the Hub"
    assert same(GANPipeline.from_pretrained("stylenat-small").generator, published.generator)
    with pytest.raises(WeightsError, match="not the file that the zoo knows"):
        GANPipeline.from_pretrained("stylenat-small", revision="main")
    listed = CliRunner().invoke(app, ["list", "stylenat-small"])
    assert "on the Hub" in listed.stdout
    assert describe("stylenat-small")["weights"]["w_avg"] == "known"


def test_info_of_a_published_name_works_without_the_hub(hub, published):
    hub.fail("503", times=None)
    facts = describe("stylenat-small")
    assert facts["resolution"] == 32 and "published as 'stylenat-hub/stylenat-small'" in facts["weights"]
    with pytest.raises(UnknownModelError, match="HTTP 503"):
        describe("stylenat-small", revision="main")
    assert "load them while online" in without_weights("stylenat-small")


def test_every_metric_of_the_training_has_a_name_for_cards():
    from stylenat_hub.metrics import KNOWN

    assert set(METRICS) <= set(KNOWN)


def test_a_client_that_takes_other_arguments_is_a_bug_and_not_the_network(hub, monkeypatch):
    """Otherwise a new version of it would look like a Hub that is down, and cost the cache its notes."""
    from huggingface_hub.utils import validate_hf_hub_args

    from stylenat_hub import download

    GANPipeline(tiny_generator()).push_to_hub("me/x")
    GANPipeline.from_pretrained("me/x")

    @validate_hf_hub_args
    def changed(repo_id, *, revision=None, token=None, cache_dir=None, force_download=False):
        """Knows no `allow_patterns`."""

    with monkeypatch.context() as patch:
        patch.setattr(download, "snapshot_download", changed)
        with pytest.raises(TypeError, match="allow_patterns"):
            GANPipeline.from_pretrained("me/x")
    GANPipeline.from_pretrained("me/x", local_files_only=True)

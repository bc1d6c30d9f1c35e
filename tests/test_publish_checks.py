"""Nothing is pushed that does not reload, draw and belong together; the user's own folder is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import tiny_generator

from stylenat_hub import GANPipeline, WaveletDiscriminator, publish
from stylenat_hub.errors import ConfigError, InputError, StyleNATHubError, WeightsError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny, tmp_path):
    """A pipeline folder that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def refused(error, says, push):
    """The push ends with this error, in one sentence that says this; nothing has been committed."""
    with pytest.raises(error) as caught:
        push()
    text = str(caught.value)
    assert isinstance(caught.value, StyleNATHubError) and says in text and "\n" not in text, text
    assert len(text) < 600 and "Traceback" not in text
    return text


def with_tensors(change):
    def spoil(folder):
        path = folder / "generator" / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return spoil


def with_json(name, **changes):
    def spoil(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def only_a_pickle(folder):
    path = folder / "generator" / WEIGHTS
    torch.save(load_file(path), path.with_name("diffusion_pytorch_model.bin"))
    path.unlink()


def cut(folder):
    path = folder / "generator" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def spoiled_variant(folder):
    tensors = load_file(folder / "generator" / WEIGHTS)
    tensors["constant"][0] = torch.nan
    save_file(tensors, folder / "generator" / "diffusion_pytorch_model.fp16.safetensors")


def spoiled_discriminator(folder):
    with torch.random.fork_rng():
        model = WaveletDiscriminator(WaveletDiscriminator.config_class.preset("tiny"))
    model.save_pretrained(folder / "discriminator")
    (folder / "discriminator" / "config.json").write_text('{"_class_name": "UNet2DModel"}')


SPOILED = {
    "NaN in the weights": (
        with_tensors(lambda tensors: tensors["constant"][0].fill_(torch.nan)),
        (WeightsError, "'constant'"),
    ),
    "a picture of NaN": (
        with_tensors(lambda tensors: tensors["constant"].fill_(3e38)),
        (WeightsError, "draws no pictures"),
    ),
    "a missing tensor": (
        with_tensors(lambda tensors: tensors.pop("constant")),
        (WeightsError, "'constant' is missing"),
    ),
    "a tensor too many": (
        with_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))),
        (WeightsError, "'extra' is unexpected"),
    ),
    "an unknown key": (with_json("generator/config.json", depht=3), (ConfigError, "'depht'")),
    "another size": (with_json("generator/config.json", resolution=64), (StyleNATHubError, "")),
    "another class": (
        with_json("generator/config.json", _class_name="UNet2DModel"),
        (ConfigError, "'UNet2DModel'"),
    ),
    "another pipeline": (
        with_json("model_index.json", _class_name="DDPMPipeline"),
        (ConfigError, "is a DDPMPipeline"),
    ),
    "an index with another model": (
        with_json("model_index.json", generator=["diffusers", "UNet2DModel"]),
        (ConfigError, "no model of this version"),
    ),
    "an index with a part that is not there": (
        with_json(
            "model_index.json",
            discriminator=[WaveletDiscriminator.__module__, "WaveletDiscriminator"],
        ),
        (ConfigError, "discriminator"),
    ),
    "no JSON": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        (ConfigError, "cannot be read as JSON"),
    ),
    "a pickle": (only_a_pickle, (WeightsError, "pickles can run code and are never read")),
    "a cut file": (cut, (WeightsError, "is cut off or damaged")),
    "another variant": (spoiled_variant, (WeightsError, "'constant'")),
    "the discriminator": (spoiled_discriminator, (ConfigError, "'UNet2DModel'")),
    "no generator": (lambda folder: shutil.rmtree(folder / "generator"), (ConfigError, "generator")),
    "no model": (lambda folder: (folder / "model_index.json").unlink(), (InputError, "holds no model")),
    "no folder": (shutil.rmtree, (InputError, "there is no folder")),
    "another tool's record": (
        lambda folder: (folder / "training.json").write_text('{"epochs": 3}'),
        (ConfigError, "training.json"),
    ),
    "another record": (
        lambda folder: (folder / "conversion.json").write_text('{"source": "here"}'),
        (ConfigError, "conversion.json"),
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_nothing_is_pushed_that_does_not_reload(hub, folder, what):
    spoil, expected = SPOILED[what]
    spoil(folder)
    for samples in (True, False):
        text = refused(*expected, lambda s=samples: publish.push_folder(folder, "me/church", samples=s))
        assert "/tmp" not in text.replace(str(folder), "")  # the user's folder, and no temporary one
    assert not hub.repos and not hub.objects


@pytest.mark.parametrize("subfolder", [None, "generator"])
def test_a_model_in_memory_is_checked_too(hub, subfolder):
    hub.add_repo("me/church", {"a.txt": b"a"})
    spoiled, silent = tiny_generator(), tiny_generator()
    with torch.no_grad():
        spoiled.constant[0] = torch.nan
        silent.constant.fill_(3e38)
    for model, says in ((spoiled, "'constant'"), (silent, "draws no pictures")):
        refused(WeightsError, says, lambda m=model: m.push_to_hub("me/church", subfolder=subfolder))
        if subfolder is None:
            refused(WeightsError, says, lambda m=model: GANPipeline(m).push_to_hub("me/church"))
    assert len(hub.commits("me/church")) == 1 and not hub.objects


def test_what_was_saved_must_be_what_was_meant(hub, pipeline, monkeypatch):
    """A save that writes other weights than those in memory."""
    other = tiny_generator(seed=5)
    monkeypatch.setattr(
        type(pipeline), "save_pretrained", lambda self, folder, **_: GANPipeline(other)._save(folder)
    )
    save = GANPipeline.__mro__[1].save_pretrained
    monkeypatch.setattr(GANPipeline, "_save", lambda self, folder: save(self, folder), raising=False)
    refused(WeightsError, "reloads to other weights", lambda: pipeline.push_to_hub("me/church"))
    assert not hub.repos


def test_pickles_are_not_made(hub, pipeline):
    for model in (pipeline, pipeline.generator):
        refused(
            InputError,
            "would write a pickle",
            lambda m=model: m.push_to_hub("me/church", safe_serialization=False),
        )
    assert not hub.repos

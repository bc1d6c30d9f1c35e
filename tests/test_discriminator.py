"""The wavelet discriminator against tensors recorded from the original code."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion.containers import read_checkpoint
from stylenat_hub.errors import ConfigError, InputError, WeightsError
from stylenat_hub.layers.discriminator import haar_wavelets, inverse_haar_wavelets, minibatch_stddev
from stylenat_hub.models.discriminator import WaveletDiscriminator, WaveletDiscriminatorConfig
from stylenat_hub.models.discriminator_keys import convert_discriminator

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["stylenat_legacy_ffhq_style_64", "stylenat_hydra_church_style_64", "stylenat_mixed_first_public_32"]


@functools.cache
def original(name):
    return read_checkpoint(GOLDENS / f"{name}.pt").network("d")


@functools.cache
def recorded(name):
    return load_file(GOLDENS / f"{name}.io.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_every_step(name):
    io, discriminator = recorded(name), convert_discriminator(original(name))
    seen = {}
    for i, scale in enumerate(discriminator.scales):
        scale.register_forward_hook(lambda m, inputs, out, i=i: seen.__setitem__(f"d_conv.{i}", out[:1]))
    discriminator.from_rgb[-1].register_forward_hook(
        lambda m, inputs, out: seen.__setitem__("d_last_fromrgb_wavelet", inputs[0][:1])
    )
    with torch.no_grad():
        logits = discriminator(io["d_input"])
    seen["d_dwt"] = haar_wavelets(io["d_input"])[:1]
    torch.testing.assert_close(logits, io["d_logits_eval"], atol=2e-6, rtol=0)
    for key, value in seen.items():
        torch.testing.assert_close(value, io[key], atol=5e-6, rtol=0)
    assert len(seen) == len(discriminator.scales) + 2


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_makes_one_power_iteration(name):
    io, discriminator = recorded(name), convert_discriminator(original(name)).train()
    torch.testing.assert_close(discriminator(io["d_input"]), io["d_logits_train"], atol=2e-6, rtol=0)
    wanted = io["d_after_train.from_rgbs.0.conv.0.weight_u"]
    torch.testing.assert_close(discriminator.from_rgb[0].u, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("preset", "parameters"), [("ffhq-256", 26_211_585), ("ffhq-1024", 27_736_641)])
def test_full_size(preset, parameters):
    with torch.device("meta"):
        discriminator = WaveletDiscriminator(WaveletDiscriminatorConfig.preset(preset))
    assert sum(p.numel() for p in discriminator.parameters()) == parameters


def test_wavelets_are_undone():
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(inverse_haar_wavelets(haar_wavelets(x)), x)


def test_stddev_groups_are_interleaved():
    """Sample i is compared with those a group's stride away, as the original cuts a batch."""
    x = torch.zeros(8, 1, 2, 2)
    x[0] = 1  # in one group with 2, 4, 6
    spread = minibatch_stddev(x)[:, 1, 0, 0]
    assert (spread[0::2] > 0.4).all() and (spread[1::2] < 1e-3).all()


def test_the_gradient_penalty_reaches_every_weight():
    torch.manual_seed(0)
    discriminator = WaveletDiscriminator(WaveletDiscriminatorConfig.preset("tiny")).train()
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_two_calls_before_one_gradient():
    """The original calls D(fake), then D(real), then differentiates both; power iterations must not
    interfere.
    """
    discriminator = WaveletDiscriminator(WaveletDiscriminatorConfig.preset("tiny")).train()
    fake, real = torch.randn(2, 4, 3, 32, 32)
    (discriminator(fake).mean() - discriminator(real).mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters())


def test_saves_and_loads_bitwise(tmp_path):
    discriminator = convert_discriminator(original(NAMES[0]))
    discriminator.save_pretrained(tmp_path / "d")
    again = WaveletDiscriminator.from_pretrained(tmp_path / "d")
    assert not again.training
    for key, value in discriminator.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert json.loads((tmp_path / "d" / "config.json").read_text())["channels"] == [32, 32, 32, 32]


def test_it_is_found_in_its_folder_of_a_pipeline(tmp_path, tiny):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(tiny, pipeline)
    with pytest.raises(WeightsError, match="has no discriminator"):
        WaveletDiscriminator.from_pretrained(pipeline)
    discriminator = convert_discriminator(original(NAMES[0]))
    discriminator.save_pretrained(pipeline / "discriminator")
    again = WaveletDiscriminator.from_pretrained(pipeline)
    assert torch.equal(again.logit.weight, discriminator.logit.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update({"final_conv.1.bias": torch.full((32,), torch.inf)}),
            "'final_conv.1.bias' holds NaN",
        ),
        (
            lambda d: d.update({"dwt.lh": -d["dwt.lh"]}),
            "buffer 'dwt.lh' has other values .* \\(--skip-discriminator\\)",
        ),
        (
            lambda d: d.update({"extra": torch.zeros(1)}),
            "a tensor 'extra' that a wavelet discriminator does not have",
        ),
        (lambda d: d.pop("final_linear.2.bias"), "'logit.bias' .* is missing"),
        (lambda d: d.clear(), "not the wavelet discriminator"),
        (
            lambda d: d.update({f"from_rgbs.{i}.conv.0.weight_orig": torch.ones(1) for i in range(15_010)}),
            "not the wavelet discriminator",
        ),
        (
            lambda d: d.update({f"from_rgbs.{'1' * 5000}.conv.0.weight_orig": torch.ones(1)}),
            "not the wavelet discriminator",
        ),
        (
            lambda d: d.update({"from_rgbs.0.conv.0.weight_orig": torch.ones(())}),
            "not the wavelet discriminator",
        ),
        (
            lambda d: d.update({"final_conv.1.bias": torch.full((32,), 1e300, dtype=torch.float64)}),
            "'final_conv.1.bias' holds values beyond float32's range",
        ),
        (
            lambda d: d.update({"from_rgbs.0.conv.0.weight": d.pop("from_rgbs.0.conv.0.weight_orig")}),
            "without spectral norm",
        ),
    ],
)
def test_a_foreign_discriminator_is_refused_by_name(change, message):
    state = dict(original(NAMES[0]))
    change(state)
    with pytest.raises(WeightsError, match=message):
        convert_discriminator(state)


def test_bad_input_says_what_is_allowed():
    discriminator = WaveletDiscriminator(WaveletDiscriminatorConfig.preset("tiny"))
    with pytest.raises(InputError, match=r"allowed: \[batch, 3, 32, 32\]"):
        discriminator(torch.zeros(4, 3, 64, 64))
    with pytest.raises(InputError, match="6 images; allowed: a multiple of 4"):
        discriminator(torch.zeros(6, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"3 whole numbers, one per scale from 16 down to 4 px"):
        WaveletDiscriminatorConfig(resolution=32, channels=(8, 8))
    for bad in ({"channels": (True, 8, 8)}, {"channels": (10**9, 8, 8)}, {"stddev_group": 0}):
        with pytest.raises(ConfigError, match="whole number"):
            WaveletDiscriminatorConfig.preset("tiny", **bad)
    with pytest.raises(ConfigError, match="a power of two, 16 or more"):
        WaveletDiscriminatorConfig(resolution=24, channels=(8, 8, 8))

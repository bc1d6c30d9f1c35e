"""Losses, R1, discriminator gradients and the weight average against recordings of the original code."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion.containers import read_checkpoint
from stylenat_hub.models.discriminator_keys import convert_discriminator, convert_discriminator_state_dict
from training.ema import ema_decay, update_ema
from training.losses import (
    balanced_consistency,
    discriminator_logistic,
    discriminator_relativistic,
    generator_nonsaturating,
    generator_relativistic,
    gradient_penalty,
    weighted_penalty,
)

GOLDENS = Path(__file__).parent / "goldens"
RECORDED = load_file(GOLDENS / "losses.safetensors")


@functools.cache
def original():
    return read_checkpoint(GOLDENS / "stylenat_legacy_ffhq_style_64.pt").network("d")


def discriminator(mode):
    model = convert_discriminator(original())
    return model.train() if mode == "train" else model


def our_names():
    """Original parameter name -> ours, found by sending a different number through every tensor."""
    state = original()
    filters = ("dwt.", "iwt.", ".kernel")
    names = [name for name in state if not any(part in name for part in filters)]
    numbered = {**state, **{name: torch.full_like(state[name], i) for i, name in enumerate(names)}}
    return {names[int(v.flatten()[0])]: k for k, v in convert_discriminator_state_dict(numbered).items()}


def assert_gradients(model, prefix, tolerance):
    parameters, names = dict(model.named_parameters()), our_names()
    wanted = {key.removeprefix(prefix): value for key, value in RECORDED.items() if key.startswith(prefix)}
    assert len(wanted) >= 5
    for name, gradient in wanted.items():
        actual = parameters[names[name]].grad
        limit = tolerance * gradient.abs().max().item()
        torch.testing.assert_close(actual, gradient, atol=limit, rtol=0, msg=name)


def test_logistic_losses_and_their_gradients():
    real = RECORDED["real_logits"].clone().requires_grad_()
    fake = RECORDED["fake_logits"].clone().requires_grad_()
    loss = discriminator_logistic(real, fake)
    torch.testing.assert_close(loss, RECORDED["d_logistic"][0], rtol=1e-5, atol=0)
    grads = torch.autograd.grad(loss, (real, fake))
    for gradient, name in zip(grads, ("real", "fake"), strict=True):
        torch.testing.assert_close(gradient, RECORDED[f"d_logistic.grad_{name}"], rtol=1e-5, atol=1e-7)
    loss = generator_nonsaturating(fake)
    torch.testing.assert_close(loss, RECORDED["g_nonsaturating"][0], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, fake)
    torch.testing.assert_close(gradient, RECORDED["g_nonsaturating.grad_fake"], rtol=1e-5, atol=1e-7)


def test_extreme_logits_do_not_overflow():
    logits = RECORDED["extreme_logits"]
    wanted = RECORDED["extreme_d_logistic"][0]
    torch.testing.assert_close(discriminator_logistic(logits, logits.flip(0)), wanted, rtol=1e-5, atol=0)
    wanted = RECORDED["extreme_g_nonsaturating"][0]
    torch.testing.assert_close(generator_nonsaturating(logits), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_r1(mode):
    model = discriminator(mode)
    images = RECORDED["r1_images"].clone().requires_grad_()
    logits = model(images)
    torch.testing.assert_close(logits, RECORDED[f"r1.{mode}.pred"], atol=2e-6, rtol=0)
    penalty = gradient_penalty(logits, images)
    torch.testing.assert_close(penalty, RECORDED[f"r1.{mode}.value"][0], rtol=1e-4, atol=0)
    weighted = weighted_penalty(penalty, weight=10, interval=16)
    torch.testing.assert_close(weighted, RECORDED[f"r1.{mode}.weighted"][0], rtol=1e-4, atol=0)
    (penalty + 0 * logits.sum()).backward()  # the zero gives the last bias a gradient, as the original does
    assert_gradients(model, f"r1.{mode}.grad.", 1e-3)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_of_a_discriminator_step(mode):
    """The original asks about the fakes first; in training mode the order decides the power iterations."""
    model = discriminator(mode)
    fake = model(RECORDED["d_step.fake_images"])
    loss = discriminator_logistic(model(RECORDED["r1_images"]), fake)
    torch.testing.assert_close(loss, RECORDED[f"d_step.{mode}.loss"][0], rtol=1e-5, atol=0)
    loss.backward()
    assert_gradients(model, f"d_step.{mode}.grad.", 1e-4)


def test_the_weight_average():
    average, model = torch.nn.Linear(6, 1, bias=False), torch.nn.Linear(6, 1, bias=False)
    for module in (average, model):
        module.register_buffer("count", torch.zeros(2))
    with torch.no_grad():
        average.weight.copy_(RECORDED["ema.before"])
        model.weight.copy_(RECORDED["ema.model"])
        model.count.fill_(7)
    update_ema(average, model, ema_decay(32))
    torch.testing.assert_close(average.weight[0], RECORDED["ema.after"], rtol=1e-6, atol=1e-7)
    assert not average.count.any()  # buffers are not averaged


def test_decay_is_a_half_life_in_images():
    assert ema_decay(32) == pytest.approx(0.9977843871238888)  # the original's
    assert ema_decay(10_000) == pytest.approx(0.5)
    assert ema_decay(64, ramp_up=0.05, seen=0) == 0  # at first the average is the model itself
    assert ema_decay(64, ramp_up=0.05, seen=10**9) == ema_decay(64)


def test_relativistic_losses_are_one_game_from_two_sides():
    real, fake = torch.randn(2, 8, 1, dtype=torch.float64).requires_grad_()
    expected = torch.log1p(torch.exp(fake - real)).mean()
    torch.testing.assert_close(discriminator_relativistic(real, fake), expected)
    torch.testing.assert_close(generator_relativistic(real, fake), discriminator_relativistic(fake, real))
    shift = discriminator_relativistic(real + 5, fake + 5)  # only differences count
    torch.testing.assert_close(shift, expected)


def test_consistency_weighs_what_the_augmentation_changes_in_each_logit():
    real, fake, step = torch.randn(3, 4, 1)
    assert balanced_consistency(real, fake, real, fake) == 0
    expected = 10 * step.square().mean() + 5 * 4 * step.square().mean()
    actual = balanced_consistency(real, fake, real - step, fake + 2 * step, real_weight=10, fake_weight=5)
    torch.testing.assert_close(actual, expected)

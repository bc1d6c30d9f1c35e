"""Four iterations of the original training loop, recorded: losses, norms, and how far every tensor moved."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion.containers import read_checkpoint
from conversion.convert import convert
from stylenat_hub import GANPipeline, WaveletDiscriminator
from stylenat_hub.models.discriminator_keys import convert_discriminator_state_dict
from stylenat_hub.models.stylenat import FAMILY
from training.recipes import Recipe
from training.steps import Game, Players, Shard

GOLDENS = Path(__file__).parent / "goldens"
INIT, FINAL = (GOLDENS / f"stylenat_trainrun_{name}.pt" for name in ("init", "final"))
IO = load_file(GOLDENS / "stylenat_trainrun.io.safetensors")
NOISE = json.loads((GOLDENS / "stylenat_trainrun_noise.json").read_text())["tensors"]
RECIPE = Recipe(
    shape="recorded",
    batch=4,
    images=16,
    d_lr=2e-4,
    g_lr=5e-5,
    r1=10,
    penalty_every=2,
    bcr_real=10,
    bcr_fake=10,
    ema_half_life=4 * 10_000 / 32,  # the original's decay, 0.5^(32/10000) per step
)


def mirror(images, draws):
    """What stands for bCR's augmentation in the recording."""
    return images.flip(-1)


def generator(path, weights):
    container = read_checkpoint(path)
    state = container.network(weights)
    config = FAMILY.infer_config(state, args=container.args, preset=None, config=None)
    model = FAMILY.generator(config)
    model.load_state_dict({**FAMILY.convert_state_dict(state), "w_avg": model.w_avg})
    return model


def discriminator(path):
    return FAMILY.convert_discriminator(read_checkpoint(path).network("d"))


@functools.cache
def trained():
    """The players after four of our iterations, and what each iteration reported."""
    start = generator(INIT, "g")
    players = Players(start.train(), discriminator(INIT).train(), copy.deepcopy(start))
    game = Game(RECIPE, players, consistency=mirror)
    reports = []
    for i in range(4):
        # The recorded rates, because the original forgets the lazy correction once the decay has begun.
        for optimizer, rate in zip((game.g_optimizer, game.d_optimizer), IO[f"lr_used.{i}"], strict=True):
            optimizer.param_groups[0]["lr"] = rate.item()
        shard = Shard(IO[f"real.{i}"], IO[f"z_d.{i}"], IO[f"z_g.{i}"], {"bcr_real": {}, "bcr_fake": {}})
        report = game.update_discriminator([shard], penalise=i % 2 == 0)
        report |= game.update_generator([shard])
        game.update_average(seen=4 * i)
        reports.append(report)
    return players, reports


@pytest.mark.parametrize("iteration", range(4))
def test_losses_and_gradient_norms_are_the_recorded_ones(iteration):
    report, rtol = trained()[1][iteration], 1e-5 if iteration == 0 else 2e-3
    names = {"d_loss": "loss.d", "g_loss": "loss.g", "r1": "loss.r1", "d_gradient_norm": "d_grad_norm"}
    assert ("r1" in report) == (iteration % 2 == 0)
    for ours, recorded in names.items():
        if ours in report:
            wanted = IO[f"{recorded}.{iteration}"][0]
            torch.testing.assert_close(report[ours], wanted, rtol=rtol, atol=0)


def test_the_first_rates_are_the_recorded_ones():
    players = Players(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    game = Game(RECIPE, players)
    game.set_rates(1.0)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (game.g_optimizer, game.d_optimizer)]
    torch.testing.assert_close(torch.tensor(rates), IO["lr_used.0"].float())
    betas = [optimizer.param_groups[0]["betas"] for optimizer in (game.g_optimizer, game.d_optimizer)]
    assert betas == [(0.0, 0.99), (0.0, pytest.approx(0.9933221725495059))]


def test_the_first_iteration_through_step_sets_the_rates_itself():
    start = generator(INIT, "g")
    players = Players(start.train(), discriminator(INIT).train(), copy.deepcopy(start))
    game = Game(RECIPE, players, consistency=mirror)
    shard = Shard(IO["real.0"], IO["z_d.0"], IO["z_g.0"], {"bcr_real": {}, "bcr_fake": {}})
    report = game.step([shard], 0, penalise=True)
    for ours, recorded in {"d_loss": "loss.d", "g_loss": "loss.g", "r1": "loss.r1"}.items():
        torch.testing.assert_close(report[ours], IO[f"{recorded}.0"][0], rtol=1e-5, atol=0)
    assert game.d_optimizer.param_groups[0]["lr"] == pytest.approx(IO["lr_used.0"][1].item())


def our_names(network):
    """Original key -> ours, found by sending a different number through every tensor."""
    state = read_checkpoint(FINAL).network(network)
    constants = ("dwt.", "iwt.", "kernel", "relative_position_index", "_float_tensor")
    names = [name for name in state if not any(part in name for part in constants)]
    numbered = {**state, **{name: torch.full_like(state[name], i) for i, name in enumerate(names)}}
    rename = convert_discriminator_state_dict if network == "d" else FAMILY.convert_state_dict
    return {names[int(value.flatten()[0])]: key for key, value in rename(numbered).items()}


@pytest.mark.parametrize("network", ["g", "g_ema", "d"])
def test_every_tensor_moved_as_recorded(network):
    role = {"g": "generator", "g_ema": "average", "d": "discriminator"}[network]
    ours = getattr(trained()[0], role).state_dict()
    before = (discriminator(INIT) if network == "d" else generator(INIT, "g")).state_dict()
    after = (discriminator(FINAL) if network == "d" else generator(FINAL, network)).state_dict()
    compared = 0
    for original, key in our_names(network).items():
        noise = NOISE.get(f"{network}.{original}")
        if noise is None or original.endswith("qkv.bias"):
            continue  # the key part of that bias has no gradient: Adam moves it at random
        moved, wanted = ours[key] - before[key], after[key] - before[key]
        rounding = 2 * torch.finfo(torch.float32).eps * before[key].abs().max()  # of the weights themselves
        assert (moved - wanted).norm() <= max(5 * noise[1], 2e-2) * wanted.norm() + rounding, original
        compared += 1
    assert compared >= (40 if network == "d" else 100)


def test_query_and_value_biases_moved_as_recorded():
    ours, before, after = trained()[0].generator, generator(INIT, "g"), generator(FINAL, "g")
    for name, parameter in ours.named_parameters():
        if name.endswith("qkv.bias"):
            start, end = before.get_parameter(name), after.get_parameter(name)
            for part in (0, 2):
                moved, wanted = ((p - start).detach().chunk(3)[part] for p in (parameter, end))
                assert (moved - wanted).norm() <= 0.1 * wanted.norm(), name


def test_the_trained_checkpoint_round_trips_through_conversion(tmp_path):
    convert(FINAL, tmp_path / "model")
    z = IO["z_g.0"]
    with torch.no_grad():
        wanted = generator(FINAL, "g_ema").eval()(z)
        reloaded = GANPipeline.from_pretrained(tmp_path / "model").generator.eval()(z)
        judge = WaveletDiscriminator.from_pretrained(tmp_path / "model").eval()
        torch.testing.assert_close(judge(wanted), discriminator(FINAL).eval()(wanted), rtol=0, atol=2e-6)
    torch.testing.assert_close(reloaded, wanted, rtol=0, atol=1e-5)

"""Recipes, random numbers and the arithmetic of a step, on networks small enough to check by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from stylenat_hub.errors import ConfigError, InputError
from training.ema import ema_decay
from training.randomness import shard_rows, stream
from training.recipes import RECIPES, Recipe
from training.setup import new_players
from training.steps import Game, Players, Shard

SMALL = Recipe.preset("tiny", images=1_000)


class Marked(torch.nn.Module):
    """A discriminator that writes down the mean of what it sees."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images):
        self.seen.append(round(images.detach().mean().item(), 4))
        return self.weight * images.mean((1, 2, 3), keepdim=False)[:, None]


class Painter(torch.nn.Module):
    """A generator that draws its latent."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, z):
        return self.weight * z[:, :1, None, None].expand(-1, 3, 4, 4)


def plus(images, draws):
    return images + draws["plus"]


def test_who_sees_what_and_in_which_order():
    """Fake before real, both augmented, bCR on top of that; the penalty of each on its own pictures."""
    recipe = replace(SMALL, r1=1.0, r2=1.0, g_lr=1e-9, d_lr=1e-9)
    judge = Marked()
    game = Game(recipe, Players(Painter(), judge, Painter()), consistency=plus, augment=plus)
    ones, full = torch.ones(4, 1), torch.full((4, 3, 4, 4), 5.0)
    draws = {"real": 0.1, "fake": 0.2, "generator": 0.3, "bcr_real": 0.01, "bcr_fake": 0.02}
    shard = Shard(full, ones, 3 * ones, {name: {"plus": value} for name, value in draws.items()})
    game.step([shard], 0, penalise=True)
    assert judge.seen == pytest.approx([1.2, 5.1, 1.22, 5.11, 5.1, 1.2, 3.3])


def test_r1_goes_through_the_augmentation():
    recipe = replace(SMALL, r1=2.0, penalty_every=1)
    game = Game(recipe, Players(Painter(), Marked(), Painter()), augment=lambda images, _draws: 3 * images)
    shard = Shard(torch.ones(4, 3, 4, 4), torch.ones(4, 1), torch.ones(4, 1), {"real": {}})
    loss, scalars = game.penalty(shard)
    # D is the mean of 48 values, tripled: each pixel's gradient is 3 / 48
    assert scalars["r1"].item() == pytest.approx(48 * (3 / 48) ** 2) == loss.item()


def test_together_the_gradients_are_those_of_one_player_after_the_other():
    """At rates so small that nobody moves, and from the same latents."""
    found = []
    for together in (False, True):
        recipe = replace(SMALL, together=together, g_lr=1e-12, d_lr=1e-12, penalty_every=1)
        players = Players(Painter(), Marked(), Painter())
        game, images = Game(recipe, players, consistency=plus), torch.full((4, 3, 4, 4), 5.0)
        draws = {name: {"plus": 0.1} for name in ("bcr_real", "bcr_fake")}
        report = game.step([Shard(images, torch.ones(4, 1), torch.ones(4, 1), draws)] * 2, 0, penalise=True)
        found.append({name: value.item() for name, value in report.items()})
    assert found[0] == pytest.approx(found[1]) and found[0]["g_gradient_norm"] > 0


def test_the_average_copies_then_ramps_up_then_keeps_its_half_life():
    def moved(seen, **changes):
        recipe = replace(SMALL, batch=8, ema_half_life=80, **changes)
        game = Game(recipe, Players(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)))
        new, old = game.players.generator.weight, game.players.average.weight
        before, target = old.item(), new.item()
        game.update_average(seen)
        return (old.item() - before) / (target - before)

    torch.manual_seed(0)
    half = 1 - 0.5 ** (8 / 80)
    assert moved(0) == pytest.approx(half, rel=1e-3)
    assert moved(16, ema_start=24) == pytest.approx(1) and moved(24, ema_start=24) == pytest.approx(
        half, rel=1e-3
    )
    assert moved(400, ema_ramp_up=0.05) == pytest.approx(1 - 0.5 ** (8 / 20), rel=1e-3)
    assert moved(40_000, ema_ramp_up=0.05) == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("lazy", [False, True])
def test_together_all_is_judged_before_anybody_moves(lazy):
    """Both see the same generated pictures, from G's latent; a lazy penalty is still a step of its own."""
    recipe = replace(SMALL, together=True, penalty_every=2 if lazy else 1, r2=1.0, g_lr=0.5, d_lr=0.5)
    judge = Marked()
    game = Game(recipe, Players(Painter(), judge, Painter()), consistency=plus, augment=plus)
    draws = {"real": 0.1, "fake": 0.2, "generator": 0.3, "bcr_real": 0.01, "bcr_fake": 0.02}
    shard = Shard(
        torch.full((4, 3, 4, 4), 5.0),
        torch.full((4, 1), 7.0),
        torch.ones(4, 1),
        {name: {"plus": value} for name, value in draws.items()},
    )
    game.step([shard], 0, penalise=True)
    main, penalty = [1.2, 5.1, 1.22, 5.11], [5.1, 1.2]
    if lazy:  # drawn anew, from D's latent; G moves last
        penalty[1] = 7.2
        assert judge.seen == pytest.approx([*main, 1.3, *penalty])
    else:
        assert judge.seen == pytest.approx([*main, *penalty, 1.3])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_checkpoint(name):
    recipe = Recipe.preset(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "name, batch, steps, decay_step, r1",
    [
        ("ffhq-256", 64, 1_000_000, 775_000, 10),
        ("ffhq-1024", 32, 1_000_000, 500_000, 10),
        ("church-256", 64, None, None, 10),
        ("church-256-2", 64, 200_000, None, 20),
        ("church-256-4", 64, 200_000, None, 20),
    ],
)
def test_the_papers_numbers(name, batch, steps, decay_step, r1):
    recipe = Recipe.preset(name)
    assert (recipe.batch, recipe.r1, recipe.clip_d, recipe.beta2) == (batch, r1, 5, 0.99)
    assert (recipe.d_lr, recipe.g_lr, recipe.bcr_real, recipe.bcr_fake) == (2e-4, 2e-4 / 4, 10, 10)
    assert steps is None or recipe.images == batch * steps
    assert recipe.decay_start == (decay_step and batch * decay_step)
    # their decay per step, 0.5 ** (32 / 10000), whatever the batch
    assert ema_decay(batch, recipe.ema_half_life) == pytest.approx(0.5 ** (32 / 10_000))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_builds(name):
    recipe = Recipe.preset(name)
    if recipe.shape is None:
        with pytest.raises(ConfigError, match="this recipe is for trained weights: name them with --from"):
            new_players(recipe)
        return
    with torch.device("meta"):
        players = new_players(recipe)
    assert players.generator.resolution == players.discriminator.resolution
    assert recipe.batch % 4 == 0


def test_a_family_of_another_version_is_named():
    with pytest.raises(ConfigError, match="the family 'later', which this version does not have"):
        new_players(replace(SMALL, family="later", shape="tiny"))


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("batch", 0, "a whole number from 1"),
        ("loss", "wasserstein", "logistic, hinge, relativistic"),
        ("augment", "cutmix", "none, diffaugment, ada"),
        ("d_lr", -1.0, "a number above 0"),
        ("r1", "much", "a number from 0"),
        ("decay_start", 2_000, "a whole number below images"),
        ("clip_d", 0, "null, or a number above 0"),
        ("bcr_policy", ("flip", "sharpen"), "flip"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ConfigError, match=rf"Recipe\.{field} is .*{allowed}"):
        replace(SMALL, **{field: value})


def test_rows_are_dealt_out_in_whole_groups():
    parts = [shard_rows(16, 4, 2, i) for i in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(16))
    assert parts[0] == [0, 1, 4, 5, 8, 9, 12, 13]  # the groups {0, 4, 8, 12} and {1, 5, 9, 13}
    assert shard_rows(2, 4, 1, 0) == [0, 1]
    with pytest.raises(InputError, match=r"a batch of 8 .* a multiple of 16"):
        shard_rows(8, 4, 4, 0)


def test_streams_differ_by_seed_purpose_and_progress_only():
    def draw(*of):
        return torch.randn(4, generator=stream(*of))

    assert torch.equal(draw(0, "z_d", 16), draw(0, "z_d", 16))
    for other in ((1, "z_d", 16), (0, "z_g", 16), (0, "z_d", 24)):
        assert not torch.equal(draw(0, "z_d", 16), draw(*other))

"""Three training steps of the original HiT, recorded: losses, gradients, weights, Adam, statistics, average.

Tolerances are those of the recordings (tests/goldens/hit/README.md).
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hit_recordings import below, channels_first, error, generator_of, recorded, tensorflow_paths

from stylenat_hub.errors import ConfigError
from stylenat_hub.models.hit.discriminator import HiTDiscriminator, HiTDiscriminatorConfig
from stylenat_hub.models.hit.keys import convert_discriminator, convert_tensorflow
from training.adam import KerasAdam
from training.augment import HIT_POLICY, Consistency
from training.ema import ema_decay, update_ema
from training.losses import LOSSES, balanced_consistency
from training.recipes import Recipe
from training.setup import new_players
from training.steps import Game, Players, Shard

BATCH, SIDE = 4, 64
EXACT = 1e-6
RECIPE = Recipe(
    family="hit",
    shape="recorded",
    batch=BATCH,
    images=1_000,
    d_lr=5e-4,
    g_lr=1e-3,
    adam_eps=1e-7,
    r1=20.0,
    penalty_every=1,
    bcr_real=10.0,
    bcr_fake=10.0,
    bcr_policy=HIT_POLICY,
    clip_d=None,
    # 0.999 per step, after a copy at step 10
    ema_half_life=BATCH * 692.8005,
    ema_start=10 * BATCH,
    together=True,
    average_buffers=True,
    keras_epsilon=True,
)
PLACES = {"generator": "generator", "average": "ema_generator", "discriminator": "discriminator"}
# The last stage's batch norms take away whatever is the same for all of a channel.
SHIFTS = ("stages.2.upsample.proj.bias", "attn.value.bias", "attn.proj.bias", "mlp.fc2.bias")


def without_gradient(name):
    """Is it a bias whose true gradient is zero, so that Adam moves it by rounding alone?"""
    late = name.startswith(("stages.3.", "stages.2.upsample"))
    return name.endswith("attn.key.bias") or (late and name.endswith(SHIFTS))


def uniform(whole, low, count):
    """A number in [0, 1) from which our augmentation makes this one of `count` whole numbers from `low`."""
    return (whole.flatten().float() - low + 0.5) / count


def draws(step, kind):
    """The recorded draws as our augmentation's uniform numbers."""

    def raw(name):
        return recorded("train_steps")[f"step{step}.aug.{kind}.{name}"].flatten()

    reach = SIDE // 8
    moved = [uniform(raw(f"translation_{axis}"), -reach, 2 * reach + 1) for axis in "hw"]
    cut = [uniform(raw(f"cutout_{axis}"), 0, SIDE + 1) for axis in "hw"]
    colours = {name: raw(name) for name in ("brightness", "saturation", "contrast")}
    return {**colours, "translation": torch.stack(moved, 1), "cutout": torch.stack(cut, 1)}


def shard(step):
    found = recorded("train_steps")
    z = found[f"step{step}.z"]
    real = channels_first(found[f"step{step}.real_images"]).contiguous()
    return Shard(real, z, z, {f"bcr_{kind}": draws(step, kind) for kind in ("real", "fake")})


def start():
    variables = recorded("weights_step9")
    generator = generator_of(below(variables, "generator")).train()
    judge = convert_discriminator(below(variables, "discriminator")).train()
    return Players(generator, judge, copy.deepcopy(generator).eval())


class Watched(Game):
    """Keeps the gradients of the last step."""

    def _apply(self, optimizer, scaler, parameters, clip):
        model = "generator" if optimizer is self.g_optimizer else "discriminator"
        named = getattr(self.players, model).named_parameters()
        self.gradients[model] = {name: p.grad.clone() for name, p in named if p.grad is not None}
        return super()._apply(optimizer, scaler, parameters, clip)


@functools.cache
def trained():
    """Per recorded step: the reports, and copies of the players, the gradients and the moments after it."""
    game = Watched(RECIPE, start(), consistency=Consistency(HIT_POLICY))
    game.gradients = {}
    for optimizer in (game.g_optimizer, game.d_optimizer):
        nine_steps_with_nothing_learned(optimizer)
    found = []
    for step in range(3):
        report = game.step([shard(step)], (9 + step) * BATCH, penalise=True)
        moments = {
            name: {key: optimizer.state[p] for key, p in getattr(game.players, name).named_parameters()}
            for name, optimizer in (("generator", game.g_optimizer), ("discriminator", game.d_optimizer))
        }
        found.append(copy.deepcopy((report, game.players, game.gradients, moments)))
    return found


def nine_steps_with_nothing_learned(optimizer):
    """The recording starts with a count of 9 and empty moments."""
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter] = {
            "step": torch.tensor(9.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def ours(variables, model):
    """Recorded variables of a model, or as many as there are, under our names and in our layout."""
    like = model.state_dict()
    paths = {name: path for name, path in tensorflow_paths(model.typed_config).items()}
    whole = recorded("weights_step9")
    root = "generator" if "w_avg" in like else "discriminator"
    filled = {path: variables.get(path, whole[f"{root}/{path}"]) for path in paths.values()}
    converted = convert_tensorflow(filled, model.typed_config)
    return {name: converted[name] for name, path in paths.items() if path in variables}


@pytest.mark.parametrize("step", range(3))
def test_losses(step):
    report = trained()[step][0]
    mine = {
        "generator_total_loss": report["g_loss"],
        "gradient_penalty": 10 * report["r1"],
        "consistency_loss": report["d_loss"] - report["d_loss_main"],
        "discriminator_total_loss": report["d_loss"] + 10 * report["r1"],
    }
    for name, value in mine.items():
        wanted = recorded("train_steps")[f"step{step}.metric.{name}"][0]
        torch.testing.assert_close(value, wanted, rtol=5e-5, atol=0)


@pytest.mark.parametrize("name, count", [("generator", 140), ("discriminator", 28)])
def test_gradients_of_the_first_step(name, count):
    _, players, gradients, _ = trained()[0]
    root = f"step0.grad.{name}/"
    found = {k.removeprefix(root): v for k, v in recorded("train_steps").items() if k.startswith(root)}
    wanted = ours(found, getattr(players, name))
    large = [key for key in wanted if wanted[key].abs().max() > 1e-5]
    assert len(large) >= count
    assert {key: e for key in large if (e := error(gradients[name][key], wanted[key])) > 1e-3} == {}


@pytest.mark.parametrize("step", [10, 12])
@pytest.mark.parametrize("role", PLACES)
def test_weights_and_statistics(step, role):
    model = getattr(trained()[step - 10][1], role)
    # at step 10 the average is a copy
    root = PLACES["generator" if (step, role) == (10, "average") else role]
    wanted, found = ours(below(recorded(f"weights_step{step}"), root), model), model.state_dict()
    assert len(wanted) >= (6 if role == "discriminator" else 38)
    for name in wanted:
        apart = (found[name] - wanted[name]).abs()
        if "running" in name:
            assert apart.max() <= (1e-5 if step == 10 else 1e-3), name
        elif not without_gradient(name):
            assert apart.max() <= (2e-4 if step == 10 else 2e-3), name
            assert (apart <= 2e-4).float().mean() >= 0.998, name


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_moments(name):
    _, players, _, moments = trained()[2]
    compared = 0
    for slot, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
        end = f"/.OPTIMIZER_SLOT/{name}_optim/{slot}"
        found = {k.removesuffix(end): v for k, v in recorded("weights_step12").items() if k.endswith(end)}
        for parameter, wanted in ours(below(found, name), getattr(players, name)).items():
            if not without_gradient(parameter):
                got = moments[name][parameter][key]
                assert (got - wanted).norm() <= 5e-2 * wanted.norm(), (parameter, slot)
                compared += 1
    assert compared >= (12 if name == "discriminator" else 40)


def test_adam_by_itself():
    found = recorded("optim")
    rate, *betas, eps = found["adam.hyper_lr_beta1_beta2_eps"].tolist()
    weights = torch.nn.Parameter(found["adam.var0"].clone())
    adam = KerasAdam([weights], lr=rate, betas=tuple(betas), eps=eps)
    for step in range(6):
        weights.grad = found["adam.grads"][step].clone()
        adam.step()
        for got, name in (
            (weights.detach(), "var"),
            (adam.state[weights]["exp_avg"], "m"),
            (adam.state[weights]["exp_avg_sq"], "v"),
        ):
            torch.testing.assert_close(
                got, found[f"adam.{name}{step + 1}"], rtol=1e-5, atol=1e-7 * (name == "var")
            )
    assert adam.param_groups[0]["eps"] == eps  # what a step makes of it stays inside
    # small gradients are where it matters: torch's own Adam moves ten times less far with them
    plain = torch.nn.Parameter(found["adam.var0"].clone())
    plain.grad = found["adam.grads"][0].clone()
    torch.optim.Adam([plain], lr=rate, betas=tuple(betas), eps=eps).step()
    assert (plain.detach() - found["adam.var1"]).abs().max() > 1e-4


def test_the_average_by_itself():
    found = recorded("optim")
    average, model = (torch.nn.Linear(7, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        average.weight.copy_(found["ema.before"])
        model.weight.copy_(found["ema.value"])
    update_ema(average, model, 0.999)
    torch.testing.assert_close(average.weight[0].detach(), found["ema.after_decay_0.999"])


def test_one_pass_of_the_generator_per_step():
    """The statistics move once, and the average's with them."""
    players = start()
    before = [kept.clone() for kept in players.generator.statistics()]
    passes = []
    players.generator.register_forward_hook(lambda *_: passes.append(1))
    Game(RECIPE, players, consistency=Consistency(HIT_POLICY)).step([shard(0)], 0, penalise=True)
    assert len(passes) == 1 and len(before) > 20
    for old, new, kept in zip(
        before, players.generator.statistics(), players.average.statistics(), strict=True
    ):
        assert not torch.equal(old, new) and torch.equal(new, kept)


def test_without_the_average_of_its_statistics_it_is_refused():
    recipe = Recipe.preset("hit-tiny", average_buffers=False)
    with pytest.raises(ConfigError, match=r"keeps statistics of batch norm.* --set average_buffers=true"):
        new_players(recipe)
    new_players(Recipe.preset("hit-tiny", average_buffers=False, generator={"norm": "layer"}))


@pytest.mark.parametrize(("kind", "name"), [("non-saturating", "logistic"), ("hinge", "hinge")])
def test_losses_on_recorded_logits(kind, name):
    """Two of the logits are +-40, where a careless softplus overflows."""
    found = recorded("losses")
    real, fake = (found[f"{which}_logits"].clone().requires_grad_() for which in ("real", "fake"))
    for player, of in (("d", LOSSES[name].discriminator), ("g", LOSSES[name].generator)):
        loss = of(real, fake)
        assert error(loss.detach(), found[f"{kind}.{player}_loss"][0]) < EXACT
        gradients = torch.autograd.grad(loss, [real, fake], allow_unused=True)
        for which, gradient in zip(("real", "fake"), gradients, strict=True):
            wanted = found.get(f"{kind}.{player}_loss.grad_{which}")
            assert (gradient is None) == (wanted is None)
            assert gradient is None or error(gradient, wanted) < EXACT


def test_consistency_on_recorded_logits():
    found = recorded("losses")
    logits = [found[f"{name}_logits"] for name in ("real", "fake", "bcr.real_aug", "bcr.fake_aug")]
    assert error(balanced_consistency(*logits, 10, 10), found["bcr.value_cost10"][0]) < EXACT


def test_the_papers_discriminators():
    """The authors' commands state the multiplier: 2 for faces at 256 px."""
    for name, parameters in (
        ("hit-ffhq-256", 28_862_593),
        ("hit-celebahq-256", 28_862_593),
        ("hit-ffhq-1024", 24_033_937),
        ("hit-imagenet-128", 23_880_833),
    ):
        recipe = Recipe.preset(name)
        with torch.device("meta"):
            config = HiTDiscriminatorConfig.preset(recipe.shape, **recipe.discriminator)
            assert sum(p.numel() for p in HiTDiscriminator(config).parameters()) == parameters, name


def test_the_papers_numbers():
    imagenet, large = Recipe.preset("hit-imagenet-128"), Recipe.preset("hit-ffhq-1024")
    assert (imagenet.images, imagenet.d_lr, imagenet.g_lr) == (256_000_000, 1e-4, 1e-4)
    assert imagenet.bcr_real == imagenet.bcr_fake == 0 and imagenet.shape == "imagenet-128"
    assert (large.batch, large.images, large.ema_start) == (32, 16_000_000, 320)
    assert ema_decay(32, large.ema_half_life) == pytest.approx(0.999, abs=1e-6)
    recipe = Recipe.preset("hit-ffhq-256")
    assert (recipe.batch, recipe.images, recipe.r1, recipe.penalty_every) == (256, 256 * 500_000, 20, 1)
    assert (recipe.d_lr, recipe.g_lr, recipe.beta2, recipe.adam_eps) == (5e-5, 5e-5, 0.99, 1e-7)
    assert (recipe.bcr_real, recipe.bcr_fake, recipe.bcr_policy, recipe.clip_d) == (10, 10, HIT_POLICY, None)
    assert ema_decay(256, recipe.ema_half_life) == pytest.approx(0.999, abs=1e-8)
    assert recipe.ema_start == 10 * 256 and recipe.decay_start is None
    assert recipe.together and recipe.average_buffers and recipe.keras_epsilon and recipe.flip

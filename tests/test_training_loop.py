"""The training loop in one process: what a step changes, what resuming keeps, and when a run stops."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from stylenat_hub.errors import InputError, TrainingError
from training import checkpoints, loop
from training.loop import Schedule, Trainer
from training.recipes import Recipe
from training.setup import facts_of, new_players
from training.steps import Game

SMALL = Recipe.preset(
    "tiny",
    generator={"resolution": 16, "channels": [16, 16, 16], "num_heads": [2, 2, 3], "z_dim": 8, "w_dim": 8}
    | {"kernel_sizes": [[3], [3], [3, 3]], "dilations": [[1], [1], [1, 2]], "mapping_layers": 2}
    | {"num_heads": [2, 2, 2]},
    discriminator={"resolution": 16, "channels": [8, 8]},
    images=1_000,
)


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state per process; tests want their own precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


QUIET = Schedule(log_every=2, checkpoint_every=0, sample_every=0, metric_every=0)


def pictures(start=0):
    """Endless batches, each a function of its number."""
    while True:
        source = torch.Generator().manual_seed(start)
        yield torch.randint(0, 256, (8, 3, 16, 16), generator=source, dtype=torch.uint8)
        start += 1


def trainer(output, recipe=SMALL, images=40, **schedule):
    output.mkdir(exist_ok=True)
    players = new_players(recipe)
    plan = replace(QUIET, stop_at=images, **schedule)
    facts = {
        **facts_of(players),
        "data": {"fingerprint": "", "pictures": 0},
        "versions": {},
        "started_from": None,
    }
    return Trainer(recipe, players, Accelerator(), output, schedule=plan, facts=facts)


def everything(folder):
    loaded = checkpoints.load_checkpoint(folder)
    return {f"{file}/{key}": value for file, group in loaded.tensors.items() for key, value in group.items()}


def bits(tensor):
    return tensor.view(torch.uint8) if tensor.dim() else tensor  # NaN, as an unused w_avg, is equal to itself


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": "ada", "ada_speed": 100, "r2": 1.0},
        {"loss": "relativistic", "r2": 1.0, "penalty_every": 1},
        {"augment": "diffaugment", "decay_start": 16, "ema_ramp_up": 0.05, "ema_start": 24, "freeze_d": 1},
    ],
    ids=["tiny", "ada", "r3gan", "diffaugment-decay"],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, changes):
    recipe = replace(SMALL, **changes)
    whole = trainer(tmp_path / "whole", recipe, 80)
    assert whole.run(pictures()) == "stopped at the asked number of images"
    first = trainer(tmp_path / "halves", recipe, 40)
    first.run(pictures())
    torch.randn(7)  # nothing may hang on the global generator's luck
    second = trainer(tmp_path / "halves", recipe, 80)
    second.restore(checkpoints.find_checkpoint(tmp_path / "halves"))
    second.run(pictures(start=5))
    assert first.images == 40 and second.images == 80
    once, twice = everything(whole.saved), everything(second.saved)
    assert once.keys() == twice.keys() and len(once) > 200
    different = [key for key in once if not torch.equal(bits(once[key]), bits(twice[key]))]
    assert not [key for key in different if not key.startswith("rng/")]
    assert second.strength == whole.strength
    assert [r["images"] for r in rows(tmp_path / "whole")] == [16, 32, 48, 64, 80]
    late = [[r for r in rows(tmp_path / n) if r["images"] > 48] for n in ("whole", "halves")]
    assert [r["g_loss"] for r in late[0]] == [r["g_loss"] for r in late[1]]


def test_every_network_learns_and_the_average_lags(tmp_path):
    run = trainer(tmp_path / "run", images=24)
    before = {name: [p.clone() for p in m.parameters()] for name, m in vars(run.players).items()}
    run.run(pictures())
    for name, model in vars(run.players).items():
        moved = [not torch.equal(a, b) for a, b in zip(before[name], model.parameters(), strict=True)]
        assert all(moved), name
    distance = {
        name: sum(
            (a - b).abs().sum() for a, b in zip(before["generator"], model.parameters(), strict=True)
        ).item()
        for name, model in vars(run.players).items()
        if name != "discriminator"
    }
    assert distance["average"] < distance["generator"]
    assert torch.isfinite(checkpoints.load_checkpoint(run.saved).tensors["average"]["w_avg"]).all()


def test_the_learning_rates_end_at_nothing_and_d_is_corrected_for_lazy_penalties():
    recipe = replace(SMALL, images=1_000, decay_start=600)
    assert [recipe.rate_factor(seen) for seen in (0, 600, 800, 1_000)] == [1, 1, 0.5, 0]
    assert replace(recipe, penalty_every=16).lazy_correction == 16 / 17
    for plain in (replace(recipe, penalty_every=1), replace(recipe, r1=0.0)):
        assert plain.lazy_correction == 1


def test_freeze_d_keeps_the_finest_scales_and_nothing_else(tmp_path):
    run = trainer(tmp_path / "run", replace(SMALL, freeze_d=1), images=24)
    before = {name: p.clone() for name, p in run.players.discriminator.named_parameters()}
    run.run(pictures())
    kept = {n for n, p in run.players.discriminator.named_parameters() if torch.equal(p, before[n])}
    assert kept == {n for n in before if n.startswith(("from_rgb.0.", "scales.0."))}
    with pytest.raises(InputError, match="this discriminator has 2 scales"):
        new_players(replace(SMALL, freeze_d=3))


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    """Up to spectral norm, which moves on by one iteration per part: without it the two are equal."""
    gradients = []
    for parts in (1, 2):
        players = new_players(SMALL)
        for batch in zip(range(10), pictures(), strict=False):
            players.discriminator(batch[1].float() / 255)  # until its singular vectors have settled
        players.discriminator.eval()
        run = Trainer(SMALL, players, Accelerator(), tmp_path, accumulate=parts)
        shards = run.shards(next(pictures())[run.flat_rows])
        assert [len(shard.real) for shard in shards] == [8 // parts] * parts
        for shard in shards:
            loss, _ = run.game.discriminator_loss(shard)
            (loss / parts).backward()
        gradients.append([p.grad for p in players.discriminator.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-5)


def test_a_run_that_diverges_stops_and_names_the_last_good_checkpoint(tmp_path):
    run = trainer(tmp_path / "run", images=400, checkpoint_every=16)

    def poisoned():
        for number, batch in enumerate(pictures()):
            if number == 4:
                run.players.discriminator.hidden_bias.data.fill_(torch.nan)
            yield batch

    with pytest.raises(TrainingError, match=r"loss is nan; the last good checkpoint is .*images-000000032"):
        run.run(poisoned())
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == [
        "images-000000016",
        "images-000000032",
    ]
    fresh = trainer(tmp_path / "other", images=400)
    fresh.players.generator.constant.data.fill_(torch.inf)
    with pytest.raises(
        TrainingError, match="weights of the generator are not finite; there is no checkpoint"
    ):
        fresh.save()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, number):
    run = trainer(tmp_path / "run", images=400)

    def interrupted():
        for i, batch in enumerate(pictures()):
            if i == 3:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    assert run.run(interrupted()) == f"stopped by {number.name}"
    assert run.saved.name == "images-000000032" and run.saved.is_dir()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("where", ["metric", "grid"])
def test_a_signal_drops_a_measurement_and_saves(tmp_path, where):
    """Before the first step, where a measurement may take minutes."""
    reached = []

    def slow(*_arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the end")  # not reached: the handler raises
        return {"swd": 1.0}

    run = trainer(tmp_path / "run", images=400, **{"metric_every": 400, "sample_every": 400})
    run.metric = slow if where == "metric" else lambda _generator: reached.append("the metric")
    if where == "grid":
        run._sample = slow
    assert run.run(pictures()) == "stopped by SIGTERM"
    assert reached == [] and run.saved.name == "images-000000000"
    again = trainer(tmp_path / "run", images=16)
    again.restore(checkpoints.find_checkpoint(tmp_path / "run"))
    again.run(pictures())
    assert again.images == 16


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    trainer(tmp_path / "run", images=48, checkpoint_every=8, checkpoints_total_limit=2).run(pictures())
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["images-000000040", "images-000000048"]


def test_grids_and_the_log_come_when_they_are_due(tmp_path):
    seen = []

    def metric(generator):
        seen.append(bool(torch.isfinite(generator.w_avg).all()))
        return {"swd": 3.0}

    output = tmp_path / "run"
    run = trainer(output, images=40, sample_every=20, samples=4, metric_every=32)
    run.metric = metric
    run.run(pictures())
    assert sorted(p.name for p in (output / "samples").iterdir()) == [
        "images-000000000.png",
        "images-000000024.png",
        "images-000000040.png",
    ]
    assert [row["images"] for row in rows(output) if "swd" in row] == [0, 32]
    logged = next(row for row in rows(output) if row["images"] == 16)
    assert {
        "d_loss",
        "g_loss",
        "d_real",
        "d_fake",
        "r1",
        "d_gradient_norm",
        "g_gradient_norm",
    } <= logged.keys()
    assert {"images_per_second", "peak_memory_mib", "g_lr", "d_lr", "seconds"} <= logged.keys()
    assert len(seen) == 2


def test_going_on_forgets_rows_after_the_checkpoint(tmp_path):
    output = tmp_path / "run"
    trainer(output, images=32, checkpoint_every=16).run(pictures())
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"images": 48}\n{"images": 6')  # a later row, and one cut off by a kill
    again = trainer(output, images=64)
    again.restore(checkpoints.find_checkpoint(output))
    again.run(pictures(4))
    assert [row["images"] for row in rows(output)] == [16, 32, 48, 64]


def test_bfloat16_trains_too(tmp_path):
    recipe = replace(SMALL, augment="ada", r2=1.0)
    players = new_players(recipe)
    (tmp_path / "run").mkdir()
    run = Trainer(recipe, players, Accelerator(mixed_precision="bf16"), tmp_path / "run", schedule=QUIET)
    run.schedule = replace(QUIET, stop_at=24)
    run.run(pictures())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in players.generator.parameters())
    assert all(torch.isfinite(torch.tensor(row["d_loss"])) for row in rows(tmp_path / "run"))


class Watched(Game):
    """A game that writes down what it is told, and plays on."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.told = []

    def step(self, shards, seen, *, penalise):
        self.told.append((seen, penalise, shards))
        scalars = super().step(shards, seen, penalise=penalise)
        self.told[-1] += (self.g_optimizer.param_groups[0]["lr"], self.d_optimizer.param_groups[0]["lr"])
        return scalars


def test_what_each_step_is_given(tmp_path, monkeypatch):
    """Normalised pictures, fresh latents, a penalty every few steps from the first on, falling rates."""
    monkeypatch.setattr(loop, "Game", Watched)
    recipe = replace(SMALL, images=64, decay_start=32, penalty_every=3, augment="diffaugment")
    run = trainer(tmp_path / "run", recipe, images=64)
    run.run(pictures())
    seen, penalised, shards, g_rates, d_rates = zip(*run.game.told, strict=True)
    assert seen == tuple(range(0, 64, 8))
    assert [i for i, on in enumerate(penalised) if on] == [0, 3, 6]
    assert g_rates == pytest.approx([recipe.g_lr * f for f in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])
    assert d_rates == pytest.approx([rate * recipe.d_lr / recipe.g_lr * 3 / 4 for rate in g_rates])
    (first,) = shards[0]
    mean, std = (
        torch.tensor(run.players.generator.config[k]).view(3, 1, 1) for k in ("image_mean", "image_std")
    )
    torch.testing.assert_close(first.real * std + mean, next(pictures()) / 255)
    latents = [z for (shard,) in shards for z in (shard.z_d, shard.z_g)]
    assert len({tuple(z.flatten().tolist()) for z in latents}) == 16
    assert set(first.draws) == {"bcr_real", "bcr_fake", "real", "fake", "generator"}
    logged = [(row["images"], row["g_lr"]) for row in rows(tmp_path / "run")]
    assert logged == [(n, pytest.approx(g_rates[n // 8 - 1])) for n in (16, 32, 48, 64)]


@pytest.mark.parametrize("sign, stronger", [(1.0, True), (-1.0, False)])
def test_ada_grows_stronger_while_d_is_sure_of_real_pictures(tmp_path, sign, stronger):
    run = trainer(tmp_path / "run", replace(SMALL, augment="ada", ada_speed=80), images=8)
    run.strength = 0.5
    step = run.game.step
    run.game.step = lambda *a, **k: {**step(*a, **k), "d_sign": torch.tensor(sign)}
    run.run(pictures())
    assert run.strength == pytest.approx(0.6 if stronger else 0.4)


def test_grids_are_drawn_by_the_average(tmp_path):
    output = tmp_path / "run"
    run = trainer(output, images=8, sample_every=8, samples=1)
    run.players.generator.to_rgb[-1].bias.data.fill_(50.0)  # all white, whatever the average does
    run.run(pictures())
    with PIL.Image.open(output / "samples" / "images-000000008.png") as picture:
        assert picture.resize((1, 1)).getpixel((0, 0)) != (255, 255, 255)


def test_without_any_penalty_there_is_no_such_step(tmp_path):
    trainer(tmp_path / "run", replace(SMALL, r1=0.0), images=16).run(pictures())
    assert "r1" not in rows(tmp_path / "run")[0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_gpu_trains_in_every_precision(tmp_path, precision):
    recipe = replace(SMALL, augment="ada", r2=1.0)
    accelerator = Accelerator(mixed_precision=precision)
    players = new_players(recipe)
    for model in vars(players).values():
        model.to(accelerator.device)
    (tmp_path / "run").mkdir()
    plan = replace(QUIET, stop_at=48, sample_every=48, samples=4)
    run = Trainer(recipe, players, accelerator, tmp_path / "run", schedule=plan, facts=facts_of(players))
    run.run(pictures())
    assert accelerator.device.type == "cuda"
    assert all(p.isfinite().all() for model in vars(players).values() for p in model.parameters())
    first = everything(run.saved)
    run.restore(checkpoints.load_checkpoint(run.saved))
    run.saved = None
    run.save()
    again = everything(tmp_path / "run" / "checkpoints" / "images-000000048")
    assert all(torch.equal(bits(first[key]), bits(again[key])) for key in first)


@pytest.mark.slow
def test_compiled_training_computes_what_plain_training_does(tmp_path):
    """The losses of the first steps; sums in another order make later ones drift apart."""
    losses = []
    for name, compiled in (("plain", False), ("compiled", True)):
        players = new_players(SMALL)
        (tmp_path / name).mkdir()
        plan = replace(QUIET, stop_at=16)
        run = Trainer(
            SMALL,
            players,
            Accelerator(),
            tmp_path / name,
            schedule=plan,
            compiled=compiled,
            facts=facts_of(players),
        )
        run.run(pictures())
        losses.append(rows(tmp_path / name)[0])
    for key in ("d_loss", "g_loss", "g_gradient_norm"):
        assert losses[1][key] == pytest.approx(losses[0][key], rel=1e-3), key

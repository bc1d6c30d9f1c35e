"""HiT through the training's command line: going on, one process and two, statistics, export, fine-tuning."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from commands import FAST, here, run, wrong

from stylenat_hub import GANPipeline
from stylenat_hub.benchmark import benchmark
from training import checkpoints
from training.export import app as export_app
from training.recipes import Recipe
from training.setup import new_players
from training.steps import Game
from training.toy_churches import write_churches

SYNCHRONISED = ("--set", 'generator={"sync_batch_norm": true}')


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "churches.zip"
    write_churches(path, count=48, size=32, progress=False)
    return path


@pytest.fixture(scope="module")
def begin(data):
    """The command's arguments; `ema_start` is in the middle of the first 48 images."""
    return ["--preset", "hit-tiny", "--data", data, *FAST, "--batch", "8", "--set", "ema_start=24"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, begin):
    output = tmp_path_factory.mktemp("whole") / "run"
    result = here(*begin, "--output", output, "--stop-at", "48", "--checkpoint-every", "24")
    assert result.exit_code == 0, result.output
    return output


def tensors(output, images):
    return checkpoints.load_checkpoint(
        output / checkpoints.FOLDER / checkpoints.checkpoint_name(images)
    ).tensors


def statistics(group):
    return {key: value for key, value in group.items() if "running" in key}


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, begin, whole):
    for stop, resume in (("16", []), ("40", ["--resume", "latest"]), ("48", ["--resume", "latest"])):
        result = here(*begin, "--output", tmp_path / "run", "--stop-at", stop, *resume)
        assert result.exit_code == 0, result.output
    once, again = tensors(whole, 48), tensors(tmp_path / "run", 48)
    compared = 0
    for file in set(once) - {"rng"}:
        assert once[file].keys() == again[file].keys()
        for key, value in once[file].items():  # the learner does not know its mean style: not a number
            torch.testing.assert_close(again[file][key], value, rtol=0, atol=0, equal_nan=True, msg=key)
        compared += len(once[file])
    assert compared > 400


def test_the_average_is_a_copy_until_its_start_and_has_statistics_of_its_own_after_it(whole):
    first, last = tensors(whole, 24), tensors(whole, 48)
    assert not first["average"].pop("w_avg").any()  # known, for the pictures of the average
    for key, value in first["average"].items():
        assert torch.equal(value, first["generator"][key]), key
    learner, average = statistics(last["generator"]), statistics(last["average"])
    assert len(average) > 20
    for key, value in average.items():
        moved = (value - first["average"][key]).norm()
        assert 0 < moved < (learner[key] - first["generator"][key]).norm(), key


def test_gradient_checkpointing_and_bfloat16(tmp_path, begin, whole):
    """Blocks that run twice move their statistics once."""
    options = {"checkpointed": ["--gradient-checkpointing"], "bf16": ["--mixed-precision", "bf16"]}
    for name, option in options.items():
        result = here(*begin, "--output", tmp_path / name, "--stop-at", "8", *option)
        assert result.exit_code == 0, result.output
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    result = here(*begin, "--output", tmp_path / "plain", "--stop-at", "8")
    assert result.exit_code == 0, result.output
    plain = statistics(tensors(tmp_path / "plain", 8)["generator"])
    found = {name: statistics(tensors(tmp_path / name, 8)["generator"]) for name in options}
    for key, value in plain.items():
        torch.testing.assert_close(found["checkpointed"][key], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(found["bf16"][key], value, rtol=0, atol=1e-2)
    loss = json.loads((tmp_path / "bf16" / "metrics.jsonl").read_text().splitlines()[0])["d_loss"]
    assert loss == pytest.approx(first["d_loss"], rel=2e-2)


def test_two_processes_with_synchronised_statistics_compute_what_one_computes(tmp_path, begin):
    """Up to the order of sums: 1e-4 of the largest entry for gradients, 1e-5 for statistics."""
    for count in (1, 2):
        launch = ["launch", "--cpu", "--num_processes", count, "--num_machines", 1, "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", 1, "--main_process_port", 0]
        result = run(
            *(*launch, "-m", "training.train", *begin, *SYNCHRONISED, "--stop-at", "16"),
            *("--checkpoint-every", "8", "--output", tmp_path / str(count)),
            program=("-m", "accelerate.commands.accelerate_cli"),
        )
        assert result.returncode == 0, result.stderr
    logs = [(tmp_path / str(count) / "metrics.jsonl").read_text().splitlines()[0] for count in (1, 2)]
    one, two = map(json.loads, logs)
    for name in ("d_loss", "g_loss", "r1", "d_gradient_norm", "g_gradient_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    one, two = (tensors(tmp_path / str(count), 8) for count in (1, 2))
    for optimizer in ("d_optimizer", "g_optimizer"):
        largest = max(v.abs().max() for k, v in one[optimizer].items() if k.startswith("exp_avg/"))
        for key, value in one[optimizer].items():
            if key.startswith("exp_avg/"):
                # the second part for biases whose gradient is rounding alone
                limit = 1e-4 * value.abs().max().item() + 1e-5 * largest.item()
                torch.testing.assert_close(two[optimizer][key], value, rtol=0, atol=limit)
    for model in ("generator", "average"):
        for key, value in statistics(one[model]).items():
            torch.testing.assert_close(two[model][key], value, rtol=0, atol=1e-5)


def test_local_statistics_become_the_mean_of_all_processes():
    """`reduce` stands for a second process, whose statistics are all 3."""
    recipe = replace(Recipe.preset("hit-tiny"), ema_start=16)
    players = new_players(recipe)
    before = copy.deepcopy(players.generator.statistics())
    game = Game(recipe, players, reduce=lambda tensor: (tensor + 3) / 2)
    game.update_average(0)
    for old, new, kept in zip(
        before, players.generator.statistics(), players.average.statistics(), strict=True
    ):
        assert torch.equal(new, (old + 3) / 2) and torch.equal(new, kept)


def test_export_and_fine_tuning(tmp_path, data, whole):
    assert here(whole, "--output", tmp_path / "model", command=export_app).exit_code == 0
    drawn = GANPipeline.from_pretrained(tmp_path / "model").generator.state_dict()
    for key, value in tensors(whole, 48)["average"].items():
        assert torch.equal(drawn[key], value), key
    tune = ["--preset", "fine-tune", "--from", tmp_path / "model", "--data", data, *FAST, "--batch", "8"]
    tune += ["--output", tmp_path / "tuned", "--stop-at", "8"]
    wrong(*tune, says="--set average_buffers=true")
    result = here(*tune, "--set", "average_buffers=true", "--set", "together=true")
    assert result.exit_code == 0 and "with its discriminator" in result.output, result.output


def test_benchmarks_floor_is_all_products_of_the_blocks():
    """Cross-attention's as well, which lies outside the stages' lists of blocks."""
    result = benchmark("hit-tiny", repeats=1)
    wide, products = 32, 0
    for side, channels, heads, blocks, self_attends in (
        (8, 32, 4, 2, True),
        (16, 16, 2, 1, False),
        (32, 16, 2, 1, False),
    ):
        tokens, mlp = side**2, 8 * channels**2
        head = channels // heads
        products += tokens * (2 * channels**2 + mlp) + 16 * wide * 2 * head  # cross-attention
        inside = 2 * channels**2 + 2 * channels * head if self_attends else 0
        products += blocks * tokens * (inside + mlp)
    assert result["matrix_products_gflop"] == pytest.approx(2 * products / 1e9)
    assert result["matrix_products_gflop"] < result["all_linear_layers_gflop"]

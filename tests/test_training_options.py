"""Options of training's commands that a user meets later: metrics, rates on resume, branches, export."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest
import torch
from commands import FAST, here, run, start, wait_for, wrong

from stylenat_hub import GANPipeline, launch
from stylenat_hub.errors import InputError, WeightsError
from stylenat_hub.locks import locked
from training import checkpoints, export
from training.loop import Schedule
from training.toy_churches import write_churches

EXPORT = export.app


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "churches.zip"
    write_churches(path, count=24, size=32, progress=False)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run of 16 images with checkpoints at 8 and 16."""
    output = tmp_path_factory.mktemp("finished") / "run"
    begin = ["--preset", "tiny", "--data", data, "--output", output, *FAST]
    assert here(*begin, "--stop-at", "16", "--checkpoint-every", "8").exit_code == 0
    return output


def names(output):
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_the_metric_compares_with_pictures_of_its_own(tmp_path, data):
    other = tmp_path / "held-out.zip"
    write_churches(other, count=12, size=32, start=1_000, progress=False)
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path / "run", *FAST, "--stop-at", "16"]
    begin += ["--metric", "swd", "--metric-every", "16", "--metric-images", "12"]
    result = here(*begin, "--eval-data", other)
    assert result.exit_code == 0, result.output
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in logged if "swd" in row]
    assert [row["images"] for row in found] == [0, 16]
    assert all(row["swd"] > 0 and row["swd_16"] > 0 for row in found) and found[0]["swd"] != found[1]["swd"]
    write_churches(tmp_path / "small.zip", count=12, size=16, progress=False)
    begin[begin.index("--output") + 1] = tmp_path / "b"
    wrong(*begin, "--eval-data", tmp_path / "small.zip", says="--allow-upscaling")  # before any training
    wrong(*begin, "--metric-images", "13", "--eval-data", other, says="--metric-images 12")
    wrong(*begin, "--metric", "swd,fud", says="the metric is 'fud'; allowed: swd, fid, kid, is, pr, dc, none")


def test_several_metrics_of_features(tmp_path, data, monkeypatch):
    """The same code as `stylenat evaluate`; figures of another network than the papers' say so."""
    monkeypatch.setenv("STYLENAT_HUB_CACHE", str(tmp_path / "cache"))
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path / "run", *FAST, "--stop-at", "16"]
    begin += ["--metrics", "swd,fid,pr", "--metric-extractor", "random-conv"]
    result = here(*begin, "--metric-every", "16", "--metric-images", "24")
    assert result.exit_code == 0, result.output
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in logged if "swd" in row]
    assert [row["images"] for row in found] == [0, 16]
    assert all(row["fid[random-conv]"] > 0 and 0 <= row["recall[random-conv]"] <= 1 for row in found)
    other = [*begin[:-2], "--metric-every", "16", "--output", tmp_path / "b"]
    wrong(*other, says="pt_inception-2015-12-05-6726825d.pth")  # before any training


def test_accumulation_and_gradient_checkpointing_reach_the_same_gradients(tmp_path, data):
    """Checkpointing computes the same; accumulation up to the power iterations of spectral norm."""
    ends = {}
    for name, options in {
        "plain": [],
        "checkpointing": ["--gradient-checkpointing"],
        "accumulated": ["--accumulate", "2"],
    }.items():
        result = here(
            *("--preset", "tiny", "--data", data, "--output", tmp_path / name, *FAST),
            *("--stop-at", "8", *options),
        )
        assert result.exit_code == 0, result.output
        ends[name] = checkpoints.find_checkpoint(tmp_path / name).tensors["g_optimizer"]
    for key, wanted in ends["plain"].items():
        if key.startswith("exp_avg/"):
            limit = 1e-4 * wanted.abs().max().item() + 1e-9
            torch.testing.assert_close(ends["checkpointing"][key], wanted, rtol=0, atol=limit)
    key = "exp_avg/constant"
    cosine = torch.cosine_similarity(ends["plain"][key].flatten(), ends["accumulated"][key].flatten(), dim=0)
    assert 0.9 < cosine.item() < 0.9999999


def test_rates_may_change_when_a_run_goes_on_as_the_advice_says(tmp_path, data):
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST]
    assert here(*begin, "--stop-at", "8").exit_code == 0
    changed = ["--set", "d_lr=1e-5", "--set", "g_lr=1e-6", "--set", "r1=3"]
    result = here(*begin, "--stop-at", "16", "--resume", "latest", *changed)
    assert result.exit_code == 0, result.output
    state = checkpoints.find_checkpoint(tmp_path).state
    assert (state["recipe"]["d_lr"], state["recipe"]["r1"]) == (1e-5, 3)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["g_lr"] == 1e-6 and last["d_lr"] == pytest.approx(1e-5 * 16 / 17)
    wrong(
        *begin, "--resume", "latest", "--set", "r1=0", says="has r1 = 3, not 0"
    )  # Adam's beta depends on it
    wrong(*begin, "--resume", "latest", "--set", "d_rl=1", says="does not know the key(s) 'd_rl'")


def test_checkpoints_of_an_abandoned_branch_are_set_aside(tmp_path, data):
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST]
    assert here(*begin, "--stop-at", "24", "--checkpoint-every", "8").exit_code == 0
    older = tmp_path / "checkpoints" / "images-000000008"
    again = here(*begin, "--stop-at", "16", "--resume", older, "--checkpoints-total-limit", "1")
    assert again.exit_code == 0 and "set aside" in again.output
    kept = names(tmp_path)
    assert kept == ["images-000000016", "superseded-images-000000016", "superseded-images-000000024"]
    assert checkpoints.newest_checkpoint(tmp_path).state["images"] == 16


def test_a_damaged_newest_one_does_not_cost_the_good_ones(tmp_path, data):
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST]
    assert here(*begin, "--stop-at", "24", "--checkpoint-every", "8").exit_code == 0
    (tmp_path / "checkpoints" / "images-000000024" / "rng.safetensors").unlink()
    result = here(*begin, "--stop-at", "20", "--resume", "latest", "--checkpoints-total-limit", "1")
    assert result.exit_code == 0, result.output
    assert "has no 'rng.safetensors'" in result.output
    assert names(tmp_path) == ["images-000000024", "superseded-images-000000024"]
    assert checkpoints.newest_checkpoint(tmp_path).state["images"] == 24


def test_a_checkpoint_of_another_run_does_not_mix_with_this_one(tmp_path, data, finished):
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST]
    assert here(*begin, "--stop-at", "8").exit_code == 0
    foreign = finished / "checkpoints" / "images-000000016"
    wrong(
        *begin,
        "--resume",
        foreign,
        says="already holds a run (another one); go on with it by --resume latest",
    )
    elsewhere = [*begin[:5], tmp_path / "new", *begin[6:]]
    assert here(*elsewhere, "--resume", foreign, "--stop-at", "24").exit_code == 0
    assert names(tmp_path / "new") == ["images-000000024"]


def test_export_of_the_learner_without_the_discriminator(tmp_path, finished):
    arguments = [finished, "--output", tmp_path / "m", "--weights", "generator", "--skip-discriminator"]
    assert here(*arguments, command=EXPORT).exit_code == 0
    assert not (tmp_path / "m" / "discriminator").exists()
    drawn = GANPipeline.from_pretrained(tmp_path / "m").generator.state_dict()
    learner = checkpoints.find_checkpoint(finished).tensors["generator"]
    assert all(torch.equal(drawn[key], learner[key]) for key in learner if key != "w_avg")
    assert drawn["w_avg"].isfinite().all()


def test_export_refuses_and_loses_nothing(tmp_path, finished, monkeypatch):
    target = tmp_path / "m"
    assert here(finished, "--output", target, command=EXPORT).exit_code == 0
    before = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    wrong(finished, "--output", target, says="--overwrite", command=EXPORT)
    wrong(finished, "--output", tmp_path / "n", "--dtype", "int8", says="float32, bfloat16", command=EXPORT)
    wrong(tmp_path / "nothing", "--output", tmp_path / "n", says="there is no checkpoint", command=EXPORT)
    monkeypatch.setattr(export, "check_same_weights", lambda *_: 1 / 0)
    wrong(finished, "--output", target, "--overwrite", says="ZeroDivisionError", command=EXPORT)
    assert {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    older = finished / "checkpoints" / "images-000000008"
    assert here(older, "--output", target, "--overwrite", command=EXPORT).exit_code == 0
    assert json.loads((target / "training.json").read_text())["images"] == 8


def test_float16_refuses_weights_that_it_cannot_hold(tmp_path, finished):
    def huge(model, tensors, name):
        model.load_state_dict(tensors)
        if name == "average":
            model.constant.data.fill_(1e6)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "restore_model", huge)
        arguments = [finished, "--output", tmp_path / "m", "--dtype", "float16"]
        wrong(*arguments, says="'constant' has values that float16 cannot hold", command=EXPORT)
    assert not (tmp_path / "m").exists()


def test_a_single_model_folder_can_be_fine_tuned(tmp_path, data, finished):
    assert here(finished, "--output", tmp_path / "m", command=EXPORT).exit_code == 0
    alone = tmp_path / "m" / "generator"
    begin = [
        "--from",
        alone,
        "--data",
        data,
        "--output",
        tmp_path / "run",
        *FAST,
        "--stop-at",
        "8",
        "--batch",
        "8",
    ]
    result = here(*begin, "--discriminator", tmp_path / "m")
    assert result.exit_code == 0 and "the discriminator of" in result.output, result.output
    begin[5] = tmp_path / "again"
    result = here(*begin)
    assert result.exit_code == 0 and "a new discriminator of random weights" in result.output
    wide = ["--set", 'generator={"mlp_ratio": 2}', "--preset", "tiny"]
    wrong(*begin[:5], tmp_path / "c", *begin[6:], *wide, says="has mlp_ratio = 2, and that of")


def test_the_list_of_presets_needs_nothing_else():
    result = run("--list-presets")
    assert result.returncode == 0 and re.search(r"ffhq-256 +batch +64", result.stdout)


def test_two_runs_do_not_write_into_one_folder(tmp_path, data):
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path / "run", *FAST, "--stop-at", "8"]
    with locked(tmp_path / "run"):
        wrong(*begin, says="another run is writing into")
    assert here(*begin).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("recipe"),
        lambda state: state.update(images=16),
        lambda state: state["recipe"].update(seed=9),
        lambda state: state["files"].pop("rng.safetensors"),
    ],
)
def test_an_edited_record_is_a_damaged_checkpoint(tmp_path, finished, change):
    copy = tmp_path / "images-000000008"
    shutil.copytree(finished / "checkpoints" / "images-000000008", copy)
    checkpoints.load_checkpoint(copy)
    state = json.loads((copy / "state.json").read_text())
    change(state)
    (copy / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        WeightsError, match=r"images-000000008' is damaged: state.json is not what was written"
    ):
        checkpoints.load_checkpoint(copy)


def test_torchrun_on_a_cpu_connects_its_processes(monkeypatch):
    for name in ("ACCELERATE_USE_CPU", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    launch.together_on_cpu()
    assert "ACCELERATE_USE_CPU" not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch.together_on_cpu()
    assert os.environ.pop("ACCELERATE_USE_CPU") == "true"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child that its parent ended")
@pytest.mark.parametrize("count", [1, 2])
def test_ending_the_launcher_ends_the_training_with_a_checkpoint(tmp_path, data, count):
    command = ["launch", "--cpu", "--num_processes", count, "--num_machines", 1, "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "-m", "training.train", "--preset", "tiny", "--data", data]
    command += ["--output", tmp_path / "run", *FAST]
    process = start(*command, program=("-m", "accelerate.commands.accelerate_cli"))
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3)
    process.terminate()
    process.communicate(timeout=60)
    wait_for(lambda: checkpoints.list_checkpoints(tmp_path / "run"))
    wait_for(lambda: released(tmp_path / "run"))
    saved = checkpoints.newest_checkpoint(tmp_path / "run").state["images"]
    assert saved >= len(log.read_text().splitlines()) * 8 - 8


def released(output):
    try:
        with locked(output):
            return True
    except InputError:
        return False


def test_other_precision_is_said_when_a_run_goes_on(tmp_path, data):
    begin = ["--preset", "tiny", "--data", data, "--output", tmp_path / "run", *FAST]
    assert here(*begin, "--stop-at", "8").exit_code == 0
    result = here(*begin, "--stop-at", "16", "--resume", "latest", "--mixed-precision", "bf16")
    assert result.exit_code == 0 and "the precision was no and is now bf16" in result.output
    wrong(*begin[:5], tmp_path / "x", *FAST, "--discriminator", "y", says="--discriminator goes with --from")


def test_schedules_are_checked():
    for field, value in {
        "log_every": 0,
        "samples": 0,
        "checkpoints_total_limit": -1,
        "metric_every": -5,
    }.items():
        with pytest.raises(InputError, match=rf"Schedule\.{field} is {value}; allowed: a whole number from"):
            Schedule(**{field: value})

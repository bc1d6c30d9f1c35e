"""The training's command line, as it is used: start, kill, resume, several processes, fine-tuning, errors."""

from __future__ import annotations

import json
import shutil
import signal
import zipfile

import pytest
import torch
from commands import FAST, here, run, wrong

from stylenat_hub import GANPipeline, WaveletDiscriminator
from stylenat_hub.errors import InputError
from stylenat_hub.launch import missing_processes
from training import checkpoints
from training.export import app as export_app
from training.toy_churches import write_churches


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "churches.zip"
    write_churches(path, count=48, size=32, progress=False)
    return path


def everything(folder):
    loaded = checkpoints.load_checkpoint(folder)
    tensors = {f"{f}/{key}": value for f, group in loaded.tensors.items() for key, value in group.items()}
    return {key: value.view(torch.uint8) if value.dim() else value for key, value in tensors.items()}


def differing(one, other):
    one, other = everything(one), everything(other)
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


# Dies by SIGKILL while it writes the given file of the given checkpoint: after the first few of its bytes.
DIES_SAVING = """
import os, signal, sys
import training.checkpoints as checkpoints
save = checkpoints.save_file
def dying(tensors, path, *rest, **more):
    if path.name == "discriminator.safetensors" and "000000064" in str(path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(tensors, path, *rest, **more)
checkpoints.save_file = dying
from training.cli import main
main()
"""


def test_a_run_killed_while_saving_goes_on_as_if_nothing_had_happened(tmp_path, data):
    """N + N steps are 2N to the bit, through the command line, with SIGKILL in the middle of a checkpoint."""
    common = ["--preset", "tiny", "--data", data, *FAST, "--workers", "1", "--checkpoint-every", "32"]
    whole = run(*common, "--output", tmp_path / "whole", "--stop-at", "96")
    assert whole.returncode == 0, whole.stderr
    assert "stopped at the asked number of images" in whole.stdout
    killed = run(*common, "--output", tmp_path / "cut", "--stop-at", "96", program=("-c", DIES_SAVING))
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert left == [".unfinished-images-000000064", "images-000000032"]
    resumed = run(*common, "--output", tmp_path / "cut", "--stop-at", "96", "--resume", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from images-000000032" in resumed.stdout
    names = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert names == ["images-000000032", "images-000000064", "images-000000096"]
    for name in names:
        ends = [tmp_path / kind / "checkpoints" / name for kind in ("whole", "cut")]
        assert differing(*ends) == []
    logs = [(tmp_path / kind / "metrics.jsonl").read_text().splitlines() for kind in ("whole", "cut")]
    kept = [[(r["images"], r["d_loss"], r["g_loss"]) for r in map(json.loads, log)] for log in logs]
    assert kept[0] == kept[1] and len(kept[0]) == 12


def test_two_processes_compute_what_one_computes(tmp_path, data):
    """Same pictures, latents and augmentations; sums in another order, hence a tolerance: 1e-4 of the largest
    entry for the gradients of one step (Adam keeps the last one, because beta1 is 0), 1e-4 for losses."""
    settings = ["--set", "penalty_every=1", "--set", "r2=0.5", "--augment", "ada", "--batch", "16"]
    common = [
        "--preset",
        "tiny",
        "--data",
        data,
        *FAST,
        *settings,
        "--stop-at",
        "48",
        "--checkpoint-every",
        "16",
    ]
    for count in (1, 2):
        launch = ["launch", "--cpu", "--num_processes", count, "--num_machines", 1, "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", 1, "--main_process_port", 0]
        result = run(
            *launch,
            "-m",
            "training.train",
            *common,
            "--output",
            tmp_path / str(count),
            program=("-m", "accelerate.commands.accelerate_cli"),
        )
        assert result.returncode == 0, result.stderr
        assert f"batch 16 on {count} process(es), cpu" in result.stdout
    logs = [(tmp_path / str(count) / "metrics.jsonl").read_text().splitlines() for count in (1, 2)]
    for one, two in zip(*([json.loads(line) for line in log] for log in logs), strict=True):
        for name in (
            "d_loss",
            "g_loss",
            "r1",
            "r2",
            "d_real",
            "d_fake",
            "d_gradient_norm",
            "g_gradient_norm",
        ):
            assert two[name] == pytest.approx(one[name], rel=1e-4 if one["images"] == 16 else 2e-2, abs=1e-6)
    one, two = (
        checkpoints.load_checkpoint(tmp_path / str(count) / "checkpoints" / "images-000000016").tensors
        for count in (1, 2)
    )
    for optimizer in ("d_optimizer", "g_optimizer"):
        gradients = [key for key in one[optimizer] if key.startswith("exp_avg/")]
        assert len(gradients) > 20
        for key in gradients:
            limit = 1e-4 * one[optimizer][key].abs().max().item() + 1e-9
            torch.testing.assert_close(two[optimizer][key], one[optimizer][key], rtol=0, atol=limit)


def test_export_gives_a_pipeline_to_draw_with_and_to_fine_tune_from(tmp_path, data):
    begun = here("--preset", "tiny", "--data", data, "--output", tmp_path / "run", *FAST, "--stop-at", "16")
    assert begun.exit_code == 0, begun.output
    result = here(tmp_path / "run", "--output", tmp_path / "model", "--dtype", "bfloat16", command=export_app)
    assert result.exit_code == 0 and "from images-000000016" in result.output
    pipeline = GANPipeline.from_pretrained(tmp_path / "model")
    assert pipeline([0], truncation_psi=0.7).images[0].size == (32, 32)
    stored = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoints" / "images-000000016")
    average, learner = stored.tensors["average"], stored.tensors["generator"]
    drawn = pipeline.generator.state_dict()
    assert all(torch.equal(drawn[key], value.bfloat16().float()) for key, value in average.items())
    assert not all(torch.equal(drawn[key], value.bfloat16().float()) for key, value in learner.items())
    WaveletDiscriminator.from_pretrained(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["images"] == 16 and record["recipe"]["shape"] == "tiny"
    assert str(tmp_path) not in json.dumps(record)
    tuned = here(
        *(
            "--preset",
            "fine-tune",
            "--from",
            tmp_path / "model",
            "--data",
            data,
            "--output",
            tmp_path / "tuned",
        ),
        *(*FAST, "--batch", "8", "--stop-at", "8", "--set", "g_lr=1e-12"),
    )
    assert tuned.exit_code == 0 and "with its discriminator" in tuned.output
    stored = checkpoints.load_checkpoint(tmp_path / "tuned" / "checkpoints" / "images-000000008")
    assert stored.state["started_from"] == "model" and str(tmp_path) not in json.dumps(stored.state)
    start = stored.tensors
    for key, value in start["generator"].items():
        torch.testing.assert_close(value, drawn[key], rtol=1e-6, atol=1e-9, equal_nan=True)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path, data):
    common = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST, "--checkpoint-every", "8"]
    assert here(*common, "--stop-at", "16").exit_code == 0
    newest = tmp_path / "checkpoints" / "images-000000016" / "generator.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    result = here(*common, "--stop-at", "24", "--resume", "latest")
    assert result.exit_code == 0, result.output
    assert "images-000000016' is damaged: 'generator.safetensors'" in result.output
    assert "going on from images-000000008" in result.output
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").write_text("{")
    result = here(*common, "--resume", "latest")
    assert result.exit_code == 1 and "all 3 checkpoints" in result.output and "are damaged" in result.output


def test_bad_data_is_one_sentence(tmp_path, data):
    start = ["--preset", "tiny", "--output", tmp_path / "run", *FAST, "--data"]
    wrong(*start, tmp_path / "nowhere", says="nowhere")
    (tmp_path / "empty").mkdir()
    wrong(*start, tmp_path / "empty", says="empty")
    write_churches(tmp_path / "small.zip", count=4, size=16, progress=False)
    wrong(*start, tmp_path / "small.zip", says="--allow-upscaling")
    asked = ("--metric", "swd", "--metric-every", "8", "--metric-images", "49")
    wrong(*start, data, *asked, says="--metric-images 48")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_bad_folders_and_settings_are_one_sentence(tmp_path, data, monkeypatch):
    start = ["--preset", "tiny", "--data", data, *FAST, "--output"]
    wrong(*start, tmp_path, "--resume", "latest", says="there is no checkpoint to go on from")
    wrong(*start, tmp_path, "--resume", tmp_path / "gone", says="it does not exist")
    wrong(*start, data, says="is a file")
    wrong(*start, tmp_path, "--preset", "ffhq", says="did you mean")
    wrong(*start, tmp_path, "--set", "d_rl=1", says="does not know the key(s) 'd_rl'")
    wrong(*start, tmp_path, "--batch", "6", says="a multiple of 4")
    wrong(*start, tmp_path, "--mixed-precision", "fp8", says="allowed: no, bf16, fp16")
    wrong(*start, tmp_path, "--mixed-precision", "fp16", says="use --mixed-precision bf16")
    wrong(*start, tmp_path, "--from", "no/such-model-here", "--tracker", "wandb", says="wandb")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    wrong(*start, tmp_path, says="MiB free, and a checkpoint takes about")


def test_a_broken_picture_that_ends_the_run_saves_first(tmp_path, data):
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as mixed, zipfile.ZipFile(data) as good:
        for i, name in enumerate(good.namelist()):
            mixed.writestr(name, good.read(name) if i != 30 else b"no picture")
    broken = good.namelist()[30]
    start = ["--preset", "tiny", "--data", tmp_path / "mixed.zip", "--output", tmp_path / "run", *FAST]
    result = here(*start, "--strict-data", "--stop-at", "96")
    assert result.exit_code == 1 and broken in result.output
    saved = checkpoints.list_checkpoints(tmp_path / "run")
    result = here(*start, "--resume", "auto", "--stop-at", "96")
    assert result.exit_code == 0 and result.output.count(broken) == 1
    assert saved and f"going on from {saved[-1].name}" in result.output


def test_grids_and_scalars_reach_tensorboard(tmp_path, data):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    common = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST, "--stop-at", "16"]
    result = here(*common, "--tracker", "tensorboard", "--sample-every", "16", "--samples", "4")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "logs" / "stylenat_hub"  # the recipe is in a folder of its own beside these
    found = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert {"d_loss", "g_loss", "images_per_second"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Images("samples")] == [0, 16]


def test_resuming_refuses_another_run(tmp_path, data):
    start = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST]
    assert here(*start, "--stop-at", "8").exit_code == 0
    wrong(*start, says="already holds a run; go on with it by --resume latest")
    wrong(*start, "--resume", "latest", "--seed", "5", says="has seed = 0, not 5")
    wrong(
        *start, "--resume", "latest", "--preset", "toy-church", says="its shape is 'tiny', not 'toy-church'"
    )
    other = tmp_path / "other.zip"
    write_churches(other, count=47, size=32, progress=False)
    changed = [*start[:3], other, *start[4:], "--resume", "latest", "--stop-at", "16"]
    wrong(*changed, says="the data has changed since the checkpoint (48 pictures then, 47 now")
    assert here(*changed, "--accept-changed-data").exit_code == 0
    longer = here(*start, "--resume", "latest", "--images", "24", "--accept-changed-data")
    assert longer.exit_code == 0 and "finished" in longer.output
    assert checkpoints.list_checkpoints(tmp_path)[-1].name == "images-000000024"


def test_a_full_disk_while_saving_is_one_sentence_and_keeps_the_last_checkpoint(tmp_path, data, monkeypatch):
    start = ["--preset", "tiny", "--data", data, "--output", tmp_path, *FAST, "--checkpoint-every", "8"]
    assert here(*start, "--stop-at", "8").exit_code == 0

    def full(*_rest, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    wrong(*start, "--resume", "latest", "--stop-at", "16", says="the disk is full")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["images-000000008"]


def test_fine_tuning_refuses_networks_that_do_not_fit(tmp_path, data):
    assert (
        here(
            "--preset", "tiny", "--data", data, "--output", tmp_path / "r", *FAST, "--stop-at", "8"
        ).exit_code
        == 0
    )
    assert here(tmp_path / "r", "--output", tmp_path / "m", command=export_app).exit_code == 0
    config = tmp_path / "m" / "discriminator" / "config.json"
    big = WaveletDiscriminator.from_config(
        {**json.loads(config.read_text()), "resolution": 16, "channels": (8, 8)}
    )
    big.save_pretrained(tmp_path / "other")
    start = [
        "--preset",
        "fine-tune",
        "--from",
        tmp_path / "m",
        "--data",
        data,
        "--output",
        tmp_path / "t",
        *FAST,
    ]
    wrong(*start, "--discriminator", tmp_path / "other", says="the discriminator is for 16 px")
    wrong(*start, "--preset", "ffhq-256", says="the recipe is for 256 px, and")
    wrong("--preset", "fine-tune", "--data", data, "--output", tmp_path / "t", says="name them with --from")
    shutil.rmtree(tmp_path / "m" / "discriminator")
    result = here(*start, "--stop-at", "16", "--preset", "tiny")
    assert result.exit_code == 0 and "a new discriminator of random weights" in result.output


SEVERAL = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}


def test_processes_that_accelerate_did_not_start_are_noticed():
    line = ["accelerate", "launch", "--cpu", "--num_processes", "4", "-m", "training.train"]
    assert missing_processes(SEVERAL, line) == 4
    assert missing_processes(SEVERAL, ["--num-processes=3"]) == 3
    for started in (
        {"ACCELERATE_USE_CPU": "False"},
        {"ACCELERATE_USE_CPU": "True"},
        {**SEVERAL, "RANK": "0"},
    ):
        assert missing_processes(started, line) is None
    for unclear in ([], [*line, "--num_machines", "2"]):
        with pytest.raises(InputError, match="start them with `torchrun"):
            missing_processes(SEVERAL, unclear)

"""The commands that push what lies in a folder: `stylenat push`, conversion, export."""

from __future__ import annotations

import json
import shlex
import shutil
import signal

import pytest
import torch
from commands import FAST, here
from test_conversion import MIXED
from typer.testing import CliRunner

import conversion.cli
from stylenat_hub import GANPipeline, WaveletDiscriminator, cli, publish
from training import export
from training.toy_churches import write_churches

WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {f"{part}/{name}" for part in ("generator", "discriminator") for name in ("config.json", WEIGHTS)}


def call(app, *arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    if code == 1:
        assert result.output.count("error:") == 1 and "Traceback" not in result.output
    return result.output if code else result.stdout


def picture(source, **options):
    return GANPipeline.from_pretrained(source, **options)([3], output_type="pt").images


def files(hub, name):
    return hub.files(name).keys() - {".gitattributes"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of 16 images that measured itself."""
    place = tmp_path_factory.mktemp("measured")
    write_churches(place / "churches.zip", count=12, size=32, progress=False)
    begin = ["--preset", "tiny", "--data", place / "churches.zip", "--output", place / "run", *FAST]
    begin += ["--metric", "swd", "--metric-every", "8", "--metric-images", "12", "--stop-at", "16"]
    result = here(*begin, "--checkpoint-every", "8")
    assert result.exit_code == 0, result.output
    return place / "run"


def test_the_command_pushes_a_folder(hub, tiny):
    told = call(cli.app, "push", tiny, "me/church", "--license", "mit", "--tag", "v1", "--message", "Mine")
    assert told.splitlines()[-1] == f"pushed to {hub.url}/me/church"
    assert hub.commits("me/church")[-1].title == "Mine" and "v1" in hub.repo("me/church").tags
    assert b"license: mit" in hub.files("me/church")["README.md"]
    assert torch.equal(picture("me/church"), picture(tiny))
    call(cli.app, "push", tiny, "secret", "--private", "--bundle-code", "--branch", "next")
    assert hub.repo("me/secret").private and "pipeline.py" in hub.files("me/secret", "next")
    hub.add_repo("other/church", {"a.txt": b"a"})
    told = call(cli.app, "push", tiny, "other/church", "--create-pr")
    assert told.splitlines()[-1].endswith("/other/church/discussions/1")
    assert "has a tag 'v1' already" in call(cli.app, "push", tiny, "me/church", "--tag", "v1", code=1)
    assert "create_pr=True" in call(cli.app, "push", tiny, "other/church", code=1)
    call(cli.app, "push", tiny, code=2)


def test_the_command_pushes_a_variant(hub, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model", variant="fp32")
    call(cli.app, "push", tmp_path / "model", "me/church", "--variant", "fp32")
    assert torch.equal(picture("me/church", variant="fp32"), pipeline([3], output_type="pt").images)
    assert "no variant 'bf16'" in call(
        cli.app, "push", tmp_path / "model", "me/church", "--variant", "bf16", code=1
    )


def test_conversion_pushes_its_result(hub, tmp_path):
    output = tmp_path / "out"
    arguments = [MIXED, "--output", output, "--push-to-hub", "me/converted", "--license", "mit"]
    told = call(conversion.cli.app, *arguments)
    assert told.splitlines()[-1] == f"pushed to {hub.url}/me/converted"
    record = json.loads(hub.files("me/converted")["conversion.json"])
    card = hub.files("me/converted")["README.md"].decode()
    assert f"Converted from `{MIXED.name}`" in card and record["source"]["sha256"] in card
    assert hub.commits("me/converted")[-1].title == "Upload converted pipeline"
    assert torch.equal(picture("me/converted"), picture(output))
    for path, data in hub.files("me/converted").items():
        assert str(tmp_path).encode() not in data and str(MIXED.parent).encode() not in data, path


@pytest.mark.parametrize("what", ["conversion", "export"])
def test_what_could_not_be_pushed_is_written_and_can_be_pushed_as_it_says(hub, tmp_path, measured, what):
    app, source = {"conversion": (conversion.cli.app, MIXED), "export": (export.app, measured)}[what]
    output = tmp_path / "my folder"
    hub.fail("503", times=None)
    arguments = [source, "--output", output, "--push-to-hub", "me/x", "--license", "mit", "--private"]
    told = call(app, *arguments, code=1)
    assert f"'{output}' is written" in " ".join(told.split()) and not hub.repos
    hub.clear_faults()
    command = shlex.split(told.split("`")[1])
    assert command[0] == "stylenat"
    call(cli.app, *command[1:])
    assert hub.repo("me/x").private and b"license: mit" in hub.files("me/x")["README.md"]
    assert torch.equal(picture("me/x"), picture(output))


@pytest.mark.parametrize("what", ["conversion", "export"])
def test_ctrl_c_while_pushing_says_what_is_written(hub, tmp_path, measured, what, monkeypatch):
    app, source = {"conversion": (conversion.cli.app, MIXED), "export": (export.app, measured)}[what]
    monkeypatch.setattr(publish, "upload", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(app, [str(source), "--output", str(tmp_path / "m"), "--push-to-hub", "me/x"])
    assert result.exit_code == 1
    assert result.output.endswith(f"interrupted: {tmp_path / 'm'} is written, but not pushed\n")
    assert (tmp_path / "m" / "model_index.json").is_file()


def test_export_pushes_recipe_metric_and_discriminator(hub, tmp_path, measured):
    arguments = [measured, "--output", tmp_path / "m", "--push-to-hub", "me/churches", "--license", "mit"]
    result = here(*arguments, "--private", command=export.app)
    assert result.exit_code == 0, result.output
    assert files(hub, "me/churches") == {
        *("model_index.json", "training.json", "README.md", "samples.png"),
        *PARTS,
    }
    assert hub.repo("me/churches").private
    assert hub.commits("me/churches")[-1].title == "Upload the checkpoint images-000000016"
    card = hub.files("me/churches")["README.md"].decode()
    record = json.loads(hub.files("me/churches")["training.json"])
    assert f"| sliced Wasserstein distance x 1000 | {record['metrics']['swd']:.2f} |" in card
    assert "16 images seen" in card and '"d_lr"' in card and "of 12 training pictures" in card
    assert "type: swd" in card and "- `training.json`" in card and "- `discriminator`" in card
    assert torch.equal(picture("me/churches"), picture(tmp_path / "m"))
    WaveletDiscriminator.from_pretrained("me/churches")
    for path, data in hub.files("me/churches").items():
        assert str(tmp_path.parent).encode() not in data, path


def test_a_checkpoint_goes_along_whole_and_alone(hub, tmp_path, measured):
    run = shutil.copytree(measured, tmp_path / "run")
    checkpoint = run / "checkpoints" / "images-000000008"
    (checkpoint / "notes.safetensors").write_bytes(b"mine")
    arguments = [checkpoint, "--output", tmp_path / "m", "--push-to-hub", "me/churches"]
    result = here(*arguments, "--with-checkpoint", "--message", "8 images seen", command=export.app)
    assert result.exit_code == 0, result.output
    names = {path.split("/")[1] for path in hub.files("me/churches") if path.startswith("checkpoint/")}
    assert names == {path.name for path in checkpoint.iterdir()} - {"notes.safetensors"}
    assert "--resume hf:me/churches" in hub.files("me/churches")["README.md"].decode()
    (checkpoint / "rng.safetensors").write_bytes(b"cut")
    arguments[2] = tmp_path / "n"
    result = here(*arguments, "--with-checkpoint", command=export.app)
    assert result.exit_code == 1 and "is damaged" in result.output and len(hub.commits("me/churches")) == 2

"""HiT from TensorFlow's checkpoint folders: the recorded pictures, the choice of networks, clear refusals."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hit_recordings import GOLDENS, error, part, recorded
from tensorflow_files import SUFFIX, write
from test_conversion import MIXED, ROOT, refused, run
from test_hit_goldens import EXACT

from conversion.containers import read_checkpoint
from conversion.convert import convert
from stylenat_hub import StyleNATConfig
from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.hit.discriminator import HiTDiscriminator
from stylenat_hub.pipeline import GANPipeline

CKPT = GOLDENS / "ckpt"
INDEX = CKPT / "ckpt-9.index"
DATA = "ckpt-9.data-00000-of-00001"


def generator_in(folder):
    return GANPipeline.from_pretrained(folder).generator.eval()


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder as TensorFlow leaves it; the later checkpoint is the same again."""
    place = tmp_path / "training"
    place.mkdir()
    for file in CKPT.iterdir():
        shutil.copy(file, place)
        shutil.copy(file, place / file.name.replace("-9", "-12"))
    (place / "checkpoint").write_text(
        'model_checkpoint_path: "ckpt-9"\nall_model_checkpoint_paths: "ckpt-9"\n'
    )
    return place


@pytest.fixture
def variables():
    """What a training run keeps, with its optimizer's slots, as arrays."""
    found = {name + SUFFIX: tensor.numpy() for name, tensor in recorded("weights_step9").items()}
    slots = {
        name.replace(SUFFIX, f"/.OPTIMIZER_SLOT/generator_optim/m{SUFFIX}"): np.zeros_like(values)
        for name, values in found.items()
        if name.startswith("generator/")
    }
    beside = {"generator_optim/learning_rate" + SUFFIX: np.array(1e-3, "f4"), "_GRAPH": [b"a graph"]}
    return {**found, **slots, **beside, "global_step" + SUFFIX: np.array(9)}


def test_a_recorded_checkpoint_converts_to_the_recorded_pictures(tmp_path):
    report = convert(CKPT, tmp_path / "out", weights="generator")
    assert (report.family, report.layout, report.weights) == ("hit", "TensorFlow bundle", "generator")
    generator, io = generator_in(tmp_path / "out"), recorded("io")
    with torch.inference_mode():
        picture = generator(io["z"]).permute(0, 2, 3, 1)
    assert error(picture, io["image_inference"]) < EXACT
    assert torch.equal(generator.w_avg, torch.zeros(12))
    assert report.parameters == sum(parameter.numel() for parameter in generator.parameters())
    assert [row["px"] for row in report.levels] == [8, 16, 32, 64]
    assert "container   TensorFlow bundle, weights 'generator'" in str(report)


def test_the_discriminator_becomes_a_model(tmp_path):
    assert convert(CKPT, tmp_path / "out").discriminator
    judge, io = HiTDiscriminator.from_pretrained(tmp_path / "out"), recorded("io")
    with torch.inference_mode():
        logits = judge(io["d.images"].permute(0, 3, 1, 2))
    assert error(logits.flatten(), io["d.logits"].flatten()) < 5e-5  # the recordings' own, for logits
    assert not convert(CKPT, tmp_path / "two", skip_discriminator=True).discriminator
    assert not (tmp_path / "two" / "discriminator").exists()


def test_the_average_is_taken_unless_told_otherwise(tmp_path):
    networks = read_checkpoint(INDEX).networks
    assert list(networks) == ["ema_generator", "generator", "discriminator"]
    path = "dense_layer/layer_with_weights-0/kernel"
    kernels = {name: networks[name][path] for name in ("ema_generator", "generator")}
    assert not torch.equal(*kernels.values())
    assert torch.equal(kernels["generator"], part("weights_step9", "generator/")[path])
    for weights, found in ((None, "ema_generator"), ("ema_generator",) * 2, ("generator",) * 2):
        out = tmp_path / str(weights)
        assert convert(INDEX, out, weights=weights, skip_discriminator=True).weights == found
        assert torch.equal(generator_in(out).stem.weight, kernels[found].t())


def test_a_run_without_an_average_gives_its_generator(tmp_path, variables):
    write(tmp_path / "run", variables, compress=True, per_block=30)
    report = convert(tmp_path / "run", tmp_path / "out")
    assert report.weights == "generator" and report.discriminator
    with torch.inference_mode():
        picture = generator_in(tmp_path / "out")(recorded("io")["z"]).permute(0, 2, 3, 1)
    assert error(picture, recorded("io")["image_inference"]) < EXACT
    asked = run(tmp_path / "run", "--output", tmp_path / "two", "--weights", "ema_generator")
    refused(
        asked, "no 'ema_generator' weights (it has 'generator', 'discriminator'); pass --weights generator"
    )


def test_names_of_the_other_kind_of_file_are_refused(tmp_path):
    asked = run(CKPT, "--output", tmp_path / "out", "--weights", "g_ema")
    refused(asked, "no 'g_ema' weights (it has 'ema_generator', 'generator', 'discriminator'); pass")
    refused(asked, "pass --weights ema_generator or generator")
    asked = run(MIXED, "--output", tmp_path / "out", "--weights", "generator")
    refused(asked, "no 'generator' weights (it has 'g_ema', 'g', 'd'); pass --weights g_ema or g")
    refused(run(CKPT, "--output", tmp_path / "out", "--weights", "ema"), "Usage:", code=2)
    asked = run(CKPT, "--output", tmp_path / "out", "--family", "stylenat")
    refused(asked, "'ckpt-9.index' is not a checkpoint of StyleNAT, but of HiT; pass --family hit")
    assert convert(CKPT, tmp_path / "out", family="hit").family == "hit"


def test_the_record_has_every_file(tmp_path):
    convert(CKPT, tmp_path / "out")
    text = (tmp_path / "out" / "conversion.json").read_text(encoding="utf-8")
    record = json.loads(text)
    for found, name in ((record["source"], INDEX.name), (record["data"][0], DATA)):
        content = (CKPT / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert found == {"file": name, "bytes": len(content), "sha256": digest}
    assert len(record["data"]) == 1
    assert record["container"] == "TensorFlow bundle" and record["weights"] == "ema_generator"
    assert record["recorded"]["global_step"] == 9
    assert record["w_avg"] == {"known": True}
    assert str(ROOT) not in text and str(tmp_path) not in text


@pytest.mark.parametrize("name", ["ckpt-12", "ckpt-12.index", "ckpt-12.data-00000-of-00001"])
def test_a_checkpoint_by_its_path(folder, name):
    files = [path.name for path in read_checkpoint(folder / name).files]
    assert files == ["ckpt-12.index", "ckpt-12.data-00000-of-00001"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('model_checkpoint_path: "ckpt-9"\nall_model_checkpoint_paths: "ckpt-12"\n', "ckpt-9"),
        ('model_checkpoint_path: "/home/somebody/run/ckpt-9"\n', "ckpt-9"),  # the folder has moved
        ('model_checkpoint_path: "C:\\\\run\\\\ckpt-9"\n', "ckpt-9"),
        ('model_checkpoint_path: "../training/../other/ckpt-9"\n', "ckpt-9"),  # the one here, not the other
        ("", "ckpt-12"),
        ("\xff\x00 nothing of the kind", "ckpt-12"),
        (None, "ckpt-12"),
    ],
)
def test_which_checkpoint_of_a_folder(folder, text, found):
    (folder / "checkpoint").unlink()
    if text is not None:
        (folder / "checkpoint").write_text(text, encoding="latin-1")
    shutil.copytree(folder, folder.parent / "other")
    (folder.parent / "other" / f"{found}.index").write_bytes(b"never opened")
    assert read_checkpoint(folder).files[0] == folder / f"{found}.index"


@pytest.mark.parametrize("named", ["ckpt-7", "../other/ckpt-7", "/other/ckpt-7", "..", "", "x" * 9_999])
def test_a_checkpoint_that_is_not_in_the_folder_is_not_looked_for_elsewhere(folder, named):
    shutil.copytree(folder, folder.parent / "other")
    for file in CKPT.iterdir():
        shutil.copy(file, folder.parent / "other" / file.name.replace("-9", "-7"))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    with pytest.raises(WeightsError, match=r"which is not in it; .* by its path: 'ckpt-12', 'ckpt-9'"):
        read_checkpoint(folder)


def test_folders_that_do_not_say_what_is_meant(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(
        run(tmp_path / "empty", "--output", tmp_path / "out"), "is a folder without a TensorFlow checkpoint"
    )
    (folder / "checkpoint").unlink()
    shutil.copy(INDEX, folder / "model-12.index")
    refused(run(folder, "--output", tmp_path / "out"), "('ckpt-12', 'ckpt-9', 'model-12'); name one of them")
    (folder / "ckpt-12.index").unlink()
    asked = run(folder / "ckpt-12.data-00000-of-00001", "--output", tmp_path / "out")
    refused(asked, "cannot be read without 'ckpt-12.index'")
    refused(run(folder / "ckpt-12", "--output", tmp_path / "out"), "there is no file")
    assert not (tmp_path / "out").exists()


def test_damaged_and_missing_files_are_named_and_nothing_is_written(folder, tmp_path):
    for name, message in (
        (DATA, "the checksum of the variable '"),
        (INDEX.name, "the checksum of its block"),
    ):
        content = (CKPT / name).read_bytes()
        (folder / name).write_bytes(content[:9_999] + bytes([content[9_999] ^ 4]) + content[10_000:])
        refused(run(folder, "--output", tmp_path / "out"), f"{name!r} is damaged")
        refused(run(folder, "--output", tmp_path / "out"), message)
        (folder / name).write_bytes(content[:-1])
        refused(run(folder, "--output", tmp_path / "out"), "truncated")
        (folder / name).write_bytes(content)
    (folder / DATA).unlink()
    refused(run(folder, "--output", tmp_path / "out"), f"the checkpoint's file {DATA!r} is missing")
    assert not (tmp_path / "out").exists()


def test_variables_that_do_not_fit_are_named(tmp_path, variables):
    gamma = "generator/blocks/1/layer_with_weights-0/norm/gamma" + SUFFIX
    kernel = "discriminator/conv_blocks/layer_with_weights-0/kernel" + SUFFIX
    for name, value, message in (
        (gamma, variables[gamma] * np.float32(np.nan), "gamma' holds NaN or infinite"),
        (gamma, variables[gamma][:3].copy(), "gamma' has the shape [3]"),
        (gamma, variables[gamma].astype("i4"), "has the type torch.int32"),
        ("generator/other/gamma" + SUFFIX, variables[gamma], "'other/gamma' that this model does not have"),
        (gamma, variables[gamma].astype("f8") * 1e300, "gamma' holds values beyond float32's range"),
        (kernel, variables[kernel].astype("f8") * 1e300, "kernel' holds values beyond float32's range"),
        (gamma, variables[gamma].astype("f8"), None),
    ):
        write(tmp_path / "run", {**variables, name: value})
        asked = run(tmp_path / "run", "--output", tmp_path / "out")
        assert asked.exit_code == 0 if message is None else refused(asked, message) is None
    write(tmp_path / "run", {name: value for name, value in variables.items() if name != gamma})
    refused(run(tmp_path / "run", "--output", tmp_path / "two"), "norm/gamma'; it is incomplete")
    write(tmp_path / "run", {"model/kernel" + SUFFIX: np.ones(3, "f4")})
    refused(run(tmp_path / "run", "--output", tmp_path / "two"), "TensorFlow checkpoint of another project")
    others = {"generator/kernel" + SUFFIX: np.ones(3, "f4")}
    write(tmp_path / "run", others)
    refused(run(tmp_path / "run", "--output", tmp_path / "two"), "its generator has the tensors 'kernel'")


def test_what_no_shape_tells_comes_from_a_config(tmp_path):
    config = {"block_sizes": [2, 8, None, None], "discriminator": {"pooling": "average"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = run(CKPT, "--output", tmp_path / "out", "--config", tmp_path / "config.json")
    assert asked.exit_code == 0, asked.output
    assert generator_in(tmp_path / "out").typed_config.block_sizes == (2, 8, None, None)
    assert HiTDiscriminator.from_pretrained(tmp_path / "out").typed_config.pooling == "average"
    refused(run(CKPT, "--output", tmp_path / "two", "--preset", "tiny"), "the variables say that resolution")
    for wrong, message in (
        ({"discriminator": {"pooling": "none"}}, "pooling is 'none'"),
        ({"discriminator": "average"}, "it must hold the fields of one"),
        ({"discriminator": {1: 2}}, "the config's 'discriminator' is {1: 2}; it must hold the fields of one"),
        ({1: 2}, "the config is {1: 2}; it must hold the fields of one by their names"),
        (3, "the config is 3; it must hold the fields of one"),
        (StyleNATConfig.preset("tiny"), "the config is a StyleNATConfig, but .* HiT's; allowed: a HiTConfig"),
        ({"channels": [1, 2, 3, 4]}, "the variables say that channels"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(CKPT, tmp_path / "two", config=wrong)
    with pytest.raises(ConfigError, match="preset is 3; allowed: the name of one"):
        convert(CKPT, tmp_path / "two", preset=3)
    with pytest.raises(ConfigError, match="none is converted"):
        convert(CKPT, tmp_path / "two", config=config, skip_discriminator=True)
    with pytest.raises(ConfigError, match="which the config contradicts"):
        convert(MIXED, tmp_path / "two", config={"discriminator": {"channels": [32, 32, 64]}})
    assert not (tmp_path / "two").exists()


def test_the_command_reads_it_where_tensorflow_cannot_be_imported(tmp_path):
    """In a process of its own, in which the import of TensorFlow and its kin fails and is reported."""
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorboard', 'snappy', 'crc32c', 'google.protobuf'):\n"
        "    sys.modules[name] = None\n"
        "from conversion.cli import main\n"
        "main()\n"
    )
    line = [sys.executable, "-c", code, str(CKPT / "ckpt-9"), "--output", str(tmp_path / "out")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "family      hit, 64 x 64 px" in done.stdout and "'ema_generator'" in done.stdout
    assert (tmp_path / "out" / "discriminator" / "config.json").exists()

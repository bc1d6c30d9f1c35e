"""Strict loading: what fits loads to the bit, what does not names the file, the key or the tensor."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from small_models import tiny_generator

from stylenat_hub import hub, locations
from stylenat_hub.errors import ConfigError, InputError, UnknownModelError, WeightsError
from stylenat_hub.models.stylenat.generator import StyleNATGenerator
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import CHECKPOINTS, FAMILIES

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny, tmp_path):
    """A model folder of its own, to be damaged."""
    return shutil.copytree(tiny / "generator", tmp_path / "model")


def edit_tensors(folder, change):
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder, kind, *words, **kwargs):
    with pytest.raises(kind) as caught:
        StyleNATGenerator.from_pretrained(folder, **kwargs)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bitwise(family, tmp_path):
    model = tiny_generator(family).train()
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert not loaded.training and loaded.typed_config == model.typed_config
    state = model.state_dict()
    assert set(loaded.state_dict()) == set(state)
    for name, tensor in loaded.state_dict().items():
        assert not tensor.is_meta and tensor.dtype == torch.float32 and torch.equal(tensor, state[name]), name
    assert type(hub.load_generator(tmp_path / "model")) is type(model)


def test_a_pipeline_folder_is_a_source_too(tiny):
    expected = hub.load_generator(tiny / "generator").state_dict()
    for loaded in (
        StyleNATGenerator.from_pretrained(tiny),
        StyleNATGenerator.from_pretrained(str(tiny), subfolder="generator"),
        GANPipeline.from_pretrained(tiny / "generator").generator,
        StyleNATGenerator.from_pretrained(tiny, low_cpu_mem_usage=False),
    ):
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in expected.items())


def test_dtype_and_variants(folder):
    full = StyleNATGenerator.from_pretrained(folder)
    StyleNATGenerator.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder, variant="bf16")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        WEIGHTS,
        "diffusion_pytorch_model.bf16.safetensors",
    }
    half = StyleNATGenerator.from_pretrained(folder, variant="bf16", torch_dtype=torch.bfloat16)
    wide = StyleNATGenerator.from_pretrained(folder, variant="bf16")
    for name, tensor in full.state_dict().items():
        assert (
            half.state_dict()[name].dtype == torch.bfloat16 and wide.state_dict()[name].dtype == torch.float32
        )
        assert torch.equal(half.state_dict()[name], tensor.bfloat16())
        assert torch.equal(wide.state_dict()[name], tensor.bfloat16().float())
    refused(folder, WeightsError, "no variant 'fp16'", "variant='bf16'", "the one without", variant="fp16")
    (folder / WEIGHTS).unlink()
    refused(folder, WeightsError, "no weights without a variant", "variant='bf16'")


def test_a_pipeline_saves_variants_beside_each_other(tiny, tmp_path):
    target = shutil.copytree(tiny, tmp_path / "both")
    (target / "README.md").write_text("a card")
    GANPipeline.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(target, variant="bf16")
    full = GANPipeline.from_pretrained(target).generator.constant
    half = GANPipeline.from_pretrained(target, variant="bf16").generator.constant
    assert not torch.equal(half, full) and torch.equal(half, full.bfloat16().float())
    assert (target / "README.md").read_text() == "a card"
    assert {path.name for path in target.iterdir()} == {"README.md", "generator", "model_index.json"}


def test_shards_and_back(folder):
    model = StyleNATGenerator.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(StyleNATGenerator.from_pretrained(folder).constant, model.constant)
    with torch.no_grad():
        model.constant.zero_()
    model.save_pretrained(folder)  # the old index must not win over the new single file
    assert StyleNATGenerator.from_pretrained(folder).constant.count_nonzero() == 0


def test_an_index_cannot_name_a_pickle(folder):
    shutil.move(folder / WEIGHTS, folder / "x.bin")
    index = {"metadata": {}, "weight_map": {"constant": "x.bin"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, WeightsError, "'x.bin'", "not a safetensors shard")
    index["weight_map"]["constant"] = "diffusion_pytorch_model-00001-of-00002.safetensors"
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, WeightsError, "diffusion_pytorch_model-00001-of-00002.safetensors", "is missing")


def test_a_missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("to_rgb.0.bias"))
    refused(folder, WeightsError, "'to_rgb.0.bias'", "is missing")


def test_missing_tensors_are_counted(folder):
    edit_tensors(
        folder, lambda tensors: [tensors.pop(name) for name in ("w_avg", "to_rgb.0.bias", "constant")]
    )
    refused(folder, WeightsError, "'constant' (and 2 more: to_rgb.0.bias, w_avg)", "is missing")


def test_an_unexpected_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.update(stranger=torch.zeros(2)))
    refused(folder, WeightsError, "'stranger'", "is unexpected")


def test_a_misshapen_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.update(w_avg=torch.zeros(33)))
    refused(folder, WeightsError, "'w_avg'", "[33]", "[32]")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite(folder, value):
    edit_tensors(folder, lambda tensors: tensors["constant"].view(-1)[3].fill_(value))
    refused(folder, WeightsError, "'constant'", "NaN or infinite")


def test_the_mean_style_is_all_nan_or_all_known(folder):
    edit_tensors(folder, lambda tensors: tensors["w_avg"].fill_(torch.nan))
    assert StyleNATGenerator.from_pretrained(folder).w_avg.isnan().all()
    edit_tensors(folder, lambda tensors: tensors["w_avg"][1:].fill_(0))
    refused(folder, WeightsError, "'w_avg'", "NaN or infinite")


def test_types_that_are_no_weights(folder):
    edit_tensors(folder, lambda tensors: tensors.update(w_avg=torch.zeros(32, dtype=torch.int64)))
    refused(folder, WeightsError, "'w_avg'", "I64")
    edit_tensors(folder, lambda tensors: tensors.update(w_avg=torch.zeros(32, dtype=torch.float16)))
    assert StyleNATGenerator.from_pretrained(folder).w_avg.dtype == torch.float32


@pytest.mark.parametrize("keep", [0, 5, 1000, -7])
def test_a_truncated_weights_file(folder, keep):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    refused(folder, WeightsError, str(folder / WEIGHTS), "cut off or damaged")


def test_a_git_lfs_pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, WeightsError, "git lfs pull")


@pytest.mark.parametrize("text", ["", '{"_class_name": ', "[1]", "\0\1"])
def test_a_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, ConfigError, str(folder / "config.json"))


def test_config_keys_and_values(folder):
    edit_config(folder, stranger=1)
    refused(folder, ConfigError, "'stranger'")
    config = json.loads((folder / "config.json").read_text())
    del config["stranger"], config["channels"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, ConfigError, "'channels'")


def test_an_error_leaves_the_default_dtype(folder):
    edit_config(folder, resolution=33)
    refused(folder, ConfigError, "resolution is 33", dtype=torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


def test_another_class(folder):
    edit_config(folder, _class_name="UNet2DModel")
    refused(folder, ConfigError, "UNet2DModel", "StyleNATGenerator")
    with pytest.raises(ConfigError, match="UNet2DModel"):
        hub.load_generator(folder)


def test_a_pipeline_of_another_project(tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["a", "b"]}')
    refused(other, ConfigError, "StableDiffusionPipeline")


def test_pickles_are_never_read(folder):
    torch.save(safetensors.torch.load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder, WeightsError, "diffusion_pytorch_model.bin", "never read")
    refused(folder, InputError, "safetensors only", use_safetensors=False)
    with pytest.raises(InputError, match="would write a pickle"):
        tiny_generator().save_pretrained(folder, safe_serialization=False)


def test_folders_that_are_no_models(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", ConfigError, "no config.json")
    (tmp_path / "weights.pt").write_bytes(b"x")
    refused(tmp_path / "weights.pt", InputError, "is a file", "conversion.convert")
    refused(tmp_path / "none", UnknownModelError, "there is no folder")
    refused("", InputError, "give a zoo name")
    refused(None, InputError, "give a zoo name")


@pytest.mark.parametrize("name", sorted(set(CHECKPOINTS) - set(hub.builtin_models())))
def test_a_zoo_name_without_weights_says_what_to_do(name):
    if CHECKPOINTS[name].origin_url:
        refused(name, UnknownModelError, f"python -m conversion.convert --from {name} --output {name}")
    else:
        refused(name, UnknownModelError, "never published")


def test_a_folder_wins_over_the_zoo(tiny, tmp_path, monkeypatch):
    """What the advice above writes is found under the zoo's name."""
    shutil.copytree(tiny, tmp_path / "stylenat-ffhq-256")
    monkeypatch.chdir(tmp_path)
    assert StyleNATGenerator.from_pretrained("stylenat-ffhq-256").resolution == 32


def test_a_builtin_model_is_found_by_name(tiny, tmp_path, monkeypatch):
    assert hub.builtin_models() == ["toy-church"]
    monkeypatch.setattr(locations, "BUILTIN", tmp_path)
    shutil.copytree(tiny, tmp_path / "stylenat-small")
    assert hub.builtin_models() == ["stylenat-small"]
    assert GANPipeline.from_pretrained("stylenat-small").model_name == "stylenat-small"


def test_the_nearest_names_are_offered():
    message = refused("stylenat-fhq-256", UnknownModelError, "'stylenat-ffhq-256'")
    assert message.count("stylenat-fhq-256") and "no folder" in message


def test_mistyped_arguments_are_refused(folder):
    refused(folder, InputError, "'dtpye'", dtpye=torch.float16)
    refused(folder, InputError, "dtype is 'float16'", dtype="float16")
    refused(folder, InputError, "ignore_mismatched_sizes", ignore_mismatched_sizes=True)


def test_save_to_a_bad_place(tmp_path):
    (tmp_path / "file").write_text("keep me")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file"):
            tiny_generator().save_pretrained(target)
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("existing", [False, True])
def test_save_to_a_full_disk(tiny, tmp_path, monkeypatch, existing):
    target = tmp_path / "model"
    if existing:
        shutil.copytree(tiny / "generator", target)
    before = {path.name: path.read_bytes() for path in target.iterdir()} if existing else {}

    def full(*_args, **_kwargs):
        raise SafetensorError(
            f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"
        )

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(InputError, match="the disk is full"):
        tiny_generator(seed=1).save_pretrained(target)
    assert (
        {path.name: path.read_bytes() for path in target.rglob("*")} == before
        if existing
        else not target.exists()
    )
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if existing else [])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full", "x"), KeyboardInterrupt()])
def test_a_save_that_fails_half_way_leaves_the_old_model(folder, monkeypatch, number, error):
    before, rename, calls = contents(folder), os.rename, []

    def fail(old, new):
        calls.append(old)
        if len(calls) == number:
            error.filename = old
            raise error
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        tiny_generator(seed=1).save_pretrained(folder)
    assert contents(folder) == before and len(calls) >= number
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"cannot write {str(folder)!r}: the disk is full")


def test_errors_of_a_save_name_the_users_folder(folder, monkeypatch):
    def full(*_args, **_kwargs):
        raise SafetensorError("I/O error (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for source in (tiny_generator(), GANPipeline(tiny_generator())):
        with pytest.raises(InputError) as caught:
            source.save_pretrained(folder)
        assert str(caught.value).startswith(f"cannot write {str(folder)!r}: the disk is full")


def test_a_folder_in_the_place_of_a_file_is_kept(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    (folder / "config.json" / "mine").write_text("precious")
    before = contents(folder)
    with pytest.raises(InputError, match="a folder stands where a file would go"):
        tiny_generator(seed=1).save_pretrained(folder)
    assert contents(folder) == before


def test_earlier_weights_of_the_same_variant_go(folder):
    model = StyleNATGenerator.from_pretrained(folder)
    model.save_pretrained(folder, variant="bf16", max_shard_size="200KB")
    other = {name for name in os.listdir(folder) if "bf16" in name}
    assert len(other) > 2
    model.save_pretrained(folder, max_shard_size="200KB")
    assert not (folder / WEIGHTS).exists()
    model.save_pretrained(folder)
    assert set(os.listdir(folder)) == {"config.json", WEIGHTS, *other}
    assert StyleNATGenerator.from_pretrained(folder, variant="bf16").resolution == 32


def test_saved_files_have_the_modes_of_new_files(folder, tmp_path):
    (tmp_path / "new").touch()
    tiny_generator().save_pretrained(folder)
    tiny_generator().save_pretrained(tmp_path / "other")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}

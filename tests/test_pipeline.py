"""`GANPipeline`: a seed's picture is the same in every batch, arguments are checked, saving is whole."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.pipeline import GANPipeline, latents
from stylenat_hub.registry import FAMILIES

SEEDS = [0, 1, 2, 5, 8, 2**32 - 1, 3, 4]


def quiet(pipe: GANPipeline) -> GANPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_has_the_same_picture_in_every_batch(family):
    pipe = quiet(GANPipeline(tiny_generator(family)))
    whole = pipe(SEEDS, batch_size=8, output_type="pt").images
    assert len({picture.numpy().tobytes() for picture in whole}) == len(SEEDS)
    for batch_size in (1, 3):
        assert torch.equal(pipe(SEEDS, batch_size=batch_size, output_type="pt").images, whole)
    alone = pipe([8], output_type="pt").images
    assert torch.equal(alone[0], whole[4])
    pixels = [np.asarray(image) for image in pipe(SEEDS, batch_size=3).images]
    again = [np.asarray(image) for image in pipe(SEEDS[::-1], batch_size=8).images[::-1]]
    assert all(np.array_equal(a, b) for a, b in zip(pixels, again, strict=True))


def test_a_seed_is_the_latent_that_a_fresh_cpu_generator_draws(pipeline):
    expected = torch.cat([torch.randn(1, 32, generator=torch.Generator().manual_seed(s)) for s in (7, 3)])
    assert torch.equal(latents([7, 3], 32), expected)
    with torch.no_grad():
        direct = pipeline.generator.to_rgb01(pipeline.generator(expected[:1], 0.7, 3))
    drawn = pipeline(7, truncation_psi=0.7, truncation_cutoff=3, output_type="pt").images
    assert torch.equal(drawn, direct)
    assert not torch.equal(drawn, pipeline(7, truncation_psi=0.7, output_type="pt").images)


def test_seeds_that_torch_would_repeat_are_refused(pipeline):
    """torch's generator takes 32 bits: beyond them a seed would silently be another one's picture."""
    repeated = [torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 2**32 + 5)]
    assert torch.equal(*repeated)
    with pytest.raises(InputError, match=r"seed 4294967301 is out of range; allowed: 0 to 2\*\*32 - 1"):
        pipeline(seeds=[5, 2**32 + 5])
    assert not torch.equal(*pipeline(seeds=[5, 2**32 - 1], output_type="pt").images)


def test_latents_do_not_follow_the_default_dtype():
    expected = latents([3], 8)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(latents([3], 8), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_truncation_to_zero_gives_one_picture_for_all_seeds(pipeline):
    images = pipeline(range(3), truncation_psi=0, output_type="pt").images
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    full = pipeline(range(3), output_type="pt").images
    assert not torch.equal(full[0], full[1])


def test_output_types_hold_the_same_pictures(pipeline):
    size = pipeline.generator.resolution
    pil = pipeline(range(3), batch_size=2)
    array = pipeline(range(3), batch_size=2, output_type="np").images
    tensor = pipeline(range(3), batch_size=2, output_type="pt").images
    assert pil.seeds == [0, 1, 2] and all(isinstance(image, PIL.Image.Image) for image in pil.images)
    assert array.shape == (3, size, size, 3) and array.dtype == np.float32
    assert tensor.shape == (3, 3, size, size) and tensor.dtype == torch.float32 and not tensor.requires_grad
    assert array.min() >= 0 and array.max() <= 1 and array.std() > 0.05
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    for image, values in zip(pil.images, array, strict=True):
        assert np.array_equal(np.asarray(image), np.rint(values * 255).astype(np.uint8))
    images, seeds = pipeline([2], output_type="np", return_dict=False)
    assert np.array_equal(images[0], array[2]) and seeds == [2]


def test_iterate_draws_batch_by_batch(pipeline, monkeypatch):
    drawn = []
    draw = GANPipeline._draw
    monkeypatch.setattr(
        GANPipeline, "_draw", lambda self, seeds, *a: drawn.append(seeds) or draw(self, seeds, *a)
    )
    batches = pipeline.iterate(range(2**32), batch_size=2)
    assert drawn == []
    assert next(batches).seeds == [0, 1] and next(batches).seeds == [2, 3]
    assert drawn == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": range(0)}, "seeds is empty"),
        ({"seeds": [1, -1]}, "seed -1 is out of range"),
        ({"seeds": 2**32}, "out of range"),
        ({"seeds": range(2**32 - 2, 2**32 + 2)}, "out of range"),
        ({"seeds": [1.0]}, "seed 1.0 is no whole number"),
        ({"seeds": [True]}, "seed True is no whole number"),
        ({"seeds": "12"}, "seeds is '12'"),
        ({"seeds": None}, "seeds is None"),
        ({"truncation_psi": float("nan")}, "truncation_psi is nan"),
        ({"truncation_psi": float("inf")}, "truncation_psi is inf"),
        ({"truncation_psi": "0.7"}, "truncation_psi is '0.7'"),
        ({"truncation_cutoff": 99}, "truncation_cutoff is 99"),
        ({"truncation_cutoff": 1.5}, "truncation_cutoff is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
    ],
)
def test_bad_arguments(pipeline, arguments, says):
    """`iterate` itself raises, not the first batch that is taken from it."""
    with pytest.raises(InputError, match=says):
        pipeline.iterate(**{"seeds": [0], **arguments})


def test_numpy_integers_are_seeds(pipeline):
    assert pipeline(np.arange(2)).seeds == [0, 1]


def test_truncation_needs_the_mean_style():
    model = tiny_generator()
    model.w_avg.fill_(torch.nan)
    pipe = quiet(GANPipeline(model))
    assert len(pipe([0]).images) == 1
    with pytest.raises(InputError, match="does not know its mean style"):
        pipe([0], truncation_psi=0.7)


def test_output_that_is_not_finite_is_no_picture():
    model = tiny_generator()
    with torch.no_grad():
        model.to_rgb[-1].bias.fill_(torch.inf)
    says = "holds NaN or infinity; use"
    with pytest.raises(InputError, match=f"float32 {says} styles, strengths or a truncation closer to 0$"):
        quiet(GANPipeline(model))([0])
    with pytest.raises(InputError, match=f"float16 {says} dtype float32 or bfloat16$"):
        quiet(GANPipeline(model.half()))([0])


def test_bfloat16_draws_nearly_the_same_picture(tiny, pipeline):
    half = quiet(GANPipeline.from_pretrained(tiny, dtype=torch.bfloat16).to("cpu"))
    assert half.generator.dtype == torch.bfloat16
    difference = half([0], output_type="np").images - pipeline([0], output_type="np").images
    assert 0 < np.abs(difference).mean() < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_is_bitwise(family, tmp_path):
    pipe = quiet(GANPipeline(tiny_generator(family)))
    pipe.save_pretrained(tmp_path / "one")
    loaded = quiet(GANPipeline.from_pretrained(tmp_path / "one"))
    assert torch.equal(loaded([3], output_type="pt").images, pipe([3], output_type="pt").images)
    assert not loaded.generator.training and loaded.model_name == "one"
    loaded.save_pretrained(tmp_path / "two")
    files = sorted(
        path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()
    )
    assert [str(path) for path in files] == [
        "generator/config.json",
        "generator/diffusion_pytorch_model.safetensors",
        "model_index.json",
    ]
    for path in files:  # the configs too: a save after a load names no folder of this machine
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_loaded_weights_do_not_hang_on_the_file(tmp_path):
    """They lie in memory of their own: aligned, and safe when the folder is saved over."""
    GANPipeline(tiny_generator()).save_pretrained(tmp_path / "model")
    generator = GANPipeline.from_pretrained(tmp_path / "model").generator
    assert all(p.data_ptr() % 64 == 0 for p in generator.parameters())
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    (weights,) = (tmp_path / "model").rglob("*.safetensors")
    weights.write_bytes(bytes(weights.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_own_loader_reads_the_folder(family, tmp_path):
    model = tiny_generator(family)
    GANPipeline(model).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "GANPipeline"
    assert index["generator"] == [type(model).__module__, type(model).__name__]
    vanilla = DiffusionPipeline.from_pretrained.__func__(GANPipeline, tmp_path / "saved")
    state = vanilla.generator.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    pipe = GANPipeline(tiny_generator())

    def fail(*_args, **_kwargs):
        raise RuntimeError("half way")

    monkeypatch.setattr("diffusers.configuration_utils.ConfigMixin.to_json_file", fail)
    with pytest.raises(RuntimeError, match="half way"):
        pipe.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []

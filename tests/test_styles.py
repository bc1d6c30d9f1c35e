"""Styles between seeds and pictures: what `GANPipeline.styles` gives, `draw` takes, and files keep."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylenat_hub.errors import InputError, OtherModelWarning, WeightsError
from stylenat_hub.latents.styles import load_styles, save_styles
from stylenat_hub.pipeline import GANPipeline, latents
from stylenat_hub.registry import FAMILIES
from tests.small_models import tiny_generator


def quiet(generator):
    pipeline = GANPipeline(generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=FAMILIES)
def pipeline(request):
    return quiet(tiny_generator(request.param))


@pytest.mark.parametrize(
    "steering", [{}, {"truncation_psi": 0.6}, {"truncation_psi": 0, "truncation_cutoff": 1}]
)
def test_styles_draw_the_pictures_of_their_seeds(pipeline, steering):
    """To the bit, although they went through memory."""
    wanted = pipeline(seeds=[3, 1, 8], output_type="pt", **steering).images
    ws = pipeline.styles([3, 1, 8], **steering)
    assert ws.shape == (3, pipeline.generator.num_ws, pipeline.generator.w_dim)
    assert torch.equal(pipeline.draw(ws, output_type="pt", batch_size=2), wanted)
    with torch.no_grad():
        direct = pipeline.generator(latents([3], pipeline.generator.z_dim), **steering)
    assert torch.equal(pipeline.generator.to_rgb01(direct), wanted[:1])


def test_an_edit_acts_on_truncated_styles(pipeline):
    before = pipeline(seeds=[0, 1], truncation_psi=0.5, output_type="pt").images
    same = pipeline(seeds=[0, 1], truncation_psi=0.5, edit=lambda ws: ws, output_type="pt").images
    assert torch.equal(same, before)
    mean = pipeline(seeds=[0], truncation_psi=0, output_type="pt").images[0]
    edit = lambda ws: pipeline.generator.w_avg.expand_as(ws)  # noqa: E731
    edited = pipeline(seeds=[0, 1], truncation_psi=0.5, edit=edit, output_type="pt").images
    assert torch.equal(edited[0], edited[1]) and torch.allclose(edited[0], mean, atol=1e-5)


def test_an_edit_that_loses_styles_is_told(pipeline):
    with pytest.raises(InputError, match="ws has the shape"):
        pipeline(seeds=[0], edit=lambda ws: ws[..., 1:])


@pytest.mark.parametrize(
    "broken, says",
    [(lambda ws: ws[0], "ws has the shape"), (lambda ws: ws * torch.nan, "the styles hold NaN")],
)
def test_styles_that_cannot_be_drawn(pipeline, broken, says):
    with pytest.raises(InputError, match=says):
        pipeline.draw(broken(pipeline.styles([0])))


def test_each_style_says_its_level(pipeline):
    generator = pipeline.generator
    levels = generator.style_levels
    assert list(levels) == sorted(levels) and len(levels) in (0, generator.num_ws)
    for number, weight in generator.style_layers():
        assert number in range(generator.num_ws) and weight.shape[1] == generator.w_dim
    assert {number for number, _ in generator.style_layers()} == set(range(generator.num_ws))


def test_the_layers_of_a_style_are_all_that_it_reaches():
    """With the layers of one level silent, the styles of that level change nothing."""
    generator = tiny_generator()
    with torch.no_grad():
        for number, weight in generator.style_layers():
            if generator.style_levels[number] == 16:
                weight.zero_()
    ws = quiet(generator).styles([0])
    other = ws.clone()
    other[:, [n for n, px in enumerate(generator.style_levels) if px == 16]] += 1
    with torch.no_grad():
        assert torch.equal(generator.synthesis(ws), generator.synthesis(other))


def test_a_file_of_styles_comes_back(pipeline, tmp_path):
    ws = pipeline.styles([0, 1])
    save_styles(tmp_path / "w.safetensors", ws, {"model": "x", "psnr": 31.5})
    again, about = load_styles(tmp_path / "w.safetensors", pipeline.generator)
    assert torch.equal(again, ws.float()) and about == {"model": "x", "psnr": 31.5}


def test_styles_of_other_weights_are_drawn_with_a_warning(tmp_path):
    """Of the model's own, of a tuned copy and of weights in another type there is none."""
    mine, tuned, other = (tiny_generator(seed=seed) for seed in range(3))
    save_styles(tmp_path / "w.safetensors", quiet(mine).styles([0]), {"model": "org/church"}, [mine, tuned])
    with pytest.warns(OtherModelWarning, match=r"made with other weights .*\(org/church\)"):
        load_styles(tmp_path / "w.safetensors", other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for generator in (mine, tuned, other.to(torch.bfloat16)):
            load_styles(tmp_path / "w.safetensors", generator)


def test_a_folder_of_styles(tmp_path):
    generator = tiny_generator()
    with pytest.raises(InputError, match=r"there is no 'w\.safetensors' in the folder"):
        load_styles(tmp_path, generator)
    save_styles(tmp_path / "w.safetensors", quiet(generator).styles([4]), {})
    assert torch.equal(load_styles(tmp_path, generator)[0], quiet(generator).styles([4]))


def test_styles_of_another_model_are_refused(tmp_path):
    save_styles(tmp_path / "w.safetensors", torch.zeros(1, 8, 16), {})
    with pytest.raises(InputError, match=r"are \[1, 8, 16\]; this model needs \[n, 8, 32\]"):
        load_styles(tmp_path / "w.safetensors", tiny_generator())


def _damaged(path):
    path.write_bytes(path.read_bytes()[:-5])


def _nan(path):
    save_file({"ws": load_file(path)["ws"] * torch.nan}, path)


def _nested(path):
    save_file(load_file(path), path, metadata={"about": "[" * 200_000})


def _huge_header(path):
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    "damage, error, says",
    [
        (_damaged, WeightsError, "is no file of styles, or is damaged"),
        (lambda path: path.write_text("hello"), WeightsError, "is no file of styles"),
        (lambda path: save_file({"w": torch.zeros(1)}, path), WeightsError, "has no tensor 'ws'"),
        (_nan, WeightsError, "NaN or infinity"),
        (_nested, WeightsError, "header is nested too deeply"),
        (_huge_header, WeightsError, "its header is said to have"),
        (lambda path: path.unlink(), InputError, "there is no file"),
    ],
)
def test_a_broken_file_of_styles_is_told(tmp_path, damage, error, says):
    path = tmp_path / "w.safetensors"
    generator = tiny_generator()
    save_styles(path, quiet(generator).styles([0]), {})
    damage(path)
    with pytest.raises(error, match=says):
        load_styles(path, generator)


def test_what_a_file_says_of_itself_need_not_be_there(tmp_path):
    ws = torch.zeros(1, 8, 32)
    save_file({"ws": ws}, tmp_path / "a.safetensors")
    save_file({"ws": ws}, tmp_path / "b.safetensors", metadata={"about": json.dumps([1])})
    for name in ("a", "b"):
        assert load_styles(tmp_path / f"{name}.safetensors", tiny_generator())[1] == {}

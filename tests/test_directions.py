"""Directions: what finding, applying, naming and joining them promises, for every family."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import cli
from stylenat_hub.errors import InputError, OtherModelWarning
from stylenat_hub.latents import direction_strips
from stylenat_hub.latents.direction_strips import STRENGTHS, write_strips
from stylenat_hub.latents.directions import Directions, weights_of
from stylenat_hub.latents.factorise import closed_form, principal, style_covariance
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES
from stylenat_hub.sheet import Sheet

LEVELLED = [name for name in FAMILIES if tiny_generator(name).style_levels]
FINDERS = {"sefa": closed_form, "pca": principal}
CASES = [(family, m) for family in FAMILIES for m in FINDERS if m == "sefa" or family in LEVELLED]


@pytest.fixture(scope="module")
def models():
    return {name: tiny_generator(name) for name in FAMILIES}


@pytest.fixture(scope="module")
def found(models):
    return {(family, m): FINDERS[m](models[family], models[family].w_dim) for family, m in CASES}


def some(names=("a", "b"), width=4, styles=((0, 1), (1,)), **about):
    vectors = torch.eye(width)[: len(names)]
    return Directions(names, vectors, torch.tensor([2.0, 0.5]), torch.tensor([0.4, 0.1]), styles, about)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_they_are_orthonormal_and_their_largest_entry_is_positive(found, case):
    vectors = found[case].vectors.double()
    assert torch.allclose(vectors @ vectors.T, torch.eye(len(vectors)).double(), rtol=0, atol=1e-5)
    assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()
    assert found[case].names[:2] == (f"{case[1]}-1", f"{case[1]}-2")


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_found_again_they_are_the_same_to_the_bit_and_fewer_are_the_first(models, found, case):
    family, method = case
    again = FINDERS[method](tiny_generator(family), 3)
    assert torch.equal(again.vectors, found[case].vectors[:3])
    assert torch.equal(again.deviations, found[case].deviations[:3])
    assert found[case].about["weights"] == weights_of(models[family])["weights"]


@pytest.mark.parametrize("family", FAMILIES)
def test_sefa_is_sorted_by_what_the_layers_answer(models, found, family):
    """By the definition, direction by direction: the summed squares of all outputs, each weighed alike."""
    rows = torch.cat([weight.detach().double() for _, weight in models[family].style_layers()])
    rows = rows / rows.norm(dim=1, keepdim=True)
    answers = (rows @ found[family, "sefa"].vectors.double().T).square().sum(0)
    assert (answers.diff() < 1e-6).all() and answers[0] > 1.1 * answers[-1]
    others = torch.nn.functional.normalize(torch.randn(500, rows.shape[1]).double(), dim=1)
    assert (rows @ others.T).square().sum(0).max() < answers[0]


@pytest.mark.parametrize("family", LEVELLED)
def test_principal_ones_carry_all_the_variance_the_most_first(models, found, family):
    model, pca = models[family], found[family, "pca"]
    assert pca.shares.sum().item() == pytest.approx(1, abs=1e-4)
    assert (pca.deviations.diff() <= 0).all()
    w = model.mapping(torch.randn(4000, model.z_dim, generator=torch.Generator().manual_seed(7)))[:, 0]
    spread = (w.detach() @ pca.vectors[0]).std().item()
    assert spread == pytest.approx(pca.deviations[0].item(), rel=0.1)
    sefa = found[family, "sefa"]  # a strength of SeFa's is counted in the same deviations
    assert (w.detach() @ sefa.vectors[0]).std().item() == pytest.approx(sefa.deviations[0].item(), rel=0.1)


def test_levels_are_what_is_read_and_what_is_moved(models):
    model = models["stylenat"]
    coarse, fine = closed_form(model, 2, "coarse"), closed_form(model, 2, "16-32")
    assert coarse.names == ("sefa-coarse-1", "sefa-coarse-2") and fine.names[0] == "sefa-16-32-1"
    assert coarse.styles[0] == (0, 1, 2, 3) and fine.styles[0] == (4, 5, 6, 7)
    assert not torch.allclose(coarse.vectors, fine.vectors, atol=0.1)
    assert torch.equal(principal(model, 2, "coarse").vectors, principal(model, 2).vectors)
    ws = torch.randn(3, 8, model.w_dim)
    moved = coarse.edit({"sefa-coarse-1": 2.0})(ws)
    assert torch.equal(moved[:, 4:], ws[:, 4:]) and not torch.equal(moved[:, :4], ws[:, :4])
    assert closed_form(model, 1, "coarse, 32").names == ("sefa-coarse+32-1",)


def test_hit_has_one_space_which_is_its_latents(models):
    model = models["hit"]
    found = closed_form(model, 2)
    assert torch.equal(found.deviations, torch.ones(2)) and found.styles == ((0,), (0,))
    with pytest.raises(InputError, match=r"no w space.*use the method sefa"):
        principal(model, 2)
    with pytest.raises(InputError, match="one style for the whole picture"):
        closed_form(model, 2, "coarse")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_strength_of_0_is_the_same_picture_and_another_is_another(models, found, family):
    pipe = GANPipeline(models[family])
    pipe.set_progress_bar_config(disable=True)
    plain = pipe([1, 2], output_type="pt").images
    edits = [found[family, "sefa"].edit({"sefa-1": value}) for value in (0.0, 2.0, -2.0)]
    none, ahead, back = (pipe([1, 2], output_type="pt", edit=edit).images for edit in edits)
    assert torch.equal(none, plain)
    assert (ahead - plain).abs().mean() > 1e-3 and (ahead - back).abs().mean() > 1e-3


def test_an_edit_counts_in_deviations_adds_up_and_leaves_the_styles_alone():
    ws = torch.randn(2, 3, 4)
    before = ws.clone()
    moved = some().edit({"a": 1.5, "b": -2})(ws)
    assert torch.equal(ws, before)
    step = torch.zeros(3, 4)
    step[:2, 0] = 3.0  # 1.5 deviations of 2, in the styles 0 and 1
    step[1, 1] = -1.0
    assert torch.allclose(moved - ws, step.expand(2, 3, 4), atol=1e-6)
    one_by_one = some().edit({"b": -2})(some().edit({"a": 1.5})(ws))
    assert torch.allclose(one_by_one, moved, atol=1e-6)
    assert torch.equal(some().edit({"a": 0, "b": 0.0})(ws), ws)
    half = some().edit({"a": 1.5})(ws.bfloat16())
    assert half.dtype == torch.bfloat16 and not torch.equal(half, ws.bfloat16())


def test_what_cannot_be_an_edit():
    with pytest.raises(InputError, match=r"no direction 'c'; there are: a, b"):
        some().edit({"c": 1})
    with pytest.raises(InputError, match=r"no direction 'sefa-11'; did you mean 'sefa-1'\?"):
        some(("sefa-1", "b")).edit({"sefa-11": 1})
    for value in (float("nan"), float("inf"), "2", True, 1e7):
        with pytest.raises(InputError, match="allowed: a finite number"):
            some().edit({"a": value})
    edit = some().edit({"a": 1})
    for shape in ((2, 1, 4), (2, 3, 5), (3, 4)):
        with pytest.raises(InputError, match="use the model that they were found in"):
            edit(torch.zeros(shape))


def test_names_can_be_given():
    snow = some().renamed({"a": "snow", "b": "a"})
    assert snow.names == ("snow", "a") and torch.equal(snow.vectors, some().vectors)
    for names, says in (
        ({"c": "snow"}, "no direction 'c'"),
        ({"a": "b"}, "two directions are called 'b'"),
        ({"b": "A"}, "two directions"),
        ({"a": "../x"}, "can be no direction's name"),
        ({"a": ""}, "can be no"),
        ({"a": "x=1"}, "can be no"),
        ({"a": "x\n"}, "can be no"),
    ):
        with pytest.raises(InputError, match=says):
            some().renamed(names)


def test_sets_of_one_model_are_joined(models):
    model = models["stylenat"]
    parts = [closed_form(model, 2, "coarse"), principal(model, 1)]
    joined = Directions.join(parts)
    assert joined.names == ("sefa-coarse-1", "sefa-coarse-2", "pca-1")
    assert (joined.about["method"], joined.about["weights"]) == ("sefa, pca", parts[0].about["weights"])
    ws = torch.randn(1, 8, model.w_dim)
    for part, name in ((parts[0], "sefa-coarse-2"), (parts[1], "pca-1")):
        assert torch.equal(joined.edit({name: 2})(ws), part.edit({name: 2})(ws))
    with pytest.raises(InputError, match="not of one model"):
        Directions.join([parts[0], closed_form(tiny_generator(seed=1), 1)])
    with pytest.raises(InputError, match="two directions are called"):
        Directions.join([parts[0], parts[0]])
    with pytest.raises(InputError, match="no directions to join"):
        Directions.join([])


@pytest.mark.parametrize("family", LEVELLED)
def test_what_cannot_be_found(models, family):
    model = models[family]
    for count in (0, model.w_dim + 1, 2.0, True):
        for find in FINDERS.values():
            with pytest.raises(InputError, match=f"allowed: a whole number from 1 to {model.w_dim}"):
                find(model, count)
    with pytest.raises(InputError, match="latents is"):
        principal(model, 1, latents=model.w_dim)
    with pytest.raises(InputError, match="no level of 64 px"):
        closed_form(model, 1, "64")


def test_weights_that_are_not_finite():
    broken = tiny_generator()
    with torch.no_grad():
        broken.style_layers()[0][1][0, 0] = torch.nan
    with pytest.raises(InputError, match="hold NaN or infinity"):
        closed_form(broken, 1)
    for parameter in broken.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(InputError, match="hold NaN or infinity"):
        style_covariance(broken, 10, 0)


def test_other_weights_are_warned_of_and_another_shape_is_refused(models, recwarn):
    model = models["stylenat"]
    found = closed_form(model, 1).described(model="org/church")
    found.check(model)
    found.check(tiny_generator().to(torch.bfloat16))  # rounded they are others, and nobody can tell
    assert not recwarn.list
    with pytest.warns(OtherModelWarning, match="org/church"):
        found.check(tiny_generator(seed=1))
    with pytest.raises(InputError, match=r"use the model that they were found in \(org/church\)"):
        found.check(models["hit"])


def test_what_is_no_set_of_directions():
    good = {"names": ("a",), "vectors": torch.eye(1, 4), "deviations": torch.ones(1)}
    good |= {"shares": torch.ones(1), "styles": ((0,),)}
    Directions(**good)
    for wrong, says in (
        ({"vectors": torch.ones(1, 4)}, "has the length 2"),
        ({"vectors": torch.full((1, 4), torch.nan)}, "NaN"),
        ({"vectors": torch.eye(2, 4)}, "1 directions need"),
        ({"vectors": torch.ones(1, 4, dtype=torch.int32)}, "no tensor of floating-point"),
        ({"deviations": -torch.ones(1)}, "below 0"),
        ({"shares": 2 * torch.ones(1)}, "from 0 to 1"),
        ({"styles": ((1, 0),)}, "ascending"),
        ({"styles": ((),)}, "at least one"),
        ({"styles": ((True,),)}, "whole numbers"),
        ({"styles": ((0,), (1,))}, "2 of these for 1"),
        ({"about": {"levels": 3}}, "dict of texts"),
        ({"names": ()}, "there are 0 directions"),
    ):
        with pytest.raises(InputError, match=says):
            Directions(**{**good, **wrong})


def test_a_strip_shows_the_pictures_of_its_strengths(models, tmp_path):
    """At 0 that of the seed itself; and nothing is left behind where something goes wrong."""
    pipe = GANPipeline(models["hit"])
    pipe.set_progress_bar_config(disable=True)
    found = closed_form(models["hit"], 2)
    with pytest.raises(InputError, match="truncation_psi"):
        write_strips(pipe, found, tmp_path / "strips", truncation_psi="x")
    with pytest.raises(InputError, match="0 strengths"):
        write_strips(pipe, found, tmp_path / "strips", strengths=[])
    with pytest.raises(InputError, match="below 8 pixels"):
        write_strips(pipe, found, tmp_path / "strips", seeds=range(10**9))
    assert not (tmp_path / "strips").exists()
    written = write_strips(pipe, found, tmp_path / "strips", seeds=[5], strengths=[0, 3])
    assert [path.name for path in written.pictures] == ["sefa-1.png", "sefa-2.png"]
    with pytest.raises(InputError, match="is not empty"):
        write_strips(pipe, found, tmp_path / "strips", seeds=[5], strengths=[0, 3])
    one, two = map(pixels, written.pictures)
    plain = np.asarray(pipe([5]).images[0].resize((96, 96), PIL.Image.Resampling.NEAREST))
    left = one.shape[1] - 2 * 100
    place = next(x for x in range(left + 8) if np.array_equal(one[-100:-4, x : x + 96], plain))
    assert np.array_equal(two[-100:-4, place : place + 96], plain)
    ahead = place + 100
    assert not np.array_equal(one[-100:-4, ahead : ahead + 96], plain)
    assert not np.array_equal(one[-100:-4, ahead : ahead + 96], two[-100:-4, ahead : ahead + 96])


def test_a_strip_says_its_seeds_and_truncation(models, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        direction_strips, "Sheet", lambda *of, **words: (said.append(words), Sheet(*of, **words))[1]
    )
    pipe = GANPipeline(models["stylenat"])
    pipe.set_progress_bar_config(disable=True)
    options = {"seeds": [5, 10], "strengths": [0, 3], "truncation_psi": 0.7}
    write_strips(pipe, closed_form(models["stylenat"], 1), tmp_path / "strips", **options)
    assert said[0]["row_labels"] == ["seed 5", "seed 10"] and said[0]["title"].endswith(", psi 0.7")


def test_the_command_writes_strips_and_generate_goes_along_them(tmp_path):
    strips = tmp_path / "strips"
    options = ("--top", 2, "--seeds", "0,3", "--strengths=-2,2", "--output", strips)
    result = run("directions", "--name", "sefa-1=light", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote 2 directions and their strips to {strips}\n"
    assert sorted(path.name for path in strips.iterdir()) == [
        "directions.safetensors",
        "light.png",
        "sefa-2.png",
    ]
    with PIL.Image.open(strips / "light.png") as image:
        assert image.info["direction"] == "light" and image.info["model"] == "toy-church"
        assert (image.info["strengths"], image.info["truncation_psi"]) == ("-2,2", "0.7")
    drawn = {}
    steer = ("--directions", strips, "--edit")
    for name, more in {"none": (), "zero": (*steer, "light=0"), "two": (*steer, "light=2,sefa-2=-1")}.items():
        result = run("generate", "--seeds", "3", "--output", tmp_path / name, *more)
        assert result.exit_code == 0, result.output
        drawn[name] = pixels(next((tmp_path / name).iterdir()))
    assert np.array_equal(drawn["none"], drawn["zero"]) and not np.array_equal(drawn["none"], drawn["two"])
    result = run("generate", "--seeds", "3", "--output", tmp_path / "x", *steer, "lihgt=1")
    assert result.exit_code == 1 and "did you mean 'light'?" in result.stderr


def test_a_folder_with_something_in_it_is_kept(tmp_path):
    few = ("directions", "--top", 1, "--seeds", 0, "--strengths", "1", "--output", tmp_path / "out")
    assert run(*few).exit_code == 0
    again = run(*few)
    assert again.exit_code == 1 and "is not empty" in again.stderr
    assert run(*few, "--overwrite", "--method", "pca").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "directions.safetensors",
        "pca-1.png",
    ]
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused = run(*few, "--overwrite")
    assert refused.exit_code == 1 and "holds 'thesis.txt'" in refused.stderr
    assert (tmp_path / "out" / "pca-1.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--top", 200), 1, "allowed: a whole number from 1 to 128"),
        (("--levels", "64"), 1, "no level of 64 px"),
        (("--name", "sefa-9=x"), 1, "no direction 'sefa-9'"),
        (("--name", "sefa-1"), 2, "no OLD=NEW"),
        (("--name", "sefa-1=a", "--name", "sefa-1=b"), 1, "is there twice"),
        (("--strengths", "1,x"), 2, "'x' in '1,x' is no number"),
        (("--strengths", "nan"), 2, "nan is not a finite number; usual values are from -3 to 3"),
        (("--method", "GANSpace"), 2, "'--method': 'GANSpace' is not one of 'sefa', 'pca'"),
        (("--private",), 1, "goes with --push-to-hub"),
    ],
)
def test_what_the_command_does_not_take(tmp_path, arguments, code, says):
    result = run("directions", *arguments, "--output", tmp_path / "out")
    assert result.exit_code == code and says in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_usual_strengths_are_there_for_every_method():
    assert set(STRENGTHS) == set(FINDERS)
    assert all(0 in steps and list(steps) == sorted(steps) for steps in STRENGTHS.values())

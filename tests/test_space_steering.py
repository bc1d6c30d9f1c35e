"""Mix and Edit without a page: what they draw is what the package draws, and whatever is asked is checked."""

from __future__ import annotations

import os
import time

import numpy as np
import PIL.Image
import pytest
from small_models import tiny_generator
from small_space import TOY, pixels, run, same, small_engine, toy_pipeline
from typer.testing import CliRunner

from studio import editing, mixing, steering
from stylenat_hub import cli
from stylenat_hub.errors import InputError, StyleNATHubError
from stylenat_hub.latents import closed_form, principal
from stylenat_hub.pipeline import MAX_SEED
from stylenat_hub.registry import FAMILIES


@pytest.fixture(scope="module")
def engine():
    made = small_engine()
    yield made
    made.scratch.close()


@pytest.fixture(scope="module")
def toy():
    return toy_pipeline()


def families_with(what):
    """Those whose models can, and those whose models cannot."""
    can = {name: what(tiny_generator(name)) for name in FAMILIES}
    return [name for name in can if can[name]], [name for name in can if not can[name]]


LEVELLED, PLAIN = families_with(lambda generator: bool(generator.style_levels))


# -- Mix


def test_whole_levels_give_the_commands_cell(engine, tmp_path):
    """Pixels and labels of `stylenat mix`."""
    found = mixing.mix(engine, TOY, 3, 8, 0.6, [1, 1, 0, 0])
    line = ["mix", "--rows", "3", "--cols", "8", "--levels", "4,8", "--truncation", "0.6", "--device", "cpu"]
    line += ["--output", str(tmp_path / "sheet.png"), "--cells", str(tmp_path / "cells")]
    assert CliRunner().invoke(cli.app, line).exit_code == 0
    (cell,) = (tmp_path / "cells").iterdir()
    with PIL.Image.open(found.file) as mine, PIL.Image.open(cell) as theirs:
        assert found.file.name == cell.name and same(mine, theirs) and same(mine, found.image)
        assert mine.text == theirs.text and mine.text["levels"] == "4,8"


@pytest.mark.parametrize("shares", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_none_and_all_are_the_sources(engine, toy, shares):
    found = mixing.mix(engine, TOY, 4, 9, 0.7, shares)
    assert same(found.image, toy([9 if shares[0] else 4], truncation_psi=0.7).images[0])
    assert same(found.image, steering.source(engine, TOY, 9 if shares[0] else 4, 0.7))


def test_a_share_lies_between(engine):
    """Each step of a slider is another picture, nearer to the one it is pulled to."""
    drawn = [
        np.asarray(mixing.mix(engine, TOY, 4, 9, 0.7, [share, 0, 0, 0]).image, float)
        for share in (0, 0.3, 0.6, 1)
    ]
    far = [float(np.abs(picture - drawn[-1]).mean()) for picture in drawn]
    assert far == sorted(far, reverse=True) and far[0] > far[1] > far[2] > 0


@pytest.mark.parametrize("wanted", [[1, 0.5, 0, 0], "coarse:0.25, 32", [0, 0, 0, 0]])
def test_the_code_repeats_the_mixture(engine, tmp_path, monkeypatch, wanted):
    found = mixing.mix(engine, TOY, 4, 9, 0.8, wanted)
    run(found.code, tmp_path, monkeypatch)
    assert os.listdir(tmp_path) == [found.file.name]
    assert np.array_equal(pixels(tmp_path / found.file.name), pixels(found.file))


def test_words_and_sliders_agree(engine):
    loaded = engine.use(TOY)
    assert mixing.shares_of_text(loaded, "coarse:0.5,16") == {4: 0.5, 8: 0.5, 16: 1.0}
    assert mixing.shares_of_sliders(loaded, [0.5, 0.5, 1, 0]) == {4: 0.5, 8: 0.5, 16: 1.0, 32: 0.0}
    assert mixing.shares_of_group(engine, TOY, "fine") == [0, 0, 0, 1]
    assert mixing.in_words({4: 0.5, 16: 1.0}) == "4:0.5,16"
    assert mixing.shares_of_text(loaded, "4:0.5,16") == {4: 0.5, 16: 1.0}


@pytest.mark.parametrize("family", LEVELLED)
def test_every_family_with_levels_mixes(engine, family):
    count = len(mixing.levels(engine, family))
    assert mixing.why_not(engine, family) is None and 1 < count <= mixing.MOST_LEVELS
    coarse = [1] + [0] * (mixing.MOST_LEVELS - 1)  # as many sliders as the page has
    found = mixing.mix(engine, family, 0, 1, 1.0, coarse)
    sources = [steering.source(engine, family, seed, 1.0) for seed in (0, 1)]
    assert not any(same(found.image, one) for one in sources)


@pytest.mark.parametrize("family", PLAIN)
def test_a_family_without_levels_says_so(engine, family):
    assert "one style" in mixing.why_not(engine, family) and mixing.levels(engine, family) == []
    with pytest.raises(InputError, match="one style"):
        mixing.mix(engine, family, 0, 1, 1.0, [1, 0])


# -- Edit


@pytest.mark.parametrize(("method", "find"), [("sefa", closed_form), ("pca", principal)])
def test_an_edit_is_the_packages_and_its_code_repeats_it(engine, toy, tmp_path, monkeypatch, method, find):
    found = editing.edit(engine, TOY, 5, 0.7, method, "coarse", [0, -3, 0, 1.5])
    directions = find(toy.generator, editing.COUNT, "coarse")
    names = [f"{method}-coarse-{number}" for number in (2, 4)]
    edit = directions.edit({names[0]: -3, names[1]: 1.5})
    assert same(found.image, toy([5], truncation_psi=0.7, edit=edit).images[0])
    assert not same(found.image, steering.source(engine, TOY, 5, 0.7))
    with PIL.Image.open(found.file) as image:
        assert same(image, found.image)
        assert image.text["edit"] == f"{names[0]}=-3,{names[1]}=1.5" and image.text["seed"] == "5"
    run(found.code, tmp_path, monkeypatch)
    assert np.array_equal(pixels(tmp_path / found.file.name), pixels(found.file))


def test_no_strength_is_the_picture_itself(engine, tmp_path, monkeypatch):
    found = editing.edit(engine, TOY, 5, 0.7, "sefa", "all", [0] * 6)
    assert same(found.image, steering.source(engine, TOY, 5, 0.7)) and "edit" not in found.file.read_text(
        "latin-1"
    )
    run(found.code, tmp_path, monkeypatch)
    assert np.array_equal(pixels(tmp_path / found.file.name), pixels(found.file))


def test_directions_are_found_once(engine, monkeypatch):
    calls, sefa = [], editing.METHODS["sefa"]
    monkeypatch.setitem(editing.METHODS, "sefa", lambda *what: calls.append(what[1:]) or sefa(*what))
    engine.use(TOY).kept.clear()
    for strength in (1, 2):
        editing.edit(engine, TOY, 5, 0.7, "sefa", "fine", [strength])
        editing.preview(engine, TOY, 5, 0.7, "sefa", "fine", [strength])
        editing.edit(engine, TOY, 5, 0.7, "sefa", "coarse", [strength])
    assert calls == [(6, "fine"), (6, "coarse")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_edited_as_it_can(engine, family):
    generator = engine.use(family).generator
    methods, levels = editing.methods(engine, family), editing.levels(engine, family)
    assert ("pca" in methods) != generator.styles_are_latents
    assert list(levels) != ["all"] or not generator.style_levels
    plain = steering.source(engine, family, 0, 1.0)
    for method in methods:
        for where in levels:
            found = editing.edit(engine, family, 0, 1.0, method, where, [4.0])
            assert not same(found.image, plain), (method, where)
    with pytest.raises(InputError, match=r"the (method|level) is"):
        editing.edit(
            engine, family, 0, 1.0, "pca", "fine" if methods[1:] and len(levels) == 1 else "huge", [1]
        )


# -- previews, and what is refused


def previews(engine, model=TOY):
    yield mixing.preview(engine, model, 4, 9, 0.7, [1, 0.5, 0, 0])
    yield editing.preview(engine, model, 4, 0.7, "sefa", "all", [2])


def test_previews_are_the_pictures_where_those_are_quick(engine):
    mixed, edited = previews(engine)
    assert same(mixed, mixing.mix(engine, TOY, 4, 9, 0.7, [1, 0.5, 0, 0]).image)
    assert same(edited, editing.edit(engine, TOY, 4, 0.7, "sefa", "all", [2]).image)


def test_previews_give_way(engine, monkeypatch):
    """Without a model that is quick, loaded and free there is none, soon."""
    loaded = engine.use(TOY)
    monkeypatch.setattr("studio.engine.PREVIEW_PATIENCE", 0.05)
    assert list(previews(engine)) != [None, None]
    monkeypatch.setattr(loaded, "preview_px", None)
    assert list(previews(engine)) == [None, None]
    monkeypatch.undo()
    monkeypatch.setattr(loaded, "lock", type("Busy", (), {"acquire": lambda self, timeout: False})())
    start = time.perf_counter()
    assert list(previews(engine)) == [None, None] and time.perf_counter() - start < 1


MIX, EDIT = [TOY, 0, 1, 0.7, [0, 0, 0, 0]], [TOY, 0, 0.7, "sefa", "all", [1]]
WRONG = [
    *(
        (mixing.mix, MIX, place, value, says)
        for place, value, says in [
            (0, "../../etc", "does not offer"),
            (0, ["toy"], "the model is"),
            (1, -1, "seed A is -1"),
            (2, MAX_SEED + 1, "seed B is"),
            (2, None, "seed B is None"),
            (3, float("nan"), "the truncation is nan"),
            (4, [2], "the share of 4 px is 2"),
            (4, ["<script>"], "the share of 4 px"),
            (4, [None], "the share of 4 px is None"),
            (4, "tiny", "'tiny' in the levels"),
            (4, "4:x", "the share in '4:x' is 'x'"),
            (4, "4:nan", "the share in '4:nan' is nan"),
            (4, "", "the list of levels is ''"),
            (4, "4," * 500, "the list of levels is"),
        ]
    ),
    *(
        (editing.edit, EDIT, place, value, says)
        for place, value, says in [
            (1, "1", "the seed is '1'"),
            (2, True, "the truncation is True"),
            (3, "__class__", "the method is '__class__'"),
            (3, ["sefa"], "the method is"),
            (4, "64", "the level is '64'"),
            (4, {}, "the level is"),
            (5, [7], "the strength of direction 1 is 7"),
            (5, [0, float("nan")], "the strength of direction 2 is nan"),
            (5, [0] * 7, "the strengths are"),
            (5, "1", "the strengths are '1'"),
        ]
    ),
]


@pytest.mark.parametrize(
    ("ask", "good", "place", "value", "says"), WRONG, ids=[f"{w[0].__name__}-{w[4]}" for w in WRONG]
)
def test_other_input_is_refused(engine, ask, good, place, value, says):
    files = set(engine.scratch.root.rglob("*"))
    arguments = [*good[:place], value, *good[place + 1 :]]
    with pytest.raises(StyleNATHubError, match=says.replace("(", r"\(")):
        ask(engine, *arguments)
    assert set(engine.scratch.root.rglob("*")) == files

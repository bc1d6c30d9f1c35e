"""Figures of attention, and `stylenat attention`, as a user meets them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import cli, cli_inside
from stylenat_hub.errors import InputError
from stylenat_hub.inside import maps as inside_maps
from stylenat_hub.inside import receptive_figure
from stylenat_hub.inside.figures import check_drawable, write_averages, write_maps
from stylenat_hub.inside.maps import attention_averages, attention_maps
from stylenat_hub.inside.overlay import draw_attention
from stylenat_hub.inside.panels import PANEL, Colours, overlay, picture_panel
from stylenat_hub.inside.receptive import receptive_table
from stylenat_hub.inside.recording import site_at
from stylenat_hub.latents.styles import save_styles
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

GREY = torch.full((3, 32, 32), 0.5)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """A folder with a pipeline of a family, and its generator."""
    generator, folder = tiny_generator(request.param), tmp_path_factory.mktemp("models") / request.param
    GANPipeline(generator).save_pretrained(folder)
    return folder, generator


def styles(generator, seed=3):
    z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return generator.mapping(z)


def run(*arguments):
    return CliRunner().invoke(cli.app, ["attention", *map(str, arguments)])


def fails(*arguments, code=1):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    return result.stderr.splitlines()[-1]


def label(path):
    with PIL.Image.open(path) as image:
        image.load()
        return image.size, dict(image.text)


def spots(length, places, weights=None):
    seen = torch.zeros(length, length, dtype=torch.bool)
    seen[tuple(zip(*places, strict=True))] = True
    return seen.float() / len(places) if weights is None else weights, seen


def coloured(panel):
    """[P, P] bool: where a panel over a grey picture is not grey."""
    return np.ptp(panel, axis=-1) > 0.02


def test_a_panel_shows_the_picture_where_nobody_looks_and_colours_elsewhere():
    colours = Colours.load()
    weights, seen = spots(32, [(y, x) for y in range(8, 16) for x in range(16, 24)])
    weights[9, 17] *= 3
    panel, mark = overlay(GREY, weights, seen, 1, colours, (9, 17))
    scale = PANEL // 32
    expected = np.zeros((PANEL, PANEL), dtype=bool)
    expected[8 * scale : 16 * scale, 16 * scale : 24 * scale] = True
    assert np.array_equal(coloured(panel), expected)
    assert mark == (17.5 / 32, 9.5 / 32)
    middle = [round(place * PANEL) for place in reversed(mark)]
    brightest = panel[middle[0], middle[1]]
    assert np.array_equal(np.argwhere(panel.sum(-1) == brightest.sum()).min(0), [9 * scale, 17 * scale])
    assert brightest.sum() > panel[8 * scale, 16 * scale].sum()


def test_a_sparse_pattern_of_a_fine_level_can_be_seen():
    places = [(y, x) for y in range(100, 900, 128) for x in range(5, 800, 128)]
    weights, seen = spots(1024, places)
    panel, _ = overlay(GREY, weights, seen, 128, Colours.load(), places[0])
    found = coloured(panel)
    for y, x in places:
        assert found[y // 4, x // 4]
    assert found.sum() > 40 * len(places)  # spots of 7 x 7, cut at the border
    assert not found[100 // 4 + 16, 5 // 4 + 16]  # they stay apart


@pytest.mark.parametrize("corner", [(10, 20), (900, 30), (1000, 1000)])
def test_a_small_window_is_enlarged_in_the_corner_farthest_from_it(corner):
    top, left = corner
    weights, seen = spots(1024, [(top + i, left + j) for i in range(7) for j in range(7)])
    weights[top + 6, left] *= 5
    panel, mark = overlay(GREY, weights, seen, 1, Colours.load(), (top + 6, left))
    vertical = (0, 0.5) if top > 512 else (0.5, 1)
    horizontal = (0, 0.5) if left > 512 else (0.5, 1)
    assert vertical[0] < mark[1] < vertical[1] and horizontal[0] < mark[0] < horizontal[1]
    y, x = (int(place * PANEL) for place in reversed(mark))
    window = coloured(panel)[y - 40 : y, x : x + 40]
    assert window.all()  # the query is its lower left
    assert panel[y, x].sum() > panel[y - 40, x + 40].sum() + 0.3  # and looks at itself most


def test_larger_and_smaller_pictures_become_panels():
    small = picture_panel(torch.rand(3, 8, 8))
    assert small.shape == (PANEL, PANEL, 3) and len(np.unique(small[:, :, 0])) == 64  # unsmoothed
    large = torch.zeros(3, 512, 512)
    large[:, ::2] = 1
    assert np.allclose(picture_panel(large), 0.5)


def test_averages_do_not_depend_on_how_many_queries_fit(monkeypatch):
    generator = tiny_generator()
    whole = attention_averages(generator, styles(generator), 16)
    monkeypatch.setattr(inside_maps, "CHUNK_BYTES", 1 << 16)
    found = attention_averages(generator, styles(generator), 16)
    for one, other in zip(whole.received + whole.by_offset, found.received + found.by_offset, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    """The largest tensor that averaging makes, at a level whose matrices would be 1024 x 1024 per head."""
    generator, sizes = tiny_generator(), []
    original = inside_maps.Compared.weights

    def watched(*args):
        weights = original(*args)
        sizes.append(weights.numel())
        return weights

    monkeypatch.setattr(inside_maps, "CHUNK_BYTES", 1 << 18)
    monkeypatch.setattr(inside_maps.Compared, "weights", watched)
    attention_averages(generator, styles(generator), 32)
    assert len(sizes) > 20 and max(sizes) < 1 << 16
    sizes.clear()
    attention_maps(generator, styles(generator), 32)
    assert sizes == [49, 49, 98]  # heads of three partitions, one query


def test_a_figure_has_a_row_of_panels_per_query(tmp_path, family):
    _, generator = family
    maps = attention_maps(generator, styles(generator), queries=[(0.2, 0.2), (1, 1)])
    draw_attention(maps, tmp_path / "two.png", title="Two", about={"model": "tiny"})
    draw_attention(attention_maps(generator, styles(generator)), tmp_path / "one.png")
    (width, height), text = label(tmp_path / "two.png")
    (same, less), _ = label(tmp_path / "one.png")
    assert width == same and height - less == pytest.approx(PANEL + 46, abs=1)
    assert text["model"] == "tiny"


def test_a_figure_that_would_be_too_high_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stylenat_hub.inside.overlay._HIGHEST", 1000)
    generator = tiny_generator()
    maps = attention_maps(generator, styles(generator), 8, queries=[(0.5, 0.5)] * 3)
    with pytest.raises(InputError, match=r"1,012 pixels high; ask for fewer queries"):
        draw_attention(maps, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_said(tmp_path, family):
    _, generator = family
    done = write_maps(generator, styles(generator), tmp_path / "a.png", queries=[(0.25, 0.5)])
    last = site_at(generator)
    where = f"level {last.level} px, block {last.block}, {last.partitions[-1].heads.stop} heads in "
    assert done.startswith(where) and done.endswith(", from 0.25,0.5")
    done = write_averages(generator, styles(generator), tmp_path / "b.png", level=8, about={"seed": "3"})
    assert done.startswith(f"level 8 px, block {site_at(generator, 8).block}, ") and done.endswith(
        "averaged over all places"
    )
    assert label(tmp_path / "b.png")[1].items() >= {"seed": "3", "level": "8", "queries": "all"}.items()


def test_the_command_draws_a_level(tmp_path, family):
    folder, generator = family
    file = tmp_path / "new" / "attention.png"
    result = run(folder, "--seed", 3, "--level", 8, "--query", "0.5,0.4", "--query", "0,1", "--output", file)
    assert result.exit_code == 0, result.output
    assert f"wrote {file}: level 8 px, block {site_at(generator, 8).block}, " in result.stdout.replace(
        "\n", ""
    )
    _, text = label(file)
    assert text["queries"] == "0.5,0.4 0,1" and text["seed"] == "3" and text["model"] == folder.name


def test_the_built_in_model_is_looked_at_where_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--truncation", 0.7)
    assert result.exit_code == 0, result.output
    _, text = label(tmp_path / "attention.png")
    expected = {"model": "toy-church", "seed": "0", "level": "32", "block": "2", "queries": "0.5,0.5"}
    assert text.items() >= {**expected, "truncation_psi": "0.7"}.items()


def test_styles_of_a_file_are_the_picture(tmp_path, family):
    folder, generator = family
    save_styles(tmp_path / "w.safetensors", styles(generator), {})
    options = ("--styles", tmp_path / "w.safetensors", "--output", tmp_path / "a.png")
    assert run(folder, *options).exit_code == 0
    assert label(tmp_path / "a.png")[1]["styles"] == "w.safetensors"
    assert "leave one out" in fails(folder, *options, "--seed", 3)
    save_styles(tmp_path / "w.safetensors", styles(generator).repeat(2, 1, 1), {})
    assert "holds 2 styles" in fails(folder, *options)


def test_the_latent_of_hit(tmp_path):
    GANPipeline(tiny_generator("hit")).save_pretrained(tmp_path / "hit")
    result = run(tmp_path / "hit", "--cross", "--level", 16, "--output", tmp_path / "a.png")
    assert "attention to the latent's 16 tokens" in result.stdout.replace("\n", " ")
    assert label(tmp_path / "a.png")[1]["attention"] == "cross"
    line = fails("--cross", "--output", tmp_path / "b.png")
    assert "StyleNATGenerator has no cross-attention" in line and not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("query", ["0.5", "0.5,1.2", "-0.1,0.5", "a,b", "nan,0", "0.5,0.5,0.5", ""])
def test_what_is_no_place_is_refused(query):
    line = fails(f"--query={query}", code=2)
    assert "is no place in a picture" in line and "such as 0.5,0.4" in line


def test_options_that_do_not_go_together():
    assert "--average goes without --query" in fails("--average", "--query", "0,0")
    assert "--cross goes without --block" in fails("--cross", "--block", 1)
    assert "--average goes without --cross" in fails("--average", "--cross")
    assert "--receptive-field goes without a model" in fails("toy-church", "--receptive-field", "church-256")
    assert "--receptive-field goes without --level" in fails("--level", 8, "--receptive-field", "church-256")
    unread = {
        "--truncation": 0.5,
        "--cutoff": 0,
        "--device": "cpu",
        "--dtype": "bfloat16",
        "--variant": "bf16",
    }
    for option, value in unread.items():
        line = fails("--receptive-field", "tiny", option, value)
        assert f"--receptive-field goes without {option}" in line
    line = fails("--receptive-field", "tiny", "--query", "0,0", "--query", "1,1")
    assert "takes one --query, and these are 2" in line


def test_a_receptive_field_is_of_the_query_and_the_revision_that_are_named(tmp_path, hub):
    generator = tiny_generator("styleswin")
    generator.push_to_hub("me/windows", license="mit", tag="first")
    output = ("--output", tmp_path / "r.png")
    result = run("--receptive-field", "me/windows", "--revision", "first", "--query", "0,0.99", *output)
    assert result.exit_code == 0, result.output
    assert receptive_table("styleswin-tiny", (0, 0.99)).splitlines()[1:] == result.stdout.splitlines()[1:-1]
    (tmp_path / "r.png").unlink()
    line = fails("--receptive-field", "me/windows", "--revision", "none", *output)
    assert "has no revision 'none'" in line
    assert "has no 'you/styleswin-ffhq-256'" in fails(
        "--receptive-field", "styleswin-ffhq-256", "--namespace", "you", *output
    )
    assert "'tiny' is a preset of this version, which has no revision" in fails(
        "--receptive-field", "tiny", "--revision", "first", *output
    )
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize("options", [(), ("--receptive-field", "tiny")])
def test_a_figure_is_a_png_which_is_said_before_the_work(tmp_path, monkeypatch, options):
    monkeypatch.setattr(cli_inside, "load_pipeline", None)  # is not got to
    monkeypatch.setattr(receptive_figure, "receptive_fields", None)
    line = fails(*options, "--output", tmp_path / "a.jpg")
    assert "is no name of a PNG; name a file that ends in .png" in line
    assert list(tmp_path.iterdir()) == []
    generator = tiny_generator()
    for write in (write_maps, write_averages):
        with pytest.raises(InputError, match="no name of a PNG"):
            write(generator, styles(generator), tmp_path / "a.jpg")


@pytest.mark.parametrize("option", ["--level", "--block"])
def test_a_level_is_a_whole_number(option):
    for value in ("coarse", "8.5", "-8", ""):
        line = fails(f"{option}={value}", code=2)
        assert f"{value!r} is no whole number; write one, such as 8" in line


def test_errors_come_before_the_drawing_and_leave_nothing(tmp_path, monkeypatch):
    output = ("--output", tmp_path / "a.png")
    assert "levels with one: 4, 8, 16, 32" in fails("--level", 64, *output)
    assert "has no block 0" in fails("--block", 0, *output)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.png").mkdir()
    assert "is a folder; name a file" in fails("--output", tmp_path / "folder.png")
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_drawable(tmp_path / "folder.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="need matplotlib"):
        check_drawable(tmp_path / "a.png")
    assert "pip install matplotlib" in fails(*output)


def test_a_receptive_field_needs_no_model(tmp_path, monkeypatch):
    drawn = []
    table = SimpleNamespace(receptive_table=lambda name, *_, **__: f"the table of {name}")
    figure = SimpleNamespace(draw_receptive_field=lambda *arguments, **_: drawn.append(arguments))
    monkeypatch.setitem(sys.modules, "stylenat_hub.inside.receptive", table)
    monkeypatch.setitem(sys.modules, "stylenat_hub.inside.receptive_figure", figure)
    result = run("--receptive-field", "church-256", "--output", tmp_path / "r.png")
    assert result.exit_code == 0, result.output
    assert (
        drawn == [("church-256", tmp_path / "r.png", (0.5, 0.5))]
        and "the table of church-256" in result.stdout
    )

"""Receptive fields of schedules: numbers by hand, fields against the real attention, figure, names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from small_models import tiny_generator

from stylenat_hub.attention.geometry import axis_neighbors
from stylenat_hub.errors import ConfigError, InputError, UnknownModelError
from stylenat_hub.inside import receptive, receptive_figure
from stylenat_hub.inside.receptive import (
    Field,
    receptive_fields,
    receptive_table,
    resolve,
    shrunk,
    spread,
    uniform,
)
from stylenat_hub.layers.partitions import partition
from stylenat_hub.layers.resample import upsample_tokens
from stylenat_hub.models.hit.blocks import from_blocks, to_blocks
from stylenat_hub.models.hit.generator import depth_to_space
from stylenat_hub.models.stylenat.config import StyleNATConfig
from stylenat_hub.registry import FAMILIES, SHAPES

PLACES = [(0.5, 0.5), (0.0, 1.0), (0.9, 0.3)]


def one_hot(size: int, row: int, column: int) -> torch.Tensor:
    field = torch.zeros(size, size, dtype=torch.float64)
    field[row, column] = 1
    return field


def fields_of(preset: str, query=(0.5, 0.5)):
    return {level.size: level for level in receptive_fields(resolve(preset).generator, query)}


# ------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("kernel", "dilation", "query", "rows", "columns"),
    [
        (3, 1, (5, 5), [4, 5, 6], [4, 5, 6]),
        (3, 1, (0, 9), [0, 1, 2], [7, 8, 9]),  # a corner: the window stops, and stays as large
        (3, 2, (5, 4), [3, 5, 7], [2, 4, 6]),
        (3, 3, (9, 8), [3, 6, 9], [2, 5, 8]),  # 10 = 3 * 3 + 1: one residue has a token more than the others
        (3, 3, (0, 1), [0, 3, 6], [1, 4, 7]),
    ],
)
def test_neighborhoods(kernel, dilation, query, rows, columns):
    heads = partition("", 0, 2, axis_neighbors(10, kernel, dilation)[0])
    field = spread(one_hot(10, *query), [heads])
    expected = torch.zeros(10, 10, dtype=torch.float64)
    expected[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1 / 9
    assert torch.allclose(field, expected, rtol=0, atol=1e-15)


def seen(field: Field) -> list[tuple[int, int]]:
    return [tuple(place) for place in (field.weights > 0).nonzero().tolist()]


def square(rows, columns) -> list[tuple[int, int]]:
    return [(row, column) for row in rows for column in columns]


def test_windows_and_their_seam():
    """StyleSwin at 16 px: windows of 8, shifted ones from 4 on. What lies beyond the seam is not seen."""
    middle = fields_of("styleswin-tiny", (0.5, 0.25))[16]
    assert [run.heads for run in middle.runs] == [2, 2]
    assert seen(middle.runs[0].field) == square(range(0, 8), range(8, 16))
    assert seen(middle.runs[1].field) == square(range(4, 12), range(4, 12))
    corner = fields_of("styleswin-tiny", (0.0, 0.99))[16]
    assert seen(corner.runs[1].field) == square(range(12, 16), range(4))
    assert corner.runs[1].field.reach == 4


def test_blocks_and_across():
    """HiT at 8 px: blocks of 4, and the same place of every block."""
    level = fields_of("hit-tiny", (0.3, 0.7))[8]
    assert seen(level.runs[0].field) == square(range(4, 8), range(4))
    assert seen(level.runs[1].field) == [(1, 2), (1, 6), (5, 2), (5, 6)]
    assert level.block.weights[5, 2] == pytest.approx((1 / 16 + 1 / 4) / 2, abs=1e-15)


def test_a_stage_without_self_attention_sees_itself():
    level = fields_of("hit-tiny")[32]
    assert (level.blocks, level.runs) == (0, ())
    assert level.block.tokens == level.picture.tokens == level.block.reach == 1


def test_church_is_as_published():
    """arXiv 2211.05770: at 256 px six dilations up to 32, the largest kernel 7 fits 7 * 32 = 224 of 256."""
    runs = fields_of("church-256")[256].runs
    assert [run.field.reach for run in runs] == [7, 13, 25, 49, 97, 193]
    assert [(run.heads, run.of) for run in runs] == [(1, 8)] * 4 + [(2, 8)] * 2
    assert {run.field.tokens for run in runs} == {49}
    assert runs[-1].label == "kernel 7, dilation 32"
    assert receptive.percent(runs[-1].field.reach / 256) == "75.4 %"


@pytest.mark.parametrize("preset", ["church-256", "ffhq-256"])
def test_reach_follows_from_kernel_and_dilation(preset):
    config = StyleNATConfig.preset(preset)
    for number, level in enumerate(receptive_fields(resolve(preset).generator)):
        if number:
            pairs = zip(config.kernel_sizes[number], config.dilations[number], strict=True)
            assert [run.field.reach for run in level.runs] == [k + (k - 1) * (d - 1) for k, d in pairs]
        assert level.block.reach == max(run.field.reach for run in level.runs)
        assert level.picture.reach >= level.level.reach >= level.block.reach


def test_figures_of_a_field():
    field = Field(one_hot(8, 1, 2) * 0.9 + one_hot(8, 4, 6) * 0.1, (1, 2))
    assert (field.reach, field.tokens, field.coverage) == (5, 2, 2 / 64)
    assert field.spread == pytest.approx((0.1 * 25) ** 0.5)
    assert field.radius == 0
    assert Field(one_hot(8, 1, 2) * 0.8 + one_hot(8, 4, 6) * 0.2, (1, 2)).radius == 5


# ------------------------------------------------------------------- against the attention that runs


def made_uniform(generator):
    """The generator with self-attentions that weigh all keys alike: channel 0 of what one returns is the mean
    over its heads of channel 0 of what they see."""
    generator = generator.double()
    for module in {site.module for site in generator.attention_sites()}:
        for parameter in module.parameters():
            parameter.data.zero_()
        values = (
            module.value.weight if hasattr(module, "value") else module.qkv.weight[-len(module.proj.weight) :]
        )
        width = len(module.proj.weight) // module.heads
        values.data[::width, 0] = 1
        module.proj.weight.data[0, ::width] = 1 / module.heads
    return generator


def through(generator, site, x: torch.Tensor) -> torch.Tensor:
    """What the attention of a site makes of tokens [1, L, L, C]."""
    if not hasattr(generator, "stages"):
        return site.module(x.flatten(1, 2), site.level).view_as(x)
    side = next(stage.side for stage in generator.stages if stage.size == site.level)  # HiT's blocks
    return from_blocks(site.module(to_blocks(x, side)), side, site.level)


def through_all(generator, sites, x: torch.Tensor) -> torch.Tensor:
    """What the uniform attentions of a level, one after the other, make of a channel [L, L]."""
    for site in sites:
        others = site.module.proj.weight.shape[0] - 1
        x = through(generator, site, torch.nn.functional.pad(x[None, :, :, None], (0, others)))[0, :, :, 0]
    return x


def upsampled(kind: str, x: torch.Tensor) -> torch.Tensor:
    """A channel [L, L] after what the family has between its levels."""
    if kind == "nearest":
        return depth_to_space(x[None, :, :, None].expand(-1, -1, -1, 4))[0, :, :, 0]
    return upsample_tokens(x[None, :, :, None])[0, :, :, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", PLACES)
def test_fields_are_those_of_the_real_attention(family, query):
    """The gradient of an output token is the field: of one block, of all of a level, and through the rest of
    the network, by the modules themselves."""
    generator = made_uniform(tiny_generator(family))
    levels = receptive_fields(generator, query)
    sites = {level.size: [] for level in levels}
    for site in generator.attention_sites():
        sites[site.level].append(site)
    for number, level in enumerate(levels):
        x = torch.zeros(level.size, level.size, dtype=torch.float64, requires_grad=True)
        one, whole = (through_all(generator, some, x) for some in (sites[level.size][-1:], sites[level.size]))
        picture = whole
        for later in levels[number + 1 :]:
            picture = through_all(
                generator, sites[later.size], upsampled(generator.token_upsampling, picture)
            )
        pixel = levels[-1].picture.query
        token = level.block.query
        for out, at, field in (
            (one, token, level.block),
            (whole, token, level.level),
            (picture, pixel, level.picture),
        ):
            (gradient,) = torch.autograd.grad(out[at], x, retain_graph=True)
            assert torch.allclose(gradient, field.weights, rtol=0, atol=1e-14)
            assert field.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_seen_has_no_influence(family):
    """With random weights too: an attention's output depends on the tokens of its field, and on no others."""
    generator = tiny_generator(family).double()
    levels = {level.size: level for level in receptive_fields(generator, (0.9, 0.3))}
    for site in generator.attention_sites():
        field, channels = levels[site.level].block, len(site.module.proj.weight)
        x = torch.randn(1, site.level, site.level, channels, dtype=torch.float64, requires_grad=True)
        y = through(generator, site, x)
        (gradient,) = torch.autograd.grad(y[0, field.query[0], field.query[1]].sum(), x)
        influence = gradient[0].abs().amax(dim=2)
        assert torch.equal(influence > 1e-20, field.weights > 0)


@pytest.mark.parametrize("shape", sorted(name for name in SHAPES if "1024" not in name))
def test_uniform_rows_sum_to_one(shape):
    for site in resolve(shape).generator.attention_sites():
        for part in site.partitions:
            sums = uniform(part).sum(dim=1)
            assert torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
def test_back_through_upsampling_loses_nothing(kind):
    field = torch.rand(16, 16, dtype=torch.float64)
    coarse = shrunk(field, kind)
    assert coarse.shape == (8, 8)
    assert coarse.sum() == pytest.approx(float(field.sum()))


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_those_that_attend_or_are_styled(family, monkeypatch):
    generator = tiny_generator(family)
    sizes = [row["px"] for row in generator.level_rows()]
    monkeypatch.setattr(type(generator), "level_rows", None)  # rows are for people, with any keys
    assert [level.size for level in receptive_fields(generator)] == receptive.level_sizes(generator) == sizes


def test_what_no_field_can_be_followed_through_is_refused():
    def model(*sizes):
        sites = [SimpleNamespace(level=size, partitions=()) for size in sizes]
        return SimpleNamespace(attention_sites=lambda: sites, cross_attentions=list, style_levels=())

    assert receptive.level_sizes(model(4, 8, 8, 16)) == [4, 8, 16]
    for sizes, said in (((4, 16), "have 4, 16 px"), ((6, 8), "have 6, 8 px"), ((), "have no px")):
        with pytest.raises(
            InputError, match=f"{said}; a receptive field needs levels each of which is twice"
        ):
            receptive_fields(model(*sizes))
    with pytest.raises(InputError, match=r"token_upsampling is 'neareset'; .* bilinear, nearest"):
        shrunk(torch.ones(4, 4), "neareset")


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "kind", "title"),
    [
        ("church-256", "StyleNATGenerator", "church-256 (StyleNAT, 256 px; see also styleswin-church-256)"),
        ("styleswin-church-256", "StyleSwinGenerator", "styleswin-church-256 (StyleSwin, 256 px)"),
        ("celebahq-1024", "StyleSwinGenerator", "celebahq-1024 (StyleSwin, 1024 px)"),
        ("s-256", "HiTGenerator", "s-256 (HiT, 256 px)"),
        ("toy-church", "StyleNATGenerator", "toy-church (StyleNAT, 32 px)"),
        ("tiny", "StyleNATGenerator", "tiny (StyleNAT, 32 px; see also styleswin-tiny, hit-tiny)"),
    ],
)
def test_names(name, kind, title):
    schedule = resolve(name)
    assert (type(schedule.generator).__name__, schedule.title) == (kind, title)
    assert all(parameter.is_meta for parameter in schedule.generator.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_read_without_its_weights(family, tmp_path):
    tiny_generator(family).save_pretrained(tmp_path / "church-256")
    table = receptive_table(tmp_path / "church-256").splitlines()
    assert table[0].startswith(f"church-256 ({FAMILIES[family].title}, 32 px)")
    assert table[1:] == receptive_table(f"{family}-tiny").splitlines()[1:]


@pytest.mark.parametrize("name", ["church-256", "stylenat-church-256"])
def test_an_existing_folder_wins(name, tmp_path, monkeypatch):
    tiny_generator("hit").save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert resolve(name).title == f"{name} (HiT, 32 px)"


def test_a_hub_id(hub):
    tiny_generator("styleswin").push_to_hub("me/windows", license="mit")
    assert resolve("me/windows").title == "me/windows (StyleSwin, 32 px)"
    with pytest.raises(UnknownModelError):
        resolve("me/nothing")


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownModelError, match="did you mean 'church-256'"):
        resolve("chruch-256")
    with pytest.raises(UnknownModelError, match="there is no folder"):
        resolve(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is no model folder"):
        resolve(tmp_path)
    with pytest.raises(InputError, match="empty"):
        resolve("")


@pytest.mark.parametrize("query", [(1.1, 0.5), (0.5, -0.1), (float("nan"), 0), (0.5,), "ab", None])
def test_a_query_outside_of_the_picture(query):
    with pytest.raises(InputError, match=r"no place in the picture; .*two numbers from 0"):
        receptive_fields(resolve("tiny").generator, query)


# ------------------------------------------------------------------------------------ table and figure


def test_table():
    lines = receptive_table("hit-tiny").splitlines()
    assert lines[1].split("  ")[0] == "px"
    columns = [lines[1].index(word) for word in ("what sees", "heads", "reach", "tokens", "90 %")]
    rows = [[line[column:].split("  ")[0].strip() for column in columns] for line in lines[2:]]
    assert rows[0] == ["within a block", "2/4", "4", "16", "3.6 (45.1 %)"]
    assert rows[2][:4] == ["one block", "all", "8", "19"]
    assert rows[-2][:4] == ["no self-attention", "-", "1", "1"]
    assert [line.split()[0] for line in lines[2:]] == ["8"] * 5 + ["16"] * 2 + ["32"] * 2


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100 %"), (0.9996, "100 %"), (0.754, "75.4 %"), (0.00296, "0.30 %"), (0, "0 %")]
)
def test_percent(share, text):
    assert receptive.percent(share) == text


def test_no_single_token_vanishes_from_a_panel():
    """Of 1024 x 1024 tokens the one at the end of the grid."""
    cells = receptive_figure.cells(Field(one_hot(1024, 1023, 5), (0, 0)))
    assert cells.shape == (128, 128)
    assert [tuple(place) for place in torch.from_numpy(cells).nan_to_num().nonzero().tolist()] == [(127, 0)]


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures that are made."""
    made, figure_class = [], receptive_figure.figure_class()

    class Kept(figure_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(receptive_figure, "figure_class", lambda: Kept)
    return made


SHOWN = ("church-256", "ffhq-1024", "styleswin-ffhq-1024")
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in SHOWN]


@pytest.mark.parametrize("name", ["tiny", "hit-tiny", *LARGE])
def test_figure(name, tmp_path, figures):
    """A panel per field, none of whose words lie over others or beyond the edge."""
    receptive_figure.draw_receptive_field(name, tmp_path / "field.png")
    with Image.open(tmp_path / "field.png") as image:
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 10
    (figure,) = figures
    levels = receptive_fields(resolve(name).generator)
    panels = sum(len(level.runs) + min(level.blocks, 2) + 1 for level in levels)
    assert len(figure.axes) == panels + 1  # the colour bar
    words = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_visible()]
    for number, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
        assert not [other for other, there in boxes[:number] if box.overlaps(there)], text
    assert any(resolve(name).title in text for text, _ in boxes)


def test_an_error_leaves_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "field.png"
    path.write_bytes(b"old")
    with pytest.raises(UnknownModelError):
        receptive_figure.draw_receptive_field("chruch-256", path)
    with pytest.raises(InputError, match="no name of a PNG"):
        receptive_figure.draw_receptive_field("tiny", tmp_path / "field.jpg")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

"""Which styles a name or a range of levels means, in models of every size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.latents.levels import check_levels, level_sizes, name_of, styles_at
from stylenat_hub.registry import FAMILIES

LEVELLED = [family for family in sorted(FAMILIES) if tiny_generator(family).style_levels]


def model(resolution):
    """What `styles_at` asks of a generator with two styles in each level."""
    sizes = [4 * 2**i for i in range(20) if 4 * 2**i <= resolution]
    levels = tuple(size for size in sizes for _ in range(2))
    return SimpleNamespace(style_levels=levels, num_ws=len(levels), resolution=resolution)


@pytest.mark.parametrize(
    ("resolution", "coarse", "middle", "fine"),
    [
        (1024, [4, 8], [16, 32], [64, 128, 256, 512, 1024]),
        (256, [4, 8], [16, 32], [64, 128, 256]),
        (64, [4, 8], [16, 32], [64]),
        (32, [4, 8], [16], [32]),
        (16, [4, 8], [], [16]),
        (8, [4], [], [8]),
    ],
)
def test_every_level_has_one_name(resolution, coarse, middle, fine):
    generator = model(resolution)
    assert level_sizes(generator) == coarse + middle + fine
    for name, sizes in (("coarse", coarse), ("middle", middle), ("fine", fine)):
        assert [size for size in level_sizes(generator) if name_of(generator, size) == name] == sizes
        if sizes:
            levels = [generator.style_levels[number] for number in styles_at(generator, name)]
            assert levels == [size for size in sizes for _ in range(2)]
        else:
            with pytest.raises(InputError, match=f"has no {name} levels; allowed: all, coarse, fine, or"):
                styles_at(generator, name)


@pytest.mark.parametrize("family", LEVELLED)
@pytest.mark.parametrize(
    ("levels", "sizes"),
    [
        ("all", (4, 8, 16, 32)),
        (" all ", (4, 8, 16, 32)),
        ("ALL", (4, 8, 16, 32)),
        ("Coarse", (4, 8)),
        ("coarse", (4, 8)),
        ("middle", (16,)),
        ("fine", (32,)),
        ("4", (4,)),
        ("8-32", (8, 16, 32)),
        ("16 - 16", (16,)),
        ("32, coarse", (4, 8, 32)),
        ("4,4,4", (4,)),
        ("fine,all", (4, 8, 16, 32)),
    ],
)
def test_names_and_ranges(family, levels, sizes):
    generator = tiny_generator(family)
    numbers = [number for number, size in enumerate(generator.style_levels) if size in sizes]
    assert styles_at(generator, levels) == numbers != []


def test_styles_are_numbered_from_the_coarse_end_on():
    assert styles_at(tiny_generator(), "8,32") == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ("", "'' in the levels '' is no level; allowed: all, coarse, middle, fine, or levels of this model"),
        ("coarse,", "'' in the levels 'coarse,' is no level"),
        ("64", "this model has no level of 64 px; allowed: .* in px: 4, 8, 16, 32, such as 4-32"),
        ("5-32", "has no level of 5 px"),
        ("4-512", "has no level of 512 px"),
        ("32-8", "the range '32-8' in the levels '32-8' runs backwards; write 8-32"),
        ("-8", "'-8' in the levels '-8' is no level"),
        ("9" * 5_000, "is no level"),
        ([4, 8], r"levels is \[4, 8\]; allowed: text"),
    ],
)
def test_what_is_no_level_says_what_is(levels, says):
    with pytest.raises(InputError, match=says):
        styles_at(tiny_generator(), levels)


def test_one_style_has_no_levels():
    generator = tiny_generator("hit")
    assert styles_at(generator, "all") == [0]
    says = "one style for the whole picture; use a StyleNAT or StyleSwin model"
    with pytest.raises(InputError, match=f"choosing levels .*a HiTGenerator has {says}"):
        styles_at(generator, "coarse")
    with pytest.raises(InputError, match=f"style mixing needs .*{says}"):
        check_levels(generator, "style mixing")

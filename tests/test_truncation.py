"""Truncation of every family: to the mean, to the nearest of some centres, of some styles only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.latents import clusters
from stylenat_hub.latents.clusters import style_centers
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

MAPPED = [family for family in sorted(FAMILIES) if not tiny_generator(family).styles_are_latents]
SEEDS = range(6)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def drawing(request):
    pipeline = GANPipeline(tiny_generator(request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=MAPPED)
def generator(request):
    return tiny_generator(request.param)


def pictures(pipeline, seeds=SEEDS, **options):
    return pipeline(seeds, output_type="pt", **options).images


def some_centers(pipeline, count=3):
    """Styles that are far from each other, as centres are."""
    return pipeline.styles(range(100, 100 + count))[:, 0]


def distinct(images):
    return len(torch.unique(images.flatten(1), dim=0))


def test_one_changes_nothing(drawing):
    ws = drawing.styles(SEEDS)
    assert torch.equal(drawing.styles(SEEDS, truncation_psi=1.0), ws) and distinct(ws) == len(SEEDS)
    centers = some_centers(drawing)
    assert torch.equal(drawing.styles(SEEDS, truncation_psi=1, truncation_centers=centers), ws)
    assert torch.equal(pictures(drawing, truncation_centers=centers), pictures(drawing))


def test_zero_is_the_mean_picture_for_all_seeds(drawing):
    images = pictures(drawing, truncation_psi=0)
    generator = drawing.generator
    mean = drawing.draw(generator.w_avg.expand(1, generator.num_ws, -1), output_type="pt")
    assert distinct(images) == 1 and torch.equal(images[:1], mean)


def test_zero_with_centers_is_a_picture_for_each_center(drawing):
    centers = some_centers(drawing)
    images = pictures(drawing, truncation_psi=0, truncation_centers=centers)
    nearest = [
        min(range(3), key=lambda k: (w - centers[k]).norm().item()) for w in drawing.styles(SEEDS)[:, 0]
    ]
    alone = drawing.draw(centers[:, None].expand(-1, drawing.generator.num_ws, -1), output_type="pt")
    assert len(set(nearest)) > 1  # otherwise this would be as good as one centre
    assert torch.equal(images, alone[nearest])


def test_between_the_style_and_its_goal(drawing):
    ws, mean = drawing.styles(SEEDS), drawing.generator.w_avg
    half = drawing.styles(SEEDS, truncation_psi=0.5)
    torch.testing.assert_close(half, (ws + mean) / 2, rtol=0, atol=1e-6)


def test_cutoff_leaves_the_finer_styles_alone(drawing):
    count = drawing.generator.num_ws
    ws = drawing.styles(SEEDS)
    for centers in (None, some_centers(drawing)):
        whole = drawing.styles(SEEDS, truncation_psi=0.3, truncation_centers=centers)
        for cutoff in {0, count // 2, count}:
            options = {"truncation_cutoff": cutoff, "truncation_centers": centers}
            cut = drawing.styles(SEEDS, truncation_psi=0.3, **options)
            assert torch.equal(cut[:, cutoff:], ws[:, cutoff:])
            assert torch.equal(cut[:, :cutoff], whole[:, :cutoff])
        assert not torch.equal(whole, ws)


def test_batches_change_nothing(drawing):
    options = {"truncation_psi": 0.5, "truncation_centers": some_centers(drawing, 40)}
    whole = pictures(drawing, **options, batch_size=6)
    assert torch.equal(pictures(drawing, **options, batch_size=1), whole)
    assert torch.equal(pictures(drawing, [4], **options), whole[4:5])


@pytest.mark.parametrize(
    ("centers", "says"),
    [
        (torch.zeros(3, 31), r"truncation_centers is \(3, 31\); allowed: a tensor \[centers, 32\]"),
        (torch.zeros(0, 32), r"is \(0, 32\)"),
        (torch.zeros(32), r"is \(32,\)"),
        (torch.full((2, 32), torch.nan), "holds NaN"),
        ([[0.0] * 32], "is list"),
    ],
)
def test_wrong_centers_say_what_is_allowed(drawing, centers, says):
    with pytest.raises(InputError, match=says):
        drawing([0], truncation_psi=0.5, truncation_centers=centers)


class Blobs(torch.nn.Module):
    """Stands for a generator whose styles are these rows [n, D], in this order."""

    styles_are_latents, z_dim, dtype = False, 4, torch.float32

    def __init__(self, rows):
        super().__init__()
        self.rows, self.w_dim, self.w_avg, self.drawn = rows, rows.shape[1], rows[0], 0

    def mapping(self, z):
        self.drawn += len(z)
        return self.rows[self.drawn - len(z) : self.drawn, None].expand(-1, 3, -1)


def test_one_center_is_the_mean_of_the_styles(generator):
    center = style_centers(generator, 1, latents=1_500, seed=7)
    generator.w_avg.copy_(before := generator.w_avg.clone())
    generator.estimate_w_avg(1_500, seed=7)
    mean = generator.w_avg.clone()
    generator.w_avg.copy_(before)
    assert center.shape == (1, generator.w_dim) and center.dtype == torch.float32
    torch.testing.assert_close(center[0], mean, rtol=0, atol=1e-6)


def test_clusters_are_found_and_the_largest_comes_first():
    """Four far heaps of 1000, 700, 250 and 50 styles, shuffled, far from the origin as well."""
    source = torch.Generator().manual_seed(3)
    heaps = 100 + 20 * torch.randn(4, 8, generator=source)
    which = torch.arange(4).repeat_interleave(torch.tensor([250, 1000, 50, 700]))
    which = which[torch.randperm(2000, generator=source)]
    rows = heaps[which] + torch.randn(2000, 8, generator=source)
    for seed in range(5):
        centers = style_centers(Blobs(rows), 4, latents=2000, seed=seed)
        means = torch.stack([rows[which == heap].mean(0) for heap in (1, 3, 0, 2)])
        torch.testing.assert_close(centers, means, rtol=0, atol=1e-4)


def test_every_center_is_the_mean_of_what_is_nearest_to_it(generator):
    centers = style_centers(generator, 12, latents=2_000)
    z = torch.randn(2_000, generator.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        styles = generator.mapping(z)[:, 0]
    nearest = (styles[:, None] - centers).square().sum(-1).argmin(1)
    sizes = torch.bincount(nearest, minlength=12)
    assert sizes.min() > 0 and sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    means = torch.stack([styles[nearest == k].mean(0) for k in range(12)])
    torch.testing.assert_close(centers, means, rtol=0, atol=1e-4 * styles.abs().max().item())


def test_centers_depend_on_their_seed_alone(generator):
    centers = style_centers(generator, 5, latents=500)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(style_centers(generator, 5, latents=500), centers)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(style_centers(generator, 5, latents=500, seed=1), centers)


def test_parts_change_nothing_but_memory(generator, monkeypatch):
    centers = style_centers(generator, 5, latents=500)
    monkeypatch.setattr(clusters, "_PART", 5 * 64)
    torch.testing.assert_close(style_centers(generator, 5, latents=500), centers, rtol=0, atol=1e-4)


@pytest.mark.parametrize("different", [1, 3, 6])
def test_fewer_styles_than_centers(different):
    """No centre is lost, none is NaN, and each is one of the styles there are."""
    rows = torch.eye(8)[torch.arange(60) % different]
    centers = style_centers(Blobs(rows), 6, latents=60)
    assert centers.shape == (6, 8)
    far = torch.cdist(centers, torch.eye(8)[:different])
    assert far.min(1).values.max() < 1e-6 and far.min(0).values.max() < 1e-6


def test_an_empty_cluster_begins_anew_far_away():
    styles = torch.tensor([[0.0], [1.0], [10.0], [30.0]])
    start = torch.tensor([[0.0], [5.0], [-90.0]], dtype=torch.float64)  # nothing is nearest to the last
    _, centers, places = clusters._cluster(styles, start)
    assert places.tolist() == [0, 0, 1, 2] and centers.flatten().tolist() == [0.5, 10, 30]


def test_half_precision_has_centers_too():
    centers = style_centers(tiny_generator().to(torch.bfloat16), 3, latents=100)
    assert centers.dtype == torch.float32 and torch.isfinite(centers).all()


def test_styles_that_are_latents_have_no_centers():
    with pytest.raises(InputError, match="a HiTGenerator has none: its styles are the latents"):
        style_centers(tiny_generator("hit"), 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 0}, "the number of centres is 0; allowed: a whole number from 1 to 1,024"),
        ({"count": 1_025}, "to 1,024"),
        ({"count": 2.0}, "the number of centres is 2.0"),
        ({"count": True}, "is True"),
        ({"count": 11, "latents": 10}, "the number of centres is 11; allowed: a whole number from 1 to 10"),
        ({"count": 1, "latents": 0}, "latents is 0; allowed: a whole number from 1 to 200,000"),
        ({"count": 1, "latents": 10**9}, "latents is 1000000000"),
        ({"count": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_numbers_out_of_range_say_what_is_allowed(options, says):
    with pytest.raises(InputError, match=says):
        style_centers(tiny_generator(), **options)


def test_styles_that_are_not_finite_say_so():
    broken = SimpleNamespace(styles_are_latents=False, z_dim=4, w_dim=8, dtype=torch.float32)
    broken.w_avg = torch.zeros(8)
    broken.mapping = lambda z: torch.full((len(z), 3, 8), torch.inf)
    with pytest.raises(InputError, match="hold NaN or infinity; use dtype"):
        style_centers(broken, 2, latents=10)

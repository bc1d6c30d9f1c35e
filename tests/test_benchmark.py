"""`stylenat benchmark`: what it counts and computes alone, for every family and for a convolutional one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stylenat_hub import benchmark
from stylenat_hub.errors import InputError
from stylenat_hub.layers.style import EqualLinear
from stylenat_hub.products import Recorder
from stylenat_hub.registry import FAMILIES


@pytest.fixture(autouse=True)
def _no_fresh_process(monkeypatch):
    """Peak memory takes seconds per process; `test_models.py` measures it."""
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda *_, **__: 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_tiny_can_be_measured(family):
    result = benchmark.benchmark(f"{family}-tiny", repeats=1, gather=False)
    assert set(result["seconds"]) == {"tiled", "matrix_products"} == set(result["seconds_range"])
    assert result["matrix_products_gflop"] > 0 and result["ratio_to_matrix_products"] > 0
    assert set(result["peak_memory_mib"]) == {"tiled"}
    assert f"{family}-tiny" in benchmark.table(result)


class Convolved(nn.Module):
    """A block as StyleGAN2's: a style from a linear layer of its own kind, a convolution by function."""

    def __init__(self):
        super().__init__()
        self.style = EqualLinear(8, 6)
        self.weight = nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, x, w):
        return F.conv2d(x * self.style(w)[:, :, None, None], self.weight, padding=1)


class Convolutional(nn.Module):
    """z [B, 8] -> images [B, 3, 16, 16]; no layer of torch's own."""

    _no_split_modules = ("Convolved",)
    z_dim = 8

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 6, 16, 16))
        self.block = Convolved()
        self.colours = nn.Parameter(torch.randn(3, 4, 1, 1))

    def forward(self, z):
        return F.conv2d(self.block(self.constant.expand(len(z), -1, -1, -1), z), self.colours)


class Nothing(nn.Module):
    _no_split_modules = None

    def forward(self, z):
        return z.sum()


def measured(monkeypatch, model, **options):
    """The benchmark of a module that is in no registry."""
    model.eval().requires_grad_(False)
    monkeypatch.setattr(benchmark, "_build", lambda name, batch, *_: (model, torch.randn(batch, 8)))
    return benchmark.benchmark("thrown-away", repeats=1, **options)


def test_convolutions_of_the_blocks_are_counted(monkeypatch):
    result = measured(monkeypatch, Convolutional(), batch=2)
    flop = 2 * 2 * 16 * 16 * 4 * 6 * 9  # neither the style nor the colours
    assert result["matrix_products_gflop"] == result["convolutions_gflop"] == pytest.approx(flop / 1e9)
    assert "matrix products and convolutions" in benchmark.table(result).splitlines()[0]


def test_without_blocks_everything_counts(monkeypatch):
    model = Convolutional()
    monkeypatch.setattr(Convolutional, "_no_split_modules", None)
    result = measured(monkeypatch, model, batch=2)
    flop = 2 * 2 * (16 * 16 * 4 * (6 * 9 + 3) + 8 * 6)
    assert result["matrix_products_gflop"] == pytest.approx(flop / 1e9)


def test_a_model_without_products_is_told(monkeypatch):
    with pytest.raises(InputError, match="has no products or convolutions"):
        measured(monkeypatch, Nothing())


def test_the_parts_of_a_layer_are_one_product():
    """However they come: in pieces, as one operation, or from rows that do not lie together."""
    layer = nn.Linear(3, 5).requires_grad_(False)
    model = nn.Sequential(layer)
    with Recorder() as recorder, recorder.inside(model):
        for part in torch.randn(7, 3).split(2):
            model(part)
        model(torch.randn(2, 3, 4).transpose(1, 2))
    recorder.__torch_dispatch__(torch.ops.aten.linear.default, (), (torch.randn(2, 9, 3), layer.weight))
    assert recorder.matrices() == [("0", (15, 3, 5)), ("", (18, 3, 5))]
    with Recorder() as again:
        recorder.replay()()
    assert sum(again.calls.values()) == 6


def test_products_inside_attention_do_not_count():
    q, k = torch.randn(2, 4, 3), torch.randn(2, 3, 4)
    with Recorder() as recorder:
        torch.bmm(q, k)
        F.scaled_dot_product_attention(q, q, q)
    assert not recorder.calls

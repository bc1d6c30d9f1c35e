"""What attention keeps between calls: never stale, never spoiled by who came first, and really kept."""

from __future__ import annotations

import pytest
import torch
from test_attention import forward_and_gradients, random_inputs

from stylenat_hub.attention import BACKENDS, neighborhood_attention, tiled


@pytest.mark.parametrize("several", [False, True], ids=["one-table", "several-tables"])
def test_inference_caches_the_bias_and_follows_changed_weights(several, monkeypatch):
    """The expanded bias is built once per table; a table changed in place, even by `.data`, is seen."""
    q, k, v, _, rpb = random_inputs((16, 16, (7, 7), (1, 1)), torch.float32)
    tables = [rpb[:1].clone(), rpb[1:].clone()] if several else rpb
    built = []
    build = tiled._build_bias
    monkeypatch.setattr(tiled, "_build_bias", lambda *args: built.append(1) or build(*args))

    def attend():
        return neighborhood_attention(q, k, v, kernel_size=7, rpb=tables)

    before, first = attend(), len(built)
    assert torch.equal(attend(), before) and len(built) == first > 0
    for table in tables if several else [tables]:
        table.data.mul_(-3)
    after = attend()
    assert len(built) == 2 * first
    assert not torch.allclose(before, after)
    rpb = torch.cat(tables) if several else tables
    expected = neighborhood_attention(q, k, v, kernel_size=7, rpb=rpb.clone())
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_after_inference_mode(backend):
    """What inference_mode leaves in the caches must serve gradients afterwards."""
    shape = (19, 22, (5, 5), (1, 3))  # of no other test, so that nothing is cached yet
    inputs = random_inputs(shape)
    options = {"kernel_size": shape[2], "dilation": shape[3], "backend": backend}
    with torch.inference_mode():
        q, k, v, _, rpb = inputs
        wanted = neighborhood_attention(q, k, v, rpb=rpb, **options)
    actual = forward_and_gradients(*inputs, **options)[0]
    torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=0)


def test_a_full_cache_is_still_a_cache(monkeypatch):
    """A grid may need as many biases as there is room for; they must not be thrown away at every call."""
    q, k, v, _, rpb = random_inputs((35, 35, (3, 3), (2, 2)), torch.float32)
    built = []
    build = tiled._build_bias
    monkeypatch.setattr(tiled, "_build_bias", lambda *args: built.append(1) or build(*args))
    neighborhood_attention(q, k, v, kernel_size=3, dilation=2, rpb=rpb)
    first = len(built)
    monkeypatch.setattr(tiled, "MAX_CACHED", first)
    neighborhood_attention(q, k, v, kernel_size=3, dilation=2, rpb=rpb)
    assert len(built) == first > 9


@pytest.mark.parametrize("backend", BACKENDS)
def test_caches_do_not_depend_on_who_came_first(backend):
    """Neither a default device nor inference_mode at the first call may spoil the cached geometry."""
    shape = (17, 20, (3, 3), (1, 4))  # of no other test
    inputs = random_inputs(shape)
    options = {"kernel_size": shape[2], "dilation": shape[3], "backend": backend}
    with torch.inference_mode(), torch.device("meta"):
        neighborhood_attention(*(x for x in inputs[:3]), rpb=inputs[4], **options)
    assert torch.isfinite(forward_and_gradients(*inputs, **options)[0]).all()

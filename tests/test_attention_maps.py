"""Attention weights: the same as the model's own attention gives, of every head, place and family."""

from __future__ import annotations

import threading

import pytest
import torch
from small_models import tiny_generator
from torch import nn

from stylenat_hub.attention import use_backend
from stylenat_hub.errors import InputError
from stylenat_hub.inside.cross import cross_maps
from stylenat_hub.inside.maps import attention_averages, attention_maps
from stylenat_hub.inside.recording import site_at, watching
from stylenat_hub.layers.logits import Compared, offsets
from stylenat_hub.models.hit.blocks import MultiAxisAttention, from_blocks, to_blocks
from stylenat_hub.models.stylenat.generator import HydraAttention
from stylenat_hub.models.styleswin.generator import SplitWindowAttention
from stylenat_hub.registry import FAMILIES

EXACT = 1e-12  # float64; the sums of a softmax are taken in another order


@pytest.fixture(scope="module", params=list(FAMILIES))
def generator(request):
    return tiny_generator(request.param).double()


def styles(generator, seed=3, count=1):
    z = torch.randn(count, generator.z_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return generator.mapping(z.to(generator.dtype))


def pad(x, size):
    return torch.cat([x, x.new_zeros(*x.shape[:-1], size - x.shape[-1])], dim=-1)


def own_weights(module, qkv, size):
    """[N, L, L] of an attention between projections: what it makes of values that are one-hot."""
    q, k, _ = qkv.unflatten(2, (3, module.heads, -1)).unbind(2)  # [1, L, N, D]
    length, dim = size * size, q.shape[-1]
    wide = max(length, dim)
    q, k = pad(q * (wide / dim) ** 0.5, wide), pad(k, wide)  # the scale goes by the width
    one_hot = pad(torch.eye(length, dtype=q.dtype), wide)[None, :, None].expand_as(q)
    with use_backend("reference"):
        out = module.attend(torch.stack([q, k, one_hot], dim=2).flatten(2), size)
    return out.unflatten(2, (module.heads, wide))[0, :, :, :length].transpose(0, 1)


def own_weights_of_blocks(module, x, size):
    """The same of HiT's, whose values are one-hot in the order of the grid."""
    side = int(x.shape[2] ** 0.5)
    shared = module.shared
    one_hot = to_blocks(torch.eye(size * size, dtype=x.dtype).unflatten(0, (size, size))[None], side)
    q, k, _ = module.projected(x, x)
    changed = {"projected": lambda *_: (q, k, one_hot.unsqueeze(3).expand(-1, -1, -1, shared, -1))}
    module.__dict__.update(changed)
    projection, module.proj = module.proj, nn.Identity()
    try:
        out = module(x)  # [1, M, T, N * L]
    finally:
        module.proj = projection
        del module.__dict__["projected"]
    return from_blocks(out, side, size).flatten(1, 2).unflatten(2, (module.heads, -1))[0].transpose(0, 1)


def own(module, received, size):
    compute = own_weights_of_blocks if isinstance(module, MultiAxisAttention) else own_weights
    return compute(module, received, size)


def dense(compared, partitions, size):
    """[N, L, L] of all queries, from `Compared.weights`."""
    places = torch.arange(size * size)
    rows, columns = places // size, places % size
    found = []
    for number, part in enumerate(partitions):
        weights = compared.weights(number, part, rows, columns)
        keys = part.keys[rows][:, :, None] * size + part.keys[columns][:, None, :]
        full = weights.new_zeros(part.num_heads, size * size, size * size)
        flat = keys.flatten(1)[None].expand(part.num_heads, -1, -1)
        found.append(full.scatter(2, flat, weights.transpose(0, 1).flatten(2)))
    return torch.cat(found)


def sites(generator, largest=16):
    return [site for site in generator.attention_sites() if site.level <= largest]


def received_by(generator, site, ws):
    seen = []
    with torch.no_grad(), watching(site.module, site.module.watched, lambda x, *_: seen.append(x.clone())):
        generator.synthesis(ws)
    return seen[0]


def some_places(size):
    """Corners, borders and what lies between, in [0, 1]."""
    places = sorted({0, 1, size // 3, size // 2, size - 2, size - 1})
    return [((x + 0.3) / size, (y + 0.7) / size) for y in places for x in places]


def test_maps_are_the_weights_of_the_models_own_attention(generator):
    ws = styles(generator)
    for site in sites(generator):
        expected = own(site.module, received_by(generator, site, ws), site.level)
        places = some_places(site.level)
        found = attention_maps(generator, ws, site.level, block=site.block, queries=places)
        assert found.tokens[1] == (0, 1)
        rows = torch.tensor([row * site.level + column for row, column in found.tokens])
        expected = expected[:, rows].unflatten(2, (site.level, site.level)).transpose(0, 1)
        torch.testing.assert_close(found.maps, expected, rtol=0, atol=EXACT)
        assert found.heads == site.module.heads and found.maps.shape[1] == found.heads


def test_each_map_sums_to_1_and_is_0_where_nobody_looks(generator):
    for site in generator.attention_sites():
        queries = [(0, 0), (0.5, 0.4), (1, 1)]
        found = attention_maps(generator, styles(generator), site.level, block=site.block, queries=queries)
        assert found.maps.shape == (3, found.heads, site.level, site.level)
        torch.testing.assert_close(found.maps.sum((2, 3)), torch.ones(3, found.heads).double())
        assert found.tokens[0] == (0, 0) and found.tokens[2] == (site.level - 1, site.level - 1)
        for query in range(3):
            for number in range(len(found.partitions)):
                seen = found.seen(query, number)
                heads = found.map(query, number)
                assert heads[:, seen].min() > 0
                assert not seen.all() or found.partitions[number].keys.shape[1] == site.level
                assert heads[:, ~seen].sum() < 1e-30  # beyond a seam exp(-100) is left
                assert seen[found.tokens[query]]


def test_averages_are_those_of_all_queries(generator):
    ws = styles(generator)
    site = sites(generator)[-1]
    size = site.level
    matrix = own(site.module, received_by(generator, site, ws), size)  # [N, L * L, L * L]
    found = attention_averages(generator, ws, size, block=site.block)
    expected = matrix.mean(dim=1).unflatten(1, (size, size))
    torch.testing.assert_close(torch.cat(found.received), expected, rtol=0, atol=EXACT)
    for part, table in zip(site.partitions, found.by_offset, strict=True):
        count = part.keys.shape[1]
        assert table.shape == (part.num_heads, 2 * count - 1, 2 * count - 1)
        torch.testing.assert_close(table.sum((1, 2)), torch.ones(part.num_heads).double())
        own_place = matrix[part.heads].diagonal(dim1=1, dim2=2).mean(dim=1)
        torch.testing.assert_close(table[:, count - 1, count - 1], own_place, rtol=0, atol=EXACT)


def test_an_offset_is_counted_from_the_query_in_steps_of_the_pattern():
    """With a bias so large that each head looks at one offset alone, wherever its window has it."""
    generator = tiny_generator()
    site = site_at(generator, 16, 1)
    assert [part.label for part in site.partitions] == ["kernel 7, dilation 1", "kernel 7, dilation 2"]
    with torch.no_grad():
        site.module.qkv.weight.zero_()
        for table in site.module.rpb:
            table.zero_()
            table[:, 6 + 2, 6 - 1] = 500  # two below, one to the left
    (query,) = attention_maps(generator, styles(generator), 16, block=1, queries=[(0.5, 0.5)]).maps
    assert query[0, 8 + 2, 8 - 1] == 1 and query[-1, 8 + 4, 8 - 2] == 1
    found = attention_averages(generator, styles(generator), 16, block=1)
    for table, step in zip(found.by_offset, (1, 2), strict=True):
        # at the lower and the left border no key stands there, and all get the same
        there = (16 - 2 * step) * (16 - step) / 256
        torch.testing.assert_close(table[:, 8, 5], torch.full_like(table[:, 8, 5], there))


@pytest.mark.parametrize("size", [7, 11, 13])
def test_dilation_with_remainders(size):
    torch.manual_seed(0)
    module = HydraAttention(18, 3, (3, 5, 3), (2, 1, 2), True).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
        qkv = torch.randn(1, size * size, 54, dtype=torch.float64)
        found = dense(module.compared(qkv, size), module.partitions(size), size)
        torch.testing.assert_close(found, own_weights(module, qkv, size), rtol=0, atol=EXACT)


def test_shifted_windows_with_their_seams():
    torch.manual_seed(0)
    module, size = SplitWindowAttention(16, 4, 4, 2, True).double(), 12
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
        qkv = torch.randn(1, size * size, 48, dtype=torch.float64)
        found = dense(module.compared(qkv, size), module.partitions(size), size)
        torch.testing.assert_close(found, own_weights(module, qkv, size), rtol=0, atol=EXACT)
        corner = found[2, 0].unflatten(0, (size, size))  # its window continues at the other borders
        assert corner[:2, :2].sum() > 1 - 1e-12 and 0 < corner[-1, -1] < 1e-30


@pytest.mark.parametrize(("multi_query", "within"), [(True, 1), (False, 2), (False, 0), (True, 4)])
def test_blocks_and_what_lies_across_them(multi_query, within):
    torch.manual_seed(0)
    module, size = MultiAxisAttention(16, 4, multi_query, within).double(), 12
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
        x = to_blocks(torch.randn(1, size, size, 16, dtype=torch.float64), 4)
        found = dense(module.compared(x, size), module.partitions(size, 4), size)
        torch.testing.assert_close(found, own_weights_of_blocks(module, x, size), rtol=0, atol=EXACT)


def test_half_precision_is_weighed_in_float32():
    q = torch.randn(1, 4, 4, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    part = tiny_generator().attention_sites()[0].partitions[0]
    zero = torch.zeros(1, dtype=torch.long)
    compared = Compared(q[..., :2, :], q[..., :2, :], (None,))
    part = type(part)(part.label, slice(0, 2), part.keys, part.counted)
    found = compared.weights(0, part, zero, zero)
    wide = Compared(compared.q.double(), compared.k.double(), (None,)).weights(0, part, zero, zero)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wide, rtol=0, atol=1e-7)  # float32's rounding


def test_the_picture_is_drawn_as_if_nobody_looked(generator):
    ws = styles(generator)
    with torch.no_grad():
        plain = generator.to_rgb01(generator.synthesis(ws).float())[0]
    assert torch.equal(attention_maps(generator, ws).image, plain)
    assert torch.equal(attention_averages(generator, ws).image, plain)


def test_modules_are_put_back_also_after_an_error(generator, monkeypatch):
    site = site_at(generator)
    before = dict(vars(site.module))
    attention_maps(generator, styles(generator))
    assert vars(site.module) == before

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(type(site.module), "compared", broken)
    with pytest.raises(RuntimeError, match="broken"):
        attention_maps(generator, styles(generator))
    assert vars(site.module) == before


def test_what_is_not_there_is_named(generator):
    levels = sorted({site.level for site in generator.attention_sites()})
    finest = site_at(generator)
    blocks = [site.block for site in generator.attention_sites() if site.level == levels[-1]]
    assert (finest.level, finest.block) == (levels[-1], blocks[-1])
    with pytest.raises(InputError, match=f"1024 px; levels with one: {', '.join(map(str, levels))}$"):
        attention_maps(generator, styles(generator), 1024)
    with pytest.raises(
        InputError, match=f"has no block 99; blocks with self-attention: {', '.join(map(str, blocks))}$"
    ):
        attention_maps(generator, styles(generator), block=99)
    for wrong in [(1.01, 0.5), (0.5, -0.1), (float("nan"), 0), (0.5,), "ab", None]:
        with pytest.raises(InputError, match=r"no place in the picture; .*two numbers from 0"):
            attention_maps(generator, styles(generator), queries=[wrong])
    for queries in ([], [(0, 0)] * 65):
        with pytest.raises(InputError, match="allowed: 1 to 64"):
            attention_maps(generator, styles(generator), queries=queries)
    with pytest.raises(InputError, match="one picture at a time, and these are 2"):
        attention_maps(generator, styles(generator, count=2))


def test_hit_has_none_where_the_picture_is_large():
    generator = tiny_generator("hit")
    with pytest.raises(InputError, match=r"no self-attention at a level of 32 px; levels with one: 8$"):
        attention_maps(generator, styles(generator), 32)


@pytest.mark.parametrize("level", [8, 16, 32])
def test_what_each_place_takes_from_the_latent(level):
    """Against the module's own output for values that are one-hot, per head."""
    generator = tiny_generator("hit").double()
    ws, seen = styles(generator), []
    site = next(site for site in generator.cross_attentions() if site.level == level)
    module = site.module
    found = cross_maps(generator, ws, level)
    assert found.weights.shape == (16, level, level) and found.heads == module.heads
    with torch.no_grad():
        with watching(module, "forward", lambda *args: seen.append(args)):
            generator.synthesis(ws)
        (x, embedding), tokens = seen[0], torch.eye(16, dtype=torch.float64)
        q, k, _ = module.projected(x.flatten(1, -2), embedding)
        logits = torch.stack(
            [(q[0, :, head] @ k[0, :, min(head, module.shared - 1)].T) for head in range(module.heads)]
        )
        weights = (logits * q.shape[-1] ** -0.5).softmax(-1).mean(0) @ tokens  # [L, 16]
    expected = site.as_rows(weights.view(*x.shape[:-1], 16))[0].permute(2, 0, 1)
    torch.testing.assert_close(found.weights, expected, rtol=0, atol=EXACT)


def test_strips_of_a_picture_are_joined(monkeypatch):
    generator = tiny_generator("hit")
    whole = cross_maps(generator, styles(generator), 32)
    monkeypatch.setattr("stylenat_hub.models.hit.generator.STRIP_BYTES", 1 << 14)
    strips, see = [], type(generator.stages[-1].cross.attn).weights
    counted = lambda *args: strips.append(args[1].shape) or see(*args)  # noqa: E731
    monkeypatch.setattr(type(generator.stages[-1].cross.attn), "weights", counted)
    found = cross_maps(generator, styles(generator), 32)
    assert len(strips) > 1
    torch.testing.assert_close(found.weights, whole.weights, rtol=0, atol=1e-6)  # products of other sizes


def test_only_hit_reads_its_latent_so():
    generator = tiny_generator()
    with pytest.raises(InputError, match="StyleNATGenerator has no cross-attention to its latent; HiT has"):
        cross_maps(generator, styles(generator))
    hit = tiny_generator("hit")
    with pytest.raises(InputError, match=r"no level of 4 px; levels with cross-attention: 8, 16, 32$"):
        cross_maps(hit, styles(hit), 4)
    assert cross_maps(hit, styles(hit)).level == 32


def test_other_threads_are_not_watched():
    generator = tiny_generator()
    site, seen = site_at(generator), []
    with watching(site.module, "attend", lambda *args: seen.append(args)):
        other = threading.Thread(target=lambda: draw(generator))
        other.start()
        other.join()
        assert seen == []
        draw(generator)
    assert len(seen) == 1


def test_a_method_that_is_called_by_names_is_watched_too():
    class Attention(torch.nn.Module):
        def mix(self, qkv, size, *, scale=1):
            return qkv * size * scale

    module, seen = Attention(), []
    with watching(module, "mix", lambda *args: seen.append(args)):
        assert module.mix(size=3, qkv=2, scale=5) == 30
    assert seen == [(2, 3)]


def test_a_pattern_without_its_query_has_no_offsets():
    ahead = (torch.arange(8)[:, None] + torch.tensor([[0, 1]])) % 8
    assert offsets(ahead).tolist() == [[1, 2]] * 8
    ahead[5] = torch.tensor([6, 7])
    with pytest.raises(InputError, match=r"position 5 is not among its own keys \[6, 7\]"):
        offsets(ahead)


def draw(generator):
    with torch.no_grad():
        generator.synthesis(styles(generator))

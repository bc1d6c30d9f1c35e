"""Neighborhood attention against the recorded originals, exact probes, and its float64 reference.

Legend: B batch, H,W tokens, N heads, D head dim, k kernel size, d dilation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stylenat_hub.attention import BACKENDS, neighborhood_attention, tiled
from stylenat_hub.errors import InputError

GOLDENS = Path(__file__).parent / "goldens"
CASES = json.loads((GOLDENS / "na2d_rpb_ops.json").read_text())["cases"]
RECORDED = load_file(GOLDENS / "na2d_rpb_ops.safetensors")

# H, W, kernels and dilations per head: prime, non-square, k * d == H, remainders, uneven and mixed partitions
SHAPES = [
    (7, 7, (7,), (1,)),
    (14, 17, (7, 7), (1, 2)),
    (13, 29, (3, 5, 3), (4, 2, 1)),
    (31, 23, (7, 7, 7), (3, 3, 1)),
    (40, 9, (3, 7, 7, 3), (3, 1, 1, 2)),
    (33, 34, (13, 13), (2, 2)),
]


def random_inputs(shape, dtype=torch.float64, *, heads=None, dim=5, batch=2, spread=1.0):
    """q, k, v, upstream and one table for all heads, the same numbers for every dtype."""
    height, width, kernels, _ = shape
    heads = heads or len(kernels)
    generator = torch.Generator().manual_seed(height * width)
    size = (batch, height, width, heads, dim)
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64) * spread for _ in range(4)]
    side = 2 * max(kernels) - 1
    tensors.append(torch.randn(heads, side, side, generator=generator, dtype=torch.float64))
    return [x.to(dtype) for x in tensors]


def forward_and_gradients(q, k, v, upstream, rpb, *, kernel_size, dilation, backend):
    leaves = [x.clone().requires_grad_() for x in (q, k, v, rpb)]
    out = neighborhood_attention(
        *leaves[:3], kernel_size=kernel_size, dilation=dilation, rpb=leaves[3], backend=backend
    )
    return out, *torch.autograd.grad(out, leaves, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['height']}x{c['width']}-k{c['kernel_size']}-d{c['dilation']}"
)
def test_recorded_original(case, backend):
    def heads_last(name):
        return RECORDED[f"case{case['case']:02}.{name}"].permute(0, 2, 3, 1, 4)

    rpb = RECORDED[f"case{case['case']:02}.rpb"]
    out, *grads = forward_and_gradients(
        *(heads_last(name) for name in ("q", "k", "v", "upstream")),
        rpb,
        kernel_size=case["kernel_size"],
        dilation=case["dilation"],
        backend=backend,
    )
    torch.testing.assert_close(out, heads_last("out"), atol=5e-6, rtol=0)
    expected = [*(heads_last(f"grad_{n}") for n in "qkv"), RECORDED[f"case{case['case']:02}.grad_rpb"]]
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=5e-6 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case", [c for c in CASES if f"case{c['case']:02}.logits" in RECORDED], ids=lambda c: f"case{c['case']}"
)
def test_recorded_scores(case, backend):
    """One-hot values read out single attention weights: the softmax of the recorded logits."""
    name = f"case{case['case']:02}."
    q, k = (RECORDED[name + x].permute(0, 2, 3, 1, 4).double() for x in "qk")
    batch, height, width, heads, dim = q.shape
    kernel, dilation = case["kernel_size"], case["dilation"]
    tokens = height * width
    # D must hold one-hot values of all tokens, so q and k are filled up with zeros and the scale is given
    q, k = (torch.nn.functional.pad(x, (0, tokens - dim)) for x in (q, k))
    v = (
        torch.eye(tokens, dtype=torch.float64)
        .view(1, height, width, 1, tokens)
        .expand(batch, -1, -1, heads, -1)
    )
    weights = neighborhood_attention(
        q,
        k,
        v,
        kernel_size=kernel,
        dilation=dilation,
        rpb=RECORDED[name + "rpb"].double(),
        scale=case["scale"],
        backend=backend,
    )
    weights = weights.flatten(1, 2).permute(0, 2, 1, 3)  # [B, N, L, L]
    assert ((weights > 0).sum(-1) == kernel**2).all()
    actual = weights[weights > 0].view(batch, heads, height, width, kernel**2)
    wanted = RECORDED[name + "logits"].double().softmax(-1)
    torch.testing.assert_close(actual, wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_window_is_exact(shape, backend):
    """With q = 0 and no bias, one-hot values come out as 0 or 1 / k^2: nothing can hide a wrong neighbor."""
    height, width, kernels, dilations = shape
    tokens, heads = height * width, len(kernels)
    v = torch.eye(tokens).view(1, height, width, 1, tokens).expand(-1, -1, -1, heads, -1)
    weights = neighborhood_attention(
        torch.zeros_like(v), torch.zeros_like(v), v, kernel_size=kernels, dilation=dilations, backend=backend
    )
    for head, (kernel, dilation) in enumerate(zip(kernels, dilations, strict=True)):
        seen = weights[0, :, :, head].reshape(height, width, height, width)
        assert (((seen - 1 / kernel**2).abs() < 1e-6) | (seen == 0)).all()
        for i, j in [(0, 0), (height - 1, width - 1), (height // 2, width // 3), (1, width - 2)]:
            rows, columns = (
                sorted(range(p % dilation, size, dilation), key=lambda x: (abs(x - p), x))
                for p, size in ((i, height), (j, width))
            )
            # the k nearest of the own residue group are the window, since the clamped window stays a run
            rows, columns = set(rows[:kernel]), set(columns[:kernel])
            found = {(int(a), int(b)) for a, b in seen[i, j].nonzero()}
            assert found == {(a, b) for a in rows for b in columns}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("tiled", torch.float64, 1e-12),  # rounding of sums over a few hundred terms
        ("gather", torch.float64, 1e-12),
        ("tiled", torch.float32, 2e-5),  # the same, with logits up to 30
        ("gather", torch.float32, 2e-5),
        ("tiled", torch.bfloat16, 4e-2),  # inputs and outputs carry 8 bits, sums are kept in float32
        ("tiled", torch.float16, 1e-2),  # 11 bits
    ],
    ids=str,
)
def test_agrees_with_the_reference(shape, dtype, tolerance, backend):
    inputs = random_inputs(shape, dtype)
    options = {"kernel_size": shape[2], "dilation": shape[3]}
    actual = forward_and_gradients(*inputs, **options, backend=backend)
    wanted = forward_and_gradients(*(x.double() for x in inputs), **options, backend="reference")
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == dtype
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), w, atol=tolerance * max(1, w.abs().max().item()), rtol=0)


def test_large_logits_stay_finite():
    inputs = random_inputs((16, 16, (7, 7), (1, 2)), torch.float32, spread=60.0)
    results = forward_and_gradients(*inputs, kernel_size=7, dilation=(1, 2), backend="tiled")
    assert all(torch.isfinite(x).all() for x in results)


def test_second_derivatives_agree_with_the_reference():
    """A penalty on the gradient, as path-length regularisation has it, differentiates twice."""
    q, k, v, upstream, rpb = random_inputs((14, 11, (3, 5), (2, 1)), dim=3, batch=1)

    def penalty_gradients(backend):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, rpb)]
        out = neighborhood_attention(
            *leaves[:3], kernel_size=(3, 5), dilation=(2, 1), rpb=leaves[3], backend=backend
        )
        grads = torch.autograd.grad((out * upstream).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    for actual, wanted in zip(penalty_gradients("tiled"), penalty_gradients("reference"), strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-10, rtol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, inside jvp
def test_forward_mode_and_functional_transforms():
    q, k, v, upstream, rpb = random_inputs((9, 8, (3, 5), (2, 1)), dim=3, batch=1)

    def loss(q, rpb, backend):
        out = neighborhood_attention(q, k, v, kernel_size=(3, 5), dilation=(2, 1), rpb=rpb, backend=backend)
        return (out * upstream).sum()

    def jvp(backend):
        return torch.func.jvp(lambda rpb: loss(q, rpb, backend), (rpb,), (rpb,))[1]

    torch.testing.assert_close(jvp("auto"), jvp("reference"), atol=1e-10, rtol=0)
    assert jvp("auto").abs() > 1e-3
    grads = [torch.func.grad(loss, argnums=(0, 1))(q, rpb, backend) for backend in ("auto", "reference")]
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-10, rtol=0)
    for name, tensor in (("q", q), ("k", k), ("v", v)):  # whichever is transformed

        def attend(x, name=name):
            tensors = {"q": q, "k": k, "v": v, name: x}
            return neighborhood_attention(*tensors.values(), kernel_size=3, rpb=rpb[:, 2:-2, 2:-2])

        many = torch.stack([tensor, 2 * tensor])
        torch.testing.assert_close(torch.func.vmap(attend)(many), torch.stack([attend(x) for x in many]))
        with torch.autograd.forward_ad.dual_level():
            dual = attend(torch.autograd.forward_ad.make_dual(tensor, tensor))
            assert torch.autograd.forward_ad.unpack_dual(dual).tangent.abs().sum() > 0
    with pytest.raises(InputError, match="'tiled' cannot do this: it does not go with forward-mode"):
        jvp("tiled")


def test_only_the_wanted_gradients():
    """A frozen bias or query must not stop the others, nor get a gradient itself."""
    q, k, v, upstream, rpb = random_inputs((14, 14, (7,), (2,)), dim=4)
    v.requires_grad_()
    neighborhood_attention(q, k, v, kernel_size=7, dilation=2, rpb=rpb).backward(upstream)
    assert q.grad is None and rpb.grad is None and v.grad.abs().sum() > 0


def test_tables_per_partition_equal_one_table():
    q, k, v, _, rpb = random_inputs((21, 21, (7, 7, 7), (1, 3, 3)))
    one = neighborhood_attention(q, k, v, kernel_size=7, dilation=(1, 3, 3), rpb=rpb)
    several = neighborhood_attention(q, k, v, kernel_size=7, dilation=(1, 3, 3), rpb=[rpb[:1], rpb[1:]])
    assert torch.equal(one, several)


def test_a_smaller_kernel_reads_the_centre_of_the_table():
    q, k, v, _, rpb = random_inputs((9, 9, (7, 3), (1, 1)))
    mixed = neighborhood_attention(q, k, v, kernel_size=(7, 3), rpb=rpb)
    small = neighborhood_attention(
        q[..., 1:, :], k[..., 1:, :], v[..., 1:, :], kernel_size=3, rpb=rpb[1:, 4:-4, 4:-4].contiguous()
    )
    torch.testing.assert_close(mixed[..., 1:, :], small, atol=1e-12, rtol=0)


def problems_per_call(monkeypatch):
    """Spy: (tiles * heads, bytes of q, k and v) of every call of scaled_dot_product_attention."""
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **options):
        calls.append((len(q) * q.shape[1], 4 * (q.numel() + k.numel() + v.numel())))
        return attend(q, k, v, **options)

    monkeypatch.setattr(tiled.F, "scaled_dot_product_attention", spy)
    return calls


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_do_not_change_the_result(shape, monkeypatch):
    inputs = random_inputs(shape)
    options = {"kernel_size": shape[2], "dilation": shape[3], "backend": "tiled"}
    whole = forward_and_gradients(*inputs, **options)
    monkeypatch.setitem(tiled.CHUNK_BYTES, "cpu", 1)  # every tile by itself
    calls = problems_per_call(monkeypatch)
    for actual, wanted in zip(forward_and_gradients(*inputs, **options), whole, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=0)
    assert max(problems for problems, _ in calls) <= max(shape[2].count(k) for k in shape[2])


def test_memory_is_bounded(monkeypatch):
    """However large the picture and the batch, one call works on tiles of a few megabytes."""
    calls = problems_per_call(monkeypatch)
    q = torch.zeros(2, 128, 128, 2, 16)
    neighborhood_attention(q, q, q, kernel_size=7, dilation=(1, 4))
    assert max(size for _, size in calls) <= tiled.CHUNK_BYTES["cpu"]
    assert sum(size for _, size in calls) > 3 * tiled.CHUNK_BYTES["cpu"]


def test_batch_larger_than_the_grid_of_one_call(monkeypatch):
    """CUDA takes at most 65,535 problems at once; with a small limit the cut must not show."""
    inputs = random_inputs((16, 16, (7, 7), (2, 2)), batch=5)
    options = {"kernel_size": 7, "dilation": 2, "backend": "tiled"}
    whole = forward_and_gradients(*inputs, **options)
    monkeypatch.setattr(tiled, "MAX_PROBLEMS", 6)
    calls = problems_per_call(monkeypatch)
    for actual, wanted in zip(forward_and_gradients(*inputs, **options), whole, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=0)
    assert max(problems for problems, _ in calls) <= 6


def test_half_precision_gradients_are_summed_in_float32():
    """The bias gets its gradient from every token: summed in 8 bits it would be far off."""
    inputs = random_inputs((64, 64, (7,), (1,)), torch.bfloat16, batch=4)
    actual = forward_and_gradients(*inputs, kernel_size=7, dilation=1, backend="tiled")[-1]
    wanted = forward_and_gradients(
        *(x.double() for x in inputs), kernel_size=7, dilation=1, backend="gather"
    )[-1]
    torch.testing.assert_close(actual.double(), wanted, atol=0.006 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size is 4; allowed: odd"),
        ({"kernel_size": 1}, "kernel_size is 1; allowed: odd numbers from 3"),
        ({"kernel_size": 7, "dilation": 2}, r"7 \* 2 = 14 on a grid of 8 x 9"),
        ({"kernel_size": 3, "dilation": 0}, "dilation is 0"),
        ({"kernel_size": (3, 3, 3)}, "3 values; allowed: one number, or one per head"),
        ({"kernel_size": 3.0}, "whole numbers"),
        ({"kernel_size": 3, "rpb": torch.zeros(2, 5, 6)}, r"\(2, 5, 6\).*need \(2, 5, 5\)"),
        ({"kernel_size": 3, "rpb": [torch.zeros(1, 5, 5)]}, r"hold \[1\] heads"),
        ({"kernel_size": 3, "rpb": [None, None]}, "rpb is neither None, nor a tensor, nor a list"),
        ({"kernel_size": (3, 5), "rpb": [torch.zeros(2, 9, 9)]}, "several kernel sizes or dilations"),
        ({"kernel_size": 3, "backend": "natten"}, "no attention backend 'natten'; allowed: auto, tiled"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_bad_arguments_say_what_is_allowed(options, message):
    q = torch.zeros(1, 8, 9, 2, 4)
    with pytest.raises(InputError, match=message):
        neighborhood_attention(q, q, q, **options)


def test_bad_tensors_say_what_is_allowed():
    q = torch.zeros(1, 8, 9, 2, 4)
    for rpb in (torch.zeros(2, 5, 5, device="meta"), torch.zeros(2, 5, 5, dtype=torch.int)):
        with pytest.raises(InputError, match="must be a floating type on the device of q, cpu"):
            neighborhood_attention(q, q, q, kernel_size=3, rpb=rpb)
    for tensors, message in [
        ((q[0], q[0], q[0]), r"allowed: \[batch, height, width, heads, head dim\]"),
        ((q, q[:, :, :8], q), "they must agree"),
        ((q, q, q.double()), "allowed: one of torch.float64"),
        ((q.int(), q.int(), q.int()), "allowed: one of torch.float64"),
        ((q[:0], q[:0], q[:0]), "every size must be 1 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            neighborhood_attention(*tensors, kernel_size=3)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.bfloat16, 4e-2), (torch.float16, 1e-2)], ids=str
)
def test_gpu_agrees_with_the_reference(shape, dtype, tolerance):
    inputs = random_inputs(shape, dtype, dim=8)
    options = {"kernel_size": shape[2], "dilation": shape[3]}
    actual = forward_and_gradients(*(x.cuda() for x in inputs), **options, backend="auto")
    wanted = forward_and_gradients(*(x.double() for x in inputs), **options, backend="reference")
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a.cpu().double(), w, atol=tolerance * max(1, w.abs().max().item()), rtol=0)

"""Neighborhood attention as small dense attentions: tiles of queries with all the keys that they can see.

Legend: B batch, H,W tokens, n heads of one group, D head dim; R residues and P positions of an axis under
dilation; T tiles of an axis, qh,qw queries and kh,kw keys of one tile; Q = qh * qw, K = kh * kw.

A dilation splits the grid into residue groups that never see each other, so every group is cut by itself into
tiles of about 8 x 8 queries. Neighboring queries share most of their keys: a tile needs (8 + k - 1)^2 keys
where a gather of neighbors moves 64 k^2. Keys outside a query's own window are masked by -inf in the bias,
which is added inside `scaled_dot_product_attention`. Tiles that see their keys alike (the first, the inner
ones, the last of an axis) share one bias. Work goes chunk by chunk, so the memory beyond inputs and output is
bounded, in the backward pass too: it recomputes the weights instead of keeping them. Plain PyTorch: any
device, any floating dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils.weak import WeakTensorKeyDictionary

from stylenat_hub.attention import gather
from stylenat_hub.attention.geometry import bias_index, group_length, window_start
from stylenat_hub.attention.groups import HeadGroup, attend_by_group

TILE = 8  # queries a side; larger tiles mask more keys in vain, smaller ones copy more keys
CHUNK_BYTES = {"cpu": 4 << 20}  # a chunk's tiles stay in the cache of a CPU core ...
DEFAULT_CHUNK_BYTES = 512 << 20  # ... while a GPU wants all the work it can get at once
MAX_PROBLEMS = 65_535  # CUDA's limit on tiles * heads in one scaled_dot_product_attention

# biases per table: one grid needs up to 64, and a table that sees many sizes must not fill the memory
MAX_CACHED = 64
_bias_cache = WeakTensorKeyDictionary()  # table -> {geometry: (copy of the table, bias)}


def unsupported(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Sequence[HeadGroup]) -> str | None:
    """Why this backend cannot do the job, or None."""
    if torch.compiler.is_compiling():
        return None
    # It works in place and has a backward pass only, which functional transforms cannot follow.
    for x in (q, k, v, *(group.table for group in groups if group.table is not None)):
        if (
            torch._C._functorch.is_functorch_wrapped_tensor(x)
            or forward_ad.unpack_dual(x).tangent is not None
        ):
            return "it does not go with forward-mode derivatives or transforms of torch.func"
    return None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Sequence[HeadGroup], scale: float
) -> torch.Tensor:
    """q, k, v [B, H, W, N, D] -> [B, H, W, N, D]."""
    tables = [group.table for group in groups if group.table is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *tables)):
        return attend_by_group(_attend_with_gradients, q, k, v, groups, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in groups:
        _forward(*(x[:, :, :, group.heads] for x in (q, k, v, out)), group, scale)
    return out


def _attend_with_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: HeadGroup, scale: float
) -> torch.Tensor:
    return _TiledAttention.apply(q, k, v, group.table, group, scale)


class _TiledAttention(torch.autograd.Function):
    """One head group with gradients for q, k, v and the table."""

    @staticmethod
    def forward(ctx, q, k, v, table, group, scale):
        ctx.save_for_backward(q, k, v, table)
        ctx.heads, ctx.window, ctx.scale = group.num_heads, (group.kernel_size, group.dilation), scale
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _forward(q, k, v, out, group, scale)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, table = ctx.saved_tensors
        group = HeadGroup(0, ctx.heads, *ctx.window, table)
        if not torch.is_grad_enabled():
            return (*_backward(q, k, v, grad, group, ctx.scale), None, None)
        # create_graph: somebody wants second derivatives, which the gather formulation has by itself.
        out = gather.attend(q, k, v, [group], ctx.scale)
        wanted = [x for x, needed in zip((q, k, v, table), ctx.needs_input_grad, strict=False) if needed]
        grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        return (*(next(grads) if needed else None for needed in ctx.needs_input_grad[:4]), None, None)


# --- geometry --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Run:
    """Consecutive tiles of one axis of a residue group that see their keys alike."""

    first_residue: int
    last_residue: int  # exclusive
    tiles: int
    queries: int
    keys: int
    first_query: int
    first_key: int
    step: int
    rows: tuple[tuple[int, ...], ...]  # [queries][keys]: row of the bias table, -1 where unseen


@functools.lru_cache(maxsize=512)
def _axis_runs(length: int, kernel_size: int, dilation: int) -> tuple[_Run, ...]:
    """All tiles of an axis; residues whose groups are one token longer than the others come first."""
    longer = length % dilation
    classes = [(0, longer), (longer, dilation)] if longer else [(0, dilation)]
    return tuple(
        run
        for residues in classes
        for run in _group_runs(group_length(length, dilation, residues[0]), kernel_size, residues)
    )


def _group_runs(length: int, kernel_size: int, residues: tuple[int, int]) -> list[_Run]:
    step = math.ceil(length / math.ceil(length / TILE))  # evened out: 9 tokens are 5 + 4, not 8 + 1
    runs: list[_Run] = []
    for first in range(0, length, step):
        queries = range(first, min(first + step, length))
        low = window_start(first, length, kernel_size)
        high = window_start(queries[-1], length, kernel_size) + kernel_size
        rows = tuple(
            tuple(
                bias_index(key, query, kernel_size) if 0 <= key - start < kernel_size else -1
                for key in range(low, high)
            )
            for query in queries
            for start in [window_start(query, length, kernel_size)]
        )
        last = runs[-1] if runs else None
        if last and last.rows == rows and last.first_key + last.tiles * step == low:
            runs[-1] = dataclasses.replace(last, tiles=last.tiles + 1)
        else:
            runs.append(_Run(*residues, 1, len(queries), high - low, first, low, step, rows))
    return runs


def _residue_grid(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """[B, H, W, n, D] -> view [B, Rh, Rw, Ph, Pw, n, D]; H and W must be multiples of the dilation."""
    x = x.unflatten(2, (-1, dilation)).unflatten(1, (-1, dilation))
    return x.permute(0, 2, 4, 1, 3, 5, 6)


def _windows(grid: torch.Tensor, rows: _Run, columns: _Run, *, keys: bool) -> torch.Tensor:
    """The tiles' queries, or their overlapping windows of keys: view [B, Rh, Rw, Th, Tw, h, w, n, D]."""
    grid = grid[:, rows.first_residue : rows.last_residue, columns.first_residue : columns.last_residue]
    for dim, run in ((3, rows), (4, columns)):
        first, size = (run.first_key, run.keys) if keys else (run.first_query, run.queries)
        # unfold moves the window to the end and leaves the tiles in the place of the positions
        grid = grid.narrow(dim, first, (run.tiles - 1) * run.step + size).unfold(dim, size, run.step)
    return grid.permute(0, 1, 2, 3, 4, 7, 8, 5, 6)


def _pad(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """Zeros at the bottom and right up to a multiple of the dilation; no window reaches them."""
    bottom, right = -x.shape[1] % dilation, -x.shape[2] % dilation
    return F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom)) if bottom or right else x


def _pieces(shape: Sequence[int], group: HeadGroup) -> Iterator[tuple[_Run, _Run]]:
    height, width = shape[1:3]
    rows = _axis_runs(height, group.kernel_size, group.dilation)
    return itertools.product(rows, _axis_runs(width, group.kernel_size, group.dilation))


def _chunks(
    lead: Sequence[int], rows: _Run, columns: _Run, x: torch.Tensor, copies: int
) -> Iterator[tuple[slice, ...]]:
    """Cut the leading sizes [B, Rh, Rw, Th, Tw] into blocks whose tiles fit the memory budget.

    copies: how many [Q, K] matrices per head the caller keeps at a time.
    """
    heads, dim = x.shape[3:]
    queries, keys = rows.queries * columns.queries, rows.keys * columns.keys
    tile_bytes = heads * x.element_size() * (2 * (queries + keys) * dim + copies * queries * keys)
    budget = CHUNK_BYTES.get(x.device.type, DEFAULT_CHUNK_BYTES)
    limit = max(1, min(budget // tile_bytes, MAX_PROBLEMS // heads))
    steps = []
    for size in reversed(lead):  # keep the inner sizes whole as long as they fit
        steps.append(min(size, limit))
        limit = max(1, limit // size)
    cuts = [
        [slice(i, i + step) for i in range(0, size, step)]
        for size, step in zip(lead, reversed(steps), strict=True)
    ]
    return itertools.product(*cuts)


# --- bias ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def _bias_rows(rows: _Run, columns: _Run, kernel_size: int, device: torch.device) -> torch.Tensor:
    """[Q * K] int64: place of each pair in the flattened table; (2k-1)^2, one past its end, where unseen."""
    side = 2 * kernel_size - 1
    with torch.inference_mode(False):  # cached, and gradients may need it later
        row, column = (torch.tensor(run.rows, device="cpu") for run in (rows, columns))
        row, column = row[:, None, :, None], column[None, :, None, :]  # [qh, qw, kh, kw] when broadcast
        return torch.where((row < 0) | (column < 0), side * side, row * side + column).flatten().to(device)


def _bias(group: HeadGroup, rows: _Run, columns: _Run, like: torch.Tensor) -> torch.Tensor:
    """[n or 1, Q, K]: the bias of every pair of a tile, -inf where the query does not see the key."""
    table, key = group.table, (rows, columns, like.dtype)
    # Comparing the small table with its copy catches every way of changing weights, `.data` too. On other
    # devices the comparison would wait for the queue, and the bias is cheap there. A view is a new object at
    # every call, so it would never be found again.
    if table is None or table.device.type != "cpu" or table._is_view() or torch.compiler.is_compiling():
        return _build_bias(group, rows, columns, like)
    cache = _bias_cache.setdefault(table, {})
    entry = cache.get(key)
    if entry is None or not torch.equal(entry[0], table):
        if len(cache) >= MAX_CACHED:  # only where something comes in: a full cache must still be one
            cache.clear()
        entry = cache[key] = (table.detach().clone(), _build_bias(group, rows, columns, like))
    return entry[1]


def _build_bias(group: HeadGroup, rows: _Run, columns: _Run, like: torch.Tensor) -> torch.Tensor:
    index = _bias_rows(rows, columns, group.kernel_size, like.device)
    side = 2 * group.kernel_size - 1
    flat = torch.zeros(1, side * side, dtype=like.dtype, device=like.device)
    if group.table is not None:
        flat = group.table.detach().to(like.dtype).flatten(1)
    flat = F.pad(flat, (0, 1), value=-torch.inf)
    return flat[:, index].unflatten(1, (rows.queries * columns.queries, rows.keys * columns.keys))


# --- work ------------------------------------------------------------------------------------------------


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, group: HeadGroup, scale: float
) -> None:
    """Fill `out` [B, H, W, n, D], which may be a view."""
    shape, dilation = q.shape, group.dilation
    q, k, v = (_pad(x, dilation) for x in (q, k, v))
    padded = out if q.shape == shape else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grids = [_residue_grid(x, dilation) for x in (q, k, v, padded)]
    for rows, columns in _pieces(shape, group):
        bias = _bias(group, rows, columns, q)
        queries, results = (_windows(grids[i], rows, columns, keys=False) for i in (0, 3))
        keys, values = (_windows(grids[i], rows, columns, keys=True) for i in (1, 2))
        for part in _chunks(queries.shape[:5], rows, columns, q, copies=0 if q.device.type == "cpu" else 2):
            tiles = F.scaled_dot_product_attention(
                *(_tiles(x[part]) for x in (queries, keys, values)), attn_mask=bias[None], scale=scale
            )
            result = results[part]
            result.copy_(tiles.transpose(1, 2).reshape(result.shape))
    if padded is not out:
        out.copy_(padded[:, : shape[1], : shape[2]])


def _tiles(windows: torch.Tensor) -> torch.Tensor:
    """[..., h, w, n, D] -> [tiles, n, h * w, D], heads last in memory as in the input."""
    height, width, heads, dim = windows.shape[5:]
    return windows.reshape(-1, height * width, heads, dim).transpose(1, 2)


def _backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, group: HeadGroup, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of q, k, v and the table. Half precision is summed in float32."""
    shape, dilation = q.shape, group.dilation
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    padded = [_pad(x, dilation) for x in (q, grad, k, v)]
    grads = [torch.zeros(padded[0].shape, dtype=wide, device=q.device) for _ in range(3)]
    side = 2 * group.kernel_size - 1
    flat = torch.zeros(group.num_heads, side * side + 1, dtype=wide, device=q.device)
    inputs = [_residue_grid(x, dilation) for x in padded]
    outputs = [_residue_grid(x, dilation) for x in grads]
    for rows, columns in _pieces(shape, group):
        bias = _bias(group, rows, columns, q).to(wide)
        parts = [_windows(x, rows, columns, keys=i > 1) for i, x in enumerate(inputs)]
        sums = [_windows(x, rows, columns, keys=i > 0) for i, x in enumerate(outputs)]
        grad_bias = torch.zeros(group.num_heads, *bias.shape[1:], dtype=wide, device=q.device)
        for part in _chunks(parts[0].shape[:5], rows, columns, grads[0], copies=4):
            *tiles, grad_scores = _tile_gradients(*(_tiles(x[part]).to(wide) for x in parts), bias, scale)
            for total, tile, overlap in zip(sums, tiles, (False, True, True), strict=True):
                _add_windows(total[part], tile, rows, columns, overlap)
            grad_bias += grad_scores.sum(0)
        flat.index_add_(1, _bias_rows(rows, columns, group.kernel_size, q.device), grad_bias.flatten(1))
    grads = [x[:, : shape[1], : shape[2]].to(q.dtype) for x in grads]
    if group.table is None:
        return (*grads, None)
    return (*grads, flat[:, :-1].unflatten(1, (side, side)).to(group.table.dtype))


def _tile_gradients(
    q: torch.Tensor, grad: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k, v [tiles, n, Q or K, D] and of the scores [tiles, n, Q, K]."""
    weights = torch.softmax((q * scale) @ k.transpose(-1, -2) + bias, dim=-1)
    grad_v = weights.transpose(-1, -2) @ grad
    grad_scores = grad @ v.transpose(-1, -2)
    grad_scores = weights * (grad_scores - (weights * grad_scores).sum(-1, keepdim=True))
    return grad_scores @ k * scale, grad_scores.transpose(-1, -2) @ q * scale, grad_v, grad_scores


def _add_windows(total: torch.Tensor, tiles: torch.Tensor, rows: _Run, columns: _Run, overlap: bool) -> None:
    """Add tiles [tiles, n, h * w, D] to windows [..., Th, Tw, h, w, n, D]; those of keys overlap."""
    tiles = tiles.transpose(1, 2).reshape(total.shape)
    if not overlap:
        total.copy_(tiles)
        return
    # Windows that are far enough apart share no token, so that an in-place sum over them is well defined.
    apart = [math.ceil(run.keys / run.step) for run in (rows, columns)]
    for i, j in itertools.product(range(apart[0]), range(apart[1])):
        total[:, :, :, i :: apart[0], j :: apart[1]].add_(tiles[:, :, :, i :: apart[0], j :: apart[1]])

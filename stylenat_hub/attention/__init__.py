"""Neighborhood attention (NA) with dilation and relative position bias, for whole Hydra layers.

One function, several backends behind it. Each backend is a module with `unsupported(q, k, v, groups)`, which
says why not or None, and `attend(q, k, v, groups, scale)`; `auto` takes the first one of `AUTO` that supports
the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch

from stylenat_hub.attention import gather, reference, tiled
from stylenat_hub.attention.groups import HeadGroup, head_groups
from stylenat_hub.errors import InputError

BACKENDS = {"tiled": tiled, "gather": gather, "reference": reference}
AUTO = ("tiled", "gather")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_auto: ContextVar[str] = ContextVar("auto", default="auto")  # what `use_backend` puts in its place


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    rpb: torch.Tensor | Sequence[torch.Tensor] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """softmax(scale * q k + rpb) v over the kernel_size x kernel_size neighbors of every query.

    Args:
        q, k, v: [B, H, W, N, D] (heads last), float64, float32, bfloat16 or float16, any device.
        kernel_size, dilation: one number, or one per head; odd from 3; kernel_size * dilation <= min(H, W).
        rpb: [N, 2k-1, 2k-1], height first, k the largest kernel size (a head with a smaller one reads the
            centre), or one table [n, 2k-1, 2k-1] for each run of n equal heads.
        scale: factor on q k; D ** -0.5 by default.
        backend: "auto", "tiled", "gather" or "reference".

    Returns:
        [B, H, W, N, D] in the dtype of q. First derivatives of all tensors; second derivatives, forward mode
        and transforms of torch.func too, at the cost of `gather`'s memory.

    Raises:
        InputError: shapes, sizes or dtypes that do not fit, or a backend that cannot do the job.

    Source: arXiv 2204.07143 (NA), 2209.15001 (dilation), 2211.05770 (partitions). Borders: `geometry`.
    """
    _check(q, k, v)
    groups = head_groups(q.shape[3], kernel_size, dilation, rpb)
    for group in groups:
        reach = group.kernel_size * group.dilation
        if reach > min(q.shape[1:3]):
            raise InputError(
                f"kernel_size * dilation is {group.kernel_size} * {group.dilation} = {reach} on a grid of "
                f"{q.shape[1]} x {q.shape[2]} tokens; it must not exceed the smaller side"
            )
        table = group.table
        if table is not None and (table.device != q.device or not table.is_floating_point()):
            raise InputError(
                f"rpb is {table.dtype} on {table.device}; it must be a floating type on the "
                f"device of q, {q.device}"
            )
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return _backend(backend, q, k, v, groups).attend(q, k, v, groups, scale)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let "auto" mean one backend inside a `with`, for whole models: to debug or to compare.

    Other threads are not affected. Gradient checkpointing runs forward passes again, outside of it if the
    gradient is taken outside. Raises `InputError` for an unknown name.
    """
    if name not in BACKENDS:
        raise InputError(f"there is no attention backend {name!r}; allowed: {', '.join(BACKENDS)}")
    token = _auto.set(name)
    try:
        yield
    finally:
        _auto.reset(token)


def keep_out_of_compilation() -> None:
    """Have torch.compile call attention as it is, from now on in this process: unrolled, its loops over tiles
    take the compiler minutes per model."""
    for backend in BACKENDS.values():
        backend.attend = torch.compiler.disable(backend.attend)


def _backend(
    name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Sequence[HeadGroup]
) -> object:
    name = _auto.get() if name == "auto" else name
    if name == "auto":
        reasons = {candidate: BACKENDS[candidate].unsupported(q, k, v, groups) for candidate in AUTO}
        for candidate, reason in reasons.items():
            if reason is None:
                return BACKENDS[candidate]
        raise InputError(
            "no attention backend can do this: " + "; ".join(f"{n}: {r}" for n, r in reasons.items())
        )
    if name not in BACKENDS:
        raise InputError(f"there is no attention backend {name!r}; allowed: auto, {', '.join(BACKENDS)}")
    reason = BACKENDS[name].unsupported(q, k, v, groups)
    if reason is not None:
        raise InputError(f"the attention backend {name!r} cannot do this: {reason}")
    return BACKENDS[name]


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.dim() != 5:
        raise InputError(
            f"q has the shape {tuple(q.shape)}; allowed: [batch, height, width, heads, head dim]"
        )
    if q.shape != k.shape or q.shape != v.shape:
        raise InputError(
            f"q, k, v have the shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; they must agree"
        )
    if q.dtype not in DTYPES or q.dtype != k.dtype or q.dtype != v.dtype:
        raise InputError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; allowed: one of {', '.join(map(str, DTYPES))}"
        )
    if q.device != k.device or q.device != v.device:
        raise InputError(f"q, k, v are on {q.device}, {k.device}, {v.device}; they must be on one device")
    if q.numel() == 0:
        raise InputError(f"q has the shape {tuple(q.shape)}; every size must be 1 or more")

"""Features that do not depend on who else is computed, or on what the caller has switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

TOGETHER = 32  # pictures at a time on an accelerator


@contextmanager
def exact() -> Iterator[None]:
    """Full float32 inside, whatever the caller has switched on: no gradients, no autocast, no TF32, and
    kernels that give the same result each time."""
    precision = torch.get_float32_matmul_precision()
    devices = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    try:
        torch.set_float32_matmul_precision("highest")
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with torch.no_grad(), flags, _no_autocast(devices):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _no_autocast(devices: list[str]) -> Iterator[None]:
    if not devices:
        yield
        return
    with torch.autocast(devices[0], enabled=False), _no_autocast(devices[1:]):
        yield


def in_equal_batches(
    network: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    preprocess: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Send pictures [B, ...] through the network in batches that are all of one size, so that neither B nor a
    picture's place decides which kernels compute it: 1 on a CPU, elsewhere `TOGETHER`, filled up by zeros."""
    size = 1 if device.type == "cpu" else TOGETHER
    features, logits = [], []
    for some in images.split(size):
        prepared = preprocess(some)
        if len(some) < size:
            prepared = torch.cat([prepared, prepared.new_zeros(size - len(some), *prepared.shape[1:])])
        feature, logit = network(prepared)
        features.append(feature[: len(some)])
        logits.append(None if logit is None else logit[: len(some)])
    if any(logit is None for logit in logits):
        return torch.cat(features), None
    return torch.cat(features), torch.cat(logits)

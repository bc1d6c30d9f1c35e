"""Which attention of a generator is meant, and watching it while one picture is drawn."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from stylenat_hub.errors import InputError
from stylenat_hub.layers.partitions import AttentionSite
from stylenat_hub.models.base import Generator


def site_at(generator: Generator, level: int | None = None, block: int | None = None) -> AttentionSite:
    """The self-attention of a level, by default the finest that has one, and of a block of it, counted from 1
    on, by default the last.

    Raises `InputError`, naming those that there are.
    """
    sites = generator.attention_sites()
    levels = sorted({site.level for site in sites})
    if not levels:
        raise InputError(f"this {type(generator).__name__} has no self-attention at any level")
    level = levels[-1] if level is None else level
    there = [site for site in sites if site.level == level]
    if not there:
        raise InputError(
            f"this {type(generator).__name__} has no self-attention at a level of {level!r} px; levels with "
            f"one: {', '.join(map(str, levels))}"
        )
    blocks = [site.block for site in there]
    found = [site for site in there if site.block == (blocks[-1] if block is None else block)]
    if not found:
        raise InputError(
            f"the level of {level} px has no block {block!r}; blocks with self-attention: "
            f"{', '.join(map(str, blocks))}"
        )
    return found[0]


@contextlib.contextmanager
def watching(module: nn.Module, method: str, see: Callable[..., None]) -> Iterator[None]:
    """Let `see` have what a module's method gets, before the method does its work, inside a `with`: in the
    order of the method's arguments, also those given by name.

    The method is replaced on this one module and put back, also after an error. Other threads that draw with
    the same generator at that time are not seen and not disturbed; two that watch the same module are not
    provided for.
    """
    original, watched_thread = getattr(module, method), threading.get_ident()

    def watched(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == watched_thread:
            see(*inspect.signature(original).bind(*args, **kwargs).args)
        return original(*args, **kwargs)

    setattr(module, method, watched)
    try:
        yield
    finally:
        delattr(module, method)


@torch.no_grad()
def draw_watching(
    generator: Generator, ws: torch.Tensor, module: nn.Module, method: str, see: Callable[..., None]
) -> torch.Tensor:
    """Draw styles [1, num_ws, w_dim] and let `see` have what the module's method gets -> RGB in [0, 1],
    [3, R, R], float32 on the CPU: to the bit what is drawn unwatched.

    Raises `InputError`: more pictures than one, styles of another shape, or a picture that is not finite.
    """
    generator.check_styles(ws)
    if len(ws) != 1:
        raise InputError(f"attention is looked at in one picture at a time, and these are {len(ws)} styles")
    with watching(module, method, see):
        image = generator.synthesis(ws.to(device=generator.device, dtype=generator.dtype))
    if not torch.isfinite(image).all():
        raise InputError(
            f"the network's output in {generator.dtype} holds NaN or infinity; use dtype float32 or bfloat16"
        )
    return generator.to_rgb01(image.float()).cpu()[0]

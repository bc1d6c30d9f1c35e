"""Hugging Face's ZeroGPU lends a GPU for single calls: there what draws is wrapped, elsewhere left alone.

Its package is called `spaces`, as this project's folder is, so what counts is whether it has `GPU`. It is
installed on other Spaces too, where `GPU` does nothing: a variable tells where a GPU is lent. It wants to be
imported before torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any


def _lender() -> Callable[..., Any] | None:
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true", "on", "yes"):
        return None
    try:
        return getattr(importlib.import_module("spaces"), "GPU", None)
    except ImportError:
        return None


LENDER = _lender()


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is to be called: on a ZeroGPU Space with a GPU for as long as it runs.

    It then runs in a process of its own: its arguments and results are pickled, it must take no lock, and
    what it changes is lost.
    """
    return LENDER(function) if LENDER else function

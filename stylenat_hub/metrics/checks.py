"""What the metrics ask of features, and of saved statistics.

Legend: B features of one batch, D their length.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stylenat_hub.errors import InputError

BLOCK = 2**10  # features that are turned into float64 at a time
SYMMETRIC = 1e-6  # of the largest entry: what float32 leaves of a matrix's symmetry


def check_features(features: torch.Tensor, name: str, dim: int | None = None) -> torch.Tensor:
    """The features without their gradient; raises `InputError` unless they are [B, D] of a float type, at
    least one, and finite. name: what the message calls them. dim: the only D allowed; None: any from 1."""
    wanted = f"[B, {'D' if dim is None else dim}]"
    fits = features.ndim == 2 and len(features) and features.shape[1] == (dim or max(1, features.shape[1]))
    if not fits or not features.is_floating_point():
        raise InputError(
            f"{name} are {list(features.shape)} of {features.dtype}; allowed: {wanted} of a float type, one "
            f"row per picture"
        )
    for rows in features.split(BLOCK):
        if not rows.isfinite().all():
            raise InputError(
                f"{name} are not all finite; allowed: finite numbers; look for broken pictures, or run the "
                f"network in float32"
            )
    return features.detach()


def to_float64(features: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU if the device has none."""
    return (features.to("cpu") if features.device.type == "mps" else features).double()


def check_names(state: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> None:
    if set(state) != set(names):
        raise InputError(f"the state has {sorted(state)}; allowed: {sorted(names)}")


def check_count(count: torch.Tensor) -> None:
    if count.dtype != torch.int64 or count.ndim or count < 0:
        raise InputError(f"count is {count.tolist()} of {count.dtype}; allowed: one int64 number from 0")


def check_matrix(matrix: torch.Tensor, name: str) -> None:
    """Raise `InputError` unless it is finite and symmetric."""
    if not matrix.isfinite().all():
        raise InputError(f"the {name} is not finite; allowed: finite numbers; gather the statistics again")
    if (matrix - matrix.T).abs().max() > SYMMETRIC * matrix.abs().max():
        raise InputError(f"the {name} is not symmetric; gather the statistics again")

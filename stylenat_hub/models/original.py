"""What reading any original's state dict takes: names by a table of patterns, weights and constants checked.

A family's `keys.py` passes the names and the constants of its own original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from stylenat_hub.errors import WeightsError, shown

State = Mapping[str, Tensor]
Rename = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_DIGITS = 9  # of a number in a name; Python turns no more than 4,300 into one


def patterns(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> tuple[Rename, ...]:
    """(regular expression of a whole original name, our name), compiled.

    Our name has the groups of the expression (`\\1`), or is made by a function of the match, where a number
    changes.
    """
    return tuple((re.compile(old), new) for old, new in pairs)


def renamed(name: str, renames: Iterable[Rename], title: str) -> str:
    """Our name of an original tensor, by the first of the `renames` that fits it.

    title: of the network, such as "StyleNAT generator". Raises `WeightsError` for a name that none of them
    fits.
    """
    for pattern, new in renames:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(new) if isinstance(new, str) else new(match)
    raise WeightsError(
        f"the checkpoint has a tensor {name!r} that a {title} does not have; it belongs to "
        "another project or to a variant that is not supported, and nothing is dropped silently"
    )


def taken(name: str, tensor: Tensor, kind: str = "tensor") -> Tensor:
    """A weight in float32, of its own memory. Raises `WeightsError` if it is not made of numbers that are
    finite there.

    kind: what errors call it; TensorFlow's are variables.
    """
    if not tensor.is_floating_point():
        raise WeightsError(
            f"the {kind} {name!r} has the type {tensor.dtype}, a weight is a floating-point number"
        )
    weight = tensor.detach().to(torch.float32).contiguous().clone()
    if not torch.isfinite(weight).all():
        beyond = torch.isfinite(tensor).all()  # float64's
        what = "values beyond float32's range" if beyond else "NaN or infinite values"
        raise WeightsError(
            f"the {kind} {name!r} holds {what}; this training run had diverged or the file is damaged: take "
            "an earlier checkpoint"
        )
    return weight


def check_constant(name: str, tensor: Tensor, expected: Tensor, title: str) -> None:
    """Raise `WeightsError` if a constant buffer has other values than the original code computes."""
    same = tensor.shape == expected.shape
    if not same or not torch.allclose(tensor.double(), expected.double(), atol=1e-6, rtol=0):
        raise other_values(name, title)


def other_values(name: str, title: str) -> WeightsError:
    """The error about a constant buffer with other values."""
    return WeightsError(
        f"the constant buffer {name!r} has other values than {title}'s own code computes; the "
        "checkpoint comes from a variant that is not supported, and its results would be wrong"
    )


def numbered(
    state: State, pattern: str, what: str, first: int, kind: str = "tensor", most: int | None = None
) -> int:
    """How many `what` there are; their numbers must run from `first` without a gap.

    kind: as in `taken`. most: so many can be; what is done for each of them has its bound here. Raises
    `WeightsError`.
    """
    matches = (re.fullmatch(pattern, name) for name in state)
    named = {match[1] for match in matches if match}
    if longest := max((name for name in named if len(name) > _DIGITS), key=len, default=""):
        raise WeightsError(
            f"the checkpoint numbers a {what} {shown(longest)}; they must run from {first} without a gap, so "
            "it is damaged or belongs to another project"
        )
    numbers = sorted(set(map(int, named)))
    if most is not None and len(numbers) > most:
        raise WeightsError(
            f"the checkpoint has {len(numbers):,} {what}s, and {most} at most are allowed; it is damaged or "
            "belongs to another project"
        )
    if not numbers or numbers != list(range(first, first + len(numbers))):
        raise WeightsError(
            f"the checkpoint numbers its {what}s {numbers or 'not at all'}; they must run from {first} "
            f"without a gap, so {kind}s are missing or it belongs to another project"
        )
    return len(numbers)


def shape_of(state: State, name: str, dims: int, kind: str = "tensor") -> tuple[int, ...]:
    """The shape of a tensor that must be there and have so many dimensions. kind: as in `taken`."""
    if name not in state:
        raise WeightsError(f"the checkpoint has no {kind} {name!r}; it is incomplete or of another project")
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise WeightsError(
            f"the {kind} {name!r} has the shape {list(shape)}; {dims} dimensions above 0 are needed"
        )
    return shape

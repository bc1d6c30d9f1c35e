"""Numbers that functions here are given: which are whole, and within their range."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from stylenat_hub.errors import InputError


def whole(what: str, value: Any, least: int, most: int) -> int:
    """The value as int, of whatever whole type, numpy's among them. Raises `InputError` unless it is a whole
    number from `least` to `most`."""
    number = None
    if not isinstance(value, (bool, np.bool_)) and hasattr(type(value), "__index__"):
        try:
            number = operator.index(value)
        except TypeError:  # an array of several, or a tensor of fractions
            number = None
    if number is None or not least <= number <= most:
        raise InputError(f"{what} is {value!r}; allowed: a whole number from {least} to {most:,}")
    return number


def not_negative(what: str, value: Any) -> float:
    """The value as float. Raises `InputError` unless it is a finite number, 0 or more."""
    real = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not real or not 0 <= value < math.inf:
        raise InputError(f"{what} is {value!r}; allowed: a finite number, 0 or more")
    return float(value)

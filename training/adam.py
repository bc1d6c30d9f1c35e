"""Adam with its epsilon where Keras has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class KerasAdam(torch.optim.Adam):
    """Adam that adds epsilon to the root of the second moment before its bias is corrected ("epsilon hat" of
    arXiv 1412.6980, section 2).

    That is torch's Adam with an epsilon of its own in each step, so state and arguments are torch's. All
    parameters of a group must have made equally many steps.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        given = [group["eps"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["eps"] /= math.sqrt(1 - group["betas"][1] ** (self._steps(group) + 1))
            return super().step(closure)
        finally:
            for group, eps in zip(self.param_groups, given, strict=True):
                group["eps"] = eps

    def _steps(self, group: dict[str, Any]) -> int:
        """How many steps the group has made; frozen parameters have no state."""
        return next((int(self.state[p]["step"]) for p in group["params"] if p in self.state), 0)

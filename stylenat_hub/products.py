"""The matrix products and convolutions of a piece of work: recorded as torch computes them, then computed
alone. Their time is a floor under the work's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# operation -> which arguments are the left and the right matrix, and which axis of the right one is its
# columns. Some devices have `linear` as one operation; a frozen layer multiplies what does not lie in one
# piece by `bmm`.
_MATRICES = {
    _ATEN.mm.default: (0, 1, -1),
    _ATEN.addmm.default: (1, 2, -1),
    _ATEN.bmm.default: (0, 1, -1),
    _ATEN.linear.default: (0, 1, 0),
}
_CONVOLUTIONS = (_ATEN.convolution.default, _ATEN.convolution_backward.default)

Call = tuple[Any, str, str]  # operation, path of the module that called it, arguments as text
Matrices = tuple[int, int, int]  # rows, inner size, columns of one matrix product


class Shape(tuple):
    """Shape, strides, type and device of a tensor, to make one like it."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Shape:
        return cls((tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device))

    def tensor(self) -> torch.Tensor:
        shape, stride, dtype, device = self
        # Through its storage, because an expanded tensor has several elements in one place.
        length = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        return torch.randn(length, device=device).to(dtype).as_strided(shape, stride)


def _counts(function: Any, args: tuple[Any, ...]) -> bool:
    """Of `bmm` only what has one matrix at the right, expanded: the others are attention's."""
    if function is _ATEN.bmm.default:
        return args[1].stride(0) == 0
    return function in _MATRICES or function in _CONVOLUTIONS


class Recorder(TorchDispatchMode):
    """Counts, while it is entered, the products of linear layers and convolutions, forward and backward, by
    operation, module and arguments (`calls`). Those inside attention are other operations and do not count.

    The module is the innermost one of `inside`; "" without it. `arguments` has those of each call, with a
    `Shape` in the place of each tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()
        self.arguments: dict[Call, tuple[Any, ...]] = {}
        self._path = [""]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _counts(function, args):
            plain = tuple(Shape.of(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)
            call = (function, self._path[-1], repr(plain))
            self.calls[call] += 1
            self.arguments[call] = plain
        return function(*args, **(kwargs or {}))

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Note in which of the model's modules each product is computed."""
        handles = []
        for path, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda *_, path=path: self._path.append(path)),
                module.register_forward_hook(lambda *_: self._leave(), always_call=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._path.pop()

    def matrices(self) -> list[tuple[str, Matrices]]:
        """Module and shape of each matrix product; a module that treats its rows in parts has one."""
        rows: Counter[tuple[str, int, int]] = Counter()
        for call, count in self.calls.items():
            if call[0] in _MATRICES:
                left, right, axis = _MATRICES[call[0]]
                shape, columns = self.arguments[call][left][0], self.arguments[call][right][0][axis]
                rows[call[1], shape[-1], columns] += count * math.prod(shape[:-1])
        return [(path, (total, inner, columns)) for (path, inner, columns), total in rows.items()]

    def convolutions(self) -> list[Call]:
        return [call for call in self.calls if call[0] in _CONVOLUTIONS]

    def replay(self, calls: Iterable[Call] | None = None) -> Callable[[], None]:
        """A function that computes these calls, by default all, from tensors made beforehand, one set per
        kind."""
        chosen = [
            (
                call[0],
                [arg.tensor() if isinstance(arg, Shape) else arg for arg in self.arguments[call]],
                self.calls[call],
            )
            for call in (self.calls if calls is None else calls)
        ]

        @torch.no_grad()
        def compute() -> None:
            for function, args, count in chosen:
                for _ in range(count):
                    function(*args)

        return compute

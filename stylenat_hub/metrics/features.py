"""Feature extractors behind one small protocol: what FID, KID, precision and recall and the rest look at.

    extractor = load_extractor("inception")
    features, logits = extractor(images)  # uint8 [B, 3, H, W] -> float32 [B, 2048], float32 [B, 1008]

| spec | what it is |
|---|---|
| `inception` | the FID network; needs its weights (95 MB) |
| `dinov2` | the class token of DINOv2, for FD-DINOv2; needs transformers and 1.2 GB of weights |
| `random-conv` | a random network, no download; not comparable with published figures |
| `module:attr` | one's own: a class, a factory or an object |

What was not measured: this project's tests have no copy of the real Inception weights. They check the
preprocessing, the layout of the file, and the network with random weights against an independent writing of
it; they do not check that a published FID comes out.

Legend: B pictures, H, W their height and width, D features, K classes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.dinov2 import DINOv2Extractor
from stylenat_hub.metrics.inception import InceptionExtractor
from stylenat_hub.metrics.random_conv import RandomConvExtractor
from stylenat_hub.metrics.resizing import INCEPTION, check_images

KNOWN_EXTRACTORS = ("inception", "dinov2", "random-conv")
RESIZES = tuple(INCEPTION)  # of `inception`
DEFAULT_RESIZE = RESIZES[0]


@runtime_checkable
class Extractor(Protocol):
    """What turns pictures into features.

    name: for people. dim: D. protocol: plain JSON data that fixes the numbers (resize, normalisation, hash of
    the weights, source): two extractors with equal protocols give comparable figures, and reference
    statistics are valid for their protocol only.
    """

    name: str
    dim: int
    protocol: Mapping[str, Any]

    def to(self, device: str | torch.device) -> Extractor:
        """Move to a device; returns itself."""
        ...

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 [B, 3, H, W] -> what the network is fed."""
        ...

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pictures uint8 [B, 3, H, W] in RGB -> features float32 [B, D], and logits float32 [B, K] or None,
        on the extractor's device. Calls `preprocess` itself."""
        ...


def network_name(extractor: Extractor) -> str:
    """A short name without spaces: what `load_extractor` takes, with the resizing where it is not the
    papers'."""
    name = str(extractor.protocol.get("extractor", extractor.name)).replace(" ", "-")
    way = extractor.protocol.get("preprocessing", DEFAULT_RESIZE)
    return f"{name}-{way}" if way != DEFAULT_RESIZE else name


def load_extractor(
    spec: str | Extractor,
    *,
    weights: str | os.PathLike[str] | None = None,
    resize: str = DEFAULT_RESIZE,
    device: str | torch.device = "cpu",
) -> Extractor:
    """An extractor by its name.

    spec: `inception`, `dinov2`, `random-conv`, or `module:attr` for one's own: the attribute is an object
    that follows `Extractor`, or a class or function that makes one, called with `weights=` if weights are
    given.
    An object in place of a text is checked and wrapped likewise. weights: of `inception` and `dinov2`, a path
    or a Hub id; see their classes. resize: of `inception` only, "pytorch-fid" (the papers'),
    "torch-fidelity" or "clean".

    Raises:
        InputError: an unknown spec, an option that the extractor does not have, or one's own extractor does
            not follow the protocol.
        WeightsError: the weights are damaged, or missing: then it says which file, from where, and where to
            put it.
        UnsafeCheckpointError, UnknownModelError: see `read_weights`.
    """
    if not isinstance(spec, str):
        _refuse_options("an extractor that is given as an object", weights, resize)
        return _Checked(spec, type(spec).__name__).to(device)
    if spec != "inception" and resize != DEFAULT_RESIZE:
        raise InputError(f"resize={resize!r} is an option of the extractor inception; {spec!r} has its own")
    if spec == "inception":
        return InceptionExtractor(weights, resize=resize, device=device)
    if spec == "dinov2":
        return DINOv2Extractor(weights, device=device)
    if spec == "random-conv":
        _refuse_options("the extractor random-conv", weights, resize)
        return RandomConvExtractor(device=device)
    module, colon, attribute = spec.partition(":")
    if not (colon and module and attribute) or module.startswith("."):
        raise InputError(
            f"there is no extractor {spec!r}; allowed: {', '.join(KNOWN_EXTRACTORS)}, or module:attr for "
            "your own"
        )
    return _Checked(_own(spec, module, attribute, weights), spec).to(device)


def _refuse_options(what: str, weights: Any, resize: str) -> None:
    if weights is not None or resize != DEFAULT_RESIZE:
        raise InputError(f"{what} takes neither weights nor resize; leave them out")


def _own(spec: str, module: str, attribute: str, weights: Any) -> Any:
    """The object that `module:attr` names or makes."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another one: its own error says it best
        raise InputError(
            f"the extractor {spec!r} names the module {module!r}, which Python does not find; run from its "
            "folder with `python -m`, or add that to PYTHONPATH"
        ) from error
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise InputError(
            f"the module {module!r} has no {attribute!r}; {spec!r} must name one it has"
        ) from error
    if not inspect.isclass(found) and hasattr(found, "preprocess"):
        if weights is not None:
            raise InputError(f"{spec!r} is an object, which takes no weights; name a class or a function")
        return found
    if not callable(found):
        raise InputError(
            f"{spec!r} is a {type(found).__name__}; allowed: an extractor, or a class or function making one"
        )
    return _made(spec, found, {} if weights is None else {"weights": weights})


def _made(spec: str, factory: Any, options: dict[str, Any]) -> Any:
    """What a factory makes. Its own errors pass as they are; a call that cannot be is explained."""
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        given = ", ".join(f"{name}=" for name in options) or "no arguments"
        raise InputError(
            f"{spec!r} cannot be called with {given} ({error}); let it take just that"
        ) from error
    except ValueError:  # a builtin without a signature
        pass
    return factory(**options)


class _Checked:
    """One's own extractor with every answer checked, so that a mistake in it becomes a sentence and not a
    wrong figure."""

    def __init__(self, inner: Any, spec: str) -> None:
        lacks = [name for name in ("name", "dim", "protocol", "preprocess") if not hasattr(inner, name)]
        if lacks or not callable(inner):
            raise InputError(
                f"{spec!r} gives a {type(inner).__name__} that is no extractor: it lacks "
                f"{', '.join(lacks) or '__call__'}; see stylenat_hub.metrics.features.Extractor"
            )
        self._inner, self._spec = inner, spec
        self.name, self.dim = inner.name, inner.dim
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"the name of {spec!r} is {self.name!r}; allowed: a text")
        if not isinstance(self.dim, int) or isinstance(self.dim, bool) or self.dim < 1:
            raise InputError(f"the dim of {spec!r} is {self.dim!r}; allowed: a whole number from 1")
        self.protocol: Mapping[str, Any] = {**_plain(inner.protocol, spec), "extractor": spec}

    def to(self, device: str | torch.device) -> _Checked:
        if hasattr(self._inner, "to"):
            self._inner = self._inner.to(device) or self._inner
        elif torch.device(device).type != "cpu":
            raise InputError(
                f"the extractor {self._spec!r} has no to(device), so it cannot move to {str(device)!r}; add "
                "it, or use the CPU"
            )
        return self

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return self._inner.preprocess(check_images(images))

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.no_grad():
            answer = self._inner(check_images(images))
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise InputError(
                f"the extractor {self._spec!r} returns a {type(answer).__name__}; allowed: the pair "
                "(features, logits), where logits may be None"
            )
        features, logits = answer
        self._check("features", features, [len(images), self.dim])
        if logits is not None:
            self._check("logits", logits, [len(images), None])
        return features, logits

    def differentiable(self, images: torch.Tensor) -> Any:
        """Pictures [B, 3, H, W] in [0, 1] -> a tensor [B, ...] or several, with gradients, by the extractor's
        own method of that name. Raises `InputError` if it has none."""
        if not callable(getattr(self._inner, "differentiable", None)):
            raise InputError(
                f"the extractor {self._spec!r} has no gradients; give it a method differentiable(images), "
                "pictures [B, 3, H, W] in [0, 1] to a tensor [B, ...] or a list of them, or use random-conv"
            )
        return self._inner.differentiable(images)

    def _check(self, what: str, got: Any, shape: list[int | None]) -> None:
        wanted = f"float32 [{', '.join('K' if size is None else str(size) for size in shape)}]"
        if not isinstance(got, torch.Tensor):
            raise InputError(
                f"the {what} of {self._spec!r} are a {type(got).__name__}; allowed: a tensor {wanted}"
            )
        fits = got.ndim == 2 and got.shape[0] == shape[0] and shape[1] in (None, got.shape[1])
        if not fits or got.dtype != torch.float32:
            raise InputError(
                f"the {what} of {self._spec!r} are {list(got.shape)} of {got.dtype}; allowed: {wanted}, a "
                "row per picture"
            )
        if not torch.isfinite(got).all():
            raise InputError(f"the {what} of {self._spec!r} hold NaN or infinite values; mend the extractor")


def _plain(protocol: Any, spec: str) -> dict[str, Any]:
    """A copy of a protocol. Raises `InputError` unless it is a JSON object, to the letter."""
    try:
        copy = json.loads(json.dumps(protocol, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the protocol of {spec!r} is no plain JSON data ({error}); allowed: a dict of texts, numbers "
            "and lists"
        ) from error
    if not isinstance(copy, dict) or not copy:
        raise InputError(
            f"the protocol of {spec!r} is {protocol!r}; allowed: a dict that says what fixes its numbers, "
            "such as resize, normalisation and the hash of the weights"
        )
    return copy

"""Directions: ways to go from any style that change pictures alike. Named, of unit length, by level.

D = w_dim below; n directions. How they are found: `factorise`; how they are kept: `direction_files`.
"""

from __future__ import annotations

import difflib
import hashlib
import numbers
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from stylenat_hub.errors import InputError, OtherModelWarning, listed, shown
from stylenat_hub.models.base import Generator
from stylenat_hub.pipeline import Edit

MAX_DIRECTIONS = 4096  # in one set: every direction of the largest w in each of a few choices of levels
MAX_STRENGTH = 1e6  # far beyond any picture; larger ones overflow in float32
MAX_STYLE = 1_000  # the largest number of a style; models have up to 32
# Of use as a file's name and in NAME=STRENGTH,NAME=STRENGTH.
_NAME = re.compile(r"\w[\w.+-]{0,63}")
_UNIT = 1e-4  # how far from 1 a length may be, which float32 keeps to 1e-6


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the space of styles.

    names: of each, unlike any other even without regard to case. vectors: [n, D], float32 on the CPU, each of
    unit length. deviations: [n], the standard deviation of the model's styles along each, which is what a
    strength counts in, so that 2 is as rare in one direction as in another. shares: [n], how much of all the
    variance of the model's styles lies along each, from 0 to 1. styles: for each the numbers of the styles
    that it moves. about: of which weights they are, and how they were found.

    Raises `InputError` for anything else.
    """

    names: tuple[str, ...]
    vectors: torch.Tensor
    deviations: torch.Tensor
    shares: torch.Tensor
    styles: tuple[tuple[int, ...], ...]
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {
            "names": tuple(self.names),
            "styles": tuple(map(tuple, self.styles)),
            "about": dict(self.about),
            **{name: _own(getattr(self, name), name) for name in ("vectors", "deviations", "shares")},
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        _check_names(self.names)
        self._check_tensors()
        self._check_styles()
        if not all(isinstance(text, str) for pair in self.about.items() for text in pair):
            raise InputError("about has something other than texts in it; allowed: a dict of texts")

    def _check_tensors(self) -> None:
        count = len(self.names)
        shapes = [tuple(tensor.shape) for tensor in (self.vectors, self.deviations, self.shares)]
        if self.vectors.dim() != 2 or shapes != [(count, self.w_dim), (count,), (count,)]:
            raise InputError(
                f"vectors, deviations and shares are {shapes}; {count} directions need [{count}, w_dim], "
                f"[{count}] and [{count}]"
            )
        if not all(torch.isfinite(tensor).all() for tensor in (self.vectors, self.deviations, self.shares)):
            raise InputError("directions hold NaN or infinity; allowed: finite numbers")
        lengths = self.vectors.double().norm(dim=1)
        if (wrong := (lengths - 1).abs() > _UNIT).any():
            first = int(wrong.nonzero()[0])
            raise InputError(
                f"the direction {self.names[first]!r} has the length {lengths[first]:.4g}; allowed: 1"
            )
        if (self.deviations < 0).any() or (self.shares < 0).any() or (self.shares > 1 + _UNIT).any():
            raise InputError("a deviation is below 0, or a share is not from 0 to 1; allowed: what these are")

    def _check_styles(self) -> None:
        good = all(
            moved
            and all(type(number) is int and 0 <= number <= MAX_STYLE for number in moved)
            and list(moved) == sorted({*moved})
            for moved in self.styles
        )
        if not good or len(self.styles) != len(self.names):
            raise InputError(
                "the styles of a direction are whole numbers, ascending, at least one: such as (0, 1, 2); "
                f"there are {len(self.styles)} of these for {len(self.names)} directions, or one is wrong"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def w_dim(self) -> int:
        return self.vectors.shape[-1]

    def edit(self, strengths: Mapping[str, float]) -> Edit:
        """A function of styles [B, num_ws, D] that goes along these directions, out of place, in any type and
        on any device. strengths: by name, in standard deviations; 0 changes nothing, to the bit. Several add
        up. It is what `GANPipeline` takes as `edit=`.

        Raises `InputError`: an unknown name, a strength that is no finite number; from the function, styles
        that these directions are not for.
        """
        steps = [(self.index(name), _strength(name, value)) for name, value in strengths.items()]
        steps = [(place, value) for place, value in steps if value != 0]
        last = max((self.styles[place][-1] for place, _ in steps), default=0)
        shift = torch.zeros(last + 1, self.w_dim, dtype=torch.float64)
        for place, value in steps:
            step = value * self.deviations[place].double() * self.vectors[place].double()
            shift[list(self.styles[place])] += step

        def moved(ws: torch.Tensor) -> torch.Tensor:
            if ws.dim() != 3 or ws.shape[2] != self.w_dim or ws.shape[1] <= last:
                raise InputError(
                    f"the styles have the shape {tuple(ws.shape)}; these directions move [batch, {last + 1} "
                    f"or more, {self.w_dim}]: use the model that they were found in"
                )
            if not steps:
                return ws
            ahead = ws[:, : last + 1] + shift.to(ws.device, ws.dtype)
            return torch.cat([ahead, ws[:, last + 1 :]], dim=1)

        return moved

    def index(self, name: str) -> int:
        """The place of a name. Raises `InputError`, which tells the nearest names, and those there are."""
        if name in self.names:
            return self.names.index(name)
        near = difflib.get_close_matches(str(name), self.names, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        text = f"there is no direction {shown(str(name))!r}; {hint} are: {listed(self.names, 12)}"
        raise InputError(text)

    def renamed(self, names: Mapping[str, str]) -> Directions:
        """The same with other names: {"sefa-1": "snow"}. Raises `InputError`: see `index`; a name that is
        taken, or that can be none."""
        places = {self.index(old): new for old, new in names.items()}
        return replace(self, names=tuple(places.get(i, old) for i, old in enumerate(self.names)))

    def described(self, **about: str) -> Directions:
        """The same with more said about it, such as model="org/name"."""
        return replace(self, about={**self.about, **about})

    @classmethod
    def join(cls, parts: Iterable[Directions]) -> Directions:
        """Several sets as one, such as those of several levels. What is said about them is put together.

        Raises `InputError`: none at all, a name that two of them have, or sets of different models.
        """
        parts = list(parts)
        if not parts:
            raise InputError("there are no directions to join; give at least one set")
        widths = sorted({part.w_dim for part in parts})
        weights = {part.about["weights"] for part in parts if "weights" in part.about}
        if len(widths) > 1 or len(weights) > 1:
            why = f"their w_dim are {widths}" if len(widths) > 1 else "they were found in different weights"
            raise InputError(f"these directions are not of one model: {why}; join those of one")
        said: dict[str, dict[str, None]] = {}
        for key, text in (pair for part in parts for pair in part.about.items()):
            said.setdefault(key, {})[text] = None
        return cls(
            names=tuple(name for part in parts for name in part.names),
            vectors=torch.cat([part.vectors for part in parts]),
            deviations=torch.cat([part.deviations for part in parts]),
            shares=torch.cat([part.shares for part in parts]),
            styles=tuple(styles for part in parts for styles in part.styles),
            about={key: ", ".join(texts) for key, texts in said.items()},
        )

    def check(self, generator: Generator) -> None:
        """Raise `InputError` unless the generator has such styles. Warns (`OtherModelWarning`) if they were
        found in other weights than it has; of weights in another type nobody can tell."""
        last = max(styles[-1] for styles in self.styles)
        if self.w_dim != generator.w_dim or last >= generator.num_ws:
            raise InputError(
                f"these directions move the styles up to number {last}, of {self.w_dim} values each; this "
                f"model has the styles 0 to {generator.num_ws - 1} of {generator.w_dim}: use the model that "
                f"they were found in ({shown(self.about.get('model', 'it is not recorded which'))})"
            )
        same_type = self.about.get("dtype") == _type(generator)
        if same_type and self.about.get("weights") != weights_of(generator)["weights"]:
            known = shown(self.about.get("model", "another model"))
            warnings.warn(
                f"these directions were found in other weights than this model has ({known}); they may "
                "do little in it, or something else",
                OtherModelWarning,
                stacklevel=3,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; `direction_files.load_directions` reads it."""
        from stylenat_hub.latents.direction_files import save_directions  # late: it is built on this class

        save_directions(path, self)


def weights_of(generator: Generator) -> dict[str, str]:
    """What tells a generator's weights from others': `weights`, the SHA-256 of all its tensors as float32,
    and the type that they have (`dtype`): rounded to another one they are others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return {"weights": digest.hexdigest(), "dtype": _type(generator)}


def _type(generator: Generator) -> str:
    return str(generator.dtype).removeprefix("torch.")


def _own(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A copy that nobody else changes."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise InputError(f"{name} is no tensor of floating-point numbers; allowed: such a tensor")
    return tensor.detach().to("cpu", torch.float32).clone()


def _check_names(names: Sequence[str]) -> None:
    if not 1 <= len(names) <= MAX_DIRECTIONS:
        raise InputError(f"there are {len(names)} directions; allowed: 1 to {MAX_DIRECTIONS}")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"{shown(str(name))!r} can be no direction's name; allowed: up to 64 letters, digits and "
                "_ . + -, the first one a letter, a digit or _"
            )
        if name.casefold() in seen:
            raise InputError(f"two directions are called {name!r}; give each a name of its own")
        seen.add(name.casefold())


def _strength(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not abs(value) <= MAX_STRENGTH:
        raise InputError(
            f"the strength of {name!r} is {value!r}; allowed: a finite number, usually from -4 to 4"
        )
    return float(value)

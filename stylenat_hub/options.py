"""What the command lines of this project share: errors in one sentence, parsed words, common options."""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylenat_hub import signals
from stylenat_hub.errors import (
    InputError,
    KeptCardWarning,
    OldCopyWarning,
    OtherModelWarning,
    StyleNATHubError,
)

if TYPE_CHECKING:
    import torch

MAX_SEEDS = 1_000_000  # in one command: a guard against typing mistakes
LARGEST = 1e6  # truncation or strength: far beyond any picture; larger ones overflow in float32
FAR = 2  # a truncation beyond which pictures fall apart
MAX_SWEEP = 100  # values of truncation in one command
DEBUG = "--debug"
_USAGE = typer.BadParameter.__base__  # typer shows these itself, with the usage, and exits with 2


@contextlib.contextmanager
def one_sentence(debug: bool, interrupted: str = "interrupted") -> Iterator[None]:
    """Any error becomes one line and exit code 1, and so do Ctrl-C and SIGTERM (the line is `interrupted`).

    With `debug` errors pass, and an interruption shows where it came. Every command line here uses this.
    """
    try:
        with _plain_warnings():
            yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own ways out; a reader that saw enough
        raise
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or signals.received():
            if debug:
                traceback.print_exc()
            signals.tell(interrupted, error)
            raise typer.Exit(signals.EXIT_CODE) from None
        if debug or isinstance(error, _USAGE):
            _plain_usage(error)
            raise
        typer.echo(f"error: {_sentence(error)}", err=True)
        raise typer.Exit(1) from None


def _plain_usage(error: Exception) -> None:
    """A wrong choice without the words that typer puts before it."""
    if isinstance(error, typer.BadParameter):
        error.message = error.message.removeprefix("Value error, ")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show this package's warnings as a line each, without the place in the code."""
    before = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        plain = issubclass(category, (KeptCardWarning, OldCopyWarning, OtherModelWarning))
        return f"warning: {message}\n" if plain else before(message, category, *place, **more)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def _sentence(error: Exception) -> str:
    """The error in one line; of a foreign one also its kind."""
    text = " ".join(str(error).split()) or "no details"
    if isinstance(error, StyleNATHubError):
        return text
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory; try a smaller --batch-size, --dtype bfloat16 or --device cpu"
    if isinstance(error, MemoryError):
        return "the machine is out of memory; close other programs, or use one with more"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return f"the system refuses: {text} (--debug shows where)"
    if isinstance(error, (OSError, RuntimeError)):
        return f"{type(error).__name__}: {text} (--debug shows where)"
    return f"{type(error).__name__}: {text} (a bug; --debug shows where)"


class Dtype(str, Enum):
    """Types that a model can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ShardFormat(str, Enum):
    """What shards of pictures can be, as `metrics.shards.FORMATS` has them."""

    png = "png"
    zip = "zip"
    parquet = "parquet"
    webdataset = "webdataset"


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` -> [0, 1, 2, 3, 7], each seed once; the dash may be a typographic one, as pasted text has it.
    Raises `typer.BadParameter`, naming the wrong part."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,30})\s*(?:[-\u2010-\u2014\u2212]\s*([0-9]{1,30})\s*)?", part)
        if not match:
            raise typer.BadParameter(
                f"{part!r} in {text!r} is neither a seed nor a range; examples: 0-15 or 1,5,9-12"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise typer.BadParameter(f"the range {part.strip()!r} runs backwards; write {last}-{first}")
        if last >= 2**32:
            raise typer.BadParameter(f"{part.strip()!r} is out of range; seeds go from 0 to 2**32 - 1")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise typer.BadParameter(
                f"{text!r} is more than {MAX_SEEDS:,} seeds; ask for fewer in one command"
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def parse_truncations(text: str) -> list[float]:
    """`0.5,0.7,1` -> [0.5, 0.7, 1.0], each once. Raises `typer.BadParameter`, naming the wrong part."""
    values = dict.fromkeys(check_truncation(_number(part, text, "0.5,0.7,1")) for part in text.split(","))
    if len(values) > MAX_SWEEP:
        raise typer.BadParameter(f"{text!r:.60} are {len(values)} truncations; allowed: up to {MAX_SWEEP}")
    return list(values)


def parse_strengths(text: str) -> list[float]:
    """`-3,0,3` -> [-3.0, 0.0, 3.0], each once. Raises `typer.BadParameter`, naming the wrong part."""
    return list(dict.fromkeys(_strength(part, text, "-3,0,3") for part in text.split(",")))


def parse_edit(text: str) -> dict[str, float]:
    """`sefa-1=2.5,pca-3=-1` -> {"sefa-1": 2.5, "pca-3": -1.0}. Raises `typer.BadParameter`."""
    strengths: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not (name and equals) or name in strengths:
            why = "is there twice" if name in strengths else "is no NAME=STRENGTH"
            raise typer.BadParameter(f"{part!r} in {text!r} {why}; example: sefa-1=2.5,sefa-3=-1")
        strengths[name] = _strength(number, text, "sefa-1=2.5,sefa-3=-1")
    return strengths


def _strength(part: str, text: str, example: str) -> float:
    return _finite(_number(part, text, example), "-3 to 3")


def _number(part: str, text: str, example: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise typer.BadParameter(f"{part!r} in {text!r:.60} is no number; example: {example}") from None


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` -> the device. Raises `InputError` if it is not there."""
    import torch

    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    there = [
        "cpu",
        *(["cuda"] if cuda else []),
        *(f"cuda:{i}" for i in range(cuda)),
        *(["mps"] if mps else []),
    ]
    if name not in there:
        raise InputError(f"this machine has no device {name!r}; it has: auto, {', '.join(there)}")
    return torch.device(name)


def parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise typer.BadParameter(f"{text!r} is no device; allowed: auto, cpu, cuda, cuda:N, mps")
    return text


def finite_number(value: float) -> float:
    return _finite(value, "0 to 1")


def _finite(value: float, usual: str) -> float:
    if value != value or abs(value) == float("inf"):
        raise typer.BadParameter(f"{value} is not a finite number; usual values are from {usual}")
    if abs(value) > LARGEST:
        raise typer.BadParameter(
            f"{value} is out of range; allowed: {-LARGEST:.0f} to {LARGEST:.0f}, usually {usual}"
        )
    return value


def check_truncation(value: float) -> float:
    """A finite number, with a notice if no picture comes of it: `0,5` is two values, 0 and 5."""
    if abs(finite_number(value)) > FAR:
        typer.echo(f"notice: psi {value:g} is far outside what models draw; one half is 0.5", err=True)
    return value


def parse_path(text: str | Path) -> Path:
    """A path as typed. Raises `typer.BadParameter` for an empty one, which would mean the current folder."""
    if not str(text):
        raise typer.BadParameter("the name is empty; write '.' for the current folder")
    return Path(text)


Debug = Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(callback=parse_device, help="auto, cpu, cuda, cuda:N or mps.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Type to compute in.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures per step.")]
Truncation = Annotated[
    float,
    typer.Option(callback=check_truncation, metavar="PSI", help="1: full variety; 0: the mean picture."),
]
Cutoff = Annotated[
    int | None, typer.Option(min=0, help="Truncate only so many of the styles, the coarse ones first.")
]
Centers = Annotated[
    int | None, typer.Option(min=1, help="Truncate towards the nearest of so many centres of the styles.")
]
Variant = Annotated[str | None, typer.Option(help="Weights saved under this name, such as bf16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Namespace = Annotated[
    str | None, typer.Option(help="Whose copy of a zoo name on the Hub; default: STYLENAT_HUB_NAMESPACE.")
]
PushTo = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="ORG/NAME", help="Publish it there too.")
]
License = Annotated[
    str | None, typer.Option("--license", metavar="ID", help="For the card, such as mit or cc-by-4.0.")
]
Private = Annotated[bool, typer.Option("--private", help="Only into a private repository.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

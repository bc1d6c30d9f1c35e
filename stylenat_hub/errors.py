"""Every error this package raises on purpose.

Each message says what was got, what is allowed, and what to do next. The command line prints the message as
one sentence and exits with 1; from Python they are ordinary exceptions, and each is also the built-in kind
that a caller would expect to catch.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_NAME = 200  # characters of a text out of somebody's file
LONGEST_MESSAGE = 2_000


def cut(text: str, longest: int = LONGEST_NAME) -> str:
    """A text that is too long without its middle."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def shown(name: str) -> str:
    """A name out of somebody's file as a message may show it: short, and without line breaks and control
    characters."""
    return cut(name) if name.isprintable() else cut(repr(name))


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


class StyleNATHubError(Exception):
    """Base of all errors raised on purpose by this package. Whatever a message quotes, it stays readable."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(cut(word, LONGEST_MESSAGE) if isinstance(word, str) else word for word in words))


class ConfigError(StyleNATHubError, ValueError):
    """A hyper-parameter has a value that no model can be built from."""


class WeightsError(StyleNATHubError, ValueError):
    """Weights do not fit: a tensor is missing, unexpected, misshapen or not finite, or a file is damaged."""


class UnknownModelError(StyleNATHubError, LookupError):
    """A name is neither in the zoo nor a folder nor reachable on the Hub."""


class NotOnHubError(UnknownModelError):
    """The Hub has no such repository, or none that this user may see."""


class UnsafeCheckpointError(StyleNATHubError, ValueError):
    """A pickle carries something other than tensors and plain data. Nothing of it was executed."""


class InputError(StyleNATHubError, ValueError):
    """An argument (seeds, truncation, shapes, a path) is out of its range."""


class TrainingError(StyleNATHubError, RuntimeError):
    """A training run cannot go on: its losses or weights are no longer finite."""


class ProcessError(StyleNATHubError, RuntimeError):
    """One of several processes has failed or ended, so all end."""


class HubError(StyleNATHubError, OSError):
    """The Hub refuses a push, or cannot be reached for one."""


class KeptCardWarning(UserWarning):
    """The card on the Hub was written by hand and is kept, so something that was asked for is not in it."""


class OldCopyWarning(UserWarning):
    """The Hub could not be asked, so a copy from the cache is used, which may be older than the Hub's."""


class OtherModelWarning(UserWarning):
    """What is used was made with other weights than the model has, and may do something else in it."""

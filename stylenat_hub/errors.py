"""Every error this package raises on purpose.

Each message says what was got, what is allowed, and what to do next. The command line prints the message as
one sentence and exits with 1; from Python they are ordinary exceptions, and each is also the built-in kind
that a caller would expect to catch.
"""


class StyleNATHubError(Exception):
    """Base of all errors raised on purpose by this package."""


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


class HubError(StyleNATHubError, OSError):
    """The Hub refuses a push, or cannot be reached for one."""


class KeptCardWarning(UserWarning):
    """The card on the Hub was written by hand and is kept, so something that was asked for is not in it."""


class OldCopyWarning(UserWarning):
    """The Hub could not be asked, so a copy from the cache is used, which may be older than the Hub's."""

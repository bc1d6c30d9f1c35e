"""Ctrl-C and the system's requests to end: one line and an exit code, and never half a rename.

This module is imported before anything heavy, so it imports nothing but small parts of the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))

EXIT_CODE = 1  # as for every other reason why a command could not finish

_received: list[int] = []
_told: list[str] = []  # what `tell` has printed


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a request to end. The message says what is written, whole, nevertheless."""


def received() -> bool:
    """Has a signal arrived inside `caught`? Then any error may be its echo: some imports swallow
    KeyboardInterrupt and fail later in other ways."""
    return bool(_received)


def tell(line: str, error: BaseException) -> None:
    """Print `line` on standard error; an `Interrupted` has its own words instead."""
    if _received:
        _install(_nothing)  # until `caught` ends: what a second Ctrl-C could stop has stopped
    line = f"interrupted: {error}" if isinstance(error, Interrupted) else line
    _told.append(line)
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


@contextlib.contextmanager
def caught(line: str = "interrupted") -> Iterator[None]:
    """Have every signal of `SIGNALS` raise KeyboardInterrupt inside the block, as Ctrl-C does.

    After a signal, whatever exception leaves the block becomes `line` on standard error, unless `tell` has
    said something already, and `SystemExit` with `EXIT_CODE`. Signals that are ignored (by nohup) stay so.
    """
    before = _install(_raise)
    try:
        yield
    except BaseException as error:
        done = isinstance(error, SystemExit) and error.code in (None, 0)
        if done or not (_received or isinstance(error, KeyboardInterrupt)):
            raise
        if not _told:
            tell(line, error)
        raise SystemExit(EXIT_CODE) from None
    finally:
        # The interpreter takes a while to end, and a signal then would only add a traceback. Registered last,
        # so that it is called first.
        atexit.unregister(_ignore)
        atexit.register(_ignore)
        _restore(before)
        _received.clear()
        _told.clear()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let signals wait until the block is done: for the few renames and removals that belong together."""
    waiting: list[int] = []
    before = _install(lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        _restore(before)
        if waiting:
            signal.raise_signal(waiting[0])


class _Signal(KeyboardInterrupt):
    """Not KeyboardInterrupt itself: where that leaves code that `exec` runs, as inside `dataclass`, CPython
    ends the whole process by SIGINT, although it was caught."""


def _raise(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise _Signal


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _ignore() -> None:
    _install(signal.SIG_IGN)


def _install(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> dict[int, object]:
    """Install a handler for all signals that are not ignored; returns those before it."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python runs handlers in the main thread only, so nothing interrupts this one
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(before: dict[int, object]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)

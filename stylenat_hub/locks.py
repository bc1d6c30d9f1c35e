"""A folder that one run alone writes into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from stylenat_hub.errors import InputError
from stylenat_hub.files import explained


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second run writes into it. Raises `InputError` if another one does.

    The lock ends with the process, however it ends. Where the system has no such locks, nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with explained(output):
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing into {str(output)!r}; wait for it or stop it, or name another "
                "--output"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        yield

"""The files of a running Space: one folder, from which what is old goes, and all of it at the end."""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

KEEP = 2 * 3600.0  # seconds after which a visitor's files go; gradio, which remembers their names, goes first
EVERY = 300.0


class Scratch:
    """A folder for this process alone. `root` is where gradio keeps its copies, too (GRADIO_TEMP_DIR)."""

    def __init__(self, keep: float = KEEP) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="stylenat-space-")).resolve()
        self.keep = keep
        self._swept = time.monotonic()
        self._lock = threading.Lock()
        atexit.register(self.close)

    def folder(self) -> Path:
        """A new empty folder whose name nobody can guess; now and then, old ones are removed first."""
        with self._lock:
            due = time.monotonic() - self._swept > EVERY
            if due:
                self._swept = time.monotonic()
        if due:
            self.sweep()
        path = self.root / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        return path

    def sweep(self) -> int:
        """Remove what has not changed for `keep` seconds; returns how many entries went."""
        old = time.time() - self.keep
        gone = [path for path in self.root.glob("*") if path.stat().st_mtime < old]
        for path in gone:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(gone)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)

"""Every checkpoint of a run as a commit on the Hub, while the run goes on.

A push is a process of its own (`python -m training.export CHECKPOINT --push-to-hub NAME --with-checkpoint`),
so that neither a slow network nor the work of exporting holds the training up, and nothing of it touches the
training's random numbers or its device. One runs at a time, in the order of the checkpoints; one that failed
is tried again before the next. The training never ends because of a push.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from stylenat_hub.errors import HubError
from stylenat_hub.files import link

FOLDER = ".pushing"
ROOT = Path(__file__).resolve().parent.parent  # of the clone, from which `training` is run
ATTEMPTS = 3


class Publisher:
    """Pushes checkpoints, oldest first. Only a run's main process makes one.

    name: the Hub id. output: the run's folder; what waits is kept in it, linked, so that removing an old
    checkpoint does not take it away. say: where to tell what failed.
    """

    def __init__(
        self, name: str, output: Path, *, private: bool, license: str | None, say: Callable[[str], None]
    ) -> None:
        self.name, self.folder, self.say = name, output / FOLDER, say
        self.options = [*(["--private"] if private else []), *(["--license", license] if license else [])]
        self.waiting: deque[Path] = deque()
        self.running: subprocess.Popen[bytes] | None = None
        self.failures, self.last_error = 0, ""
        shutil.rmtree(self.folder, ignore_errors=True)  # what a killed run left

    def add(self, checkpoint: Path) -> None:
        """Push this checkpoint when those before it are through; returns at once."""
        kept = self.folder / checkpoint.name
        if kept not in self.waiting:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(checkpoint, kept, copy_function=link)
            self.waiting.append(kept)
        self.poll()

    def poll(self) -> None:
        """See whether the push in progress has ended, and start the next."""
        if self.running is not None and self.running.poll() is not None:
            self._ended(self.running.returncode)
        if self.running is None and self.waiting:
            self._start(self.waiting[0])

    def close(self) -> None:
        """Wait until all is pushed. Raises `HubError` if something could not be, and says how to do it."""
        if self.waiting:
            self.say(f"waiting for {len(self.waiting)} checkpoint(s) to reach {self.name} on the Hub")
        while self.waiting and self.failures < ATTEMPTS:
            self.poll()
            if self.running is not None:
                self.running.wait()
        lost = len(self.waiting)
        shutil.rmtree(self.folder, ignore_errors=True)
        if lost:
            raise HubError(
                f"{lost} checkpoint(s) could not be pushed to {self.name!r} ({self.last_error}); they are "
                f"whole in the run's folder: push the newest by `python -m training.export "
                f"{self.folder.parent} --output FOLDER --push-to-hub {self.name} --with-checkpoint`"
            )

    def stop(self) -> None:
        """End a push in progress and forget what waits, because the run itself failed."""
        if self.running is not None:
            self.running.terminate()
            self.running.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, checkpoint: Path) -> None:
        images = int(checkpoint.name.rpartition("-")[2])
        self.temporary = tempfile.TemporaryDirectory()
        arguments = ["--output", str(Path(self.temporary.name, "export")), "--push-to-hub", self.name]
        arguments += ["--with-checkpoint", "--message", f"{images:,} images seen", *self.options]
        with self._log().open("wb") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "training.export", str(checkpoint.resolve()), *arguments],
                cwd=ROOT,
                # The pictures are drawn on the CPU: the accelerator's memory is the training's.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is meant for the training, which then waits for this
            )

    def _log(self) -> Path:
        return Path(self.temporary.name, "log")

    def _ended(self, code: int) -> None:
        self.running = None
        lines = self._log().read_text(encoding="utf-8", errors="replace").strip().splitlines()
        self.temporary.cleanup()
        if code == 0:
            self.failures = 0
            shutil.rmtree(self.waiting.popleft(), ignore_errors=True)
            return
        self.failures += 1
        self.last_error = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        self.say(f"warning: {self.waiting[0].name} was not pushed: {self.last_error}")

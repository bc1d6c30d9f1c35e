"""Every checkpoint of a run as a commit on the Hub, while the run goes on.

A push is a process of its own (`python -m training.export CHECKPOINT --push-to-hub NAME --with-checkpoint`),
so that neither a slow network nor the work of exporting holds the training up, and nothing of it touches the
training's random numbers or its device. One runs at a time, in the order of the checkpoints; one that failed
is tried again, after a pause or with the next. The training never ends because of a push.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from stylenat_hub import signals
from stylenat_hub.errors import HubError
from stylenat_hub.files import link

FOLDER = ".pushing"
ROOT = Path(__file__).resolve().parent.parent  # of the clone, from which `training` is run
ATTEMPTS = 2  # in a row, once the training is over
PATIENCE = 10.0  # seconds for a push to end that is told to
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0  # seconds after a failure; a new checkpoint ends it


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
        self.temporary: tempfile.TemporaryDirectory[str] | None = None
        self.failures, self.last_error, self.pause_ends = 0, "", 0.0
        shutil.rmtree(self.folder, ignore_errors=True)  # what a killed run left

    def add(self, checkpoint: Path) -> None:
        """Push this checkpoint when those before it are through; returns at once."""
        kept = self.folder / checkpoint.name
        try:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(checkpoint, kept, copy_function=link)
        except OSError as error:  # shutil's own has no number
            shutil.rmtree(kept, ignore_errors=True)
            why = error.strerror or f"{len(error.args[0])} file(s) could not be copied"
            self.say(f"warning: {checkpoint.name} will not be pushed: it cannot be kept for that ({why})")
            return
        self.waiting.append(kept)
        self.pause_ends = 0.0
        self.poll()

    def poll(self) -> None:
        """See whether the push in progress has ended, and start the next, after a failure not at once."""
        if self.running is not None and self.running.poll() is not None:
            self._ended(self.running.returncode)
        if self.running is None and self.waiting and time.monotonic() >= self.pause_ends:
            self._start(self.waiting[0])

    def close(self) -> None:
        """Wait until all is pushed. Raises `HubError` if something could not be, and says how to do it."""
        if self.waiting:
            self.say(f"waiting for {len(self.waiting)} checkpoint(s) to reach {self.name} on the Hub")
        self.failures = 0  # those during the training say little about now
        try:
            while self.waiting and self.failures < ATTEMPTS:
                self.pause_ends = 0.0
                self.poll()
                if self.running is not None:
                    self.running.wait()
                    self._ended(self.running.returncode)
        except KeyboardInterrupt:
            lost = self.stop()
            raise signals.Interrupted(self._lost(lost, "the wait was interrupted")) from None
        if lost := self.stop():
            raise HubError(self._lost(lost, self.last_error))

    def stop(self) -> int:
        """End a push in progress and forget what waits; returns how many did."""
        if self.running is not None:
            self.running.terminate()
            try:
                self.running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.running.kill()
                self.running.wait()
            self.running = None
        if self.temporary is not None:
            self.temporary.cleanup()
        lost = len(self.waiting)
        self.waiting.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        return lost

    def _lost(self, count: int, why: str) -> str:
        run = str(self.folder.parent)
        command = ["python", "-m", "training.export", run, "--output", f"{run}-export", "--push-to-hub"]
        command += [self.name, "--with-checkpoint", *self.options]
        return (
            f"{count} checkpoint(s) could not be pushed to {self.name!r} ({why}); those that {run!r} keeps "
            f"are whole: push the newest by `{shlex.join(command)}`"
        )

    def _start(self, checkpoint: Path) -> None:
        images = int(checkpoint.name.rpartition("-")[2])
        try:
            self.temporary = tempfile.TemporaryDirectory()
            arguments = ["--output", str(Path(self.temporary.name, "export")), "--push-to-hub", self.name]
            arguments += ["--with-checkpoint", "--message", f"{images:,} images seen", *self.options]
            with self._log().open("wb") as log:
                self.running = subprocess.Popen(
                    [sys.executable, "-m", "training.export", str(checkpoint.resolve()), *arguments],
                    cwd=ROOT,
                    # The pictures are drawn on the CPU: the accelerator's memory is the training's.
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is meant for the training, which then waits for this
                )
        except OSError as error:
            self._failed(f"the system refuses: {error.strerror}")

    def _log(self) -> Path:
        return Path(self.temporary.name, "log")

    def _ended(self, code: int) -> None:
        self.running = None
        lines = self._log().read_text(encoding="utf-8", errors="replace").strip().splitlines()
        self.temporary.cleanup()
        if code == 0:
            self.failures = 0
            done = self.waiting.popleft()
            shutil.rmtree(done, ignore_errors=True)
            self.say(f"{done.name} is on the Hub, in {self.name}")
            return
        told = [line for line in lines if line.startswith("error: ")] or lines or [f"exit code {code}"]
        # What it wrote is gone again.
        self._failed(re.sub(r"; '[^']*' is written$", "", told[-1].removeprefix("error: ")))

    def _failed(self, why: str) -> None:
        self.failures, self.last_error = self.failures + 1, why
        # Each attempt takes a while of the processor: not at every step while the Hub is down.
        self.pause_ends = time.monotonic() + min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE)
        self.say(f"warning: {self.waiting[0].name} was not pushed: {why}")

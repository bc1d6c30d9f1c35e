"""What the tests of training's commands share: calling them here, or in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from training.cli import app

ROOT = Path(__file__).resolve().parent.parent
FAST = ["--workers", "0", "--tracker", "none", "--metric", "none", "--sample-every", "0", "--log-every", "1"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments, program=("-m", "training.train"), **options):
    """The command in a process of its own, on one thread so that rounding is the same each time."""
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


def start(*arguments, program=("-m", "training.train")):
    """The command in a process of its own, running."""
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(happened, seconds=90):
    """Wait until `happened()`; fail if it does not."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def here(*arguments, command=app):
    """The command inside this process: quick, for what ends before or soon after training starts."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one per process; a command has its own
    try:
        return CliRunner().invoke(command, [str(argument) for argument in arguments])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def wrong(*arguments, says, command=app):
    """The command ends with one sentence that says this. Should training start all the same, it ends soon."""
    limit = [] if command is not app or "--stop-at" in arguments else ["--stop-at", "32"]
    result = here(*arguments, *limit, command=command)
    assert result.exit_code == 1, result.output
    assert result.output.count("error:") == 1 and says in result.output, result.output

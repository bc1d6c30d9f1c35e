"""`stylenat demo`: the Space on this machine. The page is a program of its own, which this starts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from stylenat_hub.cli_models import Model
from stylenat_hub.errors import InputError
from stylenat_hub.options import Device

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "space" / "app.py", _HERE.parent / "spaces" / "app.py")  # a wheel's, a clone's


def demo(
    model: Model = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Port to listen on.", show_default="a free one from 7860 on"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="this machine only")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    allow_any_model: Annotated[
        bool, typer.Option("--allow-any-model", help="Let visitors name folders and Hub ids.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Show the models in a browser; Ctrl-C ends it."""
    options = {"--port": port, "--host": host, "--device": device}
    line = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    line += ["--open"] * open_browser + ["--allow-any-model"] * allow_any_model
    raise typer.Exit(run_app([*line, *(["--", model] if model else [])]))


def app_file() -> Path:
    """The Space's program. Raises `InputError` if this installation has none, or if gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the demo needs gradio: pip install "stylenat-hub[demo]"')
    for path in _PLACES:
        if path.is_file():
            return path
    raise InputError(f"this installation has lost {str(_PLACES[0])!r}; install stylenat-hub again")


def run_app(arguments: list[str]) -> int:
    """Run it until it ends; returns its exit code. Ctrl-C reaches it, too, and is waited for."""
    path = os.pathsep.join(filter(None, (str(_HERE.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(app_file()), *arguments]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise

"""The Space in a real browser: started on a free port, offline, with whatever goes wrong written down."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "spaces" / "app.py"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
START_SECONDS = 120


def why_not() -> str | None:
    """Why no browser test can run here, or None."""
    for name in ("gradio", "playwright"):
        try:
            __import__(name)
        except ImportError:
            return f"needs {name}: pip install -c constraints.txt -e '.[dev]'"
    return None if browser_path() else "needs a Chromium: apt-get install chromium"


def browser_path() -> str | None:
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def space(*arguments: str, **environment: str) -> Iterator[str]:
    """The app in a process of its own, with an empty HF_HOME; yields its address once it answers."""
    with tempfile.TemporaryDirectory(prefix="space-") as home:
        address = f"http://127.0.0.1:{free_port()}"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": home, "TMPDIR": home, **environment}
        line = [sys.executable, str(APP), "--port", address.rpartition(":")[2], *arguments]
        log = Path(home) / "log.txt"
        with log.open("w") as words:
            process = subprocess.Popen(line, env=environment, cwd=home, stdout=words, stderr=words)
            try:
                _wait(address, process, log)
                yield address
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()


def _wait(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/config", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            alive = process.poll() is None and time.monotonic() < end
            assert alive, f"the app did not start:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)


@dataclass
class Visit:
    """A page that is open. errors: of its console and scripts, and answers of 400 and more; outside: requests
    to anywhere but the app."""

    page: Any
    address: str
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("response", lambda r: r.status >= 400 and self.errors.append(f"{r.status} {r.url}"))

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)


@contextlib.contextmanager
def visit(
    address: str, width: int = 1280, height: int = 900, scheme: str = "light", **options: Any
) -> Iterator[Visit]:
    """A new browser with the page open in it. options: more of playwright's `new_context`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(QUIET))
        try:
            size = {"width": width, "height": height}
            page = browser.new_context(viewport=size, color_scheme=scheme, **options).new_page()
            opened = Visit(page, address)
            opened.watch()
            page.goto(address)
            yield opened
        finally:
            browser.close()

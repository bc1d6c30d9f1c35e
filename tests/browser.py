"""The Space in a real browser: started on a free port, offline, with whatever goes wrong written down."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "spaces" / "app.py"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
START_SECONDS = 120
PATIENCE = 60.0  # seconds for anything on the page; a busy machine needs some of them
# Of the page: controls without a name for a screen reader; the name of what has the focus; what is cut off at
# the sides where one cannot scroll, or too small for its words.
NO_CAPTIONS = ".caption-label { visibility: hidden; }"
UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, select, [role=tab]')].filter((e) =>
  e.checkVisibility() && e.type !== 'file' && !(e.getAttribute('aria-label') || e.labels?.length ||
  e.getAttribute('aria-labelledby') || e.title || e.innerText.trim() ||
  e.querySelector('img[alt]:not([alt=""])'))).map((e) => e.outerHTML.slice(0, 150))"""
FOCUSED = """() => { const e = document.activeElement, label = e.labels?.[0];
  return (e.getAttribute('aria-label') || label?.innerText || e.innerText || e.tagName).trim(); }"""
CUT_OFF = """() => {
  const scrolls = (e) => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll('button, input, textarea, img, video, label, p, h1, h2, [role=tab]')]
    .filter((e) => {
      const box = e.getBoundingClientRect();
      const over = Math.max(e.scrollWidth - box.width, e.scrollHeight - box.height);
      const small = e.matches('button:not(:has(input))') && over > 4;
      const outside = box.left < -1 || box.right > document.documentElement.clientWidth + 1;
      return e.checkVisibility() && box.width > 1 && (small || (outside && !scrolls(e)));
    }).map((e) => e.outerHTML.slice(0, 150));
}"""


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
    with serving(*arguments, **environment) as (address, _):
        yield address


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The same, with the process."""
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
                yield address, process
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

    def until(self, happened: Callable[[], Any], what: str) -> Any:
        """Wait until this is true of the page, and return it."""
        end = time.monotonic() + PATIENCE
        while not (found := happened()):
            shown = " / ".join(self.page.locator(".toast-body").all_inner_texts())
            assert time.monotonic() < end, f"it did not happen: {what}. Messages: {shown}. {self.errors}"
            self.page.wait_for_timeout(30)
        return found

    def says(self, selector: str, words: str) -> None:
        """Wait until these words are there."""
        self.until(lambda: words in self.page.inner_text(selector), f"{selector} says {words!r}")

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def enter(self, selector: str, value: Any) -> None:
        """Type it there and press Enter."""
        self.page.fill(f"{selector} input:not([type=range])", str(value))
        self.page.press(f"{selector} input:not([type=range])", "Enter")

    def choose_model(self, name: Any) -> None:
        """By typing into the list, which takes a moment to follow."""
        self.page.click("#model input")
        self.page.fill("#model input", str(name))
        self.page.wait_for_timeout(400)
        self.page.keyboard.press("Enter")

    def tab_to(self, name: str, most: int = 40) -> None:
        """Press the Tab key until what a screen reader calls by this name has the focus."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(FOCUSED).lower().startswith(name.lower()):
                return
        raise AssertionError(f"the Tab key does not lead to {name}")

    def expect(self, selector: str, image: PIL.Image.Image) -> None:
        """Wait until this picture is there, with the right pixels, and what one sees is that."""
        self.until(lambda: same(self.file(selector), image), f"{selector} shows what is expected")
        assert resembles(self.seen(selector), image)

    def repeated(self, selector: str, folder: Path) -> PIL.Image.Image:
        """What the Python beside a picture writes when somebody runs it: one picture."""
        text = self.page.locator(f"{selector} .cm-content")
        if not text.is_visible():
            self.page.locator("button:visible", has_text="Python that").click()
            text.wait_for(state="visible")
        before = os.getcwd()
        os.chdir(folder)
        try:
            exec(compile(text.inner_text(), "copied", "exec"), {})
        finally:
            os.chdir(before)
        (path,) = folder.glob("*.png")
        with PIL.Image.open(path) as image:
            image.load()
        path.unlink()
        return image

    def file(self, selector: str) -> PIL.Image.Image:
        """The picture that is in this place, as the app sent it."""
        self.page.wait_for_selector(f"{selector} img")
        source = self.page.locator(f"{selector} img").first.get_attribute("src")
        with PIL.Image.open(io.BytesIO(self.page.request.get(source).body())) as image:
            image.load()
        return image

    def seen(self, selector: str) -> PIL.Image.Image:
        """What is painted there, captions apart."""
        painted = self.page.locator(f"{selector} img").first
        assert painted.evaluate("(e) => e.decode().then(() => e.complete && e.naturalWidth > 0)")
        return PIL.Image.open(
            io.BytesIO(painted.screenshot(animations="disabled", style=NO_CAPTIONS))
        ).convert("RGB")

    def download(self, selector: str, folder: Path) -> Path:
        """The file that a press on this button saves."""
        with self.page.expect_download() as started:
            self.page.click(selector)
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def value(self, selector: str) -> float:
        return float(self.page.locator(f"{selector} input[type=range]").input_value())

    def drag(self, selector: str, to: float) -> Callable[[], None]:
        """Take a slider's knob to this share of its way; returns what lets it go."""
        knob = self.page.locator(f"{selector} input[type=range]")
        knob.scroll_into_view_if_needed()
        box, mouse = knob.bounding_box(), self.page.mouse
        low, high, now = (float(knob.evaluate(f"(e) => e.{name}")) for name in ("min", "max", "value"))
        height, start = box["y"] + box["height"] / 2, (now - low) / (high - low)
        mouse.move(box["x"] + 8 + (box["width"] - 16) * start, height)
        mouse.down()
        mouse.move(box["x"] + 8 + (box["width"] - 16) * to, height, steps=5)
        return mouse.up


def same(one: PIL.Image.Image, other: PIL.Image.Image) -> bool:
    """The same pixels, but for roundings: the app is another process, whose sums may be in another order."""
    if one.size != other.size:
        return False
    first, second = (np.asarray(image.convert("RGB")).astype(int) for image in (one, other))
    return int(np.abs(first - second).max()) <= 1


def resembles(painted: PIL.Image.Image, image: PIL.Image.Image) -> bool:
    """Is this picture what was painted, whatever its size on the page? The corners are round there."""
    shrunk = painted.resize(image.size, PIL.Image.Resampling.BOX)
    first, second = (np.asarray(i.convert("RGB"), dtype=float)[2:-2, 2:-2].ravel() for i in (shrunk, image))
    return bool(min(first.std(), second.std()) > 8 and np.corrcoef(first, second)[0, 1] > 0.97)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser of its own, with nothing remembered."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def visit(
    address: str,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    browser: Any = None,
    **options: Any,
) -> Iterator[Visit]:
    """The page open in a new window without cookies: of `browser`, or of a new one. options: more of
    playwright's `new_context`."""
    with contextlib.ExitStack() as stack:
        browser = browser or stack.enter_context(chromium())
        size = {"width": width, "height": height}
        window = browser.new_context(viewport=size, color_scheme=scheme, **options)
        stack.callback(window.close)
        opened = Visit(window.new_page(), address)
        opened.watch()
        opened.page.goto(address)
        yield opened

"""What the tab Project does: the styles of a photo, sought while somebody watches, for a bounded time.

One search at a time, on a copy of the network, so that other visitors' pictures do not wait for it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from studio import checks, snippet, uploads, zero
from studio.engine import Engine
from studio.pool import Loaded
from stylenat_hub.cli_models import software
from stylenat_hub.cli_project import FAR
from stylenat_hub.errors import InputError
from stylenat_hub.latents.comparison import to_tensor
from stylenat_hub.latents.projection import STARTS, Progress, drawn, project, psnr
from stylenat_hub.latents.styles import save_styles
from stylenat_hub.pictures import drawn_by, write_picture
from stylenat_hub.pipeline import GANPipeline

STEPS = (50, 500)
SPACES = ("w", "w+")
SECONDS = 150.0  # that one search may take
LENT_SECONDS = 50.0  # where the GPU is lent, for a minute
EVERY = 0.4  # seconds from one picture of the way to the next
TURN = 5.0  # seconds that a search waits for the one before to end, beyond its place in the page's queue
LARGEST = {"cpu": 256}  # px; a gradient through a larger network takes more memory than a small machine has
ROUGH, CLOSE = 20.0, 30.0  # dB; below, it is alike only roughly; above, one has to look twice
REMEMBERED = 1000  # tickets of searches that were called off


@dataclass(frozen=True)
class Found:
    """What a search has come to. step, steps: so many of how many. decibels: PSNR of `picture`,
    infinite if it is the photo itself. done: is this the end? Only then are there files (the picture as PNG
    with text chunks, the styles) and the code that draws the picture again."""

    target: PIL.Image.Image
    picture: PIL.Image.Image
    step: int
    steps: int
    decibels: float
    sentence: str
    done: bool = False
    image_file: Path | None = None
    styles_file: Path | None = None
    code: str = ""


class Projector:
    """One per page: it keeps the turns. seconds: that one search may take."""

    def __init__(self, engine: Engine, seconds: float | None = None) -> None:
        self.engine = engine
        self.seconds = seconds or (LENT_SECONDS if zero.LENDER else SECONDS)
        self._turn = threading.Lock()
        self._off: OrderedDict[str, None] = OrderedDict()
        self._search_lent = zero.on_gpu(self._search_by_name)

    def why_not(self, model: Any) -> str | None:
        """Why this model cannot project here, or None."""
        loaded = self.engine.use(model)
        largest, side = LARGEST.get(self.engine.device.type, 1024), loaded.generator.resolution
        if side <= largest:
            return None
        return (
            f"projection with {loaded.name} ({side} px) needs more memory than this page has; here it is for "
            f"models of up to {largest} px. On your own machine: stylenat project PHOTO {loaded.name}"
        )

    def spaces(self, model: Any) -> tuple[str, ...]:
        """The spaces that this model has."""
        return SPACES if self.engine.use(model).generator.num_ws > 1 else SPACES[:1]

    def target(self, model: Any, photo: Any) -> tuple[PIL.Image.Image, list[str]]:
        """The photo as the model sees it, and what was changed. Raises `InputError`."""
        return self._photo(self.engine.use(model), photo)

    def _photo(self, loaded: Loaded, photo: Any) -> tuple[PIL.Image.Image, list[str]]:
        return uploads.photo(photo, loaded.generator.resolution, self.engine.scratch.root)

    # -- calling off

    def ticket(self) -> str:
        """A name for a search to come, by which it can be called off."""
        return secrets.token_hex(16)

    def call_off(self, ticket: Any) -> None:
        """The search ends soon, with what it has found so far; before its start, with an error."""
        if isinstance(ticket, str) and len(ticket) == 32:
            self._off[ticket] = None
            while len(self._off) > REMEMBERED:
                self._off.popitem(last=False)

    # -- searching

    def run(
        self, model: Any, photo: Any, steps: Any, space: Any, ticket: str | None = None
    ) -> Iterator[Found]:
        """What has been found, several times, and at last as files. Close it to end the search.

        Raises `InputError`: a wrong argument, a file that is no picture, a model too large, called off before
        the start, or another search is still running.
        """
        steps = checks.whole("the number of steps", steps, *STEPS)
        why = self.why_not(model)
        if why:
            raise InputError(why)
        space = checks.one_of("the space", space, self.spaces(model))
        loaded = self.engine.use(model)
        target, notices = self._photo(loaded, photo)
        if ticket in self._off:
            raise InputError("called off before it began")
        if not self._turn.acquire(timeout=TURN):
            raise InputError("another photo is being projected; try again in a minute")
        try:
            yield from self._watched(loaded, target, notices, steps, space, ticket)
        finally:
            self._turn.release()

    def _watched(
        self,
        loaded: Loaded,
        target: PIL.Image.Image,
        notices: list[str],
        steps: int,
        space: str,
        ticket: str | None,
    ) -> Iterator[Found]:
        end, last, why = time.monotonic() + self.seconds, None, ""
        with contextlib.closing(self._search(loaded, target, steps, space)) as search:
            for last in search:
                step, _, picture, decibels = last
                if ticket in self._off:
                    why = "called off"
                elif time.monotonic() > end and step < steps:
                    why = f"the {self.seconds:.0f} seconds that this page gives it are over"
                if why:
                    break
                sentence = f"Step {step} of {steps} · {decibels:.1f} dB"
                yield Found(target, _picture(picture), step, steps, decibels, sentence)
        assert last is not None  # the search begins with step 0
        yield self._finished(loaded, target, notices, last, steps, space, why)

    def _search(self, loaded: Loaded, target: PIL.Image.Image, steps: int, space: str) -> Iterator[Step]:
        goal = to_tensor(target)
        if zero.LENDER:
            return self._search_lent(loaded.name, goal, steps, space, STARTS)
        with loaded.at_work() as pipeline:
            generator = copy.deepcopy(pipeline.generator)
        # where a picture is slow, looking at many starts would take all the time
        starts = STARTS if loaded.preview_px == generator.resolution else 0
        return searching(generator, goal, steps, space, starts)

    def _search_by_name(
        self, name: str, goal: torch.Tensor, steps: int, space: str, starts: int
    ) -> Iterator[Step]:
        """In another process, as `Engine._compute_by_name`."""
        loaded = self.engine.pool.peek(name)
        if loaded is None:
            raise InputError(f"{name} was dropped from memory meanwhile; try again")
        yield from searching(loaded.generator, goal, steps, space, starts)

    def _finished(
        self,
        loaded: Loaded,
        target: PIL.Image.Image,
        notices: list[str],
        last: Step,
        steps: int,
        space: str,
        why: str,
    ) -> Found:
        step, ws, _, _ = last
        picture = self.engine.compute(loaded, draw_styles, ws)
        decibels = psnr(to_tensor(picture)[None], to_tensor(target)[None]).item()
        about = drawn_by(loaded.pipeline, {"space": space, "steps": step, "features": "random-conv"})
        about |= {"seed": "0", "psnr": f"{decibels:.2f}", "version": software()}
        folder = self.engine.scratch.folder()
        files = folder / "projected.png", folder / "w.safetensors"
        write_picture(picture, files[0], about)
        save_styles(files[1], ws, about)
        early = f" Ended at step {step} of {steps}: {why}." if why else ""
        changed = f" Your photo: {'; '.join(notices)}." if notices else ""
        return Found(
            target,
            picture,
            step,
            steps,
            decibels,
            f"{judged(decibels, bool(why))}{early}{changed}",
            True,
            *files,
            code(loaded.pipeline.model_name or loaded.name),
        )


Step = tuple[int, torch.Tensor, torch.Tensor, float]  # number, styles [1, n, d], uint8 [3, R, R], PSNR


class _Ended(Exception):
    """Ends a search from inside its callback."""


def searching(
    generator: Any, goal: torch.Tensor, steps: int, space: str, starts: int = STARTS
) -> Iterator[Step]:
    """`project` as an iterator: the start, now and then the nearest so far, and the last step. Closing it
    ends the search at its next step. The generator is for this search alone."""
    heard: queue.SimpleQueue[Step | Exception | None] = queue.SimpleQueue()
    ended, due = threading.Event(), 0.0

    def hear(progress: Progress) -> None:
        nonlocal due
        if ended.is_set():
            raise _Ended
        if progress.step == steps or time.monotonic() >= due:
            picture = drawn(generator, progress.ws.to(generator.device))[0]
            heard.put((progress.step, progress.ws, picture, progress.psnr.item()))
            due = time.monotonic() + EVERY

    def work() -> None:
        try:
            project(generator, goal, steps=steps, space=space, starts=starts, callback=hear)
        except _Ended:
            heard.put(None)
        except Exception as error:  # noqa: BLE001  raised again where it is waited for
            heard.put(error)
        else:
            heard.put(None)

    thread = threading.Thread(target=work, name="projection", daemon=True)
    thread.start()
    try:
        while (news := heard.get()) is not None:
            if isinstance(news, Exception):
                raise news
            yield news
    finally:
        ended.set()
        thread.join()


def draw_styles(pipeline: GANPipeline, ws: torch.Tensor) -> PIL.Image.Image:
    """Of one picture, for `Engine.compute`."""
    return pipeline.draw(ws)[0]


def _picture(pixels: torch.Tensor) -> PIL.Image.Image:
    """uint8 [3, R, R] as a picture."""
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())


def judged(decibels: float, early: bool = False) -> str:
    """What a PSNR means, in a sentence. early: could it have become better?"""
    shown = f"**{decibels:.1f} dB** PSNR"
    if math.isinf(decibels):
        return "The very photo: every pixel is equal."
    if decibels < FAR and early:
        return f"{shown}: still another picture."
    if decibels < FAR:
        return f"{shown}: this model cannot draw your photo; below {FAR:.0f} dB it is another picture."
    if decibels < ROUGH:
        return f"{shown}: alike in its rough shapes and colours only."
    if decibels < CLOSE:
        return f"{shown}: alike, but not the same. From {CLOSE:.0f} dB on one has to look twice."
    return f"{shown}: close; one has to look twice."


def code(model: str) -> str:
    """The Python that draws the downloaded styles."""
    return "\n".join(
        [
            "from stylenat_hub import GANPipeline",
            "from stylenat_hub.latents.styles import load_styles",
            "",
            f"pipe = GANPipeline.from_pretrained({snippet.quoted(model)})",
            'ws, about = load_styles("w.safetensors", pipe.generator)  # the file that you downloaded',
            'pipe.draw(ws)[0].save("projected.png")',
            "",
        ]
    )

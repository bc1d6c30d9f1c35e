"""A photo to the styles whose picture is nearest to it."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from studio import projecting
from studio.context import Context, told, told_along
from studio.projecting import Found, Projector
from studio.tabs.pieces import look
from stylenat_hub.errors import InputError

NAME = "Project"
PRIVATE = {"api_visibility": "private", "preprocess": False}  # the engine checks everything
TURN = {"concurrency_id": "project", "concurrency_limit": 1}
WORDS = (
    "Upload a photo, and the model looks for the picture of its own that is nearest to it. It can draw only "
    "what it has learned."
)
KINDS = {"w": "one style for all levels", "w+": "a style for each level: nearer, but less typical"}


def build(context: Context) -> None:
    projector = Projector(context.engine)
    classes = _classes(context, context.start)
    ticket = gr.State("")
    with gr.Row(elem_classes="halves"):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            gr.Markdown(WORDS, elem_classes="quiet")
            photo = _upload(
                sources=["upload", "webcam", "clipboard"],
                label="Photo",
                show_label=False,
                height=240,
                elem_id="photo",
            )
            kind = gr.Radio(
                _kinds(projector, context.start)["choices"],
                value=_kinds(projector, context.start)["value"],
                label="Space",
                elem_id="project-space",
            )
            steps = gr.Slider(
                *projecting.STEPS,
                value=100,
                step=10,
                label="Steps",
                info="More come nearer and take longer.",
                elem_id="project-steps",
            )
            with gr.Row():
                start = gr.Button("Project", variant="primary", elem_id="project-start", min_width=130)
                cancel = gr.Button("Cancel", elem_id="project-cancel", interactive=False, min_width=100)
        with gr.Column(scale=1, min_width=320):
            both = gr.ImageSlider(
                format="png",
                label="Photo and projection",
                show_label=False,
                interactive=False,
                buttons=["fullscreen"],
                elem_id="both",
                elem_classes=classes,
                max_height=1000,
            )
            note = gr.Markdown(elem_id="project-note", elem_classes="quiet")
            with gr.Row():
                picture = gr.DownloadButton("Download PNG", interactive=False, elem_id="project-png")
                styles = gr.DownloadButton("Download styles", interactive=False, elem_id="project-styles")
            with gr.Accordion("Python that draws the styles", open=False):
                code = gr.Code(language="python", show_label=False, label="Python", wrap_lines=True)

    shown = [both, note, picture, styles, code]

    def prepare(name: Any, sent: Any) -> tuple[Any, Any]:
        """What the model will see of a photo that has just come."""
        if sent is None:
            return None, ""
        target, notices = projector.target(name, sent)
        words = "; ".join(notices)
        return (target, target), f"Your photo: {words}." if words else "Your photo has the model's size."

    def begin(sent: Any) -> tuple[Any, ...]:
        if sent is None:
            raise InputError("there is no photo yet; upload one, or take one with the camera")
        return projector.ticket(), gr.Button(interactive=True), gr.Button(interactive=False)

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        for found in projector.run(*values):
            yield _outputs(found)

    def ended() -> tuple[Any, Any]:
        return gr.Button(interactive=False), gr.Button(interactive=True)

    def refit(name: str) -> tuple[Any, ...]:
        why = projector.why_not(name)
        words = f"{why[:1].upper()}{why[1:]}." if why else ""
        empty = gr.DownloadButton(interactive=False)
        return (
            gr.Radio(**_kinds(projector, name)),
            gr.ImageSlider(None, elem_classes=_classes(context, name)),
            *(words, empty, empty, ""),
        )

    seen = photo.input(
        told(prepare),
        [context.model, photo],
        [both, note],
        concurrency_id="photo",
        concurrency_limit=1,
        **PRIVATE,
    )
    seen.failure(lambda: (None, None, ""), None, [photo, both, note], show_progress="hidden", **PRIVATE)
    values = [context.model, photo, steps, kind, ticket]
    # queued, because errors of others are errors in the browser's console, too
    at_once = {"concurrency_id": "ticket", "concurrency_limit": 8, "show_progress": "hidden"}
    begun = start.click(told(begin), [photo], [ticket, cancel, start], **at_once, **PRIVATE)
    running = begun.success(told_along(run), values, shown, show_progress_on=note, **TURN, **PRIVATE)
    running.then(ended, None, [cancel, start], queue=False, **PRIVATE)
    cancel.click(projector.call_off, ticket, None, queue=False, **PRIVATE)
    context.on_model(refit, [kind, *shown])
    _endpoint(context, projector)


def _endpoint(context: Context, projector: Projector) -> None:
    """`/project` for programs."""
    with gr.Group(visible=False):
        inputs = [
            _upload(label="photo"),
            gr.Number(100, label="steps", precision=0),
            gr.Textbox("w", label="space"),
            gr.Textbox(context.start, label="model"),
        ]
        outputs = [
            gr.Image(format="png", label="picture"),
            gr.File(label="styles"),
            gr.Number(label="psnr"),
            gr.Textbox(label="sentence"),
        ]
        trigger = gr.Button()

    def project(photo: Any, steps: int, space: str, model: str) -> Any:
        """The picture of the model that is nearest to a photo, its styles as w.safetensors, the PSNR of both
        in dB (none if they are equal), and a sentence. space: w, or w+ for a style per level."""
        *_, found = projector.run(model, photo, steps, space)
        psnr = found.decibels if math.isfinite(found.decibels) else None
        return str(found.image_file), str(found.styles_file), psnr, found.sentence.replace("*", "")

    trigger.click(told(project), inputs, outputs, api_name="project", preprocess=False, **TURN)


def _upload(**options: Any) -> gr.Image:
    """An upload that fetches nothing. What is in the file is the business of `uploads`."""
    made = gr.Image(type="filepath", image_mode=None, **options)
    # Not a class of its own: gradio would write a .pyi file beside this one.
    made.async_move_resource_to_block_cache = partial(_moved, made.async_move_resource_to_block_cache)
    return made


async def _moved(move: Callable[[Any], Awaitable[str | None]], place: Any) -> str | None:
    """gradio would download what an address names, however large it is, and take a folder for a file that is
    to be removed later."""
    if str(place).lower().startswith(("http:", "https:")):
        raise gr.Error("Upload the picture itself, not its address", title="Not possible")
    if os.path.isdir(str(place)):
        raise gr.Error("Upload a picture, not a folder", title="Not possible")
    return await move(place)


def _outputs(found: Found) -> tuple[Any, ...]:
    pictures = found.target, found.picture
    if not found.done:
        return pictures, found.sentence, gr.skip(), gr.skip(), gr.skip()
    return (
        pictures,
        found.sentence,
        gr.DownloadButton(value=str(found.image_file), interactive=True),
        gr.DownloadButton(value=str(found.styles_file), interactive=True),
        found.code,
    )


def _kinds(projector: Projector, name: str) -> dict[str, Any]:
    there = projector.spaces(name)
    return {"choices": [(f"{space}: {KINDS[space]}", space) for space in there], "value": there[-1]}


def _classes(context: Context, name: str) -> list[str]:
    return [*look(context.engine.pixelated(name)), "square"]

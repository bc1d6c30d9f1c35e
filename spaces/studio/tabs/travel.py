"""Key seeds to a video that passes through their pictures and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from studio import travel
from studio.context import PRIVATE, Context, telling, told, told_along
from studio.tabs import pieces
from studio.tabs.pieces import Session
from stylenat_hub.errors import StyleNATHubError
from stylenat_hub.pipeline import MAX_SEED

NAME = "Travel"
KINDS = {
    "smooth": "Smooth curve",
    "lerp": "Straight lines",
    "slerp": "Over the sphere of latents",
}
QUEUE = {"concurrency_id": "travel", "concurrency_limit": 1}  # one video at a time, so that others may draw
PAUSE = 0.3  # seconds between two chances to stop
_MORE = f"""(text) => {{
  const words = String(text ?? "").trim().replace(/[\\s,;]+$/, "");
  return (words ? words + ", " : "") + Math.floor(Math.random() * {MAX_SEED + 1});
}}"""


def build(context: Context) -> None:
    engine, session = context.engine, gr.State(Session())
    classes = pieces.look(engine.pixelated(context.start))
    with gr.Row(elem_id="travel-row"):
        with gr.Column(scale=1, min_width=320):
            keys = gr.Gallery(
                format="png",
                label="Key pictures",
                show_label=False,
                interactive=False,
                columns=6,
                height="auto",
                object_fit="contain",
                buttons=[],
                preview=False,
                allow_preview=False,
                elem_id="travel-keys",
                elem_classes=classes,
            )
            video = gr.Video(
                label="Video",
                show_label=False,
                interactive=False,
                autoplay=True,
                loop=True,
                buttons=[],
                elem_id="travel-video",
                elem_classes="frame",
            )
            moving = pieces.picture(  # where no MP4 can be written
                "Moving picture", classes, "travel-moving", show_label=False, visible=False
            )
            note = gr.Markdown("Press *Make video*.", elem_classes="note", elem_id="travel-note")
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            with gr.Row(elem_classes="seed-row"):
                seeds = gr.Textbox(
                    "1, 5, 9",
                    label="Key seeds",
                    info=f"{travel.KEYS[0]} to {travel.KEYS[1]} numbers with commas between them.",
                    max_length=travel.LONGEST_TEXT,
                    min_width=120,
                    elem_id="travel-seeds",
                )
                more = gr.Button("Add one", elem_id="travel-add", min_width=90, elem_classes="dice")
            frames = gr.Slider(*travel.FRAMES, value=72, step=1, label="Frames", elem_id="travel-frames")
            speed = gr.Slider(
                *travel.SPEED,
                value=24,
                step=1,
                label="Speed",
                info="Frames per second.",
                elem_id="travel-speed",
            )
            kind = gr.Dropdown(
                _kinds(engine, context.start),
                value=travel.kinds(engine, context.start)[0],
                label="Path",
                filterable=False,
                elem_id="travel-kind",
            )
            truncation = pieces.truncation(context, "travel-truncation")
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Make video", variant="primary", elem_id="travel-start", min_width=160)
                stop = gr.Button("Stop", elem_id="travel-stop", interactive=False, min_width=80)
            download = gr.DownloadButton("Download video", elem_id="travel-download", interactive=False)
            code = pieces.code("travel-code")

    settings = [context.model, seeds, frames, kind, speed, truncation]
    shown = [video, moving, keys, note, download, code, stop]

    def make(state: Session, *values: Any, progress: Any = gr.Progress()) -> Iterator[tuple[Any, ...]]:  # noqa: B008
        """Yields now and then, so that it can be stopped."""
        try:
            yield (gr.skip(),) * 6 + (gr.Button(interactive=True),)
            shown_at = 0.0
            for found in travel.travel(engine, *values, told=telling(progress)):
                if found is None and time.monotonic() - shown_at < PAUSE:
                    continue
                shown_at = time.monotonic()
                yield _shown(state, values, found)
        except StyleNATHubError:
            yield (gr.skip(),) * 6 + (gr.Button(interactive=False),)
            raise

    def _shown(state: Session, values: tuple[Any, ...], found: travel.Travelled | None) -> tuple[Any, ...]:
        if found is None:
            return (gr.skip(),) * len(shown)
        if found.video is None:
            state.beside = _keyed(values)
            return gr.skip(), gr.skip(), _captioned(found.keys), *(gr.skip(),) * 4
        film = found.video.suffix == ".mp4"
        path = str(found.video)
        return (
            gr.Video(path if film else None, visible=film),
            gr.Image(None if film else path, visible=not film),
            gr.skip(),
            pieces.note(found, f"{found.frames} frames"),
            gr.DownloadButton(value=path, interactive=True),
            found.code,
            gr.Button(interactive=False),
        )

    def show_keys(state: Session, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        if state.beside == _keyed(values):
            return gr.skip()
        found = travel.keys(engine, values[0], values[1], values[5], telling(progress))
        state.beside = _keyed(values)
        return _captioned(found)

    def refit(name: str) -> tuple[Any, ...]:
        classes = pieces.look(engine.pixelated(name))
        return (
            gr.Slider(value=engine.default_truncation(name)),
            gr.Dropdown(_kinds(engine, name), value=travel.kinds(engine, name)[0]),
            gr.Gallery(elem_classes=classes),
            gr.Image(elem_classes=[*classes, "square"]),
        )

    making = start.click(
        told_along(make), [session, *settings], shown, show_progress_on=video, **QUEUE, **PRIVATE
    )
    stop.click(_stopped, None, [note, stop], cancels=[making], **PRIVATE)
    keying = {
        "fn": told(show_keys),
        "inputs": [session, *settings],
        "outputs": keys,
        "show_progress_on": keys,
    }
    keying |= {"trigger_mode": "always_last", **PRIVATE}
    gr.on([seeds.submit, seeds.blur, truncation.release], **keying)
    more.click(None, seeds, seeds, js=_MORE, **PRIVATE).then(**{**keying, "trigger_mode": None})
    pieces.when_open(context, NAME, keying, refit, [truncation, kind, keys, moving], 1)
    _endpoint(context)


def _stopped() -> tuple[str, Any]:
    return "Stopped.", gr.Button(interactive=False)


def _keyed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the key pictures depend on: the model, the seeds, the truncation."""
    return values[0], values[1], values[5]


def _captioned(keys: list[tuple[int, Any]]) -> list[tuple[Any, str]]:
    return [(picture, f"{seed}") for seed, picture in keys]


def _kinds(engine: Any, name: str) -> list[tuple[str, str]]:
    return [(KINDS[kind], kind) for kind in travel.kinds(engine, name)]


def _endpoint(context: Context) -> None:
    """`/travel` for programs."""
    with gr.Group(visible=False):
        inputs = [
            gr.Textbox("1, 5, 9", label="seeds"),
            gr.Number(72, label="frames", precision=0),
            gr.Textbox("smooth", label="kind"),
            gr.Number(24, label="fps", precision=0),
            gr.Number(1.0, label="truncation"),
            gr.Textbox(context.start, label="model"),
        ]
        outputs = [gr.File(label="video"), gr.Textbox(label="code")]
        trigger = gr.Button()

    def make(seeds: str, frames: int, kind: str, fps: int, truncation: float, model: str) -> tuple[str, str]:
        """A looping video through the pictures of some seeds (an MP4, else a WebP), and the Python code that
        makes it again. seeds: numbers with commas between them. kind: smooth, lerp or slerp."""
        *_, found = travel.travel(context.engine, model, seeds, frames, kind, fps, truncation)
        return str(found.video), found.code

    trigger.click(told(make), inputs, outputs, api_name="travel", preprocess=False, **QUEUE)

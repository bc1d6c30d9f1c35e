"""What the tabs are made of: pictures, seeds, and when they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from studio import checks
from studio.context import PRIVATE, Context, told
from stylenat_hub.errors import StyleNATHubError
from stylenat_hub.pipeline import MAX_SEED

RANDOM = f"() => Math.floor(Math.random() * {MAX_SEED + 1})"
# The last input of an event becomes the name of the tab that is open.
_OPEN = (
    "(...values) => [...values.slice(0, -1), "
    "document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim() ?? '']"
)


class Session:
    """What one visitor sees in one tab. asked: the settings of the picture that is shown in full, or None.
    turn: how many full pictures were begun, so that a preview that is late shows nothing. beside: the
    settings of what is shown beside it, so that it is drawn again only when they change."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] | None = None
        self.beside: Any = None
        self.turn = 0


def in_full(draw: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """A callback (state, *values) that draws, unless just this is shown already. draw: the same."""

    def call(state: Session, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        if values == state.asked:
            return (gr.skip(),) * outputs
        state.asked, state.turn = values, state.turn + 1
        try:
            return draw(state, progress, *values)
        except StyleNATHubError:
            state.asked = state.beside = None
            raise

    return told(call)


def in_small(preview: Callable[..., Any]) -> Callable[..., Any]:
    """A callback (state, *values) for while a slider moves. preview(*values): a picture or None."""

    def call(state: Session, *values: Any) -> Any:
        turn, image = state.turn, None if values == state.asked else preview(*values)
        if image is None or turn != state.turn:
            return gr.skip()
        state.asked = None
        return image

    return told(call)


SMALL = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "concurrency_id": "preview",
    "concurrency_limit": 4,
    **PRIVATE,
}


def picture(label: str, classes: Sequence[str], elem_id: str, **options: Any) -> gr.Image:
    """A picture of the model, as large as its column."""
    return gr.Image(
        format="png",
        label=label,
        interactive=False,
        buttons=options.pop("buttons", []),
        elem_id=elem_id,
        elem_classes=[*classes, "square"],
        alt_text=options.pop("alt_text", label),
        **options,
    )


def look(pixelated: bool) -> list[str]:
    return ["frame", "pixelated"] if pixelated else ["frame"]


def seed(value: int, label: str, elem_id: str) -> tuple[gr.Number, gr.Button]:
    """A number with a button that rolls it."""
    with gr.Row(elem_classes="seed-row"):
        number = gr.Number(value, label=label, precision=0, min_width=90, elem_id=elem_id)
        dice = gr.Button("Random", elem_id=f"{elem_id}-dice", min_width=90, elem_classes="dice")
    return number, dice


def truncation(context: Context, elem_id: str) -> gr.Slider:
    psi = context.engine.default_truncation(context.start)
    return gr.Slider(
        *checks.TRUNCATION, value=psi, step=0.01, label="Truncation", min_width=240, elem_id=elem_id
    )


def code(elem_id: str) -> gr.Code:
    with gr.Accordion("Python that repeats this", open=False):
        return gr.Code(language="python", show_label=False, label="Python", elem_id=elem_id, wrap_lines=True)


def note(drawn: Any, what: str) -> str:
    return f"{what} · {drawn.model} · drawn in {drawn.seconds:.2f} s"


def when_open(
    context: Context,
    name: str,
    drawing: dict[str, Any],
    refit: Callable[[str], Any],
    refitted: list[Any],
    outputs: int,
) -> None:
    """Draw when the tab is opened, and, while it is open, when another model is in use. refit: what another
    model changes, as `Context.on_model` takes it."""
    fn, once = drawing["fn"], {**drawing, "trigger_mode": None}
    context.tab.select(**once)
    shown = gr.Textbox(visible=False, label="The tab that is open")

    def if_open(*values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        if values[-1] == name:
            return fn(*values[:-1], progress=progress)
        return gr.skip() if outputs == 1 else (gr.skip(),) * outputs

    later = {**once, "fn": if_open, "inputs": [*drawing["inputs"], shown], "js": _OPEN}
    context.on_model(refit, refitted, then=later)

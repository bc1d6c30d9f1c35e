"""One seed's picture, moved by sliders along directions found in the model."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio import editing, steering
from studio.context import Context, telling, told
from studio.tabs import pieces
from studio.tabs.pieces import PRIVATE, Session
from stylenat_hub.errors import InputError

NAME = "Edit"
METHODS = {"sefa": "SeFa", "pca": "PCA"}
HINT = (
    "Directions that the model itself has, the strongest first: found in its weights (SeFa) or among its "
    "styles (PCA). Nobody has named them: move one and see. Counted in standard deviations."
)


def build(context: Context) -> None:
    engine, session = context.engine, gr.State(Session())
    classes = pieces.look(engine.pixelated(context.start))
    with gr.Row(elem_id="edit-row"):
        with gr.Column(scale=3, min_width=280):
            with gr.Row(elem_id="edit-pictures"):
                before = pieces.picture("Before", classes, "edit-before", min_width=100)
                after = pieces.picture("After", classes, "edit-after", min_width=100, buttons=["fullscreen"])
            note = gr.Markdown(elem_classes="note", elem_id="edit-note")
            seed, dice = pieces.seed(0, "Seed", "edit-seed")
            truncation = pieces.truncation(context, "edit-truncation")
        with gr.Column(scale=2, min_width=300, elem_classes="controls"):
            with gr.Row():
                method = gr.Dropdown(
                    _methods(engine, context.start),
                    value="sefa",
                    label="Directions by",
                    filterable=False,
                    min_width=180,
                    elem_id="edit-method",
                )
                where = gr.Dropdown(
                    _levels(engine, context.start),
                    value="all",
                    label="Levels",
                    filterable=False,
                    min_width=180,
                    elem_id="edit-levels",
                )
            gr.Markdown(HINT, elem_classes="hint")
            with gr.Column(elem_classes="sliders", elem_id="edit-sliders"):
                sliders = [
                    gr.Slider(
                        -editing.STRONGEST,
                        editing.STRONGEST,
                        value=0,
                        step=0.1,
                        label=f"Direction {number + 1}",
                        visible=number < editing.count(engine, context.start),
                        elem_id=f"edit-direction-{number + 1}",
                    )
                    for number in range(editing.COUNT)
                ]
            with gr.Row(elem_classes="buttons"):
                reset = gr.Button("Reset", elem_id="edit-reset", min_width=90)
                draw_button = gr.Button("Edit", variant="primary", elem_id="edit-draw", min_width=90)
            download = gr.DownloadButton("Download PNG", elem_id="edit-download", interactive=False)
            code = pieces.code("edit-code")

    settings = [context.model, seed, truncation, method, where, *sliders]
    shown = [before, after, note, download, code]

    def draw(state: Session, progress: Any, *values: Any) -> tuple[Any, ...]:
        model, number, psi, way, levels, *strengths = values
        strengths = strengths[: editing.count(engine, model)]
        found = editing.edit(engine, model, number, psi, way, levels, strengths, told=telling(progress))
        beside = gr.skip()
        if state.beside != (model, number, psi):
            beside = steering.source(engine, model, number, psi)
            state.beside = (model, number, psi)
        file = gr.DownloadButton(value=str(found.file), interactive=True)
        return beside, str(found.file), pieces.note(found, f"Seed {int(number)}"), file, found.code

    def preview(model: str, number: Any, psi: Any, way: str, levels: str, *strengths: Any) -> Any:
        strengths = strengths[: editing.count(engine, model)]
        return editing.preview(engine, model, number, psi, way, levels, strengths)

    def refit(name: str) -> tuple[Any, ...]:
        classes = [*pieces.look(engine.pixelated(name)), "square"]
        return (
            gr.Slider(value=engine.default_truncation(name)),
            gr.Image(elem_classes=classes),
            gr.Image(elem_classes=classes),
            gr.Dropdown(_methods(engine, name), value="sefa"),
            gr.Dropdown(_levels(engine, name), value="all"),
            *(gr.Slider(value=0, visible=n < editing.count(engine, name)) for n in range(editing.COUNT)),
        )

    drawing = {"fn": pieces.in_full(draw, len(shown)), "inputs": [session, *settings], "outputs": shown}
    drawing |= {"trigger_mode": "always_last", "show_progress_on": note, **PRIVATE}
    released = [slider.release for slider in (truncation, *sliders)]
    gr.on([draw_button.click, seed.submit, seed.blur, method.input, where.input, *released], **drawing)
    once = {**drawing, "trigger_mode": None}
    dice.click(None, None, seed, js=pieces.RANDOM, **PRIVATE).then(**once)
    reset.click(lambda: [0] * len(sliders), None, sliders, **PRIVATE).then(**once)
    moved = [slider.input for slider in (truncation, *sliders)]
    gr.on(moved, pieces.in_small(preview), [session, *settings], after, **pieces.SMALL)
    pieces.when_open(
        context, NAME, drawing, refit, [truncation, before, after, method, where, *sliders], len(shown)
    )
    _endpoint(context)


def _methods(engine: Any, name: str) -> list[tuple[str, str]]:
    return [(METHODS[method], method) for method in editing.methods(engine, name)]


def _levels(engine: Any, name: str) -> list[tuple[str, str]]:
    found = editing.levels(engine, name)
    several = {
        name: f"{name.capitalize()} ({_range(sizes)})" for name, sizes in found.items() if name != "all"
    }
    return [(several.get(name, "All levels"), name) for name in found]


def _range(sizes: list[int]) -> str:
    return f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px"


def _endpoint(context: Context) -> None:
    """`/edit` for programs."""
    with gr.Group(visible=False):
        inputs = [
            gr.Number(0, label="seed", precision=0),
            gr.Textbox("2", label="strengths"),
            gr.Textbox("sefa", label="method"),
            gr.Textbox("all", label="levels"),
            gr.Number(1.0, label="truncation"),
            gr.Textbox(context.start, label="model"),
        ]
        outputs = [gr.Image(format="png", label="picture"), gr.Textbox(label="code")]
        trigger = gr.Button()

    def edit(
        seed: int, strengths: str, method: str, levels: str, truncation: float, model: str
    ) -> tuple[str, str]:
        """The picture of a seed moved along the model's strongest directions, as a PNG file, and the Python
        code that draws it again. strengths: numbers with commas between them, in standard deviations, of the
        first directions. method: sefa or pca. levels: all, coarse, middle or fine."""
        numbers = _numbers(strengths)
        found = editing.edit(context.engine, model, seed, truncation, method, levels, numbers)
        return str(found.file), found.code

    trigger.click(told(edit), inputs, outputs, api_name="edit", preprocess=False)


def _numbers(text: Any) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except (AttributeError, ValueError):
        raise InputError(
            f"the strengths are {text!r:.100}; allowed: numbers with commas between them, such as 2,-1.5"
        ) from None

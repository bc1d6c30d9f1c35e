"""Click on a picture and see what that place takes from the others."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import gradio as gr

from studio import checks, looking
from studio.context import Context, telling, told

NAME = "Inside"
PRIVATE = {"api_visibility": "private", "preprocess": False}  # the engine checks everything
SLOW = "Press Show: a picture of this model takes a while."
NONE = "This model has no self-attention to look into. Choose another one above."


def build(context: Context) -> None:
    engine = context.engine
    there = looking.levels(engine, context.start)
    with gr.Row(elem_classes="halves"):
        with gr.Column(scale=1, min_width=320):
            picture = gr.Image(
                format="png",
                label="Picture",
                show_label=False,
                interactive=False,
                buttons=[],
                elem_id="inside-picture",
                elem_classes=["frame", "square", "clickable"],
                alt_text="The generated picture, with the place that is looked from in a ring",
            )
            note = gr.Markdown(elem_id="inside-note", elem_classes="quiet")
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            panels = gr.HTML(elem_id="inside-panels", label="What each partition attends to", padding=False)
            with gr.Row():
                place = {"minimum": 0, "maximum": 1, "value": 0.5, "step": 0.01, "min_width": 130}
                x = gr.Slider(label="x, from the left", elem_id="inside-x", **place)
                y = gr.Slider(label="y, from the top", elem_id="inside-y", **place)
            with gr.Row():
                level = gr.Dropdown(**_levels(there), label="Level", elem_id="inside-level", min_width=130)
                block = gr.Dropdown(**_blocks(there), label="Block", elem_id="inside-block", min_width=130)
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, min_width=130, elem_id="inside-seed")
                psi = gr.Slider(
                    *checks.TRUNCATION,
                    value=engine.default_truncation(context.start),
                    step=0.01,
                    label="Truncation",
                    min_width=130,
                    elem_id="inside-truncation",
                )
            every = gr.Checkbox(False, label="Each head alone", elem_id="inside-every")
            button = gr.Button("Show", variant="primary", elem_id="inside-show")
    place_inputs = [context.model, seed, psi, level, block, x, y, every]
    shown = [picture, panels, note]

    def draw(*values: Any, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        return _outputs(looking.look(engine, *values, told=telling(progress)))

    def preview(*values: Any) -> tuple[Any, ...]:
        seen = looking.preview(engine, *values)
        return _outputs(seen) if seen else (gr.skip(),) * 3

    def first(*values: Any) -> tuple[Any, ...]:
        """Without having been asked: only where it costs little."""
        there = looking.levels(engine, values[0])
        if not there:
            return None, "", NONE
        if values[4] not in there.get(values[3], ()):  # of the model before: the browser has not caught up
            values = (*values[:3], None, None, *values[5:])
        if not looking.quick(engine.use(values[0])):
            return None, "", SLOW
        return _outputs(looking.look(engine, *values))

    def click(event: gr.SelectData, *values: Any) -> tuple[Any, ...]:
        place = looking.clicked(engine, values[0], event.index)
        seen = looking.look(engine, *values[:5], *place, *values[7:8])
        return *_outputs(seen), round(seen.x, 3), round(seen.y, 3)

    def blocks(name: Any, px: Any) -> Any:
        return gr.Dropdown(**_blocks(looking.levels(engine, name), px))

    def refit(name: str) -> tuple[Any, ...]:
        found = looking.levels(engine, name)
        truncation = gr.Slider(value=engine.default_truncation(name))
        return gr.Dropdown(**_levels(found)), gr.Dropdown(**_blocks(found)), truncation

    drawing = {"fn": told(draw), "inputs": place_inputs, "outputs": shown, "show_progress_on": note}
    drawing |= {"trigger_mode": "always_last", **PRIVATE}
    released = [slider.release for slider in (x, y, psi)]
    gr.on([button.click, seed.submit, every.input, block.input, *released], **drawing)
    level.input(told(blocks), [context.model, level], block, show_progress="hidden", **PRIVATE).then(
        **{**drawing, "trigger_mode": None}
    )
    quietly = {"show_progress": "hidden", "trigger_mode": "always_last"}
    picture.select(told(click), place_inputs, [*shown, x, y], **quietly, **PRIVATE)
    gr.on(
        [slider.input for slider in (x, y, psi)],
        told(preview),
        place_inputs,
        shown,
        **quietly,
        concurrency_id="preview",
        concurrency_limit=4,
        **PRIVATE,
    )
    opening = {"fn": told(first), "inputs": place_inputs, "outputs": shown, "show_progress": "hidden"}
    context.on_model(refit, [level, block, psi], then={**opening, **PRIVATE})
    context.tab.select(**opening, **PRIVATE)
    _endpoint(context)


def _endpoint(context: Context) -> None:
    """`/inside` for programs."""
    with gr.Group(visible=False):
        inputs = [
            gr.Number(0, label="seed", precision=0),
            gr.Number(1.0, label="truncation"),
            gr.Number(0, label="level", precision=0),
            gr.Number(0, label="block", precision=0),
            gr.Number(0.5, label="x"),
            gr.Number(0.5, label="y"),
            gr.Checkbox(False, label="every_head"),
            gr.Textbox(context.start, label="model"),
        ]
        outputs = [
            gr.Image(format="png", label="picture"),
            gr.Gallery(format="png", label="panels"),
            gr.Textbox(label="sentence"),
        ]
        trigger = gr.Button()

    def inside(
        seed: int,
        truncation: float,
        level: int | None,
        block: int | None,
        x: float,
        y: float,
        every_head: bool,
        model: str,
    ) -> Any:
        """The picture of a seed with the place (x, y) marked, and for each partition of the heads what it
        attends to from there. level: in px, 0 for the finest; block: from 1 on, 0 for the last."""
        seen = looking.look(context.engine, model, seed, truncation, level, block, x, y, every_head)
        return seen.picture, [(p.picture, f"{p.title}: {p.words}") for p in seen.panels], seen.sentence

    trigger.click(told(inside), inputs, outputs, api_name="inside", preprocess=False)


def _levels(there: dict[int, list[int]]) -> dict[str, Any]:
    return {"choices": [(f"{px} px", px) for px in there], "value": max(there, default=None)}


def _blocks(there: dict[int, list[int]], px: Any = None) -> dict[str, Any]:
    px = max(there, default=None) if px not in there else px
    blocks = there.get(px, [])
    return {"choices": [(f"{n}", n) for n in blocks], "value": blocks[-1] if blocks else None}


def _outputs(seen: looking.Seen) -> tuple[Any, ...]:
    return seen.picture, figures(seen.panels), seen.sentence


def figures(panels: list[looking.Panel]) -> str:
    """The panels as HTML, pictures included."""
    cells = [
        f'<figure><img src="{_data(panel)}" alt="Attention of {html.escape(panel.title)}, '
        f'{html.escape(panel.words)}"><figcaption><b>{html.escape(panel.title)}</b><br>'
        f"{html.escape(panel.words)}</figcaption></figure>"
        for panel in panels
    ]
    return f'<div class="panels">{"".join(cells)}</div>'


def _data(panel: looking.Panel) -> str:
    file = io.BytesIO()
    panel.picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

"""Seeds to pictures, with the file and the code of each."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio import checks
from studio.context import PRIVATE, Context, telling, told
from studio.tabs.pieces import RANDOM, Session, look

NAME = "Generate"


def build(context: Context) -> None:
    engine, session = context.engine, gr.State(Session())
    psi = engine.default_truncation(context.start)
    classes = look(engine.pixelated(context.start))
    with gr.Row(elem_id="generate-row"):
        with gr.Column(scale=1, min_width=320):
            picture = gr.Image(
                format="png",
                label="Picture",
                show_label=False,
                interactive=False,
                buttons=["fullscreen"],
                elem_id="picture",
                elem_classes=classes,
                alt_text="The generated picture",
            )
            gallery = gr.Gallery(
                format="png",
                label="Pictures",
                show_label=False,
                interactive=False,
                visible=False,
                columns=4,
                height="auto",
                object_fit="contain",
                buttons=["download", "fullscreen"],
                elem_id="gallery",
                elem_classes=classes,
            )
            note = gr.Markdown(elem_id="note")
        with gr.Column(scale=1, min_width=300, elem_id="controls"):
            with gr.Row(elem_classes="seed-row"):
                seed = gr.Number(0, label="Seed", precision=0, min_width=120, elem_id="seed")
                dice = gr.Button("Random", elem_id="dice", min_width=100)
            truncation = gr.Slider(
                *checks.TRUNCATION,
                value=psi,
                step=0.01,
                label="Truncation",
                info="Low: close to the average picture. High: more variety, more mistakes.",
                elem_id="truncation",
            )
            count = gr.Slider(1, checks.MAX_COUNT, value=1, step=1, label="Pictures", elem_id="count")
            with gr.Accordion("Advanced", open=False):
                cutoff = gr.Slider(
                    0,
                    _styles(engine, context.start),
                    value=0,
                    step=1,
                    label="Cutoff",
                    info="Truncate only so many styles, coarse ones first. 0: all.",
                    elem_id="cutoff",
                )
                centers = gr.Slider(
                    0,
                    checks.MAX_CENTERS,
                    value=0,
                    step=1,
                    label="Centres",
                    info="Truncate towards the nearest of so many centres of styles. 0: the mean.",
                    elem_id="centers",
                )
            draw_button = gr.Button("Generate", variant="primary", elem_id="generate")
            download = gr.DownloadButton("Download PNG", elem_id="download", interactive=False)
            with gr.Accordion("Python that repeats this", open=False):
                code = gr.Code(
                    language="python", show_label=False, label="Python", elem_id="code", wrap_lines=True
                )

    settings = [context.model, seed, count, truncation, cutoff, centers]
    shown = [picture, gallery, note, download, code]

    def draw(state: Session, *values: Any, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        state.asked, state.turn = values, state.turn + 1
        drawn = engine.generate(*values, told=telling(progress))
        files = [str(file) for file in drawn.files]
        one = len(files) == 1
        label = "Download PNG" if one else f"Download {len(files)} PNG files (ZIP)"
        return (
            gr.Image(files[0], visible=True, alt_text=_alt(drawn)) if one else gr.Image(None, visible=False),
            gr.Gallery(_captioned(files, drawn.seeds), visible=not one, columns=_columns(len(files))),
            _note(drawn),
            gr.DownloadButton(label, value=str(drawn.bundle), interactive=True),
            drawn.code,
        )

    def preview(state: Session, *values: Any) -> tuple[Any, Any]:
        turn, pictures = state.turn, engine.preview(*values) if values != state.asked else []
        if not pictures or turn != state.turn:  # a full picture was begun meanwhile
            return gr.skip(), gr.skip()
        if values[2] == 1:
            return gr.Image(pictures[0], visible=True), gr.Gallery(visible=False)
        seeds = range(int(values[1]), int(values[1]) + len(pictures))
        return gr.Image(visible=False), gr.Gallery(_captioned(pictures, seeds), visible=True)

    def refit(name: str) -> tuple[Any, ...]:
        classes = look(engine.pixelated(name))
        return (
            gr.Slider(value=engine.default_truncation(name)),
            gr.Slider(value=0, maximum=_styles(engine, name)),
            gr.Slider(value=0),
            gr.Image(elem_classes=classes),
            gr.Gallery(elem_classes=classes),
        )

    drawing = {"fn": told(draw), "inputs": [session, *settings], "outputs": shown, "show_progress_on": note}
    drawing |= {"trigger_mode": "always_last", **PRIVATE}
    released = [slider.release for slider in (count, truncation, cutoff, centers)]
    gr.on([draw_button.click, seed.submit, *released], **drawing)
    once = {**drawing, "trigger_mode": None}
    dice.click(None, None, seed, js=RANDOM, **PRIVATE).then(**once)
    truncation.input(
        told(preview),
        [session, *settings],
        [picture, gallery],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_id="preview",
        concurrency_limit=4,
        **PRIVATE,
    )
    context.on_load(draw, [session, *settings], shown)
    context.on_model(refit, [truncation, cutoff, centers, picture, gallery], then=once)
    _endpoint(context)


def _endpoint(context: Context) -> None:
    """`/generate` for programs: the same, with plain results."""
    with gr.Group(visible=False):
        inputs = [
            gr.Number(0, label="seed", precision=0),
            gr.Number(1, label="count", precision=0),
            gr.Number(1.0, label="truncation"),
            gr.Number(0, label="cutoff", precision=0),
            gr.Number(0, label="centers", precision=0),
            gr.Textbox(context.start, label="model"),
        ]
        outputs = [gr.Gallery(format="png", label="pictures"), gr.Textbox(label="code")]
        trigger = gr.Button()

    def generate(seed: int, count: int, truncation: float, cutoff: int, centers: int, model: str) -> Any:
        """PNG files of `count` seeds from `seed` on, each labelled with how it was made, and the Python code
        that draws them again. cutoff, centers: 0 for none."""
        drawn = context.engine.generate(model, seed, count, truncation, cutoff, centers)
        return _captioned([str(file) for file in drawn.files], drawn.seeds), drawn.code

    # Without gradio's own conversion, whose errors quote what was sent: the engine checks everything.
    trigger.click(told(generate), inputs, outputs, api_name="generate", preprocess=False)


def _columns(count: int) -> int:
    return next(side for side in range(1, count + 1) if side * side >= count)


def _captioned(pictures: list[Any], seeds: Any) -> list[tuple[Any, str]]:
    return [(picture, f"seed {seed}") for picture, seed in zip(pictures, seeds, strict=True)]


def _styles(engine: Any, name: str) -> int:
    return engine.use(name).generator.num_ws


def _alt(drawn: Any) -> str:
    """What a screen reader says of the picture."""
    return f"Generated picture of {drawn.model}, seed {drawn.seeds[0]}"


def _note(drawn: Any) -> str:
    first, last = drawn.seeds[0], drawn.seeds[-1]
    which = f"Seed {first}" if first == last else f"Seeds {first} to {last}"
    return f"{which} · {drawn.model} · drawn in {drawn.seconds:.2f} s"

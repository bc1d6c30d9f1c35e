"""Two seeds to one picture: each level of it from one, the other, or between them."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from studio import checks, mixing, steering
from studio.context import Context, telling, told
from studio.tabs import pieces
from studio.tabs.pieces import PRIVATE, Session

NAME = "Mix"


def build(context: Context) -> None:
    engine, session = context.engine, gr.State(Session())
    why_not = mixing.why_not(engine, context.start)
    sorry = gr.Markdown(_sentence(why_not), visible=bool(why_not), elem_classes="sorry")
    classes = pieces.look(engine.pixelated(context.start))
    with gr.Column(visible=not why_not, elem_id="mix") as all_of_it:
        with gr.Row(elem_id="mix-row"):
            with gr.Column(min_width=0, elem_id="mix-a"):
                picture_a = pieces.picture("A", classes, "mix-picture-a", alt_text="The picture of seed A")
                seed_a, dice_a = pieces.seed(0, "Seed A", "mix-seed-a")
            with gr.Column(min_width=0, elem_id="mix-both"):
                both = pieces.picture(
                    "Mixed",
                    classes,
                    "mix-picture",
                    show_label=False,
                    buttons=["fullscreen"],
                    alt_text="The picture mixed from both seeds",
                )
                note = gr.Markdown(elem_classes="note", elem_id="mix-note")
            with gr.Column(min_width=0, elem_id="mix-b"):
                picture_b = pieces.picture("B", classes, "mix-picture-b", alt_text="The picture of seed B")
                seed_b, dice_b = pieces.seed(1, "Seed B", "mix-seed-b")
        with gr.Row(elem_id="mix-choice"):
            with gr.Column(scale=2, min_width=240):
                gr.Markdown("How much of each level is B's: 0 none, 1 all.", elem_classes="hint")
            groups = {
                group: gr.Button(f"{group.capitalize()} from B", min_width=110, elem_id=f"mix-{group}")
                for group in mixing.GROUPS
            }
        with gr.Row(elem_id="mix-levels", elem_classes="sliders"):
            sliders = _sliders(engine, context.start)
        with gr.Row(elem_classes="last"):
            truncation = pieces.truncation(context, "mix-truncation")
            draw_button = gr.Button("Mix", variant="primary", elem_id="mix-draw", min_width=120)
            download = gr.DownloadButton(
                "Download PNG", elem_id="mix-download", interactive=False, min_width=120
            )
        code = pieces.code("mix-code")

    settings = [context.model, seed_a, seed_b, truncation, *sliders]
    shown = [picture_a, picture_b, both, note, download, code]

    def draw(state: Session, progress: Any, *values: Any) -> tuple[Any, ...]:
        model, first, second, psi, *wanted = values
        if mixing.why_not(engine, model):
            return (gr.skip(),) * len(shown)
        found = mixing.mix(engine, model, first, second, psi, wanted, told=telling(progress))
        beside = [gr.skip(), gr.skip()]
        if state.beside != (model, first, second, psi):
            beside = [steering.source(engine, model, seed, psi) for seed in (first, second)]
            state.beside = (model, first, second, psi)
        file = gr.DownloadButton(value=str(found.file), interactive=True)
        words = pieces.note(found, f"Seeds {int(first)} and {int(second)}")
        return *beside, str(found.file), words, file, found.code

    def preview(model: str, first: Any, second: Any, psi: Any, *wanted: Any) -> Any:
        return mixing.preview(engine, model, first, second, psi, wanted)

    def choose(group: str, model: str) -> list[Any]:
        shares = mixing.shares_of_group(engine, model, group)
        return [gr.Slider(value=share) for share in shares] + [gr.skip()] * (len(sliders) - len(shares))

    def refit(name: str) -> tuple[Any, ...]:
        why_not = mixing.why_not(engine, name)
        classes = [*pieces.look(engine.pixelated(name)), "square"]
        there = dict(mixing.levels(engine, name)).values()
        return (
            gr.Markdown(_sentence(why_not), visible=bool(why_not)),
            gr.Column(visible=not why_not),
            gr.Slider(value=engine.default_truncation(name)),
            *(gr.Image(elem_classes=classes) for _ in range(3)),
            *(gr.Button(visible=group in there) for group in mixing.GROUPS),
            *_refitted(engine, name),
        )

    drawing = {"fn": pieces.in_full(draw, len(shown)), "inputs": [session, *settings], "outputs": shown}
    drawing |= {"trigger_mode": "always_last", "show_progress_on": note, **PRIVATE}
    numbers, released = (seed_a, seed_b), [slider.release for slider in (truncation, *sliders)]
    entered = [event for number in numbers for event in (number.submit, number.blur)]
    gr.on([draw_button.click, *entered, *released], **drawing)
    once = {**drawing, "trigger_mode": None}
    for dice, number in ((dice_a, seed_a), (dice_b, seed_b)):
        dice.click(None, None, number, js=pieces.RANDOM, **PRIVATE).then(**once)
    for group, button in groups.items():
        button.click(told(partial(choose, group)), context.model, sliders, **PRIVATE).then(**once)
    moved = [slider.input for slider in (truncation, *sliders)]
    gr.on(moved, pieces.in_small(preview), [session, *settings], both, **pieces.SMALL)
    refitted = [sorry, all_of_it, truncation, picture_a, picture_b, both, *groups.values(), *sliders]
    pieces.when_open(context, NAME, drawing, refit, refitted, len(shown))
    _endpoint(context)


def _sliders(engine: Any, name: str) -> list[gr.Slider]:
    """One per level, the coarsest first; as many as the largest model has."""
    there = mixing.levels(engine, name)[: mixing.MOST_LEVELS]
    return [
        gr.Slider(
            0,
            1,
            value=float(number < len(there) and there[number][1] == "coarse"),
            step=0.01,
            label=_label(there, number),
            visible=number < len(there),
            min_width=200,
            elem_id=f"mix-level-{number}",
        )
        for number in range(mixing.MOST_LEVELS)
    ]


def _refitted(engine: Any, name: str) -> list[Any]:
    there = mixing.levels(engine, name)[: mixing.MOST_LEVELS]
    return [
        gr.Slider(
            value=float(number < len(there) and there[number][1] == "coarse"),
            label=_label(there, number),
            visible=number < len(there),
        )
        for number in range(mixing.MOST_LEVELS)
    ]


def _label(there: list[tuple[int, str]], number: int) -> str:
    return f"{there[number][0]} px · {there[number][1]}" if number < len(there) else "no level"


def _sentence(why_not: str | None) -> str:
    return f"{why_not[:1].upper()}{why_not[1:]}." if why_not else ""


def _endpoint(context: Context) -> None:
    """`/mix` for programs."""
    with gr.Group(visible=False):
        inputs = [
            gr.Number(0, label="seed_a", precision=0),
            gr.Number(1, label="seed_b", precision=0),
            gr.Textbox("coarse", label="levels"),
            gr.Number(1.0, label="truncation"),
            gr.Textbox(context.start, label="model"),
        ]
        outputs = [gr.Image(format="png", label="picture"), gr.Textbox(label="code")]
        trigger = gr.Button()

    def mix(seed_a: int, seed_b: int, levels: str, truncation: float, model: str) -> tuple[str, str]:
        """The picture of seed_a with some levels of seed_b's, as a PNG file, and the Python code that draws
        it again. levels: coarse, middle, fine, all, or sizes in px such as 4,8; coarse:0.5 takes half."""
        levels = checks.text("the list of levels", levels, mixing.LONGEST)
        found = mixing.mix(context.engine, model, seed_a, seed_b, truncation, levels)
        return str(found.file), found.code

    trigger.click(told(mix), inputs, outputs, api_name="mix", preprocess=False)

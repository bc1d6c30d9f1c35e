"""The page: a header with the model picker, and one tab per module of `TABS`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.context import PRIVATE, Context, telling, told
from studio.engine import Engine
from studio.tabs import about, edit, generate, inside, mix, project, travel
from stylenat_hub.errors import StyleNATHubError

TABS = (generate, mix, travel, edit, project, inside, about)
TITLE = "StyleNAT"
SENTENCE = (
    "Pictures from transformer GANs. **Every picture here is generated: none shows a real person or place.**"
)
WAITING = 64  # requests that may wait; further ones are told to come back
AT_ONCE = 2


def build(engine: Engine) -> gr.Blocks:
    """All of it, queue included, for `launch`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        context, picked = _header(engine)
        with gr.Tabs(overflow_behavior="wrap"):
            for tab in TABS:
                with gr.Tab(tab.NAME, id=tab.NAME.lower()) as context.tab:
                    tab.build(context)
        gr.Markdown("Generated pictures. Nothing you do here is recorded.", elem_id="foot")
        for fn, outputs, then in context.followers:
            event = picked.change(told(fn), picked, outputs, show_progress="hidden", **PRIVATE)
            if then:
                event.success(**then)
        for fn, inputs, outputs in context.load:
            demo.load(told(fn), inputs, outputs, **PRIVATE)
    return demo.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def _sentence(error: Exception) -> str:
    words = str(error)
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _header(engine: Engine) -> tuple[Context, gr.State]:
    """The title, the picker, and the name of the model that is in use."""
    start = engine.catalog.start
    with gr.Row(elem_id="head"):
        with gr.Column(scale=3, min_width=280):
            gr.Markdown(f"# {TITLE}\n\n{SENTENCE}", elem_id="title")
        with gr.Column(scale=2, min_width=280):
            model = gr.Dropdown(
                engine.catalog.choices(),
                value=start,
                label="Model",
                elem_id="model",
                allow_custom_value=engine.catalog.allow_any,
            )
            facts = gr.Markdown(engine.catalog.facts(start), elem_id="facts")
    notice = gr.Markdown(visible=False, elem_id="notice")
    current = gr.State(start)

    def pick(name: str, before: str, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        try:
            engine.use(name, telling(progress))
        except StyleNATHubError as error:
            words = f"**{name} cannot be used here.** {_sentence(error)} This page goes on with {before}."
            return before, before, engine.catalog.facts(before), gr.Markdown(words, visible=True)
        return name, name, engine.catalog.facts(name), gr.Markdown(visible=False)

    picking = {"concurrency_id": "load", "concurrency_limit": 1, "show_progress_on": facts}
    model.input(pick, [model, current], [model, current, facts, notice], **picking, **PRIVATE)
    return Context(engine, model, start), current

"""The model's card: what it is, what it was trained on, licence, limits, citation."""

from __future__ import annotations

import gradio as gr

from studio.context import Context

NAME = "About"


def build(context: Context) -> None:
    card = gr.Markdown(context.engine.card(context.start), elem_id="card", header_links=False)
    context.on_model(context.engine.card, [card])

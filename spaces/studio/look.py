"""How the page looks: gradio's theme, the style sheet, and the few lines of script it needs. All of it local:
system fonts, nothing fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("look.css")
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
_ACCENT = gr.themes.Color(
    name="dusk",
    c50="#f3f4fb",
    c100="#e5e7f6",
    c200="#cbd0ee",
    c300="#a8b0e1",
    c400="#8089d1",
    c500="#6069bf",
    c600="#4c53a6",
    c700="#3f4487",
    c800="#343869",
    c900="#2b2e53",
    c950="#1b1d36",
)

# gradio's sliders say "released" when a pointer lets go; keys should say so, too. The style is here because
# gradio prefixes the rules of a style sheet inside @media with a part of the page that this one contains.
HEAD = """
<style>
@media (max-width: 720px) { .gradio-container > .main.app { padding: 10px 14px !important; } }
</style>
<script>
document.addEventListener("keyup", (event) => {
  const slides = event.target.matches && event.target.matches("input[type=range]");
  if (slides && /^(Arrow|Home|End|Page)/.test(event.key)) {
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  }
});
</script>
"""


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONTS,
        font_mono=MONO,
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#131316",
        background_fill_primary_dark="#1b1b1f",
        background_fill_secondary_dark="#17171a",
        block_background_fill="white",
        block_background_fill_dark="#1b1b1f",
        body_text_color_subdued="#6b6660",
        body_text_color_subdued_dark="#a8a29e",
        block_info_text_color="#6b6660",
        block_info_text_color_dark="#a8a29e",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="white",
        button_secondary_background_fill_dark="#2a2a30",
        button_secondary_background_fill_hover_dark="#35353c",
        button_secondary_text_color_dark="*neutral_100",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        input_background_fill="*neutral_100",
        input_background_fill_dark="#26262b",
        input_border_width="1px",
    )

"""The Space: `python spaces/app.py [MODEL]`, or `stylenat demo [MODEL]`. On Hugging Face it starts without
arguments."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from studio import zero  # noqa: F401  before torch, where a Space is lent its GPU
from studio.scratch import Scratch

SCRATCH = Scratch()
os.environ["GRADIO_TEMP_DIR"] = str(SCRATCH.root)  # before gradio is imported: its copies go with ours

import gradio as gr  # noqa: E402

from studio import look, page  # noqa: E402
from studio.engine import Engine  # noqa: E402
from stylenat_hub import signals  # noqa: E402
from stylenat_hub.errors import StyleNATHubError  # noqa: E402

SESSIONS = 200  # that gradio remembers, at 0.4 MB each
MAX_UPLOAD = "16mb"


def deployed_model() -> str | None:
    """The Hub id that `python -m spaces.deploy` wrote beside this file, if it was given one."""
    path = Path(__file__).with_name("space.json")
    return json.loads(path.read_text(encoding="utf-8")).get("model") if path.is_file() else None


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Pictures from transformer GANs, in a browser."
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=deployed_model(),
        help="zoo name, folder or Hub id; default: the built-in model",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--host", help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--memory", type=float, default=4, metavar="GIB", help="weights kept loaded, in GiB")
    parser.add_argument("--open", action="store_true", help="open the browser")
    parser.add_argument(
        "--allow-any-model",
        action="store_true",
        help="let visitors name folders of this machine and Hub ids: for a page that only you reach",
    )
    return parser.parse_args(line)


def make(options: argparse.Namespace) -> gr.Blocks:
    """The page, its first model loaded."""
    memory = int(options.memory * 2**30)
    engine = Engine(
        options.model,
        device=options.device,
        allow_any=options.allow_any_model,
        memory=memory,
        scratch=SCRATCH,
    )
    engine.use(engine.catalog.start)  # so that the first visitor does not wait for it
    return page.build(engine)


def launch(demo: gr.Blocks, options: argparse.Namespace, **more: object) -> object:
    """Serve it; returns when it is told to end. more: further arguments of gradio's `launch`."""
    return demo.launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=options.open,
        theme=look.theme(),
        css_paths=look.CSS,
        head=look.HEAD,
        max_file_size=MAX_UPLOAD,
        show_error=True,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        share=False,
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        **more,
    )


def main(line: list[str] | None = None) -> None:
    options = arguments(line)
    with signals.caught():  # however it is told to end, its files go with it
        try:
            demo = make(options)
        except StyleNATHubError as error:
            raise SystemExit(f"error: {error}") from None
        launch(demo, options)


if __name__ == "__main__":
    main()

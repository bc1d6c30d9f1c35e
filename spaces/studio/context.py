"""What a tab is given, and how its callbacks tell a visitor what went wrong."""

from __future__ import annotations

import contextlib
import functools
import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from studio.engine import Engine
from stylenat_hub.errors import StyleNATHubError

PRIVATE = {"api_visibility": "private"}  # for events that programs need not see


@dataclass
class Context:
    """model: the picker, an input of every callback that draws. start: the name it has first. tab: the one
    that is being built, whose `select` says that it is looked at."""

    engine: Engine
    model: gr.Dropdown
    start: str
    tab: gr.Tab | None = None
    followers: list[tuple[Callable[..., Any], list[Any], dict[str, Any] | None]] = field(default_factory=list)
    load: list[tuple[Callable[..., Any], list[Any], list[Any]]] = field(default_factory=list)

    def on_model(
        self, fn: Callable[[str], Any], outputs: list[Any], then: dict[str, Any] | None = None
    ) -> None:
        """Have `fn(name)` called, and its outputs shown, whenever another model is in use. then: the
        arguments of an event (fn, inputs, outputs) that follows it."""
        self.followers.append((fn, outputs, then))

    def on_load(self, fn: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Have it called when the page opens."""
        self.load.append((fn, inputs, outputs))


def told(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The callback, with this package's errors as gradio's, which the page shows as they are written."""

    @functools.wraps(fn)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return fn(*arguments, **options)
        except StyleNATHubError as error:
            # The page renders messages as HTML, and they quote what a visitor sent.
            raise gr.Error(
                html.escape(f"{error}", quote=False), title="Not possible", print_exception=False
            ) from error

    return call


def told_along(fn: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`told` for a callback that yields: errors come between two values."""
    end = object()

    @functools.wraps(fn)
    def call(*arguments: Any, **options: Any) -> Iterator[Any]:
        with contextlib.closing(fn(*arguments, **options)) as values:
            take = told(functools.partial(next, values, end))
            while (value := take()) is not end:
                yield value

    return call


def telling(progress: gr.Progress) -> Callable[[int, int, str], None]:
    """The engine's reports of progress, for gradio's bar."""
    return lambda done, of, what: progress((done, of), desc=what)

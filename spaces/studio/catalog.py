"""Which models the page offers: the zoo, the one it was started with, or any if it was started so."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio import checks
from stylenat_hub.errors import InputError, UnknownModelError
from stylenat_hub.hub import builtin_models
from stylenat_hub.locations import without_weights
from stylenat_hub.pipeline import label
from stylenat_hub.registry import chosen_namespace
from stylenat_hub.summary import describe, list_checkpoints

SPEEDS = Path(__file__).with_name("speeds.json")
WHERE = {
    "ships": "ready",
    "on the Hub": "downloaded when chosen",
    "convert": "to be converted",
    "none published": "no weights published",
}

STARTED_WITH = {"convert": " to `stylenat demo` as its model", "none published": ""}


@dataclass(frozen=True)
class Entry:
    """A model that may be chosen. name: what visitors call it. source: what it is loaded from, which they
    never see. missing: the sentence that says why it cannot be loaded, or None."""

    name: str
    source: str
    where: str
    resolution: int | None = None
    parameters: int | None = None
    missing: str | None = None

    @property
    def shown(self) -> str:
        """Its line in the list."""
        size = f"{self.resolution} px" if self.resolution else ""
        return " · ".join(part for part in (self.name, size, self.where) if part)


class Catalog:
    """The models by name. model: the zoo name, folder or Hub id that the page starts with; default: the
    built-in one. allow_any: may visitors name folders and Hub ids, too?

    Raises `UnknownModelError`, `ConfigError`, `WeightsError`: the model to start with cannot be used.
    """

    def __init__(self, model: str | None = None, allow_any: bool = False) -> None:
        self.allow_any = allow_any
        self._entries = {record["name"]: _of_the_zoo(record) for record in list_checkpoints()}
        if model is None:
            model = next(iter(builtin_models()), None)
        if model is None:
            raise UnknownModelError("this version ships no trained model, so name one to start with")
        self.start = self._add(model)

    def _add(self, source: str) -> str:
        if source in self._entries and not os.path.isdir(source):
            if self._entries[source].missing:
                raise UnknownModelError(self._entries[source].missing)
            return source
        name = label(source)
        if name in self._entries:
            name = f"{name} (folder)"
        facts = describe(source)
        size = {"resolution": facts["resolution"], "parameters": facts["parameters"]}
        self._entries[name] = Entry(name, source, "named at the start", **size)
        return name

    def choices(self) -> list[tuple[str, str]]:
        """(line, name) of each, the one to start with first, then those that can be loaded."""
        entries = sorted(
            self._entries.values(), key=lambda e: (e.name != self.start, e.missing is not None, e.name)
        )
        return [(entry.shown, entry.name) for entry in entries]

    def find(self, name: Any) -> Entry:
        """The entry of this name. Raises `UnknownModelError` or `InputError` for any other, but if all are
        allowed; and `UnknownModelError` if it has no weights, saying how to get them."""
        name = checks.text("the model", name)
        entry = self._entries.get(name)
        if entry is None and self.allow_any:
            return Entry(label(name), name, "named by you")
        if entry is None:
            raise UnknownModelError(f"this page does not offer {name!r}; choose a model from its list")
        if entry.missing:
            raise UnknownModelError(entry.missing)
        return entry

    def facts(self, name: str) -> str:
        """One line about a model: size, parameters, speed."""
        entry = self._entries.get(name) or Entry(name, name, "named by you")
        parts = [f"{entry.resolution} x {entry.resolution} px"] if entry.resolution else []
        if entry.parameters:
            parts.append(f"{entry.parameters / 1e6:.2f} M parameters")
        seconds = speeds().get(name)
        if seconds:
            parts.append(f"about {seconds:.1g} s per picture on 2 CPU cores")
        return " · ".join([*parts, entry.where])


def _of_the_zoo(record: dict[str, Any]) -> Entry:
    name = record["name"]
    where = WHERE[record["status"]]
    missing = None
    if record["status"] in ("convert", "none published"):
        # Somebody's own copy on the Hub may be named through STYLENAT_HUB_NAMESPACE.
        missing = None if chosen_namespace() else f"{without_weights(name)}{STARTED_WITH[record['status']]}"
        where = where if missing else f"from {chosen_namespace()} on the Hub"
    size = {"resolution": record["resolution"], "parameters": record["parameters"]}
    return Entry(name, name, where, **size, missing=missing)


@cache
def speeds() -> dict[str, float]:
    """Seconds per picture on 2 CPU cores, by zoo name; see `model_cards.build`."""
    try:
        return json.loads(SPEEDS.read_text(encoding="utf-8"))["seconds"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{SPEEDS.name} is damaged ({error}); install this project again") from error

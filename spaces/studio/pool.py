"""Loaded models: each is loaded once, used by one thread at a time, and dropped when memory is short."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stylenat_hub.errors import InputError
from stylenat_hub.pipeline import GANPipeline

LIMIT = 4 << 30  # bytes of weights kept, where nobody says otherwise
PATIENCE = 120.0  # seconds that a visitor waits for others before being told to come back


@dataclass
class Loaded:
    """A pipeline and what the page keeps with it. `lock`: held by whoever computes with it."""

    name: str
    pipeline: GANPipeline
    seconds: float  # that loading took
    bytes: int
    lock: Any = field(default_factory=threading.RLock)
    preview_px: int | None = None  # see `previews.choose`; None: none is quick enough
    kept: dict[Any, Any] = field(default_factory=dict)  # results worth keeping, by what they are of

    @property
    def generator(self) -> Any:
        return self.pipeline.generator

    @contextmanager
    def at_work(self, patience: float = PATIENCE) -> Iterator[GANPipeline]:
        """Hold the model. Raises `InputError` when others have held it for `patience` seconds."""
        if not self.lock.acquire(timeout=patience):
            raise InputError(f"{self.name} is busy with other visitors' pictures; try again in a minute")
        try:
            yield self.pipeline
        finally:
            self.lock.release()


class Pool:
    """Models by name, the least recently used dropped first. load: name -> pipeline, and may raise."""

    def __init__(
        self,
        load: Callable[[str], GANPipeline],
        prepare: Callable[[Loaded], None] | None = None,
        limit: int = LIMIT,
    ) -> None:
        self.limit = limit
        self._load, self._prepare = load, prepare
        self._models: OrderedDict[str, Loaded] = OrderedDict()
        self._guard = threading.Lock()  # of the dict, held for moments only
        self._loading: dict[str, threading.Lock] = {}

    def get(self, name: str) -> Loaded:
        """The model, loaded now if it is not yet; others who want it meanwhile wait for this one load."""
        found = self.find(name)
        if found:
            return found
        with self._guard:
            turn = self._loading.setdefault(name, threading.Lock())
        with turn:
            found = self.find(name)
            if found is None:
                found = self._read(name)
                self._keep(found)
        return found

    def find(self, name: str) -> Loaded | None:
        """The model if it is loaded; it then counts as used."""
        with self._guard:
            found = self._models.get(name)
            if found:
                self._models.move_to_end(name)
            return found

    def peek(self, name: str) -> Loaded | None:
        """The same without a lock and without counting."""
        return self._models.get(name)

    def names(self) -> list[str]:
        """What is loaded, the most recently used last."""
        with self._guard:
            return list(self._models)

    def _read(self, name: str) -> Loaded:
        start = time.perf_counter()
        pipeline = self._load(name)
        weights = (*pipeline.generator.parameters(), *pipeline.generator.buffers())
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
        loaded = Loaded(name, pipeline, time.perf_counter() - start, size)
        if self._prepare:
            self._prepare(loaded)
        return loaded

    def _keep(self, loaded: Loaded) -> None:
        """Add it, and drop others until all fit. Who still draws with a dropped one keeps it until done."""
        with self._guard:
            self._models[loaded.name] = loaded
            while len(self._models) > 1 and sum(m.bytes for m in self._models.values()) > self.limit:
                self._models.popitem(last=False)

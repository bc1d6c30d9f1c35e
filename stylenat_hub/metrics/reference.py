"""The real side of a measurement: features of a data set, computed once and kept in a file.

A file is for one data set, one number of pictures, one size and one extractor; what it is for is written
into it, and a file that is for anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stylenat_hub.contents import content
from stylenat_hub.decoding import square
from stylenat_hub.errors import InputError, shown
from stylenat_hub.files import check_writable, user_path, whole_file
from stylenat_hub.metrics.features import Extractor, network_name
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.score import Batches, Metric, Summary, summarise
from stylenat_hub.metrics.statistics import FeatureStatistics
from stylenat_hub.sources import Source

VERSION = 1
BATCH = 32  # pictures per call of the extractor; part of the protocol, because it decides on the last bits
_THREADS = 4  # that decode pictures
_KEY = "stylenat_hub"


@dataclass(frozen=True)
class RealPictures:
    """Some of a source's pictures, cut to squares of the resolution.

    count: how many; all of them if None. Where the source has more, they are chosen at random, once: the same
    ones in every run. seed: of that choice. Raises `InputError` if the source has fewer.
    """

    source: Source
    resolution: int
    count: int | None = None
    allow_upscaling: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count is not None and not 1 <= self.count <= len(self.source):
            raise InputError(
                f"{self.count} real pictures are asked for, and {self.source.name!r} has {len(self.source)}; "
                "allowed: from 1 to all of them"
            )

    def __len__(self) -> int:
        return len(self.source) if self.count is None else self.count

    @cached_property
    def _content(self) -> str:
        return content(self.source)  # of every file, so once

    def indices(self) -> np.ndarray:
        """Which pictures of the source, ascending."""
        if len(self) == len(self.source):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(self.seed).permutation(len(self.source))[: len(self)])

    def picture(self, index: int) -> torch.Tensor:
        """One picture of the source, uint8 [3, R, R]. Raises `BrokenImage`, `TooSmall`."""
        image = square(
            self.source.image(index), self.resolution, self.source.label(index), self.allow_upscaling
        )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def batches(self, processes: Processes, size: int = BATCH) -> Batches:
        """This process's batches, decoded ahead by threads."""
        return self._decoded(list(processes.mine(len(self), size)))

    def _decoded(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, torch.Tensor]]:
        indices = self.indices()
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead: list[Any] = []
            for start, stop in spans:
                ahead.append((start, [pool.submit(self.picture, int(i)) for i in indices[start:stop]]))
                if len(ahead) > 2:  # batches in memory, beside the one that is measured
                    yield _stacked(ahead.pop(0))
            while ahead:
                yield _stacked(ahead.pop(0))

    def facts(self) -> dict[str, Any]:
        """What fixes these pictures, as plain data."""
        return {
            "fingerprint": self.source.fingerprint,
            "content": self._content,
            "allow_upscaling": self.allow_upscaling,
            "pictures": len(self.source),
            "used": len(self),
            "chosen_by_seed": None if len(self) == len(self.source) else self.seed,
            "resolution": self.resolution,
            "resize": "centre square; Lanczos to shrink, bicubic to enlarge",
        }


def _stacked(entry: tuple[int, list[Any]]) -> tuple[int, torch.Tensor]:
    start, futures = entry
    return start, torch.stack([future.result() for future in futures])


def describe(real: RealPictures, extractor: Extractor) -> dict[str, Any]:
    """What a file of statistics is for."""
    return {"version": VERSION, "data": real.facts(), "extractor": dict(extractor.protocol), "batch": BATCH}


def cached_at(real: RealPictures, extractor: Extractor) -> Path:
    """Where the statistics of these pictures lie in this user's cache (`STYLENAT_HUB_CACHE`, or
    `~/.cache/stylenat_hub`)."""
    text = json.dumps(describe(real, extractor), sort_keys=True)
    root = os.environ.get("STYLENAT_HUB_CACHE") or Path.home() / ".cache" / "stylenat_hub"
    network = re.sub("[^a-zA-Z0-9.-]", "_", network_name(extractor)).lstrip(".")
    name = f"{network}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
    return Path(root) / "statistics" / name


def real_summary(
    real: RealPictures,
    extractor: Extractor,
    metrics: Sequence[Metric],
    *,
    processes: Processes | None = None,
    file: str | os.PathLike[str] | None = None,
    progress: Any = None,
) -> Summary | None:
    """The statistics and, where a metric needs them, features of the real pictures: from `file` (by default
    this user's cache) if they are there, else computed and written there.

    On other processes than the main one it may be None. Raises `InputError` for a file that is of other
    pictures or another protocol, or is damaged.
    """
    processes = processes or Processes()
    path = user_path(file) if file is not None else cached_at(real, extractor)
    facts = describe(real, extractor)
    features = any("features" in metric.needs for metric in metrics)
    known: list[Summary] = []
    # One process looks, and it alone reads: it measures, and another machine may not have the file.
    if processes.main(lambda: _found(path, facts, features, file is not None, known)):
        return known[0] if known else None
    processes.main(lambda: check_writable(path.parent))  # before hours are spent on what is to be kept there
    batches = real.batches(processes)
    wanted = [metric for metric in metrics if metric.real]
    summary = summarise(progress(batches) if progress else batches, len(real), extractor, wanted, processes)
    processes.main(lambda: save(path, summary, facts))
    return summary


def _found(path: Path, facts: Mapping[str, Any], features: bool, named: bool, known: list[Summary]) -> bool:
    """Is what is needed in the file? Then it is put into `known`. A file of the cache is made anew if not; a
    named one is never replaced."""
    if not path.is_file():
        return False
    summary = load(path, facts)
    if _has(summary, features):
        known.append(summary)
    elif named:
        raise InputError(f"{str(path)!r} was made without features; name another file, or delete this one")
    return bool(known)


def _has(summary: Summary, features: bool) -> bool:
    return summary.features is not None or not features


def shipped(
    file: str | os.PathLike[str], extractor: Extractor, metrics: Sequence[Metric]
) -> tuple[Summary, dict[str, Any]]:
    """Statistics from a file alone, whose pictures are not at hand, and the facts of these pictures.

    Raises `InputError` if the file is of another extractor, or lacks what a metric needs.
    """
    path = user_path(file)
    if not path.is_file():
        raise InputError(f"there is no file of statistics {str(path)!r}; name the real pictures with --data")
    written, _ = _read(path)
    summary = load(
        path, {**written, "extractor": dict(extractor.protocol), "version": VERSION, "batch": BATCH}
    )
    if not _has(summary, any("features" in metric.needs for metric in metrics)):
        raise InputError(
            f"{str(path)!r} has statistics for FID only; the other metrics need features: measure them once "
            "with --data"
        )
    return summary, written["data"]


def save(path: Path, summary: Summary, facts: Mapping[str, Any]) -> None:
    """Write statistics, whole or not at all."""
    tensors = {f"statistics/{name}": tensor for name, tensor in summary.statistics.state().items()}
    if summary.features is not None:
        tensors["features"] = summary.features.contiguous()
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(facts, sort_keys=True)})


def load(path: Path, wanted: Mapping[str, Any]) -> Summary:
    """Read statistics. Raises `InputError` if the file is damaged, or for something else than `wanted`."""
    return _summary(path, *_read(path), wanted)


def _summary(
    path: Path, written: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]
) -> Summary:
    """What `_read` has read, checked against what is wanted and in itself."""
    _check_same(path, written, json.loads(json.dumps(wanted)))
    prefix = "statistics/"
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        statistics = FeatureStatistics.from_state(state)
    except (KeyError, ValueError, RuntimeError, InputError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}; delete it to compute it again") from error
    features = tensors.get("features")
    shape = (statistics.count, len(statistics.mean))
    whole = features is None or (tuple(features.shape) == shape and bool(features.isfinite().all()))
    whole = whole and statistics.count == written["data"].get("used")
    if not whole:
        raise InputError(f"{str(path)!r} is damaged: its parts are not of the same pictures; delete it")
    return Summary(statistics.count, statistics, features)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a file says of itself, and its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            written = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} is no file of statistics that can be read: {error}") from error
    if not isinstance(written, dict) or not isinstance(written.get("data"), dict):
        raise InputError(f"{str(path)!r} is no file of statistics: it does not say what it is of")
    return written, tensors


def _check_same(path: Path, written: Mapping[str, Any], wanted: Mapping[str, Any], within: str = "") -> None:
    """Raise `InputError` about the first thing in which a file is of something else."""
    for key in sorted({*written, *wanted}):
        own, asked = written.get(key), wanted.get(key)
        if isinstance(own, dict) and isinstance(asked, dict):
            _check_same(path, own, asked, f"{within}{key}.")
        elif own != asked:
            raise InputError(
                f"the statistics in {str(path)!r} are of something else: {within}{key} is "
                f"{shown(repr(own))} there and {shown(repr(asked))} here; name another file, or delete this "
                "one to compute it again"
            )

"""One measurement of a model from its name to its report: what `stylenat evaluate` does."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stylenat_hub.errors import InputError
from stylenat_hub.files import check_writable, whole_file
from stylenat_hub.metrics import report as reports
from stylenat_hub.metrics import sheets
from stylenat_hub.metrics.evaluate import Evaluation, drawn_by
from stylenat_hub.metrics.features import Extractor, load_extractor, network_name
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.reference import RealPictures
from stylenat_hub.metrics.report import markdown
from stylenat_hub.metrics.score import chosen
from stylenat_hub.options import choose_device
from stylenat_hub.sources import open_source

__all__ = ["Session", "markdown"]

MOST_ROWS = 64  # of the sheet of neighbours: they are drawn at once


@dataclass
class Session:
    """A model, real pictures and an extractor, loaded at their first use and kept for several measurements.

    Fields as the options of `stylenat evaluate`; source: further arguments of `from_pretrained`.
    """

    data: str | None
    metrics: Sequence[str]
    model: str | None = None
    num: int = 50_000
    num_real: int | None = None
    extractor: str = "inception"
    weights: str | None = None
    resize: str = "pytorch-fid"
    stats: str | None = None
    split: str = "train"
    allow_upscaling: bool = False
    device: str = "auto"
    dtype: str = "float32"
    source: Mapping[str, Any] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    @cached_property
    def name(self) -> str:
        from stylenat_hub.locations import builtin_models

        return self.model or builtin_models()[0]

    @cached_property
    def pipeline(self) -> Any:
        from stylenat_hub.pipeline import GANPipeline

        dtype, options = getattr(torch, self.dtype), self._source()
        pipeline = self.processes.in_turn(
            lambda: GANPipeline.from_pretrained(self.name, dtype=dtype, **options)
        )
        return pipeline if self.own_device.type == "cpu" else pipeline.to(self.own_device)

    def _source(self) -> dict[str, Any]:
        return {key: value for key, value in self.source.items() if value is not None}

    @cached_property
    def own_device(self) -> torch.device:
        """Where this process computes; of several each has its own GPU."""
        return choose_device(self.processes.device(self.device))

    @cached_property
    def real(self) -> RealPictures | None:
        if self.data is None:
            return None
        resolution = self.pipeline.generator.resolution
        source = open_source(self.data, self.split, resolution=resolution)
        return RealPictures(source, resolution, self.num_real, self.allow_upscaling)

    @cached_property
    def network(self) -> Extractor | None:
        if set(self.metrics) <= {"swd"}:
            return None
        options = {"weights": self.weights, "resize": self.resize, "device": self.own_device}
        return self.processes.in_turn(lambda: load_extractor(self.extractor, **options))

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(tuple(self.metrics), self.real, self.network, self.processes, self.stats)

    @cached_property
    def model_facts(self) -> dict[str, Any]:
        from stylenat_hub.hub import locate

        return reports.model_facts(locate(self.name, **self._source()), self.source.get("variant"))

    def check(
        self,
        output: Path | None,
        figure: Path | None,
        sheet: Path | None,
        card: Path | None,
        seeds: int = 0,
    ) -> None:
        """Raise `InputError` for what would fail only after the measurement, or take something away: places
        that cannot be written or are named twice, a card that is not there, a sheet without what it shows.

        seeds: how many the sheet is to show.
        """
        chosen([name for name in self.metrics if name != "swd"])
        for path in (output, figure, sheet):
            if path is not None:
                if path.is_dir():
                    raise InputError(f"{str(path)!r} is a folder; name a file")
                check_writable(path.parent)
        self._check_different(output, figure, sheet, card)
        if card is not None:
            reports.read_card(card)
        if figure is not None:
            sheets.figure_class()
        if sheet is not None and (self.data is None or set(self.metrics) <= {"swd"}):
            raise InputError("neighbours need real pictures (--data) and a metric of features, such as fid")
        if sheet is not None:
            sheets.check_neighbours(self.real)
        if sheet is not None and seeds > MOST_ROWS:
            raise InputError(f"the sheet of neighbours has a row per seed: {seeds}; allowed: {MOST_ROWS}")

    def _check_different(self, *outputs: Path | None) -> None:
        """No output may be written over another, or over what is read."""
        inputs = [Path(name) for name in (self.data, self.stats, self.weights) if name]
        seen: set[str] = set()
        for path in (*inputs, *outputs):
            if path is not None and (real := os.path.realpath(path)) in seen:
                raise InputError(
                    f"{str(path)!r} is named twice; give each file that is read or written its own"
                )
            elif path is not None:
                seen.add(real)

    def report(self, first_seed: int, truncation: float, cutoff: int | None) -> dict[str, Any]:
        """Measure the pictures of `num` seeds from the first one on; the report as `report.report` has it.
        Every process must call it."""
        started = time.monotonic()
        generator = self.pipeline.generator
        if first_seed + self.num > 2**32:
            raise InputError(
                f"seeds go up to {2**32 - 1}, and {self.num} from {first_seed} on are more; begin lower"
            )
        generator.truncate(self.pipeline._probe(), truncation, cutoff)
        seeds = range(first_seed, first_seed + self.num)
        draw = drawn_by(generator, seeds, truncation_psi=truncation, truncation_cutoff=cutoff)
        scores = self.evaluation.score(draw, self.num)
        facts = {
            "num": self.num,
            "first_seed": first_seed,
            "truncation_psi": truncation,
            "truncation_cutoff": cutoff,
            "dtype": self.dtype,
            "variant": self.source.get("variant"),
            "device": _device_name(self.own_device),
            "threads": torch.get_num_threads(),
        }
        real = self.evaluation.shipped and {"name": self.stats, **self.evaluation.shipped}
        if self.real is not None:
            real = {"name": self.data, "split": self.split, **self.real.facts()}
        return reports.report(
            scores,
            parameters=self.evaluation.parameters(),
            warnings=self.evaluation.warnings(self.num),
            model=self.model_facts,
            drawn=facts,
            real=real,
            extractor=self.network and {"name": network_name(self.network), **self.network.protocol},
            seconds=time.monotonic() - started,
            processes=self.processes.world,
        )

    def write(
        self, entries: list[dict[str, Any]], output: Path | None, figure: Path | None, card: Path | None
    ) -> list[Path]:
        """Write what is asked for: the report (of a sweep a list), its curve, the best one's figures into a
        card. Returns the files."""
        written = []
        if output is not None:
            written.append(reports.write(output, entries[0] if len(entries) == 1 else entries))
        if figure is not None:
            sheets.draw_sweep(entries, figure)
            written.append(figure)
        if card is not None:
            written.append(reports.update_card(card, entries[0]))
        return written

    def neighbours(self, path: Path, seeds: Sequence[int], truncation: float, cutoff: int | None) -> None:
        """Write the sheet of the real pictures nearest to those of some seeds."""
        draw = drawn_by(self.pipeline.generator, seeds, truncation_psi=truncation, truncation_cutoff=cutoff)
        features = self._features()
        title = f"{Path(self.name).name}, then the nearest of {Path(self.data).name}"
        sheet = sheets.neighbours(draw, seeds, self.real, features, self.network, title=title)
        with whole_file(path) as temporary:
            sheet.save(temporary, format="PNG")

    def _features(self) -> torch.Tensor:
        known = self.evaluation.summary()
        if known is not None and known.features is not None:
            return known.features
        parts = [self.network(images)[0].cpu() for _, images in self.real.batches(Processes())]
        return torch.cat(parts)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

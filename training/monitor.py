"""What a run tells about itself: metrics.jsonl, a tracker, a progress bar, grids of pictures, a metric."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from stylenat_hub.benchmark import resident_peak
from stylenat_hub.files import explained, whole_file
from stylenat_hub.models.base import Generator
from stylenat_hub.pictures import Grid, write_picture
from stylenat_hub.pipeline import GANPipeline
from training.steps import Scalars

LOG = "metrics.jsonl"
SAMPLES = "samples"
Metric = Callable[[Generator], Mapping[str, float]]  # of the averaged generator


class Monitor:
    """Collects scalars of steps and writes them out. Every process makes one; only the main one writes.

    output: the run's folder. images, seconds: how far the run is. total: images of the whole run.
    """

    def __init__(
        self, output: Path, accelerator: Accelerator, *, images: int, total: int, seconds: float = 0.0
    ) -> None:
        self.output, self.accelerator, self.main = output, accelerator, accelerator.is_main_process
        self.sums: dict[str, tuple[int, torch.Tensor]] = {}
        self.last_images = images
        self.seconds, self.started = seconds, time.monotonic()
        self.last_seconds = seconds
        if self.main:
            with explained(output):
                output.mkdir(parents=True, exist_ok=True)
                self._forget_after(images)
        self.bar = tqdm(
            total=total,
            initial=images,
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            disable=not self.main,
            dynamic_ncols=True,
        )

    def elapsed(self) -> float:
        """Seconds of training, over all runs of this folder."""
        return self.seconds + time.monotonic() - self.started

    def add(self, scalars: Scalars, images: int) -> None:
        """Add a step's scalars; `images`: seen after it."""
        for name, value in scalars.items():
            count, total = self.sums.get(name, (0, torch.zeros_like(value)))
            self.sums[name] = (count + 1, total + value)
        self.bar.update(images - self.bar.n)

    def flush(self, images: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Write the means since the last call; returns them. Called by all processes together."""
        row = self._means()
        seconds = self.elapsed()
        rate = (images - self.last_images) / max(seconds - self.last_seconds, 1e-9)
        row |= {**extra, "images_per_second": rate, "peak_memory_mib": self._peak_memory()}
        self.last_images, self.last_seconds, self.sums = images, seconds, {}
        self.write(images, row)
        if self.main:
            shown = {name: f"{row[name]:.3f}" for name in ("d_loss", "g_loss") if name in row}
            self.bar.set_postfix(shown, refresh=False)
        return row

    def write(self, images: int, row: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl and hand it to the tracker."""
        if self.main:
            # JSON knows no infinity, which a norm is where float16 overflowed; the training notices the rest.
            plain = {name: value if math.isfinite(value) else None for name, value in row.items()}
            line = {"images": images, "seconds": round(self.elapsed(), 3), **plain}
            with explained(self.output), (self.output / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.accelerator.log(dict(row), step=images)

    def grid(self, pipeline: GANPipeline, images: int, count: int) -> Path:
        """Draw `count` pictures from fixed latents (seeds 0, 1, ...) into one PNG."""
        sheet = Grid(count, pipeline.generator.resolution)
        for batch in pipeline.iterate(range(count), batch_size=32):
            for picture in batch.images:
                sheet.add(picture)
        path = self.output / SAMPLES / f"images-{images:09d}.png"
        write_picture(sheet.image, path, {"images": str(images), "seeds": f"0-{count - 1}"})
        for tracker in self.accelerator.trackers:
            # Each in its own words; those that know no pictures go without.
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({SAMPLES: np.asarray(sheet.image)[None]}, step=images, **layout)
        return path

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()

    def _means(self) -> dict[str, float]:
        """Means over the steps and over all processes."""
        if not self.sums:
            return {}
        values = torch.stack([total / count for count, total in self.sums.values()]).float()
        values = self.accelerator.reduce(values, "mean").tolist()
        return dict(zip(self.sums, values, strict=True))

    def _peak_memory(self) -> float:
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resident_peak()

    def _forget_after(self, images: int) -> None:
        """Drop rows that a run wrote after the checkpoint from which it now goes on."""
        path = self.output / LOG
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _images_of(line) <= images]
            if kept != lines:
                with whole_file(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _images_of(line: str) -> float:
    """The images of a row; of one that was cut off in the middle infinity."""
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf

"""Pictures of a generator against pictures of a data set, by the papers' metrics: `evaluate`.

Legend: B pictures of a batch, R their side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.features import Extractor, network_name
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.reference import BATCH, RealPictures, real_summary, shipped
from stylenat_hub.metrics.score import METRICS, Scores, Summary, check_counts, chosen, summarise
from stylenat_hub.metrics.swd import SlicedWasserstein, sliced_wasserstein

SWD_PICTURES = 2_000  # of each set at most: their descriptors stay in memory
SWD = {"pictures": f"at most {SWD_PICTURES}", "patches_per_image": 128, "projections": 512, "seed": 0}

Draw = Callable[[int, int], torch.Tensor]  # first picture's number, last one's + 1 -> uint8 [B, 3, R, R]


@dataclass
class Evaluation:
    """What is measured, and against what; the real side is computed at its first use and kept.

    names: keys of `score.METRICS`, and "swd". real: the real pictures; None if no metric needs any.
    extractor: None if only "swd" is measured. processes: those that share the work. stats: file of the real
    side, see `reference.real_summary`. quiet: no progress bars.
    """

    names: tuple[str, ...]
    real: RealPictures | None
    extractor: Extractor | None
    processes: Processes
    stats: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        self.metrics = chosen([name for name in self.names if name != "swd"])
        if self.metrics and self.extractor is None:
            raise InputError(f"{self.metrics[0].title} needs a feature extractor")
        pictures = "swd" in self.names or (self.stats is None and any(m.real for m in self.metrics))
        if self.real is None and pictures:
            raise InputError(f"{', '.join(self.names)}: this needs real pictures; name them with --data")
        self._known: Summary | None = None
        self._looked = False
        self.shipped: dict[str, Any] | None = None  # what the statistics are of, if there are no pictures
        self._descriptors: SlicedWasserstein | None = None

    def summary(self) -> Summary | None:
        """The real side, computed or read once; None if no metric needs it, or on another process than the
        main one, which measures."""
        if not self._looked and any(metric.real for metric in self.metrics):
            if self.real is None:
                self._known, self.shipped = shipped(self.stats, self.extractor, self.metrics)
            else:
                self._known = real_summary(
                    self.real,
                    self.extractor,
                    self.metrics,
                    processes=self.processes,
                    file=self.stats,
                    progress=lambda batches: self._bar(batches, len(self.real), "real pictures"),
                )
        self._looked = True  # by all processes alike, whether they have it or not
        return self._known

    def parameters(self) -> dict[str, dict[str, Any]]:
        """What fixes each figure besides pictures and network."""
        found = {name: dict(METRICS[name].parameters) for name in self.names if name != "swd"}
        return {**found, **({"swd": dict(SWD)} if "swd" in self.names else {})}

    def warnings(self, count: int) -> list[str]:
        """What makes these figures doubtful."""
        if "fid" not in self.names:
            return []
        sets = {"generated": count, "real": self._known.count if self._known else count}
        return [
            f"FID of {number} {kind} pictures, fewer than the {self.extractor.dim} features, is too high: "
            "compare it with equal numbers only"
            for kind, number in sets.items()
            if number < self.extractor.dim
        ]

    @torch.no_grad()
    def score(self, draw: Draw, count: int) -> Scores:
        """The figures of `count` pictures; every process must call it, and each gets them all.

        draw: draws pictures by their numbers; a picture may not depend on the others asked for with it.
        """
        scores: Scores = {}
        if self.metrics:
            check_counts(self.metrics, count, len(self.real) if self.real else count)
            self._probe()
            real = self.summary()
            spans = self.processes.mine(count, BATCH)
            batches = self._bar(((a, draw(a, b)) for a, b in spans), count, "generated pictures")
            fake = summarise(batches, count, self.extractor, self.metrics, self.processes)
            scores.update(self.processes.main(lambda: self._measured(real, fake)))
        if "swd" in self.names:
            scores.update(self.processes.main(lambda: self._swd(draw, count)))
        return scores

    def _measured(self, real: Summary | None, fake: Summary) -> Scores:
        found: Scores = {}
        for metric in self.metrics:
            found.update(metric.measure(real, fake))
        return {labelled(name, self.extractor): value for name, value in found.items()}

    def _probe(self) -> None:
        """Raise `InputError` at once if classes are needed that the extractor does not have."""
        if any("logits" in metric.needs for metric in self.metrics):
            side = self.real.resolution if self.real else 32
            if self.extractor(torch.zeros(1, 3, side, side, dtype=torch.uint8))[1] is None:
                raise InputError(f"the Inception score needs classes, and {self.extractor.name!r} has none")

    def _swd(self, draw: Draw, count: int) -> Scores:
        """On one process alone: the places of its patches follow the order of the pictures."""
        alone, used = Processes(), min(count, len(self.real), SWD_PICTURES)
        if self._descriptors is None or self._descriptors.count != used:
            self._descriptors = SlicedWasserstein(self.real.resolution)
            for _, images in dataclasses.replace(self.real, count=used).batches(alone):
                self._descriptors.update(images.float() / 255)
        drawn = SlicedWasserstein(self.real.resolution)
        for start, stop in alone.mine(used, BATCH):
            drawn.update(draw(start, stop).float() / 255)
        return {**sliced_wasserstein(self._descriptors, drawn), "swd_pictures": float(used)}

    def _bar(self, batches: Iterator[Any] | Any, count: int, what: str) -> Iterator[Any]:
        hidden = self.quiet or not self.processes.is_main
        with tqdm(total=count, desc=what, unit="", leave=False, disable=hidden) as bar:
            for batch in batches:
                yield batch
                bar.update(min(BATCH * self.processes.world, count - bar.n))


def labelled(name: str, extractor: Extractor) -> str:
    """A figure's name: the papers' own only with their network and resizing, else `fid[random-conv]`."""
    network = network_name(extractor)
    return name if network == "inception" else f"{name}[{network}]"


def drawn_by(
    generator: Any, seeds: Sequence[int], *, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
) -> Draw:
    """Draws the pictures of these seeds with a generator, rounded to 8 bits as a PNG has them.

    In whole batches, which is faster; single pixels may be one step of 8 bits from those of `GANPipeline`,
    which draws a seed alike in every batch.
    """
    from stylenat_hub.pipeline import latents

    def draw(start: int, stop: int) -> torch.Tensor:
        z = latents(seeds[start:stop], generator.z_dim).to(generator.w_avg.device, generator.w_avg.dtype)
        images = generator.to_rgb01(generator(z, truncation_psi, truncation_cutoff).float())
        if not torch.isfinite(images).all():
            raise InputError("the network's output is not finite; take float32")
        return (images * 255).round().to(torch.uint8)

    return draw

"""How well projection finds the pictures of a model's own seeds again: `python -m model_cards.projection`.

Writes projection.json and projection.png into the model's folder here.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tqdm import tqdm

from stylenat_hub.files import whole_file
from stylenat_hub.latents.projection import STEPS, Projection, project
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.sheet import Sheet, cell_side

HERE = Path(__file__).resolve().parent
SPACES = ("w", "w+")


def measure(model: str, seeds: range, steps: int = STEPS) -> Iterator[tuple[dict[str, Any], PIL.Image.Image]]:
    """Figures, and a sheet with rows for targets and spaces and a column per seed; after each space, as far
    as they are known.

    All seeds are one batch. PSNR is between pictures in 8 bits; seconds are those of the batch.
    """
    pipeline = GANPipeline.from_pretrained(model)
    targets = pipeline(seeds, output_type="pt").images.mul(255).round().to(torch.uint8)
    sheet = Sheet(
        1 + len(SPACES),
        len(seeds),
        cell_side(pipeline.generator.resolution, len(seeds), 1 + len(SPACES)),
        title=f"{model}: projection in {steps} steps, PSNR in dB",
        row_labels=["target", *(space.upper() for space in SPACES)],
        cell_labels=True,
    )
    for column, seed in enumerate(seeds):
        sheet.put(0, column, _picture(targets[column]), f"seed {seed}")
    facts = {"model": model, "seeds": list(seeds), "steps": steps, "torch": torch.__version__}
    facts |= {"threads": torch.get_num_threads(), "machine": platform.machine(), "spaces": {}}
    for row, space in reversed(list(enumerate(SPACES, start=1))):  # the better one first
        start = time.perf_counter()
        found = _projected(pipeline, targets, space, steps)
        facts["spaces"][space] = _figures(found, time.perf_counter() - start)
        for column, decibels in enumerate(found.psnr.tolist()):
            sheet.put(row, column, _picture(found.images[column]), f"{decibels:.1f}")
        yield facts, sheet.image


def _projected(pipeline: GANPipeline, targets: torch.Tensor, space: str, steps: int) -> Projection:
    with tqdm(total=steps, desc=space, file=sys.stderr) as bar:

        def show(progress: Any) -> None:
            bar.set_postfix_str(f"{progress.psnr.mean().item():.1f} dB", refresh=False)
            bar.update(progress.step - bar.n)

        return project(pipeline.generator, targets, space=space, steps=steps, callback=show)


def _figures(found: Projection, seconds: float) -> dict[str, Any]:
    return {
        "psnr": [round(value, 2) for value in found.psnr.tolist()],
        "mean_psnr": round(found.psnr.mean().item(), 2),
        "over_30_db": int((found.psnr > 30).sum()),
        "seconds": round(seconds, 1),
    }


def _picture(image: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy-church")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, help="default: the model's folder here")
    given = parser.parse_args()
    folder = given.output or HERE / given.model
    for facts, sheet in measure(given.model, range(given.seeds), given.steps):
        with whole_file(folder / "projection.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        with whole_file(folder / "projection.png") as temporary:
            sheet.save(temporary, format="PNG")


if __name__ == "__main__":
    main()

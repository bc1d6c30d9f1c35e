"""What projection found, as pictures: target, projection and difference beside each other; the way there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import torch

from stylenat_hub.latents.projection import Progress
from stylenat_hub.sheet import Sheet, cell_side

TIMES = 4  # how much larger a difference is shown than it is


def to_tensor(picture: PIL.Image.Image) -> torch.Tensor:
    """A picture as uint8 [3, H, W] in RGB."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def difference(one: PIL.Image.Image, other: PIL.Image.Image) -> PIL.Image.Image:
    """Where two pictures differ: grey where they are equal, by colour otherwise, `TIMES` enlarged."""
    apart = np.asarray(one.convert("RGB"), np.int16) - np.asarray(other.convert("RGB"), np.int16)
    return PIL.Image.fromarray((apart * TIMES + 128).clip(0, 255).astype(np.uint8))


def comparison(
    target: PIL.Image.Image, drawn: Sequence[tuple[str, PIL.Image.Image, float]], title: str = ""
) -> PIL.Image.Image:
    """A sheet: the target, then for each of `drawn` (its name, the picture, its PSNR in dB) the picture and
    its difference from the target."""
    columns = 1 + 2 * len(drawn)
    sheet = Sheet(1, columns, cell_side(max(128, target.width), columns, 1), title=title, cell_labels=True)
    sheet.put(0, 0, target, "target")
    for number, (name, picture, decibels) in enumerate(drawn):
        sheet.put(0, 1 + 2 * number, picture, f"{name}: {decibels:.1f} dB")
        sheet.put(0, 2 + 2 * number, difference(picture, target), f"difference x {TIMES}")
    return sheet.image


class Way:
    """The styles of some steps, kept as projection goes on: a `callback` of `project`.

    steps: of the projection. counts: how many steps are kept of it, as one or several choices, spread such
    that they lie close at the start, where pictures change most.
    """

    def __init__(self, steps: int, counts: Sequence[int]) -> None:
        self.steps = steps
        self._kept = dict.fromkeys(step for count in counts for step in self.chosen(count))

    def chosen(self, count: int) -> list[int]:
        """The steps of one choice, from 0 to the last; some more than once if there are not so many."""
        return [round(self.steps * (number / max(1, count - 1)) ** 2) for number in range(count)]

    def __call__(self, progress: Progress) -> None:
        if progress.step in self._kept:
            self._kept[progress.step] = progress.ws.clone()

    def styles(self, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(step, styles [B, num_ws, w_dim]) of one of the choices."""
        for step in self.chosen(count):
            yield step, self._kept[step]


def beside(one: PIL.Image.Image, other: PIL.Image.Image) -> PIL.Image.Image:
    """Two pictures of one size side by side."""
    both = PIL.Image.new("RGB", (one.width + other.width, one.height))
    both.paste(one, (0, 0))
    both.paste(other, (one.width, 0))
    return both

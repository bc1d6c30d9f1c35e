"""Pictures of a measurement: nearest real neighbours of generated pictures, and the curve over truncation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw

from stylenat_hub.errors import InputError
from stylenat_hub.files import whole_file
from stylenat_hub.metrics.evaluate import Draw
from stylenat_hub.metrics.features import Extractor
from stylenat_hub.metrics.manifolds import nearest
from stylenat_hub.metrics.reference import RealPictures
from stylenat_hub.metrics.report import figures

NEIGHBOURS = 5  # in a row of the sheet
_TITLE = 18  # px above all
_LABEL = 14  # px above each picture
_GAP = 4
_SMALLEST = 64  # px of a cell; smaller pictures are enlarged without smoothing


def check_neighbours(real: RealPictures, k: int = NEIGHBOURS) -> None:
    """Raise `InputError` if there are not so many real pictures."""
    if k < 1 or k > len(real):
        raise InputError(f"{k} neighbours are asked for; allowed: from 1 to the {len(real)} real pictures")


def neighbours(
    draw: Draw,
    seeds: Sequence[int],
    real: RealPictures,
    features: torch.Tensor,
    extractor: Extractor,
    *,
    k: int = NEIGHBOURS,
    title: str = "",
) -> PIL.Image.Image:
    """A row per seed: the generated picture, then the `k` real ones nearest to it in feature space, nearest
    first, with their numbers and distances. Pictures that are nearly copies were learned by heart.

    features: [N, D] of `real`, in its order. Raises `InputError` if there are fewer real pictures than k.
    """
    check_neighbours(real, k)
    images = draw(0, len(seeds))
    own, _ = extractor(images)
    found, distances = nearest(features, own.cpu(), k=k)
    order = real.indices()
    rows = []
    for seed, image, places, far in zip(seeds, images, found.tolist(), distances.tolist(), strict=True):
        row = [(f"seed {seed}", image)]
        for place, distance in zip(places, far, strict=True):
            index = int(order[place])
            row.append((f"{index}: {distance:.2f}", real.picture(index)))
        rows.append(row)
    return _sheet(rows, title)


def _sheet(rows: list[list[tuple[str, torch.Tensor]]], title: str = "") -> PIL.Image.Image:
    """Labelled uint8 pictures [3, R, R] as a white sheet."""
    side = rows[0][0][1].shape[-1]
    cell = side * max(1, -(-_SMALLEST // side))
    width, height = cell + _GAP, cell + _LABEL + _GAP
    sheet = PIL.Image.new("RGB", (width * len(rows[0]) + _GAP, _TITLE + height * len(rows) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, fill="black")
    for y, row in enumerate(rows):
        for x, (label, image) in enumerate(row):
            picture = PIL.Image.fromarray(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))
            picture = picture.resize((cell, cell), PIL.Image.Resampling.NEAREST)
            left, top = _GAP + x * width, _TITLE + _GAP + y * height
            pen.text((left, top), label, fill="black")
            sheet.paste(picture, (left, top + _LABEL))
    return sheet


def figure_class() -> Any:
    """matplotlib's class of figures. Raises `InputError` if it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install matplotlib") from error
    return Figure


def draw_sweep(reports: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """The reports of a sweep over truncation as curves, a PNG written whole or not at all: FID against recall
    if both were measured, else each figure over truncation.

    Raises `InputError` if matplotlib is missing.
    """
    new_figure = figure_class()
    psi = [entry["generated"]["truncation_psi"] for entry in reports]
    scores = [entry["scores"] for entry in reports]
    names = figures(scores[0])
    fid, recall = (next((n for n in names if n.startswith(kind)), None) for kind in ("fid", "recall"))
    paired = fid is not None and recall is not None
    figure = new_figure(figsize=(7, 4.5 if paired else 2.2 * len(names) + 0.6), layout="constrained")
    if paired:
        axes = figure.subplots()
        axes.plot([s[recall] for s in scores], [s[fid] for s in scores], marker="o")
        for p, s in zip(psi, scores, strict=True):
            axes.annotate(f"{p:g}", (s[recall], s[fid]), textcoords="offset points", xytext=(5, 5))
        axes.set(xlabel=f"{recall} (higher: more of the data)", ylabel=f"{fid} (lower: nearer)")
        axes.set_title(f"{reports[0]['model']['name']}: each point is a truncation")
        axes.margins(0.1)
        axes.grid(alpha=0.3)
    else:
        for axes, name in zip(np.atleast_1d(figure.subplots(len(names), sharex=True)), names, strict=True):
            axes.plot(psi, [s[name] for s in scores], marker="o")
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
        axes.set_xlabel("truncation")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

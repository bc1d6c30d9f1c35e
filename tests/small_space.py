"""The Space's engine for tests of Mix, Travel and Edit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image
from small_models import tiny_generator

from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "spaces"))  # as when app.py is run

from studio.catalog import Entry
from studio.engine import Engine
from studio.pool import Loaded

TOY = "toy-church"


def small_engine() -> Engine:
    """With the built-in model, and a tiny one of every family under the family's name."""
    made = Engine(device="cpu")
    for family in FAMILIES:
        made.catalog._entries[family] = Entry(family, family, "for this test")
        pipeline = GANPipeline(tiny_generator(family))
        pipeline.model_name = family
        pipeline.set_progress_bar_config(disable=True)
        made.pool._keep(Loaded(family, pipeline, 0, 0, preview_px=pipeline.generator.resolution))
    return made


def toy_pipeline() -> GANPipeline:
    pipeline = GANPipeline.from_pretrained(TOY)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def run(code, folder, monkeypatch):
    """The snippet, in this folder."""
    monkeypatch.chdir(folder)
    exec(compile(code, "snippet", "exec"), {})

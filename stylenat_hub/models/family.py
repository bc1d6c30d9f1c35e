"""The two records that describe what the zoo holds. The zoo itself is `stylenat_hub.registry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stylenat_hub.models.base import Discriminator, Generator
from stylenat_hub.models.config import ModelConfig


@dataclass(frozen=True)
class Checkpoint:
    """One set of published or shipped weights.

    name: zoo name, `architecture-dataset-resolution`. preset: the family's preset with the same shapes.
    origin_url: the authors' original file, or None if they published none. source_sha256: of that file.
    """

    name: str
    family: str
    preset: str
    resolution: int
    dataset: str
    parameters: int
    paper: str
    code_license: str
    weights_license: str
    description: str
    origin_url: str | None = None
    source_sha256: str | None = None
    metrics: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Family:
    """One model family: a folder under `models/` and one line in `registry.FAMILIES`.

    generator: the `Generator` subclass. config: its config class, whose `presets` include `tiny`.
    recognise: does this original state dict of a generator belong to the family?
    infer_config: `(original state dict, *, args, preset, config) -> config`: args are the checkpoint's own
    record as plain data, preset and config what the user said; each may be None, contradictions raise.
    convert_state_dict: original generator state dict -> ours.
    discriminator: the class that the family is trained against, with presets of the same names.
    convert_discriminator: original discriminator state dict -> the model with its weights.
    """

    name: str
    title: str
    generator: type[Generator]
    config: type[ModelConfig]
    checkpoints: tuple[Checkpoint, ...]
    recognise: Callable[[Mapping[str, Any]], bool]
    infer_config: Callable[..., ModelConfig]
    convert_state_dict: Callable[[Mapping[str, Any]], dict[str, Any]]
    discriminator: type[Discriminator]
    convert_discriminator: Callable[[Mapping[str, Any]], Discriminator]

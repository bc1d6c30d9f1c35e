"""What is known about a model, as plain data (`describe`) and as text (`render`), its weights unread."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from stylenat_hub import hub
from stylenat_hub.errors import UnknownModelError
from stylenat_hub.locations import status
from stylenat_hub.models.config import ModelConfig
from stylenat_hub.registry import CHECKPOINTS, SHAPES, chosen_namespace, hub_id, list_models
from stylenat_hub.weights import check_headers, read_headers, read_json, read_tensor, weight_files


def describe(source: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
    """Facts of a model: name, class, config, levels, parameters, and of its weights the bytes, type and
    `w_avg`.

    A zoo name whose weights are not to be had gives the record and the facts of its shape; `weights` then
    says how to get them. Those on the Hub are downloaded. kwargs, errors: as `hub.locate` and
    `hub.load_model`.
    """
    name = os.fspath(source)
    if _only_a_shape(name, kwargs.get("namespace")):
        return _without_weights(name)
    try:
        location = hub.locate(source, **kwargs)
    except UnknownModelError:
        if _asked_for_more(name, kwargs):
            raise
        return _without_weights(name)
    cls = hub.generator_class(location.folder)
    config = cls.config_class.from_dict(read_json(location.folder / "config.json"))
    files = weight_files(location.folder, kwargs.get("variant"), location.listing)
    headers = read_headers(files)
    check_headers(_blank(cls, config), headers, repr(location.name))
    mean = read_tensor(files, "w_avg")
    weights = {
        "bytes": sum(path.stat().st_size for path in files),
        "types": sorted({kind for _, kind in headers.values()}),
        "w_avg": "known" if mean is not None and bool(torch.isfinite(mean).all()) else "not known",
    }
    facts = {"name": location.name, **_shape(cls, config)}
    if name in CHECKPOINTS and not os.path.isdir(name):
        facts["record"] = dataclasses.asdict(CHECKPOINTS[name])
    return {**facts, "weights": weights}


def _only_a_shape(name: str, namespace: str | None) -> bool:
    """Is it a name of the zoo whose weights are neither here nor to be asked for on the Hub?"""
    if name not in SHAPES or os.path.isdir(name) or name in hub.builtin_models():
        return False
    record = CHECKPOINTS.get(name)
    return record is None or not (record.published or chosen_namespace(namespace))


def _asked_for_more(name: str, kwargs: dict[str, Any]) -> bool:
    """Was it more than a name of the zoo, whose shape is known without its weights?"""
    return name not in CHECKPOINTS or os.path.isdir(name) or any(value for value in kwargs.values())


def _without_weights(name: str) -> dict[str, Any]:
    """Facts of a checkpoint that is not here, or of a preset that has none."""
    family, preset = SHAPES[name]
    facts = {"name": name, **_shape(family.generator, family.config.preset(preset))}
    if name not in CHECKPOINTS:
        return {**facts, "weights": f"none: a shape; stylenat_hub.create_model({name!r}) builds it untrained"}
    return {**facts, "record": dataclasses.asdict(CHECKPOINTS[name]), "weights": hub.without_weights(name)}


def list_checkpoints(pattern: str = "*", namespace: str | None = None) -> list[dict[str, Any]]:
    """The zoo's records whose names match a shell pattern, each with `hub_id` (see `registry.hub_id`),
    `builtin` (do its weights ship with this package?) and `status` (where its weights are)."""
    builtin = hub.builtin_models()
    return [
        {
            **dataclasses.asdict(CHECKPOINTS[name]),
            "hub_id": hub_id(name, namespace),
            "builtin": name in builtin,
            "status": status(name),
        }
        for name in list_models(pattern)
    ]


def _blank(cls: type, config: ModelConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return cls(config)


def _shape(cls: type, config: ModelConfig) -> dict[str, Any]:
    """All that follows from the config."""
    model = _blank(cls, config)
    return {
        "class": cls.__name__,
        "resolution": model.resolution,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": config.to_dict(),
        "levels": model.level_rows(),
    }


def render(facts: dict[str, Any]) -> str:
    """The facts of `describe` as lines of text."""
    lines = [
        f"{facts['name']}: {facts['class']}, {facts['resolution']} px, {facts['parameters']:,} parameters"
    ]
    record, weights = facts.get("record"), facts["weights"]
    if record:
        keys = ("description", "paper", "code_license", "weights_license", "origin_url", "origin_page")
        lines += [f"  {key}: {_plain(record[key])}" for key in keys if record[key] is not None]
        lines.append(f"  dataset: {record['dataset']['name']}, licence: {record['dataset']['license']}")
        lines += [
            f"  {m['name']}: {m['value']:.{m['digits']}f} ({m['protocol']}; {m['source']})"
            for m in record["metrics"]
        ]
    # Lists other than the colours' are one value per level, which the table below shows.
    shown = {k: v for k, v in facts["config"].items() if k.startswith("image_") or not isinstance(v, tuple)}
    lines += [f"  {key}: {_plain(value)}" for key, value in shown.items()]
    if isinstance(weights, dict):
        lines.append(f"  weights: {weights['bytes']:,} bytes, {', '.join(weights['types'])}")
        lines.append(f"  mean style (w_avg, needed for truncation): {weights['w_avg']}")
    else:
        lines.append(f"  weights: {weights}")
    return "\n".join([*lines, "", *table(facts["levels"])])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows with the same keys as aligned lines of text under a header."""
    cells = [list(rows[0]), *([_plain(value) for value in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool) and value > 9999
        else str(value)
    )

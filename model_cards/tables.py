"""The README's tables, from the registry and from the committed measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stylenat_hub.locations import status
from stylenat_hub.models.family import Checkpoint
from stylenat_hub.registry import CHECKPOINTS, SHAPES, hub_id

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE / "benchmarks"
ORIGINALS = HERE / "originals.json"


def measurements() -> list[dict[str, Any]]:
    """What `stylenat benchmark` and `training.benchmark` wrote, in the order of the files' names.
    space.json is `spaces.measure`'s, and of another kind."""
    paths = [path for path in sorted(BENCHMARKS.glob("*.json")) if path.name != "space.json"]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def model_table() -> str:
    """All checkpoints: size, what is reported of them, where the weights are."""
    rows = ["| name | px | generator's parameters | reported | weights |", "|---|---|---|---|---|"]
    for record in CHECKPOINTS.values():
        figures = "; ".join(
            f"{m.name} {m.shown}{' (measured here)' if m.measured_here else ''}" for m in record.metrics
        )
        name = f"[`{record.name}`](model_cards/{record.name}/README.md)"
        size = f"{record.parameters / 1e6:.2f} M"
        rows.append(f"| {name} | {record.resolution} | {size} | {figures} | {_weights(record)} |")
    return "\n".join(rows) + "\n"


def _weights(record: Checkpoint) -> str:
    return {
        "ships": "ship with the package",
        "on the Hub": f"`{hub_id(record.name)}` on the Hub",
        "convert": f"convert the authors' `{Path(record.origin_url or '').name}`",
        "none published": "never published; the shape only",
    }[status(record.name)]


def speed_table() -> str:
    """Seconds per image or step of every measurement, beside those of its matrix products alone."""
    rows = [
        "| what | type | machine, threads | seconds | floor | ratio | of it attention | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        _cells(*row)
        for result in sorted(measurements(), key=_order)
        for row in (_drawing(result) if "model" in result else _step(result))
    ]
    return "\n".join(rows) + "\n"


def original_table() -> str:
    """Seconds per picture on a CPU beside those recorded of the original code."""
    recorded = json.loads(ORIGINALS.read_text(encoding="utf-8"))
    here = {
        result["model"]: result["seconds"]["tiled"] / result["batch"]
        for result in measurements()
        if "model" in result and result["dtype"] == "float32" and "NVIDIA" not in result["machine"]["device"]
    }
    rows = ["| what | here | the original | with | original / here |", "|---|---|---|---|---|"]
    rows += [
        _cells(f"`{name}`", f"{here[name]:.3g}", f"{seconds:.3g}", software, f"{seconds / here[name]:.2f}")
        for name, figures in recorded.items()
        if name in here
        for software, seconds in figures.items()
    ]
    return "\n".join(rows) + "\n"


def speeds() -> str:
    """Seconds per picture on 2 CPU threads in float32, by checkpoint, as JSON for the Space's list of models.
    One without a measurement of its own has that of its shape."""
    measured = {
        result["model"]: result["seconds"]["tiled"] / result["batch"]
        for result in measurements()
        if result.get("threads") == 2 and result.get("dtype") == "float32" and "model" in result
    }
    shapes = {name: _shape(name) for name in (*CHECKPOINTS, *measured)}
    seconds = {}
    for name in CHECKPOINTS:
        alike = [one for one in (name, *measured) if one in measured and shapes[one] == shapes[name]]
        if alike:
            seconds[name] = float(f"{measured[alike[0]]:.3g}")
    about = "built by python -m model_cards.build from model_cards/benchmarks"
    return json.dumps({"about": about, "seconds": seconds}, indent=2) + "\n"


def _shape(name: str) -> tuple[str, str]:
    family, preset = SHAPES[name]
    return family.name, json.dumps(family.config.preset(preset).to_dict())


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    """Models in the zoo's order, float32 first; training steps last."""
    names = list(CHECKPOINTS)
    model = result.get("model")
    return model is None, names.index(model) if model in names else len(names), _kind(result) != "float32"


def _kind(result: dict[str, Any]) -> str:
    return {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(
        result.get("precision", ""), result.get("dtype", "float32")
    )


def _where(result: dict[str, Any]) -> str:
    device = result["machine"]["device"]
    return f"{device}, {result['threads']}" if result.get("threads") else device


def _drawing(result: dict[str, Any]) -> list[tuple[str, ...]]:
    batch, seconds = result["batch"], result["seconds"]
    floor = seconds["matrix_products"] / batch
    rows = []
    for formulation, what in (
        ("tiled", f"`{result['model']}`"),
        ("gather", "the same with gathered neighbors"),
    ):
        if formulation in seconds:
            time = seconds[formulation] / batch
            inside = result.get("attention_seconds", {}).get(formulation)
            share = "" if inside is None else f"{100 * inside / seconds[formulation]:.0f} %"
            memory = _memory(result["peak_memory_mib"].get(formulation))
            rows.append((what, _kind(result), _where(result), *_times(time, floor), share, memory))
    return rows


def _step(result: dict[str, Any]) -> list[tuple[str, ...]]:
    seconds, batch = result["seconds"], result["batch"]
    less = ", gradient checkpointing" if "--gradient-checkpointing" in result["command"] else ""
    what = f"a training step of `{result['preset']}`, batch {batch}{less}"
    times = _times(seconds["mean_step"], seconds["mean_step_products"])
    return [(what, _kind(result), _where(result), *times, "", _memory(result["peak_memory_mib"]))]


def _times(time: float, floor: float) -> tuple[str, str, str]:
    return f"{time:.3g}", f"{floor:.3g}", f"{time / floor:.3g}"


def _memory(mebibytes: float | None) -> str:
    return f"{mebibytes:,.0f} MiB" if mebibytes else ""


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

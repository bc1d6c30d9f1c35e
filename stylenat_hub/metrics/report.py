"""What was measured, on what and how, so that it can be repeated: as JSON, as Markdown, in a card."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

import stylenat_hub
from stylenat_hub.errors import InputError
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.metrics.score import METRICS
from stylenat_hub.weights import fingerprint, weight_files

TASK = "unconditional-image-generation"
DIGITS = {"fid": 3, "kid": 5, "is": 3, "precision": 4, "recall": 4, "density": 4, "coverage": 4, "swd": 2}


def model_facts(location: Any, variant: str | None = None) -> dict[str, Any]:
    """Name, revision (of a Hub repository's snapshot) and SHA-256 of the weights of a located model."""
    files = weight_files(location.folder, variant, location.listing)
    parents = [path.name for path in (location.root, *location.root.parents)]
    revision = parents[parents.index("snapshots") - 1] if "snapshots" in parents[1:] else None
    return {
        "name": location.name,
        "revision": revision,
        "weights": {path.name: fingerprint(path)["sha256"] for path in files},
    }


def report(
    scores: Mapping[str, float],
    *,
    model: Mapping[str, Any],
    drawn: Mapping[str, Any],
    real: Mapping[str, Any] | None,
    extractor: Mapping[str, Any] | None,
    parameters: Mapping[str, Any],
    warnings: Sequence[str],
    seconds: float,
    processes: int,
) -> dict[str, Any]:
    """All of a measurement as plain data. drawn: seeds, truncation, type, device of the generated pictures.
    real: `RealPictures.facts` and the name of the data. extractor: its protocol. parameters, warnings: as of
    `Evaluation`."""
    return {
        "scores": dict(scores),
        "warnings": list(warnings),
        "metrics": dict(parameters),
        "model": dict(model),
        "generated": {**drawn, "rounded_to": "8 bits"},
        "real": None if real is None else dict(real),
        "extractor": None if extractor is None else dict(extractor),
        "seconds": round(seconds, 1),
        "processes": processes,
        "versions": {
            "stylenat_hub": stylenat_hub.__version__,
            **{name: version(name) for name in ("torch", "diffusers", "numpy", "pillow")},
            "python": platform.python_version(),
        },
    }


def write(path: str | Path, content: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Path:
    """Write a report, or several, as JSON, whole or not at all."""
    path = user_path(path)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def shown(name: str, value: float) -> str:
    """A figure with as many digits as mean something."""
    return f"{value:.{DIGITS.get(name.partition('[')[0], 3)}f}"


def figures(scores: Mapping[str, float]) -> list[str]:
    """The names of what counts: not of deviations and numbers of pictures."""
    return [name for name in scores if not name.partition("[")[0].endswith(("_std", "_pictures"))]


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """A table: a row per report, a column per figure."""
    names = figures(reports[0]["scores"])
    lines = [
        f"| model | truncation | pictures | {' | '.join(names)} | protocol |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    for entry in reports:
        cells = " | ".join(shown(name, entry["scores"][name]) for name in names)
        drawn = entry["generated"]
        lines.append(
            f"| {entry['model']['name']} | {drawn['truncation_psi']:g} | {drawn['num']:,} | {cells} | "
            f"{protocol(entry)} |"
        )
    return "\n".join(lines)


def protocol(entry: Mapping[str, Any], key: str | None = None) -> str:
    """In words: which pictures, against what, by which network; of all figures, or of one."""
    drawn, real, extractor = entry["generated"], entry["real"], entry["extractor"]
    plain = (key or "").partition("[")[0]
    swd = plain.startswith("swd")
    number = int(entry["scores"].get("swd_pictures", drawn["num"])) if swd else drawn["num"]
    truncation = f"truncation {drawn['truncation_psi']:g}"
    if drawn["truncation_cutoff"] is not None:
        truncation += f" of the first {drawn['truncation_cutoff']} styles"
    parts = [f"{number:,} pictures from seed {drawn['first_seed']}", truncation]
    if drawn["dtype"] != "float32":
        parts.append(drawn["dtype"])
    if real is not None and not plain.startswith("is"):
        used = min(number, real["used"]) if swd else real["used"]
        count = f"all {used:,}" if used == real["pictures"] else f"{used:,} of {real['pictures']:,}"
        parts.append(f"against {count} of {Path(real['name']).name}")
    if extractor is not None and not swd:
        parts.append(f"features: {extractor['name']}")
        parts += [str(extractor["note"])] if extractor.get("note") else []
    return ", ".join(parts)


def read_card(path: str | Path) -> tuple[Path, ModelCard]:
    """A card by its path, or that of its folder. Raises `InputError` if there is none or its header cannot
    be read."""
    path = user_path(path)
    path = path / "README.md" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no card {str(path)!r}; name a README.md, or a folder with one")
    try:
        return path, ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except Exception as error:  # the YAML parser has kinds of its own
        why = " ".join(str(error).split())
        raise InputError(f"the header of {str(path)!r} cannot be read: {why:.200}; mend it") from error


def update_card(path: str | Path, entry: Mapping[str, Any]) -> Path:
    """Write the figures into a card's front matter as evaluation results; those of the same metric, data and
    protocol give way, all others stay. path, errors: as of `read_card`."""
    path, card = read_card(path)
    new = _results(entry)
    replaced = {_identity(result) for result in new}
    kept = [result for result in card.data.eval_results or [] if _identity(result) not in replaced]
    card.data.eval_results = kept + new
    card.data.model_name = card.data.model_name or Path(entry["model"]["name"]).name
    with whole_file(path) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
    return path


def _identity(result: EvalResult) -> tuple[Any, ...]:
    return result.metric_type, result.dataset_name, (result.metric_args or {}).get("protocol")


def _results(entry: Mapping[str, Any]) -> list[EvalResult]:
    data = entry["real"]
    name = Path(data["name"]).name if data else "none"
    return [
        EvalResult(
            task_type=TASK,
            # Results of equal type and revision get one name in a card: these keep data sets apart.
            dataset_type=re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "custom",
            dataset_revision=data and data["fingerprint"][:12],
            dataset_name=f"{name} ({data['used']:,} pictures)" if data else name,
            metric_type=key.replace("[", "-").rstrip("]"),
            metric_name=_title(key),
            metric_value=float(shown(key, entry["scores"][key])),
            metric_args={
                "protocol": protocol(entry, key),
                "weights_sha256": next(iter(entry["model"]["weights"].values()), None),
            },
        )
        for key in figures(entry["scores"])
        if not key.startswith("swd_")  # its levels
    ]


def _title(key: str) -> str:
    """`fid[random-conv]` -> `FID, features of random-conv`."""
    name, _, network = key.rstrip("]").partition("[")
    titles = {each: metric.title for metric in METRICS.values() for each in metric.names}
    titles["swd"] = "sliced Wasserstein distance x 1000"
    alone = name in ("precision", "recall", "density", "coverage")
    title = name if alone else titles.get(name, name)
    return f"{title}, features of {network}" if network else title

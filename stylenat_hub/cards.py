"""The card (README.md) of a repository that somebody pushes: what a model's own files say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import stylenat_hub
from stylenat_hub.errors import ConfigError
from stylenat_hub.models.family import Family
from stylenat_hub.registry import FAMILIES
from stylenat_hub.weights import read_json

LIBRARY = "stylenat_hub"
TASK = "unconditional-image-generation"
TEMPLATE = Path(__file__).parent / "card.md"
MARK = "<!-- Written by stylenat_hub"  # a card without it is somebody's own and is never replaced
# Metrics that training writes: how they are called, and what they compare.
MEASURED = {
    "swd": "sliced Wasserstein distance x 1000 (arXiv 1710.10196, section 5), lower is better",
}
_FILES = {
    "model_index.json": "names the parts, for diffusers",
    "generator": "the generator: config and weights (safetensors)",
    "discriminator": "what it was trained against: fine-tuning starts better with it",
    "training.json": "the recipe of the training, and how far it went",
    "conversion.json": "the original file that it was converted from, by its SHA-256",
    "checkpoint": "everything that a training needs to go on: `--resume hf:{name}`",
    "pipeline.py": "this project's code in one file, for diffusers with `trust_remote_code=True`",
    "samples.png": "the pictures above",
}
# What the card needs of a record: key, and within it another, -> the kind of the value.
_NUMBER = (int, float)
_TRAINING = {
    **{("images",): int, ("seconds",): _NUMBER, ("processes",): int, ("weights",): str, ("dtype",): str},
    **{("recipe",): dict, ("data", "pictures"): int},
}
_CONVERSION = {
    ("weights",): str,
    **{("source", "file"): str, ("source", "bytes"): int, ("source", "sha256"): str},
}


def card_data(
    family: Family, *, license: str | None, name: str, evaluation: Sequence[EvalResult] = (), **fields: Any
) -> ModelCardData:
    """The front matter that all cards of a family share. fields: more of `ModelCardData`'s."""
    results = {"model_name": name, "eval_results": list(evaluation)} if evaluation else {}
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=TASK,
        license=license,
        tags=["gan", "transformer", family.name, *family.tags],
        **results,
        **fields,
    )


def pushed_card(folder: Path, name: str, *, license: str | None = None, grid: str | None = None) -> ModelCard:
    """The card of a model or pipeline folder that is to become the repository `name`.

    license: as the Hub's list calls it; None says nothing. grid: what `samples.png` shows, if it is there.

    Raises `ConfigError` if the folder holds no model of the zoo.
    """
    model = folder / "generator" if (folder / "generator").is_dir() else folder
    cls, family = model_class(model)
    training = _record(folder / "training.json", _TRAINING)
    conversion = _record(folder / "conversion.json", _CONVERSION)
    figures = _figures(training)
    names = sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()})
    base = training.get("started_from")
    data = card_data(
        family,
        license=license,
        name=name.split("/")[-1],
        evaluation=[_result(figure, training) for figure in figures],
        base_model=base if base and "/" in base else None,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        version=stylenat_hub.__version__,
        title=name.split("/")[-1],
        summary=_summary(cls, family, model),
        grid=grid,
        use=_use(cls, name, pipeline=(folder / "model_index.json").is_file()),
        diffusers=_with_diffusers(folder, name),
        origin=_origin(training, conversion),
        figures=figures,
        files=[(file, _FILES[file].format(name=name)) for file in names if file in _FILES],
        license=f"The licence is {license}."
        if license
        else "Who pushed it states no licence: ask before use.",
        family=family.title,
        paper=family.checkpoints[0].paper,
        citation=family.citation,
    )


def model_class(folder: Path) -> tuple[type, Family]:
    """The class of the model saved in a folder, and a family that has it. Raises `ConfigError`."""
    name = read_json(folder / "config.json").get("_class_name")
    for family in FAMILIES.values():
        for cls in (family.generator, family.discriminator):
            if cls.__name__ == name:
                return cls, family
    raise ConfigError(f"{str(folder / 'config.json')!r} is of the class {name!r}, which is none of this zoo")


def _record(path: Path, needed: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """What is recorded of a model's making, or nothing. Raises `ConfigError` if another program wrote it."""
    if not path.is_file():
        return {}
    record = read_json(path)
    for keys, kind in needed.items():
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise ConfigError(
                f"{str(path)!r} is no record that this project wrote: {'.'.join(keys)} is {value!r:.60}; "
                "move it elsewhere, or make the folder again"
            )
    return record


def _summary(cls: type, family: Family, folder: Path) -> str:
    import torch

    config = cls.config_class.from_dict(read_json(folder / "config.json"))
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in cls(config).parameters())
    size = f"{count / 1e6:.2f} M parameters, {config.resolution} x {config.resolution} px"
    if cls is family.generator:
        return f"A {family.title} generator ({size}): random latents in, pictures out."
    return f"A {cls.__name__} ({size}): what generators of {family.title} are trained against."


def _use(cls: type, name: str, pipeline: bool) -> str:
    if cls.component == "generator":
        return (
            "from stylenat_hub import GANPipeline\n\n"
            f'pipe = GANPipeline.from_pretrained("{name}")\n'
            "pipe(seeds=range(8), truncation_psi=0.7).images  # a list of PIL images"
        )
    return f'from stylenat_hub import {cls.__name__}\n\n{cls.__name__}.from_pretrained("{name}")'


def _with_diffusers(folder: Path, name: str) -> str | None:
    if not (folder / "model_index.json").is_file():
        return None
    load = f'DiffusionPipeline.from_pretrained("{name}"'
    if (folder / "pipeline.py").is_file():
        return (
            "Without this library, with diffusers alone (this runs the code in `pipeline.py`: read it "
            "first):\n\n"
            f"```python\nfrom diffusers import DiffusionPipeline\n\n{load}, trust_remote_code=True)\n```"
        )
    return (
        "Or through diffusers, once this library is imported:\n\n"
        f"```python\nimport stylenat_hub\nfrom diffusers import DiffusionPipeline\n\n{load})\n```"
    )


def _origin(training: Mapping[str, Any], conversion: Mapping[str, Any]) -> str:
    if conversion:
        source = conversion["source"]
        return (
            f"Converted from `{source['file']}` ({source['bytes']:,} bytes, SHA-256 `{source['sha256']}`), "
            f"weights `{conversion['weights']}`, by `python -m conversion.convert`, which checks that the "
            "result reloads to the same picture. `conversion.json` has the details."
        )
    if training:
        return _trained(training)
    return "Who pushed it has not recorded how."


def _trained(training: Mapping[str, Any]) -> str:
    recipe, data = training["recipe"], training["data"]
    start = (
        f"started from `{training['started_from']}`"
        if training.get("started_from")
        else "from random weights"
    )
    lines = [
        f"Trained by `accelerate launch -m training.train`, {start}: {training['images']:,} images seen, of "
        f"{data['pictures']:,} training pictures, in {training['seconds'] / 3600:.1f} hours on "
        f"{training['processes']} process(es). Weights: the {training['weights']} ones, {training['dtype']}.",
        "",
        "The recipe (`training.json` has it too):",
        "",
        "```json",
        json.dumps(recipe, indent=1),
        "```",
    ]
    return "\n".join(lines)


def _figures(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the training measured last, at which image."""
    measured = training.get("metrics") or {}
    return [
        {
            "id": key,
            "name": MEASURED[key].split(" (")[0],
            "value": f"{measured[key]:.2f}",
            "protocol": _compared(key, measured),
        }
        for key in MEASURED
        if key in measured
    ]


def _compared(key: str, measured: Mapping[str, Any]) -> str:
    return f"{MEASURED[key]}; measured while training, at {measured['images']:,} images"


def _result(figure: Mapping[str, Any], training: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type="custom",
        dataset_name=f"the training data ({training['data']['pictures']:,} pictures)",
        metric_type=figure["id"],
        metric_name=figure["name"],
        metric_value=float(figure["value"]),
    )

"""The card (README.md) of a repository that somebody pushes: what a model's own files say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import stylenat_hub
from stylenat_hub.errors import ConfigError
from stylenat_hub.locations import RECORDS
from stylenat_hub.metrics import KNOWN
from stylenat_hub.models.family import Family
from stylenat_hub.registry import CHECKPOINTS, find_class
from stylenat_hub.weights import read_json

LIBRARY = "stylenat_hub"
TASK = "unconditional-image-generation"
TEMPLATE = Path(__file__).parent / "card.md"
MARK = "<!-- Written by stylenat_hub"  # a card without it is somebody's own and is never replaced
ZOO_MARK = "<!-- Built by"  # what `model_cards/template.md` begins with
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
    **{("recipe",): dict, ("data", "pictures"): int, ("started_from",): (str, type(None))},
}
_CONVERSION = {
    **{("weights",): str, ("zoo",): (str, type(None))},
    **{("source", "file"): str, ("source", "bytes"): int, ("source", "sha256"): str},
}
_DIGITS = {"kid": 5, "precision": 3, "recall": 3, "density": 3, "coverage": 3}  # of figures; 2 of all others
_NEEDED = dict(zip(RECORDS, (_TRAINING, _CONVERSION), strict=True))


def card_data(
    families: Sequence[Family],
    *,
    license: str | None,
    name: str,
    evaluation: Sequence[EvalResult] = (),
    **fields: Any,
) -> ModelCardData:
    """The front matter that all cards share. families: those that have the model; a discriminator may be of
    several. fields: more of `ModelCardData`'s.

    The first of a family's tags says what kind of network it is, and comes before the family's name.
    """
    own = (tag for f in families for tag in (*f.tags[:1], f.name, *f.tags[1:]))
    results = {"model_name": name, "eval_results": list(evaluation)} if evaluation else {}
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=TASK,
        license=license,
        tags=list(dict.fromkeys(["gan", *own])),
        **results,
        **fields,
    )


def pushed_card(folder: Path, name: str, *, license: str | None = None, grid: str | None = None) -> ModelCard:
    """The card of a model or pipeline folder that is to become the repository `name`.

    license: as the Hub's list calls it; None says nothing. grid: what `samples.png` shows, if it is there.

    Raises `ConfigError` if the folder holds no model of the zoo.
    """
    model = folder / "generator" if (folder / "generator").is_dir() else folder
    cls, families = model_class(model)
    training = _record(folder / "training.json")
    conversion = _record(folder / "conversion.json")
    figures = _figures(training)
    names = sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()})
    base = training.get("started_from")
    data = card_data(
        families,
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
        summary=_summary(cls, families, model),
        grid=grid,
        use=_use(cls, families[0], name),
        diffusers=_with_diffusers(folder, name),
        origin=_origin(training, conversion),
        figures=figures,
        files=[(file, _FILES[file].format(name=name)) for file in names if file in _FILES],
        license=_licence(license, conversion),
        families=families,
    )


def model_class(folder: Path) -> tuple[type, tuple[Family, ...]]:
    """The class of the model saved in a folder, and the families that have it. Raises `ConfigError`."""
    name = read_json(folder / "config.json").get("_class_name")
    if found := find_class(name):
        return found
    raise ConfigError(f"{str(folder / 'config.json')!r} is of the class {name!r}, which is none of this zoo")


def _licence(license: str | None, conversion: Mapping[str, Any]) -> str:
    said = f"The licence is {license}." if license else "Who pushed it states no licence: ask before use."
    if record := CHECKPOINTS.get(conversion.get("zoo", "")):
        said += (
            f" Of the original weights: {record.weights_license}. Of the data, {record.dataset.name}: "
            f"{record.dataset.license}."
        )
    return said


def _record(path: Path) -> dict[str, Any]:
    """What is recorded of a model's making, or nothing. Raises `ConfigError` if another program wrote it."""
    if not path.is_file():
        return {}
    record = read_json(path)
    if wrong := wrong_field(path.name, record):
        raise ConfigError(
            f"{str(path)!r} is no record that this project wrote: {wrong}; move it elsewhere, or make the "
            "folder again"
        )
    return record


def wrong_field(name: str, record: Mapping[str, Any]) -> str | None:
    """What is wrong in a record of this name (`RECORDS`), or None if this project can have written it."""
    for keys, kind in _NEEDED[name].items():
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            return f"{'.'.join(keys)} is {value!r:.60}"
    return None


def _summary(cls: type, families: Sequence[Family], folder: Path) -> str:
    import torch

    config = cls.config_class.from_dict(read_json(folder / "config.json"))
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in cls(config).parameters())
    size = f"{count / 1e6:.2f} M parameters, {config.resolution} x {config.resolution} px"
    titles = " and ".join(family.title for family in families)
    if cls.component == "generator":
        return f"A {titles} generator ({size}): random latents in, pictures out."
    return f"A {cls.__name__} ({size}): what generators of {titles} are trained against."


def snippet(family: Family, name: str) -> str:
    """The lines of Python that draw with a generator."""
    return (
        "from stylenat_hub import GANPipeline\n\n"
        f'pipe = GANPipeline.from_pretrained("{name}")\n'
        f"pipe(seeds=range(8), truncation_psi={family.truncation}).images  # a list of PIL images"
    )


def _use(cls: type, family: Family, name: str) -> str:
    if cls.component == "generator":
        return snippet(family, name)
    return f'from stylenat_hub import {cls.__name__}\n\n{cls.__name__}.from_pretrained("{name}")'


def _with_diffusers(folder: Path, name: str) -> str | None:
    if not (folder / "model_index.json").is_file():
        return None
    load = f'DiffusionPipeline.from_pretrained("{name}"'
    if (folder / "pipeline.py").is_file():
        return (
            "Or through diffusers, which asks for `trust_remote_code=True` because of the code in "
            "`pipeline.py` (read it first); that works without this library, too:\n\n"
            f"```python\nfrom diffusers import DiffusionPipeline\n\n{load}, trust_remote_code=True)\n```"
        )
    return (
        "Or through diffusers, once this library is imported:\n\n"
        f"```python\nimport stylenat_hub\nfrom diffusers import DiffusionPipeline\n\n{load})\n```"
    )


def _origin(training: Mapping[str, Any], conversion: Mapping[str, Any]) -> str:
    if conversion:
        source, record = conversion["source"], CHECKPOINTS.get(conversion.get("zoo", ""))
        whose = f", the authors' file for `{record.name}` ({record.origin_url})" if record else ""
        return (
            f"Converted from `{source['file']}`{whose} ({source['bytes']:,} bytes, SHA-256 "
            f"`{source['sha256']}`), weights `{conversion['weights']}`, by `python -m conversion.convert`, "
            "which checks that the result reloads to the same picture. `conversion.json` has the details."
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
        f"Trained by this project's `training.train`, {start}: {training['images']:,} images seen, of "
        f"{data['pictures']:,} training pictures, in {_duration(training['seconds'])} on "
        f"{training['processes']} process{'es' * (training['processes'] != 1)}. Weights: the "
        f"{training['weights']} ones, {training['dtype']}.",
        "",
        "<details><summary>The recipe, as in <code>training.json</code></summary>",
        "",
        "```json",
        json.dumps(recipe, indent=1),
        "```",
        "",
        "</details>",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _figures(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the training measured last, at which image."""
    measured = training.get("metrics")
    if not isinstance(measured, dict) or not isinstance(measured.get("images"), int):
        return []
    when = f"measured while training, at {measured['images']:,} images"
    return [
        {
            "id": key,
            "name": name,
            "value": f"{measured[key]:.{_DIGITS.get(key, 2)}f}",
            "protocol": f"{compares}; {when}",
        }
        for key, (name, compares) in KNOWN.items()
        if isinstance(measured.get(key), _NUMBER)
    ]


def _result(figure: Mapping[str, Any], training: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type="custom",
        dataset_name=f"the training data ({training['data']['pictures']:,} pictures)",
        metric_type=figure["id"],
        metric_name=figure["name"],
        metric_value=float(figure["value"]),
    )

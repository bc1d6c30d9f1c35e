"""What the Hub of the tests checks in the front matter of a README.md, and what it reads from it."""

from __future__ import annotations

import re

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
EMPTY = "empty or missing yaml metadata in repo card"

# The ids that the Hub names in its own error message, "array" aside (a list of these ids is allowed).
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa
unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
_TASKS = """
any-to-any audio-classification audio-to-audio automatic-speech-recognition depth-estimation
document-question-answering feature-extraction fill-mask graph-ml image-classification
image-feature-extraction image-segmentation image-text-to-text image-to-3d image-to-image image-to-text
image-to-video keypoint-detection mask-generation object-detection other question-answering
reinforcement-learning robotics sentence-similarity summarization table-question-answering
tabular-classification tabular-regression text-classification text-generation text-ranking text-to-3d
text-to-audio text-to-image text-to-speech text-to-video time-series-forecasting token-classification
translation unconditional-image-generation video-classification video-text-to-text video-to-video
visual-question-answering voice-activity-detection zero-shot-classification zero-shot-image-classification
zero-shot-object-detection
"""
LICENSES, TASKS = _LICENSES.split(), _TASKS.split()
COLORS = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
SDKS = ["gradio", "docker", "static", "streamlit"]
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-zA-Z0-9]+)*|multilingual|code")


def card_data(text: str) -> dict:
    """The front matter of a card; empty where there is none that can be read."""
    import yaml  # comes with huggingface_hub

    found = FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def check_card(text: str, repo_type: str = "model") -> tuple[list[str], list[str]]:
    """Errors and warnings, worded as the Hub words them: `"name" must be ...`."""
    import yaml

    found = FRONT_MATTER.match(text)
    if not found:
        return [], [EMPTY]
    try:
        data = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"invalid yaml: {error}"], []
    if data is None:
        return [], [EMPTY]
    if not isinstance(data, dict):
        return ['"metadata" must be of type object'], []
    errors, warnings = _licenses(data)
    for name in ("tags", "datasets", "language", "metrics", "base_model"):
        errors += _strings(name, data.get(name), alone=name != "tags")
    errors += _ids(data)
    if repo_type == "space":
        errors += _space(data)
    task = data.get("pipeline_tag")
    if task is not None and not isinstance(task, str):
        errors.append('"pipeline_tag" must be a string')
    elif task is not None and task not in TASKS:
        warnings.append(f'The pipeline tag "{task}" is not in the official list: {", ".join(TASKS)}')
    return errors + _model_index(data), warnings


def _licenses(data: dict) -> tuple[list[str], list[str]]:
    """The Hub itself may let "other" pass without a name; asking for one keeps cards complete."""
    if "license" not in data:
        return [], []
    given = data["license"] if isinstance(data["license"], list) else [data["license"]]
    errors = [f'"license" must be one of [{", ".join(LICENSES)}, array]' for x in given if x not in LICENSES]
    if "other" in given and not data.get("license_name"):
        errors.append('"license_name" is required when "license" is other')
    missing_link = "other" in given and not data.get("license_link")
    return errors, ['"license_link" is missing and "license" is other'] if missing_link else []


def _strings(name: str, value: object, *, alone: bool) -> list[str]:
    if value is None or (alone and isinstance(value, str)):
        return []
    if not isinstance(value, list):
        return [f'"{name}" must be an array']
    return [f'"{name}[{i}]" must be a string' for i, x in enumerate(value) if not isinstance(x, str)]


def _ids(data: dict) -> list[str]:
    errors = []
    rules = [
        ("datasets", REPO_ID, "dataset id"),
        ("base_model", REPO_ID, "model id"),
        ("language", LANGUAGE, "code"),
    ]
    for name, pattern, what in rules:
        value = data.get(name)
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, str) and not pattern.fullmatch(x):
                errors.append(f'"{name}" with value "{x}" is not valid. Use a {what}.')
    return errors


def _space(data: dict) -> list[str]:
    errors = []
    for name, allowed in (("colorFrom", COLORS), ("colorTo", COLORS), ("sdk", SDKS)):
        if name in data and data[name] not in allowed:
            errors.append(f'"{name}" must be one of [{", ".join(allowed)}]')
    if "sdk" not in data:
        errors.append('"sdk" is required')
    if len(str(data.get("short_description", ""))) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors


def _model_index(data: dict) -> list[str]:
    """Each result needs task.type, dataset.type, dataset.name, and metrics that have a type and a value."""
    if "model-index" not in data:
        return []
    if not isinstance(data["model-index"], list):
        return ['"model-index" must be an array']
    errors: list[str] = []
    for i, model in enumerate(data["model-index"]):
        at = f"model-index[{i}]"
        _need(errors, at, model, "name")
        for j, result in enumerate(_list(errors, at, model, "results")):
            here = f"{at}.results[{j}]"
            for part, names in (("task", ["type"]), ("dataset", ["type", "name"])):
                value = _need(errors, here, result, part)
                for name in names if value is not None else []:
                    _need(errors, f"{here}.{part}", value, name)
            for k, metric in enumerate(_list(errors, here, result, "metrics")):
                _need(errors, f"{here}.metrics[{k}]", metric, "type")
                _need(errors, f"{here}.metrics[{k}]", metric, "value")
    return errors


def _need(errors: list[str], at: str, value: object, name: str):
    if not isinstance(value, dict):
        message = f'"{at}" must be of type object'
    elif value.get(name) is None:
        message = f'"{at}.{name}" is required'
    else:
        return value[name]
    if message not in errors:
        errors.append(message)


def _list(errors: list[str], at: str, value: object, name: str) -> list:
    given = _need(errors, at, value, name)
    if given is None or isinstance(given, list):
        return given or []
    errors.append(f'"{at}.{name}" must be an array')
    return []

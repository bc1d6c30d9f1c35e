"""The rules about the code itself: which way imports point, how long a file may be, what an import loads.

CONTRIBUTING.md has the same rules in words. A new module or folder gets its place in `BELOW`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "stylenat_hub"
OUTSIDE = ("conversion", "training", "spaces", "model_cards")
MAX_LINES = 400

# part of the package -> the parts that it may import, itself apart. "models" is the shared code beside the
# families, "models.*" any one family; "" is the package's own __init__.
BELOW: dict[str, tuple[str, ...]] = {
    "errors": (),
    "signals": (),
    "files": ("errors", "signals"),
    "locks": ("errors", "files"),
    "launch": ("errors",),
    "diffusers_plugin": (),
    "bundle_loader": (),
    "attention": ("errors",),
    "layers": ("errors",),
    "models": ("errors", "files", "attention", "layers"),
    "models.*": (
        "errors",
        "attention",
        "layers",
        "models.base",
        "models.config",
        "models.family",
        "models.discriminator",
        "models.discriminator_keys",
        "models.original",
        "models.lineage",
    ),
    "registry": ("errors", "models", "models.*"),
    "weights": ("errors", "files", "signals"),
    "bundle": ("", "bundle_loader", "errors", "registry", "weights"),
    "options": ("errors", "signals"),
    "decoding": ("errors",),
    "sources": ("errors", "files", "decoding"),
    "contents": ("sources",),
    "remote": ("errors",),
    "snapshots": ("errors",),
    "download": ("errors", "remote", "snapshots", "weights"),
    "locations": ("errors", "registry", "download", "weights"),
    "hub": (
        *("errors", "files", "attention", "layers", "models", "models.*", "registry", "weights"),
        "locations",
    ),
}
# in this order, each on all before it, so that none import each other in a circle
_ORDER = (
    *("pipeline", "sheet", "pictures", "video", "metrics", "photos", "latents", "inside"),
    *("summary", "papers", "products", "benchmark"),
    *("cards", "push_options", "staged", "targets", "uploads", "card_checks", "publish"),
    "publish_directions",
    *("cli_models", "cli_generate", "cli_mix", "cli_interpolate", "cli_directions", "cli_project"),
    *("cli_inside", "cli_evaluate", "cli_demo", "cli", ""),
)
for _name in _ORDER:
    BELOW[_name] = ("", *BELOW) if _name else tuple(BELOW)

# The named exceptions, inside functions: a user expects loading and publishing on the classes.
LATE_EXCEPTIONS = {
    ("stylenat_hub/models/base.py", "hub"),
    ("stylenat_hub/models/base.py", "publish"),
    ("stylenat_hub/pipeline.py", "publish"),
}

CORE = {"torch", "diffusers", "huggingface_hub", "safetensors", "accelerate", "numpy", "PIL", "typer", "tqdm"}
THIRD_PARTY: dict[str, set[str]] = {
    "errors": set(),
    "signals": set(),
    "files": set(),
    "locks": set(),
    "launch": set(),
    "diffusers_plugin": set(),
    "bundle_loader": set(),
    "attention": {"torch"},
    "layers": {"torch"},
    "models": {"torch", "diffusers"},
    "models.*": {"torch", "diffusers"},
}
LATE_THIRD_PARTY: dict[str, set[str]] = {
    "launch": {"torch", "psutil"},
    "diffusers_plugin": {"diffusers"},
    "attention": {"natten", "triton"},
    "layers": {"natten", "triton"},
    "metrics": {"pyarrow", "transformers", "matplotlib"},
    "inside": {"matplotlib"},
    "sources": {"pyarrow"},
    "video": {"imageio_ffmpeg"},
    "latents": {"lpips"},
}
# module -> where alone it may be imported (a folder, or a file of the package)
ONLY_IN = {
    "gradio": (
        "spaces/app.py",
        *(f"spaces/studio/{p}" for p in ("page", "look", "context", "tabs/")),
        "tests/",
    ),
    "gradio_client": ("spaces/measure.py", "tests/"),
    "playwright": ("tests/",),
    "studio": ("spaces/", "tests/"),
    "accelerate": ("training/", "stylenat_hub/metrics"),
    "natten": ("stylenat_hub/attention/", "stylenat_hub/layers/", "tests/"),
    "torchvision": (),
    "transformers": ("stylenat_hub/metrics/", "tests/"),
}


@dataclass(frozen=True)
class Import:
    """One imported module. late: inside a function. typing: under `if TYPE_CHECKING`."""

    module: str
    line: int
    late: bool
    typing: bool


def python_files(*folders: str) -> list[str]:
    """Paths relative to the repository's root, of the folders that exist."""
    return sorted(p.relative_to(ROOT).as_posix() for f in folders for p in (ROOT / f).rglob("*.py"))


def imports(path: str, source: str) -> list[Import]:
    """All that a file imports, as absolute names; `from a import b` gives `a.b` where that is a module."""
    package = path.removesuffix(".py").split("/")[:-1]
    return list(_walk(ast.parse(source, path), package, late=False, typing=False))


def _walk(node: ast.AST, package: list[str], late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for name in _names(child, package):
            yield Import(name, child.lineno, late, typing)
        inside = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                block = ast.Module(body=[statement], type_ignores=[])
                yield from _walk(block, package, inside, typing=True)
            for statement in child.orelse:
                yield from _walk(ast.Module(body=[statement], type_ignores=[]), package, inside, typing)
        else:
            yield from _walk(child, package, inside, typing)


def _names(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{a.name}" if is_module(f"{base}.{a.name}") else base for a in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return name.removeprefix(f"{PACKAGE}.") in BELOW or path.is_dir() or path.with_suffix(".py").is_file()


def part(module: str) -> str:
    """stylenat_hub.models.stylenat.keys -> models.stylenat; stylenat_hub.hub -> hub; stylenat_hub -> ''."""
    names = module.split(".")[1:]
    if len(names) > 1 and names[0] == "models" and (ROOT / PACKAGE / "models" / names[1]).is_dir():
        return ".".join(names[:2])
    return names[0] if names else ""


def owner(path: str) -> str:
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return "cli" if module == f"{PACKAGE}.__main__" else part(module)


def key(of: str) -> str:
    return "models.*" if of.startswith("models.") else of


def wrong_arrow(path: str, found: Import) -> str | None:
    """Why this file may not import this, or None."""
    top = found.module.split(".")[0]
    if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
        return f"{top} may be imported only in: {', '.join(ONLY_IN[top]) or 'no file'}"
    if not path.startswith(f"{PACKAGE}/"):
        mine = path.split("/")[0]
        if top in OUTSIDE and mine in OUTSIDE and top != mine:
            return f"{mine} and {top} never import each other; what both need belongs in {PACKAGE}"
        return None
    if top in (*OUTSIDE, "tests"):
        return f"{PACKAGE} never imports {top}: it is not in the wheel"
    mine = owner(path)
    if key(mine) not in BELOW:
        return f"{mine!r} is a new part of the package: give it its place in BELOW"
    if top == PACKAGE:
        return _wrong_inside(path, mine, found)
    if top in sys.stdlib_module_names or (top == "typing_extensions" and found.typing):
        return None
    if top in LATE_THIRD_PARTY.get(key(mine), ()):
        return None if found.late else f"{top} is imported only inside a function"
    allowed = THIRD_PARTY.get(key(mine), CORE)
    return None if top in allowed else f"{mine or PACKAGE} may import of other projects: {sorted(allowed)}"


def _wrong_inside(path: str, mine: str, found: Import) -> str | None:
    target = part(found.module)
    if target == mine:
        return None
    if (path, target) in LATE_EXCEPTIONS:
        return None if found.late else f"{target} is imported by {path} only inside a function"
    allowed = BELOW[key(mine)]
    if key(mine) == "models.*" and key(target) == "models.*":
        return "families never import each other"
    if key(target) in allowed or found.module.removeprefix(f"{PACKAGE}.") in allowed:
        return None
    names = ", ".join(name or PACKAGE for name in allowed) or "nothing"
    return f"{mine or PACKAGE} may import of this package: {names}"


PYTHON = python_files(PACKAGE, *OUTSIDE, "tests")
OTHER = ["Makefile", "pyproject.toml", ".ci/run", ".github/workflows/ci.yml"]


@pytest.mark.parametrize("path", [path for path in PYTHON if not path.startswith("tests/")])
def test_imports_point_one_way(path):
    wrong = [
        f"{path}:{found.line} imports {found.module}: {why}"
        for found in imports(path, (ROOT / path).read_text(encoding="utf-8"))
        if (why := wrong_arrow(path, found))
    ]
    assert not wrong, "\n".join(wrong)


WRONG = [
    ("attention/x.py", "from stylenat_hub.hub import load", "may import of this package: errors"),
    ("attention/x.py", "from ..layers import style", "may import of this package: errors"),
    ("attention/x.py", "import numpy", "may import of other projects: ['torch']"),
    ("attention/x.py", "try:\n    pass\nfinally:\n    import natten", "only inside a function"),
    ("layers/x.py", "import stylenat_hub.models.base", "may import of this package: errors"),
    ("models/stylenat/x.py", "from stylenat_hub import registry", "may import of this package"),
    ("models/stylenat/x.py", "def f():\n    from stylenat_hub.hub import load", "may import of this package"),
    ("models/base.py", "from stylenat_hub import hub", "only inside a function"),
    ("models/base.py", "def f():\n    import gradio", "only in: spaces/"),
    ("registry.py", "from stylenat_hub.hub import load", "may import of this package"),
    ("hub.py", "import stylenat_hub.pipeline", "may import of this package"),
    ("pipeline.py", "from stylenat_hub.cli import main", "may import of this package"),
    ("pipeline.py", "import accelerate", "only in: training/"),
    ("metrics/x.py", "import transformers", "only inside a function"),
    ("cli.py", "def f():\n    import transformers", "only in: stylenat_hub/metrics/"),
    ("cli.py", "import importlib\nimportlib.import_module('conversion.convert')", "not in the wheel"),
    ("cli.py", "def f():\n    import requests", "may import of other projects"),
    ("novelty.py", "import torch", "give it its place in BELOW"),
    ("/conversion/x.py", "from training import loop", "never import each other"),
    ("/training/x.py", "def f():\n    import torchvision", "only in: no file"),
    ("/spaces/studio/engine.py", "def f():\n    import gradio", "only in: spaces/app.py"),
    ("/spaces/studio/tabs/x.py", "from model_cards import tables", "never import each other"),
    ("/training/x.py", "from studio import engine", "only in: spaces/"),
    ("cli_demo.py", "def f():\n    import gradio", "only in: spaces/"),
]
RIGHT = [
    ("attention/natten_lib.py", "def f():\n    import natten"),
    ("attention/tiled.py", "from .geometry import window_start"),
    ("models/stylenat/x.py", "import diffusers\nfrom stylenat_hub.models.config import ModelConfig"),
    ("models/stylenat/x.py", "from . import keys"),
    ("models/base.py", "def f():\n    from stylenat_hub import hub"),
    ("registry.py", "from stylenat_hub.models.stylenat import FAMILY"),
    ("cli.py", "import typer\nfrom stylenat_hub import __version__, pipeline"),
    ("/conversion/x.py", "from stylenat_hub import hub"),
    ("/spaces/studio/tabs/x.py", "import gradio\nfrom studio.engine import Engine"),
]


def in_tree(path: str) -> str:
    return path.removeprefix("/") if path.startswith("/") else f"{PACKAGE}/{path}"


def ids(cases: list[tuple[str, ...]]) -> list[str]:
    return [f"{in_tree(case[0])}: {case[1].splitlines()[-1].strip()}" for case in cases]


@pytest.mark.parametrize(("path", "code", "says"), WRONG, ids=ids(WRONG))
def test_a_wrong_arrow_is_found(path, code, says):
    why = [wrong_arrow(in_tree(path), found) for found in imports(in_tree(path), code)]
    assert any(says in sentence for sentence in why if sentence), why


@pytest.mark.parametrize(("path", "code"), RIGHT, ids=ids(RIGHT))
def test_a_right_arrow_is_accepted(path, code):
    found = imports(in_tree(path), code)
    assert found
    assert [why for one in found if (why := wrong_arrow(in_tree(path), one))] == []


def test_families_never_import_each_other(monkeypatch, tmp_path):
    """With a family on disk that the zoo does not have."""
    for family in ("stylenat", "other"):
        (tmp_path / PACKAGE / "models" / family).mkdir(parents=True)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = f"{PACKAGE}/models/other/generator.py"
    (found,) = imports(path, "from stylenat_hub.models.stylenat.generator import StyleNATGenerator")
    assert wrong_arrow(path, found) == "families never import each other"


@pytest.mark.parametrize("path", PYTHON)
def test_file_length(path):
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; the limit is {MAX_LINES}"


@pytest.mark.parametrize("path", [*PYTHON, *OTHER])
def test_needs_nothing_outside_the_repository(path):
    outside = "/".join(("..", "shared"))
    assert outside not in (ROOT / path).read_text(encoding="utf-8")


def test_import_stays_light(tmp_path):
    """Importing the package loads nothing heavy, and using its names loads no optional project.

    Stand-ins on the path make an attempt to import one succeed, so that it shows in `sys.modules`.
    """
    heavy = ("torch", "diffusers", "transformers", "numpy")
    optional = ("gradio", "natten", "torchvision")
    for name in optional:
        (tmp_path / f"{name}.py").write_text("")
    code = (
        "import json, sys, stylenat_hub as s; first = set(sys.modules); [getattr(s, n) for n in s.__all__]; "
        f"print(json.dumps([[m for m in {heavy + optional!r} if m in first], "
        f"[m for m in {optional!r} if m in sys.modules], 'torch' in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [], True]


def typed_names(source: str) -> dict[str, str]:
    """What a file imports under `if TYPE_CHECKING`: name -> module."""
    tests = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    (block,) = [node for node in tests if ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: found.module for found in block.body for alias in found.names}


def test_public_names_agree():
    import stylenat_hub

    assert set(stylenat_hub.__all__) == set(stylenat_hub._PUBLIC)
    assert typed_names(Path(stylenat_hub.__file__).read_text(encoding="utf-8")) == stylenat_hub._PUBLIC
    assert set(stylenat_hub.__all__) <= set(dir(stylenat_hub))
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = stylenat_hub.Nope

"""Code files for a pipeline repository, for machines on which this package is not installed.

With them `DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)` needs just diffusers.
diffusers copies single files out of a repository and scans their lines for imports. Hence one file has all
sources in it, behind a margin, and a small one is in each component's folder, where diffusers looks for its
class.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import textwrap
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from stylenat_hub import __version__, bundle_loader
from stylenat_hub.errors import ConfigError
from stylenat_hub.registry import FAMILIES
from stylenat_hub.weights import read_json

PIPELINE_MODULE = "stylenat_hub.pipeline"
PIPELINE_CLASS = "GANPipeline"
PIPELINE_FILE = "pipeline.py"  # diffusers downloads and finds it by this name
CODE_CLASS = [Path(PIPELINE_FILE).stem, PIPELINE_CLASS]  # in the index of a pipeline with code
# Publishing needs files that are not modules; who publishes has the package.
LEFT_OUT = ("stylenat_hub.publish",)
_QUOTES = "'" * 3

# As in the file LICENSE, which an installed package has elsewhere than a clone.
LICENSE = """\
MIT License

Copyright (c) 2026 The stylenat_hub authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

_ABOUT = f"""\
stylenat_hub {__version__} in one file, so that diffusers can load this repository's pipeline where that
package is not installed:

    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained("this repository", trust_remote_code=True)
    pipeline(seeds=range(8), truncation_psi=0.7).images

If the package is installed, that is used instead of what stands here.

This file was written by `stylenat_hub.bundle` from the sources of the project stylenat_hub; changes belong
there. First comes what makes the sources importable, then the sources, each line behind a margin and
otherwise as they are in the project. They are under its licence:

"""


def bundle_files(folder: Path) -> dict[str, str]:
    """The files to add to a saved pipeline folder, or to replace in it: path in the folder -> text.

    `pipeline.py` with the sources, a file in each component's folder, and a `model_index.json` that names
    `pipeline.py`. `stylenat_hub.GANPipeline` loads the folder as before, without running its code.

    Raises:
        ConfigError: the folder is no saved pipeline of this package.
    """
    models = components(folder)
    return {
        PIPELINE_FILE: _pipeline_file(module for module, _ in models.values()),
        **{f"{name}/{module}.py": _shim(module, cls) for name, (module, cls) in models.items()},
        **_index(folder, CODE_CLASS),
    }


def plain_index(folder: Path) -> dict[str, str]:
    """The `model_index.json` of a saved pipeline folder without code files, as `bundle_files` gives it."""
    return _index(folder, PIPELINE_CLASS)


def _index(folder: Path, pipeline: str | list[str]) -> dict[str, str]:
    index = {**read_json(folder / "model_index.json"), "_class_name": pipeline}
    return {"model_index.json": json.dumps(index, indent=2, sort_keys=True) + "\n"}


def components(folder: Path) -> dict[str, list[str]]:
    """The models that a saved pipeline names, name -> [module, class], all of this package.

    Raises `ConfigError` if it is another pipeline, or has other models.
    """
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") not in (PIPELINE_CLASS, CODE_CLASS):
        raise ConfigError(
            f"{str(folder)!r} is a {index.get('_class_name')}; only a {PIPELINE_CLASS} can be pushed"
        )
    models = [model for family in FAMILIES.values() for model in (family.generator, family.discriminator)]
    known = [(model.component, [model.__module__, model.__name__]) for model in models]
    found = {name: entry for name, entry in index.items() if not name.startswith("_")}
    for name, entry in found.items():
        if (name, entry) not in known:
            raise ConfigError(
                f"the {name!r} of {str(folder)!r} is {entry!r}, no model of this version; save it again"
            )
    return found


def _pipeline_file(modules: Iterable[str]) -> str:
    sources = _closure([PIPELINE_MODULE, *modules])
    header = textwrap.indent(_ABOUT + LICENSE, "# ", lambda line: True).replace("# \n", "#\n")
    texts = [
        f'    "{name}": r{_QUOTES}\n{bundle_loader.with_margin(source)}\n{_QUOTES},\n'
        for name, source in sorted(sources.items())
    ]
    return (
        f"{header}\n{_spec(bundle_loader.__name__).loader.get_source(bundle_loader.__name__)}\n\n"
        f"SOURCES = {{\n{''.join(texts)}}}\n\nmake_importable(SOURCES, __file__)\n"
        f'{PIPELINE_CLASS} = importlib.import_module("{PIPELINE_MODULE}").{PIPELINE_CLASS}\n'
    )


def _shim(module: str, cls: str) -> str:
    return (
        f"# Where diffusers looks for {cls}. Its source and licence (MIT) are in ../{PIPELINE_FILE}, which\n"
        "# diffusers runs first.\n"
        f'import importlib\n\n{cls} = importlib.import_module("{module}").{cls}\n'
    )


def _closure(modules: Iterable[str]) -> dict[str, str]:
    """Name -> source of these modules of the package, of all that they import and of the packages around."""
    sources: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in sources or name in LEFT_OUT:
            continue
        sources[name] = _spec(name).loader.get_source(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += _imports(name, sources[name])
    return sources


def _imports(name: str, source: str) -> Iterator[str]:
    """The package's modules that a module imports, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, _spec(name).parent) if node.level else relative
            if _ours(base):
                yield base
                inside = [f"{base}.{alias.name}" for alias in node.names]
                yield from (one for one in inside if _spec(base).submodule_search_locations and _spec(one))


def _ours(name: str) -> bool:
    return name.split(".")[0] == bundle_loader.PACKAGE


def _spec(name: str) -> ModuleSpec | None:
    return importlib.util.find_spec(name)

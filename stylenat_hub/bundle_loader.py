"""Makes the sources that a pipeline repository carries importable as `stylenat_hub`.

`bundle.py` copies this file into the repository's `pipeline.py`, where this package may not be installed:
only the standard library is imported here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
import warnings

PACKAGE = "stylenat_hub"
MARGIN = "| "  # before each line, so that diffusers does not take the sources' imports for those of the file


def make_importable(sources, file):
    """Find modules in `sources` (name -> text with margin) from now on, unless the package is installed.

    file: where the sources are, to be shown in tracebacks. One process has one version: the installed one, or
    that of the first repository.
    """
    bundled = Sources({name: without_margin(text) for name, text in sources.items()}, os.path.abspath(file))
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:  # without origin it is just some folder of that name
        sys.meta_path.insert(0, bundled)
    elif getattr(spec.loader, "modules", bundled.modules) != bundled.modules:
        warnings.warn(
            f"{file} carries another version of {PACKAGE} than {spec.origin}, which was loaded before and is "
            "used; if that fails, load the two in different processes",
            RuntimeWarning,
            stacklevel=2,
        )


def with_margin(source):
    return "\n".join(MARGIN + line if line else MARGIN.rstrip() for line in source.split("\n"))


def without_margin(text):
    return "\n".join(line[len(MARGIN) :] for line in text.strip("\n").split("\n"))


class Sources(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Modules from a dict, as if the file that carries them were a folder, as it is with zip files."""

    def __init__(self, modules, file):
        self.modules, self.file = modules, file

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        filename = self.get_filename(name)
        inside = [os.path.dirname(filename)] if self.is_package(name) else None
        return importlib.util.spec_from_file_location(
            name, filename, loader=self, submodule_search_locations=inside
        )

    def is_package(self, name):
        return any(other.startswith(f"{name}.") for other in self.modules)

    def get_filename(self, name):
        path = os.path.join(self.file, *name.split("."))
        return os.path.join(path, "__init__.py") if self.is_package(name) else f"{path}.py"

    def get_source(self, name):
        if name not in self.modules:
            raise ImportError(f"{self.file} has no module {name}", name=name)
        return self.modules[name]

"""Lets a plain `diffusers.DiffusionPipeline.from_pretrained` load the pipelines of this package.

diffusers looks up a pipeline's class by name among its own, and takes a component's module only if it is in
its table of libraries. `stylenat_hub.pipeline` enters both with `register`, the last thing that it does.
`import stylenat_hub` has that module imported as soon as diffusers' pipelines are (`import_after_diffusers`),
and no sooner, because that takes seconds. So nothing is imported in a circle: a `stylenat_hub.pipeline` that
itself made diffusers load is only half there when diffusers is ready, and registers when it is whole.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import threading
import warnings
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType

# Here diffusers has `DiffusionPipeline`. `import diffusers` alone does not load it, and need not load us.
_TRIGGER = "diffusers.pipelines.pipeline_utils"


def register(pipeline: type, models: Iterable[type]) -> None:
    """Make diffusers know a pipeline class and the modules of its models.

    Unless it has a class of that name from elsewhere. The modules are entered under their full paths: an
    entry for the package would change what diffusers saves.
    """
    try:
        import diffusers
        from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
    except ImportError as error:  # another diffusers keeps its table elsewhere; all else works without it
        _warn(error)
        return
    there = getattr(diffusers, pipeline.__name__, None)
    if getattr(there, "__module__", None) in (None, pipeline.__module__):  # ours may be of before a reload
        setattr(diffusers, pipeline.__name__, pipeline)
    else:
        _warn_of_another(pipeline, there)
    for model in models:
        LOADABLE_CLASSES.setdefault(model.__module__, {"ModelMixin": ["save_pretrained", "from_pretrained"]})


def _warn_of_another(pipeline: type, there: object) -> None:
    warnings.warn(
        f"diffusers already has a {pipeline.__name__}, of {getattr(there, '__module__', 'another package')}, "
        "so a plain DiffusionPipeline.from_pretrained cannot load those of stylenat_hub; use stylenat_hub."
        f"{pipeline.__name__}.from_pretrained",
        RuntimeWarning,
        stacklevel=3,
    )


def import_after_diffusers(module: str) -> None:
    """Import a module once diffusers' pipelines are imported: now, if they are."""
    if _TRIGGER in sys.modules:
        _import(module)
    elif not any(isinstance(finder, _Follower) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Follower(module))


class _Follower(importlib.abc.MetaPathFinder):
    """Finds nothing itself, but adds to the import of `_TRIGGER` that of another module. Then it is gone."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._searching = threading.local()

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TRIGGER or getattr(self._searching, "now", False):
            return None
        self._searching.now = True  # others of this kind may ask all finders too, this one among them
        try:
            others = [finder for finder in sys.meta_path if finder is not self]
            spec = next(filter(None, (other.find_spec(name, path, target) for other in others)), None)
        finally:
            self._searching.now = False
        if spec and hasattr(spec.loader, "exec_module"):
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: importlib.abc.Loader) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == _TRIGGER:  # a loader may serve many modules
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                loader.exec_module = execute
                _import(self._module)

        loader.exec_module = exec_module


def _import(module: str) -> None:
    if module in sys.modules:  # or half of it, up the stack or in another thread: it will register itself
        return
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  what is broken here must not make diffusers unusable
        _warn(error)


def _warn(error: Exception) -> None:
    warnings.warn(
        "diffusers works, but cannot load pipelines of stylenat_hub, which is broken or does not fit this "
        f"diffusers ({type(error).__name__}: {error}); reinstall stylenat-hub",
        RuntimeWarning,
        stacklevel=3,
    )

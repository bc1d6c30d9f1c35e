"""A plain `diffusers.DiffusionPipeline.from_pretrained` on our pipelines, in processes of its own: with this
package installed (`diffusers_plugin`), and where it is not, with the code in a repository (`bundle`)."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import diffusers
import pytest
from diffusers.utils.dynamic_modules_utils import check_imports
from hub_server import HubServer
from small_models import tiny_generator

import stylenat_hub
from stylenat_hub import bundle, bundle_loader, diffusers_plugin
from stylenat_hub.errors import ConfigError
from stylenat_hub.pipeline import GANPipeline, label
from stylenat_hub.summary import describe

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ["stylenat_hub.models.stylenat.generator", "StyleNATGenerator"]

START = """
import hashlib, importlib, importlib.util, json, os, sys, warnings
folder, result = sys.argv[1], {}
caught = warnings.catch_warnings(record=True).__enter__()
warnings.simplefilter("always")
def picture(pipe):
    pipe.set_progress_bar_config(disable=True)
    return hashlib.sha256(pipe([3], output_type="np").images.tobytes()).hexdigest()
def loaded(source, **kwargs):
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(source, **kwargs)
    pipe.save_pretrained("saved")
    index = json.load(open("saved/model_index.json"))
    return [type(pipe).__name__, pipe.model_name, picture(pipe), index["_class_name"], index["generator"]]
"""
END = """
result["warnings"] = [str(w.message) for w in caught if "stylenat_hub" in str(w.message)]
print(json.dumps(result))
"""

# The package first: it loads nothing, and neither does `import diffusers` load it.
PACKAGE_FIRST = """
import stylenat_hub
importlib.reload(stylenat_hub)
waiting = lambda: sum(type(finder).__module__ == "stylenat_hub.diffusers_plugin" for finder in sys.meta_path)
result["finders"] = [waiting()]
result["light"] = [name for name in ("torch", "diffusers", "stylenat_hub.pipeline") if name in sys.modules]
import diffusers
result["early"] = [name for name in ("stylenat_hub.pipeline",) if name in sys.modules]
importlib.util.find_spec("diffusers.pipelines.pipeline_utils")  # only looks
result["folder"], result["hub"] = loaded(folder), loaded("org/plain")
result["cached"] = loaded("org/plain", local_files_only=True)
result["finders"].append(waiting())
result["attribute"] = diffusers.GANPipeline is stylenat_hub.GANPipeline
"""

# diffusers first, with a pipeline of its own saved and loaded before and after.
DIFFUSERS_FIRST = """
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
def own(name):
    unet = UNet2DModel(sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), layers_per_block=1)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(name)
    again = DiffusionPipeline.from_pretrained(name)
    files = sorted(os.path.join(at[len(name):], f) for at, _, names in os.walk(name) for f in names)
    return [type(again).__name__, type(again.unet).__module__, open(f"{name}/model_index.json").read(), files]
before = own("before")
import stylenat_hub
result["own"] = [before, own("after")]
result["folder"], result["hub"] = loaded(folder), loaded("org/plain")
result["reference"] = picture(stylenat_hub.GANPipeline.from_pretrained(folder))
"""

# The package is there, not imported yet, and is what the repository's code then uses.
INSTALLED = """
result["loaded"] = loaded("org/other", trust_remote_code=True)
used = sys.modules["stylenat_hub"]
result["version"], result["file"] = used.__version__, used.__file__
"""

BROKEN = """
import stylenat_hub
sys.modules["stylenat_hub.hub"] = None
from diffusers import DiffusionPipeline
result["works"] = DiffusionPipeline.__name__
"""

# As if the package were not installed, whether it is or not.
NOT_INSTALLED = """
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.split(".")[0] == "stylenat_hub" else self.finder.find_spec(name, *args)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
result["installed"] = importlib.util.find_spec("stylenat_hub") is not None
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from huggingface_hub import snapshot_download
said = []
logging.get_logger("diffusers.utils.dynamic_modules_utils").warning = said.append
result["refused"] = []
for source in (folder, "org/code"):
    try:
        DiffusionPipeline.from_pretrained(source)
    except Exception as error:
        result["refused"].append([type(error).__name__, "trust_remote_code=True" in str(error)])
result["loaded"] = [loaded(source, trust_remote_code=True) for source in (folder, "org/code", "org/code")]
snapshot = snapshot_download("org/code", local_files_only=True)
result["loaded"].append(loaded(snapshot, trust_remote_code=True))
result["quiet"] = [str(w.message) for w in caught if "stylenat_hub" in str(w.message)]
result["other"] = [loaded(source, trust_remote_code=True) for source in ("org/other", folder)]
result["said"] = said
import inspect, stylenat_hub
result["source"] = inspect.getsource(stylenat_hub.pipeline.latents)
result["version"], result["file"] = stylenat_hub.__version__, stylenat_hub.__file__
"""


def write(folder, seed=0, code=False, version=None):
    GANPipeline(tiny_generator(seed=seed)).save_pretrained(folder)
    for name, text in bundle.bundle_files(folder).items() if code else ():
        text = text.replace(stylenat_hub.__version__, version) if version else text
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A Hub with three repositories: without code, with code, with code of another version."""
    root = tmp_path_factory.mktemp("hub")
    with HubServer() as server:
        server.add_repo("org/plain", write(root / "plain"))
        server.add_repo("org/code", write(root / "code", code=True))
        server.add_repo("org/other", write(root / "other", seed=1, code=True, version="9.9"))
        yield server


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A pipeline folder with code."""
    return write(tmp_path_factory.mktemp("models") / "bundled", code=True)


def run(code, tmp_path, server, folder, installed=True):
    path = str(ROOT) if installed else ""
    environment = server.environment(tmp_path / "home", OMP_NUM_THREADS="1", PYTHONPATH=path)
    command = [sys.executable, "-c", START + code + END, str(folder)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def diffusers_first(tmp_path_factory, repositories, tiny):
    return run(DIFFUSERS_FIRST, tmp_path_factory.mktemp("first"), repositories, tiny)


def test_diffusers_imported_first(diffusers_first):
    found, picture = diffusers_first, diffusers_first["reference"]
    assert found["folder"] == ["GANPipeline", "tiny", picture, "GANPipeline", CONTRACT]
    assert found["hub"] == ["GANPipeline", "org/plain", picture, "GANPipeline", CONTRACT]
    assert found["warnings"] == []


def test_other_pipelines_are_saved_and_loaded_as_before(diffusers_first):
    before, after = diffusers_first["own"]
    assert before[0] == "DDPMPipeline" and before == after


def test_package_imported_first(tmp_path, repositories, tiny, diffusers_first):
    found, picture = run(PACKAGE_FIRST, tmp_path, repositories, tiny), diffusers_first["reference"]
    assert found["light"] == [] and found["early"] == [] and found["finders"] == [1, 0]
    assert found["folder"] == ["GANPipeline", "tiny", picture, "GANPipeline", CONTRACT]
    assert found["hub"] == found["cached"] == ["GANPipeline", "org/plain", picture, "GANPipeline", CONTRACT]
    assert found["attribute"] and found["warnings"] == []


def test_registered_by_the_pipeline_that_made_diffusers_load(tiny):
    """In this process `stylenat_hub.pipeline` came first."""
    assert diffusers.GANPipeline is GANPipeline
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny)
    assert type(pipe) is GANPipeline and pipe.model_name == "tiny" and not pipe.generator.training
    assert "_name_or_path" not in pipe.config


def test_a_class_of_that_name_from_elsewhere_stays_and_is_told(monkeypatch):
    other = type("GANPipeline", (), {"__module__": "elsewhere.pipelines"})
    monkeypatch.setattr(diffusers, "GANPipeline", other)
    words = r"has a GANPipeline, of elsewhere\.pipelines.*use stylenat_hub\.GANPipeline\.from_pretrained"
    with pytest.warns(RuntimeWarning, match=words):
        diffusers_plugin.register(GANPipeline, [])
    assert diffusers.GANPipeline is other


def test_our_own_class_of_before_a_reload_is_replaced(monkeypatch):
    monkeypatch.setattr(
        diffusers, "GANPipeline", type("GANPipeline", (), {"__module__": GANPipeline.__module__})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusers_plugin.register(GANPipeline, [])
    assert diffusers.GANPipeline is GANPipeline


def test_a_broken_installation_leaves_diffusers_usable(tmp_path, repositories, tiny):
    found = run(BROKEN, tmp_path, repositories, tiny)
    assert found["works"] == "DiffusionPipeline"
    (warning,) = found["warnings"]
    assert "diffusers works, but cannot load pipelines of stylenat_hub" in warning and "Error" in warning


def test_label(tmp_path):
    folders = {"a/one": "one", "models--org--name/snapshots/0a1b": "org/name", "x/snapshots/two": "two"}
    for name, expected in folders.items():
        (tmp_path / name).mkdir(parents=True)
        assert label(tmp_path / name) == expected
    assert label("org/name") == "org/name"


def test_not_installed(tmp_path, repositories, bundled, diffusers_first):
    found, picture = (
        run(NOT_INSTALLED, tmp_path, repositories, bundled, installed=False),
        diffusers_first["reference"],
    )
    assert not found["installed"]
    assert found["refused"] == [["ValueError", True]] * 2
    names = ["bundled", "org/code", "org/code", "org/code"]
    assert found["loaded"] == [["GANPipeline", name, picture, "GANPipeline", CONTRACT] for name in names]
    assert found["said"] == [] and found["quiet"] == []  # no packages that are said to be missing
    (other, again) = found["other"]  # two repositories in one process, one version of the code
    assert other[1] == "org/other" and other[2] != picture and again == found["loaded"][0]
    assert found["version"] == stylenat_hub.__version__
    assert found["warnings"] and all("carries another version" in said for said in found["warnings"])
    assert not any(str(bundled) in said for said in found["warnings"])
    assert found["source"].startswith("def latents(seeds") and "| " not in found["source"]
    assert "pipeline.py" in found["file"]


def test_an_installed_package_is_used_instead_of_the_code(tmp_path, repositories, tiny):
    found = run(INSTALLED, tmp_path, repositories, tiny)
    assert found["loaded"][:2] == ["GANPipeline", "org/other"] and found["warnings"] == []
    assert found["version"] == stylenat_hub.__version__
    assert Path(found["file"]) == ROOT / "stylenat_hub" / "__init__.py"


def test_sources_from_a_dict(tmp_path, monkeypatch):
    """A folder of the package's name is no installation; errors show the line and the file."""
    (tmp_path / "novelty").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(bundle_loader, "PACKAGE", "novelty")
    texts = {"novelty": "x = 1\n\n", "novelty.part": "def wrong():\n    return 1 / 0  # this line\n"}
    sources = {name: bundle_loader.with_margin(text) for name, text in texts.items()}
    bundle_loader.make_importable(sources, tmp_path / "pipeline.py")
    part = importlib.import_module("novelty.part")
    with pytest.raises(ZeroDivisionError) as caught:
        part.wrong()
    shown = "".join(traceback.format_exception(caught.value))
    assert "# this line" in shown and str(tmp_path / "pipeline.py" / "novelty" / "part.py") in shown
    assert sys.modules["novelty"].x == 1
    for name in texts:
        monkeypatch.delitem(sys.modules, name)


def test_imports_are_found_everywhere():
    late = "def f():\n    from . import gather\n    import stylenat_hub.files\n"
    code = f"import torch\n{late}from ..errors import X\n"
    found = set(bundle._imports("stylenat_hub.attention.tiled", code))
    names = ("attention", "attention.gather", "files", "errors")
    assert found == {f"stylenat_hub.{name}" for name in names}


def test_bundled_file(tmp_path, bundled):
    path = bundled / "pipeline.py"
    text = path.read_text(encoding="utf-8")
    assert check_imports(path) == []  # no line that diffusers takes for a relative import
    assert (
        "".join(f"# {line}".rstrip() + "\n" for line in (ROOT / "LICENSE").read_text().splitlines()) in text
    )
    (sources,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(text, feature_version=(3, 10)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCES"
    ]
    outside = set()
    for name, source in sources.items():
        file = ROOT / name.replace(".", "/")
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        assert bundle_loader.without_margin(source) == file.read_text(encoding="utf-8"), name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            outside |= {one.split(".")[0] for one in names}
    core = {"stylenat_hub", "torch", "diffusers", "huggingface_hub", "safetensors", "numpy", "PIL"}
    assert outside - set(sys.stdlib_module_names) - core == {"typing_extensions"}  # for type checkers only
    assert set(stylenat_hub._PUBLIC.values()) <= set(sources)
    assert not {name for name in sources if name.split(".")[1:2] in (["cli"], ["builtin"], ["metrics"])}


def test_bundled_folder_for_this_package(tmp_path, bundled, tiny):
    files = bundle.bundle_files(tiny)
    shim = "generator/stylenat_hub.models.stylenat.generator.py"
    assert set(files) == {"pipeline.py", shim, "model_index.json"}
    index = json.loads(files["model_index.json"])
    assert index["_class_name"] == ["pipeline", "GANPipeline"] and index["generator"] == CONTRACT
    assert bundle.bundle_files(bundled) == files  # again changes nothing
    folder = write(tmp_path / "model", code=True)
    for name in ("pipeline.py", shim):
        (folder / name).write_text("raise SystemExit('this must not run')")
    assert GANPipeline.from_pretrained(folder).model_name == "model"
    assert describe(folder)["class"] == "StyleNATGenerator"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("_class_name", "DDPMPipeline", "is a DDPMPipeline"),
        ("generator", ["../../evil", "StyleNATGenerator"], "no model of this version"),
        ("generator", [["x"], None], "no model of this version"),
        ("../generator", CONTRACT, "no model of this version"),
    ],
)
def test_only_our_pipelines_carry_code(tmp_path, key, value, says):
    folder = write(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(ConfigError, match=says):
        bundle.bundle_files(folder)

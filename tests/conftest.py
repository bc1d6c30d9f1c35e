"""What several test files share: small models, and a Hub of their own on loopback."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from types import SimpleNamespace

from hub_server import HubServer

# Before anything imports huggingface_hub, which reads these once: no test ever talks to the real Hub.
HUB = HubServer().__enter__()
_HOME = tempfile.TemporaryDirectory(prefix="stylenat-hub-tests-")
os.environ.pop("HF_TOKEN", None)
_SETTINGS = HUB.environment(_HOME.name)
os.environ.update({name: value for name, value in _SETTINGS.items() if name.startswith("HF_")})

# Whoever starts a job in the background may have it ignore Ctrl-C, which many tests are about.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from small_models import tiny_generator  # noqa: E402

from stylenat_hub import remote  # noqa: E402
from stylenat_hub.pipeline import GANPipeline  # noqa: E402
from stylenat_hub.weights import fingerprint  # noqa: E402


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` say that they need one where there is none, instead of failing."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A saved pipeline folder; tests that change something copy it first."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    GANPipeline(tiny_generator()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(tiny):
    """The same, loaded. Tests must not change it."""
    pipe = GANPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def checkpoint(tmp_path):
    """A training's checkpoint as a push sees it: one file of tensors, and the state that lists it."""
    folder = tmp_path / "images-000000008"
    folder.mkdir()
    save_file({"cpu": torch.zeros(3)}, folder / "rng.safetensors")
    state = {"version": 1, "images": 8, "files": {"rng.safetensors": fingerprint(folder / "rng.safetensors")}}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub that the real client in this process talks to, as the user `me`, with a cache of its own.

    A process started by a test needs `hub.environment(home, token="hf_me")`.
    """
    HUB.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    # The client waits a second and more before it tries again. Only its own name for `time` changes.
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda _seconds: None})
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", hurried)
    yield HUB
    HUB.clear()

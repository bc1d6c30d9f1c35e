"""What the tests of downloads share: repositories to pull from, and how to look at what came of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylenat_hub.errors import StyleNATHubError
from stylenat_hub.pipeline import GANPipeline

ROOT = Path(__file__).resolve().parent.parent
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

# Loads what it is told to, one after the other, and prints what came: a sum over a picture, or the error.
_CLIENT = """
import json, sys, warnings
warnings.simplefilter("error")  # an old copy would be one
from stylenat_hub.pipeline import GANPipeline
for source, options in json.loads(sys.argv[1]):
    try:
        pipe = GANPipeline.from_pretrained(source, **options)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
    else:
        pipe.set_progress_bar_config(disable=True)
        print(json.dumps(pipe([3], output_type="pt").images.double().sum().item()))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder as `HubServer.add_repo` takes them, to change some before that."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def pull(source: str = "org/church", **options) -> GANPipeline:
    pipe = GANPipeline.from_pretrained(source, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Are all weights equal to the bit?"""
    mine, others = model.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def drawing(pipe: GANPipeline) -> bytes:
    """A picture as its file has it."""
    buffer = io.BytesIO()
    pipe([3], truncation_psi=0.7).images[0].save(buffer, "png")
    return buffer.getvalue()


def checksum(pipe: GANPipeline) -> float:
    """What a client in a process of its own prints."""
    return pipe([3], output_type="pt").images.double().sum().item()


def refused(*words: str, kind: type = StyleNATHubError, load=pull, **arguments) -> str:
    """Loading raises an error of ours, on one line and with these words in it."""
    with pytest.raises(kind) as caught:
        load(**arguments)
    message = str(caught.value)
    assert isinstance(caught.value, StyleNATHubError) and len(message.splitlines()) == 1, repr(message)
    assert message.isprintable(), repr(message)
    for word in words:
        assert word in message, message
    return message


def fetched(hub) -> list[str]:
    """The names of the files whose bytes went out, sorted."""
    got = [
        request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path
    ]
    return sorted(path.split("/resolve/")[1].split("/", 1)[1] for path in got)


def start(hub, home: Path, *attempts, token: str = "hf_me", **settings: str) -> subprocess.Popen:
    """Start a process that loads all of these in turn: pairs of a source and options."""
    environment = hub.environment(home, token=token, PYTHONPATH=str(ROOT), **settings)
    line = [sys.executable, "-c", _CLIENT, json.dumps(attempts)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> list:
    """What it printed: for each attempt a number, or an error's class and words."""
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in out.splitlines()]

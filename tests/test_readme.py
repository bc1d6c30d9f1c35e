"""What the README says about the Hub, done as it stands there, against the Hub of the tests."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stylenat_hub import cli
from stylenat_hub.locations import BUILTIN
from training.toy_churches import write_churches

ROOT = Path(__file__).resolve().parent.parent
PYTHON = {
    "stylenat": ["-m", "stylenat_hub.cli"],
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "python": [],
}


def blocks(section):
    """The code blocks of a section: (language or "", text)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    body = re.search(rf"^## {section}\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^```(\w*)\n(.*?)^```", body, re.DOTALL | re.MULTILINE)


@pytest.fixture
def shell(hub, tmp_path):
    """A folder with what the README has made before, and a function that runs lines in it."""
    shutil.copytree(BUILTIN / "toy-church", tmp_path / "my-church")
    (tmp_path / "my-church" / "README.md").unlink()
    write_churches(tmp_path / "churches.zip", count=64, size=32)
    variables = hub.environment(tmp_path / "home", token="hf_me", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**variables, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_publish_your_own(hub, shell):
    """In full, but with fewer images."""
    pushes, python, trainings = (text for _, text in blocks("Publish your own"))
    for line in [*pushes.strip().splitlines(), *trainings.strip().splitlines()]:
        line = re.sub(r"--images (\d+)000", r"--images \g<1>6 --metric none --sample-every 0", line)
        program, *arguments = shlex.split(line)
        shell(*PYTHON[program], *arguments)
    shell("-c", python)
    for name in ("me/my-church", "me/church-alone"):
        files = hub.files(name)
        assert b"license: mit" in files["README.md"] and files["samples.png"].startswith(b"\x89PNG")
    assert b'"decay_start"' in hub.files("me/my-church")["README.md"]  # of the recipe
    assert "checkpoint/state.json" in hub.files("me/tiny-church")


def test_load_from_the_hub(hub, shell):
    hub.add_repo("me/my-church", BUILTIN / "toy-church")
    for _, code in blocks("Load from the Hub"):
        shell("-c", code + "\npipe([0])")


def test_links_and_pictures_are_in_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    inside = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert len(inside) > 10
    assert [target for target in inside if not (ROOT / target).exists()] == []


FEWER = {
    "--frames 120": "--frames 4",
    "--frames 90": "--frames 3",
    "photo/": "--steps 2 photo/",
    "--top 8": "--top 4",
}


def test_steer_mix_move_invert_look_inside(tmp_path, monkeypatch):
    """Every command in turn, with fewer steps and frames; the Python block as it is."""
    monkeypatch.chdir(tmp_path)
    plain, python = [], []
    for language, text in blocks("Steer, mix, move, invert, look inside"):
        (python if language else plain).append(text)
    for line in "".join(plain).strip().splitlines():
        for what, less in FEWER.items():
            line = line.replace(what, less)
        program, *arguments = shlex.split(line)
        done = CliRunner().invoke(cli.app, arguments)
        assert program == "stylenat" and done.exit_code == 0, f"{line}: {done.output}"
    for path in ("sweep/grid.png", "mix.png", "loop.webp", "pca/day.png", "projection/w.safetensors"):
        assert (tmp_path / path).stat().st_size > 1000, path
    assert (tmp_path / "dusk" / "style000000.png").is_file() and (tmp_path / "receptive.png").is_file()
    for code in python:
        exec(code, {})

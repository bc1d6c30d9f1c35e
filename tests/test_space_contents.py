"""What of this clone becomes a Space, and whether the Space starts from exactly that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from browser import _wait, free_port
from huggingface_hub import HfApi, SpaceCard, snapshot_download
from test_space_deploy import NAME, ROOT, call, card, copied, files

from spaces import contents, deploy, requirements
from stylenat_hub import GANPipeline
from stylenat_hub.publish import push_pipeline

# -- what goes out


def test_all_that_the_page_is_made_of_goes_and_nothing_of_this_command():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("needs a clone with git")
    line = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "spaces", "stylenat_hub"]
    tracked = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {name.removeprefix("spaces/") for name in tracked.stdout.split()}
    tool = {f"{name}.py" for name in ("__init__", "cli", "contents", "deploy", "models", "requirements")}
    expected |= {"stylenat_hub/papers.json", "LICENSE", "NOTICE"}
    # What is not committed yet goes, too, if it is of a kind that may.
    assert expected - tool - {"README.md", "measure.py"} <= contents.files().keys()
    assert not tool & contents.files().keys()


def test_nothing_else_that_lies_in_the_clone_goes(hub, tmp_path):
    clone = copied(tmp_path)
    strays = [
        *(".env", "spaces/.env", "spaces/token.txt", "spaces/secrets.json", "spaces/studio/.env"),
        *("spaces/studio/notes.md", "spaces/studio/.hidden/a.py", "spaces/studio/__pycache__/a.py"),
        *("stylenat_hub/.env", "stylenat_hub/key.json", "stylenat_hub/.git/config", "stylenat_hub/a.pt"),
        *("stylenat_hub/builtin/toy-church/.token", "stylenat_hub/builtin/toy-church/generator/token.txt"),
        *("stylenat_hub/__pycache__/a.cpython-311.pyc", "stylenat_hub/.a.py", "pictures/a.png"),
    ]
    for stray in strays:
        (clone / stray).parent.mkdir(parents=True, exist_ok=True)
        (clone / stray).write_text("hf_secret")
    (clone / "spaces/studio/tabs/extra.py").write_text("# a new tab\n")
    deploy.deploy(NAME, root=clone)
    expected = {*contents.files(), "studio/tabs/extra.py", "README.md", "space.json", ".gitattributes"}
    assert files(hub).keys() == expected
    assert set(json.loads(files(hub)["space.json"])["files"]) == expected - {".gitattributes"}
    for name, data in files(hub).items():
        assert b"hf_secret" not in data and str(clone).encode() not in data, name
    assert not any(part[0] == "." for name in expected - {".gitattributes"} for part in name.split("/"))


def test_links_out_of_the_clone_are_refused(hub, tmp_path):
    clone = copied(tmp_path)
    (tmp_path / "private.py").write_text("KEY = 1\n")
    (clone / "spaces/studio/key.py").symlink_to(tmp_path / "private.py")
    with pytest.raises(ValueError, match=r"key.py' is a link to a file outside"):
        deploy.deploy(NAME, root=clone)
    assert not hub.repos


def test_a_part_of_a_clone_is_refused(hub, tmp_path):
    clone = copied(tmp_path)
    (clone / "spaces/studio/engine.py").unlink()
    with pytest.raises(ValueError, match=r"lacks 'studio/engine.py' of the Space; run this in a whole clone"):
        deploy.deploy(NAME, root=clone)
    assert not hub.repos


def test_sizes_stay_small():
    sizes = {name: path.stat().st_size for name, path in contents.files().items()}
    assert sum(sizes.values()) < 10 * 2**20 and len(sizes) < 400
    assert all(size < 2**20 for name, size in sizes.items() if not name.endswith(".safetensors"))


# -- its README.md and requirements.txt


@pytest.mark.parametrize("deployed", [False, True])
def test_the_front_matter_is_valid(hub, deployed):
    text = (ROOT / "spaces/README.md").read_text(encoding="utf-8")
    if deployed:
        text = contents.card(text, contents.Start("me/church", ("config.json",)))
    space = SpaceCard(text)
    space.validate()  # by the rules of the Hub of the tests, which are the Hub's own messages
    data = space.data.to_dict()
    assert data["sdk"] == "gradio" and data["app_file"] == "app.py" and data["license"] == "mit"
    assert {"title", "emoji", "colorFrom", "colorTo", "tags", "models", "preload_from_hub"} <= data.keys()
    assert 10 < len(data["short_description"]) <= 60
    assert len(data["emoji"]) == 1 and ord(data["emoji"]) > 0x2000
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\ngradio=={data['sdk_version']}\n" in constraints  # what the tests run with
    assert isinstance(data["python_version"], str) and data["python_version"].count(".") == 2
    assert data["suggested_hardware"] in deploy.HARDWARE
    assert "generated" in text


def test_an_empty_list_is_left_out(hub):
    call(NAME)
    assert not {"models", "preload_from_hub"} & card(hub).keys()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib, of Python 3.11")
def test_requirements_follow_from_pyproject():
    text = requirements.FILE.read_text(encoding="utf-8")
    assert text == requirements.requirements(), "run: python -m spaces.requirements"
    assert {"torch", "gradio", "imageio-ffmpeg", "matplotlib"} <= requirements.named(text)
    assert not {"stylenat-hub", "torchvision", "pytest", "spaces"} & requirements.named(text)


# -- the Space itself


def download(hub, folder):
    """A deployed Space's files, and nothing else."""
    HfApi(token="hf_me").snapshot_download(NAME, repo_type="space", local_dir=folder)
    shutil.rmtree(folder / ".cache")


def alone(hub, tmp_path):
    """The environment of a process that finds nothing of this clone, and no Hub."""
    home = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return {**hub.environment(tmp_path / "home"), **home}


def test_the_packages_of_a_space_are_its_own(hub, tmp_path):
    call(NAME)
    folder = tmp_path / "space"
    download(hub, folder)
    code = "import stylenat_hub, studio; print(stylenat_hub.__file__); print(studio.__file__)"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=folder, env=alone(hub, tmp_path), capture_output=True, text=True)
    expected = [str(folder / name / "__init__.py") for name in ("stylenat_hub", "studio")]
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.slow
def test_a_space_starts_from_what_was_deployed(hub, pipeline, tmp_path):
    """As the Hub starts it: in the repository's folder, told where to listen, the preloaded files in its
    cache. The Hub cannot be asked here, so that those must be all that is needed."""
    pytest.importorskip("gradio", reason="needs gradio: pip install -c constraints.txt -e '.[dev]'")
    from gradio_client import Client

    push_pipeline(pipeline, "me/church", license="mit")
    call(NAME, "--model", "me/church", "--preload")
    download(hub, tmp_path / "space")
    model, listed = card(hub)["preload_from_hub"][0].split(" ")
    snapshot_download(model, allow_patterns=listed.split(","), cache_dir=tmp_path / "home" / "hub")
    port = free_port()
    where = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "SYSTEM": "spaces"}
    environment = {**alone(hub, tmp_path), **where, "SPACE_ID": NAME}
    log = tmp_path / "log.txt"
    with log.open("w") as words:
        line = [sys.executable, "app.py"]
        process = subprocess.Popen(line, cwd=tmp_path / "space", env=environment, stdout=words, stderr=words)
    try:
        _wait(f"http://127.0.0.1:{port}", process, log)
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(tmp_path / "got"))
        builtin = GANPipeline.from_pretrained("toy-church")
        for options, expected in (({}, pipeline), ({"model": "toy-church"}, builtin)):
            pictures, _ = client.predict(seed=5, truncation=1.0, **options, api_name="/generate")
            with PIL.Image.open(pictures[0]["image"]) as got:
                assert np.array_equal(np.asarray(got), np.asarray(expected([5]).images[0]))
    finally:
        process.terminate()
        process.wait(30)

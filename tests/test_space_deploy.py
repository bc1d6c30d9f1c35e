"""`python -m spaces.deploy`: what the owner of a Space meets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard
from typer.testing import CliRunner

from spaces import cli, contents, deploy
from stylenat_hub.errors import KeptCardWarning
from stylenat_hub.locations import without_weights
from stylenat_hub.publish import push_pipeline

ROOT = Path(__file__).resolve().parent.parent
NAME = "me/stylenat"


def call(*arguments, code=0):
    """The command here; what it printed. An error is one sentence, in one line, and nothing else."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    if code:
        assert not result.stdout and "Traceback" not in result.stderr
        assert result.stderr.count("error:") == 1 and result.stderr.splitlines()[-1].startswith("error: ")
    return result.stderr if code else result.stdout


def files(hub, name=NAME):
    return hub.files(name, type="space")


def card(hub, name=NAME):
    return SpaceCard(files(hub, name)["README.md"].decode()).data.to_dict()


def changes(hub, name=NAME):
    """Titles of the commits, without the Hub's own first one."""
    return [commit.title for commit in hub.commits(name, type="space")][1:]


def copied(tmp_path):
    """A copy of what the Space is made of, to change."""
    for name, path in contents.files().items():
        target = tmp_path / "clone" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        (os.link if name.endswith(".safetensors") else shutil.copyfile)(path, target)
    shutil.copyfile(ROOT / "spaces" / "README.md", tmp_path / "clone" / "spaces" / "README.md")
    return tmp_path / "clone"


# -- deploying


def test_the_space_is_made_in_one_commit(hub):
    told = call(NAME)
    there = files(hub)
    assert told.splitlines()[-1] == f"deployed to {hub.url}/spaces/{NAME}"
    assert hub.repo(NAME, "space").sdk == "gradio" and not hub.repo(NAME, "space").private
    assert changes(hub) == ["Add the page"]
    for name in ("app.py", "requirements.txt", "LICENSE", "NOTICE"):
        source = ROOT / ("spaces" if name[0] in "ar" else ".") / name
        assert there[name] == source.read_bytes()
    weights = "builtin/toy-church/generator/diffusion_pytorch_model.safetensors"
    assert there[f"stylenat_hub/{weights}"] == (ROOT / "stylenat_hub" / weights).read_bytes()
    assert json.loads(there["space.json"])["files"] == sorted(there.keys() - {".gitattributes"})
    assert f"{len(there) - 1} files" in told and "created" in told


# -- deploying again


def test_the_same_again_changes_nothing(hub):
    call(NAME)
    before = hub.commits(NAME, type="space")
    told = call(NAME)
    assert told.splitlines()[-1] == f"nothing is new at {hub.url}/spaces/{NAME}"
    assert hub.commits(NAME, type="space") == before


def test_a_new_version_replaces_the_old_one(hub, tmp_path):
    clone = copied(tmp_path)
    (clone / "spaces/studio/tabs/old.py").write_text("# goes\n")
    deploy.deploy(NAME, root=clone)
    assert "studio/tabs/old.py" in files(hub)
    theirs = {"picture.txt": b"mine", "studio/tabs/mine.py": b"mine"}
    hub.add_repo(NAME, {**files(hub), **theirs}, type="space")
    (clone / "spaces/studio/tabs/old.py").unlink()
    (clone / "spaces/studio/look.css").write_text("/* new */\n")
    done = deploy.deploy(NAME, root=clone)
    assert done.news == "updated" and changes(hub)[-1] == "Update the page"
    assert files(hub)["studio/look.css"] == b"/* new */\n"
    assert "studio/tabs/old.py" not in files(hub)
    assert theirs.items() <= files(hub).items()  # not this command's, so they stay


def test_a_readme_written_by_hand_stays(hub):
    call(NAME)
    own = b"---\ntitle: Mine\nsdk: gradio\nsdk_version: 6.31.0\napp_file: app.py\n---\n\n# Mine\n"
    hub.add_repo(NAME, {**files(hub), "README.md": own, "app.py": b"old"}, type="space")
    with pytest.warns(KeptCardWarning, match="was written by hand and stays$"):
        call(NAME)
    assert files(hub)["README.md"] == own and files(hub)["app.py"] != b"old"


# -- Spaces that are not ours to write to


def test_another_persons_space_is_refused(hub):
    hub.add_repo("other/stylenat", {"app.py": b"theirs"}, type="space")
    before = dict(files(hub, "other/stylenat"))
    told = call("other/stylenat", code=1)
    assert "it is somebody else's, or your token may only read" in told
    assert files(hub, "other/stylenat") == before
    assert "somebody else's" in call("other/new", code=1)
    assert ("space", "other/new") not in hub.repos


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ({"app.py": b"mine"}, "holds other files (app.py)"),
        ({"README.md": b"# My own words"}, "holds other files (README.md)"),
        ({"README.md": b"see spaces-config-reference", "notes.txt": b"a"}, "holds other files (notes.txt)"),
        ({"space.json": b"[1]", "app.py": b"mine"}, "holds other files (app.py, space.json)"),
        (
            {"space.json": b'{"written_by": "stylenat_hub", "files": ["README.md"]}', "app.py": b"mine"},
            "has a",
        ),
    ],
)
def test_a_space_with_other_files_is_refused(hub, there, says):
    hub.add_repo(NAME, there, type="space")
    assert says in call(NAME, "--hardware", "t4-small", code=1)
    assert files(hub) == there and hub.repo(NAME, "space").hardware == "cpu-basic"


def test_a_manifest_cannot_name_what_is_not_a_name(hub):
    call(NAME)
    manifest = {**json.loads(files(hub)["space.json"])}
    manifest["files"] += [7, None, "../x", ".gitattributes", "not-there.py"]
    hub.add_repo(NAME, {**files(hub), "space.json": json.dumps(manifest).encode()}, type="space")
    assert "updated" in call(NAME) and ".gitattributes" in files(hub)


def test_a_space_made_on_the_website_is_filled(hub):
    readme = (
        "---\ntitle: x\nsdk: gradio\n---\n\nCheck out https://huggingface.co/docs/hub/spaces-config-reference"
    )
    hub.add_repo(NAME, {".gitattributes": b"", "README.md": readme.encode()}, type="space")
    call(NAME)
    assert card(hub)["app_file"] == "app.py" and changes(hub)[-1] == "Add the page"


def test_a_space_of_another_kind_is_refused(hub):
    HfApi(token="hf_me").create_repo(NAME, repo_type="space", space_sdk="docker")
    assert "is made with 'docker', not gradio" in call(NAME, code=1)


def test_privacy(hub):
    call(NAME, "--private")
    assert hub.repo(NAME, "space").private
    call("me/public")
    assert "is public: --private" in call("me/public", "--private", code=1)


# -- hardware and models


def test_hardware_is_asked_for_once(hub):
    assert "hardware zero-a10g: asked for" in call(NAME, "--hardware", "zero-a10g")
    assert hub.repo(NAME, "space").hardware == "zero-a10g"
    assert "hardware zero-a10g: as it was" in call(NAME, "--hardware", "zero-a10g")
    call(NAME)
    assert hub.repo(NAME, "space").hardware == "zero-a10g"  # left as it is
    asked = [r for r in hub.requests if r.method == "POST" and r.path.endswith("/hardware")]
    assert len(asked) == 1


def test_hardware_that_is_refused(hub):
    assert "the hardware is 'h200'; allowed: cpu-basic" in call(NAME, "--hardware", "h200", code=1)
    assert not hub.repos  # known before anything is made
    hub.fail("402", path="/hardware")
    told = call(NAME, "--hardware", "t4-small", code=1)
    page = f"{hub.url}/spaces/{NAME}"
    assert f"{page} has the page, but not the hardware 't4-small'" in told and f"{page}/settings" in told
    assert "may have to pay" in told and "app.py" in files(hub)


def test_a_model_of_the_hub_to_start_with(hub, pipeline):
    push_pipeline(pipeline, "me/church", license="mit")
    hub.add_repo("me/church", {**hub.files("me/church"), "checkpoint/cpu.safetensors": b"x"})
    call(NAME, "--model", "me/church")
    assert card(hub)["models"] == ["me/church"] and "preload_from_hub" not in card(hub)
    assert json.loads(files(hub)["space.json"])["model"] == "me/church"
    call(NAME, "--model", "me/church", "--preload")
    (line,) = card(hub)["preload_from_hub"]
    name, listed = line.split(" ")
    assert name == "me/church" and set(listed.split(",")) == {
        *("generator/config.json", "generator/diffusion_pytorch_model.safetensors", "model_index.json")
    }
    call(NAME, "--model", "toy-church")
    assert json.loads(files(hub)["space.json"])["model"] is None and "models" not in card(hub)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("me/nothing", "has no repository of that name"),
        ("stylenat-ffhq-256", without_weights("stylenat-ffhq-256")[:40]),
        ("stylenat-fhq", "there is no model 'stylenat-fhq'"),
        ("me/secret", "'me/secret' is private, so that a Space cannot load it"),
        ("me/gated", "'me/gated' is gated"),
        ("me/bert", "'me/bert' holds no generator of this package"),
        ("me/text", "'me/text' holds no generator of this package"),
        (str(ROOT), "is a folder of this machine"),
        ("a/b/c", "there is no model 'a/b/c'"),
    ],
)
def test_a_model_that_the_space_could_not_load_is_refused(hub, model, says):
    bert = {"config.json": b'{"_class_name": "Bert"}', "diffusion_pytorch_model.safetensors": b"x"}
    hub.add_repo("me/secret", bert, private=True)
    hub.add_repo("me/gated", bert)
    hub.gate("me/gated")
    hub.add_repo("me/bert", bert)
    hub.add_repo("me/text", {"README.md": b"words"})
    assert says in call(NAME, "--model", model, code=1)
    assert ("space", NAME) not in hub.repos
    assert "leave out --preload" in call(NAME, "--preload", code=1)


# -- failures


def test_failures_are_one_sentence(hub, monkeypatch):
    hub.fail("503", times=None)
    assert "HTTP 503" in call(NAME, code=1)
    hub.clear_faults()
    assert "cannot be a Hub id" in call("me/a/b", code=1)
    hub.fail("lost", path="/commit/")
    assert "updated" in call(NAME) or "unchanged" in call(NAME)  # tried again: it had arrived
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know who you are" in call(NAME, code=1)


def test_a_reader_cannot_deploy(hub, monkeypatch):
    call(NAME)
    hub.add_user("me", "hf_reader", role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "your token may only read" in call(NAME, code=1)


def test_the_command_is_found_where_another_package_has_its_name(tmp_path):
    """As Hugging Face's own `spaces`, for ZeroGPU."""
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces/__init__.py").write_text("GPU = 1\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-m", "spaces.deploy", "--help"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "shows this clone's page" in done.stdout, done.stderr

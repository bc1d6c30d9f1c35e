"""What of a user's folder goes out: nothing from outside of it, damaged, or about the machine it lies on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_publish_checks import refused, with_json

from stylenat_hub import publish
from stylenat_hub.errors import ConfigError, InputError, StyleNATHubError, WeightsError

OWN = b"---\nlicense: mit\n---\n# Written by hand\n"


@pytest.fixture
def folder(tiny, tmp_path):
    """A pipeline folder that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "samples.png", "model_index.json", "generator/config.json"]
)
def test_a_link_out_of_the_folder_is_not_followed(hub, folder, tmp_path, name):
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    shutil.move(folder / name, secret) if (folder / name).exists() else secret.write_text("hunter2")
    (folder / name).symlink_to(secret)
    refused(InputError, f"{name}' is a link to a file outside", lambda: publish.push_folder(folder, "me/x"))
    assert not hub.repos
    inside = folder / "kept"
    (folder / name).unlink()
    shutil.move(secret, inside)
    (folder / name).symlink_to(inside)
    if name in ("model_index.json", "generator/config.json"):
        publish.push_folder(folder, "me/x")


def test_a_linked_part_is_not_followed(hub, folder, tmp_path):
    shutil.move(folder / "generator", tmp_path / "elsewhere")
    (folder / "generator").symlink_to(tmp_path / "elsewhere")
    refused(InputError, "is a link to a file outside", lambda: publish.push_folder(folder, "me/x"))


def test_what_only_looks_like_the_download_cache_is_not_followed(hub, folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    root = tmp_path / "models--a" / "snapshots" / "c"
    shutil.copytree(folder, root)
    blob = tmp_path / "models--a" / "blobs" / ("0" * 40)
    blob.parent.mkdir()
    blob.symlink_to(secret)
    (root / "LICENSE").symlink_to(blob)
    refused(InputError, "is a link to a file outside", lambda: publish.push_folder(root, "me/x"))
    blob.unlink()
    blob.write_text("mine")
    publish.push_folder(root, "me/x")
    assert hub.files("me/x")["LICENSE"] == b"mine"


def test_a_space_follows_no_links_either(hub, tmp_path):
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "app.py").symlink_to(tmp_path / "secret")
    options = {"repo_type": "space", "space_sdk": "gradio"}
    refused(
        InputError,
        "app.py' is a link to a file outside",
        lambda: publish.upload(tmp_path / "space", "me/space", **options),
    )
    assert not hub.repos


def spoiled_state(**files):
    def spoil(checkpoint):
        path = checkpoint / "state.json"
        state = json.loads(path.read_text())
        path.write_text(json.dumps({**state, "files": {**state["files"], **files}}))

    return spoil


def cut(checkpoint):
    path = checkpoint / "rng.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


CHECKPOINTS = {
    "cut": (cut, WeightsError, "is damaged: 'rng.safetensors'"),
    "missing": (lambda c: (c / "rng.safetensors").unlink(), WeightsError, "has no 'rng.safetensors'"),
    "a path": (spoiled_state(**{"../model_index.json": {}}), InputError, "lists '../model_index.json'"),
    "a path to weights": (spoiled_state(**{"../a.safetensors": {}}), InputError, "allowed: names of"),
    "another kind": (spoiled_state(**{"token": {}}), InputError, "lists 'token'"),
    "no files": (lambda c: (c / "state.json").write_text("{}"), InputError, "lists no files"),
    "no JSON": (lambda c: (c / "state.json").write_text("{"), ConfigError, "cannot be read as JSON"),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_checkpoint_that_is_not_whole_is_not_pushed(hub, folder, checkpoint, what):
    spoil, error, says = CHECKPOINTS[what]
    publish.push_folder(folder, "me/x", checkpoint=checkpoint)
    spoil(checkpoint)
    (checkpoint / "token").write_text("hunter2")
    refused(error, says, lambda: publish.push_folder(folder, "me/x", checkpoint=checkpoint))
    shutil.copytree(checkpoint, folder / "checkpoint")
    refused(error, says, lambda: publish.push_folder(folder, "me/x"))
    assert len(hub.commits("me/x")) == 2


CARDS = {
    "Latin-1": ("# Türme\n".encode("latin-1"), "is not UTF-8 text"),
    "a list": (b"---\n- a\n---\n# x\n", "is no YAML mapping"),
    "no YAML": (b"---\na: [\n---\n# x\n", "is no YAML mapping"),
    "a tab": (b"---\na:\n\t- b\n---\n# x\n", "is no YAML mapping"),
    "numbers": (b"---\n1: 2\n---\n# x\n", "is no YAML mapping"),
}


@pytest.mark.parametrize("what", CARDS)
def test_a_card_that_cannot_be_read_is_one_sentence(hub, folder, what):
    content, says = CARDS[what]
    (folder / "README.md").write_bytes(content)
    text = refused(ConfigError, says, lambda: publish.push_folder(folder, "me/x"))
    assert f"{folder}/README.md" in text and not hub.repos


def test_a_card_by_hand_keeps_the_pictures_that_it_shows(hub, folder):
    (folder / "README.md").write_bytes(OWN)
    (folder / "samples.png").write_bytes(b"mine")
    publish.push_folder(folder, "me/x")
    assert hub.files("me/x")["samples.png"] == b"mine" and hub.files("me/x")["README.md"] == OWN


@pytest.mark.parametrize("name", ["model_index.json", "generator/config.json"])
def test_keys_that_tell_about_a_machine_stay_here(hub, folder, name):
    with_json(name, _name_or_path="/home/me/secret", _commit_hash="abc")(folder)
    publish.push_folder(folder, "me/x")
    sent = json.loads(hub.files("me/x")[name])
    assert {key for key in sent if key[0] == "_"} == {"_class_name", "_diffusers_version"}
    assert "secret" in (folder / name).read_text()  # the user's own stays as it is


@pytest.mark.parametrize("value", [3, ["a/b"], {"a": "b"}])
def test_a_record_with_a_field_of_another_kind_is_one_sentence(hub, folder, value):
    record = {"images": 8, "seconds": 1.0, "processes": 1, "weights": "average", "dtype": "float32"}
    record |= {"recipe": {}, "data": {"pictures": 3}, "started_from": value}
    (folder / "training.json").write_text(json.dumps(record))
    refused(ConfigError, "started_from is", lambda: publish.push_folder(folder, "me/x"))
    (folder / "training.json").write_text(json.dumps({**record, "started_from": None}))
    publish.push_folder(folder, "me/x")
    conversion = {"source": {"file": "a", "bytes": 1, "sha256": "0"}, "weights": "w", "zoo": value}
    (folder / "conversion.json").write_text(json.dumps(conversion))
    refused(ConfigError, "zoo is", lambda: publish.push_folder(folder, "me/x"))


def test_a_full_disk_is_one_sentence(hub, pipeline, folder, monkeypatch):
    import errno
    import os

    from stylenat_hub import staged

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staged.shutil, "copyfile", full)
    refused(InputError, "No space left on device", lambda: publish.push_folder(folder, "me/x"))
    monkeypatch.setattr(type(pipeline.generator), "_save_pretrained", full, raising=False)
    monkeypatch.setattr("diffusers.ModelMixin.save_pretrained", full)
    for model in (pipeline, pipeline.generator):
        text = refused(StyleNATHubError, "disk is full", lambda m=model: m.push_to_hub("me/x"))
        assert "/tmp" not in text

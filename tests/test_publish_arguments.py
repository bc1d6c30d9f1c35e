"""Arguments that no push can have: refused in one sentence before anything is saved, made or sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import tiny_generator
from test_publish_checks import refused

from stylenat_hub import GANPipeline, publish
from stylenat_hub.errors import InputError

WRONG = {
    "tag": [1, b"v1", Path("v1"), "refs/heads/main", "0" * 40, "a tag", ""],
    "revision": [1, b"main", Path("main"), "a branch", ""],
    "commit_message": [5, b"x", ["x"]],
    "commit_description": [5],
    "private": ["yes", 1],
    "create_pr": ["no", None],
    "license": [["mit"], 3],
    "variant": ["", "../x", "a/b", 3, Path("x")],
    "token": [3, b"hf_me"],
    "bundle_code": ["no"],
    "nonsense": [1],
    "repo_type": ["space"],
}
SAVED = {**WRONG, "max_shard_size": ["1 fortnight", -1, 0, True, 1.5, ""], "checkpoint": ["x"]}
FOLDER = {**WRONG, "samples": ["no"], "checkpoint": ["nowhere", 3, b"x"], "max_shard_size": ["1GB"]}


def cases(wrong):
    return [pytest.param(name, value, id=f"{name}={value!r:.20}") for name in wrong for value in wrong[name]]


@pytest.mark.parametrize(("name", "value"), cases({**SAVED, "discriminator": [5, "x"]}))
def test_of_a_pipeline(hub, pipeline, name, value):
    text = refused(InputError, "", lambda: pipeline.push_to_hub("me/x", **{name: value}))
    assert name in text or {"tag": "tag", "revision": "branch"}[name] in text
    assert not hub.requests


@pytest.mark.parametrize(("name", "value"), cases({**SAVED, "discriminator": [5]}))
def test_of_a_model(hub, pipeline, name, value):
    for subfolder in (None, "generator"):
        push = pipeline.generator.push_to_hub
        refused(InputError, "", lambda p=push, s=subfolder: p("me/x", subfolder=s, **{name: value}))
    assert not hub.requests


@pytest.mark.parametrize(("name", "value"), cases(FOLDER))
def test_of_a_folder(hub, tiny, name, value):
    refused(InputError, "", lambda: publish.push_folder(tiny, "me/x", **{name: value}))
    assert not hub.repos


@pytest.mark.parametrize("folder", [None, b"x", 3, "x" * 5000, "a\0b", "", "nowhere"])
def test_folders_that_are_none(hub, folder):
    for push in (publish.push_folder, publish.upload):
        refused(InputError, "", lambda p=push: p(folder, "me/x"))
    assert not hub.requests


def test_another_generator_is_no_discriminator(hub, pipeline):
    other = tiny_generator(seed=5)
    refused(InputError, "discriminator is", lambda: pipeline.push_to_hub("me/x", discriminator=other))


@pytest.mark.parametrize(
    "subfolder", ["", ".", "..", "../x", "checkpoint", "discriminator", "a/b", Path("generator"), 3]
)
def test_a_model_has_one_place_in_a_pipeline(hub, pipeline, subfolder):
    refused(
        InputError,
        "allowed: 'generator'",
        lambda: pipeline.generator.push_to_hub("me/x", subfolder=subfolder),
    )
    assert not hub.repos


def test_what_is_right_passes(hub):
    pipe = GANPipeline(tiny_generator())
    options = {"max_shard_size": "1.5 MB", "variant": "bf16", "private": False, "token": True}
    pipe.push_to_hub("me/x", tag="v1.0", revision="a/b", commit_message="", **options)
    assert hub.repo("me/x").tags.keys() == {"v1.0"}

"""A push takes away nothing of a repository that this package has not put there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_publish_checks import WEIGHTS, refused

from stylenat_hub import publish, uploads
from stylenat_hub.errors import InputError

OWN = b"---\nlicense: mit\n---\n# Written by hand\n"
CONVERSION = {"source": {"file": "a.pt", "bytes": 1, "sha256": "0" * 64}, "weights": "g_ema"}


def as_json(**values):
    return json.dumps(values).encode()


OTHERS = {
    "a UNet2DModel": {
        "config.json": as_json(_class_name="UNet2DModel"),
        WEIGHTS: b"theirs",
        "training.json": as_json(epochs=3),
    },
    "a StableDiffusionPipeline": {
        "model_index.json": as_json(_class_name="StableDiffusionPipeline", unet=["diffusers", "UNet2D"]),
        "unet/config.json": as_json(_class_name="UNet2DConditionModel"),
    },
    "a GANPipeline": {"model_index.json": as_json(_class_name="GANPipeline", generator=["a", "Other"])},
    "a BertModel": {"config.json": as_json(architectures=["BertModel"], model_type="bert")},
    "a UNet3DModel": {"generator/config.json": as_json(_class_name="UNet3DModel")},
    "something else": {"config.json": b"{"},
}


@pytest.fixture
def folder(tiny, tmp_path):
    """A pipeline folder that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_is_not_overwritten(hub, pipeline, what):
    hub.add_repo("me/other", OTHERS[what])
    says = f"'me/other' holds {what} ("
    pushes = [
        lambda: pipeline.push_to_hub("me/other"),
        lambda: pipeline.push_to_hub("me/other", create_pr=True),
        lambda: pipeline.push_to_hub("me/other", revision="next"),
        lambda: pipeline.generator.push_to_hub("me/other"),
        lambda: pipeline.generator.push_to_hub("me/other", subfolder="generator"),
        lambda: uploads.make_repository("me/other"),
    ]
    for push in pushes:
        refused(InputError, says, push)
    assert hub.files("me/other") == OTHERS[what] and not hub.objects.keys() - {
        blob.sha256 for blob in hub.commits("me/other")[0].blobs.values()
    }
    assert not hub.repo("me/other").pulls


def test_a_record_of_another_program_stays(hub, pipeline, folder):
    theirs = as_json(epochs=3)
    hub.add_repo("me/notes", {"training.json": theirs, "conversion.json": theirs})
    pipeline.push_to_hub("me/notes")  # has none of its own
    assert {hub.files("me/notes")[name] for name in ("training.json", "conversion.json")} == {theirs}
    (folder / "conversion.json").write_text(json.dumps(CONVERSION))
    refused(
        InputError,
        "has a 'conversion.json' that this package has not written",
        lambda: publish.push_folder(folder, "me/notes"),
    )
    refused(InputError, "'training.json'", lambda: uploads.make_repository("me/notes", run="resumed"))
    assert len(hub.commits("me/notes")) == 2


def test_a_checkpoint_of_another_program_stays(hub, folder, checkpoint):
    theirs = {"checkpoint/model.bin": b"theirs", "checkpoint/rng.safetensors": b"theirs"}
    hub.add_repo("me/a", {"checkpoint/model.bin": b"theirs"})
    publish.push_folder(folder, "me/a", checkpoint=checkpoint)
    publish.push_folder(folder, "me/a", checkpoint=checkpoint)
    assert hub.files("me/a")["checkpoint/model.bin"] == b"theirs"
    hub.add_repo("me/b", theirs)
    for push in (
        lambda: publish.push_folder(folder, "me/b", checkpoint=checkpoint),
        lambda: uploads.make_repository("me/b", run="new"),
    ):
        refused(InputError, "this package has not written", push)
    assert hub.files("me/b") == theirs


def test_an_older_checkpoint_of_ours_goes(hub, folder, checkpoint):
    publish.push_folder(folder, "me/a", checkpoint=checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "rng.safetensors").rename(checkpoint / "more.safetensors")
    state["files"] = {"more.safetensors": state["files"]["rng.safetensors"]}
    (checkpoint / "state.json").write_text(json.dumps(state))
    publish.push_folder(folder, "me/a", checkpoint=checkpoint)
    inside = {name for name in hub.files("me/a") if name.startswith("checkpoint/")}
    assert inside == {"checkpoint/state.json", "checkpoint/more.safetensors"}


def test_two_cards_by_hand_are_for_people_to_settle(hub, folder):
    hub.add_repo("me/own", {"README.md": OWN})
    (folder / "README.md").write_bytes(OWN + b"Another\n")
    says = "has a README.md of its own, and it is another than the folder's"
    refused(InputError, says, lambda: publish.push_folder(folder, "me/own"))
    assert hub.files("me/own") == {"README.md": OWN}
    (folder / "README.md").write_bytes(OWN)
    publish.push_folder(folder, "me/own")
    assert hub.files("me/own")["README.md"] == OWN

"""Checkpoints that lie: their hashes agree, and what they say cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training_loop import QUIET, SMALL, fresh_state, pictures  # noqa: F401
from test_training_loop import trainer as new_trainer

from stylenat_hub.errors import StyleNATHubError, WeightsError
from stylenat_hub.weights import fingerprint
from training import checkpoints
from training.export import export

GONE = object()


@pytest.fixture
def saved(tmp_path):
    run = new_trainer(tmp_path / "run", images=8)
    run.run(pictures())
    return run.saved


def rewritten(folder, **changes):
    """The state with other fields, hashed again; GONE removes one."""
    state = json.loads((folder / "state.json").read_text())
    for name in state["files"]:
        if (folder / name).is_file():
            state["files"][name] = fingerprint(folder / name)
    state.update(changes)
    state = {name: value for name, value in state.items() if value is not GONE}
    state["sha256"] = checkpoints._state_hash(state)
    (folder / "state.json").write_text(json.dumps(state))


def refused(folder, tmp_path, *words):
    for load in (
        lambda: checkpoints.find_checkpoint(folder),
        lambda: export(folder, tmp_path / "out"),
    ):
        with pytest.raises(StyleNATHubError) as caught:
            load()
        message = str(caught.value)
        assert message.isprintable() and len(message) < 1_000, message
        for word in words:
            assert word in message, message
    assert not (tmp_path / "out").exists()


def test_what_was_written_is_right(saved, tmp_path):
    rewritten(saved)
    checkpoints.find_checkpoint(saved)
    export(saved, tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, GONE) for name in ("images", "family", "recipe", "generator", "discriminator", "seconds")),
        *(
            (name, GONE)
            for name in ("ada_strength", "processes", "scalers", "data", "versions", "started_from")
        ),
        *(("family", ["x"]), ("family", "x"), ("images", "x"), ("images", -1), ("images", True)),
        *(("recipe", 5), ("generator", []), ("discriminator", None), ("seconds", "abc")),
        *(("seconds", float("nan")), ("ada_strength", "high"), ("ada_strength", 2), ("started_from", 5)),
        *(("data", {}), ("data", {"fingerprint": 5, "pictures": 8}), ("data", []), ("processes", "2")),
        *(("scalers", {"g": {}}), ("scalers", {"g": {"scale": 1.0}, "d": {}}), ("versions", None)),
        ("family", "y" * 1_000_000),
    ],
    ids=lambda value: "gone" if value is GONE else repr(value)[:30],
)
def test_a_field_that_is_wrong_is_named(saved, tmp_path, field, value):
    rewritten(saved, **{field: value})
    refused(saved, tmp_path, field if field != "family" else "family", "state.json")


def test_a_recipe_that_is_wrong(saved, tmp_path):
    recipe = json.loads((saved / "state.json").read_text())["recipe"]
    for field, value in (("bcr_policy", [{}]), ("loss", {}), ("batch", "8")):
        rewritten(saved, recipe={**recipe, field: value})
        with pytest.raises(StyleNATHubError, match=field):
            export(saved, tmp_path / "out")


@pytest.mark.parametrize("name", ["../../etc/hostname", "/etc/hostname", "other.safetensors", "state.json"])
def test_other_files_are_not_read(saved, tmp_path, name):
    files = json.loads((saved / "state.json").read_text())["files"]
    rewritten(saved, files={**files, name: {"bytes": 1, "sha256": ""}})
    refused(saved, tmp_path, repr(name), "lists other files")


def test_a_file_that_is_not_listed(saved, tmp_path):
    files = json.loads((saved / "state.json").read_text())["files"]
    rewritten(saved, files={name: value for name, value in files.items() if name != "rng.safetensors"})
    refused(saved, tmp_path, "'rng.safetensors'")


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_networks_larger_than_their_tensors_are_not_built(saved, tmp_path, monkeypatch, part):
    config = json.loads((saved / "state.json").read_text())[part]
    config["channels"] = [2_048 for _ in config["channels"]]
    rewritten(saved, **{part: config})
    largest, empty = [], torch.empty

    def watched(*size, **options):
        made = empty(*size, **options)
        largest.append(0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    refused(saved, tmp_path, f"{part}.safetensors", "does not fit its config")
    assert max(largest, default=0) < 1_000_000


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("average", lambda tensors: tensors.popitem()),
        ("average", lambda tensors: tensors.update({"a\nb": torch.zeros(1)})),
        ("g_optimizer", lambda tensors: tensors.update({"novelty/constant": torch.zeros(1)})),
        ("g_optimizer", lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, 3, 3)})),
        ("d_optimizer", lambda tensors: tensors.popitem()),
        ("rng", lambda tensors: tensors.update(cpu0=torch.zeros(5))),
        ("rng", lambda tensors: tensors.update(cpu0=torch.zeros(5, dtype=torch.uint8))),
    ],
)
def test_tensors_that_do_not_fit(saved, tmp_path, part, change):
    path = saved / f"{part}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    rewritten(saved)
    refused(saved, tmp_path, f"{part}.safetensors")


def test_a_file_that_is_no_safetensors(saved, tmp_path):
    (saved / "rng.safetensors").write_bytes(b"no tensors")
    rewritten(saved)
    with pytest.raises(WeightsError, match=r"rng\.safetensors"):
        checkpoints.load_checkpoint(saved)


def test_a_state_that_is_nested_too_deeply(saved):
    (saved / "state.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="not JSON"):
        checkpoints.load_checkpoint(saved)

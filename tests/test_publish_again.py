"""What a second push keeps of the first, and what a model takes along of how it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import GANPipeline, StyleNATGenerator
from stylenat_hub.cli import app
from stylenat_hub.errors import KeptCardWarning, UnknownModelError, WeightsError
from stylenat_hub.locations import BUILTIN
from stylenat_hub.publish import push_folder, push_pipeline, report
from training.export import _last_measured

MARK = "<!-- Written by stylenat_hub"


@pytest.fixture
def church(tmp_path):
    """The built-in model's folder without its card, as an export would be."""
    shutil.copytree(BUILTIN / "toy-church", tmp_path / "church")
    (tmp_path / "church" / "README.md").unlink()
    return tmp_path / "church"


def card(hub, name="me/church"):
    return hub.files(name)["README.md"].decode()


@pytest.mark.parametrize("push", ["pipeline", "generator"])
def test_the_recipe_goes_along_with_the_weights_it_made(hub, church, push):
    pipe = GANPipeline.from_pretrained(church)
    (pipe if push == "pipeline" else pipe.generator).push_to_hub("me/church")
    recipe = json.loads((church / "training.json").read_text())["recipe"]
    record = json.loads(hub.files("me/church")["training.json"])
    assert record["recipe"] == recipe and record["dtype"] == "float32"
    assert '"decay_start": 94000' in card(hub) and "116,000 images seen" in card(hub)
    # and on to who pulls it, and pushes that
    GANPipeline.from_pretrained("me/church").push_to_hub("me/again")
    assert json.loads(hub.files("me/again")["training.json"])["recipe"] == recipe


def test_other_weights_have_another_story(hub, church):
    """One changed number, as one step of any optimizer makes it."""
    pipe = GANPipeline.from_pretrained(church)
    with torch.no_grad():
        next(pipe.generator.parameters()).add_(1e-3)
    pipe.push_to_hub("me/church")
    assert "training.json" not in hub.files("me/church") and "has not recorded how" in card(hub)


def test_a_pipeline_pushed_where_its_folder_was_changes_nothing_but_the_type(hub, church):
    push_folder(church, "me/church", license="mit")
    before = card(hub)
    GANPipeline.from_pretrained(church, dtype=torch.float16).push_to_hub("me/church")
    assert card(hub) == before and "license: mit" in before


def test_the_licence_stays_until_another_is_named(hub, church):
    push_folder(church, "me/church", license="mit")
    push_folder(church, "me/church", commit_message="again")
    assert "license: mit" in card(hub) and "The licence is mit." in card(hub)
    push_folder(church, "me/church", license="apache-2.0")
    assert "license: apache-2.0" in card(hub)


def test_a_licence_that_a_hand_written_card_does_not_state_is_warned_of(hub, church):
    push_folder(church, "me/church")
    own = "---\npipeline_tag: unconditional-image-generation\n---\n# Mine\n"
    hub.add_repo("me/church", {**hub.files("me/church"), "README.md": own.encode()})
    with pytest.warns(KeptCardWarning, match="by hand and is kept: state the licence 'mit' there"):
        push_folder(church, "me/church", license="mit")
    assert card(hub) == own


def test_a_push_of_nothing_new_says_so(hub, church):
    line = ["push", str(church), "me/church"]
    first, second = (CliRunner().invoke(app, line) for _ in range(2))
    assert first.stdout.startswith("pushed to http") and second.exit_code == 0
    assert second.stdout.startswith("nothing to push: http") and len(hub.commits("me/church")) == 2
    other = push_pipeline(GANPipeline(tiny_generator()), "me/other", commit_message="x")
    assert report(other).startswith("pushed to")


def test_the_zoos_card_is_not_taken_to_another_repository(hub, church):
    shutil.copyfile(BUILTIN / "toy-church" / "README.md", church / "README.md")
    push_folder(church, "me/mine", license="mit")
    assert MARK in card(hub, "me/mine") and 'from_pretrained("me/mine")' in card(hub, "me/mine")
    push_folder(church, "me/toy-church")
    assert "model_cards.build" in card(hub, "me/toy-church")


def test_another_picture_from_the_same_weights_is_not_pushed(hub):
    """The config says other dilations than those with which the model in memory was built."""
    generator = tiny_generator()
    generator.register_to_config(dilations=((1,), (1,), (1, 1), (1, 1, 1)))
    with pytest.raises(WeightsError, match="draws another picture"):
        GANPipeline(generator).push_to_hub("me/x")
    assert not hub.repos


def test_what_was_measured_before_the_training_is_no_figure_of_the_model(tmp_path):
    rows = [
        {"images": 0, "swd": 250.0},
        {"images": 8, "d_loss": 1.0},
        {"images": 16, "swd": 9.0, "seconds": 1},
    ]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _last_measured(log, 8) is None and _last_measured(log, 16) == {"images": 16, "swd": 9.0}


def test_an_unpublished_name_of_the_zoo_by_its_hub_id_says_how_to_get_it(hub):
    with pytest.raises(UnknownModelError, match=r"conversion\.convert --from stylenat-ffhq-256"):
        GANPipeline.from_pretrained("stylenat-hub/stylenat-ffhq-256")


def test_a_variant_that_the_zoo_does_not_know_is_not_taken_for_its_own(hub, church):
    weights = church / "generator" / "diffusion_pytorch_model.safetensors"
    shutil.copyfile(weights, weights.with_name("diffusion_pytorch_model.evil.safetensors"))
    hub.add_repo("org/toy-church", church)
    with pytest.raises(WeightsError, match=r"no 'diffusion_pytorch_model\.evil\.safetensors' of it"):
        GANPipeline.from_pretrained("toy-church", namespace="org", variant="evil")
    GANPipeline.from_pretrained("toy-church", namespace="org")


def test_a_renamed_tensor_is_named_by_both_names(tmp_path):
    from safetensors.torch import load_file, save_file

    GANPipeline(tiny_generator()).save_pretrained(tmp_path)
    path = tmp_path / "generator" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["renamed"] = tensors.pop("constant")
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="'constant' is missing and the tensor 'renamed' is unexpected"):
        StyleNATGenerator.from_pretrained(tmp_path)


def test_plain_diffusers_takes_no_damaged_cache_and_mends_it(hub):
    from diffusers import DiffusionPipeline

    pipe = GANPipeline(tiny_generator())
    pipe.push_to_hub("me/church")
    folder = Path(DiffusionPipeline.download("me/church"))
    blob = (folder / "generator" / "diffusion_pytorch_model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(WeightsError, match=r"was damaged .* load it again while online"):
        DiffusionPipeline.from_pretrained("me/church")
    again = DiffusionPipeline.from_pretrained("me/church")
    assert torch.equal(again([3], output_type="pt").images, pipe([3], output_type="pt").images)

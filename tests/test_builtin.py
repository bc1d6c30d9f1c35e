"""The model that ships in the wheel: it is there, small, and draws churches."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from stylenat_hub import GANPipeline, WaveletDiscriminator, create_model
from stylenat_hub.cli import app
from stylenat_hub.locations import BUILTIN, builtin_models
from stylenat_hub.metrics import SlicedWasserstein, sliced_wasserstein
from stylenat_hub.registry import CHECKPOINTS
from stylenat_hub.weights import fingerprint
from training.recipes import Recipe
from training.toy_churches import draw_church

ROOT = Path(__file__).resolve().parent.parent
DISCRIMINATOR = ROOT / "training" / "checkpoints" / "toy-church"
COUNT = 200


def drawn_by(pipeline):
    pictures = SlicedWasserstein(32)
    pipeline.set_progress_bar_config(disable=True)
    pictures.update(pipeline(range(COUNT), output_type="pt").images)
    return pictures


@pytest.fixture(scope="module")
def churches():
    """Scenes that no training saw: those of the held-out numbers."""
    pictures = SlicedWasserstein(32)
    for number in range(1_500_000, 1_500_000 + COUNT):
        values = torch.tensor(list(draw_church(number, 32).tobytes()), dtype=torch.uint8)
        pictures.update(values.view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255)
    return pictures


def test_it_draws_churches_and_an_untrained_one_does_not(churches):
    ours = sliced_wasserstein(churches, drawn_by(GANPipeline.from_pretrained("toy-church")))
    torch.manual_seed(0)
    untrained = create_model("toy-church").eval()
    untrained.estimate_w_avg()
    blank = sliced_wasserstein(churches, drawn_by(GANPipeline(generator=untrained)))
    assert ours["swd"] < 0.3 * blank["swd"]


def test_its_pictures_are_not_all_the_same():
    images = GANPipeline.from_pretrained("toy-church")(range(16), output_type="pt").images
    assert images.std(0).mean() > 0.05  # over the seeds, of values in [0, 1]


def test_the_command_draws_with_it_where_no_model_is_named(tmp_path):
    arguments = ["generate", "--seeds", "0-3", "--truncation", "0.7", "--grid", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "grid.png"
    assert builtin_models() == ["toy-church"]


def test_its_weights_are_those_that_the_registry_knows():
    hashes = CHECKPOINTS["toy-church"].sha256
    folders = {"generator": BUILTIN / "toy-church" / "generator", "discriminator": DISCRIMINATOR}
    for name, expected in hashes.items():
        part, file = name.split("/")
        assert fingerprint(folders[part] / file)["sha256"] == expected


def test_it_is_small_and_says_how_it_was_made():
    files = [path for path in BUILTIN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert "README.md" in {path.name for path in files}
    record = json.loads((BUILTIN / "toy-church" / "training.json").read_text())
    assert Recipe.from_dict(record["recipe"]).shape == "toy-church" and record["images"] > 50_000


def test_its_discriminator_is_in_the_clone_and_tells_drawings_from_noise():
    judge = WaveletDiscriminator.from_pretrained(DISCRIMINATOR).eval()
    config = GANPipeline.from_pretrained("toy-church").generator.config
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    values = [torch.tensor(list(draw_church(2_000_000 + i, 32).tobytes())).view(32, 32, 3) for i in range(8)]
    drawings = torch.stack(values).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        real, noise = (judge((x - mean) / std) for x in (drawings, torch.rand(8, 3, 32, 32)))
    assert real.mean() > noise.mean()


@pytest.mark.parametrize(
    "card",
    [
        "README.md",
        "stylenat_hub/builtin/toy-church/README.md",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "model_cards").glob("*/*.md")),
    ],
)
def test_what_a_document_links_to_is_there(card):
    text = (ROOT / card).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / card).parent.joinpath(link).exists()]
    assert not missing and not re.search(r"FILL|TODO|draft", text)

"""Publishing on the Hub and loading from it again, through the real client against the Hub of the tests."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load
from small_models import tiny_generator

from stylenat_hub import GANPipeline, WaveletDiscriminator, card_checks, publish
from stylenat_hub.errors import HubError, InputError, WeightsError

WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINE = {"README.md", "generator/config.json", f"generator/{WEIGHTS}", "model_index.json", "samples.png"}
OWN = b"---\nlicense: mit\n---\n# Written by hand\n"


@pytest.fixture(scope="module")
def discriminator():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return WaveletDiscriminator(WaveletDiscriminator.config_class.preset("tiny")).eval()


@pytest.fixture
def folder(tiny, tmp_path):
    """A pipeline folder that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def files(hub, name, **where):
    """What is in a repository, without what the Hub itself puts there."""
    return {path: data for path, data in hub.files(name, **where).items() if path != ".gitattributes"}


def picture(source, seed=3, **options):
    return GANPipeline.from_pretrained(source, **options)([seed], output_type="pt").images


def card(hub, name):
    return hub.files(name)["README.md"].decode()


@pytest.mark.parametrize("name", ["me/church", "church", "org/church"])
def test_a_pushed_pipeline_is_pulled_as_it_was(hub, pipeline, name):
    commit = pipeline.push_to_hub(name, license="mit")
    full = name if "/" in name else f"me/{name}"
    assert files(hub, full).keys() == PIPELINE
    assert [one.title for one in hub.commits(full)] == ["initial commit", "Upload pipeline"]
    assert commit.oid == hub.commits(full)[-1].sha
    assert publish.address(commit) == f"{hub.url}/{full}"
    assert torch.equal(picture(full), pipeline([3], output_type="pt").images)
    assert f'GANPipeline.from_pretrained("{full}")' in card(hub, full)  # as one has to type it


def test_a_generator_and_a_discriminator_by_themselves(hub, pipeline, discriminator):
    pipeline.generator.push_to_hub("me/generator")
    discriminator.push_to_hub("me/discriminator", commit_message="Mine", commit_description="Of last week")
    assert files(hub, "me/generator").keys() == {"README.md", "config.json", WEIGHTS, "samples.png"}
    assert files(hub, "me/discriminator").keys() == {"README.md", "config.json", WEIGHTS}
    made = hub.commits("me/discriminator")[-1]
    assert (made.title, made.description) == ("Mine", "Of last week")
    assert torch.equal(picture("me/generator"), pipeline([3], output_type="pt").images)
    again = WaveletDiscriminator.from_pretrained("me/discriminator").state_dict()
    assert all(torch.equal(again[key], value) for key, value in discriminator.state_dict().items())
    assert 'WaveletDiscriminator.from_pretrained("me/discriminator")' in card(hub, "me/discriminator")


def test_a_discriminator_joins_a_pipeline(hub, pipeline, discriminator):
    pipeline.push_to_hub("me/church", license="mit")
    before = files(hub, "me/church")
    discriminator.push_to_hub("me/church", subfolder="discriminator")
    after = files(hub, "me/church")
    assert after.keys() - before.keys() == {f"discriminator/{name}" for name in ("config.json", WEIGHTS)}
    assert before.items() <= after.items()
    WaveletDiscriminator.from_pretrained("me/church")
    pipeline.push_to_hub("me/church")  # without it: what is there stays
    assert f"discriminator/{WEIGHTS}" in files(hub, "me/church")
    pipeline.push_to_hub("me/both", discriminator=discriminator)
    assert torch.equal(picture("me/both"), picture("me/church"))
    WaveletDiscriminator.from_pretrained("me/both")
    assert "- `discriminator`" in card(hub, "me/both")
    for wrong in ({"license": "mit"}, {"bundle_code": True}):
        with pytest.raises(InputError, match="leave out subfolder"):
            discriminator.push_to_hub("me/church", subfolder="discriminator", **wrong)


def test_one_model_does_not_hide_in_a_repository_of_the_other_kind(hub, pipeline):
    """A pipeline's index decides what is loaded: a model beside it would be there and never be seen."""
    pipeline.push_to_hub("me/church")
    other = tiny_generator(seed=5)
    with pytest.raises(InputError, match=r"holds a pipeline.*subfolder='generator'"):
        other.push_to_hub("me/church")
    assert len(hub.commits("me/church")) == 2
    other.push_to_hub("me/church", subfolder="generator")
    assert torch.equal(picture("me/church"), GANPipeline(other)([3], output_type="pt").images)
    other.push_to_hub("me/alone")
    pipeline.push_to_hub("me/alone")
    assert files(hub, "me/alone").keys() == PIPELINE
    assert torch.equal(picture("me/alone"), pipeline([3], output_type="pt").images)


def test_saving_may_push_what_it_saves(hub, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "church", push_to_hub=True, max_shard_size="100KB")
    assert torch.equal(picture("me/church"), picture(tmp_path / "church"))
    shards = {path.name for path in (tmp_path / "church" / "generator").iterdir()}
    assert {path.split("/")[1] for path in files(hub, "me/church") if path.startswith("generator/")} == shards
    assert len(shards) > 3
    options = {"private": True, "commit_message": "Mine", "token": "hf_other"}
    pipeline.generator.save_pretrained(tmp_path / "g", push_to_hub=True, repo_id="other/g", **options)
    assert hub.repo("other/g").private and hub.commits("other/g")[-1].title == "Mine"


def test_a_variant_lies_beside_the_other_weights(hub, pipeline):
    pipeline.push_to_hub("me/church", license="mit")
    before = files(hub, "me/church")
    half = GANPipeline(tiny_generator().to(torch.bfloat16))
    half.push_to_hub("me/church", variant="bf16")
    after = files(hub, "me/church")
    variant = "generator/diffusion_pytorch_model.bf16.safetensors"
    assert after.keys() - before.keys() == {variant} and before.items() <= after.items()  # the card, too
    assert torch.equal(picture("me/church"), pipeline([3], output_type="pt").images)
    wanted = GANPipeline.from_pretrained("me/church", variant="bf16", dtype=torch.bfloat16)
    assert torch.equal(wanted.generator.constant, half.generator.constant)
    half.push_to_hub("me/halves", variant="bf16")
    assert variant in files(hub, "me/halves") and "samples.png" in files(hub, "me/halves")


def test_shards_and_a_single_file_replace_each_other(hub, pipeline):
    inside = {}
    for size in (None, "100KB", None, "200KB"):
        pipeline.push_to_hub("me/church", max_shard_size=size)
        inside[size] = {path for path in files(hub, "me/church") if path.startswith("generator/")}
        assert torch.equal(picture("me/church"), pipeline([3], output_type="pt").images)
        assert (f"generator/{WEIGHTS}" in inside[size]) == (size is None)
        assert (f"generator/{WEIGHTS}.index.json" in inside[size]) == (size is not None)
    assert inside[None] == {"generator/config.json", f"generator/{WEIGHTS}"}
    assert not inside["100KB"] & inside["200KB"] - {
        "generator/config.json",
        f"generator/{WEIGHTS}.index.json",
    }


def test_private_repositories(hub, pipeline):
    pipeline.push_to_hub("me/secret", private=True)
    assert hub.repo("me/secret").private
    pipeline.push_to_hub("me/secret", private=True, tag="v2")
    with pytest.raises(Exception, match="no repository of that name, or it is private"):
        picture("me/secret", token="hf_other")
    assert torch.equal(picture("me/secret"), pipeline([3], output_type="pt").images)
    for pull_request in (False, True):
        hub.add_repo("me/public", {"a.txt": b"a"})
        before, sent = len(hub.repo("me/public").history), len(hub.objects)
        with pytest.raises(InputError, match="'me/public' exists already and is public"):
            pipeline.push_to_hub("me/public", private=True, create_pr=pull_request)
        assert (len(hub.repo("me/public").history), len(hub.objects)) == (before, sent)


@pytest.mark.parametrize("name", ["me/church", "other/church"])
def test_a_pull_request_changes_nothing_until_it_is_merged(hub, pipeline, name):
    first = hub.add_repo(name, {"a.txt": b"a", "README.md": OWN})
    commit = pipeline.push_to_hub(name, create_pr=True)
    assert hub.commits(name)[-1].sha == first
    assert commit.pr_revision == "refs/pr/1" and publish.address(commit).endswith(f"{name}/discussions/1")
    assert torch.equal(picture(name, revision="refs/pr/1"), pipeline([3], output_type="pt").images)
    tiny_generator(seed=5).push_to_hub(name, revision="refs/pr/1", subfolder="generator")
    assert not torch.equal(picture(name, revision="refs/pr/1"), pipeline([3], output_type="pt").images)
    with pytest.raises(InputError, match="a pull request cannot be tagged"):
        pipeline.push_to_hub(name, create_pr=True, tag="v1")


def test_branches_and_tags(hub, pipeline):
    pipeline.push_to_hub("me/church", tag="v1")
    tiny = GANPipeline(tiny_generator(seed=5))
    tiny.push_to_hub("me/church", revision="next", tag="v2")
    drawn = {name: picture("me/church", revision=name) for name in ("main", "v1", "next", "v2")}
    assert torch.equal(drawn["main"], drawn["v1"]) and torch.equal(drawn["next"], drawn["v2"])
    assert not torch.equal(drawn["v1"], drawn["v2"])
    before = len(hub.repo("me/church").history)
    with pytest.raises(InputError, match="'me/church' has a tag 'v1' already"):
        tiny.push_to_hub("me/church", tag="v1")
    for revision in ("v1", hub.commits("me/church")[-1].sha):
        with pytest.raises(InputError, match=f"'{revision}' is no branch"):
            tiny.push_to_hub("me/church", revision=revision)
    for wrong in ({"tag": "a tag"}, {"tag": ""}, {"revision": "a branch"}, {"revision": ""}):
        with pytest.raises(InputError, match=r"cannot be the name of a (tag|branch)"):
            tiny.push_to_hub("me/church", **wrong)
    assert len(hub.repo("me/church").history) == before
    assert hub.repo("me/church").branches.keys() == {"main", "next"}


def test_the_card_says_what_it_is(hub, pipeline):
    pipeline.push_to_hub("me/church", license="mit")
    data = files(hub, "me/church")
    made = ModelCard(data["README.md"].decode())
    assert card_checks.card_errors(str(made)) == []
    assert (made.data.license, made.data.library_name) == ("mit", "stylenat_hub")
    for part in ("# church", "![Seeds 0 to 15", "](samples.png)", "The licence is mit.", "32 x 32 px"):
        assert part in made.text, part
    lines = made.text.split("```python\n")[1].split("\n```")[0]
    assert lines.count("\n") <= 3
    scope = {}
    exec(lines.replace("range(8)", "range(2)").replace("pipe(", "pictures = pipe("), scope)
    assert len(scope["pictures"]) == 2
    for line in [line for line in made.text.splitlines() if line.startswith("- `")]:
        assert any(path.startswith(line.split("`")[1]) for path in data)
    with PIL.Image.open(io.BytesIO(data["samples.png"])) as grid:
        assert grid.format == "PNG" and grid.width == grid.height >= 4 * 32
        pixels = np.asarray(grid.convert("RGB")).astype(float)
    assert pixels.std() > 10 and len(np.unique(pixels)) > 50
    pipeline.push_to_hub("me/none")
    assert (
        "states no licence" in card(hub, "me/none") and ModelCard(card(hub, "me/none")).data.license is None
    )


def test_somebodys_own_card_stays(hub, pipeline, folder):
    hub.add_repo("me/own", {"README.md": OWN})
    pipeline.push_to_hub("me/own")
    assert hub.files("me/own")["README.md"] == OWN and "samples.png" in files(hub, "me/own")
    pipeline.push_to_hub("me/written")
    pipeline.push_to_hub("me/written", license="apache-2.0")  # ours is renewed
    assert "The licence is apache-2.0." in card(hub, "me/written")
    (folder / "README.md").write_bytes(OWN)
    publish.push_folder(folder, "me/brought")
    publish.push_folder(folder, "me/written")
    assert hub.files("me/brought")["README.md"] == hub.files("me/written")["README.md"] == OWN
    assert (folder / "README.md").read_bytes() == OWN
    with pytest.raises(InputError, match=r"README.md of its own.*leave out license"):
        publish.push_folder(folder, "me/brought", license="mit")
    (folder / "README.md").write_text("---\nlicense: nonsense\n---\n")
    with pytest.raises(HubError, match=r"does not take the card of .me/new.: .*license"):
        publish.push_folder(folder, "me/new")
    assert ("model", "me/new") not in hub.repos


def test_a_wrong_licence_is_refused_before_anything_is_made(hub, pipeline):
    with pytest.raises(HubError, match=r"^the Hub does not take the card of 'me/church': .*license") as error:
        pipeline.push_to_hub("me/church", license="do what you want")
    assert "\n" not in str(error.value) and not hub.repos


def test_bundled_code_comes_and_goes(hub, pipeline, tmp_path):
    pipeline.push_to_hub("me/church", bundle_code=True)
    code = {path for path in files(hub, "me/church") if path.endswith(".py")}
    assert "pipeline.py" in code and len(code) == 2
    assert "trust_remote_code=True" in card(hub, "me/church") and "- `pipeline.py`" in card(hub, "me/church")
    assert torch.equal(picture("me/church"), pipeline([3], output_type="pt").images)
    pulled = HfApi().snapshot_download("me/church", cache_dir=tmp_path)
    publish.push_folder(pulled, "me/plain")
    assert files(hub, "me/plain").keys() == PIPELINE
    assert json.loads(hub.files("me/plain")["model_index.json"])["_class_name"] == "GANPipeline"
    pipeline.push_to_hub("me/church")
    assert files(hub, "me/church").keys() == PIPELINE
    assert "trust_remote_code" not in card(hub, "me/church")
    with pytest.raises(InputError, match="bundle_code needs a pipeline"):
        pipeline.generator.push_to_hub("me/alone", bundle_code=True)


def test_nothing_else_of_a_folder_goes_out(hub, folder, tmp_path):
    secret = tmp_path / "elsewhere.json"
    secret.write_text('{"password": "hunter2"}')
    for name in (".env", "token", "notes.json", "training.json.bak", "generator/optimizer.safetensors"):
        (folder / name).write_text("hunter2")
    for name in (".git/config", "generator/.cache/x.json", "generator/sub/y.json", "logs/z", "checkpoints/a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("hunter2")
    for name in ("generator/credentials.json", "link.json", "generator/unet.safetensors"):
        (folder / name).symlink_to(secret)
    (folder / "discriminator").mkdir()
    (folder / "discriminator" / "token.json").write_text("hunter2")
    publish.push_folder(folder, "me/church")
    assert files(hub, "me/church").keys() == PIPELINE
    alone = folder / "generator"
    publish.push_folder(alone, "me/alone")
    assert files(hub, "me/alone").keys() == {"README.md", "config.json", WEIGHTS, "samples.png"}
    assert not [
        data for repo in ("me/church", "me/alone") for data in hub.files(repo).values() if b"hunter2" in data
    ]


def test_nothing_tells_where_somebody_keeps_files(hub, folder, discriminator, monkeypatch):
    monkeypatch.chdir(folder.parent)
    pipe = GANPipeline.from_pretrained(folder)
    pipe.push_to_hub("me/church", discriminator=discriminator, bundle_code=True)
    publish.push_folder(folder, "me/folder")
    GANPipeline.from_pretrained("me/church").push_to_hub("me/again")
    here = [str(folder.parent), str(Path.home()), os.path.abspath(publish.__file__).rsplit("/", 2)[0]]
    for name in ("me/church", "me/folder", "me/again"):
        for path, data in hub.files(name).items():
            assert not [place for place in here if place.encode() in data], path


def test_a_folder_of_the_download_cache_can_be_pushed(hub, pipeline, tmp_path):
    """Its files are links."""
    pipeline.push_to_hub("me/church", max_shard_size="100KB")
    cached = HfApi().snapshot_download("me/church", cache_dir=tmp_path / "snapshots")
    publish.push_folder(cached, "me/again")
    assert torch.equal(picture("me/again"), pipeline([3], output_type="pt").images)
    assert {n: d for n, d in files(hub, "me/again").items() if n.startswith("generator/")} == {
        n: d for n, d in files(hub, "me/church").items() if n.startswith("generator/")
    }


def test_a_space_goes_up_without_what_is_hidden_in_its_folder(hub, tmp_path):
    names = ["app.py", "README.md", "parts/a.py", ".git/config", ".env", "__pycache__/app.pyc", ".venv/x.py"]
    for name in names:
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_text("---\nsdk: gradio\n---\n" if name == "README.md" else name)
    commit = publish.upload(tmp_path / "space", "me/space", repo_type="space", space_sdk="gradio")
    sent = files(hub, "me/space", type="space")
    assert sent.keys() == {"app.py", "README.md", "parts/a.py"} and sent["parts/a.py"] == b"parts/a.py"
    assert publish.address(commit) == f"{hub.url}/spaces/me/space"
    with pytest.raises(InputError, match="there is no folder"):
        publish.upload(tmp_path / "nothing", "me/other", repo_type="space", space_sdk="gradio")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing in it to push"):
        publish.upload(tmp_path / "empty", "me/other", repo_type="space", space_sdk="gradio")
    assert len(hub.repos) == 1


def test_weights_of_an_earlier_push_keep_no_record_of_another_origin(hub, folder, pipeline):
    """Otherwise the repository would say of the new weights how the old ones were made."""
    record = {"source": {"file": "a.pt", "bytes": 1, "sha256": "0" * 64}, "weights": "g_ema"}
    (folder / "conversion.json").write_text(json.dumps(record))
    publish.push_folder(folder, "me/church")
    assert "Converted from `a.pt`" in card(hub, "me/church")
    pipeline.push_to_hub("me/church")
    assert files(hub, "me/church").keys() == PIPELINE
    assert "Converted" not in card(hub, "me/church")
    with pytest.raises(WeightsError, match="variant 'fp16'"):
        publish.push_folder(folder, "me/church", variant="fp16")
    assert load(hub.files("me/church")[f"generator/{WEIGHTS}"])

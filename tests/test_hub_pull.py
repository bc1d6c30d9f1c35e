"""Pulling from the Hub with the real client: what is found, what is fetched, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pulls import (
    CONFIG,
    ROOT,
    WEIGHTS,
    checksum,
    drawing,
    fetched,
    files_of,
    finish,
    pull,
    refused,
    same,
    start,
)
from small_models import tiny_generator

from stylenat_hub import registry
from stylenat_hub.errors import ConfigError, InputError, NotOnHubError, UnknownModelError, WeightsError
from stylenat_hub.locations import BUILTIN
from stylenat_hub.models.discriminator import WaveletDiscriminator
from stylenat_hub.models.stylenat.generator import StyleNATGenerator
from stylenat_hub.pipeline import GANPipeline

OF_A_PIPELINE = [f"generator/{CONFIG}", f"generator/{WEIGHTS}", "model_index.json"]
JUDGE = ROOT / "training" / "checkpoints" / "toy-church"


@pytest.fixture
def church(hub, tiny):
    """A pipeline repository with more in it than one load needs."""
    more = {"README.md": b"a card", "samples.png": b"a picture", "pipeline.py": b"code"}
    half = {"generator/diffusion_pytorch_model.bf16.safetensors": b"another variant"}
    judge = {f"discriminator/{name}": content for name, content in files_of(JUDGE).items()}
    hub.add_repo("org/church", {**files_of(tiny), **more, **half, **judge})
    return hub


def test_a_pipeline_comes_to_the_bit_and_only_what_it_needs_is_fetched(church, pipeline):
    pulled = pull()
    assert same(pulled.generator, pipeline.generator) and drawing(pulled) == drawing(pipeline)
    assert pulled.model_name == "org/church" and fetched(church) == OF_A_PIPELINE
    church.requests.clear()
    assert same(pull().generator, pipeline.generator) and fetched(church) == []
    assert same(pull(force_download=True).generator, pipeline.generator)
    assert fetched(church) == OF_A_PIPELINE


def test_each_part_of_a_pipeline(church, pipeline):
    assert same(StyleNATGenerator.from_pretrained("org/church"), pipeline.generator)
    church.requests.clear()
    judge = WaveletDiscriminator.from_pretrained("org/church")
    assert same(judge, WaveletDiscriminator.from_pretrained(JUDGE))
    assert fetched(church) == [f"discriminator/{CONFIG}", f"discriminator/{WEIGHTS}"]


@pytest.mark.parametrize("subfolder", ["generator", "generator/", "./generator", Path("generator")])
def test_a_subfolder(church, pipeline, subfolder):
    assert same(StyleNATGenerator.from_pretrained("org/church", subfolder=subfolder), pipeline.generator)
    assert fetched(church) == OF_A_PIPELINE[:2]


def test_bare_models(hub, tiny, pipeline):
    hub.add_repo("me/bare", tiny / "generator")
    hub.add_repo("me/judge", JUDGE)
    hub.add_repo("me/deep", {f"runs/one/{name}": data for name, data in files_of(tiny / "generator").items()})
    assert drawing(pull("me/bare")) == drawing(pipeline)
    assert same(StyleNATGenerator.from_pretrained("me/bare"), pipeline.generator)
    assert same(WaveletDiscriminator.from_pretrained("me/judge"), WaveletDiscriminator.from_pretrained(JUDGE))
    assert same(pull("me/deep", subfolder="runs/one").generator, pipeline.generator)


def test_shards(hub, tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    hub.add_repo("org/church", tmp_path / "shards")
    assert same(pull().generator, pipeline.generator)
    assert len([name for name in fetched(hub) if name.endswith(".safetensors")]) > 1


def test_variants(hub, tiny, tmp_path, pipeline):
    both = shutil.copytree(tiny, tmp_path / "both")
    GANPipeline.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(both, variant="bf16")
    hub.add_repo("org/church", both)
    half = pull(variant="bf16").generator.constant
    assert torch.equal(half, pipeline.generator.constant.bfloat16().float())
    assert not [name for name in fetched(hub) if name.endswith(WEIGHTS)]
    refused("no variant 'fp8'", "variant='bf16'", "the one without", kind=WeightsError, variant="fp8")
    # Only the other variant is in the cache.
    refused("org/church", "while online", kind=UnknownModelError, local_files_only=True)
    assert same(pull().generator, pipeline.generator)
    assert same(pull(local_files_only=True).generator, pipeline.generator)


def test_revisions(hub, tiny, tmp_path, pipeline):
    first = hub.add_repo("org/church", tiny)
    other = tiny_generator(seed=5)
    GANPipeline(other).save_pretrained(tmp_path / "other")
    second = hub.add_repo("org/church", tmp_path / "other")
    repo = hub.repo("org/church")
    repo.branches["old"] = repo.tags["v1.0"] = repo.pulls["7"] = first
    for revision in ("old", "v1.0", "refs/pr/7", first):
        assert same(pull(revision=revision).generator, pipeline.generator), revision
        assert same(pull(revision=revision, local_files_only=True).generator, pipeline.generator), revision
    for revision in (None, "main", second):
        assert same(pull(revision=revision).generator, other)
    refused("'v9'", "no revision", "a branch, a tag or a commit", kind=UnknownModelError, revision="v9")
    refused("no revision", kind=UnknownModelError, revision="0" * 40)


def test_a_new_commit_is_noticed(hub, tiny, tmp_path):
    hub.add_repo("org/church", tiny)
    pull()
    newer = tiny_generator(seed=5)
    GANPipeline(newer).save_pretrained(tmp_path / "newer")
    hub.add_repo("org/church", tmp_path / "newer")
    assert same(pull().generator, newer) and same(pull(local_files_only=True).generator, newer)


def test_a_cache_of_ones_own(church, tmp_path, pipeline):
    pull(cache_dir=tmp_path / "mine")
    refused("org/church", "download it once", kind=UnknownModelError, local_files_only=True)
    loaded = pull(cache_dir=str(tmp_path / "mine"), local_files_only=True)
    assert same(loaded.generator, pipeline.generator)
    (tmp_path / "file").write_text("")
    refused("file", "Not a directory", "cache_dir", kind=InputError, cache_dir=tmp_path / "file")


def test_private_repositories(hub, tiny, monkeypatch, pipeline):
    hub.add_repo("me/secret", tiny, private=True)
    words = ("'me/secret'", "no repository of that name, or it is private", "hf auth login")
    refused(*words, kind=NotOnHubError, source="me/secret", token="hf_other")
    refused(*words, kind=NotOnHubError, source="me/secret", token=False)
    refused("does not accept the token", kind=UnknownModelError, source="me/secret", token="hf_wrong")
    assert same(pull("me/secret").generator, pipeline.generator)  # with HF_TOKEN
    monkeypatch.delenv("HF_TOKEN")
    refused(*words, kind=NotOnHubError, source="me/secret")
    refused("hf auth login", "HF_TOKEN", kind=UnknownModelError, source="me/secret", token=True)
    assert same(pull("me/secret", token="hf_me").generator, pipeline.generator)
    assert same(pull("me/secret", local_files_only=True).generator, pipeline.generator)


def test_gated_repositories(hub, tiny, pipeline):
    hub.add_repo("org/church", tiny)
    hub.gate("org/church")
    for token in ("hf_other", False):
        refused("'org/church' is gated", "accept its terms", kind=UnknownModelError, token=token)
    hub.gate("org/church", allowed=["other"])
    assert same(pull(token="hf_other").generator, pipeline.generator)


@pytest.mark.parametrize("token", ["", "hf_me\n", "hf me", "hf_ü", 5])
def test_a_token_that_cannot_be_one_is_not_shown(church, token):
    message = refused("token", kind=InputError, token=token)
    assert repr(token) not in message and "hf_me" not in message and not church.requests


@pytest.mark.parametrize(
    "options",
    [
        *({"revision": ""}, {"revision": 5}, {"cache_dir": 5}, {"cache_dir": ""}, {"subfolder": 5}),
        *(
            {"subfolder": "../.."},
            {"subfolder": "/etc"},
            {"variant": 5},
            {"variant": "*"},
            {"variant": "../x"},
        ),
    ],
)
def test_bad_arguments_are_named(church, options):
    [(name, value)] = options.items()
    refused(f"{name} is {value!r}", "allowed", kind=InputError, **options)
    assert not church.requests


def test_a_subfolder_with_a_star_is_a_name(church):
    refused("no config.json", kind=ConfigError, subfolder="*")
    assert fetched(church) == []


def test_offline_by_the_environment(church, tmp_path, pipeline):
    home = tmp_path / "home"
    before = finish(start(church, home, ["org/church", {}], HF_HUB_OFFLINE="1"))
    assert before[0][0] == "UnknownModelError" and "HF_HUB_OFFLINE" in before[0][1] and not church.requests
    online = start(church, home, ["org/church", {"local_files_only": True}], ["org/church", {}])
    missing, pulled = finish(online)
    assert missing[0] == "UnknownModelError" and pulled == checksum(pipeline)
    church.requests.clear()
    attempts = ["org/church", {}], ["org/church", {"variant": "bf16"}], ["org/other", {}], ["toy-church", {}]
    pulled, variant, other, toy = finish(start(church, home, *attempts, HF_HUB_OFFLINE="1"))
    assert pulled == checksum(pipeline) and toy == checksum(pull("toy-church")) and not church.requests
    for kind, message in (variant, other):
        assert kind == "UnknownModelError" and "HF_HUB_OFFLINE" in message and "while online" in message


# Names of the zoo.


def test_a_name_that_nobody_published_is_not_asked_for(hub):
    command = "python -m conversion.convert --from stylenat-ffhq-256 --output stylenat-ffhq-256"
    refused("nobody has put", f"`{command}`", kind=UnknownModelError, source="stylenat-ffhq-256")
    refused("never published", "create_model", kind=UnknownModelError, source="stylenat-church-256")
    assert not hub.requests
    for options in ({"namespace": "org"}, {"namespace": "nobody", "token": False}):
        message = refused("conversion.convert", source="stylenat-ffhq-256", kind=UnknownModelError, **options)
        assert f"'{options['namespace']}/stylenat-ffhq-256'" in message and "404" not in message
    assert hub.requests


def test_the_variable_for_the_namespace(hub, monkeypatch):
    monkeypatch.setenv(registry.NAMESPACE_VARIABLE, "org")
    refused("'org/stylenat-ffhq-256'", "conversion.convert", source="stylenat-ffhq-256")
    refused("'me/stylenat-ffhq-256'", source="stylenat-ffhq-256", namespace="me")
    hub.requests.clear()
    pull("toy-church")
    assert not hub.requests  # it ships with the package
    monkeypatch.setenv(registry.NAMESPACE_VARIABLE, "a/b")
    refused("STYLENAT_HUB_NAMESPACE is 'a/b'", kind=InputError, source="stylenat-ffhq-256")


@pytest.mark.parametrize("namespace", ["", "a/b", "../x", "-x", ".", "a b", "a\n"])
def test_a_namespace_that_nobody_can_have(hub, namespace):
    refused(f"namespace is {namespace!r}", kind=InputError, source="toy-church", namespace=namespace)
    assert not hub.requests


def changed(content: bytes) -> bytes:
    tensors = safetensors.torch.load(content)
    tensors["w_avg"][0] += 1
    return safetensors.torch.save(tensors)


def test_the_weights_of_a_zoo_name_are_those_that_the_zoo_knows(hub, tmp_path):
    files = files_of(BUILTIN / "toy-church")
    hub.add_repo("org/toy-church", files)
    expected = pull("toy-church")
    assert not hub.requests and same(pull("toy-church", namespace="org").generator, expected.generator)
    weights = f"generator/{WEIGHTS}"
    hub.add_repo("org/toy-church", {**files, weights: changed(files[weights])})
    words = ("'org/toy-church'", "not the file that the zoo knows", "SHA-256")
    refused(*words, kind=WeightsError, source="toy-church", namespace="org")
    assert not same(pull("org/toy-church").generator, expected.generator)
    # Nor does another layout slip through.
    hub.add_repo("me/toy-church", {CONFIG: files[f"generator/{CONFIG}"], WEIGHTS: changed(files[weights])})
    refused("'me/toy-church'", *words[1:], kind=WeightsError, source="toy-church", namespace="me")
    expected.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    hub.add_repo("me/toy-church", tmp_path / "shards")
    refused("'me/toy-church'", words[1], "only shards", source="toy-church", namespace="me")


# Refused with names.


def of_the_generator(tiny, **changes):
    """A model repository: the files by their names, where None leaves one out."""
    files = {**files_of(tiny / "generator"), **changes}
    return {name: content for name, content in files.items() if content is not None}


def config_with(tiny, **values) -> bytes:
    return json.dumps({**json.loads((tiny / "generator" / CONFIG).read_text()), **values}).encode()


def tensors_with(tiny, change) -> bytes:
    tensors = safetensors.torch.load_file(tiny / "generator" / WEIGHTS)
    change(tensors)
    return safetensors.torch.save(tensors)


def test_only_a_pickle(hub, tiny):
    files = {CONFIG: config_with(tiny), "diffusion_pytorch_model.bin": b"a pickle", "x.pt": b"another"}
    hub.add_repo("org/church", files)
    refused("diffusion_pytorch_model.bin, x.pt", "pickles", "never read", kind=WeightsError)
    assert fetched(hub) == [CONFIG]
    # Nor does a safetensors file elsewhere make it another case.
    inside = {f"generator/{name}": content for name, content in files.items()}
    hub.add_repo("org/church", {"model_index.json": b'{"generator": []}', f"other/{WEIGHTS}": b"", **inside})
    refused("diffusion_pytorch_model.bin, x.pt", "pickles", kind=WeightsError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update(stranger=torch.zeros(2)), ("'stranger'", "unexpected")),
        (
            lambda t: t.update({"a\n\x1b[31m": torch.zeros(2), "b\nb": torch.zeros(2)}),
            ("unexpected", r"'b\nb'"),
        ),
        (lambda tensors: tensors.update(other=tensors.pop("to_rgb.0.bias")), ("'to_rgb.0.bias'", "missing")),
        (lambda tensors: tensors.update(w_avg=torch.zeros(33)), ("'w_avg'", "[33]", "[32]")),
    ],
)
def test_tensors_that_do_not_belong_there(hub, tiny, change, words):
    hub.add_repo("org/church", of_the_generator(tiny, **{WEIGHTS: tensors_with(tiny, change)}))
    refused(*words, "'org/church'", kind=WeightsError)


def nested(depth):
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"stranger": 1}, "'stranger'"),
        ({"stran\nger": 1}, r"'stran\nger'"),
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"_class_name": "WaveletDiscriminator"}, "WaveletDiscriminator"),
        ({"_class_name": ["a\nb"]}, "a"),
        ({"resolution": 10**30}, "resolution is"),
        ({"resolution": -32}, "resolution is -32"),
        ({"resolution": True}, "resolution is True"),
        ({"resolution": "32"}, "resolution is '32'"),
        ({"channels": {"a": 1}}, "channels"),
        ({"z_dim": 1e300}, "z_dim"),
        ({"image_mean": [float("nan"), 0, 0]}, "image_mean"),
        (b"", CONFIG),
        (b"[1]", CONFIG),
        (b"\xff\xfe", CONFIG),
        (b'{"resolution": ' + b"9" * 5000 + b"}", CONFIG),
        ({"resolution": nested(900)}, "nested"),
        ({"channels": nested(600)}, "nested"),
        ({"_class_name": nested(900)}, "class"),
    ],
)
def test_configs_that_are_not_one(hub, tiny, content, words):
    content = content if isinstance(content, bytes) else config_with(tiny, **content)
    hub.add_repo("org/church", of_the_generator(tiny, **{CONFIG: content}))
    refused(words, kind=ConfigError)
    refused(words, kind=ConfigError, load=lambda: StyleNATGenerator.from_pretrained("org/church"))


def test_other_projects(hub, church):
    refused("WaveletDiscriminator", "StyleNATGenerator", kind=ConfigError, subfolder="discriminator")
    index = b'{"_class_name": "StableDiffusion\\nPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    hub.add_repo("org/other", {"model_index.json": index, f"unet/{CONFIG}": b"{}"})
    refused("StableDiffusion", "without a generator", kind=ConfigError, source="org/other")
    hub.add_repo("org/empty", {"README.md": b""})
    refused("no config.json", kind=ConfigError, source="org/empty")
    hub.add_repo("org/judge", JUDGE)
    words = ("WaveletDiscriminator", "not a StyleNATGenerator")
    refused(*words, kind=ConfigError, load=StyleNATGenerator.from_pretrained, source="org/judge")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "weights.bin", "a\nb.bin", ""])
def test_an_index_names_files_beside_it_only(hub, tiny, name):
    index = json.dumps({"metadata": {}, "weight_map": {"constant": name}}).encode()
    files = of_the_generator(
        tiny, **{f"{WEIGHTS}.index.json": index, "weights.bin": b"a pickle", WEIGHTS: None}
    )
    hub.add_repo("org/church", files)
    refused(repr(name), "not a safetensors shard", kind=WeightsError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"", "damaged"),
        (b"\xff" * 100, "damaged"),
        (b"\x80\x04a pickle under another name", "damaged"),
        (len(b'{"a\\nb": 5}').to_bytes(8, "little") + b'{"a\\nb": 5}', "damaged"),
    ],
)
def test_weights_that_are_none(hub, tiny, content, words):
    hub.add_repo("org/church", of_the_generator(tiny, **{WEIGHTS: content}))
    refused(words, WEIGHTS, kind=WeightsError)

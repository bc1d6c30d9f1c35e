"""From one person's machine to another's: processes of their own, each with its own cache, through the real
clients of the Hub and of diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

COMMON = """
import hashlib, json, sys, warnings
import torch
from huggingface_hub import HfApi
from stylenat_hub import GANPipeline, StyleNATGenerator, WaveletDiscriminator
from stylenat_hub.errors import StyleNATHubError
def weights(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
def picture(pipe):
    pipe.set_progress_bar_config(disable=True)
    return hashlib.sha256(pipe([3], truncation_psi=0.7, output_type="np").images.tobytes()).hexdigest()
def both(pipe):
    return [weights(pipe.generator), picture(pipe)]
def attempt(load, *arguments, **options):
    try:
        return load(*arguments, **options)
    except StyleNATHubError as error:
        return [type(error).__name__, str(error)]
def pulled(name, **options):
    return attempt(lambda: both(GANPipeline.from_pretrained(name, **options)))
found = {}
"""

PUSH = """
from small_models import tiny_generator
from stylenat_hub.models.discriminator import WaveletDiscriminatorConfig
from stylenat_hub.publish import upload
first, second = (GANPipeline(tiny_generator(seed=seed)) for seed in (0, 1))
torch.manual_seed(0)
judge = WaveletDiscriminator(WaveletDiscriminatorConfig.preset("tiny")).eval()
found["first"], found["second"], found["judge"] = both(first), both(second), weights(judge)
found["commit"] = first.push_to_hub("me/church", discriminator=judge, license="mit", tag="v1").oid
found["half"] = both(GANPipeline(tiny_generator(seed=0).to(torch.bfloat16)))[0]
GANPipeline(tiny_generator(seed=0).to(torch.bfloat16)).push_to_hub("me/church", variant="bf16")
second.push_to_hub("me/church", license="mit", commit_message="Better towers")
first.push_to_hub("me/secret", private=True)
first.generator.push_to_hub("org/generator")
judge.push_to_hub("org/judge")
first.push_to_hub("org/gated")
upload("space", "me/demo", repo_type="space", space_sdk="gradio")
api = HfApi()
found["list"] = sorted(model.id for model in api.list_models(author="me"))
info = api.model_info("me/church")
found["files"] = sorted(sibling.rfilename for sibling in info.siblings)
found["info"] = [info.library_name, info.pipeline_tag, info.private]
found["space"] = [api.space_info("me/demo").sdk, sorted(api.list_repo_files("me/demo", repo_type="space"))]
"""

PULL = """
commit, judge = sys.argv[1:]
found["main"], found["tag"] = pulled("me/church"), pulled("me/church", revision="v1")
found["commit"] = pulled("me/church", revision=commit)
half = GANPipeline.from_pretrained("me/church", variant="bf16", dtype=torch.bfloat16)
found["half"] = weights(half.generator)
found["generator"] = weights(StyleNATGenerator.from_pretrained("org/generator"))
found["judges"] = [weights(WaveletDiscriminator.from_pretrained(name)) for name in ("me/church", "org/judge")]
found["secret"], found["gated"] = pulled("me/secret"), pulled("org/gated")
found["stranger"] = [pulled("me/secret", token="hf_other"), pulled("org/gated", token="hf_other")]
found["with_token"] = [pulled("me/secret", token="hf_me"), pulled("org/gated", token="hf_me")]
from diffusers import DiffusionPipeline
found["diffusers"] = both(DiffusionPipeline.from_pretrained("me/church"))
"""

OFFLINE = """
found["main"], found["tag"] = pulled("me/church"), pulled("me/church", revision="v1")
found["other"] = pulled("me/other")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end-to-end")
    (folder / "space").mkdir()
    card = "---\ntitle: Demo\nsdk: gradio\napp_file: app.py\n---\n"
    (folder / "space" / "README.md").write_text(card)
    (folder / "space" / "app.py").write_text("import gradio\n")

    def run(server, code, *arguments, home, token=None, **more):
        path = f"{ROOT}:{ROOT / 'tests'}"
        more |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment = server.environment(folder / home, token=token, **more)
        command = [sys.executable, "-c", f"{COMMON}{code}\nprint(json.dumps(found))", *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_from_one_machine_to_another(hub, run):
    pushed = run(hub, PUSH, home="hers", token="hf_me")
    assert pushed["list"] == ["me/church", "me/secret"]
    assert pushed["info"] == ["stylenat_hub", "unconditional-image-generation", False]
    assert {"README.md", "samples.png", "discriminator/config.json"} <= set(pushed["files"])
    assert pushed["space"] == ["gradio", [".gitattributes", "README.md", "app.py"]]
    hub.gate("org/gated")

    pulled = run(hub, PULL, pushed["commit"], pushed["judge"], home="his")
    assert pulled["main"] == pulled["diffusers"] == pushed["second"]
    assert pulled["tag"] == pulled["commit"] == pulled["with_token"][0] == pushed["first"]
    assert pulled["with_token"][1] == pushed["first"] and pulled["half"] == pushed["half"]
    assert pulled["generator"] == pushed["first"][0]
    assert pulled["judges"] == [pushed["judge"]] * 2
    assert [pulled["secret"][0], pulled["stranger"][0][0]] == ["NotOnHubError"] * 2
    assert "is gated" in pulled["gated"][1] and "is gated" in pulled["stranger"][1][1]

    asked = len(hub.requests)
    offline = run(hub, OFFLINE, home="his", HF_HUB_OFFLINE="1")
    assert [offline["main"], offline["tag"]] == [pulled["main"], pulled["tag"]]
    assert "HF_HUB_OFFLINE" in offline["other"][1] and len(hub.requests) == asked

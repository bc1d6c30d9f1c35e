"""Extractors by name, the random one, DINOv2 through transformers, and one's own."""

import json
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from stylenat_hub.errors import InputError, WeightsError
from stylenat_hub.metrics import dinov2, random_conv
from stylenat_hub.metrics.features import Extractor, load_extractor
from stylenat_hub.metrics.resizing import DINOV2
from training.toy_churches import draw_church


def drawn(count, side=32, start=0, style="day"):
    scenes = [np.array(draw_church(start + number, side, style)) for number in range(count)]
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)


def noise(count, height=32, width=32, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=chance)


# --- by name ---


@pytest.mark.parametrize("spec", ["vgg", "inception:", ""])
def test_an_unknown_extractor_is_refused(spec):
    with pytest.raises(InputError, match="allowed: inception, dinov2, random-conv, or module:attr"):
        load_extractor(spec)


def test_options_that_an_extractor_does_not_have_are_refused():
    with pytest.raises(InputError, match="resize='clean' is an option of the extractor inception"):
        load_extractor("random-conv", resize="clean")
    with pytest.raises(InputError, match="random-conv takes neither weights nor resize"):
        load_extractor("random-conv", weights="a.pth")
    with pytest.raises(InputError, match="allowed for inception: pytorch-fid, torch-fidelity, clean"):
        load_extractor("inception", resize="nearest")


# --- random-conv ---


@pytest.fixture(scope="module")
def random():
    return load_extractor("random-conv")


def exact_reference(images):
    """The same network in whole numbers of 64 bits: convolutions as sums over the nine places."""
    weights = {name: weight.long() for name, weight in random_conv._drawn().items()}
    x = images.long() - 128
    means = []
    for number, shift in enumerate((3, 6, 6, 6)):
        weight = weights[f"layer{number + 1}"]
        height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
        x = F.pad(x, (1, 2, 1, 2))
        sums = torch.zeros(len(x), len(weight), height, width, dtype=torch.long)
        for row in range(3):
            for column in range(3):
                part = x[:, :, row : row + 2 * height : 2, column : column + 2 * width : 2]
                sums += torch.einsum("bchw,oc->bohw", part, weight[:, :, row, column])
        x = torch.div(sums, 2**shift, rounding_mode="floor").clamp(0, 1023)
        if number != 2:
            means.append(x.sum((2, 3)).float() / (height * width))
    features = torch.cat(means, 1)
    return features / 128, (features.floor().long() @ weights["classes"].T).float() / 1024


@pytest.mark.parametrize(
    "images",
    [
        noise(2),
        noise(2, 17, 40),
        255 * (noise(2, 64, 64) > 127).byte(),
        torch.full((1, 3, 16, 16), 255).byte(),
    ],
    ids=["noise", "odd sides", "black and white", "white"],
)
def test_random_features_are_whole_numbers_to_the_bit(random, images):
    for found, expected in zip(random(images), exact_reference(images), strict=True):
        assert torch.equal(found, expected)


def test_random_features_do_not_notice_the_batch_or_the_threads(random, monkeypatch):
    images = noise(7)
    features, logits = random(images)
    assert features.shape == (7, random.dim) == (7, 128) and logits.shape == (7, 16)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(random(images[3:4])[0][0], features[3])
    assert random(images[:0])[0].shape == (0, 128)
    monkeypatch.setattr(random_conv, "PIXELS", 2 * 32 * 32 + 1)  # two at a time
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(random(images)[0], features)
    finally:
        torch.set_num_threads(threads)


def test_the_random_weights_stay_what_they_were(random, monkeypatch):
    """Their hash is in the code: a torch that draws others must not pass unnoticed."""
    assert random.protocol["weights_sha256"].startswith("fba6e65141889fbe")
    monkeypatch.setattr(random_conv, "SEED", 1)
    with pytest.raises(WeightsError, match="would not compare with earlier ones"):
        load_extractor("random-conv")


def test_random_says_so_everywhere(random):
    assert "not comparable with published figures" in random.name
    assert random.protocol["note"] == "not comparable with published figures"
    assert json.loads(json.dumps(random.protocol)) == random.protocol
    assert isinstance(random, Extractor)


def distance(a, b):
    """The Fréchet distance, from the eigenvalues of the covariances' product."""
    a, b = a.double(), b.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * roots)


def test_random_features_rank_broken_pictures_worse(random):
    """Against another 300 drawings of the same kind, by far more than the chance of a draw."""
    real, fake = drawn(300), drawn(300, start=300)
    chance = torch.Generator().manual_seed(0)
    places = torch.randperm(32 * 32, generator=chance)
    broken = {
        "noise": noise(300),
        "one mode": fake[:1].expand_as(fake),
        "ten modes": fake[:10].repeat(30, 1, 1, 1),
        "shuffled pixels": fake.flatten(2)[:, :, places].reshape(fake.shape),
        "upside down": fake.flip(2),
        "blurred": F.avg_pool2d(fake.float(), 3, 1, 1, count_include_pad=False).byte(),
        "darker": (fake * 0.9).byte(),
    }
    features = random(real)[0]
    good = distance(features, random(fake)[0])
    worse = {name: distance(features, random(images)[0]) / good for name, images in broken.items()}
    assert min(worse.values()) > 2, worse
    assert max(worse, key=worse.get) == "noise"


# --- dinov2 ---


def test_dinov2s_preprocessing_is_pillows_and_imagenets():
    images = noise(2, 50, 70)
    found = DINOV2.apply(images, 224)
    for image, own in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC)
        unit = np.asarray(picture).astype(np.float64) / 255
        expected = (unit - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert np.abs(own.permute(1, 2, 0).double().numpy() - expected).max() <= 1e-5
    assert found.dtype == torch.float32


def test_without_transformers_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails
    with pytest.raises(InputError, match=r"needs transformers.*`pip install 'transformers>="):
        load_extractor("dinov2")


STAND_IN = """
import json, pathlib, types
import torch
from safetensors.torch import load_file

class Dinov2Model(torch.nn.Module):
    @classmethod
    def from_pretrained(cls, folder, *, local_files_only, use_safetensors, dtype, output_loading_info, **_):
        assert local_files_only and use_safetensors and dtype == torch.float32 and output_loading_info
        model = cls()
        model.config = types.SimpleNamespace(**json.loads((pathlib.Path(folder) / "config.json").read_text()))
        state = load_file(pathlib.Path(folder) / "model.safetensors")
        model.weight = torch.nn.Parameter(state.pop("weight"))
        return model, {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": list(state)}

    def forward(self, pixel_values):
        tokens = pixel_values.flatten(2)[:, :, :4].transpose(1, 2) @ self.weight  # [B, 4, D]
        return types.SimpleNamespace(last_hidden_state=tokens)
"""


@pytest.fixture
def transformers(tmp_path, monkeypatch):
    """A stand-in with the calls that the extractor makes, and a folder of its weights."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "transformers.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "dinov2", "hidden_size": 5, "num_hidden_layers": 2, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.arange(15.0).reshape(3, 5)}, folder / "model.safetensors")
    yield folder
    sys.modules.pop("transformers", None)


def test_dinov2_gives_the_class_token(transformers, hub):
    extractor = load_extractor("dinov2", weights=transformers)
    images = noise(3, 20, 20)
    features, logits = extractor(images)
    expected = extractor.preprocess(images)[:, :, 0, 0] @ torch.arange(15.0).reshape(3, 5)
    assert logits is None and features.shape == (3, extractor.dim) == (3, 5)
    assert torch.allclose(features, expected, rtol=0, atol=1e-5)  # sums of three, in two orders
    assert isinstance(extractor, Extractor) and json.dumps(extractor.protocol)
    assert "224 px" in extractor.protocol["resize"] and "(0.485" in extractor.protocol["normalisation"]
    content = {name: (transformers / name).read_bytes() for name in dinov2.FILES}
    hub.add_repo(dinov2.MODEL, content)
    assert load_extractor("dinov2").protocol["weights_sha256"] == extractor.protocol["weights_sha256"]


def test_dinov2_with_other_weights_is_refused(transformers):
    save_file({"weight": torch.ones(3, 5), "head": torch.ones(2)}, transformers / "model.safetensors")
    with pytest.raises(WeightsError, match=r"not DINOv2's weights: 1 tensors .*head"):
        load_extractor("dinov2", weights=transformers)
    (transformers / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        load_extractor("dinov2", weights=transformers)


def test_dinov2_by_transformers_itself(tmp_path):
    """A small model of transformers' own, where that is installed."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**shape)).eval()
    model.save_pretrained(tmp_path)
    extractor = load_extractor("dinov2", weights=tmp_path)
    images = noise(2, 30, 40)
    features, _ = extractor(images)
    with torch.no_grad():
        expected = model(pixel_values=extractor.preprocess(images)).pooler_output
    assert torch.allclose(features, expected, rtol=0, atol=1e-5)  # float32 in two batch sizes
    assert torch.equal(extractor(images[1:])[0][0], features[1])


# --- one's own ---

OWN = """
import torch

class Mean:
    name = "mean colour"
    dim = 3
    protocol = {"resize": "none", "normalisation": "x / 255", "source": "here"}
    logits = None

    def __init__(self, weights="default"):
        self.protocol = {**self.protocol, "weights": weights}

    def preprocess(self, images):
        return images.float() / 255

    def __call__(self, images):
        return self.preprocess(images).mean((2, 3)), self.logits

def make():
    return Mean("made")

def needs(a, b):
    return Mean()

def nothing():
    return None

def fails():
    raise RuntimeError("its own words")

ready = Mean("ready")
number = 3

class Wrong(Mean):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module `own_features`, to which a test may add code."""

    def write(more=""):
        (tmp_path / "own_features.py").write_text(OWN + textwrap.dedent(more))
        sys.modules.pop("own_features", None)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the file changes within a second
    write()
    yield write
    sys.modules.pop("own_features", None)


@pytest.mark.parametrize(
    ("attribute", "weights"), [("Mean", "default"), ("make", "made"), ("ready", "ready")]
)
def test_ones_own_extractor(own, attribute, weights):
    extractor = load_extractor(f"own_features:{attribute}")
    images = noise(4, 5, 6)
    features, logits = extractor(images)
    assert torch.equal(features, images.float().div(255).mean((2, 3))) and logits is None
    assert (extractor.name, extractor.dim) == ("mean colour", 3)
    assert extractor.protocol["weights"] == weights
    assert extractor.protocol["extractor"] == f"own_features:{attribute}"
    assert isinstance(extractor, Extractor) and extractor.to("cpu") is extractor


def test_ones_own_as_an_object_and_with_weights(own):
    assert load_extractor("own_features:Mean", weights="w").protocol["weights"] == "w"
    import own_features

    assert load_extractor(own_features.ready)(noise(1))[0].shape == (1, 3)
    with pytest.raises(InputError, match="takes no weights"):
        load_extractor("own_features:ready", weights="w")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:x", "Python does not find"),
        ("own_features:absent", "the module 'own_features' has no 'absent'"),
        ("own_features:number", "is a int; allowed: an extractor, or a class"),
        ("own_features:needs", "cannot be called with no arguments"),
        ("own_features:nothing", "gives a NoneType that is no extractor: it lacks name, dim, protocol"),
    ],
)
def test_what_is_no_extractor_is_refused(own, spec, message):
    with pytest.raises(InputError, match=message):
        load_extractor(spec)


def test_an_error_in_ones_own_code_stays_what_it_is(own):
    with pytest.raises(RuntimeError, match="its own words"):
        load_extractor("own_features:fails")
    own("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_extractor("own_features:Mean")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Wrong.dim = 0", "the dim of .* is 0; allowed: a whole number from 1"),
        ("Wrong.name = None", "the name of .* is None"),
        ("Wrong.__init__ = lambda self: setattr(self, 'protocol', {})", "says what fixes its numbers"),
        (
            "Wrong.__init__ = lambda self: setattr(self, 'protocol', {'a': torch.ones(1)})",
            "no plain JSON data",
        ),
        (
            "Wrong.__init__ = lambda self: setattr(self, 'protocol', {'a': float('nan')})",
            "no plain JSON data",
        ),
    ],
)
def test_a_protocol_that_cannot_be_kept_is_refused(own, line, message):
    own(line)
    with pytest.raises(InputError, match=message):
        load_extractor("own_features:Wrong")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("torch.ones(2, 3)", r"returns a Tensor; allowed: the pair \(features, logits\)"),
        ("([1], None)", r"features .* are a list; allowed: a tensor float32 \[2, 3\]"),
        ("(torch.ones(2, 4), None)", r"features .* \[2, 4\] .*allowed: float32 \[2, 3\]"),
        ("(torch.ones(1, 3), None)", r"features .* \[1, 3\]"),
        ("(torch.ones(2, 3, 1, 1), None)", r"features .* \[2, 3, 1, 1\]"),
        ("(torch.ones(2, 3).double(), None)", "torch.float64"),
        ("(torch.full((2, 3), float('nan')), None)", "hold NaN"),
        ("(torch.ones(2, 3), torch.ones(3, 10))", r"logits .* \[3, 10\] .*allowed: float32 \[2, K\]"),
    ],
)
def test_wrong_answers_are_refused(own, answer, message):
    own(f"Wrong.__call__ = lambda self, images: {answer}")
    extractor = load_extractor("own_features:Wrong")
    with pytest.raises(InputError, match=message):
        extractor(noise(2))


def test_other_pictures_and_devices_are_refused(own):
    extractor = load_extractor("own_features:Mean")
    with pytest.raises(InputError, match=r"images are .*float32; allowed: \[B, 3, H, W\] of torch.uint8"):
        extractor(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"has no to\(device\), so it cannot move to 'cuda'"):
        extractor.to("cuda")

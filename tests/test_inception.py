"""The FID network and its preprocessing against independent writings of both."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inception_reference import NORM, fixed_images, layout, random_weights, reference
from safetensors.torch import save_file

from stylenat_hub.errors import InputError
from stylenat_hub.metrics.exact import TOGETHER, in_equal_batches
from stylenat_hub.metrics.inception import FIDInception, InceptionExtractor
from stylenat_hub.metrics.resizing import INCEPTION


@pytest.fixture(scope="module")
def state():
    return random_weights()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def extractor(file):
    return InceptionExtractor(file)


# --- the network ---


def test_the_network_is_the_reference_step_by_step(state):
    """In float64, so that nothing but rounding of 1e-16 is between them. Smaller pictures, for speed."""
    network = FIDInception().double()
    double = {name: tensor.double() for name, tensor in state.items()}
    network.load_state_dict(double)
    images = torch.randn(1, 3, 123, 155, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for found, expected in zip(network(images), reference(double, images), strict=True):
            assert expected.std() > 0.01 * expected.abs().max()  # not all the same: the test sees something
            assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_the_layout_is_pytorch_fids():
    network = FIDInception()
    expected = {f"{name}.conv.weight": torch.Size(shape) for name, shape in layout().items()}
    expected |= {f"{n}.bn.{part}": torch.Size(s[:1]) for n, s in layout().items() for part in NORM}
    expected |= {"fc.weight": torch.Size((1008, 2048)), "fc.bias": torch.Size((1008,))}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == expected


def test_the_size_is_the_published_one():
    """Keras states 23,851,784 numbers for Inception-v3: no gains in the norms, and 1000 classes."""
    sizes = {name: tensor.numel() for name, tensor in FIDInception().state_dict().items()}
    gains = sum(size for name, size in sizes.items() if name.endswith("bn.weight"))
    classes = 2048 + 1
    assert sum(sizes.values()) - gains - 8 * classes == 23_851_784
    assert sum(p.numel() for p in FIDInception().parameters()) == 23_850_960


MEAN_POOLS = [f"Mixed_{block}" for block in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b")]


def pooled(name, x):
    """What a block's pooling path makes of the first channel; its convolution passes that on unchanged."""
    block = getattr(FIDInception(), name)
    with torch.no_grad():
        block.branch_pool.conv.weight.zero_()
        block.branch_pool.conv.weight[0, 0] = 1
        outputs = block(x)
    return outputs[0, -block.branch_pool.conv.out_channels] * (1 + 1e-3) ** 0.5  # the norm's epsilon


@pytest.mark.parametrize("name", MEAN_POOLS)
def test_mean_pools_leave_the_padding_out(name):
    """Ones stay ones at the edge; counting the padding gives 2/3 there and 4/9 in a corner."""
    incoming = getattr(FIDInception(), name).branch_pool.conv.in_channels
    found = pooled(name, torch.ones(1, incoming, 5, 6))
    assert torch.allclose(found, torch.ones(5, 6), rtol=0, atol=1e-6)
    peak = torch.zeros(1, incoming, 5, 6)
    peak[0, 0, 2, 2] = 9
    expected = torch.zeros(5, 6)
    expected[1:4, 1:4] = 1
    assert torch.allclose(pooled(name, peak), expected, rtol=0, atol=1e-6)


def test_the_last_block_pools_by_the_maximum():
    peak = torch.zeros(1, 2048, 5, 6)
    peak[0, 0, 2, 2] = 9
    expected = torch.zeros(5, 6)
    expected[1:4, 1:4] = 9
    assert torch.allclose(pooled("Mixed_7c", peak), expected, rtol=0, atol=1e-5)


# --- preprocessing ---


def linear_matrix(size, side, centred, fused=False):
    """[side, size]: what each new pixel takes of the old ones. The places are float32, as both tools compute
    them; everything else is float64. fused: the place is rounded once, as processors do that multiply and
    subtract in one step."""
    scale = np.float32(size) / np.float32(side)
    place = np.arange(side, dtype=np.float32)
    if centred and fused:
        place = ((place + 0.5).astype(np.float64) * scale - 0.5).astype(np.float32)
    elif centred:
        place = (place + np.float32(0.5)) * scale - np.float32(0.5)
    else:
        place = place * scale
    place = np.maximum(place, 0)
    low = np.minimum(np.floor(place).astype(int), size - 1)
    share = place.astype(np.float64) - low
    matrix = np.zeros((side, size))
    matrix[np.arange(side), low] += 1 - share
    matrix[np.arange(side), np.minimum(low + 1, size - 1)] += share
    return matrix


def cubic_matrix(size, side):
    """Pillow's bicubic filter (a = -0.5), stretched when it shrinks, from its definition."""

    def cubic(x):
        x, a = np.abs(x), -0.5
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))

    stretch = max(size / side, 1)
    centres = (np.arange(side) + 0.5) * size / side
    matrix = np.zeros((side, size))
    for row, centre in enumerate(centres):
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), size)
        weights = cubic((np.arange(first, last) + 0.5 - centre) / stretch)
        matrix[row, first:last] = weights / weights.sum()
    return matrix


EXPECTED = {
    "pytorch-fid": (lambda size, fused: linear_matrix(size, 299, True, fused), lambda x: 2 * x / 255 - 1),
    "torch-fidelity": (lambda size, _: linear_matrix(size, 299, False), lambda x: (x - 128) / 128),
    "clean": (lambda size, _: cubic_matrix(size, 299), lambda x: (x - 128) / 128),
}


@pytest.mark.parametrize("side", [(32, 32), (256, 256), (299, 299), (1024, 1024), (61, 150)], ids=str)
@pytest.mark.parametrize("resize", EXPECTED)
def test_preprocessing_is_the_tools(resize, side):
    """To 1e-5 in the network's range from -1 to 1, over smooth pictures, noise and stripes.

    The processor decides how torch rounds a place, which is 1.5e-5 of noise at 1024 px: either is right.
    """
    images = fixed_images(*side)
    matrix, normalised = EXPECTED[resize]
    found = INCEPTION[resize].apply(images, 299)
    assert found.dtype == torch.float32
    errors = []
    for fused in (False, True):
        expected = matrix(side[0], fused) @ images.double().numpy() @ matrix(side[1], fused).T
        errors.append(np.abs(found.double().numpy() - normalised(expected)).max())
    assert min(errors) <= 1e-5


def test_pytorch_fids_preprocessing_is_its_own_calls_to_the_bit(extractor):
    images = fixed_images(64, 48)
    unit = images.float().div(255)  # torchvision's ToTensor
    expected = 2 * F.interpolate(unit, size=(299, 299), mode="bilinear", align_corners=False) - 1
    assert torch.equal(extractor.preprocess(images), expected)


def test_the_resizes_differ():
    """By far more than the tolerance above, so that none can stand for another."""
    images = fixed_images(64, 64)
    ways = [INCEPTION[resize].apply(images, 299) for resize in EXPECTED]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(ways) for b in ways[:i])


# --- the extractor ---


def test_features_and_logits(extractor, state):
    images = fixed_images(40, 52)[:1]
    features, logits = extractor(images)
    assert features.shape == (1, extractor.dim) == (1, 2048) and logits.shape == (1, 1008)
    assert features.dtype == logits.dtype == torch.float32
    with torch.no_grad():
        expected = reference(state, 2 * F.interpolate(images / 255, size=(299, 299), mode="bilinear") - 1)
    for found, wanted in zip((features, logits), expected, strict=True):
        # Two orders of 94 layers' float32 sums; the error of either against float64 is about 2e-6.
        assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_neither_the_batch_nor_the_place_in_it_changes_a_bit(extractor):
    images = fixed_images(24, 24)
    whole = extractor(images)
    for number in range(3):
        for found, expected in zip(extractor(images[number : number + 1]), whole, strict=True):
            assert torch.equal(found[0], expected[number])
    assert [tuple(part.shape) for part in extractor(images[:0])] == [(0, 2048), (0, 1008)]


def test_on_an_accelerator_all_batches_have_one_size():
    """There the network always gets as many pictures, and what fills up is cut off again."""
    seen = []

    def network(x):
        seen.append(len(x))
        return x.flatten(1), None

    images = torch.arange(2 * (TOGETHER + 3)).reshape(-1, 2, 1, 1).float()
    features, logits = in_equal_batches(network, lambda x: x, images, torch.device("cuda"))
    assert seen == [TOGETHER, TOGETHER] and logits is None
    assert torch.equal(features, images.flatten(1))


def test_autocast_of_the_caller_changes_nothing(extractor):
    images = fixed_images(24, 24)[:1]
    expected = extractor(images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(images)[0], expected)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8).byte(), [1]],
)
def test_other_pictures_are_refused(extractor, images):
    with pytest.raises(InputError, match=r"allowed: .*uint8"):
        extractor(images)


def test_the_protocol_says_what_fixes_the_numbers(file, extractor):
    protocol = json.loads(json.dumps(extractor.protocol))
    assert protocol["preprocessing"] == "pytorch-fid" and "299 px" in protocol["resize"]
    assert "2 * (x / 255) - 1" in protocol["normalisation"]
    assert len(protocol["weights_sha256"]) == 64
    assert protocol["weights_sha256"] not in json.dumps(dict(extractor.weights_file))
    other = InceptionExtractor(file, resize="clean").protocol
    assert other != protocol and other["weights_sha256"] == protocol["weights_sha256"]
    with pytest.raises(InputError, match="allowed for inception: pytorch-fid, torch-fidelity, clean"):
        InceptionExtractor(file, resize="lanczos")

"""StyleNAT against tensors recorded from the original code, for all three layouts of its checkpoints.

Tolerances are those of the recordings (tests/goldens/README.md): float32 sums in another order.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conversion.containers import read_checkpoint
from stylenat_hub import StyleNATConfig, StyleNATGenerator, create_model
from stylenat_hub.errors import ConfigError, InputError
from stylenat_hub.layers import style, transformer
from stylenat_hub.layers.resample import upsample_fir
from stylenat_hub.models.stylenat.config import partition_heads
from stylenat_hub.models.stylenat.keys import convert_state_dict, infer_config

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["stylenat_legacy_ffhq_style_64", "stylenat_hydra_church_style_64", "stylenat_mixed_first_public_32"]


@functools.cache
def original(name):
    container = read_checkpoint(GOLDENS / f"{name}.pt")
    return container.network("g_ema"), container.args


@functools.cache
def recorded(name):
    path = GOLDENS / f"{name}.io.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["meta"])


def generator_of(name, dtype=torch.float32):
    state, args = original(name)
    generator = StyleNATGenerator(infer_config(state, args=args))
    missing, unexpected = generator.load_state_dict(convert_state_dict(state), strict=False)
    assert (missing, unexpected) == (["w_avg"], [])
    return generator.to(dtype).eval()


def our_names(state):
    """Original parameter name -> ours, found by sending a different number through every tensor."""
    floats = [key for key, value in state.items() if value.is_floating_point() and not key.endswith("kernel")]
    numbered = {**state, **{key: torch.full_like(state[key], i) for i, key in enumerate(floats)}}
    return {floats[int(value.flatten()[0])]: key for key, value in convert_state_dict(numbered).items()}


def assert_within(actual, wanted, atol):
    torch.testing.assert_close(actual.to(wanted.dtype), wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_the_forward_pass(name):
    io, _ = recorded(name)
    generator = generator_of(name)
    seen = {}

    def keep(key):
        return lambda module, inputs, output: seen.__setitem__(key, output)

    for i, level in enumerate(generator.levels):
        for j, block in enumerate(level.blocks):
            block.register_forward_hook(keep(f"block.{i}.{j}"))
        if level.upsample is not None:
            level.upsample.register_forward_hook(keep(f"feat.{i}"))
    with torch.no_grad():
        ws = generator.mapping(io["z"])
        image = generator.synthesis(ws)
    assert_within(ws, io["w"][:, None].expand_as(ws), 1e-5)
    assert_within(image, io["image"], 5e-5)
    steps = [key for key in io if key.startswith(("block.", "feat."))]
    assert len(steps) >= 3 * len(generator.levels) - 1
    for key in steps:
        ours = seen[key][:1]
        thinned = ours.shape[1] != io[key].shape[1]  # every 7th token is kept of the large grids
        assert_within(ours[:, ::7] if thinned else ours, io[key], 5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_rgb(name):
    """The picture after each level: what the RGB branches have summed up so far."""
    io, _ = recorded(name)
    generator = generator_of(name)
    sums = []
    for to_rgb in generator.to_rgb:
        to_rgb.register_forward_hook(lambda module, inputs, output: sums.append(output))
    with torch.no_grad():
        generator(io["z"])
    running = sums[0]
    for i, part in enumerate(sums[1:], start=1):
        assert_within(running, io[f"rgb.{i - 1}"], 5e-5)
        running = part + (upsample_fir(running) if part.shape != running.shape else running)
    assert_within(running, io["image"], 5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float64_image(name):
    """In float64 only the recording's own rounding is left: it shows even a wrong LayerNorm epsilon."""
    io, _ = recorded(name)
    with torch.no_grad():
        image = generator_of(name, torch.float64)(io["z"].double())
    assert_within(image, io["image"].double(), 2e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient-checkpointing"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, checkpointing):
    io, meta = recorded(name)
    generator = generator_of(name)
    if checkpointing:
        generator.enable_gradient_checkpointing()
    z = io["z"].clone().requires_grad_()
    loss = (generator(z) * io["upstream"]).sum()
    loss.backward()
    torch.testing.assert_close(loss.detach(), io["loss"][0], rtol=1e-5, atol=1e-3)  # a sum of 49,152 terms
    assert_within(z.grad, io["grad_z"], 1e-4 * io["grad_z"].abs().max())
    names, parameters = our_names(original(name)[0]), dict(generator.named_parameters())
    assert len(meta["grads"]) >= 5
    for key in meta["grads"]:
        wanted = io[f"grad.{key}"]
        assert_within(parameters[names[key]].grad, wanted, 1e-4 * wanted.abs().max())


@pytest.mark.parametrize("preset", ["ffhq-256", "ffhq-1024", "church-256"])
def test_full_size_shapes(preset):
    """The published models tensor by tensor: what the original would save is what the preset has."""
    original = json.loads((GOLDENS / "full_size_shapes.json").read_text())[preset]
    constants = ("relative_position_index", "_float_tensor", "upsample.kernel")
    shapes = {key: shape for key, shape in original["tensors"].items() if not key.endswith(constants)}
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    config = StyleNATConfig.preset(preset)
    assert infer_config(state, preset=preset) == config
    with torch.device("meta"):
        generator = StyleNATGenerator(config)
    ours = {key: value.shape for key, value in generator.state_dict().items() if key != "w_avg"}
    assert {key: value.shape for key, value in convert_state_dict(state).items()} == ours
    assert sum(p.numel() for p in generator.parameters()) == original["parameters"]


def test_partitions_are_cut_as_in_the_original():
    assert partition_heads(8, 3) == (2, 3, 3)
    assert partition_heads(8, 5) == (1, 1, 2, 2, 2)
    assert partition_heads(16, 4) == (4, 4, 4, 4)


def test_initialisation_follows_the_seed_and_the_original():
    torch.manual_seed(7)
    first = create_model("stylenat-tiny").state_dict()
    torch.manual_seed(7)
    second = create_model("stylenat-tiny").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first if key != "w_avg")
    torch.manual_seed(8)
    other = create_model("stylenat-tiny").state_dict()
    assert not torch.equal(first["constant"], other["constant"])
    # means and spreads that the original starts from
    wide = StyleNATGenerator(StyleNATConfig.preset("tiny", channels=(256, 256, 256, 256)))
    spreads = {
        "mapping_network.layers.1.weight": 100,
        "constant": 1,
        "levels.1.blocks.0.norm1.style.weight": 1,
        "levels.1.blocks.0.attn.qkv.weight": 0.02,
        "levels.1.blocks.0.attn.rpb.0": 0.02,
        "levels.1.upsample.proj.weight": 0.02,
        "to_rgb.1.conv.weight": 0.02 * (2 / (256 + 3)) ** 0.5,
    }
    state = wide.state_dict()
    for key, spread in spreads.items():
        assert state[key].std().item() == pytest.approx(spread, rel=0.1), key
    zero = [key for key in state if key.endswith(".bias") or key.endswith("alpha")]
    assert all(not state[key].any() for key in zero if ".norm.bias" not in key)


def tiny(**overrides):
    torch.manual_seed(0)
    generator = StyleNATGenerator(StyleNATConfig.preset("tiny", **overrides)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():  # at initialisation the styles hardly show in the picture
            parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


def test_truncation():
    generator = tiny()
    z = torch.randn(3, generator.z_dim)
    generator.w_avg.copy_(generator.mapping(torch.randn(500, generator.z_dim))[:, 0].mean(0).detach())
    with torch.no_grad():
        plain, mean = generator(z), generator(z, truncation_psi=0)
        torch.testing.assert_close(mean[0], mean[1])
        assert not torch.allclose(plain[0], plain[1], atol=1e-2)
        ws = generator.mapping(z)
        half = generator.truncate(ws, 0.5)
        torch.testing.assert_close(half, (ws + generator.w_avg) / 2)
        coarse = generator.truncate(ws, 0.5, cutoff=2)
        assert torch.equal(coarse[:, 2:], ws[:, 2:])
        assert torch.equal(coarse[:, :2], half[:, :2])
        assert torch.equal(generator(z, truncation_psi=0.5, truncation_cutoff=0), plain)


def test_truncation_without_a_mean_style_says_so():
    generator = tiny()
    with pytest.raises(InputError, match="does not know its mean style"):
        generator(torch.randn(1, generator.z_dim), truncation_psi=0.7)
    with pytest.raises(InputError, match="truncation_cutoff is 99; allowed: a whole number from 0 to 8"):
        generator(torch.randn(1, generator.z_dim), truncation_cutoff=99)


def test_styles_act_on_their_own_levels():
    """Changing the last style must change the last block alone."""
    generator = tiny()
    ws = generator.mapping(torch.randn(1, generator.z_dim)).clone()
    other = generator.mapping(torch.randn(1, generator.z_dim))
    seen = []
    generator.levels[-1].blocks[0].register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        before = generator.synthesis(ws)
        ws[:, -1] = other[:, -1]
        after = generator.synthesis(ws)
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(before, after, atol=1e-3)


def test_inference_in_parts_is_the_same_network(monkeypatch):
    """Without gradients a CPU works on some tokens at a time; the picture is the plain formulation."""
    generator = tiny().double()
    z = torch.randn(2, generator.z_dim, dtype=torch.float64)
    wanted = generator(z).detach()
    monkeypatch.setattr(style, "PART", 100)
    monkeypatch.setattr(transformer, "PART_BYTES", 5000)  # divides no level
    with torch.no_grad():
        torch.testing.assert_close(generator(z), wanted, rtol=0, atol=1e-10)


def test_to_rgb01_undoes_the_normalisation_of_the_training_images():
    generator = tiny()
    picture = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (picture - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    kept = normalised.clone()
    torch.testing.assert_close(generator.to_rgb01(normalised), picture)
    assert torch.equal(normalised, kept)  # out of place
    assert generator.to_rgb01(100 * normalised).max() <= 1


def test_half_precision_pictures_are_close():
    generator = tiny()
    z = torch.randn(2, generator.z_dim)
    with torch.no_grad():
        wanted = generator.to_rgb01(generator(z))
        for dtype, tolerance in [(torch.bfloat16, 0.03), (torch.float16, 0.006)]:
            image = generator.to(dtype).to_rgb01(generator(z.to(dtype)))
            assert image.dtype == dtype
            assert (image.float() - wanted).abs().mean() < tolerance


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("resolution", 48, "StyleNATConfig.resolution is 48; allowed: a power of two"),
        ("resolution", 4, "a power of two from 8 to 4096"),
        ("channels", (32, 32, 32), "4 entries, one per level from 4 to 32 px"),
        ("channels", (32, 32, 32, 18), r"multiple of 4 from 8 to 65536, at level 3 \(32 px\), not 18"),
        ("num_heads", (4, 4, 4, 5), r"divisor of 16 channels at level 3 \(32 px\), not 5"),
        ("kernel_sizes", ((3,), (6,), (7, 7), (7, 7, 7)), r"odd numbers from 3 at level 1 \(8 px\), not 6"),
        ("dilations", ((1,), (2,), (1, 2), (1, 2, 4)), r"kernel \* dilation at most 8 at level 1 .* = 14"),
        ("dilations", ((1,), (1,), (1, 2, 1), (1, 2, 4)), "as many entries as dilations"),
        ("dilations", ((2,), (1,), (1, 2), (1, 2, 4)), r"\(1,\) at the 4 px level"),
        ("z_dim", 0, "StyleNATConfig.z_dim is 0; allowed: a whole number"),
        ("image_std", (1, 1), "three numbers"),
        ("image_std", (1, 1, 0), "three numbers above 0"),
        ("image_mean", (float("nan"), 0, 0), "image_mean is .*; allowed: three numbers"),
        ("image_mean", (10**400, 0, 0), "three numbers"),
        ("mapping_layers", 10**9, "a whole number from 1 to 64"),
        ("channels", (10**9,) * 4, "from 8 to 65536|multiple of 4"),
        ("mlp_ratio", 1e300, "a number above 0, at most 64"),
        ("mlp_ratio", True, "a number above 0"),
        ("mlp_ratio", 1e-9, "enough for one hidden channel"),
        ("qkv_bias", "no", "true or false"),
        ("depth", 3, "does not know the key"),
    ],
)
def test_bad_configs_name_field_value_and_what_is_allowed(field, value, message):
    with pytest.raises(ConfigError, match=message):
        StyleNATConfig.preset("tiny", **{field: value})


def test_more_partitions_than_heads_are_refused():
    with pytest.raises(ConfigError, match=r"at most 2 partitions at level 3 \(32 px\)"):
        StyleNATConfig.preset("tiny", num_heads=(4, 4, 4, 2))


@pytest.mark.parametrize("shape", [(1, 31), (32,), (1, 1, 32)])
def test_a_latent_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(InputError, match=r"this model needs \[batch, 32\]"):
        tiny()(torch.zeros(shape))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_gpu_agrees_with_the_recordings(name):
    io, _ = recorded(name)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        image = generator_of(name).cuda()(io["z"].cuda()).cpu()
    assert_within(image, io["image"], 1e-4)  # other kernels, other order of sums

"""StyleSwin against tensors recorded from the original code, and against what its windows must do.

Tolerances are those of the recordings (tests/goldens/README.md): float32 sums in another order.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from conversion.containers import read_checkpoint
from conversion.convert import convert
from stylenat_hub import GANPipeline, StyleSwinConfig, StyleSwinGenerator, benchmark, create_model
from stylenat_hub.errors import ConfigError, InputError
from stylenat_hub.layers.resample import upsample_fir
from stylenat_hub.models.discriminator import WaveletDiscriminator
from stylenat_hub.models.discriminator_keys import convert_discriminator
from stylenat_hub.models.styleswin import generator as styleswin
from stylenat_hub.models.styleswin.keys import _our_table, convert_state_dict, infer_config
from training.ema import ema_decay
from training.recipes import Recipe

GOLDENS = Path(__file__).parent / "goldens"
NAME = "styleswin_ffhq_style_64"


@functools.cache
def checkpoint():
    return read_checkpoint(GOLDENS / f"{NAME}.pt")


@functools.cache
def recorded():
    path = GOLDENS / f"{NAME}.io.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["meta"])


@pytest.fixture
def state():
    return dict(checkpoint().network("g_ema"))


def generator(dtype=torch.float32):
    state = checkpoint().network("g_ema")
    generator = StyleSwinGenerator(infer_config(state, args=checkpoint().args))
    missing, unexpected = generator.load_state_dict(convert_state_dict(state), strict=False)
    assert (missing, unexpected) == (["w_avg"], [])
    return generator.to(dtype).eval()


def our_names(state):
    """Original parameter name -> ours, found by sending a different number through every tensor."""
    buffers = ("kernel", "attn_mask2", "_float_tensor")
    floats = [key for key, value in state.items() if value.is_floating_point() and not key.endswith(buffers)]
    numbered = {**state, **{key: torch.full_like(state[key], i) for i, key in enumerate(floats)}}
    return {floats[int(value.flatten()[0])]: key for key, value in convert_state_dict(numbered).items()}


def assert_within(actual, wanted, atol):
    torch.testing.assert_close(actual.to(wanted.dtype), wanted, atol=atol, rtol=0)


def test_every_step_of_the_forward_pass():
    io, meta = recorded()
    model, seen = generator(), {}

    def keep(key):
        return lambda module, inputs, output: seen.__setitem__(key, output)

    for i, level in enumerate(model.levels):
        for j, block in enumerate(level.blocks):
            block.register_forward_hook(keep(f"block.{i}.{j}"))
        if level.upsample is not None:
            level.upsample.register_forward_hook(keep(f"feat.{i}"))
    with torch.no_grad():
        ws = model.mapping(io["z"])
        image = model.synthesis(ws)
    assert_within(ws, io["w"][:, None].expand_as(ws), 1e-5)
    assert_within(image, io["image"], 5e-5)
    steps = [key for key in io if key.startswith(("block.", "feat."))]
    assert len(steps) == 3 * len(model.levels) - 1
    for key in steps:
        ours = seen[key][:1]
        thinned = ours.shape[1] != io[key].shape[1]  # every 7th token is kept of the large grids
        assert_within(ours[:, ::7] if thinned else ours, io[key], 5e-5)
    assert [row["window"] for row in model.level_rows()] == meta["window_sizes"]
    assert [row["shift"] for row in model.level_rows()] == meta["shift_sizes"]


def test_every_rgb():
    """The picture after each level: what the RGB branches have summed up so far."""
    io, _ = recorded()
    model, sums = generator(), []
    for to_rgb in model.to_rgb:
        to_rgb.register_forward_hook(lambda module, inputs, output: sums.append(output))
    with torch.no_grad():
        model(io["z"])
    running = sums[0]
    for i, part in enumerate(sums[1:]):
        wanted = io[f"rgb.{i}"]
        assert_within(running[: len(wanted)], wanted, 5e-5)
        running = part + (upsample_fir(running) if part.shape != running.shape else running)
    assert_within(running, io["image"], 5e-5)


def test_float64_image():
    """In float64 only the recording's own rounding is left: it shows even a wrong LayerNorm epsilon."""
    io, _ = recorded()
    with torch.no_grad():
        assert_within(generator(torch.float64)(io["z"].double()), io["image"].double(), 2e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient-checkpointing"])
def test_gradients(checkpointing, state):
    io, meta = recorded()
    model = generator()
    if checkpointing:
        model.enable_gradient_checkpointing()
    z = io["z"].clone().requires_grad_()
    loss = (model(z) * io["upstream"]).sum()
    loss.backward()
    torch.testing.assert_close(loss.detach(), io["loss"][0], rtol=1e-5, atol=1e-3)  # a sum of 49,152 terms
    assert_within(z.grad, io["grad_z"], 1e-4 * io["grad_z"].abs().max())
    names, parameters = our_names(state), dict(model.named_parameters())
    assert sum("bias_table" in key for key in meta["grads"]) == 3
    for key in meta["grads"]:
        wanted = io[f"grad.{key}"]
        wanted = _our_table(wanted, key) if "bias_table" in key else wanted
        assert_within(parameters[names[key]].grad, wanted, 1e-4 * wanted.abs().max())


def test_discriminator():
    io, _ = recorded()
    discriminator, seen = convert_discriminator(checkpoint().network("d")), {}
    for i, scale in enumerate(discriminator.scales):
        scale.register_forward_hook(lambda m, inputs, out, i=i: seen.__setitem__(f"d_conv.{i}", out[:1]))
    with torch.no_grad():
        assert_within(discriminator(io["d_input"]), io["d_logits_eval"], 2e-6)
        for key, value in seen.items():
            assert_within(value, io[key], 5e-6)
        # one power iteration, then the logits
        assert_within(discriminator.train()(io["d_input"]), io["d_logits_train"], 2e-6)
    assert_within(discriminator.from_rgb[0].u, io["d_after_train.from_rgbs.0.conv.0.weight_u"], 1e-6)


def test_the_recorded_checkpoint_converts_to_the_recorded_picture(tmp_path):
    io, _ = recorded()
    report = convert(GOLDENS / f"{NAME}.pt", tmp_path / "out")
    assert (report.family, report.discriminator) == ("styleswin", True)
    model = GANPipeline.from_pretrained(tmp_path / "out").generator.eval()
    judge = WaveletDiscriminator.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        assert_within(model(io["z"]), io["image"], 5e-5)
        assert_within(judge(io["d_input"]), io["d_logits_eval"], 2e-6)
    with pytest.raises(ConfigError, match="tensors say resolution 64, but the preset 'ffhq-256' says 256"):
        convert(GOLDENS / f"{NAME}.pt", tmp_path / "two", preset="styleswin-ffhq-256")
    assert report.parameters == 255_210 and "32 4 8 4" in " ".join(str(report).split())


def qkv_of(queries_keys, values):
    """q = k, and v, each [H, W, n, D] -> [1, H, W, 3, n, D]."""
    return torch.stack([queries_keys, queries_keys, values], dim=2)[None]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20)])
def test_exact_probe(height, width, shift):
    """q = k = 0 and one-hot values: each output is 1/n for the n tokens that a query sees, else 0."""
    side, tokens = 4, height * width
    values = torch.eye(tokens, dtype=torch.float64).view(height, width, 1, tokens)
    table = torch.zeros(1, 7, 7, dtype=torch.float64)
    out = styleswin.window_attention(qkv_of(torch.zeros_like(values), values), table, shift)
    seen = out.view(tokens, tokens)
    # tokens of one window, on one side of the seam, said in another way: borders at the multiples of the side
    # plus the shift, and at the ends
    row, column = (torch.arange(n).sub(shift).div(side, rounding_mode="floor") for n in (height, width))
    row, column = row[:, None].expand(height, width).flatten(), column.expand(height, width).flatten()
    together = (row[:, None] == row) & (column[:, None] == column)
    wanted = together.double() / together.sum(1, keepdim=True)
    assert {16} == set(together.sum(1).tolist()) if not shift else {4, 8, 16} == set(together.sum(1).tolist())
    assert torch.equal(seen[together], wanted[together])
    # the original adds -100, so the other side of the seam has a weight of exp(-100) / n and no more
    assert seen[~together].abs().max() <= torch.tensor(-100.0, dtype=torch.float64).exp() / 4


def test_each_bias_belongs_to_its_offset():
    """A table that is large at one offset, height first, makes each query copy the token that lies there."""
    side, (down, right) = 4, (1, -2)
    values = torch.arange(64.0).view(8, 8, 1, 1)
    table = torch.zeros(1, 7, 7)
    table[0, down + side - 1, right + side - 1] = 200
    out = styleswin.window_attention(qkv_of(torch.zeros_like(values), values), table)[0, :, :, 0, 0]
    for row in range(8):
        for column in range(8):
            if row % side + down < side and column % side + right >= 0:
                assert out[row, column] == values[row + down, column + right]


def test_large_logits_stay_finite():
    q = 1e4 * torch.randn(8, 8, 2, 4)
    out = styleswin.window_attention(qkv_of(q, torch.randn(8, 8, 2, 4)), torch.randn(2, 7, 7), 2)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_at_a_time_change_nothing(shift, monkeypatch):
    """Few windows per call, forward and backward, are all windows; no call has more problems than allowed."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 12, 20, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(2, 7, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 12, 20, 2, 8, dtype=torch.float64)
    calls, attend = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *rest, **k: calls.append(len(q)) or attend(q, *rest, **k)
    )
    results = []
    for limits in ({}, {"MAX_PROBLEMS": 7}, {"CHUNK_BYTES": {"cpu": 20_000}}, {"CHUNK_BYTES": {"cpu": 1}}):
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(styleswin, name, value)
            out = styleswin.window_attention(qkv, table, shift)
        results.append((out, *torch.autograd.grad((out * upstream).sum(), (qkv, table))))
        assert sum(calls) == 2 * 3 * 5
        if limits:  # at most 3 windows of 2 heads, of 10,240 bytes: 1 window
            assert max(calls) <= (3 if "MAX_PROBLEMS" in limits else 1)
        calls.clear()
    for result in results[1:]:
        for one, whole in zip(result, results[0], strict=True):
            torch.testing.assert_close(one, whole, rtol=0, atol=1e-12)  # sums in another order


def test_half_precision_pictures_are_close():
    io, _ = recorded()
    with torch.no_grad():
        model = generator()
        wanted = model.to_rgb01(model(io["z"]))
        for dtype, tolerance in [(torch.bfloat16, 0.03), (torch.float16, 0.006)]:
            image = model.to(dtype).to_rgb01(model(io["z"].to(dtype)))
            assert image.dtype == dtype
            assert (image.float() - wanted).abs().mean() < tolerance


def test_initialisation_follows_the_original():
    torch.manual_seed(7)
    state = create_model("styleswin-tiny", channels=(256, 256, 256, 256)).state_dict()
    spreads = {"mapping_network.layers.1.weight": 100, "levels.2.blocks.0.attn.rpb.1": 0.02, "constant": 1}
    for key, spread in spreads.items():
        assert state[key].std().item() == pytest.approx(spread, rel=0.1), key


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("resolution", 48, "StyleSwinConfig.resolution is 48; allowed: a power of two"),
        ("channels", (32, 32, 32, 18), r"multiple of 4 from 8 to 65536, at level 3 \(32 px\), not 18"),
        ("num_heads", (4, 4, 4, 1), r"even divisor of 16 channels at level 3 \(32 px\), not 1"),
        ("window_sizes", (4, 8, 3, 8), r"divisor of 16 from 2 to 64 at level 2 \(16 px\), not 3"),
        ("window_sizes", (4, 8, 8), "4 entries, one per level from 4 to 32 px"),
        ("mlp_ratio", 1e-9, "enough for one hidden channel"),
        ("depth", 3, "does not know the key"),
    ],
)
def test_bad_configs_name_field_value_and_what_is_allowed(field, value, message):
    with pytest.raises(ConfigError, match=message):
        StyleSwinConfig.preset("tiny", **{field: value})


def test_styles_of_the_wrong_shape_are_refused():
    with pytest.raises(InputError, match=r"this model needs \[batch, 8, 32\]"):
        create_model("styleswin-tiny").synthesis(torch.zeros(1, 7, 32))


@pytest.mark.parametrize(
    ("preset", "batch", "steps", "decay_step", "r1", "bcr", "flip"),
    [
        ("ffhq-256", 32, 1_000_000, 775_000, 10, 10, False),
        ("ffhq-1024", 16, 800_000, 600_000, 10, 0, False),
        ("celebahq-256", 32, 800_000, 500_000, 5, 10, False),
        ("celebahq-1024", 16, 800_000, None, 10, 0, False),
        ("church-256", 32, 1_500_000, 1_300_000, 5, 0, True),
    ],
)
def test_the_papers_recipes(preset, batch, steps, decay_step, r1, bcr, flip):
    recipe = Recipe.preset(f"styleswin-{preset}")
    assert (recipe.family, recipe.shape, recipe.flip) == ("styleswin", preset, flip)
    assert (recipe.batch, recipe.images, recipe.r1) == (batch, batch * steps, r1)
    assert recipe.decay_start == (decay_step and batch * decay_step)
    assert (recipe.bcr_real, recipe.bcr_fake, recipe.d_lr, recipe.g_lr) == (bcr, bcr, 2e-4, 2e-4 / 4)
    assert ema_decay(batch, recipe.ema_half_life) == pytest.approx(0.5 ** (32 / 10_000))


@pytest.mark.gpu
def test_gpu_agrees_with_the_recording():
    io, _ = recorded()
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        image = generator().cuda()(io["z"].cuda()).cpu()
    assert_within(image, io["image"], 1e-4)  # other kernels, other order of sums


@pytest.mark.gpu
def test_gpu_takes_more_windows_than_its_grid():
    """A batch of 4 at 1024 px: 65,536 windows with 2 heads each."""
    qkv = torch.randn(4, 1024, 1024, 3, 2, 4, device="cuda", requires_grad=True)
    table = torch.zeros(2, 15, 15, device="cuda", requires_grad=True)
    out = styleswin.window_attention(qkv, table, 4)
    out.square().sum().backward()
    alone = styleswin.window_attention(qkv[3:, :].detach(), table.detach(), 4)
    assert_within(out[3:].detach(), alone, 1e-5)
    assert torch.isfinite(qkv.grad).all() and table.grad.abs().sum() > 0


def test_benchmark_has_no_gather_formulation_to_measure():
    result = benchmark.benchmark("styleswin-tiny", repeats=1)
    assert set(result["seconds"]) == {"tiled", "matrix_products"}
    assert "gather_over_tiled" not in result and "--no-gather" not in result["command"]
    assert "attention_share" not in result and "attention " not in benchmark.table(result).splitlines()[0]

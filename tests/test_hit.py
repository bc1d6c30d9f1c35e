"""HiT beyond the recordings: its sizes, exact probes of its attention, its statistics, configs and keys."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hit_recordings import error, full_size, recorded, small_generator

from stylenat_hub import GANPipeline, HiTConfig, HiTDiscriminator, HiTDiscriminatorConfig, HiTGenerator
from stylenat_hub.errors import ConfigError, InputError
from stylenat_hub.models.hit import blocks, norm
from stylenat_hub.models.hit import generator as parts
from stylenat_hub.summary import describe

# arXiv 2106.07631 and the released code, counted by the original code
SIZES = {
    "s-256": 34_727_078,
    "s-256-38m": 38_013_382,
    "b-256": 46_217_670,
    "l-256": 97_462_214,
    "b-1024": 88_216_300,
    "imagenet-128-code": 32_866_627,
    "imagenet-128": 67_602_435,
}
DISCRIMINATOR_SIZES = {
    "imagenet-128": 23_880_833,
    "b-256": 23_998_017,
    "256-wide": 28_862_593,
    "b-1024": 24_033_937,
}
TABLES = {
    "s-256": "S256",
    "b-256": "B256",
    "l-256": "L256",
    "b-1024": "B1024",
    "imagenet-128": "paper128",
    "imagenet-128-code": "code128",
}


def tiny(**fields):
    torch.manual_seed(0)
    generator = HiTGenerator(HiTConfig.preset("tiny", **fields)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def counted(cls, preset):
    with torch.device("meta"):
        return sum(p.numel() for p in cls(cls.config_class.preset(preset)).parameters())


def test_sizes_are_the_originals():
    assert {name: counted(HiTGenerator, name) for name in SIZES} == SIZES
    assert set(HiTConfig.presets) == {*SIZES, "tiny"}
    assert {name: counted(HiTDiscriminator, name) for name in DISCRIMINATOR_SIZES} == DISCRIMINATOR_SIZES


def test_presets_are_the_original_tables():
    fields = {
        "depths": "num_layers",
        "channels": "channel_dims",
        "num_heads": "num_heads",
        "block_sizes": "patch_sizes",
    }
    for preset, name in TABLES.items():
        config, facts = HiTConfig.preset(preset), full_size()[name]
        assert {ours: list(getattr(config, ours)) for ours in fields} == {
            ours: facts["table"][theirs] for ours, theirs in fields.items()
        }
        assert config.z_dim == config.w_dim == facts["latent_dim"]


def test_the_first_heads_look_within_a_block_and_the_others_across():
    """q = 0 makes every weight equal: a head's output is the mean of the values that it sees, one head each
    a different multiple of them."""
    attention = blocks.MultiAxisAttention(8, 4, multi_query=True).double()
    with torch.no_grad():
        for layer in (attention.query, attention.value, attention.proj):
            layer.weight.zero_()
        attention.value.weight[:, :2] = torch.eye(2)
        attention.proj.weight.copy_(torch.eye(8))
        x = torch.zeros(1, 3, 5, 8, dtype=torch.float64)
        x[..., 0] = torch.tensor([1.0, 10.0, 100.0])[:, None]  # the block
        x[..., 1] = torch.arange(5.0)  # the place
        out = attention(x).unflatten(3, (4, 2))
    for head in (0, 1):  # over the places of a block
        torch.testing.assert_close(out[..., head, 0], x[..., 0], rtol=0, atol=1e-13)
        torch.testing.assert_close(out[..., head, 1], torch.full_like(x[..., 1], 2), rtol=0, atol=1e-13)
    for head in (2, 3):  # over the blocks
        torch.testing.assert_close(out[..., head, 0], torch.full_like(x[..., 0], 37), rtol=0, atol=1e-13)
        torch.testing.assert_close(out[..., head, 1], x[..., 1], rtol=0, atol=1e-13)


def test_a_token_of_a_block_is_where_it_was():
    rows, columns = torch.arange(6), torch.arange(8)
    x = (10 * rows[:, None] + columns)[None, :, :, None]
    cut = blocks.to_blocks(x, 2)
    assert cut.shape == (1, 12, 4, 1)
    assert cut[0, 5, :, 0].tolist() == [22, 23, 32, 33]  # the second row of blocks, its second block
    assert torch.equal(blocks.from_blocks(cut, 2, 6), x)


def test_depth_to_space_is_tensorflows():
    x = torch.arange(8.0).view(1, 1, 1, 8)
    assert parts.depth_to_space(x).tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]


@pytest.mark.parametrize("shared", [1, 2])
def test_attention_is_softmax_and_its_gradient_has_a_gradient(shared):
    torch.manual_seed(0)
    q = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 6, shared, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    heads = [x.repeat_interleave(4 // shared, dim=2) for x in (k, v)]
    logits = torch.einsum("blnd,bsnd->bnls", q, heads[0]) / 3**0.5
    wanted = torch.einsum("bnls,bsnd->blnd", logits.softmax(-1), heads[1])
    torch.testing.assert_close(blocks.attend(q, k, v), wanted, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(blocks.attend, (q, k, v))
    assert torch.autograd.gradgradcheck(blocks.attend, (q, k, v))


def test_large_logits_stay_finite():
    q = 300 * torch.randn(1, 4, 2, 8)
    q.requires_grad_()
    blocks.attend(q, q.detach()[:, :, :1], q.detach()[:, :, :1]).sum().backward()
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("budget", [3000, 40_000])  # bytes: a row and less, some samples
def test_inference_in_strips_is_the_same_network(monkeypatch, budget):
    """Without gradients a CPU works on some rows at a time; the picture is the plain formulation."""
    generator = tiny().double()
    z = torch.randn(5, generator.z_dim, dtype=torch.float64)
    wanted, calls = generator(z).detach(), []
    monkeypatch.setattr(parts, "STRIP_BYTES", budget)
    generator.stages[-1].cross.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    with torch.no_grad():
        torch.testing.assert_close(generator(z), wanted, rtol=0, atol=1e-10)
        assert len(calls) > 1  # in strips indeed
        generator.stages[-2].cross.norm1.train()  # one norm that looks at the whole batch
        calls.clear()
        assert not torch.allclose(generator(z), wanted) and len(calls) == 1


def test_hooks_see_what_a_layer_returned():
    generator, seen = tiny(), []
    z = torch.randn(1, generator.z_dim)
    generator.stages[0].cross.mlp.fc1.register_forward_hook(lambda module, x, y: seen.append(y))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            generator(z)
    torch.testing.assert_close(*seen)


def test_truncation_scales_z(tmp_path):
    generator = tiny()
    z = torch.randn(3, generator.z_dim)
    with pytest.raises(InputError, match="does not know its mean style"):
        generator(z, truncation_psi=0.5)  # as every new model, until conversion or training fills it
    assert generator.estimate_w_avg() == 0  # known without drawing a latent
    assert generator.num_ws == 1 and not generator.w_avg.any()
    with torch.no_grad():
        assert torch.equal(generator.mapping(z)[:, 0], z)
        torch.testing.assert_close(generator(z, truncation_psi=0.5), generator(z / 2), rtol=0, atol=1e-6)
        assert torch.equal(generator(z, truncation_psi=0), generator(torch.zeros_like(z)))
        assert torch.equal(generator(z, truncation_psi=0.5, truncation_cutoff=0), generator(z))
    GANPipeline(generator).save_pretrained(tmp_path / "saved")
    assert describe(tmp_path / "saved")["weights"]["w_avg"] == "known"
    pipeline = GANPipeline.from_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    one, half = (pipeline(seeds=[3], truncation_psi=psi, output_type="pt").images for psi in (1, 0.5))
    assert one.shape == (1, 3, 32, 32) and not torch.equal(one, half)


def test_pictures_are_centred_and_their_size_is_checked():
    generator = tiny()
    picture = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(generator.to_rgb01(2 * picture - 1), picture)
    with pytest.raises(InputError, match=r"this model needs \[batch, 32\]"):
        generator(torch.zeros(1, 31))
    with pytest.raises(InputError, match=r"this model needs \[batch, 1, 32\]"):
        generator.synthesis(torch.zeros(1, 2, 32))


def statistics(generator):
    return {name: buffer.clone() for name, buffer in generator.named_buffers() if name != "w_avg"}


def test_only_the_training_mode_looks_at_the_batch():
    generator = tiny()
    z, before = torch.randn(4, generator.z_dim), statistics(generator)
    with torch.no_grad():
        torch.testing.assert_close(generator(z)[:2], generator(z[:2]), rtol=0, atol=1e-5)
        assert all(torch.equal(before[name], new) for name, new in statistics(generator).items())
        generator.train()
        assert (generator(z)[:2] - generator(z[:2])).abs().max() > 1e-2
    assert not any(torch.equal(before[name], new) for name, new in statistics(generator).items())


def test_gradient_checkpointing_moves_the_statistics_once():
    z = torch.randn(3, 32)
    plain, kept = tiny().train(), tiny().train()
    kept.enable_gradient_checkpointing()
    for generator in (plain, kept):
        generator(z).square().sum().backward()
    for name, new in statistics(kept).items():
        assert torch.equal(new, statistics(plain)[name]), name
    for (name, one), two in zip(plain.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(
            two.grad, one.grad, rtol=0, atol=1e-5 * one.grad.abs().max().item(), msg=name
        )
    assert not any(module.frozen for module in kept.modules() if isinstance(module, norm.BatchNorm))


def seen_by(rank, world, folder, x, probe):
    """One process's share of a batch through one synchronised batch norm: results into a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    layer = norm.BatchNorm(x.shape[-1], synchronised=True).double()
    cuts = [0, 3, len(x)] if world == 2 else [0, len(x)]  # shares of unequal size
    share = slice(cuts[rank], cuts[rank + 1])
    mine = x[share].clone().requires_grad_()
    out = layer(mine)
    (gradient,) = torch.autograd.grad((out * probe[share]).sum().square(), mine, create_graph=True)
    gradient.square().sum().backward()
    torch.save(
        [out.detach(), gradient.detach(), layer.running_mean, layer.running_var], f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_synchronised_statistics_are_those_of_all_processes(world, tmp_path):
    torch.manual_seed(0)
    x, probe = torch.randn(5, 4, 6, dtype=torch.float64) + 3, torch.randn(5, 4, 6, dtype=torch.float64)
    if world == 1:
        seen_by(0, 1, tmp_path, x, probe)
    else:
        torch.multiprocessing.spawn(seen_by, (world, str(tmp_path), x, probe), nprocs=world)
    got = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    layer, whole = norm.BatchNorm(6).double(), x.clone().requires_grad_()
    out = layer(whole)
    shares = (out * probe).split([3, 2] if world == 2 else [5])
    (gradient,) = torch.autograd.grad(sum(share.sum().square() for share in shares), whole)
    for index, wanted in enumerate((out.detach(), gradient)):
        torch.testing.assert_close(torch.cat([one[index] for one in got]), wanted, rtol=0, atol=1e-12)
    for one in got:
        torch.testing.assert_close(one[2], layer.running_mean, rtol=0, atol=1e-13)
        torch.testing.assert_close(one[3], layer.running_var, rtol=0, atol=1e-13)


def test_the_config_says_whether_statistics_are_synchronised():
    for wanted in (False, True):
        norms = [m for m in tiny(sync_batch_norm=wanted).modules() if isinstance(m, norm.BatchNorm)]
        assert norms and all(one.synchronised is wanted for one in norms)


def test_initialisation_is_the_originals():
    torch.manual_seed(7)
    generator = HiTGenerator(HiTConfig.preset("tiny", channels=(128, 128, 128)))
    for name, parameter in generator.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:  # a normal of 0.02, cut at two sigma, which leaves 0.88 of its spread
            assert parameter.abs().max() <= 0.04, name
            assert parameter.std().item() == pytest.approx(0.0176, rel=0.1), name
    judge = HiTDiscriminator(HiTDiscriminatorConfig.preset("tiny"))
    weight = judge.blocks[1].conv1.weight
    assert weight.abs().max().item() == pytest.approx((6 / (9 * 64)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("resolution", 48, "HiTConfig.resolution is 48; allowed: a power of two"),
        ("channels", (32, 16), "3 entries, one per stage from 8 to 32 px"),
        ("channels", (32, 18, 16), r"a multiple of 4 up to 65536 at stage 1 \(16 px\), not 18"),
        ("num_heads", (4, 3, 2), r"a divisor of 16 channels at stage 1 \(16 px\), not 3"),
        ("num_heads", (1, 2, 2), r"an even number at stage 0 \(8 px\), half per axis, not 1"),
        ("block_sizes", (3, None, None), r"null, or a divisor of 8 at stage 0 \(8 px\), not 3"),
        ("block_sizes", (4, 4, 4), "null for the last stage"),
        ("block_sizes", (None, 4, None), "null for the last stage and for others right before it"),
        ("depths", (1, -1, 1), r"from 0 to 64 at stage 1 \(16 px\), not -1"),
        ("z_dim", 0, "z_dim is 0; allowed: a whole number"),
        ("w_dim", 7, "w_dim is 7; allowed: the value of z_dim, 32"),
        ("mlp_ratio", 2.5, "mlp_ratio is 2.5; allowed: a whole number"),
        ("multi_query", 1, "true or false"),
        ("norm", "instance", "norm is 'instance'; allowed: batch, layer"),
        ("sync_batch_norm", "yes", "true or false"),
        ("image_std", (1, 1, 0), "three numbers above 0"),
        ("patch_sizes", (4,), "does not know the key"),
    ],
)
def test_bad_configs_name_field_value_and_what_is_allowed(field, value, message):
    with pytest.raises(ConfigError, match=message):
        HiTConfig.preset("tiny", **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("resolution", 4, "a power of two from 8"),
        ("channels", (16, 32), "4 whole numbers, one per side from 32 down to 4 px"),
        ("pooling", "max", "pooling is 'max'; allowed: blur, average"),
        ("equalized", 1, "true or false"),
        ("stddev_group", 0, "a whole number from 1"),
    ],
)
def test_bad_discriminator_configs(field, value, message):
    with pytest.raises(ConfigError, match=message):
        HiTDiscriminatorConfig.preset("tiny", **{field: value})


def test_the_discriminator_says_what_it_reads():
    judge = HiTDiscriminator(HiTDiscriminatorConfig.preset("tiny", stddev_group=4))
    with pytest.raises(InputError, match=r"allowed: \[batch, 3, 32, 32\]"):
        judge(torch.zeros(4, 3, 16, 16))
    with pytest.raises(InputError, match="the batch has 6 images; allowed: a multiple of 4"):
        judge(torch.zeros(6, 3, 32, 32))
    with pytest.raises(InputError, match="freeze_d is 4; this discriminator has 3 scales"):
        judge.finest_parts(4)
    assert len(judge.finest_parts(3)) == 4


def test_half_precision_pictures_are_close():
    generator, z = small_generator(), recorded("io")["z"]
    with torch.no_grad():
        wanted = generator(z)
        image = generator.bfloat16()(z.bfloat16())
    assert image.dtype == torch.bfloat16 and error(image.float(), wanted) < 0.1

"""What holds for every family of the zoo, checked on its `tiny` preset."""

from __future__ import annotations

import pytest
import torch

from stylenat_hub import attention, benchmark, create_model
from stylenat_hub.errors import ConfigError, InputError, UnknownModelError
from stylenat_hub.hub import builtin_models
from stylenat_hub.latents import closed_form
from stylenat_hub.models.base import TOKEN_UPSAMPLINGS, Generator
from stylenat_hub.registry import CHECKPOINTS, FAMILIES, find_checkpoint, list_models


@pytest.fixture(params=sorted(FAMILIES))
def generator(request) -> Generator:
    """A tiny generator whose every parameter is away from zero, so that each of them shows in the picture."""
    torch.manual_seed(0)
    generator = create_model(f"{request.param}-tiny").eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def latents(generator: Generator, count: int) -> torch.Tensor:
    return torch.randn(count, generator.z_dim, generator=torch.Generator().manual_seed(1))


def test_shapes_and_finite_pictures(generator):
    size = generator.resolution
    with torch.no_grad():
        ws = generator.mapping(latents(generator, 2))
        images = generator(latents(generator, 2))
        assert torch.equal(images, generator.synthesis(ws))
    assert ws.shape == (2, generator.num_ws, generator.w_dim)
    assert images.shape == (2, 3, size, size)
    assert torch.isfinite(images).all()
    assert (images[0] - images[1]).abs().max() > 1e-2  # two latents, two pictures


def test_every_parameter_gets_a_gradient(generator):
    generator(latents(generator, 2)).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradient_checkpointing_changes_nothing(generator):
    z = latents(generator, 2)
    generator(z).square().sum().backward()
    plain = [p.grad.clone() for p in generator.parameters()]
    generator.zero_grad()
    generator.enable_gradient_checkpointing()
    calls = []
    checkpoint = generator._gradient_checkpointing_func
    generator._gradient_checkpointing_func = lambda *args: calls.append(1) or checkpoint(*args)
    generator(z).square().sum().backward()
    assert calls  # something was indeed run again instead of kept
    for wanted, parameter in zip(plain, generator.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_a_batch_is_its_samples(generator):
    """Nothing may leak from one sample into another; sums in another order are all that may differ."""
    z = latents(generator, 3)
    with torch.no_grad():
        together = generator(z)
        alone = torch.cat([generator(part) for part in z.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5 * alone.abs().max().item())


def test_attention_backends_draw_the_same_picture(generator, monkeypatch):
    z = latents(generator, 1).double()
    generator = generator.double()
    images, used = {}, []
    with torch.no_grad():
        for name, backend in attention.BACKENDS.items():
            attend = backend.attend
            monkeypatch.setattr(backend, "attend", lambda *args, f=attend, n=name: used.append(n) or f(*args))
            with attention.use_backend(name):
                images[name] = generator(z)
    if not used:
        pytest.skip("this family has no neighborhood attention")
    assert set(used) == set(attention.BACKENDS)
    for image in images.values():
        torch.testing.assert_close(image, images["reference"], rtol=0, atol=1e-10)


def test_second_derivatives(generator):
    """Path-length regularisation differentiates the gradient of the picture."""
    ws = generator.mapping(latents(generator, 1)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(generator.synthesis(ws).square().sum(), ws, create_graph=True)
    gradient.square().sum().backward()
    grads = [p.grad for p in generator.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert sum(bool(grad.abs().sum() > 0) for grad in grads) > len(list(generator.parameters())) / 2


def test_casts_are_silent(generator, caplog, capsys):
    generator.to(torch.bfloat16).to("cpu")
    assert next(generator.parameters()).dtype == torch.bfloat16
    assert capsys.readouterr().err == "" and not caplog.records


def test_bad_truncation_says_what_is_allowed(generator):
    ws = generator.mapping(latents(generator, 1))
    for options, message in [
        ({"psi": float("nan")}, "truncation_psi is nan; allowed: a finite number"),
        ({"psi": 1e308}, "a finite number"),
        ({"psi": "0.7"}, "truncation_psi is '0.7'"),
        ({"psi": 0.5, "cutoff": 1.5}, "truncation_cutoff is 1.5; allowed: a whole number"),
        ({"psi": 0.5, "cutoff": True}, "truncation_cutoff is True"),
        ({"psi": 0.5, "cutoff": -1}, "truncation_cutoff is -1"),
        ({"psi": 0.5}, "does not know its mean style"),
    ]:
        with pytest.raises(InputError, match=message):
            generator.truncate(ws, **options)


def test_from_config_replaces_fields_and_refuses_unknown_ones(generator):
    cls, config = type(generator), generator.typed_config
    smaller = cls.from_config(config.to_dict(), image_mean=(0, 0, 0))
    assert smaller.typed_config.image_mean == (0, 0, 0)
    assert cls.from_config(config).typed_config == config
    with pytest.raises(ConfigError, match=r"does not know the key.* 'banana'"):
        cls.from_config(config, banana=64)
    with pytest.raises(ConfigError, match="allowed: a config object or a dict"):
        cls.from_config("folder")
    with pytest.raises(ConfigError, match=r"use \w+Config.preset"):
        cls(config.to_dict())


def test_level_rows_account_for_the_parameters(generator):
    rows = generator.level_rows()
    assert len({tuple(row) for row in rows}) == 1  # the same keys in each
    total = sum(p.numel() for p in generator.parameters())
    assert 0.5 * total < sum(row["parameters"] for row in rows) <= total


def test_styles_are_said_to_act_where_they_are_read(generator):
    levels, layers = generator.style_levels, generator.style_layers()
    assert len(levels) in (0, generator.num_ws) and list(levels) == sorted(levels)
    assert all(4 <= size <= generator.resolution for size in levels)
    assert generator.num_ws == 1 or levels
    assert {number for number, _ in layers} == set(range(generator.num_ws))
    parameters = {parameter.data_ptr() for parameter in generator.parameters()}
    for _, weight in layers:
        assert weight.shape[1:] == (generator.w_dim,) and weight.data_ptr() in parameters


def test_styles_are_latents_where_nothing_maps_them(generator):
    z = latents(generator, 2)
    ws = generator.mapping(z)
    assert generator.styles_are_latents == (ws.shape[2] == z.shape[1] and bool((ws == z[:, None]).all()))


def test_attention_is_said_of_every_head_once(generator):
    sites = generator.attention_sites()
    assert sites and generator.token_upsampling in TOKEN_UPSAMPLINGS
    for site in sites:
        heads = [head for part in site.partitions for head in range(part.heads.start, part.heads.stop)]
        assert heads == list(range(site.module.heads))
        assert callable(getattr(site.module, site.module.watched)) and callable(site.module.compared)
        for part in site.partitions:
            assert part.keys.shape == part.counted.shape and len(part.keys) == site.level
            assert part.keys.dtype == torch.int64 and part.keys.min() >= 0 and part.keys.max() < site.level
    order = [(site.level, site.block) for site in sites]
    assert order == sorted(set(order)) and all(block >= 1 for _, block in order)


def test_a_family_that_does_not_say_what_reads_styles_has_no_sefa(generator, monkeypatch):
    monkeypatch.setattr(type(generator), "style_layers", Generator.style_layers)
    with pytest.raises(InputError, match=r"does not say which layers read its styles .*; use the method pca"):
        closed_form(generator, 1)


def test_every_checkpoint_can_be_built_in_its_size():
    for checkpoint in CHECKPOINTS.values():
        assert checkpoint.name.startswith(checkpoint.family + "-") or checkpoint.name in builtin_models()
        with torch.device("meta"):
            model = create_model(checkpoint.name)
        assert model.resolution == checkpoint.resolution
        assert sum(p.numel() for p in model.parameters()) == checkpoint.parameters


def test_names():
    assert list_models("stylenat-ffhq*") == ["stylenat-ffhq-1024", "stylenat-ffhq-256"]
    assert find_checkpoint("stylenat-ffhq-256").resolution == 256
    with pytest.raises(UnknownModelError, match="did you mean 'stylenat-ffhq-256'"):
        find_checkpoint("stylnat-ffhq-256")
    with pytest.raises(UnknownModelError, match=r"there are .*stylenat-church-256"):
        create_model("qqq")
    assert create_model("stylenat-tiny", mlp_ratio=2).config.mlp_ratio == 2


def test_autocast(generator):
    """Mixed precision: bfloat16 products, pictures and gradients near those of float32."""
    z = latents(generator, 2)
    generator.w_avg.fill_(0.1)
    wanted = generator(z, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(z, 0.5)
        with torch.no_grad():
            inferred = generator(z, 0.5)
    for result in (image, inferred):
        assert (result.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean()
    image.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mib"),
    [("stylenat-ffhq-256", 1600), ("stylenat-church-256", 1600), ("stylenat-ffhq-1024", 8000)],
)
def test_full_size_fits_into_memory(name, mib):
    """One picture of the full size in float32, in a fresh process: torch, weights and work together."""
    options = {"batch": 1, "dtype": torch.float32, "threads": torch.get_num_threads(), "backend": "tiled"}
    assert 200 < benchmark.in_fresh_process(benchmark.peak_memory, name, **options) < mib


def test_benchmark_measures_both_formulations():
    result = benchmark.benchmark("stylenat-tiny", repeats=2, batch=2)
    assert set(result["seconds"]) == {"tiled", "gather", "matrix_products"}
    assert all(
        low <= result["seconds"][kind] <= high for kind, (low, high) in result["seconds_range"].items()
    )
    assert 0 < result["attention_share"] < 1
    # every block's linear layers, by hand: 24 C^2 FLOP per token and block, 2 blocks per level, 2 pictures
    tokens_and_widths = [(16, 32), (64, 32), (256, 32), (1024, 16)]
    flop = sum(2 * 2 * 24 * width**2 * tokens for tokens, width in tokens_and_widths)
    assert result["matrix_products_gflop"] == pytest.approx(flop / 1e9)
    assert "gather" in benchmark.table(result)
    with pytest.raises(InputError, match="batch is 0"):
        benchmark.benchmark("stylenat-tiny", batch=0)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_discriminator_fits_its_family_and_learns(family):
    presets = family.discriminator.config_class.presets
    assert presets.keys() >= family.config.presets.keys()
    for name, preset in family.config.presets.items():
        assert presets[name]["resolution"] == preset["resolution"]
    judge = family.discriminator(family.discriminator.config_class.preset("tiny"))
    side = judge.resolution
    judge(torch.randn(judge.stddev_group, 3, side, side)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judge.parameters())
    assert judge.finest_parts(0) == [] and judge.component == "discriminator"
    kept = {id(p) for part in judge.finest_parts(1) for p in part.parameters()}
    assert 0 < len(kept) < len(list(judge.parameters()))


def test_an_empty_batch_is_refused_by_its_shape(generator):
    z, ws = torch.zeros(0, generator.z_dim), torch.zeros(0, generator.num_ws, generator.w_dim)
    with pytest.raises(InputError, match=rf"z has the shape \(0, {generator.z_dim}\); .* at least one"):
        generator(z)
    with pytest.raises(InputError, match=rf"ws has the shape \(0, {generator.num_ws}, .* at least one"):
        generator.synthesis(ws)

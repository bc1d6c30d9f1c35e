"""Reading StyleNAT's config off original tensors, and every way in which sources can contradict them."""

import json
import re
from pathlib import Path

import pytest
import torch

from conversion.containers import read_checkpoint
from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.stylenat.config import StyleNATConfig
from stylenat_hub.models.stylenat.generator import StyleNATGenerator
from stylenat_hub.models.stylenat.keys import convert_state_dict, infer_config, recognise

GOLDENS = Path(__file__).parent / "goldens"
SHAPES = json.loads((GOLDENS / "full_size_shapes.json").read_text(encoding="utf-8"))
CHURCH = GOLDENS / "stylenat_hydra_church_style_64.pt"
DILATIONS = [[1], [1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


@pytest.fixture
def state():
    return dict(read_checkpoint(CHURCH).network("g_ema"))


def full_size(preset):
    return {name: torch.empty(shape, device="meta") for name, shape in SHAPES[preset]["tensors"].items()}


@pytest.mark.parametrize("preset", SHAPES)
def test_the_full_size_tensors_give_their_preset(preset):
    expected = StyleNATConfig.preset(preset)
    state = full_size(preset)
    assert recognise(state)
    assert infer_config(state, preset=preset) == expected
    assert infer_config(state, config={"dilations": expected.dilations}) == expected


def test_one_listed_value_is_repeated_for_every_partition():
    listed = {"kernels": [[3], *[[7]] * 6], "dilations": [[1], [1], [1, 2], [1, 4], [1, 8], [1, 16], [1, 32]]}
    args = {"runs": {"generator": listed}}
    assert infer_config(full_size("ffhq-256"), args=args) == StyleNATConfig.preset("ffhq-256")


@pytest.mark.parametrize("preset", SHAPES)
def test_every_tensor_of_the_full_size_models_is_converted_and_no_other(preset):
    buffers = ("relative_position_index", "_float_tensor", "upsample.kernel")
    state = {k: torch.zeros(v) for k, v in SHAPES[preset]["tensors"].items() if not k.endswith(buffers)}
    with torch.device("meta"):
        ours = StyleNATGenerator(StyleNATConfig.preset(preset)).state_dict()
    converted = convert_state_dict(state)
    ours.pop("w_avg")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    assert sum(tensor.numel() for tensor in converted.values()) == SHAPES[preset]["parameters"]


def changed(level, dilations):
    return {"dilations": [*DILATIONS[:level], dilations, *DILATIONS[level + 1 :]]}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, r"nothing states the dilations.*level 4 \(64 px\) with 4 partition.*config file"),
        (
            {"preset": "church-256"},
            r"level 5 \(128 px\) is not in the tensors.*'church-256' lists channels for 7",
        ),
        ({"preset": "church-25"}, "did you mean 'church-256'"),
        (
            {"args": {"dilations": DILATIONS[:4]}},
            r"level 4 \(64 px\) is in the tensors.*record lists dilations for 4",
        ),
        (
            {"args": changed(3, [1, 2])},
            r"level 3 \(32 px\): the tensors hold 3 partition.*record lists 2 dilations",
        ),
        ({"args": changed(3, "124")}, r"level 3 \(32 px\).*whole numbers, one per partition"),
        ({"args": changed(3, [1, 2, 8])}, r"level 3 \(32 px\).*7 \* 8 = 56"),
        ({"args": {"dilations": 3}}, "a list with one entry per level"),
        (
            {"args": {"dilations": DILATIONS, "kernels": [[3], [7], [5], [7], [7]]}},
            r"level 2 \(16 px\): the tensors say kernel_sizes \[7, 7\].*record says \[5, 5\]",
        ),
        (
            {"args": {"dilations": DILATIONS}, "config": changed(4, [1, 2, 3, 8])},
            r"level 4 \(64 px\):.*record says dilations \[1, 2, 4, 8\], but the config says \[1, 2, 3, 8\]",
        ),
        (
            {"args": {"dilations": DILATIONS, "runs": changed(2, [1, 1])}},
            r"level 2 \(16 px\):.*says dilations \[1, 2\], but .* says \[1, 1\]",
        ),
        (
            {"config": {"dilations": DILATIONS, "z_dim": 512}},
            "the tensors say z_dim 48, but the config says 512",
        ),
        (
            {"config": {"dilations": DILATIONS, "num_heads": [8, 8, 8, 4, 8]}},
            r"level 3 \(32 px\): the tensors say num_heads 8, but the config says 4",
        ),
        ({"config": {"dilation": DILATIONS}}, "does not know the key.*'dilation'"),
        (
            {"config": {"dilations": DILATIONS, "mapping_lr_mul": float("nan")}},
            "mapping_lr_mul is nan; allowed: a number above 0",
        ),
    ],
)
def test_a_contradiction_or_a_gap_names_the_level(sources, message, state):
    with pytest.raises(ConfigError, match=message) as caught:
        infer_config(state, **sources)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.{}.blocks.0.attn.rpb", "has 15,001 levels, and 11 at most are allowed"),
        ("style.{}.weight", "has 15,000 mapping layers, and 64 at most are allowed"),
    ],
)
def test_levels_and_layers_beyond_any_picture_are_refused_before_they_are_read(name, message, state):
    state.update({name.format(i): torch.ones(1) for i in range(1, 15_001)})
    with pytest.raises(WeightsError, match=message):
        infer_config(state)


def test_a_name_with_an_endless_number_is_no_layers(state):
    state[f"style.{'1' * 5000}.bias"] = torch.ones(1)
    with pytest.raises(WeightsError, match=r"a tensor 'style.1+.* does not have"):
        convert_state_dict(state)


def test_the_preset_that_fits_is_offered():
    with pytest.raises(ConfigError, match=r"name the preset that fits these tensors \('ffhq-256'\)"):
        infer_config(full_size("ffhq-256"))
    with pytest.raises(
        ConfigError, match=r"level 3 \(32 px\): the tensors hold 2.*fits these tensors \('ffhq-256'\)"
    ):
        infer_config(full_size("ffhq-256"), preset="church-256")


def uneven(state):
    for block in (0, 1):
        for table, heads in ((0, 4), (1, 2), (2, 2)):
            state[f"layers.3.blocks.{block}.attn.rpb.{table}"] = torch.zeros(heads, 13, 13)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (uneven, ConfigError, r"level 3 \(32 px\): the tensors cut 8 heads into \(4, 2, 2\).*\(2, 3, 3\)"),
        (
            lambda s: s.update({"layers.2.blocks.1.attn.rpb.1": torch.zeros(4, 9, 9)}),
            ConfigError,
            r"level 2 \(16 px\): the position-bias tables of its two blocks differ",
        ),
        (
            lambda s: s.update({"layers.2.blocks.1.attn.rpb.1": torch.zeros(4, 13, 12)}),
            WeightsError,
            r"level 2 \(16 px\): 'layers.2.blocks.1.attn.rpb.1' has the shape \[4, 13, 12\]",
        ),
        (
            lambda s: s.update({"layers.2.blocks.0.attn.rpb0": torch.zeros(4, 13, 13)}),
            WeightsError,
            r"level 2 \(16 px\): block 0.*several layouts at once",
        ),
        (
            lambda s: [s.pop(f"layers.2.blocks.0.attn.rpb.{i}") for i in (0, 1)],
            WeightsError,
            r"level 2 \(16 px\): block 0.*found none",
        ),
        (
            lambda s: s.pop("layers.3.blocks.0.attn.rpb.1"),
            WeightsError,
            "no tensor 'layers.3.blocks.0.attn.rpb.1'",
        ),
        (
            lambda s: s.pop("layers.3.blocks.0.attn.qkv.weight"),
            WeightsError,
            "no tensor 'layers.3.*qkv.weight'",
        ),
        (lambda s: s.pop("style.3.weight"), WeightsError, "numbers its mapping layers"),
        (
            lambda s: s.pop("layers.4.blocks.0.attn.qkv.bias"),
            ConfigError,
            r"level 4 \(64 px\): the tensors say qkv_bias False",
        ),
    ],
)
def test_tensors_that_are_not_stylenat_are_named(change, error, message, state):
    change(state)
    with pytest.raises(error, match=message):
        infer_config(state, config={"dilations": DILATIONS})


def test_the_layout_is_decided_per_layer_not_per_file(state):
    """Two partitions as `rpb0`, `rpb1` beside three as `rpb.N` is one and the same model."""
    expected = convert_state_dict(state)
    for block in (0, 1):
        for table in (0, 1):
            prefix = f"layers.2.blocks.{block}.attn.rpb"
            state[f"{prefix}{table}"] = state.pop(f"{prefix}.{table}")
        prefix = f"layers.1.blocks.{block}.attn.rpb"
        state[prefix] = state.pop(f"{prefix}.0")
    assert infer_config(state, config={"dilations": DILATIONS}).dilations == tuple(map(tuple, DILATIONS))
    converted = convert_state_dict(state)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.0.blocks.0.attn.relative_position_index", torch.arange(256).view(16, 16), "constant buffer"),
        ("to_rgbs.1.upsample.kernel", torch.ones(4, 4) / 4, "constant buffer"),
        ("layers.1.blocks.0.mlp.fc1.weight", torch.full((4, 4), torch.nan), "NaN or infinite"),
        ("layers.1.blocks.0.attn.proj.bias", torch.full((4,), torch.inf), "NaN or infinite"),
        ("layers.1.blocks.0.attn.proj.bias", torch.ones(4, dtype=torch.int64), "floating-point"),
        ("layers.1.blocks.0.attn.rpb2", torch.ones(1), "does not have"),
        ("noise.0", torch.ones(1), "does not have"),
        ("style.0.weight", torch.ones(1), "does not have"),
        ("layers.1.blocks.0.attn.rpb0", torch.ones(1), "claim"),
    ],
)
def test_nothing_is_dropped_or_taken_silently(name, value, message, state):
    state[name] = value
    with pytest.raises(WeightsError, match=message) as caught:
        convert_state_dict(state)
    assert re.escape(name) and name in str(caught.value)


def test_uninitialised_memory_is_no_reason_to_refuse(state):
    state["layers.0.upsample.sin_pos_embed._float_tensor"] = torch.tensor([torch.nan])
    assert not any("_float_tensor" in name for name in convert_state_dict(state))


def test_other_state_dicts_are_not_recognised():
    assert not recognise({})
    assert not recognise({"input.input": 0, "style.1.weight": 0, "layers.0.blocks.0.qkv.weight": 0})

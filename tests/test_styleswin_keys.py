"""Reading StyleSwin's config off original tensors, renaming them, and refusing what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conversion.containers import read_checkpoint
from stylenat_hub import StyleSwinConfig, StyleSwinGenerator
from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.styleswin import keys
from stylenat_hub.models.styleswin.keys import convert_state_dict, infer_config, recognise
from stylenat_hub.registry import CHECKPOINTS

GOLDENS = Path(__file__).parent / "goldens"
SHAPES = json.loads((GOLDENS / "styleswin_full_size_shapes.json").read_text(encoding="utf-8"))
PRESETS = ["ffhq-256", "ffhq-1024", "celebahq-256", "celebahq-1024", "church-256"]


@pytest.fixture
def state():
    return dict(read_checkpoint(GOLDENS / "styleswin_ffhq_style_64.pt").network("g_ema"))


@pytest.mark.parametrize("preset", PRESETS)
def test_full_size_shapes(preset):
    """The published models tensor by tensor: what the original would save is what the preset has."""
    recorded = SHAPES[preset.replace("celebahq", "ffhq").replace("church", "ffhq")]
    constants = ("relative_position_index", "_float_tensor", "upsample.kernel", "attn_mask2")
    shapes = {key: shape for key, shape in recorded["tensors"].items() if not key.endswith(constants)}
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    config = StyleSwinConfig.preset(preset)
    assert recognise(state) and infer_config(state, preset=preset) == infer_config(state) == config
    with torch.device("meta"):
        model = StyleSwinGenerator(config)
    ours = {key: value.shape for key, value in model.state_dict().items() if key != "w_avg"}
    assert {key: value.shape for key, value in convert_state_dict(state).items()} == ours
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == recorded["parameters"] == CHECKPOINTS[f"styleswin-{preset}"].parameters
    # the masks tell which levels shift, and the whole of it is as large as 65,536 windows in a batch of 4
    masks = {int(key.split(".")[1]): shape[0] for key, shape in recorded["tensors"].items() if "mask" in key}
    assert {i for i in range(config.num_levels) if config.shift(i)} == set(masks)
    assert masks[config.num_levels - 1] == (config.resolution // 8) ** 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update(
                {"layers.3.blocks.1.attn_mask2": s["layers.3.blocks.1.attn_mask2"].roll(1, 0)}
            ),
            "'layers.3.blocks.1.attn_mask2' has other values",
        ),
        (
            lambda s: s.update({"layers.2.blocks.0.attn_mask2": s["layers.3.blocks.0.attn_mask2"]}),
            "'layers.2.blocks.0.attn_mask2' has other values",
        ),
        (
            lambda s: s.update({"layers.1.blocks.0.attn_mask2": torch.zeros(1, 64, 64)}),
            "'layers.1.blocks.0.attn_mask2' has other values",
        ),
        (
            lambda s: s.update(
                {"layers.1.blocks.0.attn.1.relative_position_index": torch.zeros(64, 64, dtype=torch.int64)}
            ),
            "'layers.1.blocks.0.attn.1.relative_position_index' has other values",
        ),
        (
            lambda s: s["layers.1.blocks.0.attn.0.relative_position_bias_table"].fill_(torch.nan),
            "'layers.1.blocks.0.attn.0.relative_position_bias_table' holds NaN",
        ),
        (lambda s: s.update({"extra": torch.ones(1)}), "'extra' that a StyleSwin generator does not have"),
        (lambda s: s.update({"input.input": torch.ones(1, dtype=torch.int64)}), "floating-point number"),
    ],
)
def test_nothing_is_dropped_or_taken_silently(change, message, state):
    state = {key: value.clone() for key, value in state.items()}
    change(state)
    with pytest.raises(WeightsError, match=message):
        convert_state_dict(state)


@pytest.mark.parametrize(("window", "shape"), [(100, (1,)), (65, (65**2, 65**2))])
def test_an_index_is_compared_only_with_one_of_its_size(window, shape, state, monkeypatch):
    """What a large window's table asks for would be tens of gigabytes."""
    prefix = "layers.1.blocks.7.attn.0.relative_position"
    state[f"{prefix}_bias_table"] = torch.zeros((2 * window - 1) ** 2, 1)
    state[f"{prefix}_index"] = torch.zeros((), dtype=torch.int64).expand(shape)
    made = keys._relative_position_index
    monkeypatch.setattr(keys, "_relative_position_index", lambda side: made(side) if side <= 8 else 1 / 0)
    with pytest.raises(WeightsError, match="index' has other values"):
        convert_state_dict(state)


def halved(state):
    name = "layers.2.blocks.1.attn.1.relative_position_bias_table"
    state[name] = state[name][:, :1]


@pytest.mark.parametrize(
    ("change", "sources", "message"),
    [
        (
            lambda s: None,
            {"preset": "ffhq-256"},
            "the tensors say resolution 64, but the preset 'ffhq-256' says 256",
        ),
        (
            lambda s: None,
            {"config": {"channels": [32] * 4}},
            "the tensors say channels for 5 levels, but the config says for 4 levels",
        ),
        (
            lambda s: None,
            {"config": {"num_heads": [4, 4, 4, 8, 4]}},
            r"level 3 \(32 px\): the tensors say num_heads 4, but the config says 8",
        ),
        (lambda s: None, {"config": {"z_dim": 512}}, "the tensors say z_dim 64, but the config says 512"),
        (lambda s: None, {"config": {"window": 8}}, "does not know the key.*'window'"),
        (
            lambda s: None,
            {"args": {"lr_mlp": 0.01}, "config": {"mapping_lr_mul": 0.1}},
            "own record says mapping_lr_mul 0.01, but the config says 0.1",
        ),
        (
            lambda s: None,
            {"args": {"lr_mlp": float("nan")}},
            "mapping_lr_mul is nan; allowed: a number above 0",
        ),
        (halved, {}, r"level 2 \(16 px\): the position-bias tables of its blocks differ"),
        (lambda s: s.pop("layers.4.blocks.0.qkv.bias"), {}, r"level 4 \(64 px\): .*qkv_bias False"),
        (
            lambda s: s.update({"layers.2.blocks.0.attn.0.relative_position_bias_table": torch.ones(224, 2)}),
            {},
            "has 224 rows; it must have",
        ),
        (lambda s: s.pop("layers.2.blocks.0.mlp.fc1.weight"), {}, "no tensor 'layers.2.blocks.0.mlp.fc1"),
    ],
)
def test_a_contradiction_is_named(change, sources, message, state):
    change(state)
    with pytest.raises((ConfigError, WeightsError), match=message) as caught:
        infer_config(state, **sources)
    assert "\n" not in str(caught.value)

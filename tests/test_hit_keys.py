"""Reading HiT's config off the original's variables, renaming them, and refusing what does not fit."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from hit_recordings import below, generator_of, part, recorded, small_generator

from stylenat_hub import HiTConfig
from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.hit import FAMILY
from stylenat_hub.models.hit.keys import convert_tensorflow, infer_config, infer_discriminator_config


def test_a_checkpoints_networks_and_their_arrays():
    """As a reader of TensorFlow's files gives them: with the suffix, with slots, as numpy arrays."""
    raw = {
        f"{name}/.ATTRIBUTES/VARIABLE_VALUE": tensor.numpy()
        for name, tensor in recorded("weights_step9").items()
    }
    raw["generator/dense_layer/x/.OPTIMIZER_SLOT/generator_optim/m/.ATTRIBUTES/VARIABLE_VALUE"] = np.zeros(3)
    generator = generator_of(below(raw, "generator"))
    z = recorded("io")["z"]
    with torch.no_grad():
        assert torch.equal(generator(z), small_generator()(z))
    assert FAMILY.recognise(below(raw, "generator"))
    assert not FAMILY.recognise(below(raw, "discriminator"))
    assert FAMILY.convert_discriminator(below(raw, "discriminator")).resolution == 64


def test_the_config_is_read_off_the_variables(monkeypatch):
    variables = below(recorded("weights_step9"), "generator")
    wanted = HiTConfig(
        resolution=64, depths=(2, 1, 1, 2), channels=(32, 16, 8, 4), num_heads=(4, 2, 2, 2),
        block_sizes=(4, 4, None, None), z_dim=12,
    )  # fmt: skip
    assert infer_config(variables) == wanted
    assert infer_config(variables, config=json.loads(json.dumps(wanted.to_dict()))) == wanted
    assert infer_config(variables, config={"block_sizes": (2, 8, None, None)}).block_sizes[:2] == (2, 8)
    with pytest.raises(
        ConfigError, match=r"the variables say that resolution is 64, the preset or config 32"
    ):
        infer_config(variables, preset="tiny")
    monkeypatch.setitem(HiTConfig.presets, "recorded", wanted.to_dict())
    for agreeing in ({"block_sizes": [4, 4, None, None]}, {"w_dim": None}, {"image_std": [0.5] * 3}):
        assert infer_config(variables, preset="recorded", config=agreeing) == wanted
    for field, said, other in (
        ("block_sizes", (4, 4, None, None), [2, 2, None, None]),
        ("image_mean", (0.5, 0.5, 0.5), [0.5, 0.5, 0.4]),
    ):
        message = (
            f"the preset 'recorded' says that {field} is {said}, but the config says {tuple(other)}; leave"
        )
        with pytest.raises(ConfigError, match=re.escape(message)):
            infer_config(variables, preset="recorded", config={field: other})
    with pytest.raises(ConfigError, match=r"RGB layers at the stages \[2, 3\]"):
        infer_config(variables, config={"block_sizes": (4, None, None, None)})
    judge = infer_discriminator_config(
        part("discriminator_variants", "eqlr_stddev_avg.w."), {"equalized": True}
    )
    assert (judge.resolution, judge.channels, judge.stddev_group) == (32, (4, 6, 8, 8), 4)


def test_what_does_not_fit_is_named():
    variables = below(recorded("weights_step9"), "generator")
    config, path = infer_config(variables), "blocks/1/layer_with_weights-0/norm/gamma"
    for change, message in [
        (lambda v: v.pop(path), f"has no variable '{path}'"),
        (
            lambda v: v.update({"blocks/9/gamma": v[path]}),
            "a variable 'blocks/9/gamma' that this model does not",
        ),
        (lambda v: v.update({path: v[path][:-1]}), rf"'{path}' has the shape \[15\], .* \[16\]"),
        (lambda v: v.update({path: v[path] / 0}), f"'{path}' holds NaN or infinite"),
        (lambda v: v.update({path: v[path].int()}), f"'{path}' has the type torch.int32"),
    ]:
        changed = copy.copy(variables)
        change(changed)
        with pytest.raises(WeightsError, match=message):
            convert_tensorflow(changed, config)
    with pytest.raises(WeightsError, match=r"numbers its stages not at all; .* so variables are missing"):
        infer_config({})
    changed = {key: value for key, value in variables.items() if not key.startswith("position_embeddings/1")}
    with pytest.raises(WeightsError, match="must run from 0 without a gap"):
        infer_config(changed)


def test_stages_and_blocks_beyond_any_picture_are_refused_before_they_are_read():
    """Each stage is looked for among all variables."""

    class Looked(dict):
        def __getitem__(self, key):
            raise AssertionError(key)

    kernel = torch.ones(1, 1, 1, 1)
    stages = {f"position_embeddings/{i}/embedding_weight": kernel for i in range(2000)}
    with pytest.raises(WeightsError, match="has 2,000 stages, and 10 at most are allowed"):
        infer_config(Looked(stages))
    blocks = {f"conv_blocks/layer_with_weights-{i}/kernel": kernel for i in range(1, 15_011)}
    with pytest.raises(WeightsError, match="has 15,010 convolution blocks, and 10 at most are allowed"):
        infer_discriminator_config(Looked(blocks))
    assert HiTConfig.preset("b-1024", resolution=4096, depths=[1] * 10, channels=[4] * 10,
        num_heads=[2] * 10, block_sizes=[4] * 4 + [None] * 6).num_stages == 10  # fmt: skip


def test_nan_in_a_config_is_no_contradiction_but_a_wrong_value():
    variables = below(recorded("weights_step9"), "generator")
    with pytest.raises(ConfigError, match="w_dim is nan; allowed: the value of z_dim, 12"):
        infer_config(variables, config={"w_dim": float("nan")})

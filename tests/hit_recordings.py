"""The recordings of the original HiT, and the formula that its full-size weights were made by.

Pictures and features are channels last there, as in TensorFlow; blocked features are [B, block, place, C].
"""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tensorflow_files import SUFFIX

from stylenat_hub.models.hit.config import HiTConfig, HiTDiscriminatorConfig
from stylenat_hub.models.hit.discriminator import HiTDiscriminator
from stylenat_hub.models.hit.generator import HiTGenerator
from stylenat_hub.models.hit.keys import convert_tensorflow, entries, infer_config

GOLDENS = Path(__file__).parent / "goldens" / "hit"
SLOT = "/.OPTIMIZER_SLOT/"
GAINS = {HiTGenerator: 0.6, HiTDiscriminator: 1.4}


@functools.cache
def recorded(name):
    return load_file(GOLDENS / f"{name}.safetensors")


@functools.cache
def full_size():
    return json.loads((GOLDENS / "fullsize.json").read_text(encoding="utf-8"))


def channels_first(x):
    return x.permute(0, 3, 1, 2)


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def part(name, root):
    """The recorded tensors below a path, by the rest of it."""
    return {key.removeprefix(root): value for key, value in recorded(name).items() if key.startswith(root)}


def below(variables, root):
    """The variables of one network of a checkpoint (`generator`, `ema_generator` or `discriminator`), by
    their paths below it, without the optimizers' slots."""
    found = {name.removesuffix(SUFFIX): value for name, value in variables.items() if SLOT not in name}
    return {
        name.removeprefix(f"{root}/"): value for name, value in found.items() if name.startswith(f"{root}/")
    }


def tensorflow_paths(config):
    """Our name of each tensor, `w_avg` apart -> the path of its variable."""
    return {name: path for name, path, _ in entries(config)}


def error(actual, wanted):
    """Largest difference, relative to the largest recorded value."""
    assert actual.shape == wanted.shape and torch.isfinite(actual).all()
    return ((actual - wanted).abs().max() / wanted.abs().max()).item()


def generator_of(variables, **fields):
    config = infer_config(variables, config=fields)
    generator = HiTGenerator(config)
    generator.load_state_dict({**convert_tensorflow(variables, config), "w_avg": generator.w_avg})
    return generator.eval()


def small_generator():
    return generator_of(below(recorded("weights_step9"), "generator"))


def drawn(salt):
    return np.random.RandomState(zlib.crc32(salt.encode("ascii")))


def formula(path, shape, salt, gain):
    """The variable at this path, float32: tests/goldens/hit/README.md."""
    normal = drawn(f"{salt}:{path}").standard_normal(shape)
    kind = path.rpartition("/")[2]
    if kind == "kernel":
        inputs = np.prod(shape[:-1])
        if path.endswith(("query_dense/kernel", "key_dense/kernel", "value_dense/kernel")):
            inputs = shape[0]
        normal *= gain / np.sqrt(inputs)
    elif kind == "gamma":
        normal = 1 + 0.1 * normal
    elif kind == "moving_variance":
        normal = 0.5 + np.abs(normal)
    else:
        normal *= 0.5 if kind == "embedding_weight" else 0.1
    return normal.astype(np.float32)


def original_shape(path, shape, head):
    """The shape in TensorFlow of what is `shape` here. head: width of a head, of an attention's variables."""
    if path.startswith("position_embeddings"):
        return (1, *shape)
    if path.endswith("embedding_weight"):
        return (1, 1, *shape)
    if path.endswith("output_dense/kernel"):
        return (shape[1] // head, head, shape[0])
    if path.endswith("_dense/kernel") and "attention_layer" in path:
        return (shape[1], shape[0] // head, head)
    if path.endswith("_dense/bias") and "attention_layer" in path and "output_dense" not in path:
        return (shape[0] // head, head)
    if path.endswith("kernel"):
        return shape[::-1] if len(shape) == 2 else (*shape[2:], shape[1], shape[0])
    return tuple(shape)


def built_by_formula(name):
    """A full-size model with the weights of the formula, checked against the recorded sums."""
    facts = full_size()[name]
    if "table" in facts:
        table = facts["table"]
        config = HiTConfig(
            resolution=8 * 2 ** (len(table["channel_dims"]) - 1),
            depths=table["num_layers"],
            channels=table["channel_dims"],
            num_heads=table["num_heads"],
            block_sizes=table["patch_sizes"],
            z_dim=facts["latent_dim"],
        )
        cls, heads = HiTGenerator, [c // n for c, n in zip(config.channels, config.num_heads, strict=True)]
    else:
        preset = {128: "imagenet-128", 256: "b-256"}[facts["input_size"]]
        preset = "256-wide" if facts["channel_multiplier"] == 2 else preset
        pooling = "blur" if facts["blur_resample"] else "average"
        config, cls, heads = HiTDiscriminatorConfig.preset(preset, pooling=pooling), HiTDiscriminator, []
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in cls(config).state_dict().items()}
    variables = {}
    for key, path in tensorflow_paths(config).items():
        head = heads[int(key.split(".")[1])] if key.startswith("stages") else 0
        shape = original_shape(path, shapes[key], head)
        variables[path] = formula(path, shape, facts["salt_weights"], GAINS[cls])
    for path, total in facts.get("sum_float64", {}).items():
        assert abs(variables[path].sum(dtype=np.float64) - total) < 1e-6 * max(1, abs(total)), path
    with torch.device("meta"):
        model = cls(config)
    state = convert_tensorflow(variables, config)
    if cls is HiTGenerator:
        state["w_avg"] = torch.zeros(config.z_dim)
    model.load_state_dict(state, assign=True)
    return model.eval()


def formula_images(name):
    facts = full_size()[name]
    size = facts["input_size"]
    images = drawn(facts["salt_images"]).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    return channels_first(torch.from_numpy(images))


def formula_latents(name, count):
    facts = full_size()[name]
    return torch.from_numpy(
        drawn(facts["salt_z"]).standard_normal((count, facts["latent_dim"])).astype(np.float32)
    )

"""HiT's variables in TensorFlow: reading a config off them, and turning them into our tensors.

The original is TensorFlow code. Its checkpoints name a variable by its path in the object graph, such as
`generator/blocks/0/layer_with_weights-1/norm/gamma`; everything here takes the variables of one network by
their paths below it (`blocks/0/...`), as conversion reads them: numpy arrays or tensors.

Layouts: a dense kernel is [in, out]; of queries, keys and values [C, heads, D], of an attention's output
[heads, D, C]; a convolution's is [height, width, in, out]; positions have a leading 1; the discriminator's
flattened pixels are channels last. The paths were read off recordings of the original code
(github.com/google-research/hit-gan).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.config import ModelConfig
from stylenat_hub.models.hit.config import FIRST, HiTConfig, HiTDiscriminatorConfig
from stylenat_hub.models.hit.discriminator import HiTDiscriminator
from stylenat_hub.models.hit.generator import EMBEDDING, HiTGenerator
from stylenat_hub.models.original import numbered, shape_of, taken

Variables = Mapping[str, Any]  # path -> numpy array or tensor
Entry = tuple[str, str, Callable[[Tensor], Tensor]]  # our name, path, what makes one of the other

_KIND = "variable"
# Of the largest picture that a config allows, 4096 px: stages from 8 px, blocks down to 4 px.
_MOST_STAGES = _MOST_BLOCKS = 10
_shape = partial(shape_of, kind=_KIND)
_count = partial(numbered, first=0, kind=_KIND)


def recognise(state: Mapping[str, Any]) -> bool:
    """Are these the variables of an original HiT generator?"""
    return {
        "dense_layer/layer_with_weights-0/kernel",
        "embedding_layer/layer_with_weights-1/embedding_weight",
    } <= (state.keys())


def convert_tensorflow(variables: Variables, config: HiTConfig | HiTDiscriminatorConfig) -> dict[str, Tensor]:
    """The variables of a generator or of a discriminator as our state dict in float32, `w_avg` apart.

    Raises:
        WeightsError: a variable is missing, unknown, misshapen or not finite; it names its path.
    """
    cls = HiTGenerator if isinstance(config, HiTConfig) else HiTDiscriminator
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
    converted, left = {}, set(variables)
    for name, path, transform in entries(config):
        tensor = _tensor(variables, path)
        left.discard(path)
        try:
            converted[name] = transform(tensor).contiguous()
        except (RuntimeError, IndexError):
            converted[name] = tensor
        if converted[name].shape != shapes[name]:
            raise WeightsError(
                f"the variable {path!r} has the shape {list(tensor.shape)}, which does not become the "
                f"{list(shapes[name])} that the config asks for; the checkpoint is of another variant"
            )
    if left:
        raise WeightsError(
            f"the checkpoint has a variable {min(left)!r} that this model does not have; it belongs to "
            "another variant, and nothing is dropped silently"
        )
    return converted


def convert_state_dict(state: Variables) -> dict[str, Tensor]:
    """`convert_tensorflow` of a generator whose config `infer_config` reads off the variables."""
    return convert_tensorflow(state, infer_config(state))


def convert_discriminator(state: Variables, *, config: Mapping[str, Any] | None = None) -> HiTDiscriminator:
    """The discriminator with these variables, in eval mode; its config is `infer_discriminator_config`'s."""
    model = HiTDiscriminator(infer_discriminator_config(state, config))
    model.load_state_dict(convert_tensorflow(state, model.typed_config))
    return model.eval()


def infer_config(
    state: Variables,
    *,
    args: Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: HiTConfig | Mapping[str, Any] | None = None,
) -> HiTConfig:
    """The config of an original generator's variables, whose shapes state almost everything.

    They do not state the sides of the blocks: without preset or config these are the published ones, 4 at 8
    and 16 px and 8 from 32 px on. args: not looked at, because the original records none. preset: a name in
    `HiTConfig.presets`. config: a whole config, or a mapping with some of its fields.

    Raises:
        ConfigError: preset or config contradicts the variables or, about what these do not state, each other.
        WeightsError: a variable that the config must be read from is missing or has a wrong shape.
    """
    facts = _generator_facts(state)
    read_off = set(facts)
    stages = len(facts["channels"])
    written = [
        f"to_rgb_layers/{stage}/output_layer/layer_with_weights-1/kernel" in state for stage in range(stages)
    ]
    facts["block_sizes"] = tuple(
        None if rgb else min(4 * 2 ** (stage // 2), 8) for stage, rgb in enumerate(written)
    )
    said: dict[str, tuple[str, Any]] = {}
    for label, source in _sources(preset, config):
        for field, value in source.items():
            if field in read_off and facts[field] != value:
                raise ConfigError(
                    f"the variables say that {field} is {facts[field]!r}, the preset or config {value!r}; "
                    "take the one that belongs to this checkpoint, or none"
                )
            first, known = said.setdefault(field, (label, value))
            if value is not known and value != known:  # NaN is not itself, and the config refuses it
                raise ConfigError(
                    f"{first} says that {field} is {known!r}, but {label} says {value!r}; leave out the one "
                    "that is wrong"
                )
    facts.update({field: value for field, (_, value) in said.items()})
    result = HiTConfig.from_dict(facts)
    if [size is None for size in result.block_sizes] != written:
        raise ConfigError(
            f"block_sizes is {result.block_sizes!r}, but the variables have RGB layers at the stages "
            f"{[stage for stage, rgb in enumerate(written) if rgb]}, where it must be null"
        )
    return result


def _sources(
    preset: str | None, config: HiTConfig | Mapping[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, config fields) of each source that is given."""
    if preset is not None:
        yield f"the preset {preset!r}", HiTConfig.preset(preset).to_dict()
    if config is not None:
        fields = config.to_dict() if isinstance(config, ModelConfig) else dict(config)
        if fields.get("w_dim", 0) is None:
            del fields["w_dim"]  # it states nothing: it is filled with z_dim
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        yield "the config", fields


def infer_discriminator_config(
    state: Variables, config: Mapping[str, Any] | None = None
) -> HiTDiscriminatorConfig:
    """The config of an original discriminator's variables. config: fields in place of what was published,
    because no shape tells `pooling` and `equalized`. Raises `WeightsError`, `ConfigError`."""
    numbers = r"conv_blocks/layer_with_weights-([1-9]\d*)/.*"
    blocks = _count(state, numbers, "convolution block", first=1, most=_MOST_BLOCKS)
    kernels = [f"{_block(i)}/conv_layers/layer_with_weights-0/kernel" for i in range(blocks)]
    channels = (
        *(_shape(state, kernel, 4)[2] for kernel in kernels),
        _shape(state, f"{_FINAL}-0/kernel", 4)[3],
    )
    told = _shape(state, f"{_FINAL}-0/kernel", 4)[2] - channels[-1]
    facts = {"resolution": 4 * 2**blocks, "channels": channels, "stddev_group": 4 if told else 1}
    return HiTDiscriminatorConfig.from_dict({**facts, **(config or {})})


def _generator_facts(state: Variables) -> dict[str, Any]:
    """Every field that paths and shapes alone decide."""
    stages = _count(state, r"position_embeddings/(\d+)/.*", "stage", most=_MOST_STAGES)
    crosses = [f"blocks/{stage}/layer_with_weights-0" for stage in range(stages)]
    queries = [_shape(state, f"{cross}/attention_layer/query_dense/kernel", 3) for cross in crosses]
    keys = [_shape(state, f"{cross}/attention_layer/key_dense/kernel", 3) for cross in crosses]
    channels = tuple(query[0] for query in queries)
    hidden = _shape(state, f"{crosses[0]}/mlp_block/mlp_block/layer_with_weights-0/kernel", 2)[1]
    return {
        "resolution": FIRST * 2 ** (stages - 1),
        "depths": tuple(
            # the first is the cross-attention
            _count(state, rf"blocks/{stage}/layer_with_weights-(\d+)/.*", f"stage-{stage} block") - 1
            for stage in range(stages)
        ),
        "channels": channels,
        "num_heads": tuple(query[1] for query in queries),
        "z_dim": _shape(state, "dense_layer/layer_with_weights-0/kernel", 2)[0],
        "mlp_ratio": hidden // channels[0],
        "multi_query": all(key[1] == 1 for key in keys),
        "norm": "batch" if f"{crosses[0]}/norm/moving_mean" in state else "layer",
    }


def entries(config: HiTConfig | HiTDiscriminatorConfig) -> Iterator[Entry]:
    """Every tensor of the model, `w_avg` apart, with the path of its variable."""
    return _generator(config) if isinstance(config, HiTConfig) else _discriminator(config)


def _generator(config: HiTConfig) -> Iterator[Entry]:
    batch = config.norm == "batch"
    yield from _dense("stem", "dense_layer/layer_with_weights-0")
    path = "embedding_layer/layer_with_weights"
    yield from _dense("embedding.proj", f"{path}-0")
    yield "embedding.position", f"{path}-1/embedding_weight", lambda t: t.reshape(EMBEDDING, -1)
    yield from _norm("embedding.norm", f"{path}-2", batch)
    for i in range(config.num_stages):
        stage = f"stages.{i}"
        yield f"{stage}.position", f"position_embeddings/{i}/embedding_weight", lambda t: t.squeeze(0)
        yield from _attention_block(f"{stage}.cross", f"blocks/{i}/layer_with_weights-0", batch)
        blocked = config.block_sizes[i] is not None
        block = _attention_block if blocked else _mlp_block
        for j in range(config.depths[i]):
            yield from block(f"{stage}.blocks.{j}", f"blocks/{i}/layer_with_weights-{j + 1}", batch)
        if not blocked:
            path = f"to_rgb_layers/{i}/output_layer/layer_with_weights"
            yield from _norm(f"{stage}.to_rgb.norm", f"{path}-0", batch)
            yield from _dense(f"{stage}.to_rgb.proj", f"{path}-1")
        if i + 1 < config.num_stages and config.channels[i] != 4 * config.channels[i + 1]:
            yield from _dense(f"{stage}.upsample.proj", f"umsamplings/{i}/dense_layer")  # their spelling


def _attention_block(name: str, path: str, batch: bool) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm1", f"{path}/norm", batch)
    attention = f"{path}/attention_layer"
    for part in ("query", "key", "value"):
        yield f"{name}.attn.{part}.weight", f"{attention}/{part}_dense/kernel", lambda t: t.flatten(1).t()
        yield f"{name}.attn.{part}.bias", f"{attention}/{part}_dense/bias", torch.flatten
    yield f"{name}.attn.proj.weight", f"{attention}/output_dense/kernel", lambda t: t.flatten(0, 1).t()
    yield f"{name}.attn.proj.bias", f"{attention}/output_dense/bias", _same
    yield from _norm(f"{name}.norm2", f"{path}/mlp_block/norm_layer", batch)
    yield from _mlp(f"{name}.mlp", f"{path}/mlp_block/mlp_block")


def _mlp_block(name: str, path: str, batch: bool) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm", f"{path}/norm_layer", batch)
    yield from _mlp(f"{name}.mlp", f"{path}/mlp_block")


def _mlp(name: str, path: str) -> Iterator[Entry]:
    yield from _dense(f"{name}.fc1", f"{path}/layer_with_weights-0")
    yield from _dense(f"{name}.fc2", f"{path}/layer_with_weights-1")


def _dense(name: str, path: str) -> Iterator[Entry]:
    yield f"{name}.weight", f"{path}/kernel", lambda t: t.t()
    yield f"{name}.bias", f"{path}/bias", _same


def _norm(name: str, path: str, batch: bool) -> Iterator[Entry]:
    yield f"{name}.weight", f"{path}/gamma", _same
    yield f"{name}.bias", f"{path}/beta", _same
    if batch:
        yield f"{name}.running_mean", f"{path}/moving_mean", _same
        yield f"{name}.running_var", f"{path}/moving_variance", _same


_FINAL = "final_layers/layer_with_weights"


def _block(number: int) -> str:
    return f"conv_blocks/layer_with_weights-{number + 1}"


def _discriminator(config: HiTDiscriminatorConfig) -> Iterator[Entry]:
    yield from _conv("from_rgb", "conv_blocks/layer_with_weights-0")
    for i in range(len(config.channels) - 1):
        yield from _conv(f"blocks.{i}.conv1", f"{_block(i)}/conv_layers/layer_with_weights-0")
        yield from _conv(f"blocks.{i}.conv2", f"{_block(i)}/conv_layers/layer_with_weights-1")
        yield f"blocks.{i}.skip.weight", f"{_block(i)}/skip_layers/layer_with_weights-0/kernel", _oihw
    yield from _conv("final_conv", f"{_FINAL}-0")
    yield "hidden.weight", f"{_FINAL}-1/kernel", _channels_first
    yield "hidden.bias", f"{_FINAL}-1/bias", _same
    yield from _dense("logit", f"{_FINAL}-2")


def _conv(name: str, path: str) -> Iterator[Entry]:
    yield f"{name}.weight", f"{path}/kernel", _oihw
    yield f"{name}.bias", f"{path}/bias", _same


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _oihw(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)


def _channels_first(kernel: Tensor) -> Tensor:
    """[16 * C, C'] of 4 x 4 pixels, channels last -> [C', C * 16]."""
    return kernel.unflatten(0, (16, -1)).permute(2, 1, 0).flatten(1)


def _tensor(variables: Variables, path: str) -> Tensor:
    if path not in variables:
        raise WeightsError(
            f"the checkpoint has no variable {path!r}; it is incomplete, or the config is not its own"
        )
    return taken(path, torch.as_tensor(variables[path]), _KIND)

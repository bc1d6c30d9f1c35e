"""HiT against tensors recorded from the original TensorFlow code.

Tolerances are those of the recordings (tests/goldens/hit/README.md), relative to the largest value unless
said otherwise: float32 sums in another order.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hit_recordings import (
    below,
    built_by_formula,
    channels_first,
    channels_last,
    error,
    formula_images,
    formula_latents,
    full_size,
    generator_of,
    part,
    recorded,
    small_generator,
    tensorflow_paths,
)
from torch import nn

from stylenat_hub.layers.discriminator import blur, minibatch_stddev
from stylenat_hub.models.hit import blocks
from stylenat_hub.models.hit import generator as parts
from stylenat_hub.models.hit.config import HiTConfig
from stylenat_hub.models.hit.discriminator import Conv, HiTDiscriminator, Linear
from stylenat_hub.models.hit.keys import (
    _attention_block,
    convert_discriminator,
    convert_tensorflow,
    infer_discriminator_config,
)
from stylenat_hub.models.hit.norm import EPS, MOMENTUM, BatchNorm

EXACT = 1e-5  # operations, blocks, pictures of the eval mode, kept statistics
BATCH = 2e-5  # pictures with the batch's statistics; of full size 1e-4
LOGITS = 5e-5

SHAPE = HiTConfig.preset("tiny")  # where only the kind of norm and the MLP's ratio count


def small_discriminator():
    return convert_discriminator(below(recorded("weights_step9"), "discriminator"))


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_every_step_of_the_forward_pass(mode):
    io, generator = recorded("io"), small_generator().train(mode == "train")
    seen = {}

    def keep(key, change=lambda x: x):
        return lambda module, inputs, output: seen.__setitem__(key, change(output))

    def enters(key, stage):
        def hook(module, inputs):
            x = inputs[0]
            seen[key] = x if stage.side is None else blocks.from_blocks(x, stage.side, stage.size)

        return hook

    generator.stem.register_forward_hook(keep("stem", lambda x: x.unflatten(1, (8, 8, -1))))
    generator.embedding.register_forward_hook(keep("latent_embedding", lambda x: x[:, None]))
    for i, stage in enumerate(generator.stages):
        stage.cross.register_forward_pre_hook(enters(f"s{i}.pos", stage))
        for j, block in enumerate([stage.cross, *stage.blocks]):
            block.register_forward_hook(keep(f"s{i}.block{j}"))
        if stage.to_rgb is not None:
            stage.to_rgb.register_forward_hook(keep(f"s{i}.rgb"))
        if stage.upsample is not None:
            stage.upsample.register_forward_pre_hook(
                lambda module, inputs, key=f"s{i}.unblocked": seen.__setitem__(key, inputs[0])
            )
            stage.upsample.register_forward_hook(keep(f"s{i}.upsampled"))
    with torch.no_grad():
        image = channels_last(generator(io["z"]))
    tolerance = BATCH if mode == "train" else EXACT
    assert error(image, io["image_training" if mode == "train" else "image_inference"]) < tolerance
    steps = part("io", f"{mode}.")
    assert len(steps) == 23
    for key, wanted in steps.items():
        assert error(seen[key][: len(wanted)], wanted) < tolerance, key


def test_moving_statistics_after_one_forward():
    io, generator = recorded("io"), small_generator().train()
    with torch.no_grad():
        generator(io["z"])
    state, wanted = generator.state_dict(), part("io", "moving_after_one_training_forward/")
    moved = {key: path for key, path in tensorflow_paths(generator.typed_config).items() if path in wanted}
    assert len(moved) == len(wanted) == 2 * sum(isinstance(m, BatchNorm) for m in generator.modules())
    for key, path in moved.items():
        assert error(state[key], wanted[path]) < EXACT, path


def test_every_step_of_the_discriminator():
    io, judge = recorded("io"), small_discriminator()
    seen = []
    judge.from_rgb.register_forward_hook(
        lambda module, inputs, output: seen.append(F.leaky_relu(output, 0.2))
    )
    for block in judge.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = judge(channels_first(io["d.images"]))
        for number, features in enumerate(seen, start=1):
            wanted = io[f"d.feat{number}"]
            assert error(channels_last(features)[: len(wanted)], wanted) < EXACT
        assert error(channels_last(features), io["d.feat_out"]) < EXACT
        assert error(logits, io["d.logits"]) < LOGITS
        image = small_generator()(io["z"])
        assert error(judge(image), io["d.logits_of_image_inference"]) < LOGITS


def test_gradient_of_the_generators_loss():
    """Through both networks and the batch's statistics, to the latents."""
    io, generator, judge = recorded("io"), small_generator().train(), small_discriminator()
    z = io["z"].clone().requires_grad_()
    loss = F.softplus(-judge(generator(z))).mean()
    (gradient,) = torch.autograd.grad(loss, z)
    assert error(loss.detach()[None], io["gloss_training"]) < 5e-5
    assert error(gradient, io["grad.gloss_training_wrt_z"]) < 1e-4


def r1_of(judge, images):
    """Logits, the gradient of their sum, and HiT's penalty: 10 * mean ||gradient||^2, without the half."""
    images = images.clone().requires_grad_()
    logits = judge(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits.detach(), gradient.detach(), 10 * gradient.square().sum(dim=(1, 2, 3)).mean()


def test_r1_and_its_second_order_gradients():
    losses, judge = recorded("losses"), small_discriminator()
    logits, gradient, penalty = r1_of(judge, channels_first(losses["r1.images"]))
    assert error(logits, losses["r1.logits"]) < LOGITS
    assert error(penalty.detach()[None], losses["r1.penalty_cost10"]) < 5e-5
    wanted = losses["r1.input_gradient"]
    assert (channels_last(gradient) - wanted).norm() < 1e-4 * wanted.norm()
    penalty.backward()
    wanted = convert_tensorflow(part("losses", "r1.grad.discriminator/"), judge.typed_config)
    for name, parameter in judge.named_parameters():
        if name.endswith("bias"):  # they do not take part in the gradient of a piecewise linear network
            assert not wanted[name].any() and (parameter.grad is None or not parameter.grad.any())
        else:
            assert error(parameter.grad, wanted[name]) < 1e-4, name


@pytest.mark.parametrize("name", ["mqa_bn", "mha_bn", "mqa_ln"])
def test_generator_variants(name):
    io, generator = (
        part("generator_variants", f"{name}."),
        generator_of(part("generator_variants", f"{name}.w.")),
    )
    assert (generator.config["multi_query"], generator.config["norm"]) == (
        name != "mha_bn",
        "layer" if name == "mqa_ln" else "batch",
    )
    with torch.no_grad():
        assert error(channels_last(generator(io["z"])), io["image_inference"]) < EXACT
        assert error(channels_last(generator.train()(io["z"])), io["image_training"]) < BATCH


@pytest.mark.parametrize(
    ("name", "fields", "group"),
    [
        ("blur", {}, 1),
        ("avgpool", {"pooling": "average"}, 1),
        ("eqlr_stddev_blur", {"equalized": True}, 4),
        ("eqlr_stddev_avg", {"pooling": "average", "equalized": True}, 4),
    ],
)
def test_discriminator_variants(name, fields, group):
    io, variables = part("discriminator_variants", f"{name}."), part("discriminator_variants", f"{name}.w.")
    judge = HiTDiscriminator(infer_discriminator_config(variables, fields))
    judge.load_state_dict(convert_tensorflow(variables, judge.typed_config))
    assert judge.stddev_group == group
    with torch.no_grad():
        assert error(judge(channels_first(io["images"])), io["logits"]) < LOGITS


def fill(module, variables):
    """Fill a block or an attention with variables of an `AttentionBlock`, by its paths below the block."""
    entries = {
        name.removeprefix("."): (path.removeprefix("/"), change)
        for name, path, change in _attention_block("", "", True)
    }
    state = {name: change(variables[path]) for name, (path, change) in entries.items() if path in variables}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not missing and not unexpected and len(state) == len(variables)


CASES = {
    "multi_axis_mqa": {"multi_query": True},
    "multi_axis_mha": {"multi_query": False},
    "local_only_mqa": {"multi_query": True, "within": 4},
    "dilated_only_mqa": {"multi_query": True, "within": 0},
    "cross_mqa": {"multi_query": True},
    "cross_mha": {"multi_query": False},
    "cross_mqa_image_layout": {"multi_query": True},
}


@pytest.mark.parametrize("name", CASES)
def test_attention(name):
    """Results, and the gradients of all weights and inputs."""
    io = part("ops", f"{name}.")
    channels, heads = io["w.query_dense/kernel"].shape[:2]
    if name.startswith("cross"):
        attention = blocks.CrossAttention(channels, io["value"].shape[-1], heads, **CASES[name])
    else:
        attention = blocks.MultiAxisAttention(channels, heads, **CASES[name])
    holder = nn.ModuleDict({"attn": attention})
    fill(holder, {f"attention_layer/{key[2:]}": value for key, value in io.items() if key.startswith("w.")})
    inputs = {key: io[key].clone().requires_grad_() for key in ("query", "value") if key in io}
    out = attention(inputs["query"], *(inputs["value"].flatten(1, 2) for _ in range(len(inputs) - 1)))
    assert error(out.detach(), io["out"]) < EXACT
    (out * io["probe"]).sum().backward()
    for key, tensor in inputs.items():
        assert error(tensor.grad, io[f"grad.{key}"]) < EXACT
    for kind, ours in (("query", "query"), ("key", "key"), ("value", "value"), ("output", "proj")):
        layer = getattr(attention, ours)
        kernel = io[f"grad.{kind}_dense/kernel"]
        kernel = kernel.flatten(0, 1) if kind == "output" else kernel.flatten(1)
        assert error(layer.weight.grad, kernel.t()) < EXACT
        if kind != "key":  # whose true gradient is zero: softmax does not see a shift
            assert error(layer.bias.grad, io[f"grad.{kind}_dense/bias"].flatten()) < EXACT


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_attention_blocks(kind):
    io = part("ops", f"attn_block_{kind}.")
    channels, heads = io["w.attention_layer/query_dense/kernel"].shape[:2]
    if kind == "self":
        attention, embedding = blocks.MultiAxisAttention(channels, heads, True), ()
    else:
        attention = blocks.CrossAttention(channels, io["value"].shape[-1], heads, True)
        embedding = (io["value"].flatten(1, 2),)
    block = blocks.AttentionBlock(SHAPE, channels, attention).eval()
    fill(block, {key[2:]: value for key, value in io.items() if key.startswith("w.")})
    with torch.no_grad():
        assert error(block(io["in"], *embedding), io["out_inference"]) < EXACT
        assert error(block.train()(io["in"], *embedding), io["out_training"]) < EXACT


def norm_of(io, prefix="w."):
    norm = BatchNorm(len(io[f"{prefix}gamma"])).eval()
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    norm.load_state_dict({ours: io[prefix + theirs] for ours, theirs in names.items()})
    return norm


def test_norms():
    io = part("ops", "bn.")
    assert io["momentum_epsilon"].tolist() == pytest.approx([1 - MOMENTUM, EPS])
    norm, x = norm_of(io), io["in"].clone().requires_grad_()
    assert error(norm(x).detach(), io["out_inference"]) < EXACT
    out = norm.train()(x)
    assert error(out.detach(), io["out_training"]) < EXACT
    assert error(norm.running_mean, io["after.moving_mean"]) < EXACT
    assert error(norm.running_var, io["after.moving_variance"]) < EXACT
    (out * io["probe"]).sum().backward()
    assert error(x.grad, io["grad.in"]) < EXACT
    layer = blocks.make_norm(HiTConfig.preset("tiny", norm="layer"), 6)
    layer.load_state_dict({"weight": io["w.gamma"], "bias": io["w.beta"]})
    assert error(layer(io["in"]).detach(), recorded("ops")["ln.out"]) < EXACT


def test_rearrangements_are_exact():
    ops = recorded("ops")
    for case, side in (("8x8x3_p4", 4), ("12x12x5_p3", 3), ("16x24x2_p8", 8)):
        x, wanted = ops[f"block.{case}.in"], ops[f"block.{case}.out"]
        assert torch.equal(blocks.to_blocks(x, side), wanted)
        assert torch.equal(blocks.from_blocks(wanted, side, x.shape[1]), x)
    assert torch.equal(parts.depth_to_space(ops["depth_to_space2.in"]), ops["depth_to_space2.out"])
    plain = parts.Upsample(16, 4)
    assert not list(plain.parameters())
    assert torch.equal(plain(ops["ps_nodense.in"]), ops["ps_nodense.out"])


def test_small_layers():
    ops = recorded("ops")
    dense = parts.Upsample(12, 8)
    dense.proj.load_state_dict({"weight": ops["ps_dense.w.kernel"].t(), "bias": ops["ps_dense.w.bias"]})
    rgb = parts.ToRGB(SHAPE, 5).eval()
    rgb.norm = norm_of(part("ops", "rgb."), "w.norm.")
    rgb.proj.load_state_dict({"weight": ops["rgb.w.dense.kernel"].t(), "bias": ops["rgb.w.dense.bias"]})
    mlp = blocks.MLP(97, 1)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.eye_(layer.weight)
    with torch.no_grad():
        assert error(dense(ops["ps_dense.in"]), ops["ps_dense.out"]) < EXACT
        assert error(rgb(ops["rgb.in"]), ops["rgb.out_noskip"]) < EXACT
        assert error(rgb(ops["rgb.in"], ops["rgb.skip"]), ops["rgb.out"]) < EXACT
        assert error(mlp(ops["gelu.in"]), ops["gelu.out"]) < 1e-6  # the tanh GELU would be 5e-5 away


def test_layers_of_the_discriminator():
    ops = recorded("ops")
    blurred = blur(channels_first(ops["blur4.in"]), padding=1, stride=2)
    assert error(channels_last(blurred), ops["blur4.out"]) < EXACT
    for batch in (3, 4, 8):
        told = minibatch_stddev(channels_first(ops[f"stddev_b{batch}.in"]), 4)
        assert error(channels_last(told), ops[f"stddev_b{batch}.out"]) < EXACT
    conv = Conv(5, 4, 3, 3, equalized=True)
    conv.load_state_dict(
        {"weight": ops["equal_conv.w.kernel"].permute(3, 2, 0, 1), "bias": ops["equal_conv.w.bias"]}
    )
    dense = Linear(5, 7, equalized=True)  # recorded with a multiplier of 0.5 for weight and bias
    dense.load_state_dict(
        {"weight": ops["equal_dense.w.kernel"].t() / 2, "bias": ops["equal_dense.w.bias"] / 2}
    )
    with torch.no_grad():
        assert error(channels_last(conv(channels_first(ops["equal_conv.in"]))), ops["equal_conv.out"]) < EXACT
        assert error(dense(ops["equal_dense.in"]), ops["equal_dense.out"]) < EXACT


FULL_SIZE = [
    "S256",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("B256", "L256", "code128", "paper128", "B1024")),
]
FULL_SIZE_D = [
    "D128_cm1_blur",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("D256_cm2_blur", "D256_cm1_blur", "D256_cm1_avg")),
]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_generators(name):
    io, generator = part("fullsize", f"{name}."), built_by_formula(name)
    assert sum(p.numel() for p in generator.parameters()) == full_size()[name]["params_trainable"]
    z = formula_latents(name, len(io["z"]))
    assert torch.equal(z, io["z"])
    with torch.no_grad():
        image = generator(z[:1])
        (key,) = (key for key in io if key.startswith("image_inference_stride"))
        stride = int(key.removeprefix("image_inference_stride"))
        assert error(channels_last(image)[:, ::stride, ::stride], io[key]) < EXACT
        moments = torch.stack([image.mean(), image.abs().mean(), image.std(correction=0)]).double()
        assert error(moments, io["image_inference_mean_absmean_std"]) < EXACT
        if "image_training_stride8" in io:
            image = channels_last(generator.train()(z))[:, ::8, ::8]
            assert error(image, io["image_training_stride8"]) < 1e-4


@pytest.mark.parametrize("name", FULL_SIZE_D)
def test_full_size_discriminators(name):
    io, judge = part("fullsize", f"{name}."), built_by_formula(name)
    assert sum(p.numel() for p in judge.parameters()) == full_size()[name]["params_trainable"]
    logits, gradient, penalty = r1_of(judge, formula_images(name))
    torch.testing.assert_close(logits, io["logits"], atol=5e-5, rtol=1e-4)
    assert error(penalty.detach()[None], io["r1_penalty_cost10"]) < 5e-4
    wanted = io["input_gradient_stride8"]  # kinks of the leaky ReLU flip single elements
    assert (channels_last(gradient)[:, ::8, ::8] - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.gpu
def test_gpu_agrees_with_the_recordings():
    io = recorded("io")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    generator, judge = small_generator().cuda(), small_discriminator().cuda()
    with torch.no_grad():
        image = generator(io["z"].cuda())
        assert error(channels_last(image).cpu(), io["image_inference"]) < EXACT
        assert error(judge(image).cpu(), io["d.logits_of_image_inference"]) < LOGITS
        assert error(channels_last(generator.train()(io["z"].cuda())).cpu(), io["image_training"]) < BATCH

"""The FID network written a second time, step by step, with random weights in the layout of pytorch-fid's
file, and pictures to try it on."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

NAME = "pt_inception-2015-12-05-6726825d.pth"


def layout():
    """The shapes of pytorch-fid's state dict, block by block: convolution -> [out, in, height, width]."""
    shapes = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }
    for block, into, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        shapes[f"Mixed_{block}.branch1x1"] = (64, into, 1, 1)
        shapes[f"Mixed_{block}.branch5x5_1"] = (48, into, 1, 1)
        shapes[f"Mixed_{block}.branch5x5_2"] = (64, 48, 5, 5)
        shapes[f"Mixed_{block}.branch3x3dbl_1"] = (64, into, 1, 1)
        shapes[f"Mixed_{block}.branch3x3dbl_2"] = (96, 64, 3, 3)
        shapes[f"Mixed_{block}.branch3x3dbl_3"] = (96, 96, 3, 3)
        shapes[f"Mixed_{block}.branch_pool"] = (pooled, into, 1, 1)
    shapes["Mixed_6a.branch3x3"] = (384, 288, 3, 3)
    shapes["Mixed_6a.branch3x3dbl_1"] = (64, 288, 1, 1)
    shapes["Mixed_6a.branch3x3dbl_2"] = (96, 64, 3, 3)
    shapes["Mixed_6a.branch3x3dbl_3"] = (96, 96, 3, 3)
    for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        shapes[f"Mixed_{block}.branch1x1"] = (192, 768, 1, 1)
        shapes[f"Mixed_{block}.branch7x7_1"] = (c, 768, 1, 1)
        shapes[f"Mixed_{block}.branch7x7_2"] = (c, c, 1, 7)
        shapes[f"Mixed_{block}.branch7x7_3"] = (192, c, 7, 1)
        shapes[f"Mixed_{block}.branch7x7dbl_1"] = (c, 768, 1, 1)
        shapes[f"Mixed_{block}.branch7x7dbl_2"] = (c, c, 7, 1)
        shapes[f"Mixed_{block}.branch7x7dbl_3"] = (c, c, 1, 7)
        shapes[f"Mixed_{block}.branch7x7dbl_4"] = (c, c, 7, 1)
        shapes[f"Mixed_{block}.branch7x7dbl_5"] = (192, c, 1, 7)
        shapes[f"Mixed_{block}.branch_pool"] = (192, 768, 1, 1)
    shapes["Mixed_7a.branch3x3_1"] = (192, 768, 1, 1)
    shapes["Mixed_7a.branch3x3_2"] = (320, 192, 3, 3)
    shapes["Mixed_7a.branch7x7x3_1"] = (192, 768, 1, 1)
    shapes["Mixed_7a.branch7x7x3_2"] = (192, 192, 1, 7)
    shapes["Mixed_7a.branch7x7x3_3"] = (192, 192, 7, 1)
    shapes["Mixed_7a.branch7x7x3_4"] = (192, 192, 3, 3)
    for block, into in (("7b", 1280), ("7c", 2048)):
        shapes[f"Mixed_{block}.branch1x1"] = (320, into, 1, 1)
        shapes[f"Mixed_{block}.branch3x3_1"] = (384, into, 1, 1)
        shapes[f"Mixed_{block}.branch3x3_2a"] = (384, 384, 1, 3)
        shapes[f"Mixed_{block}.branch3x3_2b"] = (384, 384, 3, 1)
        shapes[f"Mixed_{block}.branch3x3dbl_1"] = (448, into, 1, 1)
        shapes[f"Mixed_{block}.branch3x3dbl_2"] = (384, 448, 3, 3)
        shapes[f"Mixed_{block}.branch3x3dbl_3a"] = (384, 384, 1, 3)
        shapes[f"Mixed_{block}.branch3x3dbl_3b"] = (384, 384, 3, 1)
        shapes[f"Mixed_{block}.branch_pool"] = (192, into, 1, 1)
    return shapes


NORM = ("weight", "bias", "running_mean", "running_var")


@functools.cache
def random_weights(seed=0):
    """A state dict of the right layout in which every tensor matters."""
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout().items():
        deviation = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=chance) * deviation
        for part in NORM:
            around = 1.0 if part in ("weight", "running_var") else 0.0
            state[f"{name}.bn.{part}"] = around + torch.rand(shape[0], generator=chance) - 0.5 * (1 - around)
    state["fc.weight"] = torch.randn(1008, 2048, generator=chance) * 0.02
    state["fc.bias"] = torch.randn(1008, generator=chance)
    return state


def blank_weights():
    """The right layout in a small file: each tensor is one number, stored once."""
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in random_weights().items()}


def convolved(state, name, x, *, stride=1, padding=0):
    x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
    gain, shift, mean, variance = (state[f"{name}.bn.{part}"].reshape(-1, 1, 1) for part in NORM)
    return ((x - mean) / (variance + 0.001).sqrt() * gain + shift).clamp(min=0)


def mean_of_those_there(x):
    """The mean of 3 x 3 pixels around each, at the edge of fewer, by sums alone."""
    total = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=1) * 9
    there = F.avg_pool2d(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, stride=1) * 9
    return total / there


def greatest(x):
    return F.unfold(F.pad(x, (1,) * 4, value=-torch.inf), 3).reshape(*x.shape[:2], 9, *x.shape[2:]).amax(2)


def reference(state, x):
    """The FID network step by step, by its tensors' names. Returns features and logits."""

    def c(name, x, **options):
        return convolved(state, name, x, **options)

    x = c("Conv2d_1a_3x3", x, stride=2)
    x = c("Conv2d_2b_3x3", c("Conv2d_2a_3x3", x), padding=1)
    x = c("Conv2d_4a_3x3", c("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        one = c(f"{b}.branch1x1", x)
        five = c(f"{b}.branch5x5_2", c(f"{b}.branch5x5_1", x), padding=2)
        three = c(f"{b}.branch3x3dbl_2", c(f"{b}.branch3x3dbl_1", x), padding=1)
        three = c(f"{b}.branch3x3dbl_3", three, padding=1)
        x = torch.cat([one, five, three, c(f"{b}.branch_pool", mean_of_those_there(x))], 1)
    b = "Mixed_6a"
    three = c(f"{b}.branch3x3dbl_2", c(f"{b}.branch3x3dbl_1", x), padding=1)
    three = c(f"{b}.branch3x3dbl_3", three, stride=2)
    x = torch.cat([c(f"{b}.branch3x3", x, stride=2), three, F.max_pool2d(x, 3, 2)], 1)
    wide, high = {"padding": (0, 3)}, {"padding": (3, 0)}
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = c(f"{b}.branch7x7_2", c(f"{b}.branch7x7_1", x), **wide)
        seven = c(f"{b}.branch7x7_3", seven, **high)
        double = c(f"{b}.branch7x7dbl_2", c(f"{b}.branch7x7dbl_1", x), **high)
        double = c(f"{b}.branch7x7dbl_4", c(f"{b}.branch7x7dbl_3", double, **wide), **high)
        double = c(f"{b}.branch7x7dbl_5", double, **wide)
        pooled = c(f"{b}.branch_pool", mean_of_those_there(x))
        x = torch.cat([c(f"{b}.branch1x1", x), seven, double, pooled], 1)
    b = "Mixed_7a"
    seven = c(f"{b}.branch7x7x3_2", c(f"{b}.branch7x7x3_1", x), **wide)
    seven = c(f"{b}.branch7x7x3_4", c(f"{b}.branch7x7x3_3", seven, **high), stride=2)
    three = c(f"{b}.branch3x3_2", c(f"{b}.branch3x3_1", x), stride=2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    wide, high = {"padding": (0, 1)}, {"padding": (1, 0)}
    for b, pool in (("Mixed_7b", mean_of_those_there), ("Mixed_7c", greatest)):
        three = c(f"{b}.branch3x3_1", x)
        double = c(f"{b}.branch3x3dbl_2", c(f"{b}.branch3x3dbl_1", x), padding=1)
        x = torch.cat(
            [
                *(c(f"{b}.branch1x1", x), c(f"{b}.branch3x3_2a", three, **wide)),
                *(c(f"{b}.branch3x3_2b", three, **high), c(f"{b}.branch3x3dbl_3a", double, **wide)),
                *(c(f"{b}.branch3x3dbl_3b", double, **high), c(f"{b}.branch_pool", pool(x))),
            ],
            1,
        )
    features = x.mean((2, 3))
    return features, features @ state["fc.weight"].T


def fixed_images(height, width):
    """A smooth picture, one of noise, and stripes of one pixel, which no two resizes treat alike."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (height + width)])
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width))
    stripes = np.broadcast_to((x % 2) * 255, (3, height, width))
    return torch.from_numpy(np.stack([smooth, noise, stripes]).astype(np.uint8))

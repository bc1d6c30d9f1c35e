"""The FID network: Inception-v3 as TensorFlow's file of 2015-12-05 has it, in plain PyTorch.

It is not the Inception-v3 of today's libraries. It has 1008 classes, its mean pools divide by the pixels that
are there (not by the padding), and its last block pools by the maximum where the paper has a mean. The names
of the tensors are torchvision's, because pytorch-fid's file has them.

Sources: arXiv 1512.00567 for the blocks; for what differs, pytorch-fid
(https://github.com/mseitzer/pytorch-fid), which all papers of this zoo used.

Legend: B pictures, C channels, H, W their height and width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stylenat_hub.errors import InputError, WeightsError, listed
from stylenat_hub.metrics.exact import exact, in_equal_batches
from stylenat_hub.metrics.inception_weights import SOURCE, Weights, read_weights, tensors_sha256
from stylenat_hub.metrics.resizing import INCEPTION, check_images

SIDE = 299  # pixels
FEATURES, CLASSES = 2048, 1008
EPSILON = 1e-3  # of the norms

# A convolution: its name, output channels, kernel (height, width or both), stride. With stride 1 it keeps
# the size, with stride 2 it has no padding. A path is what a block does one after the other: poolings by
# name, convolutions, and at the end perhaps a list of convolutions of the same input. A block joins its
# paths' outputs, in this order.
Conv = tuple[str, int, Any, int]
Path = tuple[Any, ...]


def _mean(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


POOLS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "maximum": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "halved": lambda x: F.max_pool2d(x, 3, stride=2),
}


def _a(pooled: int) -> tuple[Path, ...]:
    return (
        (("branch1x1", 64, 1, 1),),
        (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)),
        ("mean", ("branch_pool", pooled, 1, 1)),
    )


_B: tuple[Path, ...] = (
    (("branch3x3", 384, 3, 2),),
    (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)),
    ("halved",),
)


def _c(inner: int) -> tuple[Path, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (("branch1x1", 192, 1, 1),),
        (("branch7x7_1", inner, 1, 1), ("branch7x7_2", inner, row, 1), ("branch7x7_3", 192, column, 1)),
        (
            *(("branch7x7dbl_1", inner, 1, 1), ("branch7x7dbl_2", inner, column, 1)),
            *(("branch7x7dbl_3", inner, row, 1), ("branch7x7dbl_4", inner, column, 1)),
            ("branch7x7dbl_5", 192, row, 1),
        ),
        ("mean", ("branch_pool", 192, 1, 1)),
    )


_D: tuple[Path, ...] = (
    (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)),
    (
        *(("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, (1, 7), 1)),
        *(("branch7x7x3_3", 192, (7, 1), 1), ("branch7x7x3_4", 192, 3, 2)),
    ),
    ("halved",),
)


def _e(pool: str) -> tuple[Path, ...]:
    def both(name: str) -> list[Conv]:
        return [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]

    return (
        (("branch1x1", 320, 1, 1),),
        (("branch3x3_1", 384, 1, 1), both("branch3x3_2")),
        (("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1), both("branch3x3dbl_3")),
        (pool, ("branch_pool", 192, 1, 1)),
    )


# name, channels that come in, paths
BLOCKS: tuple[tuple[str, int, tuple[Path, ...]], ...] = (
    ("Mixed_5b", 192, _a(32)),
    ("Mixed_5c", 256, _a(64)),
    ("Mixed_5d", 288, _a(64)),
    ("Mixed_6a", 288, _B),
    ("Mixed_6b", 768, _c(128)),
    ("Mixed_6c", 768, _c(160)),
    ("Mixed_6d", 768, _c(160)),
    ("Mixed_6e", 768, _c(192)),
    ("Mixed_7a", 768, _D),
    ("Mixed_7b", 1280, _e("mean")),
    ("Mixed_7c", 2048, _e("maximum")),
)

MAPPED = ("Mixed_5d", "Mixed_6e", "Mixed_7c")  # the last block of each size


class _Norm(nn.Module):
    """Batch norm by its stored statistics: nothing in training mode can change it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON)


class _Convolution(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, incoming: int, channels: int, kernel: Any, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, channels, kernel, stride, padding, bias=False)
        self.bn = _Norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """[B, C, H, W] -> the paths' outputs side by side, [B, sum of their channels, H', W']."""

    def __init__(self, incoming: int, paths: tuple[Path, ...]) -> None:
        super().__init__()
        self.paths = paths
        for path in paths:
            channels = incoming
            for step in path:
                if isinstance(step, str):
                    continue
                for conv in step if isinstance(step, list) else [step]:
                    self._add(channels, conv)
                channels = step[1] if isinstance(step, tuple) else channels

    def _add(self, incoming: int, conv: Conv) -> None:
        name, channels, kernel, stride = conv
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 for side in sides) if stride == 1 else 0
        self.add_module(name, _Convolution(incoming, channels, sides, stride, padding))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._along(path, x) for path in self.paths], dim=1)

    def _along(self, path: Path, x: torch.Tensor) -> torch.Tensor:
        for step in path:
            if isinstance(step, str):
                x = POOLS[step](x)
            elif isinstance(step, list):
                x = torch.cat([getattr(self, name)(x) for name, *_ in step], dim=1)
            else:
                x = getattr(self, step[0])(x)
        return x


class FIDInception(nn.Module):
    """Prepared pictures [B, 3, 299, 299] -> features [B, 2048] and logits [B, 1008].

    23,850,960 parameters. The logits are without the output's bias, as in the code of the Inception Score's
    authors (arXiv 1606.03498) and in all that follow it; `fc.bias` is in the file and not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        for name, incoming, paths in BLOCKS:
            self.add_module(name, _Block(incoming, paths))
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [B, 64, 147, 147]
        x = self.Conv2d_3b_1x1(POOLS["halved"](x))  # [B, 80, 73, 73]
        x = POOLS["halved"](self.Conv2d_4a_3x3(x))  # [B, 192, 35, 35]
        for name, *_ in BLOCKS:
            x = getattr(self, name)(x)  # [B, 288, 35, 35], then [B, 768, 17, 17], then [B, 2048, 8, 8]
        features = x.mean(dim=(2, 3))  # [B, 2048]
        return features, F.linear(features, self.fc.weight)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Prepared pictures -> what goes into the first pool, [B, 64, 147, 147], and the last blocks' outputs
        of each size: [B, 288, 35, 35], [B, 768, 17, 17], [B, 2048, 8, 8]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        found = [x]
        x = POOLS["halved"](self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(POOLS["halved"](x))))
        for name, *_ in BLOCKS:
            x = getattr(self, name)(x)
            if name in MAPPED:
                found.append(x)
        return found


class _Script(nn.Module):
    """NVIDIA's TorchScript file of the same network, without its own resize: `layers` takes prepared
    pictures, `output` has the classes' weights (as their metrics and clean-fid use it)."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The first calls would run other, not yet fused kernels than the later ones.
        with torch.jit.optimized_execution(False):
            features = self.script.layers(x).flatten(1)
        return features, F.linear(features, self.script.output.weight)


class InceptionExtractor:
    """Features and logits of the FID network; an `Extractor` (see `stylenat_hub.metrics.features`).

    weights: see `read_weights`. resize: "pytorch-fid" (what papers mean by FID unless they say otherwise),
    "torch-fidelity" or "clean".

    On a CPU each picture goes through the network by itself, elsewhere they go in batches of exactly 32, the
    last filled up: so the size of a batch changes no bit of a feature. The number of threads and the device
    may change the last bits, because they change the order of sums.

    Raises:
        InputError: an unknown resize. WeightsError, UnsafeCheckpointError: see `read_weights`.
    """

    name = "inception"
    dim = FEATURES

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        resize: str = "pytorch-fid",
        device: str | torch.device = "cpu",
    ) -> None:
        if resize not in INCEPTION:
            raise InputError(f"resize is {resize!r}; allowed for inception: {', '.join(INCEPTION)}")
        self._way = INCEPTION[resize]
        found = read_weights(weights)
        self.network, digest = _built(found)
        self.weights_file: Mapping[str, Any] = found.facts
        self.protocol: Mapping[str, Any] = {
            "extractor": self.name,
            "network": "FID Inception-v3 (2015-12-05)",
            "preprocessing": resize,
            **self._way.facts(SIDE),
            "features": "2048, mean of the last block",
            "logits": "1008, without the output's bias",
            "precision": "float32, no TF32",
            "weights_layout": found.kind,
            "weights_sha256": digest,
            "source": f"{self._way.source}; weights: {SOURCE}",
        }
        self.to(device)

    def to(self, device: str | torch.device) -> InceptionExtractor:
        """Move the network there; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> what the network is fed, float32 [B, 3, 299, 299], on the extractor's
        device."""
        return self._way.apply(check_images(images).to(self.device), SIDE)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [B, 3, H, W] in RGB -> features [B, 2048] and logits [B, 1008], float32, on the extractor's
        device. Raises `InputError` for other pictures."""
        with exact():
            return in_equal_batches(self.network, self.preprocess, check_images(images), self.device)

    def differentiable(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Pictures [B, 3, H, W] in [0, 1] -> maps of four depths with gradients (of NVIDIA's file only the
        features [B, 2048]). For `latents.losses`; no metric uses it.

        Raises `InputError` for the resize "clean", which goes through Pillow.
        """
        if self.protocol["preprocessing"] == "clean":
            raise InputError("the resize 'clean' has no gradients; use pytorch-fid or torch-fidelity")
        prepared = self._way.apply(images.to(self.device) * 255, SIDE)
        if isinstance(self.network, FIDInception):
            return self.network.maps(prepared)
        return [self.network(prepared)[0]]


def _built(found: Weights) -> tuple[nn.Module, str]:
    """The network with these weights, frozen, and the hash of its tensors."""
    if found.script is not None:
        network: nn.Module = _Script(found.script)
        check_script(network, found.name)
        digest = tensors_sha256(found.script.state_dict())
    else:
        with torch.device("meta"):  # the weights are given: nothing to draw
            network = FIDInception()
        check_layout(found.tensors, network.state_dict(), found.name)
        network.load_state_dict(found.tensors, assign=True)
        digest = tensors_sha256(found.tensors)
    return network.eval().requires_grad_(False), digest


def check_layout(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str
) -> None:
    """Raise `WeightsError` unless the tensors are the expected ones, by name and shape, in float32 and
    finite."""
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        told = [
            f"{len(names)} {problem} ({listed(names, 3)})"
            for names, problem in ((missing, "missing"), (extra, "unexpected"))
            if names
        ]
        raise WeightsError(
            f"{where} does not hold the FID network: of its tensors {' and '.join(told)}; give the weights "
            "that pytorch-fid uses (torchvision's Inception has others)"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != torch.float32:
            raise WeightsError(
                f"the tensor {name!r} of {where} is {list(tensor.shape)} of {tensor.dtype}; the FID network "
                f"has {list(expected[name].shape)} of torch.float32: give the weights that pytorch-fid uses"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"the tensor {name!r} of {where} holds NaN or infinite values; the file is damaged: "
                "download it again"
            )


def check_script(network: nn.Module, where: str) -> None:
    """Raise `WeightsError` unless a TorchScript file does what NVIDIA's does."""
    try:
        with torch.no_grad():
            features, logits = network(torch.zeros(1, 3, SIDE, SIDE))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise WeightsError(
            f"{where} is TorchScript, but not the FID network as NVIDIA's inception-2015-12-05.pt has it "
            f"(`layers` and `output`): {why}; give that file, or pytorch-fid's state dict"
        ) from error
    if features.shape != (1, FEATURES) or logits.shape != (1, CLASSES) or features.dtype != torch.float32:
        raise WeightsError(
            f"{where} gives features {list(features.shape)} of {features.dtype} and logits "
            f"{list(logits.shape)}; the FID network gives [1, {FEATURES}] of torch.float32 and "
            f"[1, {CLASSES}]: give NVIDIA's inception-2015-12-05.pt, or pytorch-fid's state dict"
        )

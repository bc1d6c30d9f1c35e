"""Original state dicts of the wavelet discriminator: reading a config off them, renaming them to ours.

StyleSwin and StyleNAT share this discriminator and its names, so both families convert it here. The layout
was read off recordings of the original code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.discriminator import WaveletDiscriminator, WaveletDiscriminatorConfig
from stylenat_hub.models.original import check_constant, patterns, renamed, taken

_RENAMES = patterns(
    (r"from_rgbs\.(\d+)\.conv\.0\.weight_(orig|u|v)", r"from_rgb.\1.\2"),
    (r"from_rgbs\.(\d+)\.conv\.1\.bias", r"from_rgb.\1.bias"),
    (r"convs\.(\d+)\.conv1\.0\.weight_(orig|u|v)", r"scales.\1.conv1.\2"),
    (r"convs\.(\d+)\.conv1\.1\.bias", r"scales.\1.conv1.bias"),
    (r"convs\.(\d+)\.conv2\.1\.weight_(orig|u|v)", r"scales.\1.conv2.\2"),
    (r"convs\.(\d+)\.conv2\.2\.bias", r"scales.\1.conv2.bias"),
    (r"final_conv\.0\.weight_(orig|u|v)", r"final_conv.\1"),
    (r"final_conv\.1\.bias", r"final_conv.bias"),
    (r"final_linear\.0\.weight_(orig|u|v)", r"hidden.\1"),
    (r"final_linear\.0\.bias", r"hidden.bias"),
    (r"final_linear\.1\.bias", r"hidden_bias"),
    (r"final_linear\.2\.weight_(orig|u|v)", r"logit.\1"),
    (r"final_linear\.2\.bias", r"logit.bias"),
)
_WAVELET = re.compile(r"(?:from_rgbs\.\d+\.)?([di])wt\.(ll|lh|hl|hh)")
_BLUR = re.compile(r"from_rgbs\.\d+\.downsample\.kernel|convs\.\d+\.conv2\.0\.kernel")
_MOST_SCALES = 10  # 2048 to 4 px, of the largest picture that a config allows
_HAAR = {
    "ll": ((0.5, 0.5), (0.5, 0.5)),
    "lh": ((-0.5, -0.5), (0.5, 0.5)),
    "hl": ((-0.5, 0.5), (-0.5, 0.5)),
    "hh": ((0.5, -0.5), (-0.5, 0.5)),
}


def convert_discriminator(
    state: Mapping[str, Tensor], *, config: Mapping[str, Any] | None = None
) -> WaveletDiscriminator:
    """The discriminator with an original state dict's weights and singular vectors, in eval mode.

    config: fields of its config that must be those of the tensors, which state all of them.

    Raises:
        WeightsError: it is of another kind, or a tensor is missing, unknown, misshapen or not finite, by
        name.
        ConfigError: config contradicts the tensors.
    """
    found = infer_discriminator_config(state)
    if found != WaveletDiscriminatorConfig.from_dict({**found.to_dict(), **(config or {})}):
        raise ConfigError(f"the tensors make the discriminator {found}, which the config contradicts")
    discriminator = WaveletDiscriminator(found)
    converted = convert_discriminator_state_dict(state)
    needed = discriminator.state_dict()
    for name in sorted(needed.keys() | converted.keys()):
        if name not in converted or converted[name].shape != needed[name].shape:
            found = list(converted[name].shape) if name in converted else "missing"
            raise WeightsError(
                f"the discriminator's tensor {name!r} (name after conversion) is {found} where "
                f"{list(needed[name].shape)} "
                "is needed; it is damaged or of a variant: leave it out (--skip-discriminator)"
            )
    discriminator.load_state_dict(converted)
    return discriminator.eval()


def infer_discriminator_config(state: Mapping[str, Tensor]) -> WaveletDiscriminatorConfig:
    """The config of an original discriminator. Raises `WeightsError` if it is of another kind."""
    widths = {
        match[1]: tensor.shape[0]
        for name, tensor in state.items()
        if (match := re.fullmatch(r"from_rgbs\.(\d+)\.conv\.0\.weight_orig", name)) and tensor.dim()
    }
    if not 3 <= len(widths) <= _MOST_SCALES or widths.keys() != set(map(str, range(len(widths)))):
        plain = "from_rgbs.0.conv.0.weight" in state
        raise WeightsError(
            "the checkpoint's discriminator 'd' is "
            + ("a variant without spectral norm" if plain else "not the wavelet discriminator")
            + ", which is not supported; leave it out (--skip-discriminator)"
        )
    channels = tuple(widths[str(i)] for i in range(len(widths)))
    return WaveletDiscriminatorConfig(resolution=2 ** (len(channels) + 2), channels=channels)


def convert_discriminator_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights and singular vectors, float32, under our names, without the constant filters.

    Raises `WeightsError`, by name: an unknown tensor, one that is not finite, a filter with other values.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        try:
            if not _is_verified_filter(name, tensor):
                new = re.sub(r"\borig$", "weight", renamed(name, _RENAMES, "wavelet discriminator"))
                converted[new] = taken(name, tensor, "discriminator's tensor")
        except WeightsError as error:
            raise WeightsError(f"{error}; or leave the discriminator out (--skip-discriminator)") from None
    return converted


def _is_verified_filter(name: str, tensor: Tensor) -> bool:
    """Is this a constant filter of the original code, with the values it must have? Other values raise."""
    wavelet = _WAVELET.fullmatch(name)
    if wavelet:
        expected = torch.tensor(_HAAR[wavelet[2]])
        if wavelet[1] == "i" and wavelet[2] in ("lh", "hl"):
            expected = -expected  # the inverse transform filters with the mirrored bands
    elif _BLUR.fullmatch(name):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        expected = torch.outer(taps, taps)
    else:
        return False
    check_constant(name, tensor, expected, "the wavelet discriminator")
    return True

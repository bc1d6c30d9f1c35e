"""An original discriminator: kept as it is under its own names, with the facts that its tensors tell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stylenat_hub.errors import WeightsError

FOLDER = "discriminator"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def save_discriminator(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write `FOLDER/WEIGHTS_NAME` (original tensor names) and `FOLDER/config.json` below `folder`.

    Raises:
        WeightsError: a tensor is not finite, or the tensors are of another kind of discriminator.
    """
    facts = discriminator_facts(state)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"the discriminator's tensor {name!r} holds NaN or infinite values; take an earlier "
                "checkpoint, or leave the discriminator out (--skip-discriminator)"
            )
    target = folder / FOLDER
    target.mkdir()
    # Clones, because buffers that share memory in the original cannot be written to a safetensors file.
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, target / WEIGHTS_NAME)
    (target / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def discriminator_facts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Resolution, channels (by side of the feature maps, finest first) and whether spectral norm is used.

    The wavelet transform at the entrance halves the sides, and each conv block halves them again, down to 4.
    """
    blocks = {
        int(match[1]) for match in (re.match(r"convs\.(\d+)\.conv2\.", name) for name in state) if match
    }
    spectral = "from_rgbs.0.conv.0.weight_orig" in state
    suffix = "weight_orig" if spectral else "weight"
    names = ["from_rgbs.0.conv.0", *(f"convs.{number}.conv2.1" for number in range(len(blocks)))]
    missing = [f"{name}.{suffix}" for name in names if f"{name}.{suffix}" not in state]
    if missing or not blocks:
        raise WeightsError(
            "the checkpoint's 'd' is not a wavelet discriminator of StyleNAT (no "
            f"{(missing or ['convs.*'])[0]!r}); leave it out (--skip-discriminator)"
        )
    sides = [4 * 2 ** (len(blocks) - number) for number in range(len(names))]
    widths = [int(state[f"{name}.{suffix}"].shape[0]) for name in names]
    return {
        "resolution": 2 * sides[0],
        "channels": {str(side): width for side, width in zip(sides, widths, strict=True)},
        "spectral_norm": spectral,
        "tensor_names": "original",
    }

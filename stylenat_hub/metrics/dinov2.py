"""Features of DINOv2, for FD-DINOv2 (arXiv 2306.04675): transformers' model, dgm-eval's preprocessing.

transformers is not needed by this package, and is imported only here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stylenat_hub import download
from stylenat_hub.errors import InputError, WeightsError
from stylenat_hub.metrics.exact import exact, in_equal_batches
from stylenat_hub.metrics.inception_weights import tensors_sha256
from stylenat_hub.metrics.resizing import DINOV2, IMAGENET_MEAN, IMAGENET_STD, check_images

MODEL = "facebook/dinov2-large"  # 1024 features, the one of arXiv 2306.04675
FILES = ("config.json", "model.safetensors")
SIDE = 224  # pixels


class _ClassToken(nn.Module):
    """Prepared pictures -> the class token after the last norm [B, D], and no logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.model(pixel_values=x).last_hidden_state[:, 0], None


class DINOv2Extractor:
    """The class token of DINOv2, [B, 1024] for the large model, and no logits; an `Extractor` (see
    `stylenat_hub.metrics.features`).

    weights: a Hub id or a folder with `config.json` and `model.safetensors` as transformers saves them; None
    is facebook/dinov2-large, downloaded to the Hub's cache.

    Batches are computed as `InceptionExtractor` does, so their size changes no bit. Known difference from
    figures that used torch.hub's model: transformers interpolates the position embeddings to 224 px without
    that model's offset of 0.1. How much FD-DINOv2 changes by it was not measured.

    Raises:
        InputError: transformers is not installed.
        WeightsError: the files are missing, damaged or of another model.
        UnknownModelError: the Hub has no such repository or cannot be asked.
    """

    name = "dinov2"

    def __init__(
        self, weights: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
    ) -> None:
        model_class = _model_class()
        where = os.fspath(weights or MODEL)
        model = _loaded(model_class, _folder(where), where)
        self.dim = int(model.config.hidden_size)
        self.network = _ClassToken(model)
        self.protocol: Mapping[str, Any] = {
            "extractor": self.name,
            "network": f"DINOv2, {model.config.num_hidden_layers} layers of {self.dim}, patches of "
            f"{model.config.patch_size} px, by transformers",
            **DINOV2.facts(SIDE),
            "features": f"{self.dim}, class token after the last norm",
            "logits": "none",
            "precision": "float32, no TF32",
            "weights_sha256": tensors_sha256(model.state_dict()),
            "source": f"{DINOV2.source}; weights: {MODEL if weights is None else 'given by the user'}",
        }
        self.to(device)

    def to(self, device: str | torch.device) -> DINOv2Extractor:
        """Move the network there; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> what the network is fed, float32 [B, 3, 224, 224], on the extractor's
        device."""
        return DINOV2.apply(check_images(images), SIDE).to(self.device)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        """uint8 [B, 3, H, W] in RGB -> features float32 [B, D] on the extractor's device, and None. Raises
        `InputError` for other pictures."""
        with exact():
            features, _ = in_equal_batches(self.network, self.preprocess, check_images(images), self.device)
        return features, None

    def differentiable(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> all tokens after the last norm [B, tokens, D] with gradients.
        torch's bicubic filter takes the place of Pillow's, and nothing is rounded. For `latents.losses`; no
        metric uses it."""
        size = {"size": (SIDE, SIDE), "mode": "bicubic", "align_corners": False, "antialias": True}
        resized = F.interpolate(images.to(self.device), **size)
        mean, std = (resized.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.network.model(pixel_values=(resized - mean) / std).last_hidden_state


def _model_class() -> Any:
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise InputError(
            "the extractor 'dinov2' needs transformers, which is not installed (or too old); install it with "
            "`pip install 'transformers>=4.56'`, or use inception or random-conv"
        ) from error
    return Dinov2Model


def _folder(where: str) -> Path:
    path = Path(where).expanduser()
    if not path.is_dir():
        path = download.fetch(where, FILES)
    for name in FILES:
        if not (path / name).is_file():
            raise WeightsError(
                f"{where!r} has no {name}; give a Hub id or a folder with {' and '.join(FILES)}, as "
                f"{MODEL} has them"
            )
    return path


def _loaded(model_class: Any, folder: Path, where: str) -> nn.Module:
    try:
        model, report = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"{where!r} cannot be loaded as DINOv2 ({why[:200]}); give {MODEL}") from error
    wrong = [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]
    if wrong or getattr(model.config, "model_type", "dinov2") != "dinov2":
        raise WeightsError(
            f"{where!r} is not DINOv2's weights: {len(wrong)} tensors are missing, misshapen or unexpected "
            f"(the first: {wrong[0] if wrong else 'none'}); give {MODEL}"
        )
    return model.eval().requires_grad_(False)

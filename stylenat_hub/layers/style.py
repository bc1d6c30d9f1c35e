"""Style: the mapping network from latents to styles, and the normalisation through which styles act.

Legend: B batch, L tokens, C channels. The arithmetic of StyleGAN2 (arXiv 1912.04958) as StyleSwin
(2112.10762) and StyleNAT (2211.05770) use it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

PART = 4096  # tokens at a time where nothing is kept for gradients


def pixel_norm(z: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scale each latent [B, z_dim] to unit mean square."""
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + eps)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: weights are kept at N(0, 1) / lr_mul and scaled on use."""

    def __init__(self, in_features: int, out_features: int, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.lr_mul = lr_mul
        nn.init.normal_(self.weight, std=1 / lr_mul)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.lr_mul / math.sqrt(self.weight.shape[1])
        return F.linear(x, self.weight * scale, self.bias * self.lr_mul)


class MappingNetwork(nn.Module):
    """z [B, z_dim] -> w [B, w_dim]: pixel norm, equalised layers with leaky ReLU (slope 0.2, gain sqrt 2)."""

    def __init__(self, z_dim: int, w_dim: int, depth: int, lr_mul: float) -> None:
        super().__init__()
        widths = [z_dim] + [w_dim] * depth
        self.layers = nn.ModuleList(EqualLinear(widths[i], widths[i + 1], lr_mul) for i in range(depth))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        w = pixel_norm(z)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), 0.2) * math.sqrt(2)
        return w


class AdaIN(nn.Module):
    """Instance norm over the tokens, then a scale and a shift from the style: gamma * x + beta."""

    eps = 1e-5

    def __init__(self, channels: int, w_dim: int) -> None:
        super().__init__()
        self.style = EqualLinear(w_dim, 2 * channels)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """x [B, L, C], w [B, w_dim] -> [B, L, C] in the dtype of x."""
        return self.modulate(x, *self.statistics(x, w))

    def statistics(self, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [B, L, C], w [B, w_dim] -> mean, scale, shift [B, 1, C] for `modulate`, float32 at least."""
        gamma, beta = self.style(w).unsqueeze(1).chunk(2, dim=-1)  # gamma first
        # Two plain means are several times faster on CPUs than var_mean, whose reduction over an outer
        # dimension is not vectorised. Sums over thousands of tokens need float32.
        wide = x if x.dtype == torch.float64 else x.float()
        mean = wide.mean(dim=1, keepdim=True)
        if torch.is_grad_enabled():
            variance = (wide - mean).square().mean(dim=1, keepdim=True)
        else:  # the same in parts, without a second and third tensor of this size
            parts = wide.split(PART, dim=1)
            variance = sum((part - mean).square_().sum(dim=1, keepdim=True) for part in parts) / wide.shape[1]
        return mean, gamma.to(wide.dtype) * torch.rsqrt(variance + self.eps), beta.to(wide.dtype)

    @staticmethod
    def modulate(
        x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        """scale * (x - mean) + shift, in the dtype of x."""
        return torch.addcmul(shift, x - mean, scale).to(x.dtype)

"""What the shared files of `models/` promise to every family, the next one too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conversion.containers import read_checkpoint
from stylenat_hub.errors import ConfigError, WeightsError
from stylenat_hub.models.config import LevelsConfig
from stylenat_hub.models.original import numbered, patterns, renamed, shape_of, taken
from stylenat_hub.registry import FAMILIES

GOLDENS = Path(__file__).parent / "goldens"
# A generator that each family's original has saved: its file, the name of the network in it.
RECORDED = {
    "stylenat": ("stylenat_legacy_ffhq_style_64.pt", "g_ema"),
    "styleswin": ("styleswin_ffhq_style_64.pt", "g_ema"),
    "hit": ("hit/ckpt", "generator"),
}


@pytest.mark.parametrize("owner", FAMILIES)
def test_each_family_recognises_its_own_and_no_other(owner):
    file, network = RECORDED[owner]
    state = read_checkpoint(GOLDENS / file).network(network)
    assert [name for name, family in FAMILIES.items() if family.recognise(state)] == [owner]
    for other in RECORDED.keys() - {owner}:  # what two have in common is no sign of either
        file, network = RECORDED[other]
        common = {key: state[key] for key in state.keys() & read_checkpoint(GOLDENS / file).network(network)}
        assert not any(family.recognise(common) for family in FAMILIES.values())


@dataclass(frozen=True)
class ConvolutionsConfig(LevelsConfig):
    """Of a family without heads and MLPs."""

    resolution: int = 32
    channels: tuple[int, ...] = (3, 2, 1, 1)
    z_dim: int = 4
    w_dim: int = 4
    mapping_layers: int = 2
    mapping_lr_mul: float = 0.01
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def validate(self):
        self.validate_common(("channels",))


def test_levels_need_no_transformer():
    assert ConvolutionsConfig().level_size(3) == 32
    for field, value, message in (
        ("resolution", 24, "resolution is 24; allowed: a power of two from 8 to 4096"),
        ("resolution", 8192, "a power of two from 8 to 4096"),
        ("resolution", 4, "a power of two from 8 to 4096"),
        ("resolution", 32.0, "a power of two from 8 to 4096"),
        ("channels", [3, 2, 1], "4 entries, one per level from 4 to 32 px"),
        ("mapping_layers", 0, "a whole number from 1 to 64"),
        ("image_std", [1, 1, 0], "three numbers above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ConvolutionsConfig(**{field: value})


def test_names_are_those_of_the_familys_own_table():
    table = patterns(
        (r"convs\.(\d+)\.weight", lambda match: f"levels.{int(match[1]) + 1}.weight"),
        (r"convs\.(\d+)\.(noise|bias)", r"levels.\1.\2"),
    )
    assert renamed("convs.9.weight", table, "sample generator") == "levels.10.weight"
    assert renamed("convs.9.bias", table, "sample generator") == "levels.9.bias"
    # StyleSwin's names, and half of a name
    for name in ("input.input", "style.1.weight", "to_rgbs.0.bias", "convs.9.weights", "a.convs.9.bias"):
        with pytest.raises(WeightsError, match=f"'{name}' that a sample generator does not have"):
            renamed(name, table, "sample generator")


def test_errors_call_a_tensor_what_the_original_calls_it():
    state = {"a/0": torch.ones(2), "a/2": torch.ones(2)}
    for call, message in (
        (lambda: taken("a", torch.ones(1).int(), "variable"), "the variable 'a' has the type torch.int32"),
        (lambda: taken("a", torch.ones(1) / 0, "variable"), "the variable 'a' holds NaN"),
        (lambda: taken("a", torch.ones(1) / 0), "the tensor 'a' holds NaN"),
        (lambda: taken("a", torch.tensor([1.0, -1e300], dtype=torch.float64)), "beyond float32's range"),
        (lambda: shape_of({}, "a", 1, kind="variable"), "no variable 'a'"),
        (lambda: shape_of(state, "a/0", 2, kind="variable"), r"the variable 'a/0' has the shape \[2\]"),
        (
            lambda: numbered(state, r"a/(\d)", "stage", first=0, kind="variable"),
            r"numbers its stages \[0, 2\]; .* so variables are missing",
        ),
        (
            lambda: numbered(state, r"a/(\d)", "stage", first=0, most=1),
            "has 2 stages, and 1 at most are allowed",
        ),
        (lambda: numbered({"a/" + "1" * 5000: 0}, r"a/(\d+)", "stage", first=0), "numbers a stage 1111"),
    ):
        with pytest.raises(WeightsError, match=message):
            call()

"""How the files of this folder were made from the full recordings: what is there is as it was recorded.

`python tests/goldens/slim.py RECORDINGS` rewrites the files here from a folder with the full recordings of
the original code. Needed only if a recording is added or made again; no test runs it.

* A checkpoint of plain data and `argparse.Namespace` is read and saved again without Adam's moments of
  tensors of more than 64 elements; container, parameter groups, their order and small states stay.
* Of the blocks and levels of the 64 px recordings every 7th token is kept where there are 1024 or more.
* Of StyleSwin's recording the RGB sums of 32 px and more are those of sample 0, and the discriminator's
  wavelets, which StyleNAT's recordings test, are left out; so is `g`, which no test of that family needs.
* The starting checkpoint of the training run has no `g_ema`, which is equal to its `g`.
* The `mixed` checkpoint carries classes of a library that is not a dependency here, so it is copied as it is.
* `full_size_shapes.json` keeps key -> shape of the three published or stated StyleNAT shapes,
  `styleswin_full_size_shapes.json` of StyleSwin's two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
LARGEST = 64
STRIDE = 7  # of every 7th token, where there are many: it does not divide a row, so all columns take part
MANY = 1024
SLIMMED = (
    "stylenat_legacy_ffhq_style_64.pt",
    "stylenat_hydra_church_style_64.pt",
    "stylenat_trainrun_init.pt",
    "stylenat_trainrun_final.pt",
    "styleswin_ffhq_style_64.pt",
)
THINNED = (
    "stylenat_legacy_ffhq_style_64.io.safetensors",
    "stylenat_hydra_church_style_64.io.safetensors",
    "styleswin_ffhq_style_64.io.safetensors",
)
COPIED = (
    "stylenat_mixed_first_public_32.pt",
    "stylenat_trainrun.io.safetensors",
    "stylenat_trainrun_noise.json",
    "stylenat_mixed_first_public_32.io.safetensors",
    "na2d_rpb_ops.safetensors",
    "na2d_rpb_ops.json",
)
LOSSES = "losses.safetensors"  # without the gradients of 3 x 3 convolutions, which other layers stand for
SHAPES = {
    "ffhq-256": "stylenat_ffhq256_legacy_cm2",
    "ffhq-1024": "stylenat_ffhq1024_legacy_cm2",
    "church-256": "stylenat_church256_hydra_pyramid_minheads8_cm2",
}
STYLESWIN_SHAPES = {"ffhq-256": "styleswin_256_cm2", "ffhq-1024": "styleswin_1024_cm1"}


def slim_optimizer(optimizer: dict) -> None:
    """Drop, in place, the states of tensors of more than `LARGEST` elements."""
    for index, state in list(optimizer["state"].items()):
        if any(torch.is_tensor(value) and value.numel() > LARGEST for value in state.values()):
            del optimizer["state"][index]


def slim_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint without the bulk of its optimizer states."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    for holder in (checkpoint, checkpoint.get("optim_dicts", {})):
        for key in ("g_optim", "d_optim"):
            if key in holder:
                slim_optimizer(holder[key])
    if target.stem == "stylenat_trainrun_init":
        del checkpoint["state_dicts"]["g_ema"]  # equal to g
    if target.stem.startswith("styleswin"):
        del checkpoint["g"]
    torch.save(checkpoint, target)


def thin_steps(source: Path, target: Path) -> None:
    """Keep every `STRIDE`-th token of the blocks and levels that have `MANY` or more."""
    metadata, tensors = read(source)
    for name, tensor in tensors.items():
        if name.startswith(("block.", "feat.")) and tensor.shape[1] >= MANY:
            tensors[name] = tensor[:, ::STRIDE].contiguous()
    if target.stem.startswith("styleswin"):
        for name in ("rgb.2", "rgb.3"):
            tensors[name] = tensors[name][:1].contiguous()
        del tensors["d_dwt"], tensors["d_last_fromrgb_wavelet"]
    save_file(tensors, target, metadata=metadata)


def read(source: Path) -> tuple[dict, dict]:
    with safe_open(source, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def slim_shapes(source: Path, target: Path, names: dict[str, str]) -> None:
    """Keep key -> shape of the generators of these names."""
    full = json.loads(source.read_text(encoding="utf-8"))
    shapes = {
        preset: {
            "parameters": full[name]["params"],
            "tensors": {key: shape for key, (shape, *_) in full[name]["tensors"].items()},
        }
        for preset, name in names.items()
    }
    target.write_text(json.dumps(shapes, separators=(",", ":")) + "\n", encoding="utf-8")


def slim_losses(source: Path, target: Path) -> None:
    """Keep values, pictures and the gradients of small tensors and linear layers."""
    metadata, tensors = read(source)
    kept = {n: t for n, t in tensors.items() if ".grad." not in n or t.numel() < 600 or "final_linear" in n}
    save_file(kept, target, metadata=metadata)


def main(recordings: Path) -> None:
    for name in SLIMMED:
        slim_checkpoint(recordings / name, HERE / name)
    for name in THINNED:
        thin_steps(recordings / name, HERE / name)
    for name in COPIED:
        shutil.copyfile(recordings / name, HERE / name)
    slim_losses(recordings / LOSSES, HERE / LOSSES)
    slim_shapes(recordings / "full_size_shapes.json", HERE / "full_size_shapes.json", SHAPES)
    slim_shapes(
        recordings / "full_size_shapes.json", HERE / "styleswin_full_size_shapes.json", STYLESWIN_SHAPES
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""How the files of this folder were made from the full recordings: what is there is as it was recorded.

`python tests/goldens/hit/slim.py RECORDINGS` rewrites the files here. Needed only if a recording is made
again; no test runs it.

* Intermediate results of 32 px and more keep the first sample only.
* The weights are without the averaged generator, which has the same shapes.
* The full-size pictures of HiT-B and HiT-L at 256 px keep every second row and column (`stride2`).
* Of the blurs only that of the published models is kept.
* Of the data and the evaluation the formulas of FID and Inception Score are kept (`eval`).
* Of each network after training steps every fifth variable is kept, with Adam's moments.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
LARGE = 32
STEPS = ("infer.", "train.", "d.feat")
HALVED = ("B256", "L256")
COPIED = (
    "losses.safetensors",
    "generator_variants.safetensors",
    "discriminator_variants.safetensors",
    "fullsize.json",
    "train_steps.safetensors",
    "optim.safetensors",
    "ckpt/ckpt-9.index",
    "ckpt/ckpt-9.data-00000-of-00001",
)
SLOT = "/.OPTIMIZER_SLOT/"
EVALUATION = ("fid.", "is.")
OTHER_BLURS = ("blur3.", "blur5.", "blur6.", "blur7.")


def read(source: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(source, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def first_sample(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    large = name.startswith(STEPS) and tensor.dim() == 4 and tensor.shape[1] >= LARGE
    return name, tensor[:1].contiguous() if large else tensor


def halved(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    model, _, what = name.partition(".")
    if model in HALVED and what == "image_inference_stride1":
        return f"{model}.image_inference_stride2", tensor[:, ::2, ::2].contiguous()
    return name, tensor


def fifths(tensors: dict[str, torch.Tensor]) -> set[str]:
    """Every fifth variable of each network."""
    found: set[str] = set()
    for network in ("generator/", "ema_generator/", "discriminator/"):
        names = sorted(name for name in tensors if name.startswith(network) and SLOT not in name)
        found.update(names[::5])
    return found


def main(recordings: Path) -> None:
    (HERE / "ckpt").mkdir(exist_ok=True)
    for name in COPIED:
        shutil.copyfile(recordings / name, HERE / name)
    for name, change, dropped in (
        ("io.safetensors", first_sample, ()),
        ("fullsize.safetensors", halved, ()),
        ("weights_step9.safetensors", lambda *entry: entry, ("ema_generator/", "global_step")),
        ("ops.safetensors", lambda *entry: entry, OTHER_BLURS),
    ):
        metadata, tensors = read(recordings / name)
        kept = dict(change(key, tensor) for key, tensor in tensors.items() if not key.startswith(dropped))
        save_file(kept, HERE / name, metadata=metadata)
    metadata, tensors = read(recordings / "data_eval.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(EVALUATION)}
    save_file(kept, HERE / "eval.safetensors", metadata=metadata)
    for step in (10, 12):
        metadata, tensors = read(recordings / f"weights_step{step}.safetensors")
        kept = {
            name: tensor for name, tensor in tensors.items() if name.partition(SLOT)[0] in fifths(tensors)
        }
        save_file(kept, HERE / f"weights_step{step}.safetensors", metadata=metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

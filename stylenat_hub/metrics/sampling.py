"""Any number of pictures: batch by batch to a metric, or as shards of files, by one process or many.

Legend: B pictures of a batch, R their side in pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import PIL
import PIL.features
import PIL.Image
import torch
from tqdm import tqdm

from stylenat_hub import __version__
from stylenat_hub.errors import InputError
from stylenat_hub.files import check_writable, user_path
from stylenat_hub.locks import locked
from stylenat_hub.metrics import shards
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.shards import Manifest
from stylenat_hub.models.base import Generator
from stylenat_hub.pictures import drawn_by, text_chunks
from stylenat_hub.pipeline import GANPipeline, check_seeds
from stylenat_hub.signals import Interrupted

SHARD_SIZE = 1000
ENCODERS = 4  # threads that turn pictures into PNG; at 256 px and more a GPU draws faster than one does


@dataclass(frozen=True)
class Written:
    """What `write_shards` did. before: how many of the shards were there already."""

    folder: Path
    pictures: int
    shards: int
    before: int


def draw(
    pipeline: GANPipeline,
    seeds: Iterable[int] | int,
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield (seeds, pictures uint8 [B, 3, R, R] on the CPU): the pixels of `GANPipeline`'s PIL images.

    All processes together cut the seeds into the same batches of `batch_size`, the last of them shorter, and
    process `rank` of `world` gets every `world`-th: what is computed batch by batch does not depend on their
    number. Never more than a batch is in memory, and of a range of seeds not even the seeds.

    Arguments and errors as in `GANPipeline`, checked at once; `InputError` also for a rank that is not below
    `world`. A process may get no batch at all.
    """
    seeds = check_seeds(seeds)
    if not 0 <= rank < world:
        raise InputError(f"rank is {rank} of {world} processes; allowed: 0 to {world - 1}")
    options = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
    options |= {"batch_size": batch_size, "output_type": "pt", "progress": False}
    pipeline.iterate(seeds, **options)  # draws nothing yet
    own = range(rank * batch_size, len(seeds), world * batch_size)
    return (
        (batch.seeds, (batch.images * 255).round_().to(torch.uint8))
        for start in own
        for batch in pipeline.iterate(seeds[start : start + batch_size], **options)
    )


def weights_hash(generator: Generator) -> str:
    """SHA-256, hexadecimal, of a model as it is in memory: its class, its config, and each tensor's name,
    type, shape and bytes, by name. Equal for equal weights, however many files they came in; no file's hash.
    """
    digest = hashlib.sha256(type(generator).__name__.encode())
    config = {name: value for name, value in generator.config.items() if not name.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(generator.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_shards(
    pipeline: GANPipeline,
    folder: str | os.PathLike[str],
    *,
    num: int,
    first_seed: int = 0,
    format: str = "png",
    shard_size: int = SHARD_SIZE,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    batch_size: int = 8,
    progress: bool = True,
    processes: Processes | None = None,
) -> Written:
    """Draw the seeds from `first_seed` on, `num` of them, into shards of files (see `shards`); or what is
    missing of them, if an earlier call has ended before its time.

    format: "png" (a folder of PNG files per shard), "zip", "parquet" (needs pyarrow) or "webdataset".
    shard_size: pictures per shard, all of which are lost if it is not finished. truncation_psi,
    truncation_cutoff, batch_size: as in `GANPipeline`. processes: those that share the work, shard by shard;
    they write the same bytes whatever their number (on CPUs: with equal numbers of threads).

    Raises:
        InputError: an argument out of its range; the folder holds something else, or another run; it cannot
            be written. ProcessError: another process failed. Whole shards stay.
        Interrupted: Ctrl-C; likewise.
    """
    processes, folder = processes or Processes(), Path(os.path.realpath(user_path(folder)))
    options = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}

    def described() -> Manifest:
        for name, value in (("num", num), ("shard_size", shard_size)):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}; allowed: a whole number, 1 or more")
        pipeline.iterate(
            range(check_seeds(first_seed)[0], first_seed + num), batch_size=batch_size, **options
        )
        return _manifest(pipeline, num, first_seed, format, shard_size, options, batch_size)

    manifests = processes.each(described)
    manifest = manifests[0]
    if any(other != manifest for other in manifests):
        raise InputError(
            "the processes do not agree on what to draw (model, versions, threads or arguments differ); "
            "start all of them alike"
        )
    with contextlib.ExitStack() as stack:

        def prepared() -> list[int]:
            check_writable(folder)
            shards.check_same_run(folder, manifest)  # before the lock, which leaves a file
            stack.enter_context(locked(folder))
            return shards.prepare(folder, manifest)

        absent = processes.main(prepared)
        try:
            _write_all(pipeline, folder, manifest, absent, batch_size, progress, processes)
            absent_now = processes.main(lambda: shards.missing(folder, manifest))
        except KeyboardInterrupt:
            whole = manifest.shards - len(shards.missing(folder, manifest))
            raise Interrupted(
                f"{whole} of {manifest.shards} shards are in {folder}; the same command goes on"
            ) from None
        finally:
            if processes.is_main:
                with contextlib.suppress(OSError):  # another process may still be in it
                    (folder / shards.UNFINISHED).rmdir()
    if absent_now:
        raise InputError(
            f"{len(absent_now)} of {manifest.shards} shards are not in {str(folder)!r} although they were "
            "written; give all processes one folder that all machines share"
        )
    return Written(folder, num, manifest.shards, manifest.shards - len(absent))


def _manifest(
    pipeline: GANPipeline,
    num: int,
    first_seed: int,
    format: str,
    shard_size: int,
    options: dict[str, float | int | None],
    batch_size: int,
) -> Manifest:
    generator, device = pipeline.generator, pipeline._execution_device.type
    zlib = PIL.features.version("zlib_ng") or PIL.features.version("zlib")
    software = {"stylenat_hub": __version__, "torch": str(torch.__version__), "pillow": PIL.__version__}
    return Manifest(
        model=pipeline.model_name or "unnamed",
        weights=weights_hash(generator),
        truncation_psi=float(options["truncation_psi"]),
        truncation_cutoff=options["truncation_cutoff"],
        dtype=str(generator.dtype).removeprefix("torch."),
        device=device,
        threads=torch.get_num_threads() if device == "cpu" else None,
        batch_size=None if device == "cpu" else batch_size,
        resolution=generator.resolution,
        first_seed=first_seed,
        num=num,
        format=format,
        shard_size=shard_size,
        software={**software, "zlib": str(zlib), **shards.format_software(format)},
    )


def _write_all(
    pipeline: GANPipeline,
    folder: Path,
    manifest: Manifest,
    absent: Sequence[int],
    batch_size: int,
    progress: bool,
    processes: Processes,
) -> None:
    """Every `world`-th shard that is missing, in step with the other processes: they meet after each batch,
    so that an error of one ends all, and the bar counts all pictures."""
    mine = absent[processes.rank :: processes.world]
    drawn = _written(pipeline, folder, manifest, mine, batch_size)
    left = sum(len(manifest.seeds(shard)) for shard in absent)
    bar = tqdm(
        total=manifest.num,
        initial=manifest.num - left,
        desc="pictures",
        unit=" pictures",
        leave=False,
        file=sys.stderr,
        disable=not (progress and processes.is_main),
    )
    with bar, contextlib.closing(drawn):
        while True:
            counts = processes.each(lambda: next(drawn, None))
            if all(count is None for count in counts):
                return
            bar.update(sum(count or 0 for count in counts))


def _written(
    pipeline: GANPipeline, folder: Path, manifest: Manifest, mine: Sequence[int], batch_size: int
) -> Iterator[int]:
    """Write these shards; after each batch yield its number of pictures."""
    options = {
        "truncation_psi": manifest.truncation_psi,
        "truncation_cutoff": manifest.truncation_cutoff,
    }
    about = drawn_by(pipeline, options) | {"version": manifest.label(0)["version"]}

    def encoded(seed: int, picture: torch.Tensor) -> bytes:
        """The same bytes as the file that `pictures.write_picture` writes."""
        file = io.BytesIO()
        image = PIL.Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        image.save(file, format="PNG", pnginfo=text_chunks({**about, "seed": str(seed)}))
        return file.getvalue()

    with ThreadPoolExecutor(min(ENCODERS, os.cpu_count() or 1)) as threads:
        for shard in mine:
            with shards.whole_shard(folder, manifest, shard) as add:
                for seeds, images in draw(pipeline, manifest.seeds(shard), batch_size=batch_size, **options):
                    for seed, png in zip(seeds, threads.map(encoded, seeds, images), strict=True):
                        add(seed, png)
                    yield len(seeds)

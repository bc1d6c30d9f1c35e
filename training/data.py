"""Training pictures in an order that follows from a seed alone, in any number of processes and workers.

Legend: R resolution in pixels, B pictures of a batch in this process.

A run draws the samples 0, 1, 2, ... without end. Number n is in epoch n // len(source), at place
n % len(source) of that epoch's order; whether it is mirrored follows from the seed and n. So a run that goes
on at any n sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from stylenat_hub.decoding import TooSmall, square
from stylenat_hub.errors import InputError
from stylenat_hub.sources import BrokenImage, Source, open_source

__all__ = [
    "BrokenImage",
    "Pictures",
    "ShardSampler",
    "Source",
    "TooSmall",
    "check_source",
    "loader",
    "open_source",
]
PROBES = 16  # pictures that `check_source` opens
PREFETCH = 4  # batches that each worker prepares ahead


class Pictures(Dataset[torch.Tensor]):
    """A source's pictures by the number of the sample in the whole training.

    resolution: R. flip: mirror half of them. seed: of the order and the mirroring, 0 or more. strict: raise
    for a picture that cannot be read; otherwise one line on standard error names it, once per process, and
    the next one that can be read takes its place. allow_upscaling: take pictures below R too.
    """

    def __init__(
        self,
        source: Source,
        resolution: int,
        *,
        flip: bool,
        seed: int,
        strict: bool = False,
        allow_upscaling: bool = False,
    ) -> None:
        if resolution < 1 or seed < 0:
            raise InputError(f"resolution is {resolution} and seed is {seed}; allowed: from 1, from 0")
        self.source, self.resolution, self.flip, self.seed = source, resolution, flip, seed
        self.strict, self.allow_upscaling = strict, allow_upscaling
        self._orders: dict[int, np.ndarray] = {}
        self._broken: set[int] = set()

    def __len__(self) -> int:
        """Pictures in an epoch."""
        return len(self.source)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Sample `number`, from 0 without end: uint8 [3, R, R].

        Raises:
            TooSmall: the picture is below R, and upscaling is not allowed.
            BrokenImage: it cannot be read, and `strict` is set.
            InputError: no picture of the source can be read.
        """
        if number < 0:
            raise IndexError(f"sample {number}; the first one is 0")
        epoch, place = divmod(number, len(self.source))
        image = self._readable(int(self._order(epoch)[place]))
        pixels = np.asarray(image).transpose(2, 0, 1)
        if self.flip and _coin(self.seed, number):
            pixels = pixels[:, :, ::-1]
        return torch.from_numpy(pixels.copy())

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # A batch may straddle two epochs, so that the one before is kept.
            self._orders = {known: self._orders[known] for known in self._orders if known == epoch - 1}
            self._orders[epoch] = _permutation(len(self.source), self.seed, epoch)
        return self._orders[epoch]

    def _readable(self, first: int) -> Image.Image:
        """The picture at the index `first`, or at the first after it that can be read."""
        count = len(self.source)
        for step in range(count):
            index = (first + step) % count
            if index in self._broken:
                continue
            try:
                label = self.source.label(index)
                return square(self.source.image(index), self.resolution, label, self.allow_upscaling)
            except BrokenImage as error:
                if self.strict:
                    raise
                self._broken.add(index)
                # One write, so that lines of several workers do not mix.
                sys.stderr.write(f"warning: skipped {error.label}: {error.reason}\n")
                sys.stderr.flush()
        raise _all_broken(self.source, count)


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """An order of 0 ... count - 1, int64. From raw bits, which numpy keeps between its versions."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return bits.random_raw(count).argsort(kind="stable")


def _coin(seed: int, number: int) -> bool:
    """A fair coin: a microsecond, against tens of a fresh generator."""
    return bool(hashlib.blake2b(b"flip %d %d" % (seed, number), digest_size=1).digest()[0] & 1)


def _all_broken(source: Source, tried: int) -> InputError:
    return InputError(
        f"none of {tried} pictures of {source.name!r} can be read, the first is {source.label(0)!r}; check "
        f"that the data is whole"
    )


def check_source(source: Source, resolution: int, allow_upscaling: bool) -> None:
    """Open up to `PROBES` evenly spaced pictures, so that what is wrong with all of them shows at once.

    Raises `TooSmall` if one is below the resolution and upscaling is not allowed; `BrokenImage`, the first
    one's, if none can be read.
    """
    failed: list[BrokenImage] = []
    indices = np.linspace(0, len(source) - 1, min(PROBES, len(source))).round().astype(int).tolist()
    for index in indices:
        try:
            square(source.image(index), resolution, source.label(index), allow_upscaling)
        except BrokenImage as error:
            failed.append(error)
    if len(failed) == len(indices):
        raise failed[0]


class ShardSampler(Sampler[list[int]]):
    """Lists of sample numbers without end: `start + r` for each r in `rows`, then `start + batch + r`, ...

    start: the first sample's number. batch: pictures of a step in all processes. rows: which of them, from 0
    to batch - 1, are this process's.
    """

    def __init__(self, start: int, batch: int, rows: Sequence[int]) -> None:
        if start < 0 or not rows or not all(0 <= row < batch for row in rows):
            raise InputError(
                f"start is {start}, rows are {list(rows)}; allowed: start from 0, one row or more, "
                f"each from 0 to batch - 1 = {batch - 1}"
            )
        self.start, self.batch, self.rows = start, batch, tuple(rows)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start
        while True:
            yield [first + row for row in self.rows]
            first += self.batch


def loader(pictures: Pictures, sampler: ShardSampler, workers: int, pin_memory: bool) -> DataLoader:
    """Batches without end: uint8 [B, 3, R, R], in the order of the sampler.

    workers: processes that prepare them; 0 prepares them here. They ignore Ctrl-C and what else asks a whole
    group of processes to end: the main process gets it too, and ends them when it is done.

    Iterating raises the errors of `Pictures.__getitem__` as they are, whichever process they come from. The
    workers live as long as the iterator: they end when it is closed, dropped, or has raised.
    """
    return _Loader(
        _Batches(pictures),
        sampler=sampler,
        batch_size=None,  # the dataset itself makes batches
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise it draws from the global one, which the training has use for
    )


class _Batches(Dataset):
    """Batches by their sample numbers. An `InputError` is returned, since a DataLoader would put its
    traceback in the place of its one sentence."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, numbers: Sequence[int]) -> torch.Tensor | InputError:
        try:
            return torch.stack([self.pictures[number] for number in numbers])
        except InputError as error:
            return error


class _Loader(DataLoader):
    # Without persistent_workers, which end with the DataLoader itself: a kept traceback keeps that too, and
    # if the garbage collector then finds it, each worker takes 5 s to end. There are no epochs anyway.
    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            yield batch


def _start_worker(_number: int) -> None:
    torch.set_num_threads(1)  # the workers are many
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # SIGTERM is how the main process ends a worker, but a scheduler sends it to all of them at once, and
        # then the main process may still wait for a batch before it writes its checkpoint.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, args=(os.getppid(),), daemon=True).start()


def _end_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

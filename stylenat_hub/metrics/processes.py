"""Several processes that share one piece of work: who is who, and what fails on one fails on all.

accelerate connects them (gloo on CPUs, NCCL on GPUs), and is imported only where a launcher has started more
than one. Legend: W processes, ranks 0 to W - 1; rank 0 is the main one, which shows progress and says errors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch

from stylenat_hub.errors import InputError, ProcessError, StyleNATHubError
from stylenat_hub.launch import end_with_launcher, start_missing

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # while the main process downloads, say; one that has ended is noticed at once
# What torchrun and accelerate set, and the usual kinds of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class Processes:
    """This process among those that do the work with it; without arguments it is alone.

    rank, world: its number and how many there are. own_device: "cuda:1", or "cpu"; None if it is alone.
    """

    def __init__(self, rank: int = 0, world: int = 1, own_device: str | None = None) -> None:
        self.rank, self.world, self.own_device = rank, world, own_device
        self._leave: Callable[[], None] | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def joined(cls, device: str = "auto") -> Processes:
        """Connect with the processes that a launcher has started, if it has; all of them must call this.

        device: what `--device` says; "cpu" connects them by gloo. Call `leave` at the end.
        """
        if not any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
            return cls()
        from accelerate import PartialState

        before = torch.distributed.is_initialized()
        cpu = device == "cpu" or not torch.cuda.is_available()
        state = PartialState(cpu=cpu, timeout=PATIENCE)
        own = "cpu" if state.device.type == "cpu" else str(state.device)  # accelerate numbers CPUs too
        joined = cls(state.process_index, state.num_processes, own)
        if torch.distributed.is_initialized() and not before:
            joined._leave = torch.distributed.destroy_process_group
        return joined

    def leave(self) -> None:
        """Disconnect, if `joined` has connected."""
        leave, self._leave = self._leave, None
        if leave:
            leave()

    def device(self, name: str) -> str:
        """The device that this process draws on. Raises `InputError` if all were to use the same GPU."""
        if self.world == 1 or name == "cpu":
            return name
        if name not in ("auto", "cuda"):
            raise InputError(
                f"the device is {name!r} for {self.world} processes; allowed: auto, cuda (a GPU each) or cpu"
            )
        return self.own_device or "cpu"

    def mine(self, count: int, batch: int) -> Iterator[tuple[int, int]]:
        """First and last + 1 of those batches of `count` samples that are this process's: every W-th.

        Batches are cut alike for any number of processes: each sample is computed in the same company.
        """
        for start in range(self.rank * batch, count, self.world * batch):
            yield start, min(start + batch, count)

    def each(self, work: Callable[[], T]) -> list[T]:
        """Have every process do its `work`, and give each all results, by rank. All must call it alike.

        Results are pickled and reach every process: bytes to some MB; features of a large set are 400 MB.

        Raises what this process' own work raises; `ProcessError` where another's failed, with what it said,
        or where another has ended. KeyboardInterrupt passes at once and is not told to the others.
        """
        if self.world == 1:
            return [work()]
        try:
            told = (work(), None)
        except Exception as error:
            self._exchange((None, _sentence(error)))
            raise
        answers = self._exchange(told)
        for rank, (_, failed) in enumerate(answers):
            if failed is not None:
                raise ProcessError(f"process {rank + 1} of {self.world} failed: {failed}")
        return [result for result, _ in answers]

    def main(self, work: Callable[[], T]) -> T:
        """What `work` gives on the main process, which alone does it. Errors as in `each`."""
        return self.each(lambda: work() if self.is_main else None)[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Each process' own result of `work`; the main one comes first, so that it alone downloads, say."""
        own: list[T] = []
        for mine in (self.is_main, not self.is_main):
            self.each(lambda mine=mine: own.append(work()) if mine else None)
        return own[0]

    def _exchange(self, told: Any) -> list[Any]:
        from accelerate.utils import gather_object

        try:
            return gather_object([told])
        except RuntimeError as error:  # what gloo and NCCL raise when a connection is gone
            raise ProcessError(
                f"another of the {self.world} processes has ended; what is written is whole, and the same "
                "command goes on from there"
            ) from error


@contextlib.contextmanager
def command_processes(module: str, device: str) -> Iterator[Processes]:
    """For a command that `accelerate launch -m MODULE ...` may have started several times.

    The main process says what went wrong and has the exit code; the others end in silence, and with 0,
    because a launcher would otherwise stop the main one before it has said it.
    """
    end_with_launcher()
    start_missing(module)
    processes = Processes.joined(device)
    try:
        yield processes
    except (Exception, KeyboardInterrupt):
        if processes.is_main:
            raise
        raise SystemExit(0) from None
    finally:
        processes.leave()


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, StyleNATHubError) else f"{type(error).__name__}: {error}"

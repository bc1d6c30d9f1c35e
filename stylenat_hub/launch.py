"""Several processes on CPUs: `accelerate launch --cpu --num_processes N` starts only one of them.

It leaves the others to mpirun and says nothing, so that one would work alone. Here that is noticed, and the
processes are started by torch's own launcher, which accelerate uses itself for GPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence

from stylenat_hub.errors import InputError

# Set by every launcher that starts all its processes: torchrun and accelerate, and the usual kinds of MPI.
_STARTED_BY = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def missing_processes(environment: Mapping[str, str], launcher: Sequence[str]) -> int | None:
    """How many processes accelerate was asked for, if it was for several on a CPU and started one.

    launcher: the command line of the process that started this one. Raises `InputError` if the number cannot
    be told from it.
    """
    alone = (
        environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") and "MASTER_ADDR" in environment
    )
    if not alone or any(name in environment for name in _STARTED_BY):
        return None
    line = " ".join(launcher).replace("=", " ")
    count, machines = (re.search(rf"--num[_-]{what} (\d+)", line) for what in ("processes", "machines"))
    if count is None or (machines and int(machines[1]) > 1):
        raise InputError(
            "accelerate launch was asked for several processes on a CPU and started one (it leaves the "
            "others to mpirun); start them with `torchrun --nproc-per-node N -m MODULE ...` instead"
        )
    return int(count[1])


def end_with_launcher() -> None:
    """Get SIGTERM when `accelerate launch` ends, which does not pass on its own; Linux only. Otherwise a job
    that was stopped would leave processes behind that go on writing."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; it survives the exec below


def together_on_cpu() -> None:
    """Have accelerate connect the processes that torchrun started on CPUs, which it does only if told so."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "ACCELERATE_USE_CPU" not in os.environ:
        import torch

        if not torch.cuda.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"


def start_missing(module: str) -> None:
    """Replace this process by torch's launcher of all of them, where accelerate has started only one.

    module: what to start, with this process' arguments, such as "training.train". Raises `InputError` if the
    number of processes cannot be told.
    """
    import psutil  # accelerate needs it too

    try:
        launcher = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        launcher = []
    count = missing_processes(os.environ, launcher)
    if count is not None and count > 1:
        # Its own rendezvous on a free port: the one in the environment was chosen without looking.
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        # "--": otherwise it takes even what follows the module for its own options, cut short (`--num`).
        os.execv(sys.executable, [sys.executable, *command, "-m", "--", module, *sys.argv[1:]])

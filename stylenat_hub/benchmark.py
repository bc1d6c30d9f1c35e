"""How fast a generator runs here: against its own matrix products and convolutions, and against the gather
formulation of attention.

Everything is measured side by side in one run, because a machine's speed varies from run to run. Peak memory
is taken in fresh processes, one per measurement, and includes Python, torch and the weights.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from stylenat_hub import __version__, attention
from stylenat_hub.errors import InputError
from stylenat_hub.models.base import Generator
from stylenat_hub.products import Matrices, Recorder
from stylenat_hub.registry import create_model


def benchmark(
    name: str,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    threads: int | None = None,
    repeats: int = 5,
    gather: bool = True,
) -> dict[str, Any]:
    """Measure generation with random weights in the shape of `name` (as in `create_model`).

    batch: images per call. repeats: timed calls of each kind, taken in turn; the median counts. gather:
    measure the gather formulation too (slow, and it needs several times the memory), if the model has
    neighborhood attention; no other attention is timed by itself.

    Returns plain data: seconds per call (the median, and the range: a wide one means a busy machine), shares
    (of neighborhood attention, where there is any), ratios, GFLOP, peak memory in MiB, the machine and the
    versions. In `seconds`, "tiled" is the generation, also of a family that has no tiles, because published
    results call it so; "matrix_products" is all products and convolutions of the blocks that act on the
    picture: not those with one row per picture, which make styles. `matrix_products_gflop` is of these;
    `convolutions_gflop`, where there are any, of the convolutions among them; `all_linear_layers_gflop` of
    `torch.nn.Linear` alone, in the blocks and elsewhere.
    Raises `InputError` for a batch or repeats below 1 and for a model without products, `UnknownModelError`
    for the name.
    """
    if batch < 1 or repeats < 1:
        raise InputError(f"batch is {batch} and repeats is {repeats}; both must be 1 or more")
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    model, latents = _build(name, batch, dtype, device)
    with _attention_clock() as clock:
        recorder = _recorded(model, latents)
    both = gather and clock[0] > 0  # a family without neighborhood attention has one formulation
    floor, gflop, convolved = _floor(model, recorder, latents)
    if not gflop:
        raise InputError(f"{name!r} has no products or convolutions that its time could be compared with")
    kinds: dict[str, Callable[[], float]] = {
        "tiled": lambda: _generate(model, latents, "tiled"),
        "matrix_products": floor,
    }
    if both:
        kinds["gather"] = lambda: _generate(model, latents, "gather")
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for round_number in range(repeats + 1):
        for kind, call in kinds.items():
            with _attention_clock() as clock:
                start = time.perf_counter()
                call()
                _wait(device)
                elapsed = time.perf_counter() - start
            if round_number:  # the first round warms caches up
                times[kind].append((elapsed, clock[0]))
    seconds = {kind: statistics.median(total for total, _ in runs) for kind, runs in times.items()}
    inside = {kind: statistics.median(part for _, part in runs) for kind, runs in times.items()}
    type_name = str(dtype).removeprefix("torch.")
    result: dict[str, Any] = {
        "model": name,
        "command": f"stylenat benchmark {name} --batch-size {batch} --device {device} --dtype {type_name} "
        f"--threads {threads} --repeats {repeats}" + ("" if gather else " --no-gather"),
        "batch": batch,
        "dtype": type_name,
        "threads": threads,
        "repeats": repeats,
        "seconds": seconds,
        "seconds_range": {
            kind: [f(total for total, _ in runs) for f in (min, max)] for kind, runs in times.items()
        },
        "images_per_second": batch / seconds["tiled"],
        "matrix_products_gflop": gflop,
        "all_linear_layers_gflop": _gflop(_of_linear_layers(model, recorder)),
        "ratio_to_matrix_products": seconds["tiled"] / seconds["matrix_products"],
        "machine": machine(device),
    }
    if convolved:
        result["convolutions_gflop"] = convolved
    if inside["tiled"] > 0:
        result["attention_seconds"] = {k: value for k, value in inside.items() if k != "matrix_products"}
        result["attention_share"] = inside["tiled"] / seconds["tiled"]
    if both:
        result["gather_over_tiled"] = seconds["gather"] / seconds["tiled"]
    if device == "cpu":
        del model
        result["peak_memory_mib"] = {
            kind: in_fresh_process(peak_memory, name, batch, dtype, threads, kind)
            for kind in kinds
            if kind != "matrix_products"
        }
    return result


def table(result: dict[str, Any]) -> str:
    """A result of `benchmark` as Markdown."""
    memory = result.get("peak_memory_mib", {})
    rows = [
        "| what | seconds (median) | fastest to slowest | of it attention | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for kind, seconds in result["seconds"].items():
        part = result.get("attention_seconds", {}).get(kind)
        low, high = result["seconds_range"][kind]
        inside = "" if part is None else f"{part:.3f}"
        peak = f"{memory[kind]:.0f}" if kind in memory else ""
        name = kind.replace("_", " ") if "attention_share" in result or kind != "tiled" else "generation"
        rows.append(f"| {name} | {seconds:.3f} | {low:.3f} to {high:.3f} | {inside} | {peak} |")
    convolutions = " and convolutions" * ("convolutions_gflop" in result)
    head = (
        f"{result['model']}, {result['dtype']}, batch {result['batch']}, {result['threads']} threads: "
        f"{result['ratio_to_matrix_products']:.2f} times its {result['matrix_products_gflop']:.4g} GFLOP "
        f"of matrix products{convolutions}"
    )
    if "attention_share" in result:
        head += f", neighborhood attention {100 * result['attention_share']:.0f} %"
    if "gather_over_tiled" in result:
        head += f"; the gather formulation takes {result['gather_over_tiled']:.1f} times as long"
    return "\n".join([head, "", *rows])


def _build(name: str, batch: int, dtype: torch.dtype, device: str) -> tuple[Generator, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model(name).to(device=device, dtype=dtype).eval().requires_grad_(False)
    return model, torch.randn(batch, model.z_dim).to(device=device, dtype=dtype)


@torch.no_grad()
def _generate(model: Generator, latents: torch.Tensor, backend: str) -> None:
    with attention.use_backend(backend):
        model(latents)


def _blocks(model: Generator) -> tuple[str, ...]:
    """How the names of what is in the model's blocks begin."""
    kinds = model._no_split_modules or ()
    return tuple(f"{path}." for path, module in model.named_modules() if type(module).__name__ in kinds)


def _recorded(model: Generator, latents: torch.Tensor) -> Recorder:
    with Recorder() as recorder, recorder.inside(model):
        _generate(model, latents, "tiled")
    return recorder


def _floor(
    model: Generator, recorder: Recorder, latents: torch.Tensor
) -> tuple[Callable[[], None], float, float]:
    """A function that computes the blocks' products and convolutions alone, how many GFLOP these are, and of
    them the convolutions'.

    Of a model without blocks, or with none in them, it is all products and convolutions.
    """
    blocks, matrices = _blocks(model), recorder.matrices()
    shapes = [m for path, m in matrices if f"{path}.".startswith(blocks) and m[0] > len(latents)]
    convolutions = [call for call in recorder.convolutions() if f"{call[1]}.".startswith(blocks)]
    if not shapes and not convolutions:
        shapes, convolutions = [m for _, m in matrices], recorder.convolutions()
    multiply, convolve = _products(shapes, latents), recorder.replay(convolutions)
    with FlopCounterMode(display=False) as counter:
        convolve()

    def call() -> None:
        multiply()
        convolve()

    convolved = counter.get_total_flops() / 1e9
    return call, _gflop(shapes) + convolved, convolved


def _of_linear_layers(model: Generator, recorder: Recorder) -> list[Matrices]:
    linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return [shape for path, shape in recorder.matrices() if path in linear]


def _products(shapes: list[Matrices], like: torch.Tensor) -> Callable[[], None]:
    """A function that multiplies matrices of these shapes into outputs allocated beforehand."""
    sizes = [max(rows * inner, rows * columns, inner * columns) for rows, inner, columns in shapes]
    size = max(sizes, default=0)
    left, right, out = (like.new_empty(size).normal_() for _ in range(3))

    @torch.no_grad()
    def call() -> None:
        for rows, inner, columns in shapes:
            a = left[: rows * inner].view(rows, inner)
            b = right[: inner * columns].view(columns, inner)  # as a linear layer keeps its weight
            torch.mm(a, b.t(), out=out[: rows * columns].view(rows, columns))

    return call


def _gflop(shapes: list[Matrices]) -> float:
    return sum(2 * rows * inner * columns for rows, inner, columns in shapes) / 1e9


@contextmanager
def _attention_clock() -> Iterator[list[float]]:
    """Add up the seconds that attention backends take inside."""
    total, originals = [0.0], {}

    def timed(attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(q: torch.Tensor, *rest: Any) -> torch.Tensor:
            _wait(q.device.type)
            start = time.perf_counter()
            out = attend(q, *rest)
            _wait(q.device.type)
            total[0] += time.perf_counter() - start
            return out

        return call

    for backend in attention.BACKENDS.values():
        originals[backend] = backend.attend
        backend.attend = timed(backend.attend)
    try:
        yield total
    finally:
        for backend, attend in originals.items():
            backend.attend = attend


def peak_memory(name: str, batch: int, dtype: torch.dtype, threads: int, backend: str) -> float:
    """Peak resident memory of this process in MiB after three calls of a full-size model."""
    torch.set_num_threads(threads)
    model, latents = _build(name, batch, dtype, "cpu")
    for _ in range(3):
        _generate(model, latents, backend)
    return resident_peak()


def resident_peak() -> float:
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage would report the parent's peak where that is the higher one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    import resource  # not on Windows, which has no such figure

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def in_fresh_process(function: Callable[..., float], *args: Any, **kwargs: Any) -> float:
    """Call a function of a module in a new process that shares no memory with this one."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    """Processor, cores and versions, as plain data for a result."""
    processor = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": processor,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "stylenat_hub": __version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name, as well as the system tells it, with the widest instructions that torch uses."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"

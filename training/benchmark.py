"""How long a training step takes here, against the matrix products and convolutions of that step alone.

    python -m training.benchmark --preset ffhq-256 --batch 1 --gradient-checkpointing --output result.json

Both are measured in turn in one run, with random weights and pictures. What is replayed are the products of
linear layers and convolutions, forward and backward, of a step without recomputation; neither the products
inside attention nor anything else. Peak memory is that of a fresh process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from stylenat_hub.benchmark import in_fresh_process, machine, resident_peak
from stylenat_hub.files import whole_file
from stylenat_hub.options import one_sentence
from stylenat_hub.products import Recorder
from training.randomness import stream
from training.recipes import Recipe
from training.setup import new_players
from training.steps import Game, Shard, augmentations


def benchmark(
    preset: str,
    *,
    batch: int = 1,
    gradient_checkpointing: bool = False,
    precision: str = "no",
    device: str = "cpu",
    threads: int | None = None,
    repeats: int = 3,
) -> dict[str, Any]:
    """Time the steps of a recipe. Returns plain data: seconds (median) of both players' step, of the lazy
    penalty, of a mean step (with the penalty's share), and of their products alone; ratios; peak MiB."""
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = (preset, batch, gradient_checkpointing, precision, device)
    game, shard, every = _game(*settings)
    parts: dict[str, Callable[[], None]] = {"step": lambda: _step(game, shard)}
    if every > 1:
        parts["penalty"] = lambda: game.update_penalty([shard])
    game.players.generator.disable_gradient_checkpointing()
    replays = {name: _recorded(call).replay() for name, call in parts.items()}
    if gradient_checkpointing:
        game.players.generator.enable_gradient_checkpointing()
    times: dict[str, list[float]] = {}
    for round_number in range(repeats + 1):
        for name, call in parts.items():
            for kind, run in ((name, call), (f"{name}_products", replays[name])):
                seconds = _timed(run, device)
                if round_number:
                    times.setdefault(kind, []).append(seconds)
    seconds = {kind: statistics.median(found) for kind, found in times.items()}
    for kind in ("", "_products"):
        share = seconds.get(f"penalty{kind}", 0.0) / every
        seconds[f"mean_step{kind}"] = seconds[f"step{kind}"] + share
    command = f"python -m training.benchmark --preset {preset} --batch {batch} --precision {precision}"
    command += f" --device {device} --threads {threads} --repeats {repeats}"
    return {
        "preset": preset,
        "command": command + (" --gradient-checkpointing" if gradient_checkpointing else ""),
        "batch": batch,
        "precision": precision,
        "threads": threads,
        "seconds": seconds,
        "seconds_range": {kind: [min(found), max(found)] for kind, found in times.items()},
        "ratio_to_products": seconds["mean_step"] / seconds["mean_step_products"],
        "images_per_second": batch / seconds["mean_step"],
        "peak_memory_mib": in_fresh_process(peak_memory, *settings, threads),
        "machine": machine(device),
    }


def table(result: dict[str, Any]) -> str:
    """A result of `benchmark` as Markdown."""
    lines = ["| what | seconds | products alone | ratio |", "|---|---|---|---|"]
    for kind in ("step", "penalty", "mean_step"):
        if kind in result["seconds"]:
            whole, alone = (result["seconds"][f"{kind}{end}"] for end in ("", "_products"))
            lines.append(f"| {kind.replace('_', ' ')} | {whole:.3f} | {alone:.3f} | {whole / alone:.2f} |")
    head = f"{result['preset']}, batch {result['batch']}, {result['threads']} threads, precision "
    head += f"{result['precision']}: {result['peak_memory_mib']:,.0f} MiB at most"
    return "\n".join([head, "", *lines])


def peak_memory(
    preset: str, batch: int, checkpointing: bool, precision: str, device: str, threads: int
) -> float:
    """Peak memory in MiB of two steps with their penalties: of the process, or on CUDA of the device."""
    torch.set_num_threads(threads)
    game, shard, every = _game(preset, batch, checkpointing, precision, device)
    for _ in range(2):
        _step(game, shard)
        if every > 1:
            game.update_penalty([shard])
    return torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else resident_peak()


def _game(
    preset: str, batch: int, checkpointing: bool, precision: str, device: str
) -> tuple[Game, Shard, int]:
    recipe = replace(Recipe.preset(preset), batch=batch)
    players = new_players(recipe)
    for model in vars(players).values():
        model.to(device)
    if checkpointing:
        players.generator.enable_gradient_checkpointing()
    consistency, augment = augmentations(recipe, players.generator.config)
    kind = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    game = Game(
        recipe,
        players,
        autocast=lambda: torch.autocast(torch.device(device).type, kind, enabled=kind is not None),
        consistency=consistency,
        augment=augment,
        scaled=precision == "fp16",
    )
    source = stream(0, "benchmark", 0)
    size, z_dim = players.generator.resolution, players.generator.z_dim
    real = torch.randn(batch, 3, size, size, generator=source).to(device)
    z_d, z_g = (torch.randn(batch, z_dim, generator=source).to(device) for _ in range(2))
    shard = Shard(real, z_d, z_g, game.draws(lambda _name: source))
    return game, shard, recipe.penalty_every if recipe.lazy else 1


def _step(game: Game, shard: Shard) -> None:
    game.step([shard], 0, penalise=not game.recipe.lazy)


def _recorded(call: Callable[[], None]) -> Recorder:
    with Recorder() as recorder:
        call()
    return recorder


def _timed(call: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    preset: Annotated[str, typer.Option(help="Recipe.")] = "ffhq-256",
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 1,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps; the median counts.")] = 3,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JSON.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Time a training step of a recipe against its products alone."""
    with one_sentence(debug):
        result = benchmark(
            preset,
            batch=batch,
            gradient_checkpointing=gradient_checkpointing,
            precision=precision,
            device=device,
            threads=threads,
            repeats=repeats,
        )
        typer.echo(table(result))
        if output:
            with whole_file(output) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()

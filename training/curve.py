"""Curves of runs in one picture, from their metrics.jsonl.

python -m training.curve runs/a runs/b --metric swd --output curve.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stylenat_hub.errors import InputError
from stylenat_hub.files import whole_file
from stylenat_hub.metrics.sheets import figure_class
from stylenat_hub.options import one_sentence
from training.monitor import LOG


def read_curve(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Images and values of a metric in a run's log. Raises `InputError` if it is not there."""
    path = run / LOG if run.is_dir() else run
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r} ({error}); name the folder of a run") from error
    found = [(row["images"], row[metric]) for row in rows if row.get(metric) is not None]
    if not found:
        there = ", ".join(sorted({name for row in rows for name in row}))
        raise InputError(f"{str(path)!r} has no {metric!r}; it has: {there or 'nothing'}")
    images, values = zip(*found, strict=True)
    return list(images), list(values)


def draw_curves(runs: list[Path], metric: str, output: Path, *, log: bool = False) -> None:
    """One line per run, named after its folder, as a PNG written whole or not at all. log: a logarithmic
    axis for the values."""
    curves = {run.name: read_curve(run, metric) for run in runs}
    figure = figure_class()(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (images, values) in curves.items():
        axes.plot(images, values, marker="o", markersize=3, label=name)
    axes.set(xlabel="images seen", ylabel=metric)
    if log:
        axes.set_yscale("log")
    elif min(min(values) for _, values in curves.values()) >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="PNG to write.")],
    metric: Annotated[str, typer.Option(help="Name of a column of metrics.jsonl.")] = "swd",
    log: Annotated[bool, typer.Option("--log", help="Logarithmic axis.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw a metric of several runs into one picture."""
    with one_sentence(debug):
        draw_curves(runs, metric, output, log=log)


if __name__ == "__main__":
    app()

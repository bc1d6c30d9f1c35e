"""`stylenat mix`: the words on the command line, around `latents.mixing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.cli_models import Model, load_pipeline, software, steered
from stylenat_hub.options import (
    BatchSize,
    Centers,
    Cutoff,
    Device,
    Dtype,
    DtypeOption,
    Namespace,
    Revision,
    Truncation,
    Variant,
    parse_path,
    parse_seeds,
)


def mix(
    model: Model = None,
    rows: Annotated[
        Any, typer.Option(parser=parse_seeds, metavar="SEEDS", help="A row for each of these.")
    ] = "0-3",
    cols: Annotated[
        Any, typer.Option(parser=parse_seeds, metavar="SEEDS", help="A column for each of these.")
    ] = "4-9",
    levels: Annotated[
        str,
        typer.Option(
            metavar="LEVELS",
            help="What comes from the columns: coarse, middle, fine, all, or px such as 8-32 or coarse,16.",
        ),
    ] = "coarse",
    truncation: Truncation = 1.0,
    cutoff: Cutoff = None,
    centers: Centers = None,
    output: Annotated[Path, typer.Option(parser=parse_path, metavar="FILE", help="The sheet as PNG.")] = Path(
        "mix.png"
    ),
    cells: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="DIR", help="Also each mixed picture as its own PNG."),
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DtypeOption = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
) -> None:
    """Mix the styles of pictures: each row's with some levels of each column's, as one sheet."""
    from stylenat_hub import pictures
    from stylenat_hub.latents.mixing import write_mixing

    pictures.check_png(output)
    if cells is not None:
        pictures.check_writable(cells)
    pipeline = load_pipeline(
        model, device, dtype.value, variant=variant, revision=revision, namespace=namespace
    )
    options, label = steered(pipeline, centers, None, None)
    options |= {"truncation_psi": truncation, "truncation_cutoff": cutoff, "batch_size": batch_size}
    options |= {"cells": cells, "label": {"version": software(), **label}}
    written = write_mixing(pipeline, rows, cols, output, levels, **options)
    count = len(rows) * len(cols)
    also = f" and {count} picture{'s' * (count != 1)} to {cells}" if cells else ""
    typer.echo(f"wrote {written}{also}")

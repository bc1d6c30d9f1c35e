"""`stylenat evaluate`: the words on the command line, around `metrics.measure.Session`."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.errors import InputError
from stylenat_hub.options import (
    AsJson,
    Device,
    Dtype,
    Namespace,
    Revision,
    Variant,
    check_truncation,
    parse_path,
    parse_seeds,
)

SWEEP = re.compile(r"truncation=([0-9.]+):([0-9.]+):([0-9.]+)")
MOST_STEPS = 100


def parse_sweep(text: str | None) -> list[float] | None:
    """`truncation=0.5:1.0:0.1` -> [0.5, 0.6, ..., 1.0], with the last one where the steps meet it.

    Raises `typer.BadParameter`.
    """
    if text is None:
        return None
    match = SWEEP.fullmatch(text)
    try:
        first, last, step = map(float, match.groups()) if match else (0.0, 0.0, 0.0)
        count = int((last - first) / step + 1.000001) if step > 0 and last >= first else 0
    except (ValueError, OverflowError):  # as 1.2.3, and numbers beyond any
        count = 0
    if not 1 <= count <= MOST_STEPS:
        raise typer.BadParameter(
            f"{text!r} is no sweep of 1 to {MOST_STEPS} values; example: truncation=0.5:1.0:0.1"
        )
    return [round(first + i * step, 10) for i in range(count)]


def parse_names(text: str) -> list[str]:
    """`fid,kid` -> ["fid", "kid"], each once."""
    names = dict.fromkeys(part.strip() for part in text.split(","))
    if "" in names:
        raise typer.BadParameter(f"{text!r} has an empty name; example: fid,pr")
    return list(names)


def evaluate(
    model: Annotated[str | None, typer.Argument(help="As for generate; default: the built-in one.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Real pictures: folder, zip, LMDB or hf:org/name.")
    ] = None,
    metrics: Annotated[
        Any,
        typer.Option(parser=parse_names, metavar="NAMES", help="Of fid, kid, is, pr, dc, swd, with commas."),
    ] = "fid",
    num: Annotated[int, typer.Option(min=2, help="Generated pictures.")] = 50_000,
    num_real: Annotated[
        int | None, typer.Option(min=2, help="Real pictures, chosen at random; default: all.")
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="The pictures are of the seeds from here on.")] = 0,
    truncation: Annotated[float, typer.Option(callback=check_truncation, help="As for generate.")] = 1.0,
    cutoff: Annotated[int | None, typer.Option(min=0, help="As for generate.")] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="truncation=A:B:STEP", help="Measure at each of these instead.")
    ] = None,
    extractor: Annotated[
        str, typer.Option(metavar="NAME", help="inception, dinov2, random-conv, or module:attr.")
    ] = "inception",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The extractor's: a file, a Hub id, or download.")
    ] = None,
    resize: Annotated[
        str, typer.Option(help="For inception: pytorch-fid (the papers'), torch-fidelity or clean.")
    ] = "pytorch-fid",
    stats: Annotated[
        str | None, typer.Option(metavar="FILE", help="Statistics of the real pictures: read, or written.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a Hugging Face data set.")] = "train",
    allow_upscaling: Annotated[bool, typer.Option("--allow-upscaling", help="Enlarge small ones.")] = False,
    output: Annotated[
        Path | None, typer.Option(parser=parse_path, metavar="FILE", help="The report as JSON.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(parser=parse_path, metavar="FILE", help="A sweep's curve as PNG.")
    ] = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="FILE", help="A sheet of the nearest real pictures as PNG."),
    ] = None,
    seeds: Annotated[
        Any, typer.Option(parser=parse_seeds, metavar="SEEDS", help="Of the sheet of neighbours.")
    ] = "0-7",
    update_card: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="PATH", help="Write the figures into this card's header."),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute the pictures in.")] = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Measure a generator's pictures against real ones, by the papers' metrics.

    Under `accelerate launch -m stylenat_hub.cli evaluate ...` the processes share the work.
    """
    values = parse_sweep(sweep) or [truncation]
    if sweep is None and figure is not None:
        raise InputError("--figure is the curve of a sweep; add --sweep truncation=0.5:1.0:0.1")
    if sweep is not None and update_card is not None:
        raise InputError("a card states one measurement; leave out --sweep or --update-card")
    from stylenat_hub.metrics import measure
    from stylenat_hub.metrics.processes import command_processes

    started = time.monotonic()
    with command_processes("stylenat_hub.cli", device) as processes:
        session = measure.Session(
            model=model,
            data=data,
            metrics=metrics,
            num=num,
            num_real=num_real,
            extractor=extractor,
            weights=weights,
            resize=resize,
            stats=stats,
            split=split,
            allow_upscaling=allow_upscaling,
            device=device,
            dtype=dtype.value,
            source={"variant": variant, "revision": revision, "namespace": namespace},
            processes=processes,
        )
        session.check(output, figure, neighbours, update_card, len(seeds))
        reports = [session.report(first_seed, value, cutoff) for value in values]
        if not processes.is_main:
            return
        if as_json:
            typer.echo(json.dumps(reports[0] if sweep is None else reports, indent=2))
        else:
            typer.echo(measure.markdown(reports))
        written = session.write(reports, output, figure, update_card)
        if neighbours is not None:
            session.neighbours(neighbours, seeds, truncation, cutoff)
            written.append(neighbours)
    for warning in dict.fromkeys(text for entry in reports for text in entry["warnings"]):
        typer.echo(f"warning: {warning}", err=True)
    for path in written:
        typer.echo(f"wrote {path}", err=True)
    typer.echo(f"took {time.monotonic() - started:.0f} s", err=True)

"""`stylenat generate`: the words on the command line, around `pictures` and `metrics.sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.cli_models import Model, load_pipeline, software, steered
from stylenat_hub.errors import InputError
from stylenat_hub.options import (
    BatchSize,
    Centers,
    Cutoff,
    Device,
    Dtype,
    DtypeOption,
    Namespace,
    Revision,
    ShardFormat,
    Variant,
    parse_edit,
    parse_path,
    parse_seeds,
    parse_truncations,
)


def generate(
    model: Model = None,
    seeds: Annotated[
        Any,
        typer.Option(
            parser=parse_seeds, metavar="SEEDS", help="Such as 0-15 or 1,5,9-12.", show_default="0-15"
        ),
    ] = None,
    styles: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="FILE", help="Instead of --seeds: what `project` wrote."),
    ] = None,
    truncation: Annotated[
        Any,
        typer.Option(
            parser=parse_truncations,
            metavar="PSI",
            help="1: full variety; 0: the mean picture. Several, such as 0.5,0.7,1: a sweep.",
            show_default="1",
        ),
    ] = None,
    cutoff: Cutoff = None,
    centers: Centers = None,
    directions: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_ID", help="What `stylenat directions` wrote, or its Hub id."),
    ] = None,
    edit: Annotated[
        Any,
        typer.Option(
            parser=parse_edit,
            metavar="NAME=STRENGTH",
            help="With --directions: such as sefa-1=2.5,sefa-3=-1.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(parser=parse_path, metavar="DIR", help="Folder for the PNG files.")
    ] = Path("pictures"),
    grid: Annotated[bool, typer.Option("--grid", help="Also write grid.png with all pictures.")] = False,
    num: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of --seeds: so many, as shards; run it again to go on with them."),
    ] = None,
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="With --num: the seed to begin with.", show_default="0")
    ] = None,
    format_: Annotated[
        ShardFormat | None, typer.Option("--format", help="With --num: of each shard.", show_default="png")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="With --num: pictures per shard.", show_default="1000")
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DtypeOption = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
) -> None:
    """Draw one PNG picture per seed, or with --num any number into shards of files.

    Several processes share --num: accelerate launch -m stylenat_hub.cli generate MODEL --num 50000 ...
    """
    source = {"variant": variant, "revision": revision, "namespace": namespace}
    sharded = {"first_seed": first_seed, "format": format_ and format_.value, "shard_size": shard_size}
    sharded = {name: value for name, value in sharded.items() if value is not None}
    truncation = [1.0] if truncation is None else truncation
    steering = {"styles": styles, "centers": centers, "directions": directions, "edit": edit}
    if num is not None:
        _check_shards(seeds, grid, truncation, steering)
        options = {"truncation_psi": truncation[0], "truncation_cutoff": cutoff, "batch_size": batch_size}
        return _generate_shards(
            lambda chosen: load_pipeline(model, chosen, dtype.value, **source),
            device,
            output,
            {"num": num, **sharded, **options},
        )
    if sharded:
        raise InputError(f"--{min(sharded).replace('_', '-')} goes with --num: add it, or leave this out")
    _check_steering(seeds, **steering)
    from stylenat_hub import pictures

    pictures.check_writable(output)
    pipeline = load_pipeline(model, device, dtype.value, **source)
    options, label = steered(pipeline, centers, directions, edit)
    options |= {"truncation_cutoff": cutoff, "batch_size": batch_size, "grid": grid}
    options |= {"label": {"version": software(), **label}, "truncation_psi": truncation}
    if styles is None:
        seeds = parse_seeds("0-15") if seeds is None else seeds
        written = pictures.write_pictures(pipeline, seeds, output, **options)
    else:
        written = _draw_styles(pipeline, styles, output, options)
    also = f" and {written.grid.name}" if written.grid else ""
    typer.echo(f"wrote {written.count} picture{'s' * (written.count != 1)}{also} to {written.folder}")


def _check_shards(
    seeds: Sequence[int] | None, grid: bool, truncation: Sequence[float], steering: dict[str, Any]
) -> None:
    if seeds is not None or grid:
        raise InputError("--num goes without --seeds and --grid: it draws the seeds from --first-seed on")
    given = [name for name, value in steering.items() if value is not None]
    if given or len(truncation) > 1:
        what = f"--{given[0]}" if given else "several truncations"
        raise InputError(f"--num goes without {what}: leave one out, or draw with --seeds")


def _check_steering(
    seeds: Any, styles: Path | None, centers: int | None, directions: str | None, edit: Any
) -> None:
    if styles is not None and seeds is not None:
        raise InputError("--styles and --seeds both say what to draw; leave one out")
    if (directions is None) != (edit is None):
        given, lacks = ("--edit", "--directions") if directions is None else ("--directions", "--edit")
        raise InputError(
            f"{given} goes with {lacks}: --directions FILE says where directions are, --edit NAME=STRENGTH "
            "how far to go along which"
        )


def _draw_styles(pipeline: Any, styles: Path, output: Path, options: dict[str, Any]) -> Any:
    from stylenat_hub import pictures
    from stylenat_hub.latents.styles import load_styles

    ws, _ = load_styles(styles, pipeline.generator)
    options["label"]["styles"] = styles.name
    return pictures.write_styles(pipeline, ws, output, **options)


def _generate_shards(load: Any, device: str, output: Path, options: dict[str, Any]) -> None:
    from stylenat_hub.files import check_writable
    from stylenat_hub.metrics.processes import command_processes
    from stylenat_hub.metrics.sampling import write_shards

    with command_processes("stylenat_hub.cli", device) as processes:
        processes.main(lambda: check_writable(output))
        pipeline = processes.in_turn(lambda: load(processes.device(device)))
        written = write_shards(pipeline, output, processes=processes, **options)
        if processes.is_main:
            before = f" ({written.before} were there)" if written.before else ""
            shards = f"{written.shards} shard{'s' * (written.shards != 1)}{before}"
            pictures = f"{written.pictures} picture{'s' * (written.pictures != 1)}"
            typer.echo(f"wrote {pictures} in {shards} to {written.folder}")

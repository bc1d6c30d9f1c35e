"""`stylenat directions`: the words on the command line, around `latents.factorise` and `direction_strips`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.cli_models import Model, load_pipeline, software
from stylenat_hub.errors import InputError
from stylenat_hub.options import (
    BatchSize,
    Device,
    Dtype,
    DtypeOption,
    License,
    Namespace,
    Private,
    PushTo,
    Revision,
    Variant,
    check_truncation,
    parse_path,
    parse_seeds,
    parse_strengths,
)


class Method(str, Enum):
    """How directions are found."""

    sefa = "sefa"
    pca = "pca"


def parse_name(text: str) -> tuple[str, str]:
    """`sefa-1=snow` -> ("sefa-1", "snow"). Raises `typer.BadParameter`."""
    old, equals, new = (piece.strip() for piece in text.partition("="))
    if not (old and equals and new):
        raise typer.BadParameter(f"{text!r:.60} is no OLD=NEW; example: sefa-1=snow")
    return old, new


def directions(
    model: Model = None,
    method: Annotated[
        Method, typer.Option(help="sefa: from the weights (any model); pca: from the styles, w.")
    ] = Method.sefa,
    levels: Annotated[
        str, typer.Option(help="Which styles: all, coarse, middle, fine, or px such as 8-32.")
    ] = "all",
    top: Annotated[int, typer.Option(min=1, help="How many directions, the strongest first.")] = 8,
    seeds: Annotated[
        Any, typer.Option(parser=parse_seeds, metavar="SEEDS", help="Rows of a strip.", show_default="0-3")
    ] = None,
    strengths: Annotated[
        Any,
        typer.Option(
            parser=parse_strengths,
            metavar="LIST",
            help="Columns of a strip, in standard deviations.",
            show_default="sefa: -3,-1.5,0,1.5,3; pca: -2,-1,0,1,2",
        ),
    ] = None,
    truncation: Annotated[
        float,
        typer.Option(
            callback=check_truncation,
            metavar="PSI",
            help="Of the strips' pictures: default 0.7, where other commands have 1 (full variety).",
        ),
    ] = 0.7,
    name: Annotated[
        list[Any] | None,
        typer.Option(parser=parse_name, metavar="OLD=NEW", help="Call one otherwise; may be repeated."),
    ] = None,
    output: Annotated[
        Path, typer.Option(parser=parse_path, metavar="DIR", help="Folder for the file and the strips.")
    ] = Path("directions"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result in the folder.")
    ] = False,
    push_to_hub: PushTo = None,
    private: Private = False,
    license_: License = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DtypeOption = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
) -> None:
    """Find directions that change pictures alike, and draw a strip for each.

    `stylenat generate MODEL --directions DIR --edit sefa-1=2` goes along them.
    """
    _check_push(push_to_hub, private, license_)
    names = _names(name)
    from stylenat_hub.latents import direction_strips as strips

    strips.check_output(output, overwrite)
    pipeline = load_pipeline(
        model, device, dtype.value, variant=variant, revision=revision, namespace=namespace
    )
    found = _find(pipeline, method, top, levels).renamed(names)
    options = {"seeds": parse_seeds("0-3") if seeds is None else seeds, "truncation_psi": truncation}
    options |= {"strengths": strengths, "batch_size": batch_size}
    options |= {"overwrite": overwrite, "label": {"version": software()}}
    written = strips.write_strips(pipeline, found, output, **options)
    count = len(written.pictures)
    what = "1 direction and its strip" if count == 1 else f"{count} directions and their strips"
    typer.echo(f"wrote {what} to {written.folder}")
    if push_to_hub:
        from stylenat_hub import publish_directions, uploads

        pushing = {"private": private or None, "license": license_}
        commit = publish_directions.push_written(found, written.folder, push_to_hub, **pushing)
        typer.echo(uploads.report(commit))


def _find(pipeline: Any, method: Method, top: int, levels: str) -> Any:
    from stylenat_hub.latents.factorise import closed_form, principal

    find = {Method.sefa: closed_form, Method.pca: principal}[method]
    found = find(pipeline.generator, top, levels)
    return found.described(model=pipeline.model_name or "unnamed", version=software())


def _names(given: list[tuple[str, str]] | None) -> dict[str, str]:
    names: dict[str, str] = {}
    for old, new in given or ():
        if old in names:
            raise InputError(f"--name {old}= is there twice; give each direction one name")
        names[old] = new
    return names


def _check_push(push_to_hub: str | None, private: bool, license_: str | None) -> None:
    if push_to_hub is None and (private or license_ is not None):
        given = "--private" if private else "--license"
        raise InputError(f"{given} goes with --push-to-hub ORG/NAME: add it, or leave this out")

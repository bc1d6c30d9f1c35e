"""`stylenat attention`: the words on the command line, around `inside`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub.cli_models import Model, builtin_model, load_pipeline, software
from stylenat_hub.errors import InputError
from stylenat_hub.options import Device, Dtype, Namespace, Revision, Truncation, Variant, parse_path

_NUMBER = r"\s*([0-9]*\.?[0-9]+|[0-9]+\.)\s*"


def parse_query(text: str) -> tuple[float, float]:
    """`0.5,0.4` -> (0.5, 0.4). Raises `typer.BadParameter`."""
    match = re.fullmatch(f"{_NUMBER},{_NUMBER}", text)
    place = tuple(map(float, match.groups())) if match else ()
    if not place or max(place) > 1:
        raise typer.BadParameter(
            f"{text!r} is no place in a picture; write x,y, each from 0 (left, top) to 1, such as 0.5,0.4"
        )
    return place


def parse_whole(text: str) -> int:
    """`32` -> 32. Raises `typer.BadParameter`."""
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise typer.BadParameter(f"{text!r:.60} is no whole number; write one, such as 8")
    return int(text)


def attention(
    model: Model = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Whose picture to look at.", show_default="0")
    ] = None,
    styles: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="FILE", help="Instead of --seed: what `project` wrote."),
    ] = None,
    truncation: Truncation = 1.0,
    cutoff: Annotated[int | None, typer.Option(min=0, help="As for generate.")] = None,
    level: Annotated[
        Any,
        typer.Option(
            parser=parse_whole,
            metavar="PX",
            help="Side of the level; default: the finest with self-attention.",
        ),
    ] = None,
    block: Annotated[
        Any,
        typer.Option(
            parser=parse_whole, metavar="N", help="Of the level's blocks, from 1 on; default: the last."
        ),
    ] = None,
    query: Annotated[
        list[Any] | None,
        typer.Option(
            parser=parse_query,
            metavar="X,Y",
            help="Where to look from: 0,0 is the top left, 1,1 the bottom right. May be repeated.",
            show_default="0.5,0.5",
        ),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Instead of --query: averaged over all places.")
    ] = False,
    cross: Annotated[
        bool, typer.Option("--cross", help="HiT: what each place takes from the latent's tokens.")
    ] = False,
    receptive_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of a picture: how far the partitions of a preset, such as church-256, or a model "
            "see from --query.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(parser=parse_path, metavar="FILE", help="The figure, a PNG.")
    ] = Path("attention.png"),
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute the picture in.")] = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
) -> None:
    """Draw what the attention heads of a level look at, over the picture; needs matplotlib.

    The weights are the model's own, exact, from one place or several, or averaged over all.
    """
    given = {"--seed": seed, "--styles": styles, "--level": level, "--block": block, "--query": query or None}
    given |= {"--average": average or None, "--cross": cross or None}
    if receptive_field is not None:
        del given["--query"]
        drawing = {
            "--truncation": (truncation, 1.0),
            "--cutoff": (cutoff, None),
            "--device": (device, "auto"),
        }
        drawing |= {"--dtype": (dtype, Dtype.float32), "--variant": (variant, None)}
        given |= {name: None if value == unsaid else value for name, (value, unsaid) in drawing.items()}
        _check_alone("--receptive-field", {"a model": model, **given})
        source = {"revision": revision, "namespace": namespace}
        return _receptive_field(receptive_field, query or [], output, source)
    if seed is not None and styles is not None:
        raise InputError("--styles and --seed both say which picture; leave one out")
    if average:
        _check_alone("--average", {name: given[name] for name in ("--query", "--cross")})
    if cross:
        _check_alone("--cross", {name: given[name] for name in ("--query", "--block")})
    from stylenat_hub.inside import figures

    figures.check_drawable(output)
    source = {"variant": variant, "revision": revision, "namespace": namespace}
    pipeline = load_pipeline(model or builtin_model(), device, dtype.value, **source)
    ws, about = _picture(pipeline, seed, styles, {"truncation_psi": truncation, "truncation_cutoff": cutoff})
    options = {"about": {**about, "version": software()}, "level": level}
    if cross:
        done = figures.write_cross(pipeline.generator, ws, output, **options)
    elif average:
        done = figures.write_averages(pipeline.generator, ws, output, block=block, **options)
    else:
        queries = query or [(0.5, 0.5)]
        done = figures.write_maps(pipeline.generator, ws, output, block=block, queries=queries, **options)
    typer.echo(f"wrote {output}: {done}")


def _check_alone(option: str, others: dict[str, Any]) -> None:
    """Raise `InputError` if something is given that goes without this option."""
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{option} goes without {name}; leave one of them out")


def _receptive_field(
    name: str, queries: list[tuple[float, float]], output: Path, source: dict[str, Any]
) -> None:
    from stylenat_hub.inside.receptive import receptive_table
    from stylenat_hub.inside.receptive_figure import draw_receptive_field

    if len(queries) > 1:
        raise InputError(f"--receptive-field takes one --query, and these are {len(queries)}")
    query = queries[0] if queries else (0.5, 0.5)
    draw_receptive_field(name, output, query, **source)
    typer.echo(receptive_table(name, query, **source))
    typer.echo(f"wrote {output}")


def _picture(
    pipeline: Any, seed: int | None, styles: Path | None, truncation: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The styles [1, num_ws, w_dim] of the picture, and what to label it with."""
    from stylenat_hub.pictures import drawn_by

    about = drawn_by(pipeline, truncation)
    if styles is None:
        seed = 0 if seed is None else seed
        return pipeline.styles([seed], **truncation), {**about, "seed": str(seed)}
    from stylenat_hub.latents.styles import load_styles

    ws, _ = load_styles(styles, pipeline.generator)
    if len(ws) != 1:
        raise InputError(f"{str(styles)!r} holds {len(ws)} styles; attention is looked at in one picture")
    return pipeline.generator.truncate(ws, *truncation.values()), {**about, "styles": styles.name}

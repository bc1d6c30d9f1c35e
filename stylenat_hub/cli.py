"""The `stylenat` command: the words on the command line; each command calls an importable function.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 one sentence says
why not (Ctrl-C among it), 2 wrong usage. PyTorch is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stylenat_hub import cli_evaluate, signals
from stylenat_hub.errors import InputError
from stylenat_hub.options import (
    DEBUG,
    AsJson,
    Debug,
    Device,
    Dtype,
    License,
    Namespace,
    Private,
    Revision,
    ShardFormat,
    Variant,
    choose_device,
    finite_number,
    one_sentence,
    parse_path,
    parse_seeds,
)


class _Commands(TyperGroup):
    """All commands, with their errors in one sentence."""

    def invoke(self, ctx: Any) -> Any:
        with one_sentence(ctx.params["debug"]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Pictures from transformer GANs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def builtin_model() -> str:
    """The model to use where none is named. Raises `InputError` while this version ships none."""
    from stylenat_hub.hub import builtin_models

    names = builtin_models()
    if not names:
        raise InputError(
            "this version ships no trained model yet, so name one: a folder that python -m "
            "conversion.convert wrote, or a Hub id (`stylenat list` shows the zoo)"
        )
    return names[0]


def _version(wanted: bool) -> None:
    if wanted:
        from stylenat_hub import __version__

        typer.echo(f"stylenat {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Pictures from transformer GANs: StyleNAT and its relatives."""


@app.command()
def generate(
    model: Annotated[
        str | None,
        typer.Argument(help="Zoo name, folder or Hub id; default: the built-in model.", show_default=False),
    ] = None,
    seeds: Annotated[
        Any,
        typer.Option(
            parser=parse_seeds, metavar="SEEDS", help="Such as 0-15 or 1,5,9-12.", show_default="0-15"
        ),
    ] = None,
    truncation: Annotated[
        float, typer.Option(callback=finite_number, help="1: full variety; 0: the mean picture.")
    ] = 1.0,
    cutoff: Annotated[
        int | None, typer.Option(min=0, help="Truncate only so many of the styles, the coarse ones first.")
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
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 8,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in.")] = Dtype.float32,
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
    if num is not None:
        if seeds is not None or grid:
            raise InputError("--num goes without --seeds and --grid: it draws the seeds from --first-seed on")
        options = {"truncation_psi": truncation, "truncation_cutoff": cutoff, "batch_size": batch_size}
        return _generate_shards(
            lambda chosen: load_pipeline(model or builtin_model(), chosen, dtype.value, **source),
            device,
            output,
            {"num": num, **sharded, **options},
        )
    if sharded:
        raise InputError(f"--{min(sharded).replace('_', '-')} goes with --num: add it, or leave this out")
    from stylenat_hub import pictures

    seeds = parse_seeds("0-15") if seeds is None else seeds
    pictures.check_writable(output)
    pipeline = load_pipeline(model or builtin_model(), device, dtype.value, **source)
    label = {"version": _software()}
    options = {
        "truncation_psi": truncation,
        "truncation_cutoff": cutoff,
        "batch_size": batch_size,
        "grid": grid,
    }
    written = pictures.write_pictures(pipeline, seeds, output, label=label, **options)
    also = f" and {written.grid.name}" if written.grid else ""
    typer.echo(f"wrote {written.count} picture{'s' * (written.count != 1)}{also} to {written.folder}")


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


def load_pipeline(model: str, device: str, dtype: str, **source: Any) -> Any:
    """A `GANPipeline` on a device (see `choose_device`), in a type named as torch names it.

    source: further arguments of `GANPipeline.from_pretrained`.
    """
    import torch

    from stylenat_hub.pipeline import GANPipeline

    chosen = choose_device(device)
    pipeline = GANPipeline.from_pretrained(model, dtype=getattr(torch, dtype), **source)
    if chosen.type != "cpu":  # where it is; diffusers would warn that float16 cannot run there, and it can
        pipeline.to(chosen)
    pipeline.set_progress_bar_config(desc="pictures", unit="", leave=False, file=sys.stderr)
    return pipeline


def _software() -> str:
    from stylenat_hub import __version__

    return f"stylenat_hub {__version__}"


app.command()(cli_evaluate.evaluate)


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as '*ffhq*'.")] = "*",
    namespace: Namespace = None,
    papers: Annotated[
        bool, typer.Option("--papers", help="List the papers' figures instead, with where they were read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the zoo."""
    if papers:
        return _list_papers(pattern, as_json)
    from stylenat_hub.summary import list_checkpoints, table

    records = list_checkpoints(pattern, namespace)
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif not records:
        raise InputError(f"no model of the zoo matches {pattern!r}; `stylenat list` shows all")
    else:
        keys = ("name", "resolution", "parameters", "status", "description")
        typer.echo("\n".join(table([{key: record[key] for key in keys} for record in records])))


def _list_papers(pattern: str, as_json: bool) -> None:
    from stylenat_hub.papers import paper_tables, render, sources

    tables = paper_tables(pattern)
    if as_json:
        typer.echo(json.dumps({"sources": sources(), "tables": tables}, indent=2))
    else:
        typer.echo(render(tables))


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(parser=parse_path, help="What save_pretrained, conversion or training wrote.")
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Hub id; made if it is not there.")],
    license_: License = None,
    private: Private = False,
    variant: Variant = None,
    branch: Annotated[str | None, typer.Option(help="Push to this branch; made if it is not there.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name the new state, such as v1.")] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    bundle_code: Annotated[
        bool, typer.Option("--bundle-code", help="Add this project's code, for diffusers without it.")
    ] = False,
) -> None:
    """Publish a folder on the Hub, after checking that it loads and draws."""
    from stylenat_hub import publish

    commit = publish.push_folder(
        folder,
        repository,
        license=license_,
        private=private or None,
        variant=variant,
        revision=branch,
        tag=tag,
        commit_message=message or "Upload model",
        create_pr=create_pr,
        bundle_code=bundle_code,
    )
    typer.echo(publish.report(commit))


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Zoo name, folder or Hub id; default: the built-in model.", show_default=False),
    ] = None,
    variant: Variant = None,
    revision: Revision = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's configuration, levels, parameters and weights."""
    from stylenat_hub.summary import describe, render

    source = {"variant": variant, "revision": revision, "namespace": namespace}
    facts = describe(model or builtin_model(), **source)
    typer.echo(json.dumps(facts, indent=2) if as_json else render(facts))


@app.command()
def benchmark(
    model: Annotated[
        str,
        typer.Argument(help="Shape to build: a name of `stylenat list`, or stylenat-tiny (no folders)."),
    ] = "stylenat-ffhq-256",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    device: Device = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in.")] = Dtype.float32,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each kind; the median counts.")] = 5,
    gather: Annotated[bool, typer.Option(help="Measure the gather formulation of attention too.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="FILE", help="Also write the result as JSON to this file."),
    ] = None,
) -> None:
    """Time a model's shape with random weights.

    Generation is timed against its blocks' products and convolutions, and against gathered attention.
    """
    import torch

    from stylenat_hub import benchmark as measure
    from stylenat_hub.files import whole_file

    options = {
        "batch": batch_size,
        "dtype": getattr(torch, dtype.value),
        "threads": threads,
        "repeats": repeats,
    }
    result = measure.benchmark(model, device=str(choose_device(device)), gather=gather, **options)
    typer.echo(measure.table(result))
    if output:
        with whole_file(output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The entry point; it ends with `SystemExit`. `--debug` may stand anywhere on the line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    rest = [argument for argument in arguments if argument != DEBUG]
    debug = [DEBUG] if len(rest) < len(arguments) else []
    with signals.caught():
        # Not `app(...)`, which puts typer's own excepthook in place.
        typer.main.get_command(app)([*debug, *rest], prog_name="stylenat")


if __name__ == "__main__":
    main()

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

from stylenat_hub import (
    cli_demo,
    cli_directions,
    cli_evaluate,
    cli_generate,
    cli_inside,
    cli_interpolate,
    cli_mix,
    cli_project,
    signals,
)
from stylenat_hub.cli_models import Model, builtin_model
from stylenat_hub.errors import InputError
from stylenat_hub.options import (
    DEBUG,
    AsJson,
    Debug,
    Device,
    Dtype,
    DtypeOption,
    License,
    Namespace,
    Private,
    Revision,
    Variant,
    choose_device,
    one_sentence,
    parse_path,
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


app.command()(cli_generate.generate)
app.command()(cli_mix.mix)
app.command()(cli_interpolate.interpolate)
app.command()(cli_directions.directions)
app.command()(cli_project.project)
app.command()(cli_inside.attention)
app.command()(cli_evaluate.evaluate)
app.command()(cli_demo.demo)


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
    model: Model = None,
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
    dtype: DtypeOption = Dtype.float32,
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

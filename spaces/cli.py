"""The command line of `spaces.deploy`: thin, and every error is one line."""

from __future__ import annotations

from typing import Annotated

import typer

from stylenat_hub.options import one_sentence

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def command(
    space: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The Space; made if it is not there.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="What the page starts with: zoo name or Hub id.", show_default="the built-in model"
        ),
    ] = None,
    preload: Annotated[
        bool, typer.Option("--preload", help="Fetch the model while the Space is built.")
    ] = False,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Such as cpu-basic, zero-a10g or t4-small.", show_default="left as it is"
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only into a private Space.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make or update a Space on Hugging Face that shows this clone's page."""
    with one_sentence(debug):
        from spaces.deploy import deploy

        done = deploy(space, model=model, preload=preload, hardware=hardware, private=private)
        typer.echo(f"{done.files} files, {done.size / 2**20:.1f} MiB: {done.news}")
        if hardware:
            typer.echo(f"hardware {hardware}: {'asked for' if done.hardware else 'as it was'}")
        typer.echo(f"{'nothing is new at' if done.news == 'unchanged' else 'deployed to'} {done.url}")


def main() -> None:
    app(prog_name="python -m spaces.deploy")

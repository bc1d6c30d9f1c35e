"""The command line of `conversion.convert`: thin, and every error is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="CKPT", help="Original checkpoint file (.pt, .pth).", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write; new or empty.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Download a published original by its zoo name."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset that states the dilations.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with config fields, such as 'dilations'.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Generator to take: g_ema (averaged) or g.")] = "g_ema",
    skip_discriminator: Annotated[bool, typer.Option("--skip-discriminator", help="Do not keep it.")] = False,
    ignore_metadata: Annotated[
        bool, typer.Option("--ignore-metadata", help="Read unknown metadata types as inert stand-ins.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Convert an original StyleNAT checkpoint to safetensors, config and pipeline layout."""
    if (checkpoint is None) == (source is None):
        raise typer.BadParameter("name a checkpoint file or --from NAME, one of the two")
    if output is None:
        raise typer.BadParameter("name the folder to write with --output DIR")
    if preset is not None and config is not None:
        raise typer.BadParameter("--preset and --config exclude each other")
    if weights not in ("g_ema", "g"):
        raise typer.BadParameter(f"--weights is {weights!r}; allowed: g_ema, g")
    try:
        # Imported here, because they are heavy: Ctrl-C is one line from the start.
        from conversion import convert as conversion
        from stylenat_hub.errors import StyleNATHubError

        try:
            if source is not None:
                checkpoint, published = _published(source)
                preset = preset if preset or config else published
            report = conversion.convert(
                checkpoint,
                output,
                preset=preset,
                config=conversion.read_config_file(config) if config else None,
                weights=weights,
                skip_discriminator=skip_discriminator,
                ignore_metadata=ignore_metadata,
                overwrite=overwrite,
            )
        except (StyleNATHubError, OSError, MemoryError) as error:
            if debug:
                raise
            typer.echo(f"error: {error or type(error).__name__}", err=True)
            raise typer.Exit(1) from None
        except Exception as error:
            if debug:
                raise
            typer.echo(f"error: unexpected {type(error).__name__}: {error}; --debug shows where", err=True)
            raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    typer.echo(str(report))


def _published(name: str) -> tuple[Path, str]:
    """Download the authors' file of a zoo name: (file, the preset of its shape)."""
    from conversion.download import download
    from stylenat_hub.errors import UnknownModelError
    from stylenat_hub.registry import CHECKPOINTS, find_checkpoint

    record = find_checkpoint(name)
    if record.origin_url is None:
        published = ", ".join(known for known, other in CHECKPOINTS.items() if other.origin_url)
        raise UnknownModelError(f"the authors published no file for {name!r} (they did for: {published})")
    return download(record.origin_url), record.preset


def main() -> None:
    app(prog_name="python -m conversion.convert")

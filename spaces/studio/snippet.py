"""The lines of Python that repeat a picture, to the pixel."""

from __future__ import annotations

from collections.abc import Sequence


def drawing(
    model: str,
    seeds: Sequence[int],
    psi: float,
    cutoff: int | None = None,
    centers: int | None = None,
) -> str:
    """Lines that draw these seeds and save them under the names that `stylenat generate` uses."""
    several = len(seeds) > 1
    which = f"range({seeds[0]}, {seeds[-1] + 1})" if several else f"[{seeds[0]}]"
    options = [f"seeds={which}", f"truncation_psi={psi!r}"]
    if cutoff is not None:
        options.append(f"truncation_cutoff={cutoff}")
    if centers is not None:
        options.append("truncation_centers=centers")
    lines = ["from stylenat_hub import GANPipeline"]
    if centers is not None:
        lines.append("from stylenat_hub.latents.clusters import style_centers")
    lines += ["", f"pipe = GANPipeline.from_pretrained({_quoted(model)})"]
    if centers is not None:
        lines.append(f"centers = style_centers(pipe.generator, {centers})")
    return "\n".join(
        [
            *lines,
            f"drawn = pipe({', '.join(options)})",
            "for seed, image in zip(drawn.seeds, drawn.images):",
            '    image.save(f"seed{seed:010d}.png")',
            "",
        ]
    )


def _quoted(name: str) -> str:
    """As a Python literal in double quotes."""
    return repr(name) if '"' in name or "\\" in name or not name.isprintable() else f'"{name}"'

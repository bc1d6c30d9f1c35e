"""The lines of Python that repeat a picture, to the pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
    lines += ["", f"pipe = GANPipeline.from_pretrained({quoted(model)})"]
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


def mixing(model: str, seeds: Sequence[int], psi: float, shares: Mapping[int, float], name: str) -> str:
    """Lines that mix the pictures of two seeds. shares: as `mixing.Shares`; name: of the file."""
    return "\n".join(
        [
            "from stylenat_hub import GANPipeline",
            "from stylenat_hub.latents import styles_at",
            "from stylenat_hub.latents.paths import lerp",
            "",
            f"pipe = GANPipeline.from_pretrained({quoted(model)})",
            f"a, b = pipe.styles({list(seeds)}, truncation_psi={psi!r}).cpu().split(1)",
            "mixed = a.clone()",
            f"for level, share in {dict(shares)}.items():  # px, and how much of it is b's",
            "    numbers = styles_at(pipe.generator, str(level))",
            "    mixed[:, numbers] = lerp(a[:, numbers], b[:, numbers], share)",
            f"pipe.draw(mixed)[0].save({quoted(name)})",
            "",
        ]
    )


def travelling(
    model: str, seeds: Sequence[int], frames: int, kind: str, fps: int, psi: float, name: str
) -> str:
    """Lines that write the video of a closed path; name: of the file."""
    return "\n".join(
        [
            "from stylenat_hub import GANPipeline",
            "from stylenat_hub.latents import StylePath, draw_paths",
            "from stylenat_hub.video import write_video",
            "",
            f"pipe = GANPipeline.from_pretrained({quoted(model)})",
            f"path = StylePath(pipe, {list(seeds)}, {frames}, {quoted(kind)}, truncation_psi={psi!r})",
            f"write_video(draw_paths(pipe, [path]), {quoted(name)}, fps={fps})",
            "",
        ]
    )


def editing(
    model: str,
    seed: int,
    psi: float,
    found: tuple[str, str, int],
    moves: Mapping[str, float],
    name: str,
) -> str:
    """Lines that edit a picture. found: the method, the levels and the number of the directions; moves:
    strengths by name; name: of the file."""
    method, where, count = found
    function = {"sefa": "closed_form", "pca": "principal"}[method]
    return "\n".join(
        [
            "from stylenat_hub import GANPipeline",
            f"from stylenat_hub.latents import {function}",
            "",
            f"pipe = GANPipeline.from_pretrained({quoted(model)})",
            f"directions = {function}(pipe.generator, {count}, {quoted(where)})",
            f"edit = directions.edit({dict(moves)!r})  # in standard deviations",
            f"drawn = pipe([{seed}], truncation_psi={psi!r}, edit=edit)",
            f"drawn.images[0].save({quoted(name)})",
            "",
        ]
    )


def quoted(name: str) -> str:
    """As a Python literal in double quotes."""
    return repr(name) if '"' in name or "\\" in name or not name.isprintable() else f'"{name}"'

"""How far a generator's attention can see: the effective receptive field of its schedule, weights unread.

Every key that a head can see gets the same weight, so this is what the schedule allows, not what a trained
model uses; what StyleSwin sees across the seam of its shifted windows, weighted by exp(-100), is not seen.
Left out are the skip connections (a token always keeps itself), and the normalisation over the
whole picture that StyleNAT and StyleSwin have, through which all tokens hear a little of all others.

Legend: L side of a level in tokens, K keys of one position along an axis. A field is [L, L], row first: how
much one output token depends on each input token; it sums to 1.
Source: the schedules of arXiv 2211.05770, Tables 5 and 6; the measure is that of arXiv 1701.04128, with
uniform weights in place of gradients.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from stylenat_hub import hub
from stylenat_hub.errors import InputError, UnknownModelError
from stylenat_hub.inside.places import CENTRE, check_place, token_at
from stylenat_hub.layers.partitions import Partition
from stylenat_hub.models.base import TOKEN_UPSAMPLINGS, Generator
from stylenat_hub.registry import CHECKPOINTS, FAMILIES, SHAPES, create_model, find_class, nearest
from stylenat_hub.weights import read_json

MASS = 0.9  # of a field, within the radius that is stated


@dataclass(frozen=True, eq=False)
class Schedule:
    """A generator of which only the shape matters. name: as it was asked for. title: the same for a figure,
    with the family, and with other families that have a preset of the name. generator: on the meta device."""

    name: str
    title: str
    generator: Generator


@dataclass(frozen=True, eq=False)
class Field:
    """What the token at `query` (row, column) depends on: weights [L, L] float64 on the CPU, which sum to
    1."""

    weights: torch.Tensor
    query: tuple[int, int]

    @property
    def size(self) -> int:
        return len(self.weights)

    @property
    def reach(self) -> int:
        """Tokens from the first to the last that counts, gaps included, along the longer axis."""
        seen = self.weights > 0
        return max(_extent(seen.any(dim=1)), _extent(seen.any(dim=0)))

    @property
    def tokens(self) -> int:
        """How many tokens count at all."""
        return int((self.weights > 0).sum())

    @property
    def coverage(self) -> float:
        """The same as a share of the level's tokens, from 0 to 1."""
        return self.tokens / self.weights.numel()

    @property
    def spread(self) -> float:
        """Root mean square distance from the query, in tokens."""
        return float((self.weights * self._distances().square()).sum().sqrt())

    @property
    def radius(self) -> float:
        """Distance from the query, in tokens, within which 90 % of the weight lies."""
        distances, order = self._distances().flatten().sort()
        mass = self.weights.flatten()[order].cumsum(0)
        return float(distances[int((mass < MASS - 1e-9).sum())])

    def _distances(self) -> torch.Tensor:
        place = torch.arange(self.size, dtype=torch.float64)
        return torch.hypot((place - self.query[0])[:, None], (place - self.query[1])[None, :])


@dataclass(frozen=True, eq=False)
class Run:
    """A run of heads that look alike: its label, how many of the level's heads it has, and its field."""

    label: str
    heads: int
    of: int
    field: Field


@dataclass(frozen=True, eq=False)
class LevelFields:
    """One level: side in px, which is L; how many self-attentions it has, and the fields of its query token.

    runs: of each partition of heads alone. block: of one block, the mean over its heads. level: of all the
    level's blocks, one after the other. picture: what an output pixel depends on at the level's input,
    through this level and all later ones. Without self-attention `runs` is empty, and `block` and `level` are
    the token itself.
    """

    size: int
    blocks: int
    runs: tuple[Run, ...]
    block: Field
    level: Field
    picture: Field


def resolve(
    name: str | os.PathLike[str], revision: str | None = None, namespace: str | None = None
) -> Schedule:
    """What is meant by a preset of a family (`church-256`), a shape of the zoo (`styleswin-ffhq-256`), the
    built-in model, a local folder or a Hub id; an existing folder wins. Shapes are built without weights. Of
    families that share a preset's name the zoo's first is meant, which is StyleNAT; the title names the
    others.

    revision, namespace: as `hub.locate`. With one of them a name of the zoo means what is on the Hub, whose
    config may differ from the shape's.

    Raises:
        UnknownModelError: nothing of that name; the nearest are offered. ConfigError: a folder that is no
            model's. InputError: an empty name, or a revision or namespace beside a preset.
    """
    text = os.fspath(name)
    if not text:
        raise InputError("the schedule's name is empty; give a preset such as church-256, or a model")
    source = {"revision": revision, "namespace": namespace}
    given = [option for option, value in source.items() if value is not None]
    if not os.path.isdir(text) and not (given and text in CHECKPOINTS):
        owners = [family for family in FAMILIES.values() if text in family.config.presets]
        if given and (text in SHAPES or owners):
            raise InputError(
                f"{text!r} is a preset of this version, which has no {' and no '.join(given)}; leave that "
                "out, or name a model of the Hub"
            )
        if text in SHAPES:
            return _schedule(text, _blank(text))
        if owners:
            others = ", ".join(f"{family.name}-{text}" for family in owners[1:])
            return _schedule(text, _blank(f"{owners[0].name}-{text}"), others)
        if not text.startswith("~") and not {"/", os.sep} & set(text) and not os.path.exists(text):
            presets = {preset for family in FAMILIES.values() for preset in family.config.presets}
            raise UnknownModelError(nearest(text, presets | set(SHAPES)))
    folder = hub.locate(text, **source).folder
    config = read_json(folder / "config.json")
    with torch.device("meta"):
        generator = hub.generator_class(folder).from_config(config)
    folder = Path(text).expanduser()
    return _schedule(folder.resolve().name if folder.is_dir() else text, generator)


def _blank(shape: str) -> Generator:
    with torch.device("meta"):
        return create_model(shape)


def _schedule(name: str, generator: Generator, others: str = "") -> Schedule:
    _, families = find_class(type(generator).__name__)
    also = f"; see also {others}" if others else ""
    return Schedule(name, f"{name} ({families[0].title}, {generator.resolution} px{also})", generator)


def receptive_fields(generator: Generator, query: tuple[float, float] = CENTRE) -> list[LevelFields]:
    """The fields of every level, coarse levels first. query: (x, y) in [0, 1], from the picture's top left.

    Weights are never read. At 1024 px this takes some seconds and tens of megabytes.
    Raises `InputError` for a query outside of the picture, and where the levels do not double.
    """
    x, y = check_place(query)
    blocks: dict[int, list[Sequence[Partition]]] = {size: [] for size in level_sizes(generator)}
    for site in generator.attention_sites():
        blocks[site.level].append(site.partitions)
    found: list[LevelFields] = []
    through: torch.Tensor | None = None  # from an output pixel back to the level at hand
    for size in sorted(blocks, reverse=True):
        place = (token_at(y, size), token_at(x, size))
        start = torch.zeros(size, size, dtype=torch.float64, device="cpu")
        start[place] = 1
        through = start if through is None else shrunk(through, generator.token_upsampling)
        through = _through(through, blocks[size])
        found.append(_level(start, place, blocks[size], through))
    return found[::-1]


def level_sizes(generator: Generator) -> list[int]:
    """The sides in px of all levels, ascending: those where anything attends, or a style acts.

    Raises `InputError` where there are none, or one is not twice the last.
    """
    sites = (*generator.attention_sites(), *generator.cross_attentions())
    sizes = sorted({site.level for site in sites} | set(generator.style_levels))
    if not sizes or any(large != 2 * small for small, large in itertools.pairwise(sizes)):
        raise InputError(
            f"the levels of this {type(generator).__name__} have {', '.join(map(str, sizes)) or 'no'} px; a "
            "receptive field needs levels each of which is twice as large as the one before"
        )
    return sizes


def _level(
    start: torch.Tensor, place: tuple[int, int], blocks: Sequence[Sequence[Partition]], through: torch.Tensor
) -> LevelFields:
    last = blocks[-1] if blocks else ()
    heads = sum(part.num_heads for part in last)
    runs = [Run(p.label, p.num_heads, heads, Field(spread(start, [p]), place)) for p in last]
    one = spread(start, last) if last else start
    whole = _through(one, blocks[:-1])
    fields = (Field(weights, place) for weights in (one, whole, through))
    return LevelFields(len(start), len(blocks), tuple(runs), *fields)


def _through(field: torch.Tensor, blocks: Sequence[Sequence[Partition]]) -> torch.Tensor:
    """Back through blocks, the last of them first."""
    for partitions in reversed(blocks):
        field = spread(field, partitions)
    return field


def spread(field: torch.Tensor, partitions: Sequence[Partition]) -> torch.Tensor:
    """A field [L, L] on a block's output tokens -> the same on its input tokens, the mean over its heads.

    All attention here is separable (see `Partition`), so each axis is done by itself.
    """
    heads = sum(part.num_heads for part in partitions)
    total = torch.zeros_like(field)
    for part in partitions:
        rows = _along_rows(field, part)
        total += part.num_heads / heads * _along_rows(rows.T, part).T
    return total


def uniform(part: Partition) -> torch.Tensor:
    """[L, K] float64: equal weights of the keys along an axis that count; each row sums to 1."""
    counted = part.counted.double()
    return counted / counted.sum(dim=1, keepdim=True)


def _along_rows(field: torch.Tensor, part: Partition) -> torch.Tensor:
    """Each row's weight goes in equal parts to the rows that its position sees."""
    seen = field.any(dim=1).nonzero()[:, 0]
    field, keys, weights = field[seen], part.keys[seen], uniform(part)[seen]
    total = field.new_zeros(len(part.keys), field.shape[1])
    for k in range(keys.shape[1]):
        total.index_add_(0, keys[:, k], weights[:, k, None] * field)
    return total


def shrunk(field: torch.Tensor, upsampling: str) -> torch.Tensor:
    """A field [2L, 2L] on the tokens after an upsampling -> [L, L] on those before it.

    upsampling: "bilinear" (pixel centres aligned, as `layers.resample.upsample_tokens`), or "nearest". Raises
    `InputError` for another.
    """
    if upsampling not in TOKEN_UPSAMPLINGS:
        allowed = ", ".join(TOKEN_UPSAMPLINGS)
        raise InputError(f"token_upsampling is {upsampling!r}; a receptive field is known for {allowed}")
    half = torch.eye(len(field) // 2, dtype=field.dtype)[None]
    if upsampling == "nearest":
        tokens = F.interpolate(half, scale_factor=2, mode="nearest")[0]  # [L, 2L]
    else:
        tokens = F.interpolate(half, scale_factor=2, mode="linear", align_corners=False)[0]
    return tokens @ field @ tokens.T


def receptive_table(
    name: str | os.PathLike[str],
    query: tuple[float, float] = CENTRE,
    *,
    revision: str | None = None,
    namespace: str | None = None,
) -> str:
    """The figures of `receptive_fields` as aligned lines of text, percentages of the picture's side and of
    the level's tokens. Arguments and errors: `resolve`, `receptive_fields`."""
    schedule = resolve(name, revision, namespace)
    header = ("px", "what sees", "heads", "reach", "of side", "tokens", "of all", "rms", "90 % within")
    rows = [header]
    for level in receptive_fields(schedule.generator, query):
        rows += [(f"{level.size}", *cells) for cells in _cells(level)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{schedule.title}: receptive field of uniform attention", *lines])


def _cells(level: LevelFields) -> list[tuple[str, ...]]:
    cells = [(run.label, f"{run.heads}/{run.of}", *_figures(run.field)) for run in level.runs]
    if not level.blocks:
        cells.append(("no self-attention", "-", *_figures(level.level)))
    else:
        cells.append(("one block", "all", *_figures(level.block)))
    if level.blocks > 1:
        cells.append((f"{level.blocks} blocks", "all", *_figures(level.level)))
    return [*cells, ("output pixel, back to here", "all", *_figures(level.picture))]


def _figures(field: Field) -> tuple[str, ...]:
    size = field.size
    return (
        f"{field.reach}",
        percent(field.reach / size),
        f"{field.tokens:,}",
        percent(field.coverage),
        f"{field.spread:.1f}",
        f"{field.radius:.1f} ({percent(field.radius / size)})",
    )


def percent(share: float) -> str:
    """A share as a percentage of three digits at most, never 0 for what is not nothing."""
    value = 100 * share
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 1 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f} %"


def _extent(seen: torch.Tensor) -> int:
    """From the first to the last True, both included."""
    places = seen.nonzero()
    return int(places.max() - places.min()) + 1

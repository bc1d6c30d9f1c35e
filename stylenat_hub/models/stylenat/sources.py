"""What an original checkpoint's record, a preset or a config say about a generator, against its tensors.

Tensors fix almost every field of the config, but not the dilations. Every source that is given is checked
against the tensors and against the other sources; a contradiction or a gap is an error that names the level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from stylenat_hub.errors import ConfigError
from stylenat_hub.models.lineage import at_level
from stylenat_hub.models.stylenat.config import StyleNATConfig

_PER_LEVEL = ("channels", "num_heads", "kernel_sizes", "dilations")
_PER_PARTITION = ("kernel_sizes", "dilations")
_READ_OFF_TENSORS = ("z_dim", "w_dim", "mapping_layers", "mlp_ratio", "qkv_bias")


def agree(
    facts: Mapping[str, Any],
    *,
    args: Mapping[str, Any] | None,
    preset: str | None,
    config: StyleNATConfig | Mapping[str, Any] | None,
) -> StyleNATConfig:
    """The config that the tensors (`facts`) and all given sources agree on; see `keys.infer_config`."""
    sources = list(_sources(args, preset, config))
    for label, source in sources:
        _check_against_tensors(label, source, facts)
    values = {**facts, **_stated(sources, facts)}
    if "dilations" not in values:
        raise _no_dilations(facts)
    return StyleNATConfig(**values)


def _sources(
    args: Mapping[str, Any] | None, preset: str | None, config: StyleNATConfig | Mapping[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, config fields) of each source that is given."""
    for facts in _recorded(args or {}):
        yield "the checkpoint's own record", facts
    if preset is not None:
        yield f"the preset {preset!r}", dataclasses.asdict(StyleNATConfig.preset(preset))
    if isinstance(config, StyleNATConfig):
        yield "the config", dataclasses.asdict(config)
    elif config is not None:
        fields = {key: value for key, value in config.items() if not key.startswith("_")}
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(StyleNATConfig)})
        if unknown:
            raise ConfigError(
                f"the config does not know the key(s) {', '.join(map(repr, unknown))}; allowed: "
                f"{', '.join(field.name for field in dataclasses.fields(StyleNATConfig))}"
            )
        yield "the config", fields


def _recorded(args: Mapping[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """Config fields in every mapping of the recorded arguments that lists `dilations` or `kernels`."""
    names = {"kernels": "kernel_sizes", "dilations": "dilations", "lr_mlp": "mapping_lr_mul"}
    if any(args.get(key) is not None for key in ("kernels", "dilations")):
        yield {new: args[old] for old, new in names.items() if args.get(old) is not None}
    if depth < 8:
        for value in args.values():
            if isinstance(value, Mapping):
                yield from _recorded(value, depth + 1)


def _check_against_tensors(label: str, source: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    levels = len(facts["channels"])
    for field in _PER_LEVEL:
        if field in source and (not isinstance(source[field], (list, tuple)) or len(source[field]) != levels):
            raise _wrong_count(label, field, source[field], facts)
    for level in range(levels):
        for field in ("channels", "num_heads"):
            if field in source and source[field][level] != facts[field][level]:
                raise _contradiction(
                    f"{at_level(level)}: ", field, facts[field][level], label, source[field][level]
                )
        for field in _PER_PARTITION:
            if field in source and level > 0:
                values = _per_partition(label, field, source[field][level], level, facts)
                if field == "kernel_sizes" and values != facts[field][level]:
                    raise _contradiction(f"{at_level(level)}: ", field, facts[field][level], label, values)
    for field in ("resolution", *_READ_OFF_TENSORS):
        if field in source and source[field] != facts[field]:
            raise _contradiction("", field, facts[field], label, source[field])


def _per_partition(
    label: str, field: str, listed: Any, level: int, facts: Mapping[str, Any]
) -> tuple[int, ...]:
    """What a source lists for a level, one value per partition."""
    partitions = len(facts["kernel_sizes"][level])
    values = tuple(listed) if isinstance(listed, (list, tuple)) else (listed,)
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ConfigError(
            f"{at_level(level)}: {label} gives {field} {listed!r}; whole numbers, one per partition, are "
            "needed"
        )
    if len(values) not in (1, partitions):
        raise ConfigError(
            f"{at_level(level)}: the tensors hold {partitions} partition(s) with {facts['num_heads'][level]} "
            f"heads in all, but {label} lists {len(values)} {field}, {list(values)}; {_what_to_do(facts)}"
        )
    return values * partitions if len(values) == 1 else values


def _stated(sources: list[tuple[str, dict[str, Any]]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tensors cannot tell, the 4 px kernel among them, agreed on by all that state them."""
    stated: dict[str, tuple[str, Any]] = {}
    for label, source in sources:
        for field in ("mapping_lr_mul", "image_mean", "image_std", *_PER_PARTITION):
            if field in source:
                value = _agreeable(label, field, source[field], facts)
                _must_agree(field, stated.setdefault(field, (label, value)), (label, value))
    # The 4 px level has a 7 x 7 table whatever its kernel is: where nobody states one, it is the paper's 3.
    stated.setdefault("kernel_sizes", ("", ((3,), *facts["kernel_sizes"][1:])))
    return {field: value for field, (_, value) in stated.items()}


def _agreeable(label: str, field: str, value: Any, facts: Mapping[str, Any]) -> Any:
    """A source's value in the one form in which sources can be compared."""
    if field not in _PER_PARTITION:
        return tuple(value) if isinstance(value, list) else value
    first = value[0] if isinstance(value[0], (list, tuple)) else (value[0],)
    # All 16 tokens see each other at 4 px: there is one partition, and a dilation there means nothing.
    first = (1,) if field == "dilations" else tuple(first[:1])
    rest = (
        _per_partition(label, field, listed, level, facts) for level, listed in enumerate(value) if level > 0
    )
    return (first, *rest)


def _must_agree(field: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    if one[1] is other[1] or one[1] == other[1]:  # NaN is not itself, and the config refuses it
        return
    where, said = "", (one[1], other[1])
    if field in _PER_PARTITION:
        level = next(i for i, (a, b) in enumerate(zip(one[1], other[1], strict=True)) if a != b)
        where, said = f"{at_level(level)}: ", (one[1][level], other[1][level])
    raise ConfigError(
        f"{where}{one[0]} says {field} {_text(said[0])}, but {other[0]} says {_text(said[1])}; leave out the "
        "one that is wrong, or name the preset or config that this checkpoint was trained with"
    )


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def _contradiction(where: str, field: str, tensors: Any, label: str, source: Any) -> ConfigError:
    return ConfigError(
        f"{where}the tensors say {field} {_text(tensors)}, but {label} says {_text(source)}; "
        "name the preset or config that this checkpoint was trained with"
    )


def _wrong_count(label: str, field: str, value: Any, facts: Mapping[str, Any]) -> ConfigError:
    levels = len(facts["channels"])
    if not isinstance(value, (list, tuple)):
        return ConfigError(f"{label} gives {field} {value!r}; a list with one entry per level is needed")
    # The first level that only one side has.
    level = min(len(value), levels)
    has = "is in the tensors" if levels > len(value) else "is not in the tensors"
    return ConfigError(
        f"{at_level(level)} {has}, which have {levels} levels up to {facts['resolution']} px, but {label} "
        f"lists {field} for {len(value)} levels; {_what_to_do(facts)}"
    )


def _no_dilations(facts: Mapping[str, Any]) -> ConfigError:
    level = min(range(1, len(facts["channels"])), key=lambda i: -len(facts["kernel_sizes"][i]), default=0)
    kernels = list(facts["kernel_sizes"][level])
    return ConfigError(
        "nothing states the dilations: the checkpoint records none and tensors cannot tell them, for "
        f"example at {at_level(level)} with {len(kernels)} partition(s) of kernels {kernels}; "
        f"{_what_to_do(facts)}"
    )


def _what_to_do(facts: Mapping[str, Any]) -> str:
    same = ("channels", "num_heads", "z_dim", "w_dim", "mapping_layers")
    fitting = []
    for name in StyleNATConfig.presets:
        values = dataclasses.asdict(StyleNATConfig.preset(name))
        kernels = [len(kernels) for kernels in values["kernel_sizes"]]
        if all(values[field] == facts[field] for field in same) and kernels == [
            len(k) for k in facts["kernel_sizes"]
        ]:
            fitting.append(repr(name))
    if fitting:
        return f"name the preset that fits these tensors ({' or '.join(fitting)}), or pass a config file"
    return "no preset fits these tensors, so pass a config file that lists 'dilations', one list per level"

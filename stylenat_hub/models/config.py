"""What the configs of all families have in common: validation on construction, strict dict round trips."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from stylenat_hub.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


def as_tuples(value: Any) -> Any:
    """Lists, as JSON gives them, become tuples at every depth, so that a config can be frozen and hashed."""
    if isinstance(value, (list, tuple)):
        return tuple(as_tuples(item) for item in value)
    return value


class ModelConfig:
    """Base of the frozen config dataclasses.

    A subclass is a `@dataclass(frozen=True)` with a class attribute `presets` (name -> constructor arguments)
    and a `validate()` that raises `ConfigError` naming the field, its value and what is allowed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_tuples(getattr(self, field.name)))
        self.validate()

    def validate(self) -> None:
        raise NotImplementedError

    def require(self, condition: bool, field: str, allowed: str) -> None:
        """Raise a `ConfigError` about `field` unless `condition` holds."""
        if not condition:
            raise ConfigError(
                f"{type(self).__name__}.{field} is {getattr(self, field)!r}; allowed: {allowed}"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The config of a named preset; keyword arguments replace single fields. Raises `ConfigError`."""
        if name not in cls.presets:
            near = difflib.get_close_matches(name, cls.presets, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{cls.__name__} has no preset {name!r}{hint} (allowed: {', '.join(sorted(cls.presets))})"
            )
        return cls.from_dict({**cls.presets[name], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain data (a `config.json`); keys starting with `_` are diffusers' own and are skipped.

        Raises:
            ConfigError: an unknown or a missing key, by name, or a value that is not allowed.
        """
        values = {key: value for key, value in values.items() if not key.startswith("_")}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(
                f"{cls.__name__} does not know the key(s) {', '.join(map(repr, unknown))}; "
                f"allowed: {', '.join(fields)}"
            )
        needed = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ConfigError(
                f"{cls.__name__} needs the key(s) {', '.join(map(repr, missing))}, which are missing"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `config.json` (tuples, which JSON writes as lists)."""
        return dataclasses.asdict(self)

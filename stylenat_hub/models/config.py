"""What the configs of all families have in common: validation on construction, strict dict round trips."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from stylenat_hub.errors import ConfigError, listed, shown

if TYPE_CHECKING:
    from typing_extensions import Self


IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]: how most families normalise their pictures
IMAGENET_STD = (0.229, 0.224, 0.225)
WIDEST = 65_536  # channels; a bound that a damaged config.json meets before memory does


def as_tuples(value: Any) -> Any:
    """Lists, as JSON gives them, become tuples at every depth, so that a config can be frozen and hashed."""
    if isinstance(value, (list, tuple)):
        return tuple(as_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: as_tuples(item) for key, item in value.items()}
    return value


def is_whole(value: Any, low: int, high: int) -> bool:
    """Is it a whole number (and no truth value) from low to high?"""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Is it a finite number (and no truth value) above low and at most high?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low < value <= high


def is_power_of_two(value: Any, low: int, high: int) -> bool:
    """Is it a power of two from low, which is above 0, to high?"""
    return is_whole(value, low, high) and value & (value - 1) == 0


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
                f"{type(self).__name__}.{field} is {shown(repr(getattr(self, field)))}; allowed: {allowed}"
            )

    def require_whole(self, field: str, low: int, high: int) -> None:
        """Raise a `ConfigError` unless `field` is a whole number in the range, both ends allowed."""
        self.require(is_whole(getattr(self, field), low, high), field, f"a whole number from {low} to {high}")

    def require_power_of_two(self, field: str, low: int, high: int) -> None:
        """Raise a `ConfigError` unless `field` is a power of two in the range, both ends allowed."""
        fits = is_power_of_two(getattr(self, field), low, high)
        self.require(fits, field, f"a power of two from {low} to {high}")

    def require_number(self, field: str, low: float, high: float) -> None:
        """Raise a `ConfigError` unless `field` is a number above `low` and at most `high`."""
        self.require(
            is_number(getattr(self, field), low, high), field, f"a number above {low}, at most {high}"
        )

    def require_rgb(self, field: str, low: float = -math.inf) -> None:
        """Raise a `ConfigError` unless `field` is three finite numbers above `low`."""
        value = getattr(self, field)
        fits = isinstance(value, tuple) and len(value) == 3 and all(is_number(v, low, 1e6) for v in value)
        self.require(
            fits,
            field,
            "three numbers" + (f" above {low}" if low > -math.inf else "") + ", one per RGB channel",
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The config of a named preset; keyword arguments replace single fields. Raises `ConfigError`."""
        if not isinstance(name, str) or name not in cls.presets:
            near = difflib.get_close_matches(str(name), cls.presets, n=1)
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
                f"{cls.__name__} does not know the key(s) {listed(list(map(repr, unknown)))}; "
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
        try:
            return cls(**values)
        except RecursionError:
            raise ConfigError(f"a value for {cls.__name__} is nested too deeply to be one") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `config.json` (tuples, which JSON writes as lists)."""
        return dataclasses.asdict(self)


class LevelsConfig(ModelConfig):
    """Base of the style-based families whose levels double the side from 4 px: what they have in common.

    A subclass has the fields `resolution`, `channels`, `z_dim`, `w_dim`, `mapping_layers`, `mapping_lr_mul`,
    `image_mean` and `image_std`.
    """

    @property
    def num_levels(self) -> int:
        return len(self.channels)

    def level_size(self, level: int) -> int:
        """Side of the token grid of a level, in pixels."""
        return 4 * 2**level

    def validate_common(self, per_level: tuple[str, ...]) -> None:
        """Raise a `ConfigError` for a common field that is wrong, or one of `per_level` that has not an entry
        for each level."""
        self.require_power_of_two("resolution", 8, 4096)
        size = self.resolution
        levels = size.bit_length() - 2
        for field in per_level:
            value = getattr(self, field)
            self.require(
                isinstance(value, tuple) and len(value) == levels,
                field,
                f"{levels} entries, one per level from 4 to {size} px",
            )
        for field in ("z_dim", "w_dim"):
            self.require_whole(field, 1, WIDEST)
        self.require_whole("mapping_layers", 1, 64)
        self.require_number("mapping_lr_mul", 0, 1e6)
        self.require_rgb("image_mean")
        self.require_rgb("image_std", low=0)


class TransformerLevelsConfig(LevelsConfig):
    """A `LevelsConfig` whose levels are transformer blocks after a position code.

    A subclass has the fields `num_heads`, `mlp_ratio` and `qkv_bias` too.
    """

    def validate_common(self, per_level: tuple[str, ...]) -> None:
        super().validate_common(per_level)
        self.require_number("mlp_ratio", 0, 64)
        self.require(isinstance(self.qkv_bias, bool), "qkv_bias", "true or false")

    def validate_width(self, level: int, at: str) -> None:
        """Raise a `ConfigError` for channels of a level that do not fit; `at`: what to call the level."""
        width = self.channels[level]
        # Channels enter a level through the position code: two sines and two cosines per axis at least.
        fits = is_whole(width, 1, WIDEST) and (level == 0 or (width % 4 == 0 and width >= 8))
        self.require(fits, "channels", f"a multiple of 4 from 8 to {WIDEST}, {at}, not {width!r}")
        self.require(
            round(width * self.mlp_ratio) >= 1, "mlp_ratio", f"enough for one hidden channel of {width} {at}"
        )

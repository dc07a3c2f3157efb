"""A config.json, and its values by their types."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anna_export.errors import InputError, UnsupportedError


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The values of a config.json, or of an object in it.

    Its methods raise KeyError for a key that is absent, and TypeError for a value of another type.
    """

    path: Path
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        """Say whether a key is there and not null."""
        return self.values.get(key) is not None

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise TypeError(f"{value!r} as {key}")
        return float(value)

    def number_or(self, key: str, otherwise: float) -> float:
        """Return a number, or another where the key is absent or null."""
        return self.number(key) if self.has(key) else otherwise

    def integer(self, key: str) -> int:
        """Return a whole number."""
        self.number(key)
        value = self.values[key]
        if not isinstance(value, int):
            raise TypeError(f"{value!r} as {key}")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false; an absent or null key is false."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{value!r} as {key}")
        return bool(value)

    def flag_or(self, key: str, otherwise: bool) -> bool:
        """Return true or false, or another where the key is absent; null is neither."""
        value = self.values.get(key, otherwise)
        if not isinstance(value, bool):
            raise TypeError(f"{value!r} as {key}")
        return value

    def part(self, key: str) -> "ConfigFile":
        """Return an object within it, empty where it is absent or null."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise InputError(f"expected an object as {key} in {self.path}, found {value!r}")
        return ConfigFile(self.path, value)

    def layer_types(
        self, layers: int, otherwise: Sequence[str], *, mixed: bool = True
    ) -> Sequence[str]:
        """Return its layer_types.

        Args:
            layers: How many layers there are.
            otherwise: What they are where the key is absent or null.
            mixed: Whether they may differ from layer to layer.

        Raises:
            UnsupportedError: If there are more or fewer, one is of another type, or a layer is to
                have a window that is not there.
        """
        types = self.values.get("layer_types")
        if types is None:
            return otherwise
        names = ("full_attention", *(["sliding_attention"] * self.has("sliding_window")))
        known_types = isinstance(types, list) and all(each in names for each in types)
        if known_types and len(types) == layers and (mixed or len(set(types)) == 1):
            return types
        kind = "" if mixed else " of one kind"
        raise UnsupportedError(
            f"expected layer_types{kind}, full_attention or sliding_attention, for {layers} "
            f"layers in {self.path}, found {types!r}"
        )

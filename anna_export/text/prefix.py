"""A prefix: tokens whose keys and values are computed already, the same for every text."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from anna_export.errors import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What stands in front of texts: P tokens, `<s>` among them where the model has it.

    Raises:
        ShapeError: If the arrays do not fit together.
    """

    ids: tuple[int, ...]  # P token ids
    keys: np.ndarray  # (L, K, P, head_dim) float32, turned by their positions 0 … P - 1
    values: np.ndarray  # (L, K, P, head_dim) float32

    def __post_init__(self) -> None:
        shape = self.keys.shape
        if len(shape) != 4 or shape[2] != len(self.ids) or self.values.shape != shape:
            raise ShapeError(
                f"expected keys and values (L, K, {len(self.ids)}, head_dim), found {shape} and "
                f"{self.values.shape}"
            )
        if {self.keys.dtype, self.values.dtype} != {np.dtype(np.float32)}:
            raise ShapeError(
                f"expected float32 keys and values, found {self.keys.dtype} and {self.values.dtype}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Self:
        """Return the first tokens alone: the model is causal, so what they hold stays true."""
        keys, values = (
            np.ascontiguousarray(array[:, :, :count]) for array in (self.keys, self.values)
        )
        return type(self)(self.ids[:count], keys, values)

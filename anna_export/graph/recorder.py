"""What the parts of a graph are recorded in while it is built."""

from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from anna_export.spec import Precision


class Recorder(Protocol):
    """What nodes and constants are added to."""

    def op(
        self, kind: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any
    ) -> ir.Value:
        """Add a standard node of one output."""
        ...

    def constant(self, name: str, value: np.ndarray) -> ir.Value:
        """Return the constant of this name, made where it is not there yet."""
        ...

    def weight(self, name: str, precision: Precision, *, transpose: bool = False) -> ir.Value:
        """Return a weight of the model."""
        ...

"""What calibration finds out: plain values that schemes build on and artifacts keep."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import CALIBRATION_FILE
from anna_export.choices import Ranges
from anna_export.errors import DamagedError
from anna_export.files.json_file import read_json
from anna_export.spec import EmbeddingSpec


@dataclass(frozen=True, slots=True)
class Seen:
    """What calibration saw of one linear input, over all tokens.

    Args:
        amax: Largest absolute value.
        median: Median absolute value.
        clip: Largest absolute value that is to be represented.
        mean_square: (in,) float32 mean of squares by channel; None where read from an artifact,
            whose weights are quantised already.
    """

    amax: float
    median: float
    clip: float
    mean_square: torch.Tensor | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, float]:
        """Return plain values; the mean square is spent once weights are quantised."""
        return {"amax": self.amax, "median": self.median, "clip": self.clip}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of calibrating a model for a scheme.

    Args:
        texts_sha256: Hash of the calibration texts, their prompts included.
        texts: How many there were.
        tokens: How many tokens they had.
        ranges: How ranges were chosen.
        inputs: What was seen, by linear input ("layers.3.mlp_inner").
        kept: Linear inputs whose layers stay in high precision, and why.
        snr_db: By linear module, the signal-to-noise ratio of its output when it is quantised.
        loss: Mean 1 - cosine of the emulated model on other texts; None if not asked for.
    """

    texts_sha256: str
    texts: int
    tokens: int
    ranges: Ranges
    inputs: dict[str, Seen]
    kept: dict[str, str]
    snr_db: dict[str, float]
    loss: float | None

    def quantised_modules(self, spec: EmbeddingSpec) -> dict[str, str]:
        """Return every linear module that is not kept, and its input."""
        modules = spec.linear_modules().items()
        return {module: name for module, name in modules if name not in self.kept}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["inputs"] = {name: seen.to_json() for name, seen in self.inputs.items()}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the calibration of plain values; KeyError or TypeError if they are none."""
        inputs = {name: Seen(**seen) for name, seen in values["inputs"].items()}
        return cls(**{**values, "ranges": Ranges(values["ranges"]), "inputs": inputs})


def read_calibration(artifact: Artifact) -> Calibration | None:
    """Read an artifact's calibration; None if its precision needs none.

    Raises:
        DamagedError: If the file holds something else.
    """
    if artifact.manifest.quantised is None:
        return None
    path = artifact.folder / CALIBRATION_FILE
    try:
        return Calibration.from_json(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DamagedError(
            f"expected a calibration in {path}, found something else; copy or export the artifact "
            "again"
        ) from None

"""What calibration measures: plain values that schemes build on and artifacts keep."""

from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import CALIBRATION_FILE
from anna_export.errors import DamagedError
from anna_export.files.json_file import read_json
from anna_export.spec import EmbeddingSpec

SCHEMA_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class ActivationStats:
    """Statistics of one linear input over all tokens of the calibration.

    Args:
        amax: Largest absolute value.
        median: Median absolute value.
        clip_amax: Largest absolute value that is to be represented.
        mean_square: (in,) float32 mean of squares by channel; None where read from an artifact,
            whose weights are quantised already.
    """

    amax: float
    median: float
    clip_amax: float
    mean_square: torch.Tensor | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, float]:
        """Return plain values; the mean square is spent once weights are quantised."""
        return {"amax": self.amax, "median": self.median, "clip_amax": self.clip_amax}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of calibrating a model for a scheme.

    Args:
        texts_sha256: Hash of the calibration texts, their prompts included.
        texts: How many there were.
        tokens: How many tokens they had.
        inputs: Statistics by linear input ("layers.3.mlp_inner").
        unquantized: Linear inputs whose layers stay in high precision, and why.
        snr_db: By linear module, the signal-to-noise ratio of its output when it is quantised.
        loss: Mean 1 - cosine of the emulated model on other texts; None if not asked for.
    """

    texts_sha256: str
    texts: int
    tokens: int
    inputs: dict[str, ActivationStats]
    unquantized: dict[str, str]
    snr_db: dict[str, float]
    loss: float | None

    def quantised_modules(self, spec: EmbeddingSpec) -> dict[str, str]:
        """Return every linear module that is quantised, and its input."""
        modules = spec.linear_modules().items()
        return {module: name for module, name in modules if name not in self.unquantized}

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as calibration.json holds them."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["inputs"] = {name: stats.to_json() for name, stats in self.inputs.items()}
        return {"schema_version": SCHEMA_VERSION, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the calibration of plain values; KeyError, TypeError or ValueError if none."""
        values = dict(values)
        version = values.pop("schema_version", 1)
        if version == 1:
            values = _upgrade(values)
        elif version != SCHEMA_VERSION:
            raise ValueError(f"expected schema_version {SCHEMA_VERSION}, found {version}")
        inputs = {name: ActivationStats(**stats) for name, stats in values.pop("inputs").items()}
        return cls(inputs=inputs, **values)


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file without a version, by today's names."""
    renamed = {"kept": "unquantized"}
    values = {renamed.get(name, name): value for name, value in values.items() if name != "ranges"}
    values["inputs"] = {
        name: {"clip_amax" if key == "clip" else key: value for key, value in stats.items()}
        for name, stats in values["inputs"].items()
    }
    return values


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

"""calibration.json: what is written is read again, and files without a version are read as well."""

import json
from pathlib import Path
from typing import Any

import pytest

from anna_export.quantise.calibration import ActivationStats, Calibration

SCHEMA_2 = Path(__file__).parents[1] / "data" / "schema2"


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_file_without_a_version_is_read_by_todays_names(precision: str) -> None:
    values = json.loads((SCHEMA_2 / f"artifact-{precision}" / "calibration.json").read_text())
    calibration = Calibration.from_json(values)
    assert calibration.inputs == {
        name: ActivationStats(stats["amax"], stats["median"], clip_amax=stats["clip"])
        for name, stats in values["inputs"].items()
    }
    assert len(calibration.inputs) > 3 and calibration.unquantized == values["kept"]
    for name in ("texts_sha256", "texts", "tokens", "snr_db", "loss"):
        assert getattr(calibration, name) == values[name]


def test_range_below_the_largest_value_is_read_from_a_file_without_a_version() -> None:
    values = example().to_json() | {"ranges": "percentile", "kept": {}}
    del values["schema_version"], values["unquantized"]
    values["inputs"] = {"layers.0.mlp_input": {"amax": 9.0, "median": 1.0, "clip": 5.0}}
    assert Calibration.from_json(values).inputs["layers.0.mlp_input"].clip_amax == 5


def example() -> Calibration:
    inputs = {"layers.0.mlp_input": ActivationStats(9.0, 1.0, 9.0)}
    return Calibration("hash", 2, 30, inputs, {"layers.0.mlp_inner": "why"}, {"up": 40.5}, 0.01)


def test_what_is_written_is_read_again() -> None:
    assert Calibration.from_json(json.loads(json.dumps(example().to_json()))) == example()


@pytest.mark.parametrize("change", [{"schema_version": 3}, {"ranges": "max"}])
def test_other_fields_or_versions_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Calibration.from_json(example().to_json() | change)

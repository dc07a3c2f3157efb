"""What `make demo-real` prints and records, of figures that are given."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib import record
from demo.real import show

SCORES = {
    "TF-IDF": {"docstrings": 0.6, "STS-B": 0.7},
    "untuned": {"docstrings": 0.2, "STS-B": 0.5},
    "tuned": {"docstrings": 0.5, "STS-B": 0.75},
}


def written(folder: Path, mean_cosine: float, verdict: str, max_loss: float | None) -> Path:
    folder.mkdir(parents=True)
    thresholds = {"max_loss": max_loss, "min_cosine": None if max_loss else 0.999}
    vectors = {"mean_cosine": mean_cosine, "verdict": verdict, "thresholds": thresholds}
    (folder / "parity.json").write_text(json.dumps({"vectors": vectors}))
    return folder


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    artifacts = {
        "fp32": written(tmp_path / "fp32", 1.0, "pass", None),
        "int4": written(tmp_path / "int4", 0.9, "fail", 0.05),
    }
    log = tmp_path / "adapter" / "training" / "log.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,loss,seconds\n1,4.5,20\n2,3.5,10\n")
    path = show.record(SCORES, artifacts, tmp_path / "adapter", {"adapter": 30.0})
    return dict(json.loads(path.read_text()))


def figure(recorded: dict[str, Any], name: str) -> dict[str, Any]:
    return next(figure for figure in recorded["figures"] if figure["name"] == name)


def test_the_tuned_model_is_held_to_tf_idf(recorded: dict[str, Any]) -> None:
    above, below = (figure(recorded, f"{task}: tuned") for task in ("STS-B", "docstrings"))
    assert (above["target"], above["holds"]) == ("> 0.700", True)
    assert (below["target"], below["holds"]) == ("> 0.600", False)


def test_the_untuned_model_is_held_to_nothing(recorded: dict[str, Any]) -> None:
    assert figure(recorded, "STS-B: untuned")["holds"]


def test_a_precision_is_held_to_its_proof(recorded: dict[str, Any]) -> None:
    assert figure(recorded, "fp32: mean loss")["holds"]
    lost = figure(recorded, "int4: mean loss")
    assert lost["value"] == pytest.approx(0.1) and not lost["holds"]


def test_the_steps_of_the_tuning_are_recorded(recorded: dict[str, Any]) -> None:
    assert recorded["samples"]["steps"] == [20.0, 10.0]
    assert recorded["samples"]["losses"] == [4.5, 3.5]

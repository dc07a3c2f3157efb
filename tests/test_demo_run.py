"""`make demo`: what it makes anew and what it reuses, and the table it prints."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from anna_train.demo import DemoModels
from anna_train.evaluate import Figures, Retrieval

from anna_export.artifact import Artifact
from demo import __main__ as demo
from demo import speed

SECONDS = {"merge and write": 1.25, "prove": 20.5}
SPEED = {"artifact_texts_per_second": 9.0, "pytorch_texts_per_second": 3.0, "ratio": 3.0}


class Run:
    """Runs the demonstration over models that are there, and counts what it makes."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.exports = self.measures = self.code = 0

    def export(
        self, command: list[Any], *, stdout: int, check: bool
    ) -> subprocess.CompletedProcess[bytes]:
        self.exports += 1
        assert command[-1] == "--json" and stdout == subprocess.PIPE
        shutil.copytree(self.artifact.folder, command[-2])
        return subprocess.CompletedProcess(
            command, self.code, json.dumps({"seconds": SECONDS}).encode()
        )

    def measure(self, *_: object) -> dict[str, float]:
        self.measures += 1
        return SPEED


@pytest.fixture
def run(
    artifact: Artifact, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    run, found = Run(artifact), Retrieval(0.25, 0.5)
    models = DemoModels(base, adapter, Figures(7, 5, found, found, found, 0.9, 0.8), {"base": 34.5})
    monkeypatch.setattr(demo, "OUT", tmp_path / "out")
    monkeypatch.setattr(demo, "make_models", lambda out: models)
    monkeypatch.setattr(demo, "heldout_texts", lambda out, count: ["a", "b"])
    monkeypatch.setattr(subprocess, "run", run.export)
    monkeypatch.setattr(speed, "measure", run.measure)
    return run


def times(printed: str) -> dict[str, str]:
    rows = [line for line in printed.splitlines() if line.startswith("time: ")]
    # names and numbers stand in two columns of one width
    assert len({len(row) for row in rows}) == 1
    columns = [row.removeprefix("time: ").rpartition("  ") for row in rows]
    return {name.strip(): value.strip() for name, _, value in columns}


def test_each_stage_shows_its_own_seconds_or_that_it_was_reused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    found = times(capsys.readouterr().out)
    assert found.pop("measure speed").endswith(" s") and found.pop("in all").endswith(" s")
    assert found == {
        "read docstrings": "reused",
        "base model": "34.5 s",
        "LoRA adapter": "reused",
        "evaluate both": "reused",
        "merge and write": "1.2 s",
        "prove": "20.5 s",
    }


def test_second_run_makes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main()
    capsys.readouterr()
    demo.main()
    found = times(capsys.readouterr().out)
    assert (run.exports, run.measures) == (1, 1)
    assert {found[name] for name in ("merge and write", "prove", "measure speed")} == {"reused"}


def test_other_libraries_make_artifact_and_speed_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.main()
    monkeypatch.setattr(demo, "installed", lambda: {"onnxruntime": "0"})
    demo.main()
    assert (run.exports, run.measures) == (2, 2)


def test_another_processor_measures_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.main()
    monkeypatch.setattr(demo, "hardware", lambda: "another x3")
    demo.main()
    assert (run.exports, run.measures) == (1, 2)


def test_another_way_to_measure_measures_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.main()
    (tmp_path / "speed.py").write_text("ROUNDS = 3")
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "__main__.py"))
    demo.main()
    assert (run.exports, run.measures) == (1, 2)


def test_failed_export_ends_the_run_and_shows_no_result(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.code = 1
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 1 and capsys.readouterr().out == ""
    assert not (tmp_path / "out" / "artifact").exists()

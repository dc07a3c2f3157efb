"""`make demo`: what it makes anew and what it reuses, and the table it prints."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from anna_train.run.retrieval import Retrieval

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from demo import __main__ as demo
from demo import retrieve, speed
from demo.figures import Figures, Scores
from demo.models import DemoModels

PRECISIONS = ["fp32", "fp8", "int8", "int4"]
SECONDS = {"merge and write": 1.25, "prove": 20.5}
DIFFERENCES = dict(zip(PRECISIONS, (0.0, -0.25, 0.125, None), strict=True))  # None: vectors fail
PYTORCH_NDCG = 0.5
NDCG = dict(zip(PRECISIONS, (0.5, 0.49, 0.505, 0.4), strict=True))
SPEED = {
    name: {"texts_per_second": 3.0 * ratio, "ratio": ratio}
    for name, ratio in zip(["pytorch", *PRECISIONS], (1.0, 3.0, 2.0, 7.0, 5.0), strict=True)
}


class Run:
    """Runs the demonstration over models that are there, and notes what it makes."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.exported: list[str] = []
        self.retrieved: list[tuple[list[str], list[str]]] = []
        self.measures = self.timed = 0
        self.reported: list[list[str]] = []
        self.failing = ""
        self.verdict = 0

    def export(
        self, command: list[Any], *, stdout: int, check: bool
    ) -> subprocess.CompletedProcess[bytes]:
        assert command[-1] == "--json" and stdout == subprocess.PIPE
        if command[1] == "verify":
            return self.verify(command)
        if command[1] == "bench":
            self.timed += 1
            return subprocess.CompletedProcess(command, 0, b"{}")
        if command[1] == "report":
            self.reported.append([Path(folder).name for folder in command[2:-3]])
            Path(command[-2]).write_text("<html>")
            return subprocess.CompletedProcess(command, 0, b"{}")
        (precision,) = (name for name in PRECISIONS if f"--{name}" in command)
        self.exported.append(precision)
        shutil.copytree(self.artifact.folder, command[-2])
        return subprocess.CompletedProcess(
            command, int(precision == self.failing), json.dumps({"seconds": SECONDS}).encode()
        )

    def verify(self, command: list[Any]) -> subprocess.CompletedProcess[bytes]:
        path = Path(command[2]) / PARITY_FILE
        change, parity = DIFFERENCES[self.exported[-1]], json.loads(path.read_text())
        if change is not None:
            difference = {"reference": 0.5, "difference": change}
            task = {
                "name": "Docstrings",
                "metric": "recall",
                "difference": difference,
                "verdict": "fail",
            }
            parity["tasks"] = {"tasks": [task], "mean": difference, "verdict": "inconclusive"}
        path.write_text(json.dumps(parity))
        return subprocess.CompletedProcess(command, self.verdict, json.dumps(parity).encode())

    def retrieve(
        self, artifacts: dict[str, Path], queries: list[str], documents: list[str]
    ) -> dict[str, float]:
        assert list(artifacts) == PRECISIONS
        self.retrieved.append((queries, documents))
        return NDCG

    def measure(self, *_: object) -> dict[str, dict[str, float]]:
        self.measures += 1
        return SPEED

    @property
    def counts(self) -> tuple[int, int, int]:
        return len(self.exported), len(self.retrieved), self.measures


@pytest.fixture
def run(
    artifact: Artifact, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    run, retrieval = Run(artifact), Retrieval(PYTORCH_NDCG, 0.5)
    tasks = {
        "docstrings": Scores("nDCG@10", 0.7, 0.1, 0.05, 0.2, 0.15),
        "STS-B": Scores("Spearman", 0.6, 0.3, None, 0.4, None),
    }
    figures = Figures(7, 2, retrieval, retrieval, retrieval, 0.9, 0.8, tasks)
    models = DemoModels(base, adapter, figures, {"base": 34.5})
    monkeypatch.setattr(demo, "OUT", tmp_path / "out")
    monkeypatch.setattr(demo, "make_models", lambda out, **_: models)
    monkeypatch.setattr(demo, "training_pairs", lambda out: ())
    monkeypatch.setattr(demo, "read_docstrings", lambda trained: [])
    monkeypatch.setattr(demo, "write_tasks", lambda pairs, folder: folder.mkdir())
    monkeypatch.setattr(demo, "heldout_texts", lambda out, count: ["q1", "d1", "q2", "d2"][:count])
    monkeypatch.setattr(subprocess, "run", run.export)
    monkeypatch.setattr(retrieve, "ndcg_at_10", run.retrieve)
    monkeypatch.setattr(speed, "measure", run.measure)
    return run


def table(printed: str, head: str) -> list[list[str]]:
    """Return the cells of the table that starts with a heading, without its headings."""
    _, _, below = printed.partition(f"\n{head} ")
    lines = below.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def times(printed: str) -> dict[str, list[str]]:
    return {name: cells for name, *cells in table(printed, "stage")}


def test_each_stage_shows_its_own_seconds_or_that_it_was_reused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    cells_of = times(capsys.readouterr().out)
    for name in PRECISIONS:
        seconds, parts = cells_of.pop(f"export, verify, time {name}")
        assert float(seconds) >= 0
        assert parts.startswith("merge and write 1.2, prove 20.5, verify ")
        assert ", bench " in parts
    for name in ("write tasks", "evaluate artifacts", "measure speed", "report", "in all"):
        (seconds,) = cells_of.pop(name)
        assert float(seconds) >= 0
    assert cells_of == {
        "read docstrings": ["reused"],
        "base model": ["34.5"],
        "check rows": ["reused"],
        "mine negatives": ["reused"],
        "soft labels": ["reused"],
        "tune LoRA": ["reused"],
        "evaluate both": ["reused"],
    }


def test_every_precision_is_exported_by_its_option(run: Run, tmp_path: Path) -> None:
    demo.main()
    assert run.exported == PRECISIONS
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"tasks", "artifact", "artifact-fp8", "artifact-int8", "artifact-int4"}


def test_one_line_a_precision_shows_its_change_against_pytorch_and_its_speed(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main()
    lines = {name: cells for name, *cells in table(capsys.readouterr().out, "precision")}
    assert {name: cells[4:8] for name, cells in lines.items()} == {
        "fp32": ["0.5000", "+0.00 %", "9", "3.0 x"],
        "fp8": ["0.4900", "-2.00 %", "6", "2.0 x"],
        "int8": ["0.5050", "+1.00 %", "21", "7.0 x"],
        "int4": ["0.4000", "-20.00 %", "15", "5.0 x"],
    }
    assert {cells[8] for cells in lines.values()} == {"pass: worst >= 0.999999"}


def test_tables_are_at_most_120_columns_wide(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main()
    lines = capsys.readouterr().out.splitlines()
    # the rows above the tables name folders, whose length is the user's
    start = next(index for index, line in enumerate(lines) if line.startswith("precision "))
    assert max(map(len, lines[start:])) <= 120


def test_queries_and_documents_are_told_apart(run: Run) -> None:
    demo.main()
    assert run.retrieved == [(["q1", "q2"], ["d1", "d2"])]


def test_second_run_makes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main()
    capsys.readouterr()
    demo.main()
    cells_of = times(capsys.readouterr().out)
    assert run.counts == (4, 1, 1)
    exports = [f"export, verify, time {name}" for name in PRECISIONS]
    for name in (*exports, "evaluate artifacts", "measure speed", "report"):
        assert cells_of[name] == ["reused"]


def test_it_ends_with_the_page_over_three_precisions(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main()
    page = tmp_path / "out" / "report.html"
    assert page.is_file() and capsys.readouterr().out.rstrip().endswith(str(page))
    assert run.reported == [["artifact", "artifact-int8", "artifact-fp8"]] and run.timed == 4


def test_damaged_artifact_alone_is_made_anew(run: Run, tmp_path: Path) -> None:
    demo.main()
    (tmp_path / "out" / "artifact-int8" / "model.onnx").write_bytes(b"")
    demo.main()
    assert run.exported == [*PRECISIONS, "int8"]


def test_other_libraries_make_artifacts_and_measurements_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.main()
    monkeypatch.setattr(demo, "installed", lambda: {"onnxruntime": "0"})
    demo.main()
    assert run.counts == (8, 2, 2)


def test_another_processor_measures_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.main()
    monkeypatch.setattr(demo, "hardware", lambda: "another x3")
    demo.main()
    assert run.counts == (4, 2, 2)


@pytest.mark.parametrize(
    ("source", "counts"), [("speed.py", (4, 1, 2)), ("retrieve.py", (4, 2, 1))]
)
def test_another_way_to_measure_measures_that_anew(
    source: str, counts: tuple[int, int, int], run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = Path(shutil.copytree(Path(demo.__file__).parent, tmp_path / "demo"))
    monkeypatch.setattr(demo, "__file__", str(folder / "__main__.py"))
    demo.main()
    (folder / source).write_text("ROUNDS = 3")
    demo.main()
    assert run.counts == counts


def test_failed_export_ends_the_run_and_shows_no_result(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.failing = "int8"
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 1 and capsys.readouterr().out == ""
    assert run.exported == ["fp32", "fp8", "int8"]
    assert not (tmp_path / "out" / "artifact-int8").exists()


def test_artifacts_made_before_a_failed_export_are_reused(run: Run) -> None:
    run.failing = "int8"
    with pytest.raises(SystemExit):
        demo.main()
    run.failing = ""
    demo.main()
    assert run.exported == ["fp32", "fp8", "int8", "int8", "int4"]


def test_tasks_are_shown_before_and_after_beside_tf_idf(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    assert table("\n" + capsys.readouterr().out, "task") == [
        ["docstrings", "0.700", "0.100", "0.050", "0.200", "0.150", "nDCG@10"],
        ["STS-B", "0.600", "0.300", "-", "0.400", "-", "Spearman"],
    ]


def test_scores_are_shown_with_a_verdict_for_each_precision(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.verdict = 3
    assert demo.main() == 0
    row, mean = table(capsys.readouterr().out, "verified task")
    assert row == [
        "Docstrings", "0.5000", "+0.0000 fail", "-0.2500 fail", "+0.1250 fail", "vectors fail",
        "recall",
    ]  # fmt: skip
    assert mean[2] == "+0.0000 ?"


def test_verification_that_cannot_be_done_ends_the_run(run: Run) -> None:
    run.verdict = 2
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 2 and run.exported == ["fp32"]

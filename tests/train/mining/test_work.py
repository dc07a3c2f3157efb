"""Work in parts: killed at any moment, the same command ends as if it never was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from anna_train.cli import run
from anna_train.mining import mine as mining
from anna_train.mining import parts
from anna_train.mining.collection import folder_sha256
from anna_train.mining.mine import mine
from anna_train.mining.settings import MiningSettings, TeacherSettings
from anna_train.mining.teacher import Teacher

from anna_export.errors import ExistsError
from anna_export.files import vector_store
from anna_export.files.vector_store import open_store
from anna_export.files.work_folder import work_folder

PART_ROWS = 20
# Kills its process at a call of a function, before or after it is done.
KILLED = """
import os, signal, sys
from pathlib import Path
from anna_export.files import vector_store, work_folder
from anna_train.mining import mine, parts, teacher
from anna_train.mining.settings import MiningSettings, TeacherSettings

parts.PART_ROWS = mine.PART_ROWS = {part_rows}
vector_store.PART_TEXTS = 50
owner, name, call, late = {moment!r}
module = {{"work_folder": work_folder, "mine": mine, "store": vector_store.VectorStore}}[owner]
function, calls = getattr(module, name), [0]

def killing(*arguments, **options):
    calls[0] += 1
    if calls[0] == call and not late:
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*arguments, **options)
    if calls[0] == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, name, killing)
rows, encoder = Path(sys.argv[1]), sys.argv[2]
settings = TeacherSettings(encoder=Path(encoder) if encoder else None, depth=20)
mine.mine(rows, rows.with_name("killed.jsonl"), MiningSettings(settings))
raise SystemExit("it was not killed")
"""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parts, mining):
        monkeypatch.setattr(module, "PART_ROWS", PART_ROWS)
    monkeypatch.setattr(vector_store, "PART_TEXTS", 50)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("moment", "resumed"),
    [
        # (what is called, which time, whether after it was done); rows that are found done
        (("mine", "_part", 3, False), 40),
        (("mine", "_part", 3, True), 40),
        (("work_folder", "staged_file", 4, False), 40),  # the first writes the learned reranker
        (("store", "append", 2, False), 0),
        (("mine", "staged_file", 1, False), 90),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    moment: tuple[str, str, int, bool], resumed: int, rows: Path, encoder_folder: Path
) -> None:
    with_encoder = moment[0] == "store"
    script = KILLED.format(part_rows=PART_ROWS, moment=moment)
    killed = subprocess.run(
        [sys.executable, "-c", script, rows, encoder_folder if with_encoder else ""],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    out, uninterrupted = rows.with_name("killed.jsonl"), rows.with_name("whole.jsonl")
    assert not out.exists()
    encoder = encoder_folder if with_encoder else None
    settings = MiningSettings(TeacherSettings(encoder=encoder, depth=20))
    report = mine(rows, out, settings)
    assert (report.resumed, report.restarted) == (resumed, False)
    assert mine(rows, uninterrupted, settings).counts == report.counts
    assert out.read_bytes() == uninterrupted.read_bytes()
    assert sorted(path.name for path in rows.parent.iterdir()) == [
        "killed.jsonl",
        "rows.jsonl",
        "whole.jsonl",
    ]


def interrupted(rows: Path, out: Path, settings: MiningSettings | None = None) -> None:
    """Mine until the third part."""
    judge, calls = Teacher.judge, []

    def stopped(self: Teacher, part: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(self, part)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Teacher, "judge", stopped)
        mine(rows, out, settings)


@pytest.mark.usefixtures("small_parts")
def test_other_settings_start_afresh_and_say_so(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, uninterrupted = rows.with_name("out.jsonl"), rows.with_name("whole.jsonl")
    interrupted(rows, out)
    assert run(["mine", str(rows), "--out", str(out), "--negatives", "3"]) == 0
    assert "restarted" in capsys.readouterr().out
    report = mine(rows, uninterrupted, MiningSettings(negatives=3))
    assert out.read_bytes() == uninterrupted.read_bytes() and not report.restarted


@pytest.mark.parametrize(
    "other",
    [TeacherSettings(seed=1), TeacherSettings(depth=99), TeacherSettings(reranker="none")],
)
def test_every_setting_of_the_teacher_is_told_apart(other: TeacherSettings) -> None:
    assert other.state() != TeacherSettings().state()


@pytest.mark.usefixtures("small_parts")
def test_other_rows_start_afresh(rows: Path) -> None:
    out = rows.with_name("out.jsonl")
    interrupted(rows, out)
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[::-1]))
    report = mine(rows, out)
    assert (report.resumed, report.restarted) == (0, True)
    queries = [json.loads(line)["query"] for line in out.read_text().splitlines()]
    assert queries == [json.loads(line)["query"] for line in lines[::-1]]


@pytest.mark.usefixtures("small_parts")
def test_the_same_settings_after_an_interrupt_say_what_was_done(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = rows.with_name("out.jsonl")
    interrupted(rows, out)
    assert run(["mine", str(rows), "--out", str(out)]) == 0
    assert "40 rows were done by an earlier run" in capsys.readouterr().out


def test_two_processes_do_not_share_an_output(rows: Path) -> None:
    out = rows.with_name("out.jsonl")
    with work_folder(out, {}) as folder, pytest.raises(ExistsError, match="the only process"):
        folder.text("part", lambda: "done")
        mine(rows, out)
    assert not out.exists()


def test_a_cache_folder_serves_a_later_run(
    rows: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = rows.with_name("cache")
    settings = MiningSettings(TeacherSettings(encoder=encoder_folder, cache=cache))
    mine(rows, rows.with_name("one.jsonl"), settings)

    def refuse(*_: Any) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr("anna_train.mining.dense._SentenceTransformer.documents", refuse)
    monkeypatch.setattr("anna_train.mining.dense._SentenceTransformer.queries", refuse)
    mine(rows, rows.with_name("two.jsonl"), settings)
    assert rows.with_name("one.jsonl").read_bytes() == rows.with_name("two.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_do_not_share_a_cache(
    rows: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = rows.with_name("cache"), rows.with_name("out.jsonl")
    settings = MiningSettings(TeacherSettings(encoder=encoder_folder, cache=cache))
    mine(rows, rows.with_name("one.jsonl"), settings)
    dim = json.loads(next(cache.glob("*/identity.json")).read_text())["dim"]
    with open_store(cache, {"encoder": folder_sha256(encoder_folder)}, dim):
        command = ["mine", str(rows), "--out", str(out), "--encoder", str(encoder_folder)]
        assert run([*command, "--cache", str(cache)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected to be the only process" in line and "choose another --cache" in line
    assert not out.exists()

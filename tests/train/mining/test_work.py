"""Work in parts: killed at any moment, the same command ends as if it never was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anna_train.cli import run
from anna_train.mining import mine as mining
from anna_train.mining import parts, vector_cache
from anna_train.mining.mine import mine
from anna_train.mining.settings import MiningSettings, TeacherSettings
from anna_train.mining.teacher import Teacher

from anna_export.errors import DamagedError, ExistsError
from anna_export.files.work_folder import work_folder

PART_ROWS = 20
# Kills its process at a call of a function, before or after it is done.
KILLED = """
import os, signal, sys
from pathlib import Path
from anna_export.files import work_folder
from anna_train.mining import mine, parts, teacher, vector_cache
from anna_train.mining.settings import MiningSettings, TeacherSettings

parts.PART_ROWS = mine.PART_ROWS = {part_rows}
vector_cache.SHARD_TEXTS = 50
owner, name, call, late = {moment!r}
module = {{"os": os, "work_folder": work_folder, "mine": mine, "vector_cache": vector_cache}}[owner]
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
    monkeypatch.setattr(vector_cache, "SHARD_TEXTS", 50)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("moment", "resumed"),
    [
        # (what is called, which time, whether after it was done); rows that are found done
        (("mine", "_part", 3, False), 40),
        (("mine", "_part", 3, True), 40),
        (("work_folder", "staged_file", 4, False), 40),  # the first writes the learned reranker
        (("vector_cache", "_write", 2, False), 0),
        (("mine", "staged_file", 1, False), 90),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    moment: tuple[str, str, int, bool], resumed: int, rows: Path, encoder_folder: Path
) -> None:
    with_encoder = moment[0] == "vector_cache"
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


class Spy:
    """Embeds a text as its length and its letters, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Any) -> np.ndarray:
        self.texts += texts
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)


def test_only_texts_that_are_new_are_embedded(tmp_path: Path) -> None:
    cache, spy = vector_cache.VectorCache(tmp_path, "encoder"), Spy()
    first = cache.embed(["a", "bb", "a"], "", spy)
    assert spy.texts == ["a", "bb"] and first.tolist() == [[1, 1], [2, 0], [1, 1]]
    grown = cache.embed(["ccc", "bb", "a"], "", spy)
    assert spy.texts == ["a", "bb", "ccc"] and grown.tolist() == [[3, 0], [2, 0], [1, 1]]


@pytest.mark.parametrize(("identity", "prompt"), [("another", ""), ("encoder", "query: ")])
def test_another_encoder_or_prompt_embeds_anew(identity: str, prompt: str, tmp_path: Path) -> None:
    spy = Spy()
    vector_cache.VectorCache(tmp_path, "encoder").embed(["a"], "", spy)
    vector_cache.VectorCache(tmp_path, identity).embed(["a"], prompt, spy)
    assert spy.texts == ["a", "a"]


def test_an_interrupt_loses_at_most_the_shard_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_cache, "SHARD_TEXTS", 2)
    cache, spy = vector_cache.VectorCache(tmp_path, "encoder"), Spy()

    def stopped(texts: Any) -> np.ndarray:
        if "ccc" in texts:
            raise KeyboardInterrupt
        return spy(texts)

    with pytest.raises(KeyboardInterrupt):
        cache.embed(["a", "bb", "ccc", "dddd"], "", stopped)
    cache.embed(["a", "bb", "ccc", "dddd"], "", spy)
    assert spy.texts == ["a", "bb", "ccc", "dddd"]


def test_a_damaged_shard_and_a_vector_that_is_not_finite_are_refused(tmp_path: Path) -> None:
    cache = vector_cache.VectorCache(tmp_path, "encoder")
    with pytest.raises(DamagedError, match="expected finite vectors, found NaN"):
        cache.embed(["a"], "", lambda texts: np.full((1, 2), np.nan))
    cache.embed(["a"], "", Spy())
    (shard,) = tmp_path.rglob("*.npz")
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(DamagedError, match="; remove it"):
        cache.embed(["a"], "", Spy())


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

"""A verification that is killed goes on where it was, to the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anna_export.cli import run
from tests.support.types import MakeArtifact, MakeModel
from tests.verify.small_tasks import write_small_tasks

TOOL = Path(sys.executable).with_name("anna-export")
NAMES = ("SmallSTS", "SmallPairs")
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def command(
    make_model: MakeModel,
    make_artifact: MakeArtifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    model = make_model()
    tasks = write_small_tasks(tmp_path_factory.mktemp("tasks") / "tasks", 700, NAMES)
    return [
        "verify", str(make_artifact(model).folder), "--reference", str(model),
        "--tier", "quick", "--task-data", str(tasks), "--margin", "0.1", "--json",
    ]  # fmt: skip


def verified(command: list[str], cache: Path, capsys: Output) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*command, "--cache", str(cache)]) == 0
    return json.loads(capsys.readouterr().out)["tasks"]


def stored_rows(cache: Path) -> list[int]:
    """Return how many vectors each store holds, the oldest first."""
    paths = sorted(cache.glob("vectors/*/index"), key=lambda path: path.parent.stat().st_ctime_ns)
    return [path.stat().st_size // 20 for path in paths]


def kill_when(
    command: list[str], cache: Path, tmp_path: Path, when: Callable[[list[int]], bool]
) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [TOOL, *command, "--cache", cache], stdout=subprocess.DEVNULL, env=environment
    ) as process:
        while not when(stored_rows(cache)):
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_killed_twice_it_gives_the_same_numbers_and_embeds_nothing_again(
    command: list[str], tmp_path: Path, capsys: Output
) -> None:
    uninterrupted = verified(command, tmp_path / "whole", capsys)
    cache, distinct = tmp_path / "cache", uninterrupted["texts"]["distinct"]

    kill_when(command, cache, tmp_path, lambda rows: bool(rows and rows[0]))
    first = stored_rows(cache)
    assert 0 < first[0] < distinct, "killed in the middle of the reference"

    kill_when(command, cache, tmp_path, lambda rows: len(rows) == 3 and rows[2] > 0)
    second = stored_rows(cache)
    assert second[:2] == [distinct, distinct] and 0 < second[2] < distinct

    again = verified(command, cache, capsys)
    texts = again["texts"]
    assert texts["embedded_reference"] == texts["embedded_again"] == 0
    assert texts["embedded_candidate"] == distinct - second[2]
    assert again["tasks"] == uninterrupted["tasks"] and again["mean"] == uninterrupted["mean"]

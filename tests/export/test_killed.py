"""An export that is killed, at any moment, leaves a whole artifact or none."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.errors import MissingError
from tests.support.folders import names
from tests.support.types import MakeModel

Ask = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
MOMENTS = 12
# Called late: when all is written, when it takes its place, when the old one goes.
LATE = ("_sync", "replace_folder", "_exchange", "rmtree")
# What lies beside the output in the middle: weights are being written, or layers calibrated.
WRITING = ".*.partial-*/model.onnx.data"
CALIBRATING = ".*.calibration/layers.safetensors"


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Asks a process, which has loaded all libraries once, to fork an export and to end it."""
    command = [sys.executable, "-m", "tests.export.test_killed"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as warm:
        assert warm.stdin is not None and warm.stdout is not None

        def export_as(**request: Any) -> dict[str, Any]:
            assert warm.stdin is not None and warm.stdout is not None
            warm.stdin.write(json.dumps(request, default=str) + "\n")
            warm.stdin.flush()
            return json.loads(warm.stdout.readline())

        yield export_as
        warm.stdin.close()


def _serve() -> None:
    """Fork one export for each line of stdin, end it as asked, and say how it ended."""
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        request = json.loads(line)
        child = fork.Process(target=_export, args=(request,))
        started = time.monotonic()
        child.start()
        if "after" in request:
            child.join(request["after"])
            child.kill()
        if "signal" in request:
            while not list(Path(request["out"]).parent.glob(request["when"])):
                time.sleep(0.001)
            assert child.pid is not None
            os.kill(child.pid, request["signal"])
        child.join()
        answer = {"code": child.exitcode, "seconds": time.monotonic() - started}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _export(request: dict[str, Any]) -> None:
    from anna_export.cli import main
    from anna_export.files import atomic

    if "dies_at" in request:
        name, calls = request["dies_at"], request["calls"]
        owner: Any = shutil if name == "rmtree" else atomic
        original, called = getattr(owner, name), []

        def dying(*args: Any, **named: Any) -> Any:
            called.append(name)
            if len(called) > calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **named)

        setattr(owner, name, dying)
    with open(os.devnull if "log" not in request else request["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    arguments = ["--model", request["model"], "--out", request["out"], "--max-tokens", "61"]
    main([*arguments, *request["more"]])


def is_whole(out: Path) -> bool:
    """Say whether an artifact is there; one that is there in part is an error."""
    try:
        open_artifact(out, check=True)
    except MissingError:
        assert not out.exists()
        return False
    return True


def usual_seconds(ask: Ask, base: Path, out: Path, *more: str) -> float:
    answer = ask(model=base, out=out, more=more)
    assert answer["code"] == 0 and is_whole(out)
    return answer["seconds"]


def require_clean_end(ask: Ask, base: Path, out: Path, *more: str) -> None:
    """The next export succeeds, and what killed ones had left is gone."""
    assert ask(model=base, out=out, more=more)["code"] == 0
    assert is_whole(out) and names(out.parent) == {out.name}


@pytest.mark.slow
def test_export_killed_at_any_moment_leaves_a_whole_artifact_or_none(
    ask: Ask, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    usual = usual_seconds(ask, base, out, "--no-verify")
    chance, codes = random.Random(7), []
    for _ in range(MOMENTS):
        shutil.rmtree(out, ignore_errors=True)
        # a little beyond its usual time, so that some may finish
        after = chance.uniform(0, 1.1 * usual)
        codes.append(ask(model=base, out=out, more=["--no-verify"], after=after)["code"])
        is_whole(out)
        assert {name for name in names(tmp_path) if not name.startswith(".")} <= {"out"}
    assert codes.count(-signal.SIGKILL) >= MOMENTS / 2
    shutil.rmtree(out, ignore_errors=True)
    require_clean_end(ask, base, out, "--no-verify")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moments", "more"), [(MOMENTS, ["--no-verify"]), (4, [])], ids=["unproved", "proved"]
)
def test_overwriting_export_killed_at_any_moment_leaves_an_artifact(
    ask: Ask, base: Path, tmp_path: Path, moments: int, more: list[str]
) -> None:
    out, more = tmp_path / "out", ["--overwrite", *more]
    usual = usual_seconds(ask, base, out, *more)
    chance, codes = random.Random(8), []
    for _ in range(moments):
        after = chance.uniform(0, 1.1 * usual)
        codes.append(ask(model=base, out=out, more=more, after=after)["code"])
        assert is_whole(out)
    assert codes.count(-signal.SIGKILL) >= moments / 2
    require_clean_end(ask, base, out, *more)


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("name", LATE)
def test_export_killed_while_it_takes_its_place_leaves_an_artifact(
    ask: Ask, base: Path, artifact: Artifact, tmp_path: Path, name: str, calls: int
) -> None:
    out = Path(shutil.copytree(artifact.folder, tmp_path / "out"))
    more = ["--no-verify", "--overwrite"]
    ended = ask(model=base, out=out, more=more, dies_at=name, calls=calls)
    # some are called only once
    assert ended["code"] == -signal.SIGKILL or calls == 1
    assert is_whole(out)
    require_clean_end(ask, base, out, *more)


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["new", "overwrite"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_export_says_so_in_one_line_and_leaves_nothing(
    ask: Ask, base: Path, artifact: Artifact, tmp_path: Path, sent: int, more: list[str]
) -> None:
    out, log = tmp_path / "there" / "out", tmp_path / "log"
    if more:
        shutil.copytree(artifact.folder, out)
    before = names(tmp_path)
    request = {"model": base, "out": out, "more": more, "log": log}
    assert ask(**request, signal=sent, when=WRITING)["code"] == 130
    assert log.read_text() == "anna-export: interrupted\n"
    # not even the folder that was made for it
    assert names(tmp_path) == before | {"log"}
    if more:
        assert open_artifact(out, check=True).manifest == artifact.manifest
        assert names(out.parent) == {"out"}


@pytest.fixture(scope="module")
def deep(make_model: MakeModel) -> Path:
    """A model that takes a while to calibrate."""
    return make_model(num_hidden_layers=8)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_export_stopped_while_it_calibrates_leaves_only_what_the_next_one_goes_on_with(
    ask: Ask, deep: Path, few_texts: Path, tmp_path: Path, sent: int
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    more = ["--int8", "--no-verify", "--calibration", str(few_texts)]
    request = {"model": deep, "out": out, "more": more, "log": log}
    code = ask(**request, signal=sent, when=CALIBRATING)["code"]
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    assert not out.exists() and ".out.calibration" in names(tmp_path)
    if sent != signal.SIGKILL:
        assert log.read_text() == "anna-export: interrupted\n"
        # what was being written aside is gone, and only finished layers stay
        assert names(tmp_path) == {"log", ".out.calibration"}
    log.unlink()
    require_clean_end(ask, deep, out, *more)


if __name__ == "__main__":
    _serve()

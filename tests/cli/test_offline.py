"""What times, shows, packages and embeds asks nobody beyond this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anna_export.artifact.folder import Artifact
from tests.offline import Offline

ROOT = Path(__file__).parents[1]
COMMANDS = (
    (
        "bench",
        "{artifact}",
        "--batch",
        "1",
        "--length",
        "9",
        "--rounds",
        "3",
        "--against",
        "pytorch",
    ),
    ("report", "{artifact}"),
    ("package", "{artifact}", "--triton", "{folder}/models"),
    ("embed", "{artifact}", "{folder}/texts.txt", "--out", "{folder}/vectors.npy"),
    ("inspect", "{artifact}", "--check"),
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_nothing_beyond_this_machine_is_asked_for(
    artifact: Artifact, tmp_path: Path, command: tuple[str, ...]
) -> None:
    offline = Offline(tmp_path)
    shutil.copytree(artifact.folder, tmp_path / "artifact")
    (tmp_path / "texts.txt").write_text("a\nb\n")
    words = [word.format(artifact=tmp_path / "artifact", folder=tmp_path) for word in command]
    paths = [offline.environment["PYTHONPATH"], str(ROOT), str(ROOT / "kernels")]
    run = subprocess.run(
        [sys.executable, "-c", "from anna_export.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert offline.asked() == ""


def test_what_is_asked_for_is_noted(tmp_path: Path) -> None:
    offline = Offline(tmp_path)
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    environment = {**os.environ, **offline.environment}
    run = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert run.returncode and "192.0.2.1" in offline.asked()

"""anna-train's help: light, and with an example for every verb."""

import subprocess
import sys
from pathlib import Path

import pytest
from anna_train.cli import cli, run

TOOL = Path(sys.executable).with_name("anna-train")
HEAVY = "torch numpy datasketch pyarrow transformers tokenizers sklearn scipy faiss rich".split()


@pytest.mark.parametrize("verb", ["", *cli.commands])
def test_help_imports_nothing_heavy(verb: str) -> None:
    script = (
        "import sys\nfrom anna_train.cli import run\n"
        f"assert run([*{verb.split()!r}, '--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stderr == "[]\n"


@pytest.mark.parametrize("verb", list(cli.commands))
def test_every_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert f"\nExample:\n  anna-train {verb} " in capsys.readouterr().out


def test_the_installed_tool_runs() -> None:
    process = subprocess.run([TOOL, "none"], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("anna-train: expected a command of ")


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    for module in ("doctor", "duplicates"):
        monkeypatch.delitem(sys.modules, f"anna_train.check.{module}", raising=False)
        monkeypatch.delattr(f"anna_train.check.{module}", raising=False)
    assert run(["check", str(tmp_path / "rows.jsonl")]) == 2
    assert capsys.readouterr().err == (
        "anna-train: expected datasketch, which compares texts, found none; install "
        "anna-export[train]\n"
    )

"""The command line: help, exit codes, JSON for machines, progress for people."""

import errno
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from anna_export.artifact.manifest import PARITY_FILE, SCHEMA_VERSION
from anna_export.cli import cli, run
from anna_export.console.output import stage
from anna_export.export.edit_prompts import add_prompts
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.quantise.options import Bf16, Fp32
from anna_export.spec import Precision
from anna_export.text.prompt_file import read_prompt_file

TOOL = Path(sys.executable).with_name("anna-export")
VERBS = (
    "export",
    "plan",
    "merge",
    "build",
    "verify",
    "embed",
    "bench",
    "report",
    "package",
    "inspect",
    "prompts list",
    "prompts add",
    "prompts remove",
)
TIMED_VERBS = [
    pytest.param(verb, marks=pytest.mark.slow) if verb == "bench" else verb for verb in VERBS
]
# those that go on until they are told to end: tests/serve
ENDLESS = ("serve",)
HEAVY = (
    "torch numpy onnx onnx_ir onnxruntime tensorrt tensorrt_rtx transformers tokenizers "
    "peft safetensors pyarrow pydantic psutil rich"
).split()

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def small(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that is proved quickly: its longest text is short."""
    out = tmp_path_factory.mktemp("small") / "artifact"
    return export(Recipe(base, adapter, out, Fp32(), 61), stage).artifact.folder


@pytest.fixture(scope="module")
def for_gpus(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that engines can be built of."""
    out = tmp_path_factory.mktemp("for-gpus") / "artifact"
    recipe = Recipe(base, adapter, out, Bf16(), 61, verify=False)
    return export(recipe, stage).artifact.folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "artifact"))


@pytest.fixture
def commands(
    base: Path, adapter: Path, copy: Path, for_gpus: Path, tmp_path: Path
) -> dict[str, list[str]]:
    """A command of every verb that succeeds."""
    (tmp_path / "texts.txt").write_text("a\nb c\n")
    file, prompted = tmp_path / "prompts.json", tmp_path / "prompted"
    file.write_text('{"tasks": {"sts": {"text": "Like: "}, "bare": {"text": ""}}}')
    shutil.copytree(copy, prompted)
    add_prompts(prompted, read_prompt_file(file), overwrite=False)
    model = ["--model", str(base), "--adapter", str(adapter)]
    return {
        "export": [*model, "--out", str(tmp_path / "out"), "--no-verify", "--bf16"],
        "plan": model,
        "merge": [*model, "--out", str(tmp_path / "merged")],
        "build": [str(for_gpus), "--compute-capability", "8.9"],
        "verify": [str(copy), "--reference", *model[1:]],
        "embed": [str(copy), str(tmp_path / "texts.txt"), "--out", str(tmp_path / "v.npy")],
        "bench": [str(copy), "--batch", "1", "--length", "9", "--rounds", "3"],
        "report": [str(copy)],
        "package": [str(copy), "--triton", str(tmp_path / "models")],
        "inspect": [str(copy), "--check"],
        "prompts list": [str(prompted)],
        "prompts add": [str(copy), str(file)],
        "prompts remove": [str(prompted), "sts"],
    }


def command_of(verb: str) -> click.Command:
    found: click.Command = cli
    for word in verb.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


def tool(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(TOOL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# -- help --


def test_every_verb_is_tested() -> None:
    leaves = {
        f"{name} {below}" if below else name
        for name, command in cli.commands.items()
        for below in (command.commands if isinstance(command, click.Group) else [""])
    }
    assert leaves == {*VERBS, *ENDLESS}


@pytest.mark.parametrize("verb", [*VERBS, *ENDLESS])
def test_help_of_a_verb_has_a_sentence_and_an_example(verb: str, capsys: Output) -> None:
    assert run([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    usage, sentence = text.split("\n\n")[:2]
    assert usage.startswith(f"Usage: anna-export {verb} ") and sentence.rstrip().endswith(".")
    example = text[text.index("\nExample:\n") :].strip().splitlines()[1].strip()
    assert example.startswith("anna-export ") and "--help" not in example


@pytest.mark.parametrize("verb", [*VERBS, *ENDLESS])
def test_every_option_has_a_sentence_and_its_default(verb: str) -> None:
    for parameter in command_of(verb).params:
        if parameter.param_type_name == "option":
            help_text = getattr(parameter, "help", "") or ""
            assert len(help_text.split()) >= 4 and help_text.endswith("."), parameter.name
            is_flag, default = getattr(parameter, "is_flag", False), parameter.default
            if not is_flag and isinstance(default, str | Path):
                assert getattr(parameter, "show_default", False), parameter.name


@pytest.mark.parametrize("verb", [*VERBS, *ENDLESS])
def test_example_of_a_verb_is_one_that_it_takes(
    verb: str, commands: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, own = command_of(verb), verb.split()
    example = getattr(command, "example").split()[1:]  # noqa: B009
    words = example[len(own) :] if example[: len(own)] == own else example
    assert words != example or verb == "export"
    for name in ("base", "lora", "artifact", "artifact-fp8", "artifact-int8"):
        (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    context = command.make_context(verb, words)
    assert not context.args


def test_help_shows_every_verb_and_exit_code(capsys: Output) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb.split()[0]} " in shown for verb in VERBS)
    assert re.findall(r"\b(\d+)\s+(?:yes|the answer|wrong|too few|a\s+bug|interrupted)", shown) == [
        "0",
        "1",
        "2",
        "3",
        "70",
        "130",
    ]


def test_no_arguments_show_the_help(capsys: Output) -> None:
    assert run(["--help"]) == 0
    expected = capsys.readouterr().out
    assert run([]) == 0
    assert capsys.readouterr().out == expected


def test_version_is_the_packages(capsys: Output) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"anna-export, version \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("args", [["--help"], ["export", "--help"], ["inspect", "--help"]])
def test_help_loads_no_library_that_works(args: list[str]) -> None:
    code = (
        "import sys; from anna_export.cli import run; run(sys.argv[1:]); "
        f"print('LOADED', *(set({HEAVY}) & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "LOADED"


def test_help_takes_at_most_300_ms() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert tool("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) <= 0.3


# -- verbs --


def test_no_verb_is_export(commands: dict[str, list[str]], tmp_path: Path, capsys: Output) -> None:
    assert run(commands["export"]) == 0
    assert (tmp_path / "out" / "manifest.json").exists()
    assert "bf16" in capsys.readouterr().out


@pytest.mark.parametrize("verb", TIMED_VERBS)
def test_json_is_one_object_and_nothing_else(
    commands: dict[str, list[str]], verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # capfd: what native libraries print counts too
    assert run([*verb.split(), *commands[verb], "--json"]) == 0
    found = capfd.readouterr()
    assert isinstance(json.loads(found.out), dict) and found.err == ""


@pytest.mark.parametrize("verb", TIMED_VERBS)
def test_result_goes_to_stdout_and_nothing_to_a_stderr_that_is_no_terminal(
    commands: dict[str, list[str]], verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb.split(), *commands[verb]]) == 0
    found = capfd.readouterr()
    assert found.err == "" and len(found.out.splitlines()) >= 2


@pytest.mark.slow
def test_installed_tool_prints_json_alone(copy: Path) -> None:
    found = tool("inspect", copy, "--json")
    assert found.returncode == 0 and found.stderr == ""
    assert json.loads(found.stdout)["schema_version"] == SCHEMA_VERSION


def test_proof_of_another_reference_is_shown_and_not_stored(
    copy: Path, base: Path, capsys: Output
) -> None:
    # without its adapter, the base is another model
    before = (copy / PARITY_FILE).read_bytes()
    assert run(["verify", str(copy), "--reference", str(base), "--json"]) == 1
    found = capsys.readouterr()
    shown = json.loads(found.out)
    assert shown["verdict"] == "fail" and shown["stored"].startswith("nowhere: this reference is")
    assert found.err.startswith("anna-export: expected the reference's vectors, found: worst")
    assert found.err.count("\n") == 1
    assert (copy / PARITY_FILE).read_bytes() == before


def test_proof_is_stored_in_the_artifact_and_shown_by_inspect(
    copy: Path, base: Path, adapter: Path, capsys: Output
) -> None:
    verify = ["verify", str(copy), "--model", str(base), "--adapter", str(adapter)]
    assert run([*verify, "--backend", "pytorch"]) == 0
    assert re.search(rf"stored +{re.escape(str(copy / PARITY_FILE))}", capsys.readouterr().out)
    assert run(["inspect", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"proof +pass: worst cosine", shown)
    assert re.search(r"candidate +pytorch: fp32 .* from the artifact's stored weights", shown)
    assert run(["inspect", str(copy), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["parity"]
    assert told["vectors"]["candidate"].startswith("pytorch: fp32")


def test_proof_of_an_artifact_that_may_not_be_written_to_is_an_answer_all_the_same(
    copy: Path, base: Path, adapter: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    # root may write to a read-only folder, so the disk is played
    monkeypatch.setattr("anna_export.artifact.evidence.write_text", refuse)
    assert run(["verify", str(copy), "--reference", str(base), "--adapter", str(adapter)]) == 0
    assert re.search(rf"stored +nowhere: {copy} may not be written to", capsys.readouterr().out)


def test_embed_says_what_an_earlier_run_had_done(
    commands: dict[str, list[str]], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("anna_export.embed.file._join_npy", interrupt)
        assert run(["embed", *commands["embed"]]) == 130
    assert run(["embed", *commands["embed"]]) == 0
    assert "2 texts were done by an earlier run" in capsys.readouterr().out


# -- exit codes --


def test_bug_keeps_its_traceback_and_exits_70(
    copy: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("oh no")

    monkeypatch.setattr("anna_export.artifact.folder.open_artifact", broken)
    assert run(["inspect", str(copy)]) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "RuntimeError: oh no" in lines[-2]
    assert lines[-1].startswith("anna-export: this is a bug")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "expected enough memory, found too little; anna-export plan says"),
        (PermissionError(13, "Permission denied", "x"), 2, "expected to use x, found: Permission"),
        (OSError(24, "Too many open files"), 2, "expected to use a file, found: Too many open"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_bug_is_one_line(
    copy: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("anna_export.artifact.folder.open_artifact", failing)
    assert run(["inspect", str(copy)]) == code
    found = capsys.readouterr().err
    assert found.startswith(f"anna-export: {line}") and found.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["plan", "inspect"])
def test_reader_that_leaves_early_changes_nothing(
    commands: dict[str, list[str]], verb: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(TOOL), verb, *commands[verb]]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert found.returncode == 0 and found.stderr == ""


@pytest.mark.slow
def test_answer_of_no_is_given_even_if_its_reader_left(copy: Path, base: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(TOOL), "verify", str(copy), "--reference", str(base)]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert found.returncode == 1 and found.stderr.count("\n") == 1


# -- progress --


def on_a_terminal(command: list[str]) -> str:
    """Run a command whose stderr is a terminal, and return what it showed."""
    mine, its = pty.openpty()
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        while True:
            try:
                read = os.read(mine, 4096)
            except OSError:  # Linux says so when the other end is closed
                break
            if not read:
                break
            shown += read
    os.close(mine)
    assert process.returncode == 0
    return shown.decode()


@pytest.mark.slow
def test_progress_on_a_terminal_has_a_rate_and_the_time_left(
    commands: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "texts.txt").write_text("".join(f"{number}\n" for number in range(9000)))
    shown = on_a_terminal([str(TOOL), "embed", *commands["embed"]])
    assert "embed" in shown and "/9000" in shown
    assert re.search(r"[\d,.]+ texts/s", shown) and re.search(r"\d:\d\d:\d\d", shown)


# -- precisions --


@pytest.mark.parametrize("precision", Precision)
def test_precision_flag_is_what_is_exported(
    base: Path, tmp_path: Path, capsys: Output, precision: Precision
) -> None:
    args = ["--model", base, "--out", tmp_path / "out", "--no-verify", "--json", f"--{precision}"]
    assert run([str(arg) for arg in args]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == precision


def test_fp32_is_the_default(base: Path, tmp_path: Path, capsys: Output) -> None:
    args = ["--model", base, "--out", tmp_path / "out", "--no-verify", "--json"]
    assert run([str(arg) for arg in args]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"

"""Every block of README and docs that small folders can run is run, page by page, in order."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import anna_train.cli
import pytest

import anna_export.cli
from tests.docs.pages import PAGES, ROOT, Block, blocks_of

PROGRAMS = {"anna-export": anna_export.cli.run, "anna-train": anna_train.cli.run}
RUN = [page for page in PAGES if any(not block.reason for block in blocks_of(page.read_text()))]
TEXTS = (
    "How do I undo a commit?",
    "git reset --soft HEAD~1 keeps the changes staged.",
    "What is a context manager?",
    "A context manager defines __enter__ and __exit__.",
    "Der Zug hat Verspätung.",
    "The train is late.",
    "A LoRA adapter adds low-rank matrices to a model's weights.",
    "Embeddings of similar texts have a high cosine.",
)


class Page:
    """Runs a page's blocks in one folder; servers that they start end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {}
        self.servers: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def run(self, block: Block) -> None:
        """Run a block, and hold what it prints to what the page shows."""
        if block.language == "python":
            exec(compile(block.code, "page", "exec"), self.names)
            return
        printed = "".join(map(self._command, block.code.replace("\\\n", " ").splitlines()))
        lines = [" ".join(line.split()) for line in printed.splitlines()]
        for expected in block.output:
            start = beginning(expected)
            assert any(line.startswith(start) for line in lines), (
                f"line {block.line}: expected a line that starts with {start!r}, found:\n{printed}"
            )

    def _command(self, line: str) -> str:
        line = line.replace("8080", str(self.port))
        words = shlex.split(line, comments=True)
        if not words:
            return ""
        if words[:2] == ["anna-export", "serve"]:
            self._serve(words[1:])
            return ""
        if words[0] not in PROGRAMS:
            command = ["bash", "-euo", "pipefail", "-c", line]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stderr}"
            return done.stdout + "\n"
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = PROGRAMS[words[0]](words[1:])
        assert code == 0, f"{line}: exit code {code}\n{errors.getvalue()}"
        return output.getvalue()

    def _serve(self, args: list[str]) -> None:
        tool = Path(sys.executable).with_name("anna-export")
        server = subprocess.Popen([tool, *args], stderr=subprocess.DEVNULL)
        self.servers.append(server)
        until = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5)
                return
            time.sleep(0.1)
        raise AssertionError(f"expected a server that is ready, found exit code {server.poll()}")

    def end(self) -> None:
        """End the servers as a container does, and see that they end well."""
        for server in self.servers:
            server.terminate()
        codes = []
        for server in self.servers:
            try:
                codes.append(server.wait(timeout=30))
            finally:
                server.kill()
        assert codes == [0] * len(self.servers)


def beginning(line: str) -> str:
    """Return what a printed line must start with: no figures, and nothing after an ellipsis."""
    label = re.split(r"\s{2,}|…", line)[0]
    if not re.search(r"\d|…", line):
        return " ".join(line.split())
    if label == line or "…" in line:
        label = re.split(r"[-\d]|…", label)[0]
    return " ".join(label.split())


@pytest.fixture(scope="module")
def small(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume: base, lora, prompts.json, texts.jsonl and a proved artifact."""
    folder = tmp_path_factory.mktemp("docs") / "small"
    shutil.copytree(base, folder / "base")
    shutil.copytree(adapter, folder / "lora")
    (json_block,) = re.findall(
        r"```json\n(.*?)```", (ROOT / "docs/guides/prompts.md").read_text(), re.DOTALL
    )
    (folder / "prompts.json").write_text(json_block)
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    with contextlib.chdir(folder):
        export = "--model base --adapter lora --prompts prompts.json --out artifact"
        assert anna_export.cli.run(export.split()) == 0
    return folder


@pytest.fixture
def make_page(small: Path, tmp_path: Path) -> Iterator[Callable[[list[Block]], Page]]:
    pages = []

    def make(blocks: list[Block]) -> Page:
        # a page that makes the artifact itself finds none
        makes = any("--out artifact\n" in f"{block.code}\n" for block in blocks[:1])
        shutil.copytree(
            small, tmp_path / "page", ignore=shutil.ignore_patterns("artifact" if makes else "")
        )
        pages.append(Page(tmp_path / "page"))
        return pages[-1]

    before = Path.cwd()
    yield make
    os.chdir(before)
    for page in pages:
        page.end()


@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run_and_print_what_the_page_shows(
    path: Path, make_page: Callable[[list[Block]], Page]
) -> None:
    blocks = [block for block in blocks_of(path.read_text()) if not block.reason]
    page = make_page(blocks)
    os.chdir(page.folder)
    for block in blocks:
        page.run(block)


def test_a_block_that_stops_working_fails(make_page: Callable[[list[Block]], Page]) -> None:
    page = make_page([])
    os.chdir(page.folder)
    with pytest.raises(AssertionError, match=r"exit code 2\s+anna-export: expected an option"):
        page.run(Block("bash", "anna-export inspect artifact --chekc", 1))
    with pytest.raises(AssertionError, match="starts with 'proof fail'"):
        page.run(Block("bash", "anna-export inspect artifact", 1, output=["proof   fail"]))
    with pytest.raises(AssertionError, match="curl: exit code"):
        page.run(Block("bash", "curl", 1))


def test_output_and_reasons_are_read_from_a_page() -> None:
    text = (
        "```bash\nls\n```\n```text\na  b\n```\n\n<!-- not run: needs a GPU -->\n```python\n1\n```\n"
    )
    first, second = blocks_of(text)
    assert (first.code, first.output, first.reason) == ("ls", ["a  b"], "")
    assert (second.language, second.code, second.reason) == ("python", "1", "needs a GPU")
    # a marker without a reason is none
    assert blocks_of("<!-- not run -->\n```bash\nls\n```")[0].reason == ""

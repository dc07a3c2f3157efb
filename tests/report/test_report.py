"""The page: what it says, that it needs nothing beside it, and how a browser shows it."""

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.bench import flow, options
from anna_export.cli import run
from anna_export.spec import Precision
from tests.support.types import MakeArtifact

pytest.importorskip("plotly", reason="needs anna-export[report]")

SCHEMA2 = Path(__file__).parent.parent / "data" / "schema2"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUICK = ("--rounds", "3")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic"
).split()


@pytest.fixture(scope="module")
def folders(
    artifact: Artifact,
    base: Path,
    make_artifact: MakeArtifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """A proved and timed artifact in fp32, and one in int8 of which nothing is known."""
    parent = tmp_path_factory.mktemp("report")
    shutil.copytree(artifact.folder, parent / "small-fp32")
    shutil.copytree(make_artifact(base, Precision.INT8, max_loss=1).folder, parent / "small-int8")
    shapes = ("--batch", "1,4", "--length", "16,32")
    with pytest.MonkeyPatch.context() as patch:
        # the page shows times: nobody compares these
        patch.setattr(flow, "_STARTS", 1)
        patch.setattr(options, "Plan", partial(flow.Plan, open_seconds=2.0))
        for name, rates in (("small-fp32", ("--rate", "20")), ("small-int8", ())):
            assert run(["bench", str(parent / name), *shapes, *rates, *QUICK]) == 0
    return [parent / "small-fp32", parent / "small-int8"]


@pytest.fixture(scope="module")
def side_by_side(folders: list[Path]) -> Path:
    out = folders[0].parent / "both.html"
    assert run(["report", *map(str, folders), "--out", str(out)]) == 0
    return out


def charts_of(page: Path) -> dict[str, Any]:
    script = re.search(r"const charts = (\{.*?\});\n", page.read_text(), re.S)
    assert script is not None
    quoted = re.sub(r",\s*\}$", "}", script[1].replace("<\\/", "</"))
    return dict(json.loads(quoted))


@pytest.mark.slow
def test_page_of_one_artifact_is_kept_in_it(folders: list[Path]) -> None:
    assert run(["report", str(folders[0])]) == 0
    opened = open_artifact(folders[0], check=True)
    assert "report.html" in opened.manifest.evidence
    text = (folders[0] / "report.html").read_text()
    manifest = opened.manifest
    assert manifest.artifact_id in text and manifest.source.model in text
    assert "anna-export --model" in text and 'class="verdict pass"' in text
    for entry in manifest.files.values():
        assert entry.sha256 in text


@pytest.mark.slow
def test_what_was_not_measured_is_said_and_not_drawn(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "int8.html"
    assert run(["report", str(folders[1]), "--out", str(out)]) == 0
    text = out.read_text()
    assert "not verified" in text
    assert set(charts_of(out)) == {"latency", "layers"}
    assert text.count("Not measured.") == 4 and "anna-export verify with --tier" in text


@pytest.mark.slow
def test_charts_hold_what_was_measured(folders: list[Path], side_by_side: Path) -> None:
    charts = charts_of(side_by_side)
    assert {"quality", "latency", "load", "layers"} <= set(charts)
    bench = json.loads((folders[1] / "bench.json").read_text())
    expected = [row["p50_ms"] for row in bench["runs"][0]["rows"] if row["batch"] == 4]
    (line,) = [
        trace for trace in charts["latency"]["data"] if trace["name"] == "small-int8, batch 4"
    ]
    assert line["x"] == [16, 32] and line["y"] == pytest.approx(expected)
    # only what was proved has a place on the axis of quality
    assert [trace["text"] for trace in charts["quality"]["data"]] == [["small-fp32"]]


def test_area_of_a_mark_is_the_size_of_the_artifact(tmp_path: Path) -> None:
    folders = [SCHEMA2 / f"artifact-{precision}" for precision in ("fp32", "int8")]
    assert run(["report", *map(str, folders), "--out", str(tmp_path / "r.html")]) == 0
    marks = charts_of(tmp_path / "r.html")["quality"]["data"]
    diameters = [mark["marker"]["size"] for mark in marks]
    sizes = [open_artifact(folder).size_bytes for folder in folders]
    assert len(marks) == 2 and sizes[0] > 1.2 * sizes[1]
    assert (diameters[0] / diameters[1]) ** 2 == pytest.approx(sizes[0] / sizes[1])


@pytest.mark.slow
def test_page_asks_for_nothing(side_by_side: Path) -> None:
    text = side_by_side.read_text()
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)=|url\(|@import|https?://", markup)


def test_names_and_prompts_cannot_become_markup(
    base: Path, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"tasks": {"odd": {"text": "</script><b>bold</b> & more: "}}}))
    shutil.copytree(make_artifact(base, prompts=prompts).folder, tmp_path / "<i>odd")
    out = tmp_path / "odd.html"
    assert run(["report", str(tmp_path / "<i>odd"), "--out", str(out)]) == 0
    text = out.read_text()
    assert "<b>bold" not in text and "<i>odd" not in text and "&lt;b&gt;bold" in text


def test_what_is_no_artifact_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "expected an artifact, found no manifest.json" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const state = { errors: window.__errors, width: document.documentElement.scrollWidth,
    window: window.innerWidth, drawn: document.querySelectorAll(".js-plotly-plot .main-svg").length,
    loaded: performance.getEntriesByType("resource").length };
  const body = window.parent.document.body;
  body.setAttribute("data-state", JSON.stringify(state));
}, 500));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_whole(side_by_side: Path, tmp_path: Path, width: int) -> None:
    probed = tmp_path / "probed.html"
    text = side_by_side.read_text()
    watch = "<script>window.__errors = []; window.onerror = e => window.__errors.push(e);</script>"
    probed.write_text(
        text.replace("<head>", f"<head>{watch}").replace("</body>", f"{PROBE}</body>")
    )
    # headless Chromium's windows are no narrower than 500 pixels; a frame is
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe src="probed.html" style="width:{width}px;height:900px;border:0">'
        "</iframe>"
    )
    assert CHROMIUM is not None
    page = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=8000",
            "--window-size=1300,1000",
            "--dump-dom",
            str(frame),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    attribute = re.search(r'data-state="([^"]*)"', page)
    assert attribute is not None
    state = json.loads(attribute[1].replace("&quot;", '"'))
    assert state["errors"] == [] and state["loaded"] == 0
    assert state["drawn"] >= 4
    assert state["width"] <= state["window"]

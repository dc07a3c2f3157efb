"""What is generated into the docs: figures, the command line, schemas, routes."""

import json
from pathlib import Path

import click
import pytest
from anna_train.cli import cli as train_cli

from anna_export.cli import cli
from anna_export.spec import FAMILIES
from anna_export.text.prompt_formats import FORMATS
from docs.generate import commands, figures, http, prompt_formats, schemas
from tests.docs.pages import PAGES, ROOT

RESULT = {
    "machine": {"hardware": "a clock", "cores": 3},
    "versions": {"numpy": "2"},
    "figures": [
        {"name": "time", "value": 1.26, "unit": "s", "target": "<= 2", "holds": True},
        {"name": "size", "value": 7, "unit": "kB", "target": "<= 5", "holds": False,
         "spread": [6.5, 7.5]},
    ],
    "not_run": [{"name": "more", "why": "no | disk"}],
}  # fmt: skip


def results(folder: Path, *names: str, **changes: object) -> dict[str, figures.Result]:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(RESULT | changes))
    return figures.read_results(folder)


def test_newest_result_counts(tmp_path: Path) -> None:
    results(tmp_path, "a-b/2026-01-03.json")
    old = results(tmp_path, "a-b/2026-01-02.json", figures=[{"name": "old", "value": 0}])
    (result,) = old.values()
    assert (result.name, result.date) == ("a-b", "2026-01-03")
    assert list(result.figures) == ["time", "size"]


def test_no_results_and_results_without_figures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(figures.FigureError, match=r"expected results in .*, found none"):
        figures.read_results(tmp_path)
    with pytest.raises(figures.FigureError, match=r"expected figures in .*\.json, found none"):
        results(tmp_path, "a/2026-01-02.json", figures=[])
    (tmp_path / "a" / "2026-01-02.json").rename(tmp_path / "2026-01-02.json")
    with pytest.raises(figures.FigureError, match=r"expected NAME/DATE\.json in .*, found"):
        figures.read_results(tmp_path)


def test_figures_fill_the_places_that_name_them(tmp_path: Path) -> None:
    newest = results(tmp_path, "a/2026-01-02.json")
    text = "{{a | time | .1f}} s, {{ a|size|.0f|spread }}"
    assert figures.fill(text, newest) == "1.3 s, 7 (6 to 8)"


@pytest.mark.parametrize("named", ["b | time | .1f", "a | times | .1f"])
def test_unknown_figures_are_refused(tmp_path: Path, named: str) -> None:
    with pytest.raises(figures.FigureError, match=r"found '(b|times)'"):
        figures.fill(f"{{{{{named}}}}}", results(tmp_path, "a/2026-01-02.json"))


def test_page_of_figures_holds_every_figure(tmp_path: Path) -> None:
    page = figures.page(results(tmp_path, "a/2026-01-02.json"))
    assert "2026-01-02. hardware a clock; cores 3. numpy 2." in page
    assert "| time | 1.26 | s |  |  | &lt;= 2 | yes |  |" in page
    assert "| size | 7 | kB | 6.5 | 7.5 | &lt;= 5 | **no** |  |" in page
    assert "- more: no &#124; disk" in page


def leaves(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    return [
        leaf
        for name, command in group.commands.items()
        for leaf in (
            leaves(command, f"{path} {name}")
            if isinstance(command, click.Group)
            else [(f"{path} {name}", command)]
        )
    ]


@pytest.mark.parametrize(("program", "group"), [("anna-export", cli), ("anna-train", train_cli)])
def test_command_line_page_has_every_command_and_option(program: str, group: click.Group) -> None:
    page = commands.page(program, group)
    sections = page.split("\n## ")[1:]
    by_name = {section.partition("\n")[0]: section for section in sections}
    expected = leaves(group, program)
    assert list(by_name) == [name for name, _ in expected]
    for name, command in expected:
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert all(option.opts[0] in by_name[name] for option in options)
        assert "\n```bash\nanna-" in by_name[name]


@pytest.mark.parametrize("entry", schemas.SCHEMAS, ids=lambda entry: entry.file)
def test_schemas_describe_the_fields_that_the_page_lists(entry: schemas.Schema) -> None:
    schema = json.loads(schemas.files()[entry.link])
    assert schema["$schema"].startswith("https://json-schema.org/") and schema["properties"]
    section = schemas.page().split(f"## {entry.file}\n")[1].split("\n## ")[0]
    assert all(f"| `{name}` |" in section for name in schema["properties"])


def test_comments_and_docstrings_of_fields_become_descriptions() -> None:
    by_file = {entry.file: schemas.schema(entry) for entry in schemas.SCHEMAS}
    spec = by_file["manifest.json"]["$defs"]["StoredPrefix"]["properties"]
    assert spec["prompt"]["description"] == "sha256 of the prompt"
    row = by_file["rows.jsonl"]["properties"]
    assert row["neg"]["description"] == "What does not answer it."


def test_every_route_of_the_server_is_listed() -> None:
    paths = json.loads(http.as_json())["paths"]
    text = http.routes()
    assert "/v1/embeddings" in paths
    assert all(f"{method.upper()} {path}`" in text for path in paths for method in paths[path])
    assert "| 429 |" in text


# What the README states without the build that fills the pages in.
README_FIGURES = (
    ("scale", "export: peak anonymous memory", ".2f", "merge and export"),
    ("scale", "proof: worst cosine", ".5f", "exact sums"),
    ("latency", "pytorch fp32: our throughput over its, geo. mean", ".2f", "geometric mean"),
    ("latency", "pytorch fp32: our throughput over its, geo. mean", ".1f", "`--int8` | 8 bits"),
    ("demo-real", "STS-B: tuned", ".3f", "Gemma 3 270M](docs/guides/real-model.md) tuned"),
    ("prefix", "fp32, 1 x 16 tokens: with 512 tokens over none", ".2f", "512-token prompt"),
    ("training", "3 examples: our steps over theirs", ".2f", "three examples"),
)


@pytest.mark.parametrize(("benchmark", "name", "style", "row"), README_FIGURES)
def test_readme_states_measured_figures(benchmark: str, name: str, style: str, row: str) -> None:
    measured = figures.read_results(ROOT / "benchmarks/results")[benchmark].figures[name]["value"]
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if row in line]
    assert f" {measured:{style}}" in line


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 140


# Sentences that a new reader did not understand, and words that only this project used.
UNCLEAR = (
    "held to (",
    "goes on at the layer",
    "goes on where it was",
    "rounded in one scale a token",
    "turns the bound off",
    "how the last words",
    "asks for a response behind",
    "at every moment",
    "get closer**",
    "read at its first use",
    "as meant",
    "bucket of lengths",
    "byte by byte",
    "what chance brings",
    "too sure of itself",
    "else what ships",
    "what waits takes",
    "Nothing bad comes out",
    "nobody wins by being wrong",
    "in turn with a rival",
    "rival",
    "cost one forward pass a group",
    "are the plain ones",
    "is written, and not run yet",
    "of what it reaches",
    "the same: ",
    "twin",
    "is told on",
    "are apart by spaces",
)


@pytest.mark.parametrize("phrase", UNCLEAR)
def test_unclear_sentences_do_not_come_back(phrase: str) -> None:
    texts = {path.name: path.read_text() for path in [*PAGES, ROOT / "CONTRIBUTING.md"]}
    texts["help of anna-export"] = commands.page("anna-export", cli)
    texts["help of anna-train"] = commands.page("anna-train", train_cli)
    assert not [name for name, text in texts.items() if phrase.lower() in text.lower()]


def test_every_format_of_prompts_has_a_row() -> None:
    table = prompt_formats.formats()
    assert all(f"| `{name}` | <code>" in table for name in FORMATS)
    assert "<code>Instruct:&nbsp;{instruction}\\nQuery:</code>" in table


def test_every_family_has_a_row_and_a_column_of_what_ran() -> None:
    page = (ROOT / "docs" / "reference" / "families.md").read_text(encoding="utf-8")
    assert all(f"\n| `{name}` | " in page for name in FAMILIES)
    assert "| | " + " | ".join(f"`{name}`" for name in FAMILIES) + " |" in page

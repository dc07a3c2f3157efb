"""What `mkdocs build` calls: it adds the generated pages and puts figures into the others."""

from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate import commands, figures, http, prompt_formats, schemas

_RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# what a page names, and what stands there
_TABLES = {"<!-- routes -->": http.routes, "<!-- prompt formats -->": prompt_formats.formats}


@cache
def _results() -> dict[str, figures.Result]:
    return figures.read_results(_RESULTS)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code and from the results."""
    from anna_train.cli import cli as train

    from anna_export.cli import cli as export

    generated = {
        "reference/cli/anna-export.md": commands.page("anna-export", export),
        "reference/cli/anna-train.md": commands.page("anna-train", train),
        "reference/schemas.md": schemas.page(),
        "reference/openapi.json": http.as_json(),
        "results/figures.md": figures.page(_results()),
        **{f"reference/{name}": content for name, content in schemas.files().items()},
    }
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    for name, chart in figures.charts(_RESULTS).items():
        files.append(File.generated(config, f"results/{name}.svg", abs_src_path=str(chart)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put measured figures and generated tables where a page names them."""
    for name, table in _TABLES.items():
        if name in markdown:
            markdown = markdown.replace(name, table())
    return figures.fill(markdown, _results())

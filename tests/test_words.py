"""The house's own rules: names say what a thing is, functions are short, flags stay in the CLI."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("anna_export", "kernels/anna_kernels", "train/anna_train")
EVERYTHING = (*PRODUCT, "demo", "benchmarks", "tests")
# Words that any value could bear.
EMPTY_WORDS = frozenset(
    "found told place places one ones seen known asked here what which many few rest said given "
    "shown held kept made meant own whole now".split()
)
MOST_LINES = 40


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every name that a module binds, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a body's lines, its docstring left out."""
    statements = function.body
    if ast.get_docstring(function) is not None:
        statements = statements[1:]
    if not statements:
        return 0
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1


@pytest.mark.parametrize("path", sources(*EVERYTHING), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_a_thing_is(path: Path) -> None:
    empty = [
        f"{name} in line {line}"
        for name, line in bindings(ast.parse(path.read_text()))
        if name.strip("_").lower() in EMPTY_WORDS
    ]
    assert not empty, "; ".join(empty)


@pytest.mark.parametrize("path", sources(*PRODUCT), ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    long = [
        f"{node.name} has {body_lines(node)} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MOST_LINES
        # a comment over it says why it stays long
        and not lines[min([node, *node.decorator_list], key=lambda n: n.lineno).lineno - 2]
        .strip()
        .startswith("# long: ")
    ]
    assert not long, "; ".join(long)


@pytest.mark.parametrize(
    "path",
    [path for path in sources(*PRODUCT) if not {"cli", "console"} & set(path.parts)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_library_names_fields_and_the_command_line_flags(path: Path) -> None:
    tree = ast.parse(path.read_text())
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    flags = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documented
        and re.search(r"(?<![\w-])--[a-z][a-z-]+", node.value)
        # these write commands for people to copy; the last runs another program
        and path.name
        not in ("adapter_card.py", "card.py", "model_folders.py", "page.py", "ahead_of_time.py")
    ]
    assert not flags, flags


def test_loose_modules_are_few() -> None:
    modules = list((ROOT / "anna_export").glob("*.py"))
    assert len(modules) <= 8, sorted(path.name for path in modules)

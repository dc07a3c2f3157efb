"""Imports point one way: each module may import only what stands in a lower layer, or its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up; modules of one layer may import one another only within a folder, or as said.
LAYERS = (
    {"errors", "choices", "cosine", "progress"},
    {"files", "machine"},
    {"spec", "console"},
    {"text"},
    {"weights", "encoder", "artifact"},
    {"graph", "embed"},
    {"quantise"},
    {"engines", "reference"},
    {"backends", "calibrate"},
    {"verify", "integrations"},
    {"bench", "serve"},
    {"report"},
    {"export"},
    {"cli", "st"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """Return the modules a file imports when it runs, TYPE_CHECKING blocks left out."""
    modules = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "anna_export").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files("anna_export"), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    assert layer in RANK, f"{path.name} stands in no layer: add it to LAYERS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "anna_export" or len(parts) < 2 or parts[1] == layer:
            continue
        below = parts[1]
        assert RANK[below] < RANK[layer], f"{layer} may not import {below}"


def test_export_never_imports_training() -> None:
    for path in files("anna_export"):
        assert not any(name.startswith("anna_train") for name in imported(path)), path


def test_kernels_import_neither_of_the_others() -> None:
    for path in files("kernels"):
        names = imported(path)
        assert not any(name.startswith(("anna_export", "anna_train")) for name in names), path


def test_training_uses_only_what_export_offers_it() -> None:
    offered = {
        "console",
        "errors",
        "files",
        "machine",
        "open_encoder",
        "progress",
        "reference",
        "spec",
        "text",
        "weights",
    }
    for path in files("train"):
        for name in imported(path):
            if name.startswith("anna_export."):
                assert name.split(".")[1] in offered, (path, name)


@pytest.mark.parametrize(("library", "home"), [("onnxruntime", "backends/ort.py")])
def test_runtime_is_imported_in_one_file(library: str, home: str) -> None:
    users = [path for path in files("anna_export") if library in imported(path)]
    assert users == [ROOT / "anna_export" / home]

"""One process of test_bindings.py, over NVIDIA's own bindings of TensorRT 11 and stub libraries.

    python bindings_worker.py names|plugin

Prints JSON: the names that are missing, or how the plugin would be launched.
"""

import ast
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_bindings as trt

import anna_export.engines


class Expression:
    """Stands for the builder's symbolic size: one known by its name, or a number."""

    def __init__(self, value: int | str) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        return int(self.value)

    def is_size_tensor(self) -> bool:
        return False


class Expressions:
    """Stands for the builder's maker of sizes."""

    def constant(self, value: int) -> Expression:
        return Expression(value)

    def operation(self, kind: Any, first: Expression, second: Expression) -> Expression:
        assert second.value == 0, (kind, second.value)  # how a size is copied
        return first


sys.modules["tensorrt"] = trt
# the real ones have no constructor: only a builder makes them
trt.IDimensionExpr = Expression
trtp: Any = importlib.import_module("tensorrt.plugin")
# what a variable of ours holds
OBJECTS = {
    "builder": trt.Builder,
    "network": trt.INetworkDefinition,
    "parser": trt.OnnxParser,
    "error": trt.ParserError,
    "config": trt.IBuilderConfig,
    "optimization": trt.IOptimizationProfile,
}
# TensorRT-RTX's alone
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}


def names() -> dict[str, Any]:
    """Find every attribute that our code reads of the library and its objects."""
    used, missing = set(), set()
    for path in Path(anna_export.engines.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            chain = read_chain(node)
            if chain is None or chain[0] not in {"trt", "trtp", *OBJECTS}:
                continue
            found: Any = {"trt": trt, "trtp": trtp, **OBJECTS}[chain[0]]
            used.add(".".join(chain))
            for name in chain[1:]:
                if name in RTX_ONLY:
                    break
                if not hasattr(found, name):
                    missing.add(".".join(chain))
                    break
                found = getattr(found, name)
                if isinstance(found, property):
                    break
    return {"used": sorted(used), "missing": sorted(missing)}


def read_chain(node: ast.AST) -> list[str] | None:
    """Read a.b.c as its names."""
    if not isinstance(node, ast.Attribute):
        return None
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def plugin() -> dict[str, Any]:
    """Run NVIDIA's plugin class over ours, as the builder does for one type."""
    library, classes, expressions = (
        importlib.import_module(f"tensorrt.plugin.{name}")
        for name in ("_lib", "_plugin_class", "_tensor")
    )
    from anna_export.engines.capability import Capability
    from anna_export.engines.plugin import PLUGIN, register_pooling

    register_pooling(trt, trtp, Capability(9, 0), lazily=True)
    registered = library.QDP_REGISTRY[PLUGIN]
    expressions.SymIntExpr._exprBuilder = Expressions()
    hidden: tuple[int | str, ...] = ("B", "S", 4096)
    last: tuple[int | str, ...] = ("B",)
    tensors = []
    for shape, dtype in ((hidden, trt.bfloat16), (last, trt.int64)):
        tensor = trtp.TensorDesc(expressions.ShapeExprs(len(shape)), dtype)
        for place, size in enumerate(shape):
            tensor.shape_expr[place] = trtp.ShapeExpr(Expression(size))
        tensors.append(tensor)
    output = registered.register_func(*tensors)
    combinations = registered.autotune_func(*tensors, (output,))
    name, ptx, launch, scalars = registered.aot_impl_func(*tensors, (output,), 1)
    made = classes._TemplateAOTPlugin("LastTokenPoolNormalize", "anna", 1)
    made.init(registered.register_func, {}, [], registered.aot_impl_func, [], None)
    assert isinstance(made, trt.IPluginV3QuickAOTBuild)

    return {
        "output": [str(output.dtype), [told_size(size) for size in output.shape_expr]],
        "combinations": len(combinations),
        "name": name,
        "entry": ptx[ptx.index(".entry") :].split("{")[0],
        "launch": {
            field: told_size(getattr(launch, field))
            for field in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "shared_mem")
        },
        "scalars": [told_size(scalar) for scalar in scalars],
    }


def told_size(size: Any) -> Any:
    """Return a size's name or number."""
    return size._expr.value


if __name__ == "__main__":
    answer = {"names": names, "plugin": plugin}[sys.argv[1]]()
    # behind what the library prints
    sys.stdout.write("\n" + json.dumps(answer))

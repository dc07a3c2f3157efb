"""One process of test_bindings.py, over NVIDIA's own bindings of TensorRT 11 and stub libraries.

    python bindings_worker.py names|names-rtx|plugin

Prints JSON: the names that TensorRT 11, or TensorRT-RTX, has not and the calls with too few or too
many arguments; or how the plugin would be launched.
"""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import tensorrt_bindings as trt
from cuda.bindings import runtime as cudart

import anna_export


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
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "optimization": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "refitter": "Refitter",
    "refit_parser": "OnnxParserRefitter",
}
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "cuda_graph_strategy",
    "num_compute_capabilities",
    "set_compute_capability",
}
READ = ("engines/*.py", "backends/trt.py", "backends/device_memory.py")


def names(library: Any = trt, elsewhere: frozenset[str] = frozenset(RTX_ONLY)) -> dict[str, Any]:
    """Find every attribute that our code reads of the library and its objects, and its calls.

    Args:
        library: TensorRT or TensorRT-RTX.
        elsewhere: Names that only the other has.
    """
    roots: dict[str, Any] = {name: getattr(library, kind) for name, kind in OBJECTS.items()}
    roots |= {"trt": library, "cudart": cudart}
    if library is trt:
        roots["trtp"] = trtp
    used, missing, called = set(), set(), set()
    folder = Path(anna_export.__file__).parent
    nodes = [
        node
        for pattern in READ
        for path in folder.glob(pattern)
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    arguments = {
        id(node.func): len(node.args)
        for node in nodes
        if isinstance(node, ast.Call) and not any(isinstance(a, ast.Starred) for a in node.args)
    }
    for node in nodes:
        chain = read_chain(node)
        if chain is None or chain[0] not in roots or elsewhere & set(chain):
            continue
        told = ".".join(chain)
        used.add(told)
        found = resolve(roots[chain[0]], chain[1:])
        if found is None:
            missing.add(told)
        elif id(node) in arguments and (expected := parameters(found)) is not None:
            called.add(told)
            if arguments[id(node)] not in expected:
                missing.add(f"{told} of {arguments[id(node)]} arguments")
    return {"used": sorted(used), "missing": sorted(missing), "called": sorted(called)}


def resolve(found: Any, chain: list[str]) -> Any:
    """Return what a chain of attributes leads to, or the property it ends at; None for nothing."""
    for name in chain:
        if isinstance(found, property):
            return found
        found = getattr(found, name, None)
    return found


def parameters(function: Any) -> range | None:
    """Return how many positional arguments a function takes, if its docstring says it."""
    head, _, _ = (getattr(function, "__doc__", None) or "").strip().partition("\n")
    found = re.match(r"\w+\((.*)\)", head)
    if found is None or "*args" in head or isinstance(function, type):
        return None
    told = found[1]
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", told)) != told:
        told = shorter
    taken = [part for part in told.split(", ") if part and not part.startswith("self: ")]
    return range(sum("=" not in part for part in taken), len(taken) + 1)


def rtx_names() -> dict[str, Any]:
    """As names, in TensorRT-RTX."""
    return names(importlib.import_module("tensorrt_rtx"), frozenset())


def read_chain(node: ast.AST) -> list[str] | None:
    """Read a.b.c as its names, and self._a.b as a.b."""
    if not isinstance(node, ast.Attribute):
        return None
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    if node.id == "self":
        return [names[0].removeprefix("_"), *names[1:]] if len(names) > 1 else None
    return [node.id, *names]


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
    answer = {"names": names, "names-rtx": rtx_names, "plugin": plugin}[sys.argv[1]]()
    # behind what the library prints
    sys.stdout.write("\n" + json.dumps(answer))

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
from types import SimpleNamespace
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
READ = ("engines/*.py", "backends/trt.py", "backends/cuda.py")


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
        name = ".".join(chain)
        used.add(name)
        member = resolve(roots[chain[0]], chain[1:])
        if member is None:
            missing.add(name)
        elif id(node) in arguments and (expected := parameters(member)) is not None:
            called.add(name)
            if arguments[id(node)] not in expected:
                missing.add(f"{name} of {arguments[id(node)]} arguments")
    return {"used": sorted(used), "missing": sorted(missing), "called": sorted(called)}


def resolve(member: Any, chain: list[str]) -> Any:
    """Return what a chain of attributes leads to, or the property it ends at; None for nothing."""
    for name in chain:
        if isinstance(member, property):
            return member
        member = getattr(member, name, None)
    return member


def parameters(function: Any) -> range | None:
    """Return how many positional arguments a function takes, if its docstring says it."""
    head, _, _ = (getattr(function, "__doc__", None) or "").strip().partition("\n")
    match = re.match(r"\w+\((.*)\)", head)
    if match is None or "*args" in head or isinstance(function, type):
        return None
    signature = match[1]
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", signature)) != signature:
        signature = shorter
    taken = [part for part in signature.split(", ") if part and not part.startswith("self: ")]
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
    """Ask NVIDIA's plugin class over our functions what the builder asks it for one engine."""
    library, classes, expressions = (
        importlib.import_module(f"tensorrt.plugin.{name}")
        for name in ("_lib", "_plugin_class", "_tensor")
    )
    from anna_export.engines.capability import Capability
    from anna_export.engines.plugin import PLUGIN, register_pooling

    # real sizes are a builder's alone
    trt.DimsExprs = lambda count: [None] * count
    vars(expressions)["SymExprImpl"] = lambda size: size._expr
    register_pooling(trt, trtp, Capability(9, 0), lazily=True)
    registered = library.QDP_REGISTRY[PLUGIN]
    built = classes._TemplateAOTPlugin("LastTokenPoolNormalize", "anna", 1)
    built.init(
        registered.register_func, {}, [], registered.aot_impl_func, [], registered.autotune_func
    )
    assert isinstance(built, trt.IPluginV3QuickAOTBuild)

    types = built.get_output_data_types([trt.bfloat16, trt.int64], [3, 1])
    hidden: tuple[int | str, ...] = ("B", "S", 4096)
    sizes = [[Expression(size) for size in shape] for shape in (hidden, ("B",))]
    (output,) = built.get_output_shapes(sizes, [], Expressions())
    tensors = [
        described((-1, -1, 4096), trt.bfloat16),
        described((-1,), trt.int64),
        described((-1, 4096), trt.float32),
    ]
    offered = built.get_supported_format_combinations(tensors, 2)
    combinations = [
        [str(each.type) for each in offered[start : start + 3]]
        for start in range(0, len(offered), 3)
    ]
    built.configure_plugin(tensors[:2], tensors[2:])
    (tactic,) = built.get_valid_tactics()
    built.set_tactic(tactic)
    launch, extra = SimpleNamespace(), Extra()
    built.get_launch_params(sizes, tensors, 2, launch, extra, Expressions())
    inputs = [tensor.desc for tensor in tensors]
    name, ptx = built.get_kernel(inputs[:2], inputs[2:])
    text = ptx.decode()
    return {
        "types": [str(each) for each in types],
        "output": [size.value for size in output],
        "combinations": combinations,
        "name": name,
        "entry": text[text.index(".entry") :].split("{")[0],
        "launch": {field: size.value for field, size in vars(launch).items()},
        "extra": [extra[index].value for index in range(extra.nbSymExprs)],
    }


class Extra(dict[int, Expression]):
    """Stands for the builder's list of arguments beside the tensors."""

    nbSymExprs = 0


def described(dims: tuple[int, ...], kind: Any) -> Any:
    """Describe a tensor of the engine, rows one after another."""
    tensor = trt.DynamicPluginTensorDesc()
    description = trt.PluginTensorDesc()
    description.dims, description.type, description.format, description.scale = (
        trt.Dims(dims),
        kind,
        trt.TensorFormat.LINEAR,
        1.0,
    )
    tensor.desc = description
    return tensor


if __name__ == "__main__":
    answer = {"names": names, "names-rtx": rtx_names, "plugin": plugin}[sys.argv[1]]()
    # behind what the library prints
    sys.stdout.write("\n" + json.dumps(answer))

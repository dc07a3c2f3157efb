"""Attention in the forms that ONNX Runtime's CPU provider is fastest at.

One text, or no prefix: GroupQueryAttention, which never holds the (S, S) scores. Measured (ONNX
Runtime 1.32, 16/4 heads of 64; benchmarks/decided/lowering.py): as fast as the standard operator up
to 1,024 tokens, 1.15 times faster at 2,048 and 1.4 times at 4,096. It wants a copy of the prefix
for every text, and of several texts takes none. Those split attention over prefix and text, under
one shared maximum: the fastest of four forms (benchmarks/decided/prefix_forms.py).
"""

import math
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from anna_export.graph import attention
from anna_export.graph.emitter import Emitter
from anna_export.graph.names import INPUT_IDS, PREFIX_KEYS

DOMAIN: Final = "com.microsoft"
# In front of fewer tokens, copying a prefix takes longer than splitting the attention.
GROUPED_TOKENS: Final = 48


class CpuAttention(ir.passes.InPlacePass):
    """Replace each PrefixAttention by an If.

    1. No prefix, or one text that is not short: GroupQueryAttention with the prefix as its past,
       and the sliding window as its own; only where attention is causal and head_dim a multiple of
       8, as it wants.
    2. Elsewhere without a prefix: the standard operator.
    3. Elsewhere with one: split attention. Prefix and text are scored each for itself, both
       exponentials taken from the larger maximum.
    4. Of a graph without a prefix, whose attention goes both ways, each is the standard operator.
    5. For GroupQueryAttention every row counts as S tokens long: padding stands on the right, where
       causal attention cannot see it, and a shorter length would leave the padded rows undefined.
    """

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph that build_graph does not make."""
        if INPUT_IDS not in {value.name for value in model.graph.inputs}:
            raise ir.passes.PreconditionError(
                f"expected an input {INPUT_IDS}; build with build_graph"
            )
        for node in attention.calls(model.graph):
            if missing := set(attention.ATTRIBUTES) - set(node.attributes):
                raise ir.passes.PreconditionError(
                    f"expected {min(missing)} on {node.name}, found none; build with build_graph"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention node."""
        calls = attention.calls(model.graph)
        if not calls:
            return ir.passes.PassResult(model, modified=False)
        if PREFIX_KEYS in {value.name for value in model.graph.inputs}:
            model.graph.opset_imports[DOMAIN] = 1
            shared = _Shared(model.graph, calls[0])
            for call in calls:
                _replace(model.graph, call, shared)
        else:
            for call in calls:
                attention.replace_by_standard(model.graph, call, masked=True)
        attention.drop_function(model)
        return ir.passes.PassResult(model, modified=True)


class _Shared:
    """What all attention nodes need, computed once, in front of the first of them."""

    def __init__(self, graph: ir.Graph, first: ir.Node) -> None:
        into = Emitter(graph, first)
        inputs = {value.name: value for value in graph.inputs}
        ids, keys = inputs[INPUT_IDS], inputs[PREFIX_KEYS]
        self.scalar_0 = into.constant("zero", ir.tensor(np.array(0)))
        self.scalar_1 = into.constant("one", ir.tensor(np.array(1)))
        self.batch = into.op("Shape", ids, start=0, end=1)  # (1,)
        self.text = into.op("Squeeze", into.op("Shape", ids, start=1, end=2))
        self.prefix = into.op("Squeeze", into.op("Shape", keys, start=2, end=3))
        self.no_prefix = into.op("Equal", self.prefix, self.scalar_0)
        single = into.op("Equal", into.op("Squeeze", self.batch), self.scalar_1)
        least = into.constant("grouped_tokens", ir.tensor(np.array(GROUPED_TOKENS)))
        single = into.op("And", single, into.op("GreaterOrEqual", self.text, least))
        self.grouped = into.op("Or", self.no_prefix, single)
        # what turns (K, P, head_dim) to (B, K, P, head_dim)
        per_head = into.constant("ones", ir.tensor(np.array([1, 1, 1])))
        self.copies = into.op("Concat", self.batch, per_head, axis=0)
        # GroupQueryAttention's: P + S as an int32, and (B,) of one less
        end = into.op("Add", self.prefix, self.text)
        self.total = into.op("Cast", end, to=ir.DataType.INT32)
        int32_1 = into.constant("one_int32", ir.tensor(np.array(1, dtype=np.int32)))
        self.before_last = into.op("Expand", into.op("Sub", self.total, int32_1), self.batch)


def _replace(graph: ir.Graph, call: ir.Node, shared: _Shared) -> None:
    first = _Branch(graph, call, shared)
    if first.causal and first.head_dim % 8 == 0:
        condition, body = shared.grouped, first.grouped()
    else:
        condition, body = shared.no_prefix, first.standard()
    branches = {
        "then_branch": body,
        "else_branch": _Branch(graph, call, shared).split_prefix_attention(),
    }
    new = ir.node("If", [condition], branches, name=call.name)
    new.outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_before(call, new)
    ir.convenience.replace_all_uses_with(call.outputs[0], new.outputs[0])
    graph.remove(call, safe=True)


class _Branch:
    """Records one branch of one attention node."""

    def __init__(self, graph: ir.Graph, call: ir.Node, shared: _Shared) -> None:
        self.tape = ir.tape.Tape()
        self.outer = Emitter(graph, call)
        self.shared = shared
        self.name = call.name
        numbers = attention.numbers(call)
        self.heads, self.groups = numbers.num_heads, numbers.kv_num_heads
        self.head_dim, self.causal = numbers.head_dim, numbers.causal
        self.window, self.scale = numbers.window, numbers.scale
        self.query, self.key, self.value, self.prefix_key, self.prefix_value, self.mask = (
            value for value in call.inputs if value is not None
        )

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **more: Any) -> ir.Value:
        return self.tape.op(kind, list(inputs), more, domain=domain)

    def int64(self, *numbers: int) -> ir.Value:
        name = "int64" + "".join(f"_{number}" for number in numbers)
        return self.outer.constant(name, ir.tensor(np.array(numbers, dtype=np.int64)))

    def float32(self, name: str, number: float) -> ir.Value:
        return self.outer.constant(name, ir.tensor(np.float32(number)))

    def finish(self, output: ir.Value, form: str) -> ir.Graph:
        nodes, name = self.tape.nodes, f"{self.name}.{form}"
        # names of both graphs are one space, and each graph would count its own from 0
        for index, value in enumerate(value for node in nodes for value in node.outputs):
            value.name = f"{name}.{index}"
        output.dtype = ir.DataType.FLOAT
        return ir.Graph([], [output], nodes=nodes, name=name)

    def grouped(self) -> ir.Graph:
        """Attend to prefix and text in one operator."""
        prefix = (self.prefix_key, self.prefix_value)
        past = [self.op("Expand", states, self.shared.copies) for states in prefix]
        lengths = (self.shared.before_last, self.shared.total)
        output = self.tape.op_multi_out(
            "GroupQueryAttention",
            [self.query, self.key, self.value, *past, *lengths],
            {
                "num_heads": self.heads,
                "kv_num_heads": self.groups,
                "scale": self.scale,
                "local_window_size": self.window or -1,
            },
            domain=DOMAIN,
            num_outputs=3,
        )[0]
        return self.finish(output, "grouped")

    def standard(self) -> ir.Graph:
        """Attend to the text alone."""
        output = self.op(
            "Attention",
            *(self.query, self.key, self.value, self.mask),
            q_num_heads=self.heads,
            kv_num_heads=self.groups,
            scale=self.scale,
        )
        return self.finish(output, "standard")

    def split_prefix_attention(self) -> ir.Graph:
        """Attend to prefix and text by scores of their own, (B, K, H / K * Q, P or S)."""
        last = self.int64(-1)
        on_prefix, on_text = self.scores()
        largest = self.op(
            "Max", self.op("ReduceMax", on_prefix, last), self.op("ReduceMax", on_text, last)
        )
        first, second = (
            self.op("Exp", self.op("Sub", scores, largest)) for scores in (on_prefix, on_text)
        )
        total = self.op(
            "Add", self.op("ReduceSum", first, last), self.op("ReduceSum", second, last)
        )
        mixed = self.op(
            "Add",
            self.op("MatMul", first, self.prefix_value),
            self.op("MatMul", second, self.to_heads(self.value, 1)),
        )
        return self.finish(self.to_tokens(self.op("Div", mixed, total)), "split")

    def scores(self) -> tuple[ir.Value, ir.Value]:
        """Score each query by the prefix and by the text; a masked score is -inf."""
        q = self.to_heads(self.query, self.heads // self.groups)
        q = self.op("Mul", q, self.float32("score_scale", self.scale))
        on_prefix = self.op("MatMul", q, self.op("Transpose", self.prefix_key, perm=[0, 2, 1]))
        k = self.op("Transpose", self.to_heads(self.key, 1), perm=[0, 1, 3, 2])
        on_text = self.op("MatMul", q, k)
        of_prefix, of_text = self.causal_masks() if self.causal else self.last_token_masks()
        if self.window:  # else every query attends to all of the prefix
            on_prefix = self.mask_scores(on_prefix, of_prefix)
        return on_prefix, self.mask_scores(on_text, of_text)

    def causal_masks(self) -> tuple[ir.Value, ir.Value]:
        """Mask prefix and text for each query: bool, (Q, P) and (Q, S)."""
        keys = self.op("Range", self.shared.scalar_0, self.shared.text, self.shared.scalar_1)
        queries = self.op("Unsqueeze", keys, self.int64(1))
        causal = self.op("GreaterOrEqual", queries, keys)
        if not self.window:
            return causal, causal
        window = self.int64(self.window)
        near = self.op("Less", self.op("Sub", queries, keys), window)
        of_text = self.op("And", causal, near)
        prefix = self.op("Range", self.shared.scalar_0, self.shared.prefix, self.shared.scalar_1)
        distance = self.op("Sub", self.op("Add", queries, self.shared.prefix), prefix)
        return self.op("Less", distance, window), of_text

    def last_token_masks(self) -> tuple[ir.Value, ir.Value]:
        """Split the mask, which differs from text to text: bool, (B, 1, 1, P or S)."""
        lengths = (self.shared.prefix, self.shared.text)
        sizes = [self.op("Unsqueeze", length, self.int64(0)) for length in lengths]
        inputs = [self.mask, self.op("Concat", *sizes, axis=0)]
        of_prefix, of_text = self.tape.op_multi_out("Split", inputs, {"axis": -1}, num_outputs=2)
        return of_prefix, of_text

    def mask_scores(self, scores: ir.Value, mask: ir.Value) -> ir.Value:
        """Set to -inf what the mask leaves out of (B, K, H / K * Q, N) scores."""
        masked = self.float32("minus_infinity", -math.inf)
        bias = self.op("Where", mask, self.float32("no_bias", 0), masked)
        if not self.causal:
            return self.op("Add", scores, bias)
        shape = self.op("Shape", scores)
        by_head = self.op("Reshape", scores, self.op("Concat", *self.head_sizes(), axis=0))
        return self.op("Reshape", self.op("Add", by_head, bias), shape)

    def head_sizes(self) -> list[ir.Value]:
        """Sizes of (B, K, H / K, Q, …)."""
        heads = self.int64(self.groups, self.heads // self.groups)
        queries = self.op("Shape", self.query, start=1, end=2)
        return [self.shared.batch, heads, queries, self.int64(-1)]

    def to_heads(self, x: ir.Value, heads: int) -> ir.Value:
        """Turn (B, S, K heads head_dim) to (B, K, heads S, head_dim)."""
        x = self.op("Reshape", x, self.int64(0, 0, self.groups, heads, self.head_dim))
        x = self.op("Transpose", x, perm=[0, 2, 3, 1, 4])
        return self.op("Reshape", x, self.int64(0, self.groups, -1, self.head_dim))

    def to_tokens(self, x: ir.Value) -> ir.Value:
        """Turn (B, K, H / K * Q, head_dim) to (B, Q, H head_dim)."""
        x = self.op("Reshape", x, self.op("Concat", *self.head_sizes(), axis=0))
        x = self.op("Transpose", x, perm=[0, 3, 1, 2, 4])
        return self.op("Reshape", x, self.int64(0, 0, self.heads * self.head_dim))

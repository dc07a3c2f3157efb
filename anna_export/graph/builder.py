"""The canonical graph: a Mistral-shaped encoder in standard operators, built from its spec.

Built, not traced: tracing needs the whole model in memory and loses the grouped key/value heads.
Tokens come first in every row, once its entrance has moved those padded on the left, so causal
attention alone keeps padding out of every real token's state.
In front of them may stand a prefix, by its keys and values, which all texts of a batch share.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from anna_export.graph import attention, padding, pooling
from anna_export.graph import head as heads
from anna_export.graph.names import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    PREFIX_KEYS,
    PREFIX_VALUES,
    PROMPT_TOKENS,
)
from anna_export.graph.rotary import rotary_tables
from anna_export.graph.tensors import IR_DTYPES, as_ir
from anna_export.spec import EMBEDDING_WEIGHT, LAST_TOKEN, EmbeddingSpec, Precision
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint

OPSET: Final = 23
IR_VERSION: Final = 11


def build_graph(checkpoint: Checkpoint, precision: Precision, max_tokens: int) -> ir.Model:
    """Build the canonical graph over a checkpoint's weights, which stay unread.

    Args:
        checkpoint: Where the weights are.
        precision: Type of weights and products. In fp16 the residual stream and the norms are
            fp32: real models have activations there that fp16 cannot hold.
        max_tokens: Longest sequence, prefix included; the length of the rotary tables.

    Returns:
        A model of input_ids and attention_mask, int64 (B, S), padded on the right or left, to
        sentence_embedding, float32 (B, D). Optional inputs are prefix_keys and prefix_values,
        float32 (L, K, P, head_dim); without them, P is 0. Where a prompt's tokens are not pooled,
        prompt_tokens, int64 (1,) or (B,), says how many there are, the prefix's among them;
        without, 0. Opset 23, and functions for attention and for pooling the last token.
    """
    graph = _Graph(checkpoint, precision, max_tokens)
    output = graph.embed()
    output.name, output.dtype = EMBEDDING, ir.DataType.FLOAT
    output.shape = ir.Shape(["batch", checkpoint.spec.embedding_dim])
    functions = [attention.prefix_attention_function(OPSET, checkpoint.spec)]
    if checkpoint.spec.head == LAST_TOKEN:
        functions.append(pooling.pool_normalize_function(OPSET))
    return ir.Model(
        ir.Graph(
            graph.inputs,
            [output],
            nodes=graph.tape.nodes,
            initializers=graph.tape.initializers,
            opset_imports={"": OPSET, pooling.DOMAIN: 1},
            name="encoder",
        ),
        ir_version=IR_VERSION,
        producer_name="anna-export",
        functions=functions,
    )


@dataclass(frozen=True, slots=True)
class _Positions:
    """Positions of queries, and which keys each of them attends to."""

    ids: ir.Value  # (B, Q) int64, from P on
    mask: ir.Value  # bool, broadcast to (B, H, Q, P + S)


class _Graph:
    """One graph being recorded."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, max_tokens: int) -> None:
        self.checkpoint = checkpoint
        self.spec: EmbeddingSpec = checkpoint.spec
        self.shapes = self.spec.weight_shapes()
        self.precision = precision
        wide = precision is Precision.FP16
        self.residual_precision = Precision.FP32 if wide else precision
        self.max_tokens = max_tokens
        self.tape = ir.tape.Tape()
        self.input_ids = ir.val(INPUT_IDS, dtype=ir.DataType.INT64, shape=["batch", "sequence"])
        self.attention_mask = ir.val(
            ATTENTION_MASK, dtype=ir.DataType.INT64, shape=["batch", "sequence"]
        )
        self.prefix_keys, self.prefix_values = map(self.prefix, (PREFIX_KEYS, PREFIX_VALUES))
        self.inputs = [*(self.input_ids, self.attention_mask, self.prefix_keys, self.prefix_values)]
        self.cos, self.sin = self.rotary_tables()

    def op(
        self, kind: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any
    ) -> ir.Value:
        return self.tape.op(kind, inputs, attributes, name=name)

    def int64(self, name: str, value: int | list[int]) -> ir.Value:
        return self.constant(name, np.array(value, dtype=np.int64))

    def constant(self, name: str, value: np.ndarray) -> ir.Value:
        for constant in self.tape.initializers:
            if constant.name == name:
                return constant
        return self.tape.initializer(ir.tensor(value, name=name))

    def prefix(self, name: str) -> ir.Value:
        """Return an input whose default is a prefix of no tokens; fp32 in every precision."""
        spec = self.spec
        absent = np.empty((spec.layers, spec.kv_heads, 0, spec.head_dim), dtype=np.float32)
        value = self.tape.initializer(ir.tensor(absent, name=name))
        value.shape = ir.Shape([spec.layers, spec.kv_heads, "prefix", spec.head_dim])
        return value

    def weight(self, name: str, precision: Precision, *, transpose: bool = False) -> ir.Value:
        checkpoint, dtype = self.checkpoint, TORCH_DTYPES[precision]
        shape = ir.Shape(reversed(self.shapes[name]) if transpose else self.shapes[name])

        def read() -> ir.Tensor:
            return as_ir(checkpoint.read(name, dtype, transpose=transpose), name)

        return self.tape.initializer(ir.LazyTensor(read, IR_DTYPES[precision], shape, name=name))

    def linear(self, x: ir.Value, module: str) -> ir.Value:
        weight = self.weight(f"{module}.weight", self.precision, transpose=True)
        return self.op("MatMul", x, weight, name=module)

    def norm(self, x: ir.Value, module: str) -> ir.Value:
        """Normalise the residual stream; the result is in the matrix products' type."""
        weight = self.weight(f"{module}.weight", self.residual_precision)
        x = self.op("RMSNormalization", x, weight, name=module, axis=-1, epsilon=self.spec.norm_eps)
        return self.narrow(x)

    def narrow(self, x: ir.Value) -> ir.Value:
        return self.cast(x, self.residual_precision, self.precision)

    def widen(self, x: ir.Value) -> ir.Value:
        return self.cast(x, self.precision, self.residual_precision)

    def cast(self, x: ir.Value, source: Precision, target: Precision) -> ir.Value:
        x.dtype = IR_DTYPES[source]  # passes must know what is cast
        if source is target:
            return x
        return self.op("Cast", x, to=IR_DTYPES[target])

    def rotary_tables(self) -> tuple[ir.Value, ir.Value]:
        tables = map(self.tape.initializer, rotary_tables(self.spec, self.max_tokens))
        cos, sin = (self.cast(x, Precision.FP32, self.precision) for x in tables)
        return cos, sin

    def embed(self) -> ir.Value:
        spec = self.spec
        last_layer = spec.layers - 1
        ids, lengths = padding.tokens_first(
            self, self.input_ids, self.attention_mask, spec.vocab_size
        )
        first = self.first_pooled()
        index = heads.pooled_index(self, spec.head.pooling, lengths, first)
        positions = self.all_positions()
        text = self.text_positions(positions)
        embedding = self.weight(EMBEDDING_WEIGHT, self.precision)
        x = self.widen(self.op("Gather", embedding, ids, axis=0, name="embed_tokens"))
        for layer in range(last_layer):
            x = self.layer(layer, x, text)
        if index is None:
            x = self.norm(self.layer(last_layer, x, text), "norm")
            row = heads.mean(self, self.cast(x, self.precision, Precision.FP32), lengths, first)
            return heads.behind_pooling(self, row, spec.head)
        x = self.layer_for_one_token(last_layer, x, index, text, positions)
        x = self.norm(x, "norm")
        if spec.head != LAST_TOKEN:
            x = self.cast(x, self.precision, Precision.FP32)
            row = self.op("Squeeze", x, self.int64("axis_1", [1]))
            return heads.behind_pooling(self, row, spec.head)
        # past the last layer there is one token a row, at index 0
        shape, zero = self.op("Shape", index), ir.tensor([0], name="zero")
        zeros = self.op("ConstantOfShape", shape, value=zero)
        attributes: dict[str, Any] = {"plugin_namespace": pooling.DOMAIN, "aot": 1}
        return self.tape.op(
            pooling.NAME, [x, zeros], attributes, domain=pooling.DOMAIN, name="pool"
        )

    def first_pooled(self) -> ir.Value | None:
        """Where pooled tokens start, by an input whose default is a prompt of no tokens."""
        if not self.spec.head.leaves_out_prompt:
            return None
        tokens = self.tape.initializer(ir.tensor(np.array([0]), name=PROMPT_TOKENS))
        tokens.shape = ir.Shape(["prompts"])
        self.inputs.append(tokens)
        return heads.first_pooled(self, tokens, self.prefix_length())

    def prefix_length(self) -> ir.Value:
        """P, a scalar."""
        return self.op("Squeeze", self.op("Shape", self.prefix_keys, start=2, end=3))

    def all_positions(self) -> ir.Value:
        """(P + S,) 0, 1, … P + S - 1."""
        length = self.op("Squeeze", self.op("Shape", self.input_ids, start=1, end=2))
        end = self.op("Add", self.prefix_length(), length)
        return self.op("Range", self.int64("zero", 0), end, self.int64("one", 1))

    def text_positions(self, positions: ir.Value) -> _Positions:
        """Those of the text's tokens, behind the prefix; `positions` are all, (P + S,)."""
        start = self.op("Shape", self.prefix_keys, start=2, end=3)
        end = self.op("Shape", positions)
        tokens = self.op("Slice", positions, start, end)  # (S,)
        ids = self.op("Expand", tokens, self.op("Shape", self.input_ids))
        return _Positions(ids, self.causal_mask(tokens, positions))

    def causal_mask(self, queries: ir.Value, keys: ir.Value) -> ir.Value:
        """Mask keys at positions (P + S,) for queries at (…, Q): bool (…, Q, P + S)."""
        queries = self.op("Unsqueeze", queries, self.int64("axis_last", [-1]))
        causal = self.op("GreaterOrEqual", queries, keys)
        if self.window is None:
            return causal
        distance = self.op("Sub", queries, keys)
        return self.op("And", causal, self.op("Less", distance, self.int64("window", self.window)))

    @property
    def window(self) -> int | None:
        """The sliding window, where a sequence can be longer than it."""
        window = self.spec.sliding_window
        return window if window is not None and self.max_tokens > window else None

    def layer(self, layer: int, x: ir.Value, positions: _Positions) -> ir.Value:
        module = f"layers.{layer}"
        normed = self.norm(x, f"{module}.input_layernorm")
        attended = self.attention(layer, normed, normed, positions, positions, causal=True)
        x = self.op("Add", x, self.widen(attended))
        return self.mlp(module, x)

    def layer_for_one_token(
        self, layer: int, x: ir.Value, pooled: ir.Value, text: _Positions, positions: ir.Value
    ) -> ir.Value:
        """The last layer, (B, S, D) → (B, 1, D): keys and values of all tokens, the rest of one."""
        module = f"layers.{layer}"
        index = self.op("Unsqueeze", pooled, self.int64("axes_1_2", [1, 2]))  # (B, 1, 1)
        ids = self.op("GatherND", text.ids, index, batch_dims=1)  # (B, 1)
        mask = self.causal_mask(ids, positions)  # (B, 1, P + S)
        mask = self.op("Unsqueeze", mask, self.int64("axis_1", [1]))
        normed = self.norm(x, f"{module}.input_layernorm")
        query = self.op("GatherND", normed, index, batch_dims=1)
        attended = self.attention(layer, query, normed, _Positions(ids, mask), text, causal=False)
        x = self.op("GatherND", x, index, batch_dims=1)
        x = self.op("Add", x, self.widen(attended))
        return self.mlp(module, x)

    def attention(
        self,
        layer: int,
        query: ir.Value,
        context: ir.Value,
        query_positions: _Positions,
        context_positions: _Positions,
        *,
        causal: bool,
    ) -> ir.Value:
        spec, module = self.spec, f"layers.{layer}.self_attn"
        q = self.rotate(self.linear(query, f"{module}.q_proj"), query_positions, spec.heads)
        k = self.linear(context, f"{module}.k_proj")
        k = self.rotate(k, context_positions, spec.kv_heads)
        v = self.linear(context, f"{module}.v_proj")
        prefix = [self.of_layer(x, layer) for x in (self.prefix_keys, self.prefix_values)]
        mixed = self.tape.op(
            attention.NAME,
            [q, k, v, *prefix, query_positions.mask],
            {
                "num_heads": spec.heads,
                "kv_num_heads": spec.kv_heads,
                "head_dim": spec.head_dim,
                "causal": int(causal),
                "window": self.window or 0,
            },
            domain=pooling.DOMAIN,
            name=f"{module}.attention",
        )
        return self.linear(mixed, f"{module}.o_proj")

    def of_layer(self, prefix: ir.Value, layer: int) -> ir.Value:
        """(K, P, head_dim) keys or values of one layer."""
        states = self.op("Gather", prefix, self.int64(f"layer_{layer}", layer), axis=0)
        return self.cast(states, Precision.FP32, self.precision)

    def rotate(self, x: ir.Value, positions: _Positions, heads: int) -> ir.Value:
        return self.op("RotaryEmbedding", x, self.cos, self.sin, positions.ids, num_heads=heads)

    def mlp(self, module: str, x: ir.Value) -> ir.Value:
        normed = self.norm(x, f"{module}.post_attention_layernorm")
        gate = self.linear(normed, f"{module}.mlp.gate_proj")
        up = self.linear(normed, f"{module}.mlp.up_proj")
        inner = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        down = self.linear(inner, f"{module}.mlp.down_proj")
        return self.op("Add", x, self.widen(down))

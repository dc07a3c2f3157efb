"""The canonical graph: a decoder that embeds in standard operators, built from its spec.

Built, not traced: tracing needs the whole model in memory and loses the grouped key/value heads.
Tokens come first in every row, once its entrance has moved those padded on the left, so causal
attention alone keeps padding out of every real token's state.
In front of them may stand a prefix, by its keys and values, which all texts of a batch share; not
where attention goes both ways, since there the prefix depends on the text.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from anna_export.graph import attention, padding, pooling
from anna_export.graph import head as heads
from anna_export.graph.block import activated, normed_heads
from anna_export.graph.masks import Keys, attention_mask
from anna_export.graph.names import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    PREFIX_KEYS,
    PREFIX_VALUES,
    PROMPT_TOKENS,
)
from anna_export.graph.recording import Recording
from anna_export.graph.rotary import rotary_tables
from anna_export.spec import EMBEDDING_WEIGHT, LAST_TOKEN, Precision, Rotary
from anna_export.weights.checkpoint import Checkpoint

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
        sentence_embedding, float32 (B, D). Optional inputs of a causal model are prefix_keys and
        prefix_values, float32 (L, K, P, head_dim); without them, P is 0. Where a prompt's tokens
        are not pooled, prompt_tokens, int64 (1,) or (B,), says how many there are, the prefix's
        among them; without, 0. Opset 23, and functions for attention and for pooling the last
        token.
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
class _Queries:
    """The queries of a layer: their positions, and which keys each of them attends to."""

    ids: ir.Value  # (B, Q) int64, from P on
    order: ir.Value  # (Q,), or ids where rows differ
    causal: bool  # all tokens of a text, none of which attends to those behind it


class _Graph(Recording):
    """One graph being recorded."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, max_tokens: int) -> None:
        super().__init__(checkpoint, precision)
        self.max_tokens = max_tokens
        self.input_ids = ir.val(INPUT_IDS, dtype=ir.DataType.INT64, shape=["batch", "sequence"])
        self.attention_mask = ir.val(
            ATTENTION_MASK, dtype=ir.DataType.INT64, shape=["batch", "sequence"]
        )
        self.prefix_keys, self.prefix_values = map(self.prefix, (PREFIX_KEYS, PREFIX_VALUES))
        self.inputs = [self.input_ids, self.attention_mask]
        if self.spec.causal:
            self.inputs += [self.prefix_keys, self.prefix_values]
        self.tables: dict[tuple[Rotary, bool], tuple[ir.Value, ir.Value]] = {}
        self.masks: dict[tuple[ir.Value, int | None], ir.Value] = {}

    def prefix(self, name: str) -> ir.Value:
        """Return an input whose default is a prefix of no tokens; fp32 in every precision."""
        spec = self.spec
        absent = np.empty((spec.layers, spec.kv_heads, 0, spec.head_dim), dtype=np.float32)
        value = self.tape.initializer(ir.tensor(absent, name=name))
        value.shape = ir.Shape([spec.layers, spec.kv_heads, "prefix", spec.head_dim])
        return value

    def rotary_tables(self, layer: int, *, queries: bool) -> tuple[ir.Value, ir.Value]:
        """Return cosines and sines of a layer; queries may have tables of their own."""
        spec, rotary = self.spec, self.spec.rotary(layer)
        scaling = spec.query_scaling if queries else None
        if scaling is not None and self.max_tokens <= scaling.positions:
            scaling = None  # exactly 1 so far
        key = rotary, scaling is not None
        if key not in self.tables:
            name = "rotary" if rotary.theta == spec.rope_theta else "rotary.windowed"
            name += ".queries" if scaling else ""
            tables = rotary_tables(name, rotary, spec.head_dim, self.max_tokens, scaling)
            cos, sin = (
                self.cast(self.tape.initializer(table), Precision.FP32, self.precision)
                for table in tables
            )
            self.tables[key] = cos, sin
        return self.tables[key]

    def embed(self) -> ir.Value:
        spec = self.spec
        last_layer = spec.layers - 1
        ids, lengths = padding.tokens_first(
            self, self.input_ids, self.attention_mask, spec.vocab_size
        )
        first = self.first_pooled()
        index = heads.pooled_index(self, spec.head.pooling, lengths, first)
        self.keys = Keys(self.all_positions(), None if spec.causal else lengths)
        text = self.text_queries()
        x = self.token_embeddings(ids)
        for layer in range(last_layer):
            x = self.layer(layer, x, text)
        if index is None:
            x = self.normed(self.layer(last_layer, x, text), "norm")
            row = heads.mean(self, self.cast(x, self.precision, Precision.FP32), lengths, first)
            return heads.behind_pooling(self, row, spec.head)
        x = self.layer_for_one_token(last_layer, x, index, text)
        x = self.normed(x, "norm")
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

    def token_embeddings(self, ids: ir.Value) -> ir.Value:
        """Look up (B, S) ids: (B, S, D) in the residual stream's type."""
        table = self.weight(EMBEDDING_WEIGHT, self.precision)
        x = self.op("Gather", table, ids, axis=0, name="embed_tokens")
        if self.spec.embedding_scale == 1:
            return self.widen(x)
        # in fp32: in a narrow type the scale itself would be rounded, for every token alike
        scale = self.constant("embedding_scale", np.array(self.spec.embedding_scale, np.float32))
        x = self.op("Mul", self.cast(x, self.precision, Precision.FP32), scale)
        return self.cast(x, Precision.FP32, self.residual_precision)

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

    def text_queries(self) -> _Queries:
        """All of the text's tokens, behind the prefix."""
        start = self.op("Shape", self.prefix_keys, start=2, end=3)
        end = self.op("Shape", self.keys.positions)
        tokens = self.op("Slice", self.keys.positions, start, end)  # (S,)
        ids = self.op("Expand", tokens, self.op("Shape", self.input_ids))
        return _Queries(ids, tokens, self.spec.causal)

    def mask(self, queries: _Queries, window: int | None) -> ir.Value:
        key = queries.order, window
        if key not in self.masks:
            self.masks[key] = attention_mask(
                self, queries.order, self.keys, window, of_rows=queries.order is queries.ids
            )
        return self.masks[key]

    def window(self, layer: int) -> int | None:
        """A layer's sliding window, where a sequence can be longer than it."""
        window = self.spec.window(layer)
        return window if window is not None and self.max_tokens > window else None

    def layer(self, layer: int, x: ir.Value, text: _Queries) -> ir.Value:
        module, norms = f"layers.{layer}", self.spec.of_family.norms
        normed = self.normed(x, f"{module}.{norms.before_attention}")
        attended = self.attention(layer, normed, normed, text, text)
        return self.mlp(module, self.add(x, attended, module, norms.after_attention))

    def layer_for_one_token(
        self, layer: int, x: ir.Value, pooled: ir.Value, text: _Queries
    ) -> ir.Value:
        """The last layer, (B, S, D) → (B, 1, D): keys and values of all tokens, the rest of one."""
        module, norms = f"layers.{layer}", self.spec.of_family.norms
        index = self.op("Unsqueeze", pooled, self.int64("axes_1_2", [1, 2]))  # (B, 1, 1)
        ids = self.op("GatherND", text.ids, index, batch_dims=1)  # (B, 1)
        normed = self.normed(x, f"{module}.{norms.before_attention}")
        query = self.op("GatherND", normed, index, batch_dims=1)
        attended = self.attention(layer, query, normed, _Queries(ids, ids, causal=False), text)
        x = self.op("GatherND", x, index, batch_dims=1)
        return self.mlp(module, self.add(x, attended, module, norms.after_attention))

    def attention(
        self, layer: int, query: ir.Value, context: ir.Value, queries: _Queries, text: _Queries
    ) -> ir.Value:
        spec, module, window = self.spec, f"layers.{layer}.self_attn", self.window(layer)
        q = self.turned(layer, query, "q", queries, spec.heads)
        k = self.turned(layer, context, "k", text, spec.kv_heads)
        v = self.linear(context, f"{module}.v_proj")
        prefix = [self.of_layer(x, layer) for x in (self.prefix_keys, self.prefix_values)]
        mixed = self.tape.op(
            attention.NAME,
            [q, k, v, *prefix, self.mask(queries, window)],
            {
                "num_heads": spec.heads,
                "kv_num_heads": spec.kv_heads,
                "head_dim": spec.head_dim,
                "causal": int(queries.causal),
                "window": window or 0,
                attention.SCALE: spec.score_scale,
            },
            domain=pooling.DOMAIN,
            name=f"{module}.attention",
        )
        return self.linear(mixed, f"{module}.o_proj")

    def turned(
        self, layer: int, x: ir.Value, kind: str, positions: _Queries, heads: int
    ) -> ir.Value:
        """Project to queries ("q") or keys ("k"), normalise each head if so, and turn it."""
        module = f"layers.{layer}.self_attn.{kind}"
        x = self.linear(x, f"{module}_proj")
        if self.spec.of_family.norms_heads:
            x = normed_heads(
                self, x, heads, lambda y: self.norm(y, f"{module}_norm", self.precision)
            )
        cos, sin = self.rotary_tables(layer, queries=kind == "q")
        return self.op("RotaryEmbedding", x, cos, sin, positions.ids, num_heads=heads)

    def of_layer(self, prefix: ir.Value, layer: int) -> ir.Value:
        """(K, P, head_dim) keys or values of one layer."""
        states = self.op("Gather", prefix, self.int64(f"layer_{layer}", layer), axis=0)
        return self.cast(states, Precision.FP32, self.precision)

    def mlp(self, module: str, x: ir.Value) -> ir.Value:
        family = self.spec.of_family
        normed = self.normed(x, f"{module}.{family.norms.before_mlp}")
        gate = self.linear(normed, f"{module}.mlp.gate_proj")
        up = self.linear(normed, f"{module}.mlp.up_proj")
        inner = self.op("Mul", activated(self, gate, family.activation), up)
        down = self.linear(inner, f"{module}.mlp.down_proj")
        return self.add(x, down, module, family.norms.after_mlp)

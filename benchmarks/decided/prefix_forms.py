"""The forms in which ONNX Runtime attends to a prompt that was computed ahead, on a CPU.

    python -m benchmarks.decided.prefix_forms  seven rounds; about three minutes
    python -m benchmarks.decided.prefix_forms --quick  three rounds, three shapes

One layer's attention in the model of latency.py (16 query and 4 key/value heads of 64), its keys
and values given, behind a prefix of 512 tokens whose keys and values all texts of a batch share.
Beside them stand the attention without a prefix, and the bare MatMul, Softmax, MatMul with the
prefix alone: what no form can undercut by much. All forms give the same numbers, which is checked.
"""

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import onnxruntime

from anna_export.graph.passes.cpu_attention import DOMAIN
from benchmarks.lib.forms import load
from benchmarks.lib.record import Figure, Results, main

HEADS, GROUPS, WIDTH = 16, 4, 64
SHARING: Final = HEADS // GROUPS
PREFIX: Final = 512
SHAPES: Final = ((1, 16), (1, 64), (1, 256), (32, 16), (32, 64), (32, 256))
QUICK_SHAPES: Final = ((1, 16), (32, 16), (32, 64))
CHOSEN: Final = "apart, sharing a maximum"
BARE: Final = "bare products with the prefix"
NO_PREFIX: Final = "no prefix"
MIN_SECONDS: Final = 0.2
CLOSE: Final = 1e-5


class Form:
    """Records one form of attention."""

    def __init__(self) -> None:
        self.tape = ir.tape.Tape()
        self.q = self._input("q", ["batch", "text", HEADS * WIDTH])
        self.k = self._input("k", ["batch", "text", GROUPS * WIDTH])
        self.v = self._input("v", ["batch", "text", GROUPS * WIDTH])
        self.prefix_k = self._input("prefix_k", [GROUPS, "prefix", WIDTH])
        self.prefix_v = self._input("prefix_v", [GROUPS, "prefix", WIDTH])

    @staticmethod
    def _input(name: str, shape: list[int | str]) -> ir.Value:
        return ir.val(name, dtype=ir.DataType.FLOAT, shape=shape)

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **more: Any) -> ir.Value:
        """Add a node of one output."""
        return self.tape.op(kind, list(inputs), more, domain=domain)

    def constant(self, value: object, dtype: type = np.int64) -> ir.Value:
        """Return a constant of the graph."""
        name = f"constant_{len(self.tape.initializers)}"
        return self.tape.initializer(ir.tensor(np.array(value, dtype=dtype), name=name))

    @property
    def batch(self) -> ir.Value:
        """(1,) texts."""
        return self.op("Shape", self.q, start=0, end=1)

    @property
    def text(self) -> ir.Value:
        """(1,) tokens of a text."""
        return self.op("Shape", self.q, start=1, end=2)

    def by_group(self, x: ir.Value, heads: int) -> ir.Value:
        """Turn (B, S, GROUPS * heads * WIDTH) to (B, GROUPS, heads * S, WIDTH)."""
        x = self.op("Reshape", x, self.constant([0, 0, GROUPS, heads, WIDTH]))
        x = self.op("Transpose", x, perm=[0, 2, 3, 1, 4])
        return self.op("Reshape", x, self.constant([0, GROUPS, -1, WIDTH]))

    def scores(self) -> tuple[ir.Value, ir.Value]:
        """Score queries by the prefix and by the text, which is causal: (B, GROUPS, …, P or S)."""
        q = self.op("Mul", self.by_group(self.q, SHARING), self.constant(WIDTH**-0.5, np.float32))
        on_prefix = self.op("MatMul", q, self.op("Transpose", self.prefix_k, perm=[0, 2, 1]))
        k = self.op("Transpose", self.by_group(self.k, 1), perm=[0, 1, 3, 2])
        positions = self._positions()
        later = self.op("Less", self.op("Unsqueeze", positions, self.constant([1])), positions)
        hidden = self.constant(-np.inf, np.float32)
        bias = self.op("Where", later, hidden, self.constant(0, np.float32))
        apart = self.op(
            "Concat",
            self.batch,
            self.constant([GROUPS, SHARING]),
            self.text,
            self.text,
            axis=0,
        )
        on_text = self.op("Add", self.op("Reshape", self.op("MatMul", q, k), apart), bias)
        together = self.op(
            "Concat",
            self.batch,
            self.constant([GROUPS, -1]),
            self.text,
            axis=0,
        )
        return on_prefix, self.op("Reshape", on_text, together)

    def _positions(self) -> ir.Value:
        text = self.op("Squeeze", self.text)
        return self.op("Range", self.constant(0), text, self.constant(1))

    def by_token(self, x: ir.Value) -> ir.Value:
        """Turn (B, GROUPS, SHARING * S, WIDTH) to (B, S, HEADS * WIDTH)."""
        heads = self.constant([GROUPS, SHARING])
        shape = self.op("Concat", self.batch, heads, self.text, self.constant([WIDTH]), axis=0)
        x = self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 3, 1, 2, 4])
        return self.op("Reshape", x, self.constant([0, 0, HEADS * WIDTH]))

    def session(self, output: ir.Value) -> onnxruntime.InferenceSession:
        """Load what was recorded."""
        output.dtype = ir.DataType.FLOAT
        inputs = [self.q, self.k, self.v, self.prefix_k, self.prefix_v]
        return load(inputs, output, self.tape)


def no_prefix(form: Form) -> ir.Value:
    """Attend to the text alone, by the operator that artifacts use on a CPU."""
    total = form.op("Cast", form.op("Squeeze", form.text), to=ir.DataType.INT32)
    before_last = form.op("Expand", form.op("Sub", total, form.constant(1, np.int32)), form.batch)
    inputs = [form.q, form.k, form.v, None, None, before_last, total]
    sizes = {"num_heads": HEADS, "kv_num_heads": GROUPS, "scale": WIDTH**-0.5}
    return form.tape.op_multi_out(
        "GroupQueryAttention", inputs, sizes, domain=DOMAIN, num_outputs=3
    )[0]


def concatenated(form: Form) -> ir.Value:
    """Copy the prefix's keys and values in front of each text's."""

    def joined(prefix: ir.Value, x: ir.Value) -> ir.Value:
        shape = form.op("Concat", form.batch, form.constant([1, 1, 1]), axis=0)
        copies = form.op("Expand", form.op("Unsqueeze", prefix, form.constant([0])), shape)
        return form.op("Concat", copies, form.by_group(x, 1), axis=2)

    positions = form._positions()
    causal = form.op(
        "GreaterOrEqual", form.op("Unsqueeze", positions, form.constant([1])), positions
    )
    prefix = form.op("Shape", form.prefix_k, start=1, end=2)
    visible = form.op(
        "Expand",
        form.constant([[True]], np.bool_),
        form.op("Concat", form.text, prefix, axis=0),
    )
    q = form.op("Reshape", form.q, form.constant([0, 0, HEADS, WIDTH]))
    mixed = form.op(
        "Attention",
        form.op("Transpose", q, perm=[0, 2, 1, 3]),
        joined(form.prefix_k, form.k),
        joined(form.prefix_v, form.v),
        form.op("Concat", visible, causal, axis=1),
        scale=WIDTH**-0.5,
    )
    mixed = form.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return form.op("Reshape", mixed, form.constant([0, 0, HEADS * WIDTH]))


def one_softmax(form: Form) -> ir.Value:
    """Put both scores behind one another, so that one softmax covers them."""
    on_prefix, on_text = form.scores()
    weights = form.op("Softmax", form.op("Concat", on_prefix, on_text, axis=-1), axis=-1)
    prefix = form.op("Shape", form.prefix_k, start=1, end=2)
    sizes = form.op("Concat", prefix, form.text, axis=0)
    first, second = form.tape.op_multi_out("Split", [weights, sizes], {"axis": -1}, num_outputs=2)
    mixed = form.op(
        "Add",
        form.op("MatMul", first, form.prefix_v),
        form.op("MatMul", second, form.by_group(form.v, 1)),
    )
    return form.by_token(mixed)


def shared_maximum(form: Form) -> ir.Value:
    """Take both exponentials from the larger maximum, and divide once by both sums."""
    on_prefix, on_text = form.scores()
    last = form.constant([-1])
    largest = form.op(
        "Max", form.op("ReduceMax", on_prefix, last), form.op("ReduceMax", on_text, last)
    )
    first, second = (
        form.op("Exp", form.op("Sub", scores, largest)) for scores in (on_prefix, on_text)
    )
    total = form.op("Add", form.op("ReduceSum", first, last), form.op("ReduceSum", second, last))
    mixed = form.op(
        "Add",
        form.op("MatMul", first, form.prefix_v),
        form.op("MatMul", second, form.by_group(form.v, 1)),
    )
    return form.by_token(form.op("Div", mixed, total))


def log_sum_exp(form: Form) -> ir.Value:
    """Attend twice, and weigh both results by their log-sum-exp."""
    on_prefix, on_text = form.scores()
    last = form.constant([-1])
    sums = [form.op("ReduceLogSumExp", scores, last) for scores in (on_prefix, on_text)]
    share = form.op("Sigmoid", form.op("Sub", *sums))
    first = form.op("MatMul", form.op("Softmax", on_prefix, axis=-1), form.prefix_v)
    values = form.by_group(form.v, 1)
    second = form.op("MatMul", form.op("Softmax", on_text, axis=-1), values)
    mixed = form.op("Add", second, form.op("Mul", share, form.op("Sub", first, second)))
    return form.by_token(mixed)


def bare(form: Form) -> ir.Value:
    """Attend to the prefix alone."""
    on_prefix, _ = form.scores()
    return form.by_token(form.op("MatMul", form.op("Softmax", on_prefix, axis=-1), form.prefix_v))


EQUAL: Final[dict[str, Callable[[Form], ir.Value]]] = {
    CHOSEN: shared_maximum,
    "concatenated": concatenated,
    "one softmax": one_softmax,
    "apart, merged by log-sum-exp": log_sum_exp,
}
BESIDE: Final = {NO_PREFIX: no_prefix, BARE: bare}


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    rounds = 3 if arguments.quick else 7
    sessions = {}
    for name, record_form in {**EQUAL, **BESIDE}.items():
        form = Form()
        sessions[name] = form.session(record_form(form))
    samples: dict[str, dict[str, list[float]]] = {}
    for batch, length in QUICK_SHAPES if arguments.quick else SHAPES:
        feeds = draw_feeds(batch, length)
        _require_equal(sessions, feeds)
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(rounds):
            for name, session in sessions.items():
                seconds[name].append(_seconds(session, feeds))
        samples[f"{batch} x {length}"] = seconds
    figures = [_ratio(samples, BARE, 1.5)]
    figures += [_ratio(samples, name, 1.0) for name in EQUAL if name != CHOSEN]
    return Results(figures, dict(samples))


def _ratio(samples: dict[str, dict[str, list[float]]], other: str, target: float) -> Figure:
    ratios = [
        statistics.geometric_mean(mine / theirs for mine, theirs in zip(*pairs, strict=True))
        for pairs in zip(
            zip(*(seconds[CHOSEN] for seconds in samples.values()), strict=True),
            zip(*(seconds[other] for seconds in samples.values()), strict=True),
            strict=True,
        )
    ]
    median = statistics.median(ratios)
    name = f"{CHOSEN}: time over {other}, geo. mean"
    return Figure(name, median, "x", f"<= {target}", median <= target, (min(ratios), max(ratios)))


def draw_feeds(batch: int, length: int) -> dict[str, np.ndarray]:
    """Draw queries, keys and values of texts, and of the prefix."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    return {
        "q": normal(batch, length, HEADS * WIDTH),
        "k": normal(batch, length, GROUPS * WIDTH),
        "v": normal(batch, length, GROUPS * WIDTH),
        "prefix_k": normal(GROUPS, PREFIX, WIDTH),
        "prefix_v": normal(GROUPS, PREFIX, WIDTH),
    }


def _require_equal(
    sessions: dict[str, onnxruntime.InferenceSession], feeds: dict[str, np.ndarray]
) -> None:
    outputs = {name: run_form(sessions[name], feeds) for name in EQUAL}
    for name, output in outputs.items():
        off = np.abs(output - outputs[CHOSEN]).max()
        if not off <= CLOSE:
            sys.exit(f"expected equal attention of all forms, found {name} off by {off:.1e}")


def run_form(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Run a form on those feeds that it takes."""
    names = {node.name for node in session.get_inputs()}
    return session.run(None, {name: feeds[name] for name in names})[0]


def _seconds(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> float:
    repeats, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < MIN_SECONDS or repeats < 2:
        run_form(session, feeds)
        repeats += 1
    return spent / repeats


if __name__ == "__main__":
    sys.exit(main("prefix-forms", measure, quick="Three rounds, three shapes."))

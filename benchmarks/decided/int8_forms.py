"""The forms in which ONNX Runtime multiplies 8-bit numbers on a CPU: why --int8 is what it is.

    python -m benchmarks.decided.int8_forms  seven rounds; about three minutes
    python -m benchmarks.decided.int8_forms --quick  three rounds, two lengths

One product of each width in the model of latency.py, its rounding included, in one process and in
turn. The form that --int8 uses, one activation scale a token, is held against those that it was
chosen over: it may cost a tenth more than the fastest, which are one scale for the whole batch (its
vectors depend on their neighbours) and one fixed scale (it depends on calibration).
"""

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime

from anna_export.graph.passes.cpu_attention import DOMAIN
from benchmarks.lib.forms import load
from benchmarks.lib.record import Figure, Results, main

# (inputs, outputs) of Q/K/V together, gate and up together, and down
WIDTHS: Final = ((1024, 1536), (1024, 7168), (3584, 1024))
TOKENS: Final = (16, 128, 512, 2048)
QUICK_TOKENS: Final = (16, 512)
PER_TOKEN: Final = "one scale a token"
BLOCK: Final = 128
# What the form in use may cost over the fastest.
TARGET: Final = 1.1


class Form:
    """Records the nodes of one form over a random weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.tape = ir.tape.Tape()
        self.x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["tokens", inputs])
        self._random = np.random.default_rng(0)

    def constant(self, value: object, dtype: type) -> ir.Value:
        """Return a constant of the graph."""
        name = f"constant_{len(self.tape.initializers)}"
        return self.tape.initializer(ir.tensor(np.array(value, dtype=dtype), name=name))

    def weight(self) -> ir.Value:
        """Return random codes, (in, out) int8."""
        shape = (self.inputs, self.outputs)
        return self.constant(self._random.integers(-127, 128, shape), np.int8)

    def multiply(self, codes: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
        """Multiply codes of one scale and zero point by the weight's."""
        steps = self.constant(self._random.random(self.outputs) * 1e-3, np.float32)
        zeros = self.constant(np.zeros(self.outputs), np.int8)
        inputs = [codes, self.weight(), scale, steps, zero, zeros]
        return self.tape.op("MatMulIntegerToFloat", inputs, domain=DOMAIN)

    def session(self, output: ir.Value) -> onnxruntime.InferenceSession:
        """Load what was recorded."""
        return load([self.x], output, self.tape)


def per_token(form: Form) -> ir.Value:
    """Round each token in its own scale, and multiply its outputs by it."""
    tape, last = form.tape, form.constant([-1], np.int64)
    highest = tape.op("ReduceMax", [form.x, last])
    lowest = tape.op("Neg", [tape.op("ReduceMin", [form.x, last])])
    step = form.constant(1 / 127, np.float32)
    scale = tape.op("Mul", [tape.op("Max", [highest, lowest]), step])
    zero = ir.tensor(np.array([128], dtype=np.uint8), name="zero")
    zeros = tape.op("ConstantOfShape", [tape.op("Shape", [scale])], {"value": zero})
    block = {"axis": -1, "block_size": form.inputs}
    codes = tape.op("QuantizeLinear", [form.x, scale, zeros], block)
    product = form.multiply(codes, form.constant(1, np.float32), form.constant(128, np.uint8))
    return tape.op("Mul", [product, scale])


def fixed(form: Form) -> ir.Value:
    """Round all tokens in one scale that calibration chose."""
    step, zero = form.constant(0.03, np.float32), form.constant(128, np.uint8)
    codes = form.tape.op("QuantizeLinear", [form.x, step, zero])
    return form.multiply(codes, step, zero)


def fixed_signed(form: Form) -> ir.Value:
    """Round as `fixed` does, to signed numbers."""
    step, zero = form.constant(0.03, np.float32), form.constant(0, np.int8)
    codes = form.tape.op("QuantizeLinear", [form.x, step, zero])
    return form.multiply(codes, step, zero)


def whole_batch(form: Form) -> ir.Value:
    """Round all tokens in one scale, taken from all of them."""
    codes, scale, zero = form.tape.op_multi_out("DynamicQuantizeLinear", [form.x], num_outputs=3)
    return form.multiply(codes, scale, zero)


def blocks(form: Form) -> ir.Value:
    """Round 128 numbers of a token in one scale, in the operator for weights in blocks."""
    count = form.inputs // BLOCK
    codes = np.random.default_rng(0).integers(0, 256, (form.outputs, count, BLOCK))
    steps = np.full((form.outputs, count), 1e-3)
    attributes = {"K": form.inputs, "N": form.outputs, "bits": 8, "block_size": BLOCK}
    return form.tape.op(
        "MatMulNBits",
        [form.x, form.constant(codes, np.uint8), form.constant(steps, np.float32)],
        {**attributes, "accuracy_level": 4},
        domain=DOMAIN,
    )


def in_fp32(form: Form) -> ir.Value:
    """Multiply fp32 numbers."""
    weight = np.random.default_rng(0).random((form.inputs, form.outputs))
    return form.tape.op("MatMul", [form.x, form.constant(weight, np.float32)])


FORMS: Final[dict[str, Callable[[Form], ir.Value]]] = {
    PER_TOKEN: per_token,
    "one fixed scale": fixed,
    "one fixed scale, signed": fixed_signed,
    "one scale for the batch": whole_batch,
    "blocks of 128 (MatMulNBits)": blocks,
    "fp32": in_fp32,
}


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    rounds = 3 if arguments.quick else 7
    samples: dict[str, dict[str, list[float]]] = {}
    for inputs, outputs in WIDTHS:
        sessions = {}
        for name, record_form in FORMS.items():
            form = Form(inputs, outputs)
            sessions[name] = form.session(record_form(form))
        for tokens in QUICK_TOKENS if arguments.quick else TOKENS:
            x = np.random.default_rng(0).standard_normal((tokens, inputs)).astype(np.float32)
            seconds_by_form: dict[str, list[float]] = {name: [] for name in FORMS}
            for _ in range(rounds + 1):
                for name, session in sessions.items():
                    seconds_by_form[name].append(_seconds(session, x))
            # the first round warms up
            samples[f"{tokens} x {inputs} x {outputs}"] = {
                name: seconds[1:] for name, seconds in seconds_by_form.items()
            }
    figures = []
    for name in FORMS:
        if name == PER_TOKEN:
            continue
        ratios = [
            statistics.geometric_mean(
                shape[PER_TOKEN][index] / shape[name][index] for shape in samples.values()
            )
            for index in range(rounds)
        ]
        median = statistics.median(ratios)
        spread = (min(ratios), max(ratios))
        label = f"{PER_TOKEN}: time over {name}, geo. mean"
        figures.append(Figure(label, median, "x", f"<= {TARGET}", median <= TARGET, spread))
    return Results(figures, dict(samples))


def _seconds(session: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    repeats = max(1, 512 // len(x))
    started = time.perf_counter()
    for _ in range(repeats):
        session.run(None, {"x": x})
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    sys.exit(main("int8-forms", measure, quick="Three rounds, two lengths."))

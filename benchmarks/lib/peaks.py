"""What this machine reaches in large matrix products and in reading memory: what bounds a model.

python -m benchmarks.lib.peaks  the best of several runs in 2 threads, as JSON
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from anna_export.spec import EmbeddingSpec

THREADS = 2
# a model's own large product: tokens of 8 x 256, hidden size, FFN size
ROWS, INNER, COLUMNS = 2048, 1024, 3584
READ_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations (two a multiply-add) and bytes a second."""

    fp32: float
    bf16: float
    int8: float
    read_bytes: float


def measure_peaks() -> Peaks:
    """Measure them; int8 by PyTorch or ONNX Runtime, whichever is faster."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    int_a, int_b = (t.mul(30).clamp(-127, 127).to(torch.int8) for t in (a, b))
    ort_int8 = _ort_int8(int_b.numpy())
    bytes_a = int_a.view(torch.uint8).numpy()
    operations = 2 * ROWS * INNER * COLUMNS
    array = torch.ones(READ_BYTES // 4)
    return Peaks(
        fp32=operations / _best_seconds(lambda: a @ b),
        bf16=operations / _best_seconds(lambda: half_a @ half_b),
        int8=operations
        / min(
            _best_seconds(lambda: torch._int_mm(int_a, int_b)),
            _best_seconds(lambda: ort_int8.run(None, {"a": bytes_a})),
        ),
        read_bytes=READ_BYTES / _best_seconds(lambda: array.sum()),
    )


def least_int8_seconds(spec: EmbeddingSpec, lengths: Sequence[int], peaks: Peaks) -> float:
    """Return what no int8 program on this machine can undercut, for texts of these lengths.

    Counted are the multiply-adds that the vectors depend on, all at the int8 peak (past the last
    layer's keys and values only each text's last token counts), or one reading of the weights at a
    byte each, whichever takes longer. Norms, activations, softmax and quantising cost nothing.
    """
    tokens, texts, last = sum(lengths), len(lengths), f"layers.{spec.layers - 1}."
    multiply_adds = weights = 0
    for name, shape in spec.weight_shapes().items():
        if len(shape) != 2 or not name.startswith("layers."):
            continue
        seen_by_all = not name.startswith(last) or ".k_proj" in name or ".v_proj" in name
        multiply_adds += math.prod(shape) * (tokens if seen_by_all else texts)
        weights += math.prod(shape)
    pairs = sum((spec.layers - 1) * n * (n + 1) // 2 + n for n in lengths)
    multiply_adds += 2 * spec.heads * spec.head_dim * pairs
    return max(2 * multiply_adds / peaks.int8, weights / peaks.read_bytes)


def _best_seconds(run: Callable[[], object]) -> float:
    best, until = math.inf, time.perf_counter() + 1
    while time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def _ort_int8(weight: np.ndarray) -> onnxruntime.InferenceSession:
    """One MatMulInteger, uint8 by int8, as dynamically quantised models have it."""
    a = ir.val("a", ir.DataType.UINT8, (ROWS, INNER))
    b = ir.Value(name="b", const_value=ir.tensor(weight, name="b"))
    product = ir.node("MatMulInteger", [a, b])
    product.outputs[0].name = "product"
    product.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    graph = ir.Graph(
        [a], product.outputs, nodes=[product], initializers=[b], opset_imports={"": 18}, name="peak"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    json.dump(asdict(measure_peaks()), sys.stdout)

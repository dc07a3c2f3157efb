"""fp16: weights and matrix products in 16-bit float, residual stream and norms in fp32.

On a CPU, ONNX Runtime would cast around every operator: there an fp32 fallback graph runs on the
same weights.
"""

from anna_export.quantise.scheme import WIDENED, Scheme, Thresholds
from anna_export.spec import Precision

SCHEME = Scheme(
    Precision.FP16,
    compute_dtype=Precision.FP16,
    cpu_passes=WIDENED,
    cpu_compute_label="fp32 on CPU (fallback of the fp16 graph)",
    thresholds=Thresholds(min_cosine=0.9999, batch1_min_cosine=0.9999),
)

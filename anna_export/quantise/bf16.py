"""bf16: weights and products in bfloat16, the type such models are trained in; for GPUs.

ONNX Runtime's CPU provider computes nothing in bf16: there an fp32 fallback graph runs on the
same weights.
"""

from anna_export.quantise.scheme import WIDENED, Scheme, Thresholds
from anna_export.spec import Precision

SCHEME = Scheme(
    Precision.BF16,
    compute_dtype=Precision.BF16,
    cpu_passes=WIDENED,
    cpu_compute_label="fp32 on CPU (fallback of the bf16 graph)",
    thresholds=Thresholds(min_cosine=0.9995, batch1_min_cosine=0.9999),
)

"""bf16: weights and arithmetic in bfloat16, the type such models are trained in; for GPUs.

ONNX Runtime's CPU provider has no bf16 arithmetic: there the fp32 twin of the same weights runs.
"""

from anna_export.quantise.scheme import WIDENED, Scheme, Thresholds
from anna_export.spec import Precision

SCHEME = Scheme(
    Precision.BF16,
    arithmetic=Precision.BF16,
    cpu_passes=WIDENED,
    cpu_arithmetic="fp32 on CPU (twin of the bf16 graph)",
    thresholds=Thresholds(min_cosine=0.9995, batch1_min_cosine=0.9999),
)

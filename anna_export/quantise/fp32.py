"""fp32: weights and arithmetic in 32-bit float; the default without a GPU."""

from anna_export.quantise.scheme import FUSED, Scheme, Thresholds
from anna_export.spec import Precision

SCHEME = Scheme(
    Precision.FP32,
    arithmetic=Precision.FP32,
    cpu_passes=FUSED,
    cpu_arithmetic="fp32 on CPU",
    thresholds=Thresholds(min_cosine=0.999999, batch1_min_cosine=0.999999, batch1_max_abs=1e-6),
)

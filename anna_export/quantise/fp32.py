"""fp32: weights and products in 32-bit float; the default without a GPU."""

from anna_export.quantise.scheme import FUSED, Scheme, Thresholds
from anna_export.spec import Precision

SCHEME = Scheme(
    Precision.FP32,
    compute_dtype=Precision.FP32,
    cpu_passes=FUSED,
    cpu_compute_label="fp32 on CPU",
    thresholds=Thresholds(min_cosine=0.999999, batch1_min_cosine=0.999999, batch1_max_abs=1e-6),
)

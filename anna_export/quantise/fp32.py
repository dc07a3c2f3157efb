"""fp32: weights and arithmetic in 32-bit float; the default without a GPU."""

from anna_export.quantise.scheme import FUSED, Limits, Scheme
from anna_export.spec import Precision

SCHEME = Scheme(
    Precision.FP32,
    arithmetic=Precision.FP32,
    cpu_passes=FUSED,
    cpu_arithmetic="fp32 on CPU",
    limits=Limits(worst_cosine=0.999999, alone_cosine=0.999999, alone_max_abs=1e-6),
)

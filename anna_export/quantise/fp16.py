"""fp16: weights and matrix products in 16-bit float, residual stream and norms in fp32.

On a CPU, ONNX Runtime would cast around every operator; the fp32 twin of the same weights runs.
"""

from anna_export.quantise.scheme import WIDENED, Scheme
from anna_export.spec import Precision

SCHEME = Scheme(Precision.FP16, cpu_passes=WIDENED, worst_cosine=0.9999, alone_cosine=0.9999)

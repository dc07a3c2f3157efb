"""Precisions: one scheme a file."""

from anna_export.quantise import bf16, fp16, fp32
from anna_export.quantise.scheme import Scheme
from anna_export.spec import Precision

_SCHEMES = {scheme.precision: scheme for scheme in (fp32.SCHEME, fp16.SCHEME, bf16.SCHEME)}


def load(precision: Precision) -> Scheme:
    """Return the scheme of a precision."""
    return _SCHEMES[precision]

"""Precisions: one scheme a file."""

from typing import Final

from anna_export.artifact.manifest import Manifest
from anna_export.errors import InputError
from anna_export.quantise import bf16, fp8, fp16, fp32, int4, int8
from anna_export.quantise.scheme import Scheme
from anna_export.spec import Precision

_SCHEMES: Final = {
    scheme.precision: scheme
    for scheme in (fp32.SCHEME, fp16.SCHEME, bf16.SCHEME, int8.SCHEME, int4.SCHEME, fp8.scheme())
}


def load(precision: Precision, high_precision: Precision | None = None) -> Scheme:
    """Return the scheme of a precision.

    Args:
        precision: Which one.
        high_precision: Type of what fp8 does not quantise; None for its default, bf16.

    Raises:
        InputError: If a precision other than fp8 is given one, or fp8 one that it lacks.
    """
    if high_precision is not None and precision is Precision.FP8:
        return fp8.scheme(high_precision)
    if high_precision is not None:
        raise InputError(
            f"expected `high_precision` with fp8, found it with {precision}; leave it out"
        )
    return _SCHEMES[precision]


def scheme_of(manifest: Manifest) -> Scheme:
    """Return the scheme an artifact was made by, with the bound its proof was held to."""
    quantised = manifest.quantised
    if quantised is None:
        return load(manifest.precision)
    chosen = quantised.compute_dtype if manifest.precision is Precision.FP8 else None
    scheme = load(manifest.precision, chosen)
    return scheme.with_max_loss(quantised.max_loss)

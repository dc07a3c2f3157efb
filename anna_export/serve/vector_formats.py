"""What vectors are sent as: fewer dimensions, smaller numbers, base64."""

import base64
from typing import Any, Final

import numpy as np

from anna_export.serve.schema import EmbedDtype

# int8 and uint8 span so many standard deviations of a unit vector's values, 1 / sqrt(D); values
# beyond are clipped. Fixed, so that vectors of different requests can be compared.
DEVIATIONS: Final = 4.0


def convert_vectors(
    vectors: np.ndarray,
    dimensions: int | None,
    dtype: EmbedDtype = EmbedDtype.FLOAT32,
    *,
    normalize: bool = True,
) -> np.ndarray:
    """Return vectors with the dimensions and the type of a request.

    Args:
        vectors: (N, D) float32.
        dimensions: How many to keep, before the length is made 1; None for all.
        dtype: What to write; a binary number holds eight dimensions.
        normalize: Whether to make the length 1.

    Returns:
        (N, dimensions), or (N, ceil(dimensions / 8)) for the binary types.

    Source: `quantize_embeddings` of sentence-transformers.
    """
    if dimensions is not None and dimensions < vectors.shape[1]:
        vectors = vectors[:, :dimensions]
    if normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    match dtype:
        case EmbedDtype.FLOAT32:
            return vectors
        case EmbedDtype.BINARY:
            return (np.packbits(vectors > 0, axis=1).astype(np.int16) - 128).astype(np.int8)
        case EmbedDtype.UBINARY:
            return np.packbits(vectors > 0, axis=1)
    limit = integer_limit(vectors.shape[1])
    steps = (np.clip(vectors, -limit, limit) + limit) / (2 * limit / 255)
    if dtype is EmbedDtype.UINT8:
        return steps.astype(np.uint8)
    return (steps - 128).astype(np.int8)


def integer_limit(dimensions: int) -> np.float32:
    """Return the largest value that int8 and uint8 hold; the smallest is its negative."""
    return np.float32(DEVIATIONS / np.sqrt(dimensions))


def encode_json(vector: np.ndarray, encoding: str) -> Any:
    """Return one vector as JSON holds it: numbers, or the base64 of its little-endian bytes."""
    if encoding == "base64":
        little = vector.astype(vector.dtype.newbyteorder("<"), copy=False)
        return base64.b64encode(np.ascontiguousarray(little).data).decode()
    return vector

"""How much each layer's quantisation moves the vectors, and which layers to leave unquantised."""

from collections.abc import Mapping, Sequence
from typing import Final

from anna_export.calibrate.layerwise import LayerOutputs, LayerwiseForward
from anna_export.calibrate.observe import mean_loss, quantise_layer
from anna_export.progress import Progress
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.embedding import EmbeddingFormat
from anna_export.quantise.linear import LinearFormat
from anna_export.text.batch import TokenBatch

# What is aimed at, as a share of what is allowed: losses of layers add up only roughly.
_MARGIN: Final = 0.8


def layer_sensitivity(
    forward: LayerwiseForward,
    linear: LinearFormat,
    stats: Mapping[str, ActivationStats],
    unquantized: Mapping[str, str],
    batches: Sequence[TokenBatch],
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measure, for each layer, the mean 1 - cosine when it alone is quantised.

    All variants run in one pass, so that weights are read once: layer by layer one more stream,
    which differs from the reference from that layer on.

    Returns:
        By the layer's prefix, such as "layers.3.".
    """
    reference = forward.start(*batches)
    variants: dict[str, list[LayerOutputs]] = {}
    for index, layer in forward.layers(progress=progress):
        prefix = f"layers.{index}."
        before, reference = reference, forward.advance(layer, reference)
        for name, stream in variants.items():
            variants[name] = forward.advance(layer, stream)
        on_input = quantise_layer(layer, linear, prefix, stats, unquantized).on_input
        variants[prefix] = forward.advance(layer, before, on_input)
    expected = forward.finish(reference)
    return {name: mean_loss(expected, forward.finish(stream)) for name, stream in variants.items()}


def measure_loss(
    forward: LayerwiseForward,
    linear: LinearFormat,
    stats: Mapping[str, ActivationStats],
    unquantized: Mapping[str, str],
    batches: Sequence[TokenBatch],
    progress: Progress | None = None,
    embedding: EmbeddingFormat | None = None,
) -> float:
    """Return the mean 1 - cosine of a model whose layers are quantised but for some."""
    reference, candidate = forward.start(*batches), forward.start(*batches, embedding=embedding)
    for index, layer in forward.layers(progress=progress):
        reference = forward.advance(layer, reference)
        quantized = quantise_layer(layer, linear, f"layers.{index}.", stats, unquantized)
        candidate = forward.advance(layer, candidate, quantized.on_input)
    return mean_loss(forward.finish(reference), forward.finish(candidate))


def most_sensitive_layers(
    sensitivity: Mapping[str, float], loss: float, allowed: float
) -> list[str]:
    """Choose the fewest layers without whose quantisation the loss should be small enough.

    Args:
        sensitivity: Each layer's loss, if it alone is quantised.
        loss: That of all of them together, which they are taken to share in proportion.
        allowed: The largest loss.
    """
    total = sum(sensitivity.values())
    chosen: list[str] = []
    left = total
    for name in sorted(sensitivity, key=sensitivity.__getitem__, reverse=True):
        if left <= 0 or loss * left / total <= _MARGIN * allowed:
            break
        chosen.append(name)
        left -= sensitivity[name]
    return chosen

"""How much each layer's quantisation moves the vectors, and which layers to spare."""

from collections.abc import Mapping, Sequence
from typing import Final

from anna_export.calibrate.observe import mean_loss, quantise_layer
from anna_export.calibrate.walk import Walk, Walked
from anna_export.progress import Progress
from anna_export.quantise.calibration import Seen
from anna_export.quantise.embedding import EmbeddingFormat
from anna_export.quantise.linear import LinearFormat
from anna_export.text.batch import TokenBatch

# What is aimed at, as a share of what is allowed: effects add up only roughly.
_MARGIN: Final = 0.8


def effects(
    walk: Walk,
    linear: LinearFormat,
    seen: Mapping[str, Seen],
    kept: Mapping[str, str],
    batches: Sequence[TokenBatch],
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measure, for each layer, the mean 1 - cosine when it alone is quantised.

    All variants walk together, so that weights are read once: layer by layer one more stream, which
    differs from the reference from that layer on.

    Returns:
        By the layer's prefix, such as "layers.3.".
    """
    reference = walk.start(*batches)
    variants: dict[str, list[Walked]] = {}
    for index, layer in walk.layers():
        prefix = f"layers.{index}."
        before = reference
        reference = [walk.step(layer, at) for at in reference]
        for name, stream in variants.items():
            variants[name] = [walk.step(layer, at) for at in stream]
        round_inputs = quantise_layer(layer, linear, prefix, seen, kept)
        variants[prefix] = [walk.step(layer, at, round_inputs) for at in before]
        if progress is not None:
            progress(index + 1, walk.spec.layers)
    truth = walk.finish(reference)
    return {name: mean_loss(truth, walk.finish(stream)) for name, stream in variants.items()}


def measure_loss(
    walk: Walk,
    linear: LinearFormat,
    seen: Mapping[str, Seen],
    kept: Mapping[str, str],
    batches: Sequence[TokenBatch],
    progress: Progress | None = None,
    embedding: EmbeddingFormat | None = None,
) -> float:
    """Return the mean 1 - cosine of a model whose layers are quantised but for those kept."""
    reference, candidate = walk.start(*batches), walk.start(*batches, embedding=embedding)
    for index, layer in walk.layers():
        prefix = f"layers.{index}."
        reference = [walk.step(layer, at) for at in reference]
        round_inputs = quantise_layer(layer, linear, prefix, seen, kept)
        candidate = [walk.step(layer, at, round_inputs) for at in candidate]
        if progress is not None:
            progress(index + 1, walk.spec.layers)
    return mean_loss(walk.finish(reference), walk.finish(candidate))


def layers_to_keep(effect: Mapping[str, float], loss: float, allowed: float) -> list[str]:
    """Choose the fewest layers without whose quantisation the loss should be small enough.

    Args:
        effect: Each layer's, alone.
        loss: That of all of them together, which they are taken to share in proportion.
        allowed: The largest loss.
    """
    total = sum(effect.values())
    chosen: list[str] = []
    left = total
    for name in sorted(effect, key=effect.__getitem__, reverse=True):
        if left <= 0 or loss * left / total <= _MARGIN * allowed:
            break
        chosen.append(name)
        left -= effect[name]
    return chosen

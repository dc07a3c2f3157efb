"""One layer-wise forward pass: statistics of each linear input, and what quantising costs.

Two streams pass through every layer while its weights are in memory. The reference is computed as
it is; the candidate, on held-out texts, by the weights and rounded inputs that the format makes of
them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from anna_export.calibrate.layerwise import LayerOutputs, LayerwiseForward, OnInput, linears
from anna_export.calibrate.request import CalibrationRequest
from anna_export.calibrate.state_file import CalibrationState, StateFile
from anna_export.calibrate.stats import collect_stats
from anna_export.progress import Progress
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.linear import LinearFormat
from anna_export.spec import LINEAR_INPUTS, PoolingMode
from anna_export.text.batch import TokenBatch

# Tokens that a layer's signal-to-noise ratio is measured on.
_SNR_TOKENS: Final = 512
# That of fp32 itself, near enough.
_EXACT_DECIBEL: Final = 150.0
# Modules that read the same tensor are listened to at the first of them.
_INPUT_OF: Final = {module: name for name, modules in LINEAR_INPUTS.items() for module in modules}
_FIRST_READERS: Final = {modules[0]: name for name, modules in LINEAR_INPUTS.items()}


@dataclass(frozen=True, slots=True)
class Observed:
    """What one pass measured; `loss` is the candidate's mean 1 - cosine on the held-out texts."""

    inputs: dict[str, ActivationStats]
    unquantized: dict[str, str]
    snr_db: dict[str, float]
    loss: float


@dataclass(slots=True)
class _Pass:
    """A pass that is under way: next layer, figures by full name, streams batch by batch."""

    layer: int
    stats: dict[str, ActivationStats]
    unquantized: dict[str, str]
    snr_db: dict[str, float]
    reference: list[LayerOutputs]  # calibration batches, then held-out ones
    candidate: list[LayerOutputs]  # held-out ones


def observe(
    forward: LayerwiseForward,
    request: CalibrationRequest,
    calibration: Sequence[TokenBatch],
    heldout: Sequence[TokenBatch],
    file: StateFile,
    progress: Progress | None = None,
) -> Observed:
    """Pass once through all layers.

    Args:
        forward: The model.
        request: What to calibrate for.
        calibration: What statistics are collected on.
        heldout: What the loss is measured on.
        file: Where the state is saved after every layer.
        progress: Called with the number of layers that are done.
    """
    linear = request.linear
    state = _resume(file.load(), calibration, heldout, forward.device)
    if state is None:
        reference = forward.start(*calibration, *heldout)
        candidate = forward.start(*heldout, embedding=request.embedding)
        state = _Pass(0, {}, {}, {}, reference, candidate)
    for index, layer in forward.layers(state.layer, progress):
        prefix = f"layers.{index}."
        inputs = _advance_reference(forward, layer, state, len(calibration), prefix)
        for name, x in inputs.items():
            stats = state.stats[prefix + name] = collect_stats(x)
            if (why := linear.skip_reason(x.shape[1], stats)) is not None:
                state.unquantized[prefix + name] = why
        quantized = quantise_layer(layer, linear, prefix, state.stats, state.unquantized, inputs)
        state.snr_db |= quantized.snr_db
        state.candidate = forward.advance(layer, state.candidate, quantized.on_input)
        state.layer = index + 1
        file.save(state.layer, *_to_save(state))
    expected = forward.finish(state.reference[len(calibration) :])
    loss = mean_loss(expected, forward.finish(state.candidate))
    return Observed(state.stats, state.unquantized, state.snr_db, loss)


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A layer whose weights are quantised, and what its forward pass needs beside them.

    Args:
        on_input: Rounds the inputs of its linear modules, as a hook.
        snr_db: Signal-to-noise ratios by the module's full name; empty where no inputs were given.
    """

    on_input: OnInput
    snr_db: dict[str, float]


def quantise_layer(
    layer: torch.nn.Module,
    linear: LinearFormat,
    prefix: str,
    stats: Mapping[str, ActivationStats],
    unquantized: Mapping[str, str],
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> QuantizedLayer:
    """Replace a layer's weights by what their quantised values stand for.

    Args:
        layer: Its linear weights are replaced, but for those whose input is unquantized.
        linear: How they are quantised.
        prefix: The layer's, such as "layers.3.".
        stats: Activation statistics, by full name.
        unquantized: Inputs whose layers stay as they are, by full name.
        inputs: (N, in) rows by input, to measure signal-to-noise ratios on.
    """
    snr_db = {}
    for module, layer_linear in linears(layer).items():
        name = prefix + _INPUT_OF[module]
        if name in unquantized:
            continue
        weight = linear.dequantize(linear.quantize(layer_linear.weight.detach(), stats[name]))
        if inputs is not None:
            x = inputs[_INPUT_OF[module]][:_SNR_TOKENS]
            exact = x @ layer_linear.weight.T
            noise = linear.fake_quantize_input(x, stats[name]) @ weight.T - exact
            snr_db[prefix + module] = _decibel(exact, noise)
        layer_linear.weight = torch.nn.Parameter(weight, requires_grad=False)

    def on_input(module: str, x: torch.Tensor) -> torch.Tensor | None:
        name = prefix + _INPUT_OF[module]
        return None if name in unquantized else linear.fake_quantize_input(x, stats[name])

    return QuantizedLayer(on_input, snr_db)


def mean_loss(expected: torch.Tensor, vectors: torch.Tensor) -> float:
    """Return the mean 1 - cosine between the (N, D) unit vectors of two streams."""
    return float(1 - (expected.double() * vectors.double()).sum(dim=1).mean())


def _advance_reference(
    forward: LayerwiseForward, layer: torch.nn.Module, state: _Pass, calibration: int, prefix: str
) -> dict[str, torch.Tensor]:
    """Pass the reference through a layer; return the calibration's (N, in) rows by input."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in LINEAR_INPUTS}
    head = forward.spec.head
    # past the last layer's attention, only the rows of what is pooled go on
    pruned = prefix == f"layers.{forward.spec.layers - 1}." and head.pooling is not PoolingMode.MEAN

    def recorder(outputs: LayerOutputs) -> OnInput:
        real, pooled = outputs.real(), outputs.pooled(head)

        def on_input(module: str, x: torch.Tensor) -> None:
            if module in _FIRST_READERS:
                name = _FIRST_READERS[module]
                only_pooled = pruned and name != "attention_input"
                rows[name].append(x[pooled if only_pooled else real])

        return on_input

    state.reference = [
        forward.step(layer, outputs, recorder(outputs) if index < calibration else None)
        for index, outputs in enumerate(state.reference)
    ]
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _decibel(signal: torch.Tensor, noise: torch.Tensor) -> float:
    noise_power = float(noise.square().sum())
    power = float(signal.square().sum())
    # without noise, or with an output of nothing: JSON has no infinity
    if noise_power > 0 and power > 0:
        return 10 * math.log10(power / noise_power)
    return _EXACT_DECIBEL


def _to_save(state: _Pass) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    values = {
        "stats": {name: stats.to_json() for name, stats in state.stats.items()},
        "unquantized": state.unquantized,
        "snr_db": state.snr_db,
    }
    tensors = {
        f"mean_square.{name}": stats.mean_square
        for name, stats in state.stats.items()
        if stats.mean_square is not None
    }
    for stream in ("reference", "candidate"):
        for index, outputs in enumerate(getattr(state, stream)):
            tensors[f"{stream}.{index}"] = outputs.hidden
    return values, tensors


def _resume(
    saved: CalibrationState | None,
    calibration: Sequence[TokenBatch],
    heldout: Sequence[TokenBatch],
    device: str,
) -> _Pass | None:
    if saved is None:
        return None
    values, tensors = saved.values, saved.tensors
    stats = {
        name: replace(ActivationStats(**measured), mean_square=tensors[f"mean_square.{name}"])
        for name, measured in values["stats"].items()
    }

    def stream(name: str, batches: Sequence[TokenBatch]) -> list[LayerOutputs]:
        return [
            LayerOutputs(batch, tensors[f"{name}.{index}"].to(device))
            for index, batch in enumerate(batches)
        ]

    return _Pass(
        saved.next_layer,
        stats,
        values["unquantized"],
        values["snr_db"],
        stream("reference", [*calibration, *heldout]),
        stream("candidate", heldout),
    )

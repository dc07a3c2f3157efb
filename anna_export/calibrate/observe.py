"""One walk through the layers: what each linear input looks like, and what quantising costs.

Two streams pass through every layer while its weights are in memory. The reference is computed as
it is; the candidate, on texts apart from the calibration's, by the weights and rounded inputs that
the format makes of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from anna_export.calibrate.kept_work import KeptWork, Work
from anna_export.calibrate.ranges import see
from anna_export.calibrate.request import Request
from anna_export.calibrate.walk import OnInput, Walk, Walked, linears
from anna_export.progress import Progress
from anna_export.quantise.calibration import Seen
from anna_export.quantise.linear import LinearFormat
from anna_export.spec import LINEAR_INPUTS
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
    """What a walk found; `loss` is the candidate's mean 1 - cosine on the other texts."""

    inputs: dict[str, Seen]
    kept: dict[str, str]
    snr_db: dict[str, float]
    loss: float


@dataclass(slots=True)
class _State:
    """Where the walk stands: next layer, findings by full name, streams batch by batch."""

    layer: int
    seen: dict[str, Seen]
    kept: dict[str, str]
    snr_db: dict[str, float]
    reference: list[Walked]  # calibration batches, then the others
    candidate: list[Walked]  # the others


def observe(
    walk: Walk,
    request: Request,
    calibration: Sequence[TokenBatch],
    others: Sequence[TokenBatch],
    work: KeptWork,
    progress: Progress | None = None,
) -> Observed:
    """Walk once through all layers.

    Args:
        walk: The model.
        request: What to calibrate for.
        calibration: What ranges are taken from.
        others: What the loss is measured on.
        work: Where unfinished work is kept.
        progress: Told how many layers are done.
    """
    linear = request.linear
    state = _resume(work.load(), calibration, others, walk.device)
    if state is None:
        reference = walk.start(*calibration, *others)
        candidate = walk.start(*others, embedding=request.embedding)
        state = _State(0, {}, {}, {}, reference, candidate)
    for index, layer in walk.layers(state.layer):
        prefix = f"layers.{index}."
        inputs = _advance_reference(walk, layer, state, len(calibration), prefix)
        for name, x in inputs.items():
            seen = state.seen[prefix + name] = see(x, request.ranges, linear.round_input)
            if (why := linear.reason_to_keep(x.shape[1], seen)) is not None:
                state.kept[prefix + name] = why
        round_inputs = quantise_layer(
            layer, linear, prefix, state.seen, state.kept, inputs, state.snr_db
        )
        state.candidate = [walk.step(layer, at, round_inputs) for at in state.candidate]
        state.layer = index + 1
        work.save(state.layer, *_to_save(state))
        if progress is not None:
            progress(index + 1, walk.spec.layers)
    truth = walk.finish(state.reference[len(calibration) :])
    loss = mean_loss(truth, walk.finish(state.candidate))
    return Observed(state.seen, state.kept, state.snr_db, loss)


def quantise_layer(
    layer: torch.nn.Module,
    linear: LinearFormat,
    prefix: str,
    seen: Mapping[str, Seen],
    kept: Mapping[str, str],
    inputs: Mapping[str, torch.Tensor] | None = None,
    snr_db: dict[str, float] | None = None,
) -> OnInput:
    """Replace a layer's weights by their quantised values; return what rounds their inputs.

    Args:
        layer: Its linear weights are replaced, but for those whose input is kept.
        linear: How they are quantised.
        prefix: The layer's, such as "layers.3.".
        seen: What calibration saw, by full name.
        kept: Inputs that stay, by full name.
        inputs: (N, in) rows by input, to measure signal-to-noise ratios on.
        snr_db: Takes these, by the module's full name.
    """
    for module, found in linears(layer).items():
        name = prefix + _INPUT_OF[module]
        if name in kept:
            continue
        weight = linear.restore(linear.store(found.weight.detach(), seen[name]))
        if inputs is not None and snr_db is not None:
            x = inputs[_INPUT_OF[module]][:_SNR_TOKENS]
            truth = x @ found.weight.T
            noise = linear.round_input(x, seen[name]) @ weight.T - truth
            snr_db[prefix + module] = _decibel(truth, noise)
        found.weight = torch.nn.Parameter(weight, requires_grad=False)

    def on_input(module: str, x: torch.Tensor) -> torch.Tensor | None:
        name = prefix + _INPUT_OF[module]
        return None if name in kept else linear.round_input(x, seen[name])

    return on_input


def mean_loss(truth: torch.Tensor, found: torch.Tensor) -> float:
    """Return the mean 1 - cosine between the (N, D) unit vectors of two streams."""
    return float(1 - (truth.double() * found.double()).sum(dim=1).mean())


def _advance_reference(
    walk: Walk, layer: torch.nn.Module, state: _State, calibration: int, prefix: str
) -> dict[str, torch.Tensor]:
    """Pass the reference through a layer; return the calibration's (N, in) rows by input."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in LINEAR_INPUTS}
    # past the last layer's attention, only the last token's row goes on
    pruned = prefix == f"layers.{walk.spec.layers - 1}."

    def listener(at: Walked) -> OnInput:
        real, last = at.real(), at.last()

        def on_input(module: str, x: torch.Tensor) -> None:
            if module in _FIRST_READERS:
                name = _FIRST_READERS[module]
                only_last = pruned and name != "attention_input"
                rows[name].append(x[last if only_last else real])

        return on_input

    state.reference = [
        walk.step(layer, at, listener(at) if place < calibration else None)
        for place, at in enumerate(state.reference)
    ]
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _decibel(truth: torch.Tensor, noise: torch.Tensor) -> float:
    power = float(noise.square().sum())
    signal = float(truth.square().sum())
    # without noise, or with an output of nothing: JSON has no infinity
    return 10 * math.log10(signal / power) if power > 0 and signal > 0 else _EXACT_DECIBEL


def _to_save(state: _State) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    values = {
        "seen": {name: seen.to_json() for name, seen in state.seen.items()},
        "kept": state.kept,
        "snr_db": state.snr_db,
    }
    tensors = {
        f"mean_square.{name}": seen.mean_square
        for name, seen in state.seen.items()
        if seen.mean_square is not None
    }
    for stream in ("reference", "candidate"):
        for place, at in enumerate(getattr(state, stream)):
            tensors[f"{stream}.{place}"] = at.hidden
    return values, tensors


def _resume(
    work: Work | None,
    calibration: Sequence[TokenBatch],
    others: Sequence[TokenBatch],
    device: str,
) -> _State | None:
    if work is None:
        return None
    seen = {
        name: replace(Seen(**found), mean_square=work.tensors[f"mean_square.{name}"])
        for name, found in work.values["seen"].items()
    }

    def stream(name: str, batches: Sequence[TokenBatch]) -> list[Walked]:
        return [
            Walked(batch, work.tensors[f"{name}.{place}"].to(device))
            for place, batch in enumerate(batches)
        ]

    return _State(
        work.next_layer,
        seen,
        work.values["kept"],
        work.values["snr_db"],
        stream("reference", [*calibration, *others]),
        stream("candidate", others),
    )

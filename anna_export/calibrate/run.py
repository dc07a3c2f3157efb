"""The procedure: split the texts, pass through the layers, leave the most sensitive ones alone."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from anna_export.calibrate.layerwise import LayerwiseForward
from anna_export.calibrate.observe import Observed, observe
from anna_export.calibrate.request import CalibrationRequest
from anna_export.calibrate.sensitivity import (
    layer_sensitivity,
    measure_loss,
    most_sensitive_layers,
)
from anna_export.calibrate.state_file import StateFile
from anna_export.calibrate.texts import CalibrationTexts
from anna_export.machine.versions import installed
from anna_export.progress import Stage
from anna_export.quantise.calibration import Calibration
from anna_export.quantise.footprint import calibration_bytes
from anna_export.spec import LINEAR_INPUTS
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits, batches_by_length
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint

# Tokens passed through a layer at once, and through all variants of the sensitivity pass.
_BATCH_TOKENS = 4096
_SENSITIVITY_TEXTS = 4
# One text in this many is not calibrated on: the loss is measured there.
_HELDOUT_SHARE = 5
# Rounds of leaving more layers alone, each aiming lower: their losses add up only roughly.
_ROUNDS = 3


def calibrate(
    checkpoint: Checkpoint,
    texts: CalibrationTexts,
    tokeniser: Tokeniser,
    request: CalibrationRequest,
    stage: Stage,
) -> Calibration:
    """Calibrate a checkpoint, one layer in memory at a time.

    An interrupted run is resumed at the layer it was at, from `request.state_folder`, which stays
    for its caller to remove.

    Args:
        checkpoint: Base and adapter.
        texts: What to calibrate on, and, one in five, to measure the loss on.
        tokeniser: The model's.
        request: What to calibrate for.
        stage: Shows how far it is.
    """
    forward = LayerwiseForward(checkpoint, _device(checkpoint, texts.tokens))
    calibration, heldout = _split(texts.rows)
    batches, heldout_batches = _batches(calibration, tokeniser), _batches(heldout, tokeniser)
    file = StateFile(request.state_folder, _task(checkpoint, texts, request))
    with stage("calibrate", "layers") as progress:
        observed = observe(forward, request, batches, heldout_batches, file, progress)
    if observed.loss > request.max_loss:
        shortest = _batches(sorted(heldout, key=len)[:_SENSITIVITY_TEXTS], tokeniser)
        observed = promote_sensitive_layers(
            forward, observed, shortest, heldout_batches, request, stage
        )
    return Calibration(
        texts_sha256=texts.sha256,
        texts=len(texts.rows),
        tokens=texts.tokens,
        inputs=observed.inputs,
        unquantized=observed.unquantized,
        snr_db=observed.snr_db,
        loss=observed.loss,
    )


def promote_sensitive_layers(
    forward: LayerwiseForward,
    observed: Observed,
    samples: Sequence[TokenBatch],
    heldout: Sequence[TokenBatch],
    request: CalibrationRequest,
    stage: Stage,
) -> Observed:
    """Leave the most sensitive layers in high precision, until the loss is what is allowed.

    Args:
        forward: The model.
        observed: What was measured when all layers were quantised.
        samples: What each layer's sensitivity is measured on.
        heldout: What the loss is measured on.
        request: What to calibrate for.
        stage: Shows how far it is.
    """
    linear, inputs = request.linear, observed.inputs
    with stage("find sensitive layers", "layers") as progress:
        sensitivity = layer_sensitivity(
            forward, linear, inputs, observed.unquantized, samples, progress
        )
    promoted, input_of = observed, forward.spec.linear_modules()
    for attempt in range(_ROUNDS):
        allowed = request.max_loss / 2**attempt
        reasons = {
            f"{prefix}{name}": "quantised alone, this layer moves vectors by "
            f"{sensitivity[prefix]:.2e} (1 - cosine)"
            for prefix in most_sensitive_layers(sensitivity, observed.loss, allowed)
            for name in LINEAR_INPUTS
            if f"{prefix}{name}" not in observed.unquantized
        }
        unquantized = observed.unquantized | reasons
        with stage("measure what is left", "layers") as progress:
            loss = measure_loss(
                forward, linear, inputs, unquantized, heldout, progress, request.embedding
            )
        snr_db = {
            module: value
            for module, value in observed.snr_db.items()
            if input_of[module] not in unquantized
        }
        promoted = replace(observed, unquantized=unquantized, snr_db=snr_db, loss=loss)
        if loss <= request.max_loss:
            break
    return promoted


def _device(checkpoint: Checkpoint, tokens: int) -> str:
    """Return "cuda" where it holds one layer and the tokens' activations, else "cpu"."""
    needed = calibration_bytes(checkpoint.spec, tokens)
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed
    return "cuda" if fits else "cpu"


def _split(rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Split into rows to calibrate on and rows held out; a few serve for both."""
    if len(rows) < _HELDOUT_SHARE:
        return rows, rows
    calibration = [row for index, row in enumerate(rows) if index % _HELDOUT_SHARE]
    return calibration, rows[::_HELDOUT_SHARE]


def _batches(rows: Sequence[Sequence[int]], tokeniser: Tokeniser) -> list[TokenBatch]:
    groups = batches_by_length([len(row) for row in rows], BatchLimits(_BATCH_TOKENS))
    pad_id = tokeniser.framing.pad_id
    return [TokenBatch.of_rows([rows[index] for index in group], pad_id) for group in groups]


def _task(checkpoint: Checkpoint, texts: CalibrationTexts, request: CalibrationRequest) -> str:
    """Identify the calibration: a state saved for another model, format or text is not resumed."""
    files = sorted({tensor.path.resolve() for tensor in checkpoint.base.values()})
    task = [
        # hashing gigabytes would take longer than the work of a few layers
        [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files],
        checkpoint.source_hashes(),
        texts.sha256,
        repr(request.linear),
        repr(request.embedding),
        installed(),
    ]
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()

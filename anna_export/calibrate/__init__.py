"""Calibration: what a quantised scheme must know of a model, learnt layer by layer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from anna_export.calibrate.kept_work import KeptWork
from anna_export.calibrate.observe import Observed, observe
from anna_export.calibrate.request import Request
from anna_export.calibrate.sensitivity import effects, layers_to_keep, measure_loss
from anna_export.calibrate.texts import CalibrationTexts
from anna_export.calibrate.walk import Walk
from anna_export.machine.versions import installed
from anna_export.progress import Stage
from anna_export.quantise.calibration import Calibration
from anna_export.quantise.footprint import calibration_bytes
from anna_export.spec import LINEAR_INPUTS
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits, batches_by_length
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint

# Tokens passed through a layer at once, and through all variants of the sensitivity walk.
_BATCH_TOKENS = 4096
_SENSITIVITY_TEXTS = 4
# One text in this many is not calibrated on: the loss is measured there.
_OTHERS_SHARE = 5
# Rounds of keeping more layers, each aiming lower: effects add up only roughly.
_ROUNDS = 3


def calibrate(
    checkpoint: Checkpoint,
    texts: CalibrationTexts,
    tokeniser: Tokeniser,
    request: Request,
    stage: Stage,
) -> Calibration:
    """Calibrate a checkpoint, one layer in memory at a time.

    An interrupted run goes on at the layer it was at, from the folder `request.work`, which stays
    for its caller to remove.

    Args:
        checkpoint: Base and adapter.
        texts: What to calibrate on, and, one in five, to measure the loss on.
        tokeniser: The model's.
        request: What to calibrate for.
        stage: Shows how far it is.
    """
    walk = Walk(checkpoint, _device(checkpoint, texts.tokens))
    calibration, others = _split(texts.rows)
    batches, other_batches = _batches(calibration, tokeniser), _batches(others, tokeniser)
    work = KeptWork(request.work, _task(checkpoint, texts, request))
    with stage("calibrate", "layers") as progress:
        found = observe(walk, request, batches, other_batches, work, progress)
    few = _batches(sorted(others, key=len)[:_SENSITIVITY_TEXTS], tokeniser)
    found = _spare(walk, found, few, other_batches, request, stage)
    return Calibration(
        texts_sha256=texts.sha256,
        texts=len(texts.rows),
        tokens=texts.tokens,
        ranges=request.ranges,
        inputs=found.inputs,
        kept=found.kept,
        snr_db=found.snr_db,
        loss=found.loss,
    )


def _spare(
    walk: Walk,
    found: Observed,
    few: Sequence[TokenBatch],
    others: Sequence[TokenBatch],
    request: Request,
    stage: Stage,
) -> Observed:
    """Keep the most sensitive layers in high precision, until the loss is what is allowed.

    Args:
        walk: The model.
        found: What was found when all layers were quantised.
        few: What each layer's own effect is measured on.
        others: What the loss is measured on.
        request: What to calibrate for.
        stage: Shows how far it is.
    """
    if found.loss <= request.allowed:
        return found
    with stage("find sensitive layers", "layers") as progress:
        effect = effects(walk, request.linear, found.inputs, found.kept, few, progress)
    spared, input_of = found, walk.spec.linear_modules()
    for attempt in range(_ROUNDS):
        chosen = layers_to_keep(effect, found.loss, request.allowed / 2**attempt)
        kept = found.kept | {
            f"{prefix}{name}": f"quantised alone, this layer moves vectors by {effect[prefix]:.2e} "
            "(1 - cosine)"
            for prefix in chosen
            for name in LINEAR_INPUTS
            if f"{prefix}{name}" not in found.kept
        }
        with stage("measure what is left", "layers") as progress:
            loss = measure_loss(
                walk,
                request.linear,
                found.inputs,
                kept,
                others,
                progress,
                request.embedding,
            )
        snr_db = {
            module: value for module, value in found.snr_db.items() if input_of[module] not in kept
        }
        spared = replace(found, kept=kept, snr_db=snr_db, loss=loss)
        if loss <= request.allowed:
            break
    return spared


def _device(checkpoint: Checkpoint, tokens: int) -> str:
    """Return "cuda" where it holds one layer and the tokens' activations, else "cpu"."""
    needed = calibration_bytes(checkpoint.spec, tokens)
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed
    return "cuda" if fits else "cpu"


def _split(rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Split into rows to calibrate on and rows to measure on; a few serve for both."""
    if len(rows) < _OTHERS_SHARE:
        return rows, rows
    others = rows[::_OTHERS_SHARE]
    return [row for place, row in enumerate(rows) if place % _OTHERS_SHARE], others


def _batches(rows: Sequence[Sequence[int]], tokeniser: Tokeniser) -> list[TokenBatch]:
    groups = batches_by_length([len(row) for row in rows], BatchLimits(_BATCH_TOKENS))
    return [tokeniser.batch([rows[place] for place in group]) for group in groups]


def _task(checkpoint: Checkpoint, texts: CalibrationTexts, request: Request) -> str:
    """Identify the work: what was begun for another model, format or text is not gone on with."""
    files = sorted({tensor.path.resolve() for tensor in checkpoint.base.values()})
    task = [
        # hashing gigabytes would take longer than the work of a few layers
        [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files],
        checkpoint.source_hashes(),
        texts.sha256,
        repr(request.linear),
        repr(request.embedding),
        request.ranges,
        installed(),
    ]
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()

"""Calibration: a layer-wise pass measures what hooks on the whole model do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anna_export.calibrate.layerwise import LayerwiseForward
from anna_export.calibrate.observe import Observed, observe
from anna_export.calibrate.request import CalibrationRequest
from anna_export.calibrate.state_file import StateFile
from anna_export.quantise.embedding import Int8PerRow
from anna_export.quantise.int8 import Int8PerToken
from anna_export.reference.load import open_reference
from anna_export.spec import LINEAR_INPUTS
from anna_export.text.batch import TokenBatch
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeAdapter, MakeBatch, MakeModel

LAYERS, WINDOW = 3, 8
LINEAR, TABLE = Int8PerToken(), Int8PerRow()
FIRST_READERS = {modules[0]: name for name, modules in LINEAR_INPUTS.items()}


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its adapter and batches to calibrate and measure with."""

    checkpoint: Checkpoint
    calibration: list[TokenBatch]
    heldout: list[TokenBatch]

    def observe(self, work: Path) -> Observed:
        forward = LayerwiseForward(self.checkpoint)
        file = StateFile(work, "task")
        request = CalibrationRequest(LINEAR, TABLE, max_loss=1, state_folder=work)
        return observe(forward, request, self.calibration, self.heldout, file)


@pytest.fixture(scope="module", params=[4096, WINDOW], ids=["no window", "window"])
def case(
    request: pytest.FixtureRequest,
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    make_batch: MakeBatch,
) -> Case:
    model = make_model(initializer_range=0.2, sliding_window=request.param)
    checkpoint = Checkpoint.open(model, make_adapter(model))
    calibration = [make_batch(17, 3, 33), make_batch(40, 39, seed=1)]
    return Case(checkpoint, calibration, [make_batch(9, 31, 5, seed=2)])


@pytest.fixture(scope="module")
def reference_model(case: Case) -> Any:
    """The whole reference, its adapter unmerged."""
    (adapter,) = case.checkpoint.adapters
    return open_reference(case.checkpoint.folder, adapter.folder).backend.model


@pytest.fixture(scope="module")
def observed(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    return case.observe(tmp_path_factory.mktemp("work") / "work")


@pytest.fixture(scope="module")
def inputs(case: Case, reference_model: Any) -> dict[str, torch.Tensor]:
    """By linear input, what hooks on the whole model see of the tokens that count, (N, in)."""
    recorded: dict[str, list[torch.Tensor]] = {}
    handles = []
    for layer in range(LAYERS):
        for module, name in FIRST_READERS.items():
            parts = recorded[f"layers.{layer}.{name}"] = []
            handles.append(
                reference_model.get_submodule(f"layers.{layer}.{module}").register_forward_pre_hook(
                    lambda _, inputs, parts=parts: parts.append(inputs[0])
                )
            )
    for batch in case.calibration:
        with torch.inference_mode():
            reference_model(
                torch.from_numpy(batch.ids), torch.from_numpy(batch.mask), use_cache=False
            )
    for handle in handles:
        handle.remove()
    rows = {}
    for name, parts in recorded.items():
        # past the last attention, only the last token goes on
        pruned = name.startswith(f"layers.{LAYERS - 1}.") and not name.endswith("attention_input")
        rows[name] = torch.cat(
            [
                x[row, length - 1 : length] if pruned else x[row, :length]
                for x, batch in zip(parts, case.calibration, strict=True)
                for row, length in enumerate(batch.lengths)
            ]
        )
    return rows


def test_streamed_figures_are_those_of_hooks_on_the_whole_model(
    observed: Observed, inputs: dict[str, torch.Tensor]
) -> None:
    assert observed.inputs.keys() == inputs.keys()
    for name, x in inputs.items():
        stats = observed.inputs[name]
        # the adapter is merged on one side, unmerged on the other; all in fp32
        assert stats.amax == stats.clip_amax == pytest.approx(float(x.abs().max()), rel=1e-4), name
        assert stats.median == pytest.approx(float(x.abs().median()), rel=1e-4), name
        assert stats.mean_square is not None
        torch.testing.assert_close(stats.mean_square, x.square().mean(dim=0), rtol=1e-4, atol=1e-7)


def test_signal_to_noise_is_that_of_the_rounded_product(
    observed: Observed, inputs: dict[str, torch.Tensor], case: Case
) -> None:
    modules = case.checkpoint.spec.linear_modules()
    assert observed.snr_db.keys() == modules.keys()
    for module, name in modules.items():
        weight = case.checkpoint.read(f"{module}.weight", torch.float32)
        truth = (inputs[name] @ weight.T).double()
        rounded = (
            LINEAR.fake_quantize_input(inputs[name]) @ LINEAR.dequantize(LINEAR.quantize(weight)).T
        )
        expected = 10 * torch.log10(truth.square().sum() / (rounded - truth).square().sum())
        # as above, and the odd rounding turns over
        assert observed.snr_db[module] == pytest.approx(float(expected), abs=0.2), module
        assert 20 < observed.snr_db[module] < 60


@contextmanager
def emulated(model: Any, checkpoint: Checkpoint) -> Iterator[Any]:
    """Give the whole model over what the formats make of weights and inputs."""
    named = {f"{name}.weight": module for name, module in model.named_modules()}
    handles, originals = [], {}
    for name in checkpoint.spec.weight_shapes():
        module, weight = named[name], checkpoint.read(name, torch.float32)
        if isinstance(module, torch.nn.Linear):
            weight = LINEAR.dequantize(LINEAR.quantize(weight))
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, inputs: LINEAR.fake_quantize_input(inputs[0])
                )
            )
        elif isinstance(module, torch.nn.Embedding):
            weight = TABLE.dequantize(TABLE.quantize(weight))
        originals[name], module.weight = (
            module.weight,
            torch.nn.Parameter(weight, requires_grad=False),
        )
    yield model
    for handle in handles:
        handle.remove()
    for name, weight in originals.items():
        named[name].weight = weight


def test_loss_is_that_of_the_whole_emulated_model_embedding_included(
    observed: Observed, case: Case
) -> None:
    from anna_export.reference.backend import PytorchBackend

    plain = open_reference(case.checkpoint.folder)
    spec, model = case.checkpoint.spec, plain.backend.model
    (adapter,) = case.checkpoint.adapters
    reference = open_reference(case.checkpoint.folder, adapter.folder).backend
    cosines = []
    with emulated(model, case.checkpoint) as quantised:
        for batch in case.heldout:
            vectors = PytorchBackend(quantised, spec, "").run(batch).astype(np.float64)
            cosines.append((vectors * reference.run(batch)).sum(axis=1))
    expected = 1 - np.concatenate(cosines).mean()
    # roundings that turn over move it a little; the embedding alone is more than that
    assert observed.loss == pytest.approx(expected, rel=0.02)

"""Sensitivity: the layer that spoils vectors is spared, and the loss then is what was asked."""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import CARD_FILE
from anna_export.calibrate.layerwise import LayerwiseForward
from anna_export.calibrate.sensitivity import layer_sensitivity, most_sensitive_layers
from anna_export.cli import run
from anna_export.console.output import stage
from anna_export.export.pipeline import Exported, export
from anna_export.export.recipe import Recipe
from anna_export.quantise.calibration import ActivationStats, Calibration, read_calibration
from anna_export.quantise.int8 import Int8PerToken
from anna_export.quantise.options import Int8
from anna_export.reference.encoder import LibraryBackend
from anna_export.reference.load import open_reference
from anna_export.spec import LINEAR_INPUTS, Precision
from anna_export.text.batch import TokenBatch
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeArtifact, MakeBatch, MakeModel, Refused

FAST = settings(max_examples=60, derandomize=True, deadline=None)
LAYERS, BAD = 3, 1
LINEAR = Int8PerToken()


@pytest.fixture(scope="module")
def spoilt(make_model: MakeModel) -> Path:
    """A model with one enormous channel in front of a down_proj, which takes it back."""
    model = make_model(initializer_range=0.2)
    weights = load_file(model / "model.safetensors")
    # a token's step follows its largest value: the other channels round to nothing
    weights[f"layers.{BAD}.mlp.up_proj.weight"][5] *= 1e4
    weights[f"layers.{BAD}.mlp.down_proj.weight"][:, 5] /= 1e4
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.fixture(scope="module")
def spared(spoilt: Path, few_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("spared") / "out"
    return export(Recipe(spoilt, None, out, Int8(few_texts), 64), stage)


def calibration_of(artifact: Artifact) -> Calibration:
    calibration = read_calibration(artifact)
    assert calibration is not None and calibration.loss is not None
    return calibration


def inputs_of(layer: int) -> set[str]:
    return {f"layers.{layer}.{name}" for name in LINEAR_INPUTS}


# -- the spoilt layer --


def test_spoilt_layer_alone_is_kept_and_the_loss_holds(spared: Exported) -> None:
    calibration = calibration_of(spared.artifact)
    assert calibration.unquantized.keys() == inputs_of(BAD)
    assert calibration.loss is not None and calibration.loss <= 0.01
    assert spared.parity is not None and spared.parity.verdict == "pass"
    assert spared.parity.loss <= 0.01 == spared.parity.thresholds.max_loss


def test_layer_is_kept_for_a_reason_that_manifest_and_card_give(spared: Exported) -> None:
    manifest = open_artifact(spared.artifact.folder, check=True).manifest.quantised
    unquantized = calibration_of(spared.artifact).unquantized
    assert manifest is not None and manifest.unquantized == unquantized
    (why,) = set(unquantized.values())
    assert why.startswith("quantised alone, this layer moves vectors by ")
    assert float(why.split("by ")[1].split()[0]) > 0.01
    card = (spared.artifact.folder / CARD_FILE).read_text()
    assert all(f"- `{name}`: {why}\n" in card for name in unquantized)


def test_kept_layers_are_shown_with_their_reason(
    spared: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(spared.artifact.folder), "--layers"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for layer in range(LAYERS):
        for modules in LINEAR_INPUTS.values():
            for module in modules:
                line = lines[f"layers.{layer}.{module}"]
                assert ("not quantised: quantised alone, this layer" in line) == (layer == BAD)
                assert line.endswith(" dB") == (layer != BAD)
    assert run(["inspect", str(spared.artifact.folder)]) == 0
    assert "4 linear inputs stay in fp32 (--layers: which and why)" in capsys.readouterr().out


def test_ratios_of_kept_layers_are_not_told(spared: Exported) -> None:
    measured = {name.rsplit(".", 2)[0] for name in calibration_of(spared.artifact).snr_db}
    assert not any(name.startswith(f"layers.{BAD}") for name in measured) and len(measured) > 0


def test_bound_of_1_turns_it_off(
    spoilt: Path, few_texts: Path, make_artifact: MakeArtifact
) -> None:
    artifact = make_artifact(spoilt, Precision.INT8, calibration=few_texts, max_loss=1.0)
    calibration = calibration_of(artifact)
    assert not calibration.unquantized
    # without this, there would be nothing to spare
    assert calibration.loss is not None and calibration.loss > 0.02


def test_bound_out_of_reach_is_exit_1_and_the_artifact_is_kept_apart(
    spoilt: Path, few_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["--model", spoilt, "--out", out, "--int8", "--max-tokens", 64, "--json"]
    command += ["--calibration", few_texts, "--max-loss", 1e-9]
    assert run([str(part) for part in command]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "mean loss (1 - cosine) " in captured.err
    assert "is above 1e-09" in captured.err and str(tmp_path / "out.rejected") in captured.err
    printed = json.loads(captured.out)
    parity = printed["parity"]
    assert parity["verdict"] == "fail" and parity["thresholds"]["max_loss"] == 1e-9
    assert {path.name for path in tmp_path.iterdir()} == {"out.rejected"}
    rejected = open_artifact(tmp_path / "out.rejected", check=True)
    # all was tried
    assert calibration_of(rejected).unquantized.keys() == set.union(*map(inputs_of, range(LAYERS)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fp32"], "expected --max-loss with fp8, int8 or int4, found it with fp32"),
        (["--bf16"], "expected --max-loss with fp8, int8 or int4, found it with bf16"),
    ],
)
def test_bound_on_the_loss_of_a_float_is_refused(
    base: Path, root: Path, refused: Refused, options: list[str], expected: str
) -> None:
    line = refused("--model", base, "--out", root / "out", *options, "--max-loss", "0.1")
    assert line.startswith(expected) and "held to a worst cosine" in line


@pytest.mark.parametrize("value", ["0", "-0.1", "nan", "1.001", "inf"])
@pytest.mark.parametrize("precision", ["--int8", "--fp8", "--int4"])
def test_bound_that_is_no_loss_is_refused(
    base: Path, root: Path, refused: Refused, precision: str, value: str
) -> None:
    line = refused("--model", base, "--out", root / "out", precision, "--max-loss", value)
    assert line == f"expected --max-loss above 0 and at most 1, found {float(value)}"


# -- sensitivity of layers --


def stats_of_anything() -> dict[str, ActivationStats]:
    """What int8 needs of calibration: nothing."""
    names = set.union(*map(inputs_of, range(LAYERS)))
    return {name: ActivationStats(1.0, 1.0, 1.0) for name in names}


@pytest.fixture(scope="module")
def batches(make_batch: MakeBatch) -> list[TokenBatch]:
    return [make_batch(9, 3, 20), make_batch(31, seed=1)]


def emulate_layer(model: Any, layer: int, unquantized: Mapping[str, str]) -> None:
    """Quantise one layer of a whole model of transformers, in place."""
    for name, modules in LINEAR_INPUTS.items():
        for module in modules:
            linear = model.get_submodule(f"layers.{layer}.{module}")
            if f"layers.{layer}.{name}" not in unquantized:
                weight = LINEAR.dequantize(LINEAR.quantize(linear.weight.detach()))
                linear.weight = torch.nn.Parameter(weight, requires_grad=False)
                linear.register_forward_pre_hook(
                    lambda _, inputs: LINEAR.fake_quantize_input(inputs[0])
                )


@pytest.mark.parametrize(
    "unquantized", [{}, {f"layers.{BAD}.mlp_inner": "told so"}], ids=["all", "kept"]
)
def test_effect_of_a_layer_is_that_of_a_model_with_it_alone_quantised(
    spoilt: Path, batches: list[TokenBatch], unquantized: dict[str, str]
) -> None:
    checkpoint = Checkpoint.open(spoilt)
    reported: list[tuple[int, int]] = []
    sensitivity = layer_sensitivity(
        LayerwiseForward(checkpoint),
        LINEAR,
        stats_of_anything(),
        unquantized,
        batches,
        lambda *at: reported.append(at),
    )
    assert reported == [(layer + 1, LAYERS) for layer in range(LAYERS)]
    reference = open_reference(spoilt).backend
    truths = [reference.run(batch).astype(np.float64) for batch in batches]
    for layer in range(LAYERS):
        backend = copy.deepcopy(reference)
        assert isinstance(backend, LibraryBackend)
        emulate_layer(backend.model, layer, unquantized)
        cosines = [
            (backend.run(batch) * truth).sum(axis=1)
            for batch, truth in zip(batches, truths, strict=True)
        ]
        expected = 1 - float(np.concatenate(cosines).mean())
        # fp32 on both sides; the odd rounding turns over
        assert sensitivity[f"layers.{layer}."] == pytest.approx(expected, rel=0.02, abs=1e-6), layer
    worst = max(sensitivity, key=sensitivity.__getitem__)
    assert (worst == f"layers.{BAD}." and sensitivity[worst] > 0.02) == (not unquantized)


def test_unproved_artifact_that_lost_too_much_is_said_to_be(
    spoilt: Path, few_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model", spoilt, "--out", tmp_path / "out", "--int8", "--calibration", few_texts]
    printed = {}
    for allowed in ("1e-9", "1"):
        more = ["--no-verify", "--overwrite", "--max-loss", allowed]
        assert run([str(arg) for arg in (*args, *more)]) == 0
        printed[allowed] = capsys.readouterr().out
    assert re.search(
        r"not verified \(--no-verify\); calibration found a mean loss \(1 - cosine\) of "
        r"\d\.\d\de-\d\d, above 1e-09",
        printed["1e-9"],
    )
    assert "not verified (--no-verify)\n" in printed["1"]


# -- which to keep --

EFFECTS = st.dictionaries(
    st.integers(0, 99).map("layers.{}.".format), st.floats(1e-9, 1), min_size=1, max_size=12
)


@FAST
@given(effect=EFFECTS, loss=st.floats(1e-6, 1), allowed=st.floats(1e-6, 1))
def test_fewest_layers_are_kept_that_leave_a_fifth_of_room(
    effect: dict[str, float], loss: float, allowed: float
) -> None:
    chosen = most_sensitive_layers(effect, loss, allowed)

    def left(layers: list[str]) -> float:
        """The loss that is left, if it is shared as the effects are."""
        return loss * (1 - sum(effect[name] for name in layers) / sum(effect.values()))

    assert left(chosen) <= 0.8 * allowed + 1e-9
    assert not chosen or left(chosen[:-1]) > 0.8 * allowed - 1e-9
    # the worst first
    others = [effect[name] for name in effect if name not in chosen]
    assert min((effect[name] for name in chosen), default=1) >= max(others, default=0)


def test_layers_without_effect_are_not_kept() -> None:
    assert most_sensitive_layers({"layers.0.": 0.0, "layers.1.": 0.0}, 0.5, 0.1) == []

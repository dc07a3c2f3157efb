"""TensorRT-RTX builds engines of every family without a GPU; skipped where it is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anna_export.choices import Target
from anna_export.engines.build import build
from anna_export.engines.capability import Capability
from anna_export.engines.request import EngineRequest
from anna_export.progress import no_stage
from anna_export.spec import FAMILIES, Precision
from tests.support.families import BOTH_WAYS, CONFIGS, write_model
from tests.support.shared import SharedFolders
from tests.support.types import MakeArtifact

pytest.importorskip("tensorrt_rtx")

ADA, BLACKWELL = Capability(8, 9), Capability(12, 0)
# heads of a size that fused attention takes, a window that texts pass
NUMBERS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": 0.1,
}
ONE_LAYER_TYPE_EACH = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.fixture(scope="module")
def model(shared_folders: SharedFolders) -> Callable[[str, str], Path]:
    def make(family: str, mask: str) -> Path:
        changes = dict(NUMBERS)
        if "layer_types" in CONFIGS[family]:
            changes |= ONE_LAYER_TYPE_EACH
        if mask == "both ways":
            changes |= BOTH_WAYS[family]

        def write(folder: Path) -> None:
            write_model(folder, family, **changes)

        return shared_folders.folder("rtx family", write, family, mask)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
@pytest.mark.parametrize("mask", ["causal", "both ways"])
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_of_every_family_are_fused_and_in_fp8_as_meant(
    model: Callable[[str, str], Path],
    make_artifact: MakeArtifact,
    few_texts: Path,
    family: str,
    mask: str,
    precision: Precision,
) -> None:
    fp8 = {"max_loss": 1, "calibration": few_texts} if precision is Precision.FP8 else {}
    artifact = make_artifact(model(family, mask), precision, max_tokens=128, **fp8)
    request = EngineRequest(Target.TENSORRT_RTX, (ADA, BLACKWELL))
    for record in build(artifact, request, no_stage).records.values():
        assert record.fusion_report == ()
        assert record.layers["fused attention"] == 2

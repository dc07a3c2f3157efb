"""Which GPU, which shapes, and what is said of a table of layers."""

from typing import Any

import pytest

from anna_export.choices import Target
from anna_export.engines.builder import require_kernels
from anna_export.engines.capability import Capability, choose, read_capability
from anna_export.engines.layers import fusion_report, read_layers, summary
from anna_export.engines.profiles import choose_profiles
from anna_export.engines.request import EngineRequest
from anna_export.errors import InputError
from anna_export.machine.gpu import Device
from anna_export.spec import EmbeddingSpec

SPEC = EmbeddingSpec(100, 8, 16, 2, 2, 1, 4, 1e-5, 1e4, 64, None)
ADA, BLACKWELL, AMPERE = Capability(8, 9), Capability(12, 0), Capability(8, 0)
RTX, TENSORRT = Target.TENSORRT_RTX, Target.TENSORRT


@pytest.mark.parametrize(("text", "name"), [("8.9", "sm_89"), ("12.0", "sm_120")])
def test_capability_reads_as_it_prints(text: str, name: str) -> None:
    capability = read_capability(text)
    assert str(capability) == text and capability.name == name


@pytest.mark.parametrize("text", ["", "8", "89", "8.", ".9", "8.9.0", "a.b", "-8.9", "８.９"])
def test_what_is_no_capability_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a compute capability such as 8\.9, found"):
        read_capability(text)


def test_without_a_gpu_engines_are_for_two() -> None:
    assert choose((), RTX, None) == (ADA, BLACKWELL)


def test_with_a_gpu_the_engine_is_for_it() -> None:
    assert choose((), RTX, Device((8, 6), "13.0")) == (Capability(8, 6),)
    assert choose((), TENSORRT, Device((9, 0), "13.0")) == (Capability(9, 0),)


def test_what_is_asked_goes_before_the_gpu_and_is_built_once() -> None:
    assert choose((BLACKWELL, ADA, BLACKWELL), RTX, Device((8, 6), "13.0")) == (BLACKWELL, ADA)


@pytest.mark.parametrize(
    ("requested", "target", "device", "message"),
    [
        ((Capability(9, 0),), RTX, None, "which TensorRT-RTX compiles for, found 9.0"),
        ((), RTX, Device((9, 0), "13.0"), "found 9.0; use `target` tensorrt"),
        ((), TENSORRT, None, "found no GPU; build there"),
        ((ADA,), TENSORRT, Device((9, 0), "13.0"), "expected `capabilities` 9.0.*found 8.9"),
    ],
)
def test_gpu_that_cannot_be_built_for_is_refused(
    requested: tuple[Capability, ...], target: Target, device: Device | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose(requested, target, device)


@pytest.mark.parametrize("option", ["portable", "refittable"])
def test_what_rtx_has_not_is_refused(option: str) -> None:
    options: dict[str, Any] = {option: True}
    with pytest.raises(InputError, match="expected `portable`, `refittable` and `refit_from` with"):
        EngineRequest(RTX, **options)


def test_fp8_needs_a_gpu_that_has_it_and_the_layer_is_named() -> None:
    with pytest.raises(InputError, match=r"for FP8 \(layers\.0\.mlp\.up_proj\), found 8\.0"):
        require_kernels(AMPERE, "layers.0.mlp.up_proj", computes_in_bf16=True)
    require_kernels(AMPERE, None, computes_in_bf16=True)
    with pytest.raises(InputError, match=r"expected compute capability 8\.0 .* bf16, found 7\.5"):
        require_kernels(Capability(7, 5), None, computes_in_bf16=True)


# -- shapes --


@pytest.mark.parametrize("max_tokens", [16, 64, 65, 4096, 8192])
def test_profiles_cover_every_length_once_within_the_budget(max_tokens: int) -> None:
    profiles = choose_profiles(max_tokens, [], budget=1024)
    covered = [n for p in profiles for n in range(p.shortest, p.longest + 1)]
    assert covered == list(range(1, max_tokens + 1))
    for profile in profiles:
        assert profile.batch == 1 or profile.batch * profile.longest <= 1024


def test_profile_takes_no_prefix_up_to_the_longest_that_could_be_baked() -> None:
    (profile,) = choose_profiles(32, [3, 20])
    inputs = frozenset({"input_ids", "prefix_keys"})
    shapes = profile.shapes(SPEC, inputs)
    assert set(shapes) == inputs
    assert [shape[2] for shape in shapes["prefix_keys"]] == [0, 20, 31]
    assert shapes["prefix_keys"][0] == (2, 1, 0, 4)


# -- layers --


def row(name: str, kind: str, tactic: str = "", inputs: str = "") -> str:
    return f"Name: {name}, LayerType: {kind}, Inputs: [{inputs}], Outputs: [], TacticName: {tactic}"


def product(modules: str, *types: str, profile: int = 0) -> str:
    inputs = " ".join(f"Datatype: {kind}," for kind in types)
    return row(f"{modules}_myl{profile}_1", "gemm", "stub", inputs)


def mha(profile: int = 0, tactic: str = "_gemm_mha_v2_0x1") -> str:
    return row(f"mha_myl{profile}_2", "kgen", tactic)


MODULES = ["layers.0.mlp.up_proj", "layers.1.self_attn.q_proj"]
GOOD = [product("+".join(MODULES), "FP8", "FP8", "Float"), mha(), mha(tactic="_gemv_mha_v1_0x2")]


def judged(*rows: str) -> list[str]:
    return fusion_report(read_layers(["noise", "Layers:\n" + "\n".join(rows)]), SPEC, MODULES)


def test_fusion_check_of_a_good_table_passes() -> None:
    assert judged(*GOOD) == []
    layers = read_layers(["Layers:\n" + "\n".join(GOOD)])
    assert summary(layers) == {
        "layers": 3,
        "gemm": 1,
        "kgen": 2,
        "fused attention": 2,
        "fp8 products": 1,
    }


def test_product_that_widens_its_weight_is_reported() -> None:
    (line,) = judged(product("+".join(MODULES), "FP8", "BFloat16"), *GOOD[1:])
    assert line == "profile 0: 2 layers do not multiply in FP8, the first layers.0.mlp.up_proj"


def test_attention_that_is_not_fused_is_reported() -> None:
    assert judged(*GOOD[:2]) == ["profile 0: attention is fused in 1 of 2 layers"]


def test_every_profile_is_judged() -> None:
    second = [product("+".join(MODULES), "FP8", "FP8", profile=1), mha(profile=1)]
    assert judged(*GOOD, *second) == ["profile 1: attention is fused in 1 of 2 layers"]

"""E4M3: what the emulation rounds is what ONNX Runtime's QuantizeLinear rounds, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.errors import InputError
from anna_export.graph.builder import OPSET
from anna_export.graph.tensors import IR_DTYPES, as_ir
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.fp8 import Fp8Static
from anna_export.spec import Precision
from anna_export.weights.checkpoint import TORCH_DTYPES

HIGH_PRECISIONS = tuple(IR_DTYPES)
FAST = settings(max_examples=200, derandomize=True, deadline=None)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
LARGEST = st.floats(0, allow_nan=False, allow_infinity=False, width=32)  # value of a tensor

RoundTrip = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def stats(clip_amax: float) -> ActivationStats:
    return ActivationStats(amax=clip_amax, median=clip_amax, clip_amax=clip_amax)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({4: torch.int32, 2: torch.int16}[x.itemsize])


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, RoundTrip]:
    """ONNX Runtime's Q/DQ pair of (N,) values in a scale, in either type that it computes in."""
    folder = tmp_path_factory.mktemp("pair")
    return {
        high_precision: _pair(folder / f"{high_precision}.onnx", IR_DTYPES[high_precision])
        for high_precision in (Precision.FP32, Precision.FP16)
    }


def _pair(path: Path, dtype: ir.DataType) -> RoundTrip:
    x, scale = ir.val("x", dtype=dtype, shape=["n"]), ir.val("scale", dtype=dtype, shape=[])
    zero = ir.val("zero", const_value=as_ir(torch.zeros((), dtype=torch.float8_e4m3fn), "zero"))
    quantize = ir.node("QuantizeLinear", [x, scale, zero])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale])
    dequantize.outputs[0].dtype = dtype
    graph = ir.Graph(
        [x, scale],
        dequantize.outputs,
        nodes=[quantize, dequantize],
        initializers=[zero],
        opset_imports={"": OPSET},
        name="pair",
    )
    ir.save(ir.Model(graph, ir_version=11), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        feeds = {"x": np.atleast_1d(x.numpy()), "scale": scale.numpy()}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


# -- the emulation is the runtime's --


@FAST
@given(values=st.lists(FINITE, min_size=1, max_size=40), clip_amax=LARGEST)
@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_any_value_in_any_range_rounds_as_in_onnx_runtime(
    round_trip: dict[Precision, RoundTrip],
    high_precision: Precision,
    values: list[float],
    clip_amax: float,
) -> None:
    linear, x = Fp8Static(high_precision), torch.tensor(values)
    rounded = linear.fake_quantize_input(x, stats(clip_amax))
    expected = round_trip[Precision.FP32](x, stored_scale(linear, clip_amax).float())
    assert torch.equal(bits(rounded), bits(expected))


@pytest.mark.parametrize("clip_amax", [448.0, 1.0, 3.3, 1e-4, 0.0, 1e38])
def test_every_kind_of_float_rounds_as_in_onnx_runtime(
    round_trip: dict[Precision, RoundTrip], clip_amax: float
) -> None:
    # every exponent and sign with every upper mantissa, and what lies beside each tie
    words = (torch.arange(1 << 16)[:, None] << 16) + torch.tensor([0, 1, 0x7FFF, 0x8000, 0xFFFF])
    x = words.to(torch.uint32).view(torch.float32).reshape(-1)
    x = x[~x.isnan()]
    linear = Fp8Static(Precision.BF16)
    rounded = linear.fake_quantize_input(x, stats(clip_amax))
    expected = round_trip[Precision.FP32](x, stored_scale(linear, clip_amax).float())
    assert torch.isinf(x).sum() == 2
    assert torch.equal(bits(rounded), bits(expected))


def test_nan_stays_nan(round_trip: dict[Precision, RoundTrip]) -> None:
    # cut to the range, it would come out as an ordinary number and a broken model as a sound one
    x = torch.tensor([1.0, torch.nan])
    rounded = Fp8Static(Precision.FP32).fake_quantize_input(x, stats(448.0))
    assert rounded[0] == 1 and rounded[1].isnan()
    assert round_trip[Precision.FP32](x, torch.tensor(1.0))[1].isnan()


def test_fp16_divides_in_fp16_which_moves_few_values_to_the_other_neighbour(
    round_trip: dict[Precision, RoundTrip],
) -> None:
    linear, clip_amax = Fp8Static(Precision.FP16), 5.8
    x = torch.arange(1 << 16).to(torch.uint16).view(torch.float16)
    x = x[x.isfinite()]
    scale = stored_scale(linear, clip_amax)
    twice = round_trip[Precision.FP16](x, scale)
    twice = (x / scale).float().clamp(-448, 448).to(torch.float8_e4m3fn).half() * scale
    assert torch.equal(bits(twice), bits(twice))
    once = linear.fake_quantize_input(x.float(), stats(clip_amax)).half()
    moved = (twice != once).float().mean()
    assert 0 < moved < 0.002


@FAST
@given(values=st.lists(FINITE, min_size=1, max_size=40), clip_amax=LARGEST)
def test_rounding_twice_changes_nothing(values: list[float], clip_amax: float) -> None:
    linear = Fp8Static(Precision.BF16)
    once = linear.fake_quantize_input(torch.tensor(values), stats(clip_amax))
    assert torch.equal(bits(once), bits(linear.fake_quantize_input(once, stats(clip_amax))))


# -- scales --


def stored_scale(linear: Fp8Static, largest: float) -> torch.Tensor:
    """The scale of a weight whose largest number is this one, which is that of an input too."""
    (scale,) = linear.quantize(torch.tensor([[largest]]))["_scale"]
    return scale


@FAST
@given(largest=LARGEST)
@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_scale_is_a_normal_number_and_the_largest_code_stays_finite(
    high_precision: Precision, largest: float
) -> None:
    scale = stored_scale(Fp8Static(high_precision), largest)
    dtype = TORCH_DTYPES[high_precision]
    assert scale.dtype is dtype
    assert scale >= torch.finfo(dtype).smallest_normal
    assert torch.isfinite(448 * scale)


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_largest_value_rounds_to_the_largest_code_whichever_way_its_scale_was_rounded(
    high_precision: Precision,
) -> None:
    linear = Fp8Static(high_precision)
    largest = torch.linspace(0.5, 9, 500)
    stored = linear.quantize(largest[:, None])
    assert (stored[""].float() == 448).all()
    exact = largest.double() / 448
    rounded = stored["_scale"].double()
    assert (rounded > exact).any() and (rounded < exact).any()


# -- weights --


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_stored_weight_is_codes_of_the_rounded_scale(high_precision: Precision) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 53) * torch.logspace(-7, 2, 37)[:, None]
    stored = Fp8Static(high_precision).quantize(weight)
    layout = Fp8Static(high_precision).layout(37, 53)
    assert {key: tuple(value.shape) for key, value in stored.items()} == {
        key: shape for key, (_, shape) in layout.items()
    }
    scale = stored["_scale"].float()
    codes = torch.clamp(weight.T / scale, -448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(stored[""].view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
@pytest.mark.parametrize("size", [0.0, 1e-9, 3e-5, 0.02, 1.0, 7e3])
def test_codes_survive_being_read_as_numbers_of_the_high_precision_type(
    high_precision: Precision, size: float
) -> None:
    # all 254 codes that are numbers, in one row with the largest
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()]
    linear = Fp8Static(high_precision)
    scale = linear.quantize(torch.full((1, 1), size))["_scale"]
    numbers = (codes.float() * scale.float()).to(scale.dtype).float()
    again = (numbers / scale.float()).to(torch.float8_e4m3fn)
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("high_precision", [Precision.FP16, Precision.BF16])
def test_weight_restored_from_a_scale_of_16_bits_is_exact(high_precision: Precision) -> None:
    torch.manual_seed(0)
    linear = Fp8Static(high_precision)
    stored = linear.quantize(torch.randn(37, 53) * torch.logspace(-9, 2, 37)[:, None])
    # 4 bits times 11 or 8
    exact = stored[""].T.double() * stored["_scale"].double()[:, None]
    assert torch.equal(linear.dequantize(stored).double(), exact)


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_storing_what_was_restored_stores_the_same_numbers(high_precision: Precision) -> None:
    torch.manual_seed(0)
    linear = Fp8Static(high_precision)
    stored = linear.quantize(torch.randn(37, 53) * 0.02)
    again = linear.quantize(linear.dequantize(stored))
    assert torch.equal(again["_scale"], stored["_scale"])
    assert torch.equal(again[""].view(torch.uint8), stored[""].view(torch.uint8))


def test_weight_is_no_farther_off_than_half_a_step() -> None:
    torch.manual_seed(0)
    linear, weight = Fp8Static(Precision.BF16), torch.randn(37, 53)
    stored = linear.quantize(weight)
    scale = stored["_scale"].float()[:, None]
    # three mantissa bits: half a step is 1/16 of a normal number, and 2 ** -10 scales below
    allowed = torch.maximum(weight.abs() / 16, scale * 2**-10)
    # beside 448 the scale's own rounding shows: 2 ** -9 of it, cut off
    assert ((linear.dequantize(stored) - weight).abs() <= allowed + 448 * scale * 2**-9).all()


@pytest.mark.parametrize("wrong", [Precision.INT8, Precision.INT4, Precision.FP8])
def test_high_precision_type_that_is_none_is_refused(wrong: Precision) -> None:
    with pytest.raises(InputError, match=rf"expected fp32, fp16, bf16 .* found {wrong}$"):
        Fp8Static(wrong)

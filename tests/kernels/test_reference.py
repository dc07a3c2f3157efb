"""What pooling means, and that the ONNX function means the same."""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from anna_kernels.pooling import DTYPES, RMSNorm
from anna_kernels.reference import last_token_pool_normalise
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from anna_export.graph import pooling

OPSET = 23
ONNX_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float16: ir.DataType.FLOAT16,
}


def states(batch: int, seq: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, seq, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_float32_of_unit_length(dtype: torch.dtype) -> None:
    vectors = last_token_pool_normalise(states(3, 7, 129, dtype), torch.tensor([0, 6, 3]))
    assert vectors.dtype == torch.float32 and vectors.shape == (3, 129)
    # a float32 sum of 129 squares
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)


def test_each_row_takes_its_own_last_token() -> None:
    hidden, last = states(3, 7, 5), torch.tensor([0, 6, 3])
    vectors = last_token_pool_normalise(hidden, last)
    for row, index in enumerate(last):
        token = hidden[row, index]
        torch.testing.assert_close(vectors[row], token / token.norm(), atol=1e-7, rtol=1e-6)


def test_zero_row_stays_zero() -> None:
    hidden = states(2, 3, 5)
    hidden[1, 2] = 0
    vectors = last_token_pool_normalise(hidden, torch.tensor([2, 2]))
    assert vectors[0].any() and not vectors[1].any()


def test_row_shorter_than_eps_is_divided_by_eps() -> None:
    hidden = torch.full((1, 1, 4), 1e-3)
    vectors = last_token_pool_normalise(hidden, torch.tensor([0]), eps=0.5)
    torch.testing.assert_close(vectors, torch.full((1, 4), 2e-3))


def test_nan_in_other_tokens_does_not_leak() -> None:
    hidden, last = torch.full((3, 7, 5), float("nan")), torch.tensor([0, 6, 3])
    hidden[torch.arange(3), last] = 1.0
    assert last_token_pool_normalise(hidden, last).isfinite().all()


def test_squares_past_the_range_of_float16_still_give_unit_length() -> None:
    hidden = torch.full((1, 1, 9), 6e4, dtype=torch.float16)
    torch.testing.assert_close(
        last_token_pool_normalise(hidden, torch.tensor([0])),
        torch.full((1, 9), 1 / 3),
        atol=1e-6,
        rtol=0,
    )


def test_gradient_reaches_only_the_last_token() -> None:
    hidden = states(2, 3, 5).requires_grad_()
    last_token_pool_normalise(hidden, torch.tensor([1, 2]))[:, 0].sum().backward()
    assert hidden.grad is not None
    touched = hidden.grad.any(dim=-1)
    assert touched.tolist() == [[False, True, False], [False, False, True]]


def test_no_rows_give_no_vectors() -> None:
    assert last_token_pool_normalise(states(0, 3, 5), torch.zeros(0, dtype=torch.int64)).shape == (
        0,
        5,
    )


@pytest.mark.parametrize("index", [-1, 7])
def test_row_without_a_last_token_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"last in 0\.\.6, found {index}$"):
        last_token_pool_normalise(states(2, 7, 5), torch.tensor([3, index]))


def test_final_norm_is_that_of_mistral() -> None:
    hidden, last = states(3, 7, 129), torch.tensor([0, 6, 3])
    norm = MistralRMSNorm(129, eps=0.5)
    norm.weight.data = torch.linspace(-1, 2, 129)
    vectors = last_token_pool_normalise(hidden, last, norm=RMSNorm(norm.weight.detach(), 0.5))
    expected = torch.nn.functional.normalize(norm(hidden[torch.arange(3), last]), dim=-1).detach()
    torch.testing.assert_close(vectors, expected, atol=1e-7, rtol=1e-6)


# -- the ONNX function --


def pooling_session(dtype: ir.DataType) -> onnxruntime.InferenceSession:
    """Open a model of one node: the pooling function, its input cast from float32."""
    hidden = ir.val("hidden", ir.DataType.FLOAT, ["B", "S", "D"])
    last = ir.val("last", ir.DataType.INT64, ["B"])
    tape = ir.tape.Tape()
    cast = tape.op("Cast", [hidden], {"to": dtype})
    output = tape.op(pooling.NAME, [cast, last], domain=pooling.DOMAIN)
    output.name, output.type = "embedding", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [hidden, last],
        [output],
        nodes=tape.nodes,
        opset_imports={"": OPSET, pooling.DOMAIN: 1},
        name="pooling",
    )
    model = ir.Model(graph, ir_version=10, functions=[pooling.pool_normalize_function(OPSET)])
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim"), [(1, 1, 8), (3, 7, 129), (2, 33, 4096)])
def test_onnx_function_gives_the_same_vectors(
    batch: int, seq: int, dim: int, dtype: torch.dtype
) -> None:
    hidden = states(batch, seq, dim, dtype)
    hidden[0] = 0
    hidden[-1] *= 1e-3
    last = torch.arange(batch) * 5 % seq
    session = pooling_session(ONNX_DTYPES[dtype])
    (vectors,) = session.run(None, {"hidden": hidden.float().numpy(), "last": last.numpy()})
    # both sum in float32, so only the order differs
    np.testing.assert_allclose(
        vectors, last_token_pool_normalise(hidden, last), atol=1e-7, rtol=1e-6
    )


def test_onnx_function_has_the_same_eps() -> None:
    hidden = torch.full((1, 1, 4), 1e-13)
    session = pooling_session(ir.DataType.FLOAT)
    (vectors,) = session.run(None, {"hidden": hidden.numpy(), "last": np.zeros(1, np.int64)})
    np.testing.assert_allclose(
        vectors, last_token_pool_normalise(hidden, torch.tensor([0])), rtol=1e-6
    )
    np.testing.assert_allclose(vectors, np.full((1, 4), 0.1), rtol=1e-6)


# -- imports --


@pytest.mark.parametrize(
    "module", ["anna_kernels", "anna_kernels.reference", "anna_kernels.dispatch"]
)
def test_reference_imports_no_triton(module: str) -> None:
    code = f"import sys, {module}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

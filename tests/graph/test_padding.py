"""The graph by itself: padding on either side is right, and any other mask is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.graph import padding
from anna_export.graph.names import CANONICAL, CPU, PREFIX_KEYS, PREFIX_VALUES
from tests.support.types import MakeArtifact, MakeModel

WIDTH, WINDOW, PREFIX_TOKENS = 40, 8, 5
TARGETS = (CANONICAL, CPU)
FEW_EXAMPLES = settings(max_examples=15, derandomize=True, deadline=None)

Run = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def windowed(make_model: MakeModel) -> Path:
    """A model whose texts are longer than its window, so that a wrong position shows."""
    return make_model(shared=True, sliding_window=WINDOW, initializer_range=0.2)


@pytest.fixture(scope="module", params=TARGETS)
def run(windowed: Path, make_artifact: MakeArtifact, request: pytest.FixtureRequest) -> Run:
    """Runs a graph in ONNX Runtime alone: ids, mask, and nothing else but what is named."""
    path = make_artifact(windowed).graph(request.param)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, mask: np.ndarray, **feeds: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask, **feeds})[0]

    return run


@pytest.fixture(scope="module")
def truth(windowed: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A text's vector by transformers' own model, without any padding."""
    model = transformers.AutoModel.from_pretrained(windowed, attn_implementation="eager")

    def vector(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            last = model(torch.from_numpy(ids)[None]).last_hidden_state[0, -1]
        return torch.nn.functional.normalize(last, dim=-1).numpy()

    return vector


def padded(rows: list[tuple[int, int]], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids, padding's too, and a mask of rows by where their tokens start and end."""
    ids = np.random.default_rng(seed).integers(3, 32000, (len(rows), WIDTH))
    positions = np.arange(WIDTH)
    mask = [(positions >= start) & (positions < end) for start, end in rows]
    return ids, np.array(mask).astype(np.int64)


@FEW_EXAMPLES
@given(
    rows=st.lists(
        st.tuples(st.integers(0, WIDTH - 1), st.integers(1, WIDTH)).filter(lambda r: r[0] < r[1]),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_vector_is_that_of_the_tokens_alone_wherever_padding_stands(
    run: Run, truth: Callable[[np.ndarray], np.ndarray], rows: list[tuple[int, int]], seed: int
) -> None:
    ids, mask = padded(rows, seed)
    expected = [truth(row[start:end]) for row, (start, end) in zip(ids, rows, strict=True)]
    # fp32 against fp32: only the order of sums differs; a token seen too much is 1e-2 away
    assert np.abs(run(ids, mask) - expected).max() <= 3e-6


def test_left_padding_behind_a_prefix_is_right_padding_to_the_bit(run: Run, windowed: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(windowed)
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    random = np.random.default_rng(1)
    shape = (layers, heads, PREFIX_TOKENS, config.head_dim)
    states = {
        name: random.standard_normal(shape).astype(np.float32)
        for name in (PREFIX_KEYS, PREFIX_VALUES)
    }
    lengths = (3, WIDTH, 1, 17)
    left, left_mask = padded([(WIDTH - length, WIDTH) for length in lengths])
    right, right_mask = np.full_like(left, 7), left_mask[:, ::-1].copy()
    right[right_mask == 1] = left[left_mask == 1]
    vectors = run(left, left_mask, **states)
    np.testing.assert_array_equal(vectors, run(right, right_mask, **states))
    assert np.abs(vectors - run(left, left_mask)).max() > 0.01  # the prefix is seen


def test_mask_of_other_numbers_than_one_counts_as_ones(run: Run) -> None:
    ids, mask = padded([(0, 9), (WIDTH - 4, WIDTH)])
    np.testing.assert_array_equal(run(ids, mask * -3), run(ids, mask))


@pytest.mark.parametrize(
    "row",
    [[1, 0, 1, 1], [0, 1, 0, 1], [1, 2, 0, 1], [0, 0, 0, 0], [0]],
    ids=["gap", "gap behind padding", "gap and a two", "nothing", "nothing, one token wide"],
)
def test_any_other_mask_is_refused_by_name_even_in_one_row_alone(run: Run, row: list[int]) -> None:
    mask = np.array([[1] * len(row), row])
    with pytest.raises(Exception, match=padding.CHECK):
        run(np.full(mask.shape, 5), mask)

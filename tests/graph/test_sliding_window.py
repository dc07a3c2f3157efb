"""The sliding window: a token sees itself and the window - 1 before it, in every backend."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.backends import open_encoder
from anna_export.encoder import Encoder
from anna_export.graph.names import CANONICAL, CPU
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.text.prompts import Prompt, Prompts
from tests.support.types import MakeArtifact, MakeBatch, MakeModel, RunGraph

FEW_EXAMPLES = settings(max_examples=15, derandomize=True, deadline=None)
WINDOW = 8
# fp32 against fp32: only the order of sums differs
CLOSE = 1e-6
EDGES = (WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW)
TARGETS = (CANONICAL, CPU)


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    return make_model(sliding_window=WINDOW, initializer_range=0.2)


@pytest.fixture(scope="module")
def truth(model: Path) -> Callable[..., np.ndarray]:
    """Runs transformers' own attention, with another window or in another form if asked."""

    @functools.cache
    def load(folder: Path, window: int | None, form: str) -> Any:
        config = transformers.AutoConfig.from_pretrained(folder)
        config.sliding_window = window
        return transformers.AutoModel.from_pretrained(
            folder, config=config, attn_implementation=form, dtype=torch.float32
        )

    def run(
        batch: TokenBatch, window: int | None = WINDOW, form: str = "eager", folder: Path = model
    ) -> np.ndarray:
        theirs = load(folder, window, form)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        with torch.inference_mode():
            hidden = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = hidden[torch.arange(len(ids)), torch.from_numpy(batch.lengths) - 1]
        return torch.nn.functional.normalize(rows, dim=-1).numpy()

    return run


def worst(vectors: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(vectors - expected).max())


# -- the reference itself --


@pytest.mark.parametrize("length", EDGES)
def test_reference_applies_the_window_and_no_other(
    truth: Callable[..., np.ndarray], model: Path, make_batch: MakeBatch, length: int
) -> None:
    batch = make_batch(length)
    expected = truth(batch)
    assert worst(truth(batch, form="sdpa"), expected) <= CLOSE
    assert worst(open_reference(model).backend.run(batch), expected) <= CLOSE
    for other, first_seen in ((WINDOW - 1, WINDOW), (WINDOW + 1, WINDOW + 1), (None, WINDOW + 1)):
        differs = worst(truth(batch, window=other), expected) > 1000 * CLOSE
        assert differs == (length >= first_seen), other


# -- the graphs --


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("length", EDGES)
def test_graph_equals_transformers_around_the_window(
    model: Path,
    truth: Callable[..., np.ndarray],
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    target: str,
    length: int,
) -> None:
    batch = make_batch(length)
    assert worst(run_graph(make_artifact(model), target, batch), truth(batch)) <= CLOSE


@FEW_EXAMPLES
@given(
    lengths=st.lists(st.integers(1, 4 * WINDOW), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_graphs_equal_transformers_on_any_right_padded_batch(
    model: Path,
    truth: Callable[..., np.ndarray],
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    lengths: list[int],
    seed: int,
) -> None:
    batch = make_batch(*lengths, seed=seed)
    expected = truth(batch)
    for target in TARGETS:
        assert worst(run_graph(make_artifact(model), target, batch), expected) <= CLOSE, target


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_fallback_graph_of_a_narrow_graph_keeps_the_window(
    make_model: MakeModel,
    truth: Callable[..., np.ndarray],
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    precision: Precision,
) -> None:
    dtype = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[precision]
    narrow = make_model(dtype=dtype, sliding_window=WINDOW, initializer_range=0.2)
    batch = make_batch(*EDGES)
    vectors = run_graph(make_artifact(narrow, precision), CPU, batch)
    assert worst(vectors, truth(batch, folder=narrow)) <= CLOSE


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layers", [1, 2])
def test_layer_adds_one_less_than_the_window_to_what_is_seen(
    make_model: MakeModel,
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    target: str,
    layers: int,
) -> None:
    model = make_model(
        sliding_window=WINDOW, num_hidden_layers=layers, initializer_range=0.2, seed=layers
    )
    batch = make_batch(40)
    vector = run_graph(make_artifact(model), target, batch)
    farthest = layers * (WINDOW - 1)
    for distance, is_attended in ((farthest, True), (farthest + 1, False)):
        ids = batch.ids.copy()
        ids[0, 39 - distance] = 31_999
        changed = run_graph(make_artifact(model), target, TokenBatch(ids, batch.lengths))
        assert (worst(changed, vector) > 0) == is_attended, distance


def test_model_without_a_window_sees_everything(
    make_model: MakeModel,
    truth: Callable[..., np.ndarray],
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
) -> None:
    model = make_model(sliding_window=None, initializer_range=0.2)
    batch = make_batch(*EDGES)
    expected = truth(batch, window=None, folder=model)
    for target in TARGETS:
        assert worst(run_graph(make_artifact(model), target, batch), expected) <= CLOSE, target


# -- prompt and text together --


@pytest.mark.parametrize("length", EDGES)
def test_prompt_counts_towards_the_window(
    model: Path,
    truth: Callable[..., np.ndarray],
    make_artifact: MakeArtifact,
    length: int,
) -> None:
    opened = open_encoder(make_artifact(model).folder)
    encoder = Encoder(opened.backend, opened.tokeniser, Prompts.of_fronts({"query": "Query: "}))
    bodies = (" a" * words for words in range(64))
    text, ids = next(
        (body, ids)
        for body in bodies
        if len(ids := opened.tokeniser.ids([body], Prompt("Query: "))[0]) == length
    )
    expected = truth(TokenBatch.of_rows([ids], opened.tokeniser.framing.pad_id))
    assert worst(encoder.encode([text], "query"), expected) <= CLOSE


# -- Mistral-7B-v0.1's own window --


@pytest.mark.slow
def test_window_of_4096_is_exact_on_both_sides(
    make_model: MakeModel,
    truth: Callable[..., np.ndarray],
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
) -> None:
    # two layers: one of either kind of attention; two heads keep the scores small
    model = make_model(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2
    )
    artifact = make_artifact(model, max_tokens=4100)
    for length in (4095, 4096, 4097):
        batch = make_batch(length)
        expected = truth(batch, 4096, "sdpa", model)
        for target in TARGETS:
            # twice CLOSE: the sums are over 4,096 tokens instead of 8
            assert worst(run_graph(artifact, target, batch), expected) <= 2 * CLOSE, length
    assert worst(truth(batch, None, "sdpa", model), expected) > 1000 * CLOSE

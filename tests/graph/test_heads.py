"""Vectors of every head equal sentence-transformers' own, in direction and in length."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from anna_export.artifact.folder import Artifact
from anna_export.backends import open_encoder
from anna_export.bench.openvino_baseline import OpenOpenVino
from anna_export.cli import run
from anna_export.cosine import cosines
from anna_export.encoder import Encoder
from anna_export.errors import InputError, UnsupportedError
from anna_export.graph.names import PROMPT_TOKENS
from anna_export.integrations.triton.write import Package, write_repository
from anna_export.serve.config import ServerConfig
from anna_export.serve.request_tokeniser import RequestTokeniser
from anna_export.serve.schema import TeiRequest
from anna_export.serve.worker import EncodeBatch, LoadedModel, compute_finite
from anna_export.spec import Precision
from anna_export.text.prompts import Prompt
from tests.support.refusals import refusal
from tests.support.st_folders import dense, open_st, save_st
from tests.support.types import MakeArtifact

pytestmark = pytest.mark.slow

TEXTS = ["a transfer", "", "漢字とかな " * 5, "The server embeds this text " * 6, " lead", "x"]
# the last one's end merges with texts, one ends in spaces, and one is nothing
PROMPTS = {"ask": "Instruct: find it\nQuery: ", "spaces": "q:  ", "none": "", "merges": "query:"}
HEADS: dict[str, dict[str, Any]] = {
    "last": {"pooling": "lasttoken"},
    "last, raw": {"pooling": "lasttoken", "normalize": False},
    "last, Dense": {
        "pooling": "lasttoken",
        "layers": [dense(40, 24, torch.nn.GELU()), dense(24, 50, torch.nn.SiLU(), False)],
    },
    "mean": {"pooling": "mean"},
    "mean, Dense, raw": {
        "pooling": "mean",
        "layers": [dense(40, 24), dense(24, 40, torch.nn.Identity())],
        "normalize": False,
    },
    "mean without prompt": {"pooling": "mean", "include_prompt": False},
    "mean without prompt, Dense, raw": {
        "pooling": "mean",
        "include_prompt": False,
        "layers": [dense(40, 16, torch.nn.ReLU()), dense(16, 8, torch.nn.Sigmoid())],
        "normalize": False,
    },
    "first": {"pooling": "cls"},
    "first without prompt": {"pooling": "cls", "include_prompt": False},
}
Saved = Callable[[str], tuple[Path, Artifact]]


@pytest.fixture(scope="module")
def saved(
    sharp: Path, make_artifact: MakeArtifact, tmp_path_factory: pytest.TempPathFactory
) -> Saved:
    """Saves the model with a head by sentence-transformers, and exports it, each once."""
    folders: dict[str, Path] = {}

    def make(head: str) -> tuple[Path, Artifact]:
        if head not in folders:
            folder = tmp_path_factory.mktemp("st") / "model"
            folders[head] = save_st(sharp, folder, **HEADS[head], prompts=PROMPTS)
        return folders[head], make_artifact(folders[head], max_tokens=96)

    return make


def library(folder: Path) -> SentenceTransformer:
    model = open_st(folder)
    model.max_seq_length = 96
    return model


def require_equal(vectors: np.ndarray, expected: np.ndarray) -> None:
    assert vectors.shape == expected.shape
    assert cosines(vectors, expected).min() >= 0.999999
    lengths, wanted = (np.linalg.norm(rows, axis=1) for rows in (vectors, expected))
    # fp32 sums of a few thousand numbers in another order
    np.testing.assert_allclose(lengths, wanted, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_vectors_are_the_librarys_own(saved: Saved, head: str) -> None:
    folder, artifact = saved(head)
    model, encoder = library(folder), open_encoder(artifact.folder)
    for name in ("", *PROMPTS):
        expected = model.encode(TEXTS, prompt_name=name) if name else model.encode(TEXTS)
        require_equal(encoder.encode(TEXTS, name), expected)
        alone = np.concatenate([encoder.encode([text], name) for text in TEXTS])
        require_equal(alone, expected)


@pytest.mark.parametrize(
    "head", ["mean, Dense, raw", "mean without prompt", "first without prompt"]
)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
def test_every_backend_has_the_head(
    saved: Saved, make_artifact: MakeArtifact, head: str, precision: Precision
) -> None:
    folder, _ = saved(head)
    artifact = make_artifact(folder, precision, max_tokens=96)
    expected = library(folder).encode(TEXTS, prompt_name="ask")
    for backend in ("ort", "pytorch"):
        vectors = open_encoder(artifact.folder, backend=backend).encode(TEXTS, "ask")
        # what rounding weights costs at three layers of random weights
        least = 0.999999 if precision is Precision.FP32 else 0.998
        assert cosines(vectors, expected).min() >= least, backend


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, Precision.FP8])
def test_quantised_model_keeps_the_head_in_fp32(
    saved: Saved, make_artifact: MakeArtifact, few_texts: Path, precision: Precision
) -> None:
    folder, _ = saved("mean without prompt, Dense, raw")
    artifact = make_artifact(folder, precision, max_tokens=96, calibration=few_texts, max_loss=1)
    expected = library(folder).encode(TEXTS, prompt_name="ask")
    vectors, stored = (
        open_encoder(artifact.folder, backend=backend).encode(TEXTS, "ask")
        for backend in ("ort", "pytorch")
    )
    assert cosines(vectors, expected).min() > 0.97
    # a value on the border of two FP8 codes falls either way
    assert cosines(vectors, stored).min() > 0.999


def test_vectors_through_sentence_transformers_leave_out_the_prompt_too(saved: Saved) -> None:
    folder, artifact = saved("mean without prompt")
    expected = library(folder).encode(TEXTS, prompt_name="ask")
    opened = SentenceTransformer(str(artifact.folder), device="cpu", trust_remote_code=True)
    require_equal(opened.encode(TEXTS, prompt_name="ask"), expected)


@pytest.mark.parametrize("head", HEADS)
def test_prompt_is_baked_where_its_states_are_not_pooled(saved: Saved, head: str) -> None:
    baked = set(saved(head)[1].manifest.prefixes)
    pooled = HEADS[head]["pooling"] != "lasttoken" and HEADS[head].get("include_prompt", True)
    assert baked == (set() if pooled else {"ask", "spaces", "merges"})


def test_baked_prompt_and_computed_prompt_give_the_same_mean(saved: Saved) -> None:
    encoder = open_encoder(saved("mean without prompt")[1].folder)
    assert encoder.tokenise(["a text"], encoder.prompts.by_name["ask"])[0].prefix is not None
    computed = Encoder(encoder.backend, encoder.tokeniser, encoder.prompts)
    require_equal(encoder.encode(TEXTS, "ask"), computed.encode(TEXTS, "ask"))


def test_texts_of_prompts_of_unlike_lengths_share_a_batch(saved: Saved) -> None:
    folder, artifact = saved("mean without prompt")
    encoder = open_encoder(artifact.folder)
    encoder.prefixes = None
    vectors = encoder.encode(["a text"] * 3, ["ask", "merges", ""])
    model = library(folder)
    expected = [
        model.encode("a text", prompt=PROMPTS.get(name, "")) for name in ("ask", "merges", "")
    ]
    require_equal(vectors, np.stack(expected))


def test_prompt_has_as_many_tokens_as_the_library_counts(saved: Saved) -> None:
    folder, artifact = saved("mean without prompt")
    encoder, model = open_encoder(artifact.folder), library(folder)
    for front in ("find", "find: ", "find:\n", "query:", "é 漢"):
        counted = model[0]._get_prompt_length(front)
        assert encoder.tokeniser.prompt_tokens(Prompt(front)) == counted, front
    assert encoder.tokeniser.prompt_tokens(Prompt("")) == 0


@pytest.mark.parametrize("head", HEADS)
def test_graph_asks_for_prompt_tokens_only_where_they_count(saved: Saved, head: str) -> None:
    _, artifact = saved(head)
    session = open_encoder(artifact.folder).backend._session  # type: ignore[attr-defined]
    names = {
        value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())
    }
    assert (PROMPT_TOKENS in names) == ("without prompt" in head)


def test_prompts_list_says_why_none_is_baked(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "prompts are computed with every text: mean pooling includes the prompt"
    for head, baked in (("mean", False), ("mean without prompt", True)):
        assert run(["prompts", "list", str(saved(head)[1].folder)]) == 0
        assert (why in capsys.readouterr().out) != baked


def test_triton_package_that_would_pool_the_prompt_is_refused(saved: Saved, tmp_path: Path) -> None:
    artifact = saved("mean without prompt")[1]
    message = refusal(
        InputError,
        lambda: write_repository(artifact, Package("m"), tmp_path / "out", overwrite=False),
    )
    assert "mean pooling without the prompt" in message and not (tmp_path / "out").exists()


def test_openvino_baseline_that_would_pool_the_prompt_is_refused(saved: Saved) -> None:
    artifact = saved("mean without prompt")[1]
    message = refusal(UnsupportedError, OpenOpenVino(artifact.folder, "ask", 1))
    assert message == (
        f"expected a model that pools its prompts' tokens too, found {artifact.folder} with "
        "mean pooling without the prompt; leave out the baseline openvino"
    )


@pytest.mark.parametrize("head", ["mean without prompt", "last, Dense", "mean"])
def test_server_gives_the_encoders_vectors(saved: Saved, head: str) -> None:
    artifact = saved(head)[1]
    encoder = open_encoder(artifact.folder)
    tokeniser = RequestTokeniser(artifact, ServerConfig("m"))
    for name in ("ask", ""):
        request = TeiRequest.model_validate({"inputs": TEXTS, "prompt_name": name})
        items = tokeniser.read(request).items
        rows = [
            compute_finite(
                LoadedModel(encoder, lambda: encoder),
                EncodeBatch(
                    0, [list(item.ids)], item.prompt, item.cached_tokens, [item.prompt_tokens]
                ),
            )[0][0]
            for item in items
        ]
        require_equal(np.stack(rows), encoder.encode(TEXTS, name))

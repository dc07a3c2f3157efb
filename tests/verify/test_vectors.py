"""Vector parity: what is held against the reference, and every way to fail."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anna_export.artifact.folder import Artifact
from anna_export.encoder import Encoder
from anna_export.errors import ShapeError, SpaceError
from anna_export.machine import memory as process_memory
from anna_export.quantise.scheme import Thresholds
from anna_export.reference.streamed import open_streamed_artifact, open_streamed_checkpoint
from anna_export.spec import EmbeddingSpec, read_spec
from anna_export.text.batch import TokenBatch
from anna_export.text.framing import read_framing
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.parity_report import VectorParity
from anna_export.verify.prove import prove
from anna_export.verify.texts import ODD_TEXTS, ordinary_texts
from anna_export.verify.vectors import compare, compare_weights, parity_texts
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeModel

TEXTS = ["a transfer", "", "to another bank, which takes two days", "漢字"]
FLOOR = 0.999

Spoil = Callable[[TokenBatch, np.ndarray], np.ndarray]


class Table:
    """A backend with a (D,) unit vector for every first token; `spoil` changes what it returns."""

    name, compute_label = "table", "fp32"

    def __init__(self, spec: EmbeddingSpec, spoil: Spoil | None = None) -> None:
        self.spec = replace(spec, dim=3)
        self.spoil = spoil

    def run(self, batch: TokenBatch) -> np.ndarray:
        angle = (batch.ids * batch.mask).sum(axis=1) % 997 / 100
        vectors = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1).astype(np.float32)
        return vectors if self.spoil is None else self.spoil(batch, vectors)


@pytest.fixture(scope="module")
def spec(base: Path) -> EmbeddingSpec:
    return read_spec(base)


@pytest.fixture(scope="module")
def tokeniser(base: Path, spec: EmbeddingSpec) -> Tokeniser:
    return Tokeniser.open(base, read_framing(base, spec, 200))


@pytest.fixture
def compare_tables(spec: EmbeddingSpec, tokeniser: Tokeniser) -> Callable[..., VectorParity]:
    """Compares a table with a spoiled one."""

    def compared(
        spoil: Spoil | None = None,
        prompts: Prompts | None = None,
        texts: Sequence[str] = TEXTS,
        batch1_limit: float | None = None,
    ) -> VectorParity:
        reference = Encoder(Table(spec), tokeniser, prompts)
        candidate = Encoder(Table(spec, spoil), tokeniser, prompts)
        return compare(
            reference,
            candidate,
            texts,
            thresholds=Thresholds(FLOOR, batch1_min_cosine=FLOOR, batch1_max_abs=batch1_limit),
            method="as tests do",
        )

    return compared


def row_of(tokeniser: Tokeniser, batch: TokenBatch, text: str) -> np.ndarray:
    """(B,) bool, where a text stands in a batch."""
    (ids,) = tokeniser.ids([text])
    rows = zip(batch.ids, batch.lengths, strict=True)
    return np.array([row[:length].tolist() == ids for row, length in rows])


# -- verdicts --


def test_equal_vectors_pass(compare_tables: Callable[..., VectorParity]) -> None:
    parity = compare_tables()
    assert parity.verdict == "pass" and parity.reasons == []
    assert parity.worst_cosine == pytest.approx(1) and parity.max_abs == 0
    assert parity.texts == 4 and parity.prompts == [] and parity.nonfinite == 0


def test_figures_are_those_of_a_constructed_case(
    compare_tables: Callable[..., VectorParity], tokeniser: Tokeniser
) -> None:
    # one of four vectors is turned by 0.5 out of the plane: cosine cos 0.5, the others 1
    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        turned = row_of(tokeniser, batch, TEXTS[2])
        vectors[turned] *= np.float32(np.cos(0.5))
        vectors[turned, 2] = np.sin(0.5)
        return vectors

    parity = compare_tables(spoil)
    assert parity.verdict == "fail" and len(parity.reasons) == 1
    # float32 vectors of unit length
    assert parity.worst_cosine == pytest.approx(np.cos(0.5), abs=1e-6)
    assert parity.mean_cosine == pytest.approx((3 + np.cos(0.5)) / 4, abs=1e-6)
    assert parity.max_abs == pytest.approx(np.sin(0.5), abs=1e-6)
    assert TEXTS[2][:30] in parity.worst_text and TEXTS[2][:30] in parity.reasons[0]
    assert parity.batch1_worst_cosine == pytest.approx(1) and parity.batch1_max_abs == 0


def test_difference_alone_and_in_a_batch_fails_where_it_is_limited(
    compare_tables: Callable[..., VectorParity],
) -> None:
    # far below what a cosine of 0.999999 shows
    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        if len(batch.lengths) > 1:
            vectors[:, 2] += np.float32(1e-5)
        return vectors

    assert compare_tables(spoil).verdict == "pass"
    assert compare_tables(spoil, batch1_limit=2e-5).verdict == "pass"
    (reason,) = compare_tables(spoil, batch1_limit=1e-6).reasons
    assert reason.startswith(
        "batch size 1 against padded batches: difference 1.0e-05 is above 1e-06 (no prompt: "
    )


def test_vector_that_is_not_finite_fails_as_the_worst_there_is(
    compare_tables: Callable[..., VectorParity], tokeniser: Tokeniser
) -> None:
    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        vectors[row_of(tokeniser, batch, ""), 1] = np.nan
        return vectors

    parity = compare_tables(spoil)
    assert parity.verdict == "fail" and parity.nonfinite == 1
    assert parity.worst_cosine == -1 and parity.max_abs == 2
    assert parity.reasons[0] == "1 vectors are not finite (the first: no prompt: '')"
    assert parity.mean_cosine == pytest.approx(0.5)


def test_vector_that_is_not_finite_only_alone_fails(
    compare_tables: Callable[..., VectorParity], tokeniser: Tokeniser
) -> None:
    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        return np.full_like(vectors, np.inf) if len(vectors) == 1 else vectors

    # more texts than one mixed batch takes, so that none of those has a single row
    parity = compare_tables(spoil, texts=[*TEXTS, *ordinary_texts(5)])
    assert parity.verdict == "fail" and parity.nonfinite == 9
    assert parity.batch1_worst_cosine == -1 and parity.worst_cosine == pytest.approx(1)


@pytest.mark.parametrize("factor", [0.999, 1.001, 0.0])
def test_vector_that_is_not_of_unit_length_fails(
    compare_tables: Callable[..., VectorParity], factor: float
) -> None:
    parity = compare_tables(lambda _, vectors: vectors * np.float32(factor))
    assert parity.verdict == "fail"
    assert any("length is 1" in reason and "from 1" in reason for reason in parity.reasons)


def test_vectors_that_depend_on_the_batch_fail(compare_tables: Callable[..., VectorParity]) -> None:
    # right in any padded batch, wrong alone: only the candidate against itself shows it
    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        return vectors if len(vectors) > 1 else np.roll(vectors, 1, axis=1)

    parity = compare_tables(spoil)
    assert parity.verdict == "fail" and parity.worst_cosine == pytest.approx(1)
    (reason,) = parity.reasons
    assert reason.startswith("batch size 1 against padded batches: ")
    assert parity.batch1_worst_cosine is not None and parity.batch1_worst_cosine < FLOOR


def test_padding_that_leaks_into_vectors_fails(compare_tables: Callable[..., VectorParity]) -> None:
    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        padded = batch.lengths < batch.width
        return np.where(padded[:, None], np.roll(vectors, 1, axis=1), vectors)

    assert compare_tables(spoil).verdict == "fail"


def test_other_token_ids_fail(base: Path, spec: EmbeddingSpec, tokeniser: Tokeniser) -> None:
    shorter = Tokeniser.open(base, replace(tokeniser.framing, max_tokens=9))
    # the very same vector for everything, so that ids alone can fail
    constant: Spoil = lambda _, vectors: vectors * 0 + np.eye(3, dtype=np.float32)[0]  # noqa: E731
    parity = compare(
        Encoder(Table(spec, constant), tokeniser),
        Encoder(Table(spec, constant), shorter),
        TEXTS,
        thresholds=Thresholds(FLOOR, batch1_min_cosine=FLOOR),
        method="as tests do",
    )
    assert parity.verdict == "fail"
    where = "no prompt: 'to another bank, which takes two days'"
    assert parity.reasons == [
        "token ids differ from the reference's: token 8 is ▁days there, </s> in the artifact "
        f"({where})"
    ]


def test_every_prompt_is_compared_and_none(
    compare_tables: Callable[..., VectorParity], tokeniser: Tokeniser
) -> None:
    prompts = Prompts.of_fronts(
        {"query": "Query: ", "same": "Query: ", "sts": "Like: "},
        default="sts",
    )

    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        vectors[row_of(tokeniser, batch, f"Like: {TEXTS[0]}")] *= -1
        return vectors

    parity = compare_tables(spoil, prompts)
    assert parity.prompts == ["query", "same", "sts"]
    assert parity.worst_text == f"sts: {TEXTS[0]!r}" and parity.verdict == "fail"
    # two texts of prompt "query" are not counted twice: three kinds of four texts
    assert parity.mean_cosine == pytest.approx((11 - 1) / 12)


def test_progress_counts_every_embedding_once(spec: EmbeddingSpec, tokeniser: Tokeniser) -> None:
    reports: list[tuple[int, int]] = []
    both = Encoder(Table(spec), tokeniser, Prompts.of_fronts({"query": "Query: "}))
    compare(
        both,
        both,
        TEXTS,
        thresholds=Thresholds(FLOOR, batch1_min_cosine=FLOOR),
        method="as tests do",
        progress=lambda done, total: reports.append((done, total)),
    )
    # by the reference, in batches, alone; without and with the prompt
    assert reports[-1] == (24, 24) and reports == sorted(reports)


# -- texts --


def test_parity_texts_hold_every_kind_that_breaks_exporters(tokeniser: Tokeniser) -> None:
    texts = parity_texts(tokeniser)
    assert "" in texts and len(set(texts)) == len(texts)
    for mark in ("🙂", "漢字", "\x00", "</s>", "<s>", "\r\n", "\u0301", "ש"):
        assert any(mark in text for text in texts), mark
    assert any(text.endswith("</s>") for text in texts)


def test_one_text_fits_the_limit_just_and_another_is_cut(
    base: Path, spec: EmbeddingSpec, tokeniser: Tokeniser
) -> None:
    roomy = Tokeniser.open(base, read_framing(base, spec, 4096))
    fitting, long = (len(row) for row in roomy.ids(parity_texts(tokeniser)[-2:]))
    assert fitting <= 200 < long
    # a word is at most a few tokens, so the fitting one ends near the limit
    assert fitting > 190


def test_longest_text_has_about_a_thousand_tokens_where_more_would_fit(
    base: Path, spec: EmbeddingSpec
) -> None:
    roomy = Tokeniser.open(base, read_framing(base, spec, 4096))
    lengths = sorted(len(row) for row in roomy.ids(parity_texts(roomy)))
    assert 1000 < lengths[-1] <= 1024 and lengths[-2] < 1000


# -- weights only --


@pytest.fixture(scope="module")
def checkpoint(base: Path, adapter: Path) -> Checkpoint:
    return Checkpoint.open(base, adapter)


def test_streamed_weights_pass(artifact: Artifact, checkpoint: Checkpoint) -> None:
    parity = compare_weights(
        Encoder(open_streamed_checkpoint(checkpoint), artifact.tokeniser()),
        Encoder(open_streamed_artifact(artifact), artifact.tokeniser()),
        ODD_TEXTS,
        thresholds=Thresholds(min_cosine=0.999999, batch1_min_cosine=0.999999),
    )
    assert parity.verdict == "pass" and parity.texts == len(ODD_TEXTS)
    assert parity.batch1_worst_cosine is None and parity.thresholds.batch1_min_cosine is None
    assert parity.method.startswith("weights only, layer by layer")


def test_streamed_weights_under_another_tokenizer_fail(
    artifact: Artifact, checkpoint: Checkpoint
) -> None:
    framing = replace(artifact.manifest.framing, bos_id=None)
    other = Tokeniser.open(artifact.folder, framing)
    parity = compare_weights(
        Encoder(open_streamed_checkpoint(checkpoint), other),
        Encoder(open_streamed_artifact(artifact), artifact.tokeniser()),
        ODD_TEXTS,
        thresholds=Thresholds(min_cosine=-1.0),
    )
    assert parity.reasons == [
        "token ids differ from the reference's: its tokenizer puts no <s> in front of a text, the "
        "artifact does (no prompt: '')"
    ]


@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.1.self_attn.k_proj.weight", "norm.weight"]
)
def test_streamed_weight_that_differs_fails(
    artifact: Artifact, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read = Checkpoint.read

    def changed(self: Checkpoint, module: str, dtype: torch.dtype, **options: Any) -> torch.Tensor:
        weight = read(self, module, dtype, **options)
        return weight * (torch.arange(weight.shape[-1]) % 7 + 1) if module == name else weight

    monkeypatch.setattr(Checkpoint, "read", changed)
    parity = compare_weights(
        Encoder(open_streamed_checkpoint(checkpoint), artifact.tokeniser()),
        Encoder(open_streamed_artifact(artifact), artifact.tokeniser()),
        ODD_TEXTS,
        thresholds=Thresholds(min_cosine=0.999999, batch1_min_cosine=0.999999),
    )
    assert parity.verdict == "fail" and parity.worst_cosine < 0.9999


# -- which way --


def test_model_that_fits_in_memory_is_compared_by_its_graph(artifact: Artifact) -> None:
    entry = artifact.manifest.evidence["parity.json"]
    assert entry.covers == artifact.manifest.artifact_id
    text = (artifact.folder / "parity.json").read_text()
    assert (
        '"method": "every text by both, in padded batches of unlike lengths and at batch size 1"'
        in text
    )


def test_model_that_does_not_fit_is_compared_by_its_weights(
    artifact: Artifact, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 500 << 20)
    parity = prove(artifact, base, adapter)
    assert parity.verdict == "pass" and parity.method.startswith("weights only, layer by layer")
    assert "layer by layer, from the artifact's stored weights" in parity.candidate
    assert prove(artifact, base).verdict == "fail"


def test_progress_of_a_comparison_by_weights_reaches_the_end(
    artifact: Artifact, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 500 << 20)
    reports: list[tuple[int, int]] = []
    prove(artifact, base, adapter, lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports) and len({done for done, _ in reports}) > 20
    assert reports[-1][0] == reports[-1][1]


@pytest.mark.parametrize(("backend", "device"), [("ort", "auto"), ("auto", "cpu")])
def test_backend_that_a_comparison_by_weights_would_not_use_is_refused(
    artifact: Artifact,
    base: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    device: str,
) -> None:
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 500 << 20)
    with pytest.raises(SpaceError, match="leave both out to compare the stored weights"):
        prove(artifact, base, adapter, backend=backend, device=device)


def test_proof_names_the_files_it_was_held_to(
    artifact: Artifact, base: Path, adapter: Path
) -> None:
    held_to = prove(artifact, base, adapter).reference_sha256
    assert held_to == artifact.manifest.source.sha256
    assert prove(artifact, base).reference_sha256 != held_to


def test_reference_of_another_shape_is_refused_by_name(
    artifact: Artifact, make_model: MakeModel
) -> None:
    with pytest.raises(ShapeError, match="layers 3, as the artifact has, found 2"):
        prove(artifact, make_model(num_hidden_layers=2))

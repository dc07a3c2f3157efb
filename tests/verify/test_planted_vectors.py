"""Artifacts with one thing wrong each: the vectors tier fails, and names a text."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import hash_file, write_manifest
from anna_export.backends import load_encoder
from anna_export.encoder import Backend, Encoder
from anna_export.spec import EmbeddingSpec, Precision
from anna_export.text.batch import TokenBatch
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify import prove as proving
from anna_export.verify.flow import verify
from anna_export.verify.parity_report import VectorParity
from tests.support.types import MakeArtifact

PROMPTS = {"find": "Find a passage that answers this: ", "like": "Give a sentence that says this: "}


class Spoiled:
    """A backend that something is done to the batches of, or to the vectors."""

    def __init__(
        self,
        backend: Backend,
        batch: Callable[[TokenBatch], TokenBatch] = lambda batch: batch,
        vectors: Callable[[TokenBatch, np.ndarray], np.ndarray] = lambda _, vectors: vectors,
    ) -> None:
        self.name, self.compute_label = backend.name, backend.compute_label
        self.spec: EmbeddingSpec = backend.spec
        self._backend, self._batch, self._vectors = backend, batch, vectors

    def run(self, batch: TokenBatch) -> np.ndarray:
        return self._vectors(batch, self._backend.run(self._batch(batch)))


@pytest.fixture(scope="module", params=[Precision.FP32, Precision.INT8], ids=str)
def exported(
    request: pytest.FixtureRequest,
    sharp: Path,
    make_artifact: MakeArtifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Artifact]:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    tasks = {name: {"text": text} for name, text in PROMPTS.items()}
    path.write_text(json.dumps({"tasks": tasks}))
    return sharp, make_artifact(sharp, request.param, max_tokens=128, prompts=path)


@pytest.fixture
def proved(
    exported: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Encoder], Encoder]], VectorParity]:
    """Runs verify over the artifact with its encoder changed."""
    model, artifact = exported
    load = load_encoder

    def run(change: Callable[[Encoder], Encoder]) -> VectorParity:
        monkeypatch.setattr(
            proving, "load_encoder", lambda *args, **options: change(load(*args, **options))
        )
        return verify(artifact, model).report.vectors

    return run


def with_backend(encoder: Encoder, backend: Backend) -> Encoder:
    return Encoder(backend, encoder.tokeniser, encoder.prompts, encoder.prefixes)


def test_the_artifact_as_it_is_passes(
    proved: Callable[[Callable[[Encoder], Encoder]], VectorParity],
) -> None:
    parity = proved(lambda encoder: encoder)
    assert parity.verdict == "pass" and parity.reasons == []


def test_a_swapped_prompt_fails(exported: tuple[Path, Artifact], tmp_path: Path) -> None:
    model, artifact = exported
    copy = tmp_path / "copy"
    shutil.copytree(artifact.folder, copy)
    manifest = artifact.manifest
    first, second = (manifest.prefixes[name] for name in PROMPTS)
    shorter = min(first, second, key=lambda entry: len(entry.ids))
    longer = second if shorter is first else first
    assert len(shorter.ids) == len(longer.ids), "prompts of equal length can be swapped"
    (copy / first.file).write_bytes((artifact.folder / second.file).read_bytes())
    (copy / second.file).write_bytes((artifact.folder / first.file).read_bytes())
    listed = {
        name: entry.model_copy(update=hash_file(copy / entry.file).model_dump())
        for name, entry in manifest.prefixes.items()
    }
    write_manifest(copy, manifest.model_copy(update={"prefixes": listed}))
    parity = verify(open_artifact(copy), model).report.vectors
    assert parity.verdict == "fail"
    assert any(f"({name}: " in parity.reasons[0] for name in PROMPTS) or (
        "worst cosine" in parity.reasons[0]
    )
    assert parity.worst_text.split(":")[0] in PROMPTS


def test_padding_on_the_wrong_side_fails(
    proved: Callable[[Callable[[Encoder], Encoder]], VectorParity],
) -> None:
    def pool_the_padding(batch: TokenBatch) -> TokenBatch:
        return replace(batch, lengths=np.full_like(batch.lengths, batch.ids.shape[1]))

    parity = proved(
        lambda encoder: with_backend(encoder, Spoiled(encoder.backend, batch=pool_the_padding))
    )
    assert parity.verdict == "fail"
    assert parity.worst_text in " ".join(parity.reasons)


def test_a_missing_end_token_fails(
    proved: Callable[[Callable[[Encoder], Encoder]], VectorParity], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(Tokeniser):
        def ids(self, *args: object, **options: object) -> list[list[int]]:
            return [row[:-1] for row in super().ids(*args, **options)]  # type: ignore[arg-type]

    def without_end(encoder: Encoder) -> Encoder:
        tokeniser = object.__new__(Endless)
        tokeniser.__dict__.update(encoder.tokeniser.__dict__)
        return Encoder(encoder.backend, tokeniser, encoder.prompts, encoder.prefixes)

    parity = proved(without_end)
    assert parity.verdict == "fail"
    cause = "its tokenizer puts </s> behind a text, the artifact does not"
    assert cause in parity.reasons[0]


def test_one_vector_that_is_not_finite_fails(
    proved: Callable[[Callable[[Encoder], Encoder]], VectorParity],
) -> None:
    batches: list[TokenBatch] = []

    def spoil(batch: TokenBatch, vectors: np.ndarray) -> np.ndarray:
        if not batches:  # one vector of the whole run
            batches.append(batch)
            vectors = vectors.copy()
            vectors[0, 3] = np.nan
        return vectors

    parity = proved(lambda encoder: with_backend(encoder, Spoiled(encoder.backend, vectors=spoil)))
    assert parity.verdict == "fail" and parity.nonfinite == 1
    assert "1 vectors are not finite (the first: " in parity.reasons[0]

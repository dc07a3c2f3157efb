"""One suite over all backends: whatever runs, the contract and the vectors are the same."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.backends import open_encoder, ort, pytorch
from anna_export.encoder import Backend
from anna_export.errors import InputError, SpaceError, UnsupportedError
from anna_export.machine import memory as process_memory
from anna_export.reference.load import open_reference
from anna_export.reference.streamed import open_streamed_artifact, open_streamed_checkpoint
from anna_export.text.batch import TokenBatch
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts
from anna_export.weights.checkpoint import Checkpoint

TEXTS = [*ODD_TEXTS, *ordinary_texts(5), long_text(90)]
# To add a backend, add a line: how it is opened from an fp32 artifact, its base and its adapter.
OPENED: dict[str, Callable[[Artifact, Path, Path], Backend]] = {
    "ort": lambda artifact, base, adapter: ort.open_backend(artifact),
    "pytorch": lambda artifact, base, adapter: pytorch.open_backend(artifact),
    "reference": lambda artifact, base, adapter: open_reference(base, adapter).backend,
    "streamed artifact": lambda artifact, base, adapter: open_streamed_artifact(artifact),
    "streamed reference": lambda artifact, base, adapter: open_streamed_checkpoint(
        Checkpoint.open(base, adapter)
    ),
}


@pytest.fixture(scope="module", params=OPENED)
def backend(
    request: pytest.FixtureRequest, artifact: Artifact, base: Path, adapter: Path
) -> Backend:
    return OPENED[request.param](artifact, base, adapter)


@pytest.fixture(scope="module")
def batch(artifact: Artifact) -> TokenBatch:
    tokeniser = artifact.tokeniser()
    return TokenBatch.of_rows(tokeniser.ids(TEXTS), tokeniser.framing.pad_id)


@pytest.fixture(scope="module")
def truth(base: Path, adapter: Path, batch: TokenBatch) -> np.ndarray:
    return open_reference(base, adapter).backend.run(batch)


def test_it_says_what_it_is(backend: Backend, artifact: Artifact) -> None:
    assert backend.name in ("ort", "pytorch")
    assert backend.compute_label.startswith("fp32 ") and "CPU" in backend.compute_label
    assert backend.spec == artifact.manifest.spec


def test_vectors_are_fp32_rows_of_unit_length(backend: Backend, batch: TokenBatch) -> None:
    vectors = backend.run(batch)
    assert vectors.shape == (len(TEXTS), backend.spec.dim) and vectors.dtype == np.float32
    # rows are divided by their fp32 length: a few roundings of 6e-8 away from 1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=1e-6)


def test_vectors_are_the_references(backend: Backend, batch: TokenBatch, truth: np.ndarray) -> None:
    vectors = backend.run(batch)
    # fp32 against fp32: only the order of sums differs; components are about 0.15
    assert np.abs(vectors - truth).max() <= 1e-6
    assert (vectors.astype(np.float64) * truth).sum(axis=1).min() >= 0.999999


@pytest.mark.parametrize("index", [0, 5, len(TEXTS) - 1])
def test_text_alone_has_the_vector_it_has_in_a_batch(
    backend: Backend, batch: TokenBatch, truth: np.ndarray, index: int
) -> None:
    length = batch.lengths[index : index + 1]
    alone = TokenBatch(np.ascontiguousarray(batch.ids[index : index + 1, : length[0]]), length)
    # as above
    assert np.abs(backend.run(alone)[0] - backend.run(batch)[index]).max() <= 1e-6


def test_padding_is_never_seen(backend: Backend, batch: TokenBatch) -> None:
    other = TokenBatch(np.where(batch.mask == 1, batch.ids, 4321), batch.lengths)
    np.testing.assert_array_equal(backend.run(other), backend.run(batch))


def test_shortest_batch_there_can_be(backend: Backend, artifact: Artifact) -> None:
    eos = artifact.manifest.framing.eos_id
    vectors = backend.run(TokenBatch(np.array([[eos]]), np.array([1])))
    assert vectors.shape == (1, backend.spec.dim) and np.isfinite(vectors).all()


def test_run_leaves_its_input_and_earlier_results_alone(
    backend: Backend, batch: TokenBatch
) -> None:
    ids, lengths = batch.ids.copy(), batch.lengths.copy()
    first = backend.run(batch)
    copy = first.copy()
    backend.run(TokenBatch(batch.ids[::-1].copy(), batch.lengths[::-1].copy()))
    assert (batch.ids == ids).all() and (batch.lengths == lengths).all()
    assert (first == copy).all()


@pytest.mark.parametrize("name", ["ort", "pytorch"])
def test_backend_may_be_used_by_several_threads(artifact: Artifact, name: str) -> None:
    encoder = open_encoder(artifact.folder, backend=name)
    alone = [encoder.encode(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(encoder.encode, TEXTS * 3))
    # how work is split among cores, and so the order of sums, may differ from call to call
    np.testing.assert_allclose(together, alone * 3, rtol=0, atol=1e-6)


# -- opening --


def test_backend_is_chosen_by_name(artifact: Artifact) -> None:
    assert open_encoder(artifact.folder).backend.name == "ort"
    assert open_encoder(artifact.folder, backend="ort").backend.name == "ort"
    assert open_encoder(artifact.folder, backend="pytorch").backend.name == "pytorch"


def test_unknown_backend_is_refused_with_the_known_ones(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="auto, ort, trt, pytorch, found 'onnx'"):
        open_encoder(artifact.folder, backend="onnx")


@pytest.mark.parametrize("name", ["ort", "pytorch"])
def test_unknown_device_is_refused_with_the_known_ones(artifact: Artifact, name: str) -> None:
    with pytest.raises(InputError, match="auto, cpu, cuda, found 'gpu'"):
        open_encoder(artifact.folder, backend=name, device="gpu")


@pytest.mark.parametrize("name", ["ort", "pytorch"])
def test_cuda_is_refused_where_there_is_none(
    artifact: Artifact, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"with (a )?CUDA"):
        open_encoder(artifact.folder, backend=name, device="cuda")


@pytest.mark.parametrize("name", ["ort", "pytorch"])
def test_artifact_that_does_not_fit_in_memory_is_refused(
    artifact: Artifact, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 300 << 20)
    with pytest.raises(SpaceError, match=r"expected 0\.3 GB of memory for .*, found 0\.3 GB"):
        open_encoder(artifact.folder, backend=name)


def test_reference_reads_no_pickle(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickle files can run code"):
        open_reference(folder)


def test_streamed_model_holds_no_weight_after_a_batch(
    artifact: Artifact, batch: TokenBatch
) -> None:
    backend = open_streamed_artifact(open_artifact(artifact.folder))
    backend.run(batch)
    assert {weight.device.type for weight in backend.model.parameters()} == {"meta"}

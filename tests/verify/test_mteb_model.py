"""What mteb is told of a model: its name, and what its vectors are compared by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import Manifest
from anna_export.progress import no_stage
from anna_export.spec import Similarity
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.verify.models import open_models
from anna_export.verify.mteb_model import NO_ID, MtebModel, model_meta
from anna_export.verify.scoring import score
from anna_export.verify.task_data import TaskSource, sources
from tests.support.types import MakeArtifact, MakeModel
from tests.verify.small_tasks import write_small_tasks


@pytest.fixture(scope="module")
def artifact(make_model: MakeModel, make_artifact: MakeArtifact) -> Artifact:
    return make_artifact(make_model(seed=6))


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> TaskSource:
    folder = write_small_tasks(tmp_path_factory.mktemp("tasks"), 24, ["SmallRetrieval"])
    (source,) = sources(None, ["SmallRetrieval"], folder)
    return source


def compared_by(manifest: Manifest, similarity: Similarity) -> MtebModel:
    described = manifest.model_copy(update={"similarity": similarity})
    return MtebModel(embed, lambda *_: NO_PROMPT, model_meta("a/b", "1", described))


def embed(texts: Any, prompt: Prompt = NO_PROMPT) -> np.ndarray:
    """Return vectors of very unlike lengths, so that cosine and dot product rank otherwise."""
    rows = []
    for text in texts:
        rng = np.random.default_rng(sum(map(ord, text)))
        letters = np.array([text.count(letter) for letter in "aeiorstn"], dtype=np.float32)
        rows.append(letters * rng.uniform(0.1, 10))
    return np.stack(rows)


@pytest.mark.parametrize("similarity", Similarity)
def test_vectors_are_compared_as_sentence_transformers_compares_the_models(
    base: Path, artifact: Artifact, similarity: Similarity
) -> None:
    library = SentenceTransformer(
        modules=[Transformer(str(base)), Pooling(40)], similarity_fn_name=similarity.value
    )
    left, right = embed(["one", "two", "three"]), embed(["four", "five", "six"])
    model = compared_by(artifact.manifest, similarity)
    np.testing.assert_array_equal(
        np.asarray(model.similarity(left, right)), np.asarray(library.similarity(left, right))
    )
    np.testing.assert_array_equal(
        np.asarray(model.similarity_pairwise(left, right)),
        np.asarray(library.similarity_pairwise(left, right)),
    )


def test_a_retrieval_is_ranked_by_the_models_own_similarity(
    artifact: Artifact, retrieval: TaskSource, tmp_path: Path
) -> None:
    scores = {
        similarity: score(retrieval, compared_by(artifact.manifest, similarity), tmp_path).score
        for similarity in Similarity
    }
    assert len(set(scores.values())) == len(Similarity)


def test_the_reference_in_the_hubs_cache_is_called_by_its_repository(
    make_model: MakeModel, artifact: Artifact, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--acme--embed-7b" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for path in make_model(seed=6).iterdir():
        (snapshot / path.name).symlink_to(path.resolve())
    models = open_models(artifact, snapshot, None, "auto", "cpu", no_stage, NO_ID)
    assert next(models).meta.name == "anna-export/embed-7b"

"""An artifact that sentence-transformers loads by its repository, and sends to its processes."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import load_dir_path

import anna_export
from anna_export.encoder import Encoder
from anna_export.errors import MissingError
from anna_export.integrations.sentence_transformer import AnnaEncoder
from anna_export.verify.texts import ODD_TEXTS, long_text
from tests.support.linked import REVISION, lay_hub, lay_repository
from tests.support.types import MakeArtifact

REPOSITORY = "me/my-embed"
TEXTS = [*ODD_TEXTS[:9], "a</s>b <s> c", long_text(120)]


def same(vectors: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(vectors - expected).max() <= 1e-6)


# -- by repository --


@pytest.mark.parametrize("revision", [None, "main", REVISION])
def test_artifact_is_loaded_by_repository_from_a_cache(
    folder: Path, encoder: Encoder, tmp_path: Path, revision: str | None
) -> None:
    snapshot = lay_repository(folder, tmp_path, REPOSITORY)
    # what the library itself makes of that cache
    assert load_dir_path(REPOSITORY, "", cache_folder=str(tmp_path), local_files_only=True) == str(
        snapshot
    )
    model = SentenceTransformer(
        REPOSITORY,
        trust_remote_code=True,
        local_files_only=True,
        cache_folder=str(tmp_path),
        revision=revision,
        device="cpu",
    )
    assert model[0].folder == snapshot
    assert same(model.encode(TEXTS), encoder.encode(TEXTS))


def test_revision_decides_which_artifact_is_loaded(
    folder: Path, base: Path, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    first = lay_repository(folder, tmp_path, REPOSITORY)
    root, other = first.parent.parent, make_artifact(base, max_tokens=61).folder
    second = lay_hub(other, root, "f" * 40)
    (root / "refs" / "long").write_text("f" * 40)
    for revision, snapshot in ((None, first), ("long", second), ("f" * 40, second)):
        module = AnnaEncoder.load(REPOSITORY, cache_folder=str(tmp_path), revision=revision)
        assert module.folder == snapshot
    with pytest.raises(MissingError, match="found no such"):
        AnnaEncoder.load(
            REPOSITORY, cache_folder=str(tmp_path), revision="none", local_files_only=True
        )


@pytest.mark.slow
def test_artifact_is_loaded_by_repository_from_the_hubs_home(
    folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    lay_repository(folder, tmp_path / "hub", REPOSITORY)
    code = (
        "from sentence_transformers import SentenceTransformer; "
        f"model = SentenceTransformer({REPOSITORY!r}, trust_remote_code=True, local_files_only=True"
        ", device='cpu'); print(model.encode(['a text'])[0].tobytes().hex())"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    vector = np.frombuffer(bytes.fromhex(ran.stdout.split()[-1]), np.float32)
    assert same(vector, encoder.encode("a text"))


def test_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"expected an artifact at {REPOSITORY}, found no such"):
        AnnaEncoder.load(REPOSITORY, cache_folder=str(tmp_path), local_files_only=True)


def test_mistyped_folder_is_never_looked_for_on_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_repository(folder, tmp_path / "cache", REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"found no manifest\.json in me/my-embed"):
        anna_export.sentence_transformer(REPOSITORY)


# -- in other processes --


@pytest.mark.slow
def test_model_goes_to_the_librarys_own_processes(
    model: SentenceTransformer, encoder: Encoder
) -> None:
    model.max_seq_length = 24
    expected = model.encode(TEXTS)
    assert same(model.encode(TEXTS, device=["cpu", "cpu"], chunk_size=6), expected)
    pool = model.start_multi_process_pool(["cpu"])
    try:
        assert same(model.encode(TEXTS, pool=pool), expected)
    finally:
        model.stop_multi_process_pool(pool)
    assert not same(expected, encoder.encode(TEXTS))


@pytest.mark.parametrize("again", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_copied_model_keeps_its_length_and_takes_special_tokens_for_text(
    model: SentenceTransformer, again: object
) -> None:
    model.max_seq_length = 24
    assert callable(again)
    copied = again(model)
    assert copied.max_seq_length == 24
    assert same(copied.encode(TEXTS), model.encode(TEXTS))

"""embed --ray on a local cluster: the same vectors, in order, resumed, whatever dies."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from anna_export import open_encoder
from anna_export.artifact.folder import Artifact
from anna_export.cli import run
from anna_export.embed.file import embed_file
from anna_export.encoder import Encoder
from anna_export.errors import InputError, MissingError
from anna_export.files.text_file import read_texts
from anna_export.verify.texts import ordinary_texts

ray: Any = pytest.importorskip("ray", reason="needs anna-export[ray]")

TEXTS = [f"{number} {text}" for number, text in enumerate(ordinary_texts(40))]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def _no_cluster() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.mark.slow
def test_command_gives_what_it_gives_without(
    artifact: Artifact, encoder: Encoder, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vectors.npy"
    command = ["embed", str(artifact.folder), str(texts), "--out", str(out), "--ray"]
    assert run([*command, "--ray-actors", "2"]) == 0
    # threads may split sums in another way
    np.testing.assert_allclose(np.load(out), encoder.encode(TEXTS), atol=1e-6, rtol=0)
    assert not ray.is_initialized() and not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.usefixtures("_no_cluster")
def test_an_actor_that_is_killed_is_started_again_and_nothing_is_lost(
    artifact: Artifact, encoder: Encoder, texts: Path, tmp_path: Path
) -> None:
    from anna_export.embed.on_ray import connect_ray

    opening = partial(open_encoder, artifact.folder)
    out = tmp_path / "vectors.npy"
    killed: list[int] = []

    def kill_once(done: int, total: int) -> None:
        if killed or done == 0:
            return
        for process in psutil.Process().children(recursive=True):
            if "ray::_Actor" in " ".join(process.cmdline()):
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

    with connect_ray(opening, artifact.manifest.prompts, "local", 1) as embedder:
        embedded = embed_file(
            embedder, "a", read_texts(texts, "text"), out, shard_texts=4, progress=kill_once
        )
    assert killed and embedded.texts == len(TEXTS)
    np.testing.assert_allclose(np.load(out), encoder.encode(TEXTS), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_cluster")
def test_a_run_that_was_stopped_goes_on_with_or_without_the_cluster(
    artifact: Artifact, encoder: Encoder, texts: Path, tmp_path: Path
) -> None:
    from anna_export.embed.file import LocalEmbedder
    from anna_export.embed.on_ray import connect_ray

    opening = partial(open_encoder, artifact.folder)
    source, out = read_texts(texts, "text"), tmp_path / "vectors.npy"

    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with connect_ray(opening, artifact.manifest.prompts, "local", 2) as embedder:
        with pytest.raises(KeyboardInterrupt):
            embed_file(embedder, "a", source, out, shard_texts=4, progress=stop)
    assert not out.exists()
    embedded = embed_file(LocalEmbedder(encoder), "a", source, out, shard_texts=4)
    assert 12 <= embedded.resumed < len(TEXTS)
    np.testing.assert_allclose(np.load(out), encoder.encode(TEXTS), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_cluster")
def test_what_a_node_cannot_open_is_said_in_its_words(artifact: Artifact, tmp_path: Path) -> None:
    from anna_export.embed.on_ray import connect_ray

    opening = partial(open_encoder, tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=r"expected an artifact, found no manifest\.json in"):
        with connect_ray(opening, artifact.manifest.prompts, "local", 1):
            pass


@pytest.mark.slow
@pytest.mark.usefixtures("_no_cluster")
def test_more_gpus_than_there_are_and_no_cluster_are_refused(artifact: Artifact) -> None:
    from anna_export.embed.on_ray import connect_ray

    opening = partial(open_encoder, artifact.folder)
    prompts = artifact.manifest.prompts
    with pytest.raises(InputError, match="expected 4 GPUs for 2 actors, found 0 in the cluster"):
        with connect_ray(opening, prompts, "local", 2, 2):
            pass
    started = time.monotonic()
    with pytest.raises(InputError, match=r"expected a Ray cluster at 127\.0\.0\.1:9, found"):
        with connect_ray(opening, prompts, "127.0.0.1:9"):
            pass
    assert time.monotonic() - started < 60

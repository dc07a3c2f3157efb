"""Encoders that are pickled, copied and sent to other processes."""

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anna_export
from anna_export.encoder import Encoder
from anna_export.errors import AnnaError, DamagedError, InputError, MissingError
from anna_export.export.edit_prompts import add_prompts
from anna_export.text.prompts import Prompt, Prompts
from anna_export.verify.texts import ODD_TEXTS
from tests.support.types import MakeArtifact

TEXTS = [*ODD_TEXTS[:9], "a</s>b <s> c"]


@pytest.fixture(scope="module")
def folder(base: Path, make_artifact: MakeArtifact) -> Path:
    return make_artifact(base).folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return anna_export.open_encoder(folder)


@pytest.mark.parametrize("backend", ["ort", "pytorch"])
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy])
def test_copied_encoder_gives_the_same_vectors(folder: Path, backend: str, again: object) -> None:
    encoder = anna_export.open_encoder(folder, backend=backend, device="cpu", threads=1)
    assert callable(again)
    copied = again(encoder)
    assert copied is not encoder and copied.backend.name == backend
    np.testing.assert_array_equal(copied.encode(TEXTS), encoder.encode(TEXTS))


def test_copied_encoder_keeps_its_threads(folder: Path) -> None:
    copied = copy.deepcopy(anna_export.open_encoder(folder, threads=3))
    assert copied.backend._session.get_session_options().intra_op_num_threads == 3  # type: ignore[attr-defined]


def test_pickled_encoder_finds_its_folder_from_anywhere(
    folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    content = pickle.dumps(anna_export.open_encoder(folder.name))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(pickle.loads(content).encode("a"), encoder.encode("a"))
    assert len(content) < 10_000  # the way to the weights, and not they


@pytest.mark.parametrize("change", ["prompts", "weights", "nothing there"])
def test_pickled_encoder_of_a_folder_that_changed_is_refused(
    folder: Path, base: Path, make_artifact: MakeArtifact, tmp_path: Path, change: str
) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "artifact"))
    content = pickle.dumps(anna_export.open_encoder(moved))
    if change == "prompts":
        add_prompts(moved, Prompts({"new": Prompt("New: ")}), overwrite=False)
    else:
        shutil.rmtree(moved)
    if change == "weights":
        shutil.copytree(make_artifact(base, max_tokens=61).folder, moved)
    kind: type[AnnaError] = DamagedError
    message = "of which an encoder was pickled, found"
    if change == "nothing there":
        kind, message = MissingError, "expected an artifact"
    with pytest.raises(kind, match=message):
        pickle.loads(content)


def test_encoder_of_parts_says_that_it_cannot_be_pickled(encoder: Encoder) -> None:
    parts = Encoder(encoder.backend, encoder.tokeniser)
    for again in (pickle.dumps, copy.deepcopy):
        with pytest.raises(InputError, match="open it in each process"):
            again(parts)


@pytest.mark.slow
def test_encoder_goes_to_a_process_pool(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, multiprocessing, concurrent.futures, anna_export\n"
        "if __name__ == '__main__':\n"
        "    encoder = anna_export.open_encoder(sys.argv[1], threads=1)\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:\n"
        "        vector = pool.submit(encoder.encode, 'a text').result()\n"
        "    print(vector.tobytes().hex())\n"
    )
    command = [sys.executable, str(script), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    vector = np.frombuffer(bytes.fromhex(ran.stdout), np.float32)
    np.testing.assert_allclose(vector, encoder.encode("a text"), rtol=0, atol=1e-6)
